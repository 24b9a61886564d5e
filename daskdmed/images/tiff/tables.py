"""Where the tiles of a level lie: lists of numbers that stay in the file until they are needed.

A large slide has hundreds of thousands of tiles, and whoever opens five hundred slides reads a few
of them. Long lists of tiled images are therefore passed over by the parser, which gets zeros for
them, and read at once when a tile of their level is.

Not covered: short lists and those of strips, which are read with the directory.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import CorruptImageError
from daskdmed.images.source import Source

#: lists that are longer stay in the file
LONG = 1024
#: numbers at the beginning of a list that the parser sees as they are
SEEN = 16


@dataclass(frozen=True, slots=True)
class Stretch:
    """Numbers that lie in a file one behind the other."""

    offset: int
    count: int
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        """Where in the file they end."""
        return self.offset + self.count * self.dtype.itemsize

    def part(self, first: int, count: int) -> Stretch:
        """Some of them."""
        return Stretch(self.offset + first * self.dtype.itemsize, count, self.dtype)


Numbers = npt.NDArray[Any] | Stretch


class TileTable:
    """Offsets and sizes in bytes of all tiles, by stored plane. Thread-safe.

    Parameters
    ----------
    offsets, counts : sequence of array or Stretch
        One for each plane, in the order of tiles.
    """

    __slots__ = ("_planes",)

    def __init__(self, offsets: Iterable[Numbers], counts: Iterable[Numbers]) -> None:
        self._planes = [_Plane(*both) for both in zip(offsets, counts, strict=True)]

    def __len__(self) -> int:
        return len(self._planes)

    def plane(self, number: int, source: Source) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Offsets and sizes of all tiles of a plane."""
        return self._planes[number].read(source)

    def has(self, tile: int, source: Source) -> bool:
        """Whether all planes of a tile have data."""
        both = (numbers for plane in self._planes for numbers in plane.read(source))
        return all(numbers[tile] for numbers in both)

    def of(self, planes: Sequence[int]) -> TileTable:
        """Of some planes; what one of both reads the other has."""
        found = TileTable((), ())
        found._planes = [self._planes[plane] for plane in planes]
        return found


class _Plane:
    """Both lists of one plane, read once."""

    __slots__ = ("_counts", "_offsets", "_read")

    def __init__(self, offsets: Numbers, counts: Numbers) -> None:
        self._offsets, self._counts = offsets, counts
        self._read: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None

    def read(self, source: Source) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        found = self._read
        if found is None:  # in two threads at once both find the same
            offsets, counts = _read_all(source, [self._offsets, self._counts])
            found = self._read = offsets, counts
        return found


def _read_all(source: Source, lists: Sequence[Numbers]) -> list[npt.NDArray[Any]]:
    there = [numbers for numbers in lists if isinstance(numbers, Stretch)]
    offsets, counts = [one.offset for one in there], [one.stop - one.offset for one in there]
    blobs = iter(source.read_many(offsets, counts) if there else ())
    found = []
    for numbers in lists:
        if isinstance(numbers, Stretch):
            blob = next(blobs)
            if len(blob) < numbers.stop - numbers.offset:
                raise CorruptImageError.of(
                    source.uri,
                    f"it ends within the list of its {numbers.count} tiles, at byte "
                    f"{numbers.offset + len(blob)}; the file changed while it was open, or the "
                    "copy is incomplete: fetch it again from where it came",
                )
            numbers = np.frombuffer(blob, numbers.dtype)
        found.append(numbers)
    return found


class PassingOver(io.RawIOBase):
    """A file as a parser sees it that shall not read long lists: but for their first numbers they
    are zeros, and neither read nor made into objects."""

    def __init__(self, file: Any, lists: Iterable[Stretch]) -> None:
        super().__init__()
        self._file = file
        self._lists = {one.offset: one for one in lists}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        return int(self._file.readinto(buffer))

    def read(self, size: int | None = -1) -> bytes:
        found = self._lists.get(self._file.tell())
        if found is None or size != found.stop - found.offset:
            return bytes(self._file.read(-1 if size is None else size))
        seen = SEEN * found.dtype.itemsize
        head = bytes(self._file.read(seen))
        self._file.seek(found.stop)
        return head + bytes(size - seen) if len(head) == seen else head

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
