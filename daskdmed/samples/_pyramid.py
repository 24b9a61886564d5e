"""Writing a tiled JPEG pyramid tile by tile, and computing its upper levels on the way.

`PyramidWriter` puts already encoded tiles into a TIFF or BigTIFF whose levels are pages
(the later ones marked as reduced images), readable by OpenSlide, tifffile and libtiff.
`LevelAssembler` gathers shrunken tiles of one level into tiles of the next; only one row of
tiles per level is in memory. What the tiles show is decided elsewhere.

Slide scanners store the quantisation and Huffman tables once per level (tag 347) and an
abbreviated JPEG stream per tile; made slides do the same, so that they decode like real ones.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.samples._bank import Memo, shrink

if TYPE_CHECKING:
    from daskdmed.core.types import Array

_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8 = 2, 3, 4, 5, 7, 16
_FORMATS = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _LONG8: "Q"}
#: a classic TIFF addresses 4 GiB; stay clear of it
CLASSIC_LIMIT = 2**32 - 2**26

#: chroma subsampling name -> (horizontal, vertical), the value of TIFF tag 530
SUBSAMPLINGS: dict[str, tuple[int, int]] = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _DQT, _DHT = 0xE0, 0xDB, 0xC4


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into (tables, abbreviated stream). The JFIF header is dropped: inside a
    TIFF the photometric tag says the colour space."""
    from daskdmed.images.tiff.jpeg import segments

    tables, rest, begin = [_SOI], [_SOI], 2
    for marker, _, end in segments(stream):
        if marker != _APP0:
            (tables if marker in (_DQT, _DHT) else rest).append(stream[begin:end])
        begin = end
    return b"".join([*tables, _EOI]), b"".join([*rest, stream[begin:]])


class JpegEncoder:
    """Encodes RGB tiles into abbreviated YCbCr streams with common `tables`, TIFF tag 347."""

    def __init__(self, quality: int, subsampling: str) -> None:
        if subsampling not in SUBSAMPLINGS:
            raise UsageError(
                f"subsampling must be one of {', '.join(map(repr, SUBSAMPLINGS))}, "
                f"got {subsampling!r}"
            )
        if not 1 <= quality <= 100:
            raise UsageError(f"quality must be between 1 and 100, got {quality!r}")
        self.quality = int(quality)
        self.subsampling = subsampling
        self.tables = b""

    def encode(self, tile: Array) -> bytes:
        import imagecodecs

        stream = imagecodecs.jpeg8_encode(
            tile,
            level=self.quality,
            colorspace="RGB",
            outcolorspace="YCBCR",
            subsampling=self.subsampling,
            optimize=False,
        )
        self.tables, abbreviated = split_tables(bytes(stream))
        return abbreviated


