"""Shared memory as its owner sees it: arrays in segments, and handles of them for others.

A segment is recycled when its last array here is gone and nobody maps it under a lock: fresh
pages cost much more than filling used ones. Each use raises its generation, so that a
handle of the one before leads nowhere.
"""

from __future__ import annotations

import functools
import logging
import mmap
import os
import secrets
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dask
import numpy as np
import numpy.typing as npt

from daskdmed.core import buffers
from daskdmed.core.buffers import LINE
from daskdmed.core.types import Array

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("daskdmed.shared")

#: bytes before the first array: who this is (see `Handle.nonce`), and how often it was used
HEADER = struct.Struct("<QQ")
#: bytes of segments that wait for their next use
SPARE_LIMIT = 256 << 20


class Handle(NamedTuple):
    """Where an array lies, for other processes of the machine.

    `address`: (process, number of an open file of it), or (name,) where memory has to have one.
    `nonce` and `generation` say which use of which segment is meant.
    """

    machine: str
    address: tuple[Any, ...]
    nonce: int
    generation: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def enabled() -> bool:
    """Whether blocks of worker processes are to be shared, ``daskdmed.shared-memory``."""
    return bool(dask.config.get("daskdmed.shared-memory", True))


def machine() -> str:
    """Name of this machine, or what ``dask.config`` "daskdmed.machine" says.

    Processes that cannot see each other's may still share it: it only spares the attempt.
    """
    given = dask.config.get("daskdmed.machine", None)
    return str(given) if given else _boot()


@functools.cache
def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        import platform

        return platform.node()


class Segment:
    """Memory of a fixed size that others can map; its content begins behind a header."""

    #: whether it can be known that nobody reads it any more
    reusable = False

    def __init__(self, memory: Any, size: int, address: tuple[Any, ...]) -> None:
        self.size = size
        self.address = address
        self.nonce = secrets.randbits(63)
        self.generation = 0
        self._memory = memory
        self.bytes: Array = np.frombuffer(memory, np.uint8)
        self.start = int(self.bytes.ctypes.data)
        self.renew()

    def renew(self) -> None:
        """Begin another use: handles of the one before lead nowhere."""
        self.generation += 1
        HEADER.pack_into(self._memory, 0, self.nonce, self.generation)

    def claim(self) -> bool:
        """Begin another use, unless somebody may still read this one."""
        return False

    def handle(self, array: Array) -> Handle:
        offset = array.ctypes.data - self.start
        return Handle(
            machine(),
            self.address,
            self.nonce,
            self.generation,
            offset,
            array.shape,
            array.strides,
            array.dtype.str,
        )


