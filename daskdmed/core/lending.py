"""Memory that is lent: who borrows it may write into it, and its owner's values stay what they are.

Where several are to look at the same pixels, each as if they were its own, each would be given a
copy. Here the same pages are mapped twice instead: their owner writes into one mapping, others
get the second, in which the system copies a page when somebody writes into it (copy on write).
Nothing is copied for those who only look, and `Memory.is_intact` says for certain, by the
system's page table, that a borrower has written nothing and holds nothing any more.

Not covered: systems other than Linux, where `memory` gives None and copies have to do.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core import buffers
from daskdmed.core.types import Array

#: bytes of spare memory that are kept; the rest goes back to the operating system
SPARE_LIMIT = 128 << 20
#: where an entry of the page table, of eight bytes, has its highest one
_HIGHEST = 7 if sys.byteorder == "little" else 0
#: what that byte may be of a page that nobody wrote into: neither in memory (bit 7) nor in swap
#: (bit 6), or of a file (bit 5) and nobody's own copy
_UNTOUCHED = bytes(byte for byte in range(256) if not byte & 0xC0 or byte & 0x20)


class _Pages:
    """Some pages without a name, mapped twice. OSError, AttributeError: this system cannot."""

    def __init__(self, nbytes: int) -> None:
        file = os.memfd_create("daskdmed-lent", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, nbytes)
            own = mmap.mmap(file, nbytes, flags=mmap.MAP_SHARED)
            self._lent = mmap.mmap(file, nbytes, flags=mmap.MAP_PRIVATE)
        finally:
            os.close(file)
        self.nbytes = nbytes
        self._kept = np.frombuffer(own, np.uint8), np.frombuffer(self._lent, np.uint8)
        self.own, self.lent = (int(array.ctypes.data) for array in self._kept)

    def written(self) -> bool:
        """Whether anybody wrote where they are lent since they were made or restored."""
        # opened each time: after a fork it would be that of the parent
        table = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size, first = (8 * (n // mmap.PAGESIZE) for n in (self.nbytes, self.lent))
            content = os.pread(table, size, first)
        finally:
            os.close(table)
        if len(content) != size:
            raise OSError(f"the page table has {len(content)} bytes, not {size}")
        return bool(content[_HIGHEST::8].translate(None, _UNTOUCHED))

    def restore(self) -> None:
        """Forget what was written where they are lent."""
        self._lent.madvise(mmap.MADV_DONTNEED)


_pool = buffers.Pool(SPARE_LIMIT, _Pages)
if hasattr(os, "register_at_fork"):  # a child would write into the memory of its parent
    os.register_at_fork(after_in_child=_pool.clear)


class _Lease:
    """Owner of pages while anybody uses them; `lent`: since they were last found intact."""

    __slots__ = ("lent", "pages")

    def __init__(self, pages: _Pages) -> None:
        self.pages = pages
        self.lent = False

    # the default arguments outlive the module's globals at interpreter exit
    def __del__(
        self,
        _give: Callable[[_Pages], None] = _pool.give,
        _ends: Callable[[], bool] = sys.is_finalizing,
    ) -> None:
        if _ends():
            return
        try:
            if self.lent and self.pages.written():
                self.pages.restore()
        except OSError:  # such pages are not used again
            return
        _give(self.pages)


class _Borrowed:
    """What all arrays hold that were lent since the owner asked for the last time."""

    __slots__ = ("__weakref__", "_lease")

    def __init__(self, lease: _Lease) -> None:
        self._lease = lease


class Memory:
    """An array of its owner, `array`, which can be lent. Made by `memory`.

    What is lent shows the array as it is; the owner writes nothing into it meanwhile. The memory is
    used for something else when neither this, nor any array of it, is referenced.
    """

    def __init__(self, pages: _Pages, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._lease = _Lease(pages)
        self._borrowed = _Borrowed(self._lease)
        self._kept = False
        self.array: Array = buffers.over(self._lease, pages.own, shape, dtype.str)

    def lend(self, part: Array) -> Array:
        """A part of the array (a view of it), to be written into by somebody else."""
        pages, interface = self._lease.pages, part.__array_interface__
        first = interface["data"][0] - pages.own + pages.lent
        kind, strides = interface["typestr"], part.strides
        self._lease.lent = True
        return buffers.over(self._borrowed, first, part.shape, kind, strides)

    def is_intact(self) -> bool:
        """Whether nothing was written into what is lent, and nobody holds any of it: what is lent
        next is then equal to the array, and stays so."""
        last = weakref.ref(self._borrowed)
        self._borrowed = _Borrowed(self._lease)
        try:
            intact = last() is None and not self._lease.pages.written()
        except OSError:
            return False
        # what was held once may still be, and be written into at any time
        self._kept |= not intact
        self._lease.lent = self._kept
        return intact


def memory(shape: Sequence[int], dtype: npt.DTypeLike) -> Memory | None:
    """Uninitialised memory that can be lent, recycled; None where that is not possible."""
    if not available():
        return None
    kind = np.dtype(dtype)
    nbytes = max(math.prod(shape) * kind.itemsize, 1)
    try:
        pages = _pool.take(buffers.rounded(nbytes, mmap.PAGESIZE))
    except OSError:  # no more of it, or of open files
        return None
    return Memory(pages, tuple(int(n) for n in shape), kind)


@functools.cache
def available() -> bool:
    """Whether this system can lend memory: tried once."""
    if sys.platform != "linux":
        return False
    try:
        pages = _Pages(2 * mmap.PAGESIZE)
        own, lent = (
            buffers.over(pages, at, (pages.nbytes,), "|u1") for at in (pages.own, pages.lent)
        )
        own[:] = 1
        looked = int(lent.sum()) == own.size and not pages.written()
        lent[-1] = 2
        wrote = pages.written() and own[-1] == 1
        pages.restore()
        return bool(looked and wrote and not pages.written() and lent[-1] == 1)
    except (OSError, AttributeError, ValueError):
        return False


def spare_bytes() -> int:
    """Bytes that this process holds in reserve."""
    return _pool.nbytes


__all__ = ["Memory", "available", "memory", "spare_bytes"]
