"""Recycled memory for blocks.

A fresh 48 MiB array costs thousands of page faults, a fifth of the time that decoding
into it takes. `empty` gives arrays whose memory goes back to a small per-process pool when
the last reference (views included) is gone, so that rotating blocks reuse warm pages.

Not covered: who keeps blocks, and for how long (`daskdmed.persistence`). Arrays below
`SMALLEST` come from NumPy as usual.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from daskdmed.core.types import Array

#: arrays smaller than this many bytes are not worth recycling
SMALLEST = 1 << 20
#: bytes of spare memory the pool keeps; the rest goes back to the operating system
SPARE_LIMIT = 256 << 20
#: sizes are rounded up to this many steps per power of two, so that blocks of nearly one
#: size (edge blocks are a little smaller) share memory; pages never touched cost nothing
_STEPS_PER_OCTAVE = 4
#: memory serves arrays down to this part of its size: blocks at the edges of tiles differ by more
#: than a step, and a pool full of one size would otherwise have fresh pages touched for another
_FITS = 0.6
#: arrays begin on a cache line: tiles are then copied into whole lines, a quarter faster
LINE = 64


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Memory = TypeVar("Memory", bound=_Sized)


class Pool(Generic[Memory]):
    """Spare memory by size, up to `limit` bytes of it; new one is made by `make`, of so many bytes.
    Safe to call from finalisers on any thread."""

    def __init__(self, limit: int, make: Callable[[int], Memory]) -> None:
        self.limit = limit
        self._make = make
        # an RLock: the garbage collector may run a finaliser while `take` holds it
        self._lock = threading.RLock()
        self._spare: dict[int, list[Memory]] = {}
        self._bytes = 0
        if hasattr(os, "register_at_fork"):  # a thread that was not copied may have held the lock
            os.register_at_fork(after_in_child=self._unlock)

    def take(self, nbytes: int) -> Memory:
        """Memory of so many bytes, or somewhat more."""
        with self._lock:
            stack = self._spare.get(nbytes)
            if not stack:
                fits = [n for n, held in self._spare.items() if held and n * _FITS <= nbytes <= n]
                stack = self._spare[min(fits)] if fits else None
            if stack:
                memory = stack.pop()
                self._bytes -= memory.nbytes
                return memory
        return self._make(nbytes)

    def give(self, memory: Memory) -> None:
        """Nobody uses it any more."""
        with self._lock:
            if self._bytes + memory.nbytes <= self.limit:
                self._spare.setdefault(memory.nbytes, []).append(memory)
                self._bytes += memory.nbytes

    def clear(self) -> None:
        """Forget all that is spare."""
        with self._lock:
            self._spare.clear()
            self._bytes = 0

    def _unlock(self) -> None:
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Of all that is spare."""
        return self._bytes


def _fresh(nbytes: int) -> Array:
    return np.empty(nbytes, np.uint8)


_pool = Pool(SPARE_LIMIT, _fresh)


class _Lease:
    """Owner of one piece of pooled memory."""

    __slots__ = ("_memory",)

    def __init__(self, memory: Array) -> None:
        self._memory = memory

    # the default argument outlives the module's globals at interpreter exit
    def __del__(self, _give: Callable[[Array], None] = _pool.give) -> None:
        _give(self._memory)


class _Held:
    """What NumPy keeps alive as the base of an array over memory of an owner."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: object, interface: dict[str, Any]) -> None:
        self._owner = owner
        self.__array_interface__ = interface


def over(
    owner: object,
    first: int,
    shape: tuple[int, ...],
    dtype: str,
    strides: tuple[int, ...] | None = None,
    *,
    writable: bool = True,
) -> Array:
    """An array over memory from an address on; its owner is kept as long as any view of it."""
    interface = {"version": 3, "shape": shape, "typestr": dtype, "strides": strides}
    return np.asarray(_Held(owner, {**interface, "data": (first, not writable)}))


def rounded(nbytes: int, least: int = 1) -> int:
    """A size that is shared by sizes a little smaller, a multiple of `least`."""
    step = max((1 << (nbytes.bit_length() - 1)) // _STEPS_PER_OCTAVE, least)
    return -(-nbytes // step) * step


def empty(shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
    """An uninitialised C-contiguous array of a plain numeric type, its memory recycled.

    Behaves as ``numpy.empty``; `base` is not None, and the memory returns to the pool when neither
    it nor any view of it is referenced.
    """
    kind = np.dtype(dtype)
    count = 1
    for extent in shape:
        count *= int(extent)
    nbytes = count * kind.itemsize
    if nbytes < SMALLEST or kind.hasobject:
        return np.empty(tuple(shape), kind)
    memory = _pool.take(rounded(nbytes) + LINE)
    first = -(-memory.ctypes.data // LINE) * LINE
    return over(_Lease(memory), first, tuple(int(s) for s in shape), kind.str)


def spare_bytes() -> int:
    """Bytes that the pool of this process holds in reserve."""
    return _pool.nbytes


def clear() -> None:
    """Give the spare memory of this process back to the operating system."""
    _pool.clear()