class _Memfd(Segment):
    """A file without a name; others open it through this process's table of open files."""

    reusable = True

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("daskdmed", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            memory = mmap.mmap(self.fd, size)
            super().__init__(memory, size, (os.getpid(), self.fd))
        except BaseException:
            os.close(self.fd)
            del self.fd  # it is not closed twice: another file may have the number by then
            raise

    def claim(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self.renew()
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True

    # the default argument outlives the module's globals at interpreter exit
    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        # the mapping goes with its last array; whoever else maps it keeps its pages
        if hasattr(self, "fd"):
            _close(self.fd)


class _Named(Segment):
    """Memory of `multiprocessing`, whose name is gone with its last use here.

    It is not used again: no lock tells whether somebody reads it.
    """

    def __init__(self, size: int) -> None:
        from multiprocessing.shared_memory import SharedMemory

        self._shared = SharedMemory(create=True, size=size)
        try:
            fd = getattr(self._shared, "_fd", -1)
            if fd >= 0 and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)  # else a full /dev/shm is a SIGBUS later
            super().__init__(self._shared.buf, size, (self._shared.name,))
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        self.bytes = np.empty(0, np.uint8)
        self._memory = None
        self._shared.unlink()
        self._shared.close()

    def __del__(self) -> None:
        if self.__dict__.get("_memory") is not None:
            self._release()


def _kind() -> type[Any]:
    usable = sys.platform == "linux" and hasattr(os, "memfd_create")
    named = dask.config.get("daskdmed.shared-memory", True) == "named"
    return _Memfd if usable and not named else _Named


class _Owner:
    """The segments of this process. Safe to call from finalisers on any thread."""

    def __init__(self) -> None:
        # an RLock: the garbage collector may run a finaliser while a thread holds it
        self._lock = threading.RLock()
        self._spare: list[Segment] = []
        self._live: dict[int, Segment] = {}
        self._told = False

    def take(self, nbytes: int) -> Segment | None:
        """A segment with room for so many bytes; None where the system has none to give."""
        size = buffers.rounded(nbytes + HEADER.size, mmap.PAGESIZE)
        kind = _kind()
        with self._lock:
            for spare in self._spare:
                if spare.size == size and type(spare) is kind and spare.claim():
                    self._spare.remove(spare)
                    self._live[spare.start] = spare
                    return spare
        try:
            segment: Segment = kind(size)
        except OSError as error:
            self._tell(size, error)
            return None
        with self._lock:
            self._live[segment.start] = segment
        return segment

    def give(self, segment: Segment) -> None:
        with self._lock:
            self._live.pop(segment.start, None)
            if segment.reusable:
                self._spare.append(segment)
                while sum(s.size for s in self._spare) > SPARE_LIMIT:
                    self._spare.pop(0)  # the one that waited longest: maybe somebody reads it

    def find(self, array: Array) -> Segment | None:
        """The segment that holds an array."""
        first = int(array.ctypes.data)
        with self._lock:
            for segment in self._live.values():
                if segment.start <= first < segment.start + segment.size:
                    return segment
        return None

    def _tell(self, size: int, error: OSError) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "no shared memory of %d MiB (%s): big chunks of this process stay private to it, "
                "and small chunks travel through sockets, which is slower. Raise the limit of "
                "open files (ulimit -n) or the size of /dev/shm (docker run --shm-size)",
                size >> 20,
                str(error),
            )

    def clear(self) -> None:
        with self._lock:
            self._spare.clear()

    @property
    def nbytes(self) -> int:
        with self._lock:
            return sum(s.size for s in (*self._live.values(), *self._spare))


_owner = _Owner()


def _in_child() -> None:
    """Segments of the parent are the parent's; here their files are closed, nothing else."""
    global _owner
    _owner = _Owner()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class _Use:
    """One use of a segment; the arrays in it keep it."""

    __slots__ = ("_owner", "segment")

    def __init__(self, owner: _Owner, segment: Segment) -> None:
        self._owner, self.segment = owner, segment

    def __del__(self) -> None:
        self._owner.give(self.segment)


class Allocator:
    """Arrays that share a segment as long as it has room; `expected` bytes of them.

    Where the system has no shared memory to give they are private, as those of `buffers`.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._use: _Use | None = None
        self._next = 0

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An uninitialised C-contiguous array of a plain numeric type."""
        kind = np.dtype(dtype)
        extents = tuple(int(extent) for extent in shape)
        count = 1
        for extent in extents:
            count *= extent
        nbytes = count * kind.itemsize
        if kind.hasobject or not nbytes:
            return np.empty(extents, kind)
        use = self._use
        if use is None or self._next + nbytes > use.segment.size:
            segment = _owner.take(max(self._expected, nbytes) + LINE)
            if segment is None:
                return buffers.empty(extents, kind)
            use = self._use = _Use(_owner, segment)
            self._next = LINE
        first = use.segment.start + self._next
        self._next += -(-nbytes // LINE) * LINE
        return buffers.over(use, first, extents, kind.str)

    def own(self, array: Array) -> Array:
        """The array itself where it lies in shared memory, else a copy that does."""
        if _owner.find(array) is not None:
            return array
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy


def handle_of(array: Array) -> Handle | None:
    """How others find an array of this process; None for one that is private to it."""
    segment = _owner.find(array)
    return None if segment is None or array.dtype.hasobject else segment.handle(array)


def nbytes() -> int:
    """Size of all segments of this process, those that wait for their next use included."""
    return _owner.nbytes


def clear() -> None:
    """Give what waits for its next use back to the operating system."""
    _owner.clear()
