"""Shared memory as others see it: arrays of another process, read-only and by reference.

A mapping is kept while its segment lives, because touching its pages the first time costs; the
lock that keeps the owner from writing is held as long as there are arrays of it.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.shared.segments import HEADER, Handle, machine
from daskdmed.core.types import Array

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("daskdmed.shared")


class _Mapping(ABC):
    """One segment of another process, mapped."""

    #: all of it, header included
    bytes: Array

    def __init__(self, handle: Handle) -> None:
        self.address = handle.address
        self.pid = os.getpid()
        self._leases = 0
        self._lock = threading.RLock()
        self._open(handle)
        self._header = self.bytes[: HEADER.size].data
        self.start = int(self.bytes.ctypes.data)

    @abstractmethod
    def _open(self, handle: Handle) -> None:
        """Map it: sets `bytes`. OSError: it cannot be reached."""

    @property
    def idle(self) -> bool:
        return not self._leases

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether its owner has given the segment back, or has ended."""

    def lease(self, handle: Handle) -> bool:
        """Keep the owner from writing; False when it has done so since the handle was made."""
        with self._lock:
            if not self._leases and not self._hold():
                return False
            if HEADER.unpack(self._header) != (handle.nonce, handle.generation):
                if not self._leases:
                    self._let_go()
                return False
            self._leases += 1
            return True

    def end_lease(self) -> None:
        with self._lock:
            self._leases -= 1
            # a fork shares the lock with its parent, whose it is
            if not self._leases and self.pid == os.getpid():
                self._let_go()

    @abstractmethod
    def _hold(self) -> bool:
        """Keep the owner from writing; False while it does."""

    @abstractmethod
    def _let_go(self) -> None:
        """The owner may write."""


class _OpenFile(_Mapping):
    """Opened through the table of open files of its owner."""

    def _open(self, handle: Handle) -> None:
        process, number = handle.address
        self._path = f"/proc/{process}/fd/{number}"
        self.fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(self.fd)
            self._inode = (found.st_dev, found.st_ino)
            # not some other file that has the number by now
            if found.st_size < HEADER.size or found.st_nlink:
                raise OSError(f"{self._path} is no shared memory")
            self.bytes = np.frombuffer(
                mmap.mmap(self.fd, found.st_size, prot=mmap.PROT_READ), np.uint8
            )
        except BaseException:
            os.close(self.fd)
            del self.fd
            raise

    @property
    def gone(self) -> bool:
        try:
            found = os.stat(self._path)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._inode

    def _hold(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _let_go(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    # the default argument outlives the module's globals at interpreter exit
    def __del__(self, _close: Any = os.close) -> None:
        if hasattr(self, "fd"):
            _close(self.fd)


class _Named(_Mapping):
    """Memory that has a name, and one use."""

    def _open(self, handle: Handle) -> None:
        from multiprocessing import resource_tracker
        from multiprocessing.shared_memory import SharedMemory

        (name,) = handle.address
        if sys.version_info >= (3, 13):
            self._shared = SharedMemory(name, track=False)
        else:
            # it would unlink at exit what is not ours
            register, resource_tracker.register = resource_tracker.register, lambda *_: None
            try:
                self._shared = SharedMemory(name)
            finally:
                resource_tracker.register = register
        memory: Any = self._shared.buf
        self.bytes = np.frombuffer(memory, np.uint8)

    @property
    def gone(self) -> bool:
        return self.idle

    def _hold(self) -> bool:
        return True  # its owner never uses it again

    def _let_go(self) -> None:
        return

    def __del__(self) -> None:
        if hasattr(self, "_shared"):
            del self._header, self.bytes
            self._shared.close()


class _Lease:
    """The owner's lock, held until the array and its views are gone."""

    __slots__ = ("_mapping",)

    def __init__(self, mapping: _Mapping) -> None:
        self._mapping = mapping

    def __del__(self) -> None:
        self._mapping.end_lease()


_mappings: dict[tuple[Any, ...], _Mapping] = {}
_lock = threading.RLock()
_refused = False


def _in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _mappings.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def attach(handle: Handle) -> Array | None:
    """The array that a handle leads to, read-only; None when it cannot be reached from here.

    That is the case for other machines, for containers that do not see each other's processes,
    and for memory that was given back or used again.
    """
    if handle.machine != machine():
        return None
    with _lock:
        found = _mappings.get(handle.address)
        if found is not None and not found.lease(handle):
            # given back and used again; or another process has the number now
            if found.idle:
                del _mappings[handle.address]
            found = None
        if found is None:
            prune()
            try:
                found = (_OpenFile if len(handle.address) == 2 else _Named)(handle)
            except (OSError, ValueError) as error:
                _refuse(error)
                return None
            if not found.lease(handle):
                return None
            _mappings[handle.address] = found
    lease, first = _Lease(found), found.start + handle.offset
    return buffers.over(lease, first, handle.shape, handle.dtype, handle.strides, writable=False)


def _refuse(error: Exception) -> None:
    global _refused
    if isinstance(error, FileNotFoundError):  # the owner ended meanwhile
        return
    if not _refused:
        _refused = True
        logger.warning(
            "shared memory of a worker process on this machine cannot be mapped (%s): small "
            "chunks travel through sockets, which is slower. Workers and the training process "
            "must run as the same user and see each other in /proc (in one container, or with "
            "docker run --pid=host)",
            str(error),
        )


def prune() -> None:
    """Forget mappings that nobody uses and whose segments were given back."""
    _forget(lambda mapping: mapping.gone)


def clear() -> None:
    """Forget mappings that nobody uses."""
    _forget(lambda mapping: True)


def _forget(which: Callable[[_Mapping], bool]) -> None:
    with _lock:
        for address, mapping in list(_mappings.items()):
            if mapping.idle and which(mapping):
                del _mappings[address]