def grid(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """(rows, columns) of tiles that cover a (width, height)."""
    return -(-size[1] // tile), -(-size[0] // tile)


class PyramidWriter:
    """Writes encoded tiles in order, the directories last; the file then takes its name.

    `sizes` are (width, height) of the levels, largest first. `share` stores tiles of equal id once.
    """

    def __init__(
        self,
        path: Path,
        sizes: Sequence[tuple[int, int]],
        tile: int,
        *,
        big: bool,
        share: bool = False,
    ) -> None:
        self.path = path
        self._sizes = list(sizes)
        self._tile = tile
        self._big = big
        self._offset_type = _LONG8 if big else _LONG
        self._offsets = [array("Q") for _ in sizes]
        self._counts = [array("I") for _ in sizes]
        self._shared: dict[tuple[int, int], tuple[int, int]] | None = {} if share else None
        self._partial = path.with_name(path.name + ".partial")
        self._file: IO[bytes] = self._partial.open("wb")
        self._file.write(b"II" + (struct.pack("<HHHQ", 43, 8, 0, 0) if big else b"*\0\0\0\0\0"))
        self._at = self._file.tell()

    def add_row(self, level: int, streams: Sequence[bytes], ids: Sequence[int]) -> None:
        """Append one row of tiles of a level; rows of different levels may alternate."""
        offsets, counts = self._offsets[level], self._counts[level]
        if self._shared is None:
            for stream in streams:
                offsets.append(self._at)
                counts.append(len(stream))
                self._at += len(stream)
            self._file.write(b"".join(streams))
            return
        for stream, ident in zip(streams, ids, strict=True):
            place = self._shared.get((level, ident))
            if place is None:
                place = (self._at, len(stream))
                self._shared[level, ident] = place
                self._file.write(stream)
                self._at += len(stream)
            offsets.append(place[0])
            counts.append(place[1])

    def finish(self, encoder: JpegEncoder, mpp: float, description: str) -> None:
        if not self._big and self._at > CLASSIC_LIMIT:
            raise UsageError(
                f"{self.path}: {self._at} bytes do not fit a classic TIFF; pass bigtiff=True"
            )
        link = 8 if self._big else 4
        for level, size in enumerate(self._sizes):
            tags = self._tags(level, size, encoder, mpp, description)
            start, next_link = self._directory(tags)
            self._file.seek(link)
            self._file.write(struct.pack("<Q" if self._big else "<I", start))
            self._file.seek(0, os.SEEK_END)
            link = next_link
        self._file.close()
        os.replace(self._partial, self.path)

    def abort(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _tags(
        self, level: int, size: tuple[int, int], encoder: JpegEncoder, mpp: float, description: str
    ) -> list[tuple[int, int, Any]]:
        """(tag, type, values) of one level, ascending."""
        scale = self._sizes[0][0] / size[0], self._sizes[0][1] / size[1]
        per_cm = [Fraction(1e4 / (mpp * s)).limit_denominator(10_000) for s in scale]
        tags: list[tuple[int, int, Any]] = [
            (254, _LONG, [1 if level else 0]),
            (256, _LONG, [size[0]]),
            (257, _LONG, [size[1]]),
            (258, _SHORT, [8, 8, 8]),
            (259, _SHORT, [7]),
            (262, _SHORT, [6]),
            (270, _ASCII, description.encode("ascii") + b"\0"),
            (277, _SHORT, [3]),
            (282, _RATIONAL, [per_cm[0].numerator, per_cm[0].denominator]),
            (283, _RATIONAL, [per_cm[1].numerator, per_cm[1].denominator]),
            (284, _SHORT, [1]),
            (296, _SHORT, [3]),
            (305, _ASCII, b"daskdmed.samples\0"),
            (322, _LONG, [self._tile]),
            (323, _LONG, [self._tile]),
            (324, self._offset_type, self._offsets[level]),
            (325, _LONG, self._counts[level]),
            (347, _UNDEFINED, encoder.tables),
            (530, _SHORT, list(SUBSAMPLINGS[encoder.subsampling])),
        ]
        return tags if level == 0 else [t for t in tags if t[0] != 270]

    def _directory(self, tags: list[tuple[int, int, Any]]) -> tuple[int, int]:
        """Write one directory; return (its offset, where its link to the next one is)."""
        inline = 8 if self._big else 4
        word = "Q" if self._big else "I"
        entries = []
        for tag, kind, values in tags:
            count, data = self._pack(kind, values)
            if len(data) > inline:
                self._align()
                where = self._at
                self._write(data)
                data = struct.pack("<" + word, where)
            entries.append(struct.pack("<HH" + word, tag, kind, count) + data.ljust(inline, b"\0"))
        self._align()
        start = self._at
        self._write(struct.pack("<Q" if self._big else "<H", len(entries)) + b"".join(entries))
        link = self._at
        self._write(b"\0" * inline)
        return start, link

    def _pack(self, kind: int, values: Any) -> tuple[int, bytes]:
        if kind in (_ASCII, _UNDEFINED):
            return len(values), bytes(values)
        data = np.asarray(values, dtype="<u8").astype(f"<{_FORMATS[kind]}").tobytes()
        return len(values) // (2 if kind == _RATIONAL else 1), data

    def _align(self) -> None:
        self._write(b"\0" * (-self._at % 8))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)


class LevelAssembler:
    """Makes the tiles of one level out of shrunken tiles of the level below."""

    def __init__(self, size: tuple[int, int], tile: int, factor: int, encoder: JpegEncoder) -> None:
        self.rows, self.columns = grid(size, tile)
        self._tile, self._factor, self._encoder = tile, factor, encoder
        self._pixels = np.full((tile, self.columns * tile, 3), 255, np.uint8)
        self._below = np.full((factor, self.columns * factor), -1, np.int64)
        self._filled = 0
        self._done = 0
        self._known: dict[bytes, int] = {}
        self._memo: Memo[int, tuple[bytes, Array]] = Memo(96)

    def push(self, smalls: Sequence[Array], ids: Array) -> bool:
        """Take one row of shrunken tiles; True when a row of tiles is complete."""
        if self._done >= self.rows:
            return False
        height = self._tile // self._factor
        ids = ids[: self._below.shape[1]]
        row = np.concatenate(smalls[: ids.size], axis=1)
        at = self._filled * height
        self._pixels[at : at + height, : row.shape[1]] = row
        self._below[self._filled, : ids.size] = ids
        self._filled += 1
        return self._filled == self._factor

    @property
    def pending(self) -> bool:
        return self._filled > 0 and self._done < self.rows

    def take(self) -> tuple[list[bytes], list[Array], Array]:
        """(streams, shrunken tiles, ids) of the row of tiles gathered so far."""
        side, factor = self._tile, self._factor
        ids, made = [], []
        for column in range(self.columns):
            content = self._below[:, column * factor : (column + 1) * factor].tobytes()
            ids.append(self._known.setdefault(content, len(self._known)))
            view = self._pixels[:, column * side : (column + 1) * side]
            made.append(self._memo.get(ids[-1], partial(self._encode, view)))
        self._filled = 0
        self._done += 1
        self._pixels[:] = 255
        self._below[:] = -1
        return [one[0] for one in made], [one[1] for one in made], np.asarray(ids, np.int64)

    def _encode(self, view: Array) -> tuple[bytes, Array]:
        pixels = np.ascontiguousarray(view)
        return self._encoder.encode(pixels), shrink(pixels, self._factor)
