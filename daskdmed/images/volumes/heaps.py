"""HDF5 files as HDF5 is given them to read texts from: with an eye on its global heaps.

Texts of attributes lie in heaps, collections of objects that each say how long they are. HDF5 walks
along them, and for ever where one says that it has no length, which is what a block of zeros says
that a disk or a copy put there, or more than there can be. Nothing ends that, not even Ctrl-C.
`watched` looks through every heap that HDF5 is about to see.

Not covered: what else can be damaged, which HDF5 finds out.
"""

from __future__ import annotations

import io
import struct
from typing import Any

_SIGNATURE = b"GCOL\x01\0\0\0"
_HEAD = struct.Struct("<HHIQ")


def watched(path: str) -> Any:
    """An HDF5 file opened to read what its attributes say, damaged heaps of which are errors; more
    slowly than by its path, and beside that."""
    import h5py

    return h5py.File(WatchedFile(path), "r")


class WatchedFile(io.RawIOBase):
    """A local file for HDF5; OSError for a read that touches a heap in which HDF5 would not end."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset >= 2**63:
            raise OSError(f"byte {offset} lies behind the end of the file")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        begin = self._file.tell()
        count = self._file.readinto(buffer)
        seen = bytes(memoryview(buffer)[:count])
        at = seen.find(_SIGNATURE)
        while at >= 0:
            self._check(begin + at)
            at = seen.find(_SIGNATURE, at + 1)
        self._file.seek(begin + count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _check(self, at: int) -> None:
        """OSError for a heap with an object of a length that cannot be."""
        self._file.seek(at + 8)
        (size,) = struct.unpack("<Q", self._file.read(8).ljust(8, b"\0"))
        place = 16
        while place + _HEAD.size <= size:
            self._file.seek(at + place)
            head = self._file.read(_HEAD.size)
            if len(head) < _HEAD.size:  # behind the end of the file, which HDF5 finds
                return
            index, _, _, length = _HEAD.unpack(head)
            # object 0 is what is free, its head included
            step = _HEAD.size + (length + 7) // 8 * 8 if index else length
            if not 0 < step <= size - place:
                raise OSError(
                    f"the heap at byte {at} has an object of {length} bytes at {at + place}, of "
                    f"{size} bytes in all"
                )
            place += step
