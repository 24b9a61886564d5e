"""JPEG 2000 files (JP2, J2K, JPH): their headers, and their tiles as those of a tiled TIFF.

Where a codestream is cut into tiles, each is decoded for itself: the main header, narrowed to the
tile, before the tile's own part of the file is a codestream that every decoder reads. Files of
one tile, and those that weave the tiles' parts into each other, are decoded whole.

Not covered: lower resolutions out of the wavelets, palettes, subsampled tiles apart.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np

from daskdmed.core.types import Array
from daskdmed.images.raster.headers import damaged, unsupported
from daskdmed.images.raster.picture import MAX_EXTRA, Colour, Picture, per_length
from daskdmed.images.source import Source
from daskdmed.images.tiff.codecs import Decode, Decoder, blend_alpha
from daskdmed.images.tiff.decode import LevelPlan
from daskdmed.images.tiff.fetch import DecodeError
from daskdmed.images.tiff.tables import TileTable

JP2_MAGIC = b"\0\0\0\x0cjP  \r\n\x87\n"
J2K_MAGIC = b"\xff\x4f\xff\x51"
#: boxes, marker segments and parts of tiles that are looked at; more is damage
_MAX_PARTS, _MAX_TILE_PARTS = 1024, 2**20
_SIZ, _SOT, _EOC = 0x51, 0x90, 0xD9
#: packet headers outside their tiles: these cannot be decoded one by one
_PACKED_HEADERS = 0x60
#: lists of lengths, which would not fit a single tile
_LISTS = (0x55, 0x57, 0x58)
_GREY, _SYCC = 17, 18
#: bytes that OpenJPEG takes per sample, beside what it gives out
_WORKING = 4


@dataclass(slots=True)
class _Boxes:
    """What the boxes of a JP2 say."""

    start: int = 0
    icc: bytes | None = None
    space: int = 0
    palette: bool = False
    #: number of the component that is alpha, and how
    alpha: tuple[int, int] | None = None
    #: pixels per meter (y, x)
    density: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class _Size:
    """The size segment: all on the reference grid, (x, y)."""

    stop: tuple[int, int]
    origin: tuple[int, int]
    tile: tuple[int, int]
    tile_origin: tuple[int, int]
    depths: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]


def parse_jpeg2000(source: Source) -> tuple[Picture, LevelPlan | None]:
    """What a file holds, and its tiles where they can be read one by one."""
    boxes = _Boxes()
    if source.read(0, 4) != J2K_MAGIC:
        _read_boxes(source, 0, source.size, boxes)
        if not boxes.start:
            raise damaged(source, "no codestream in it")
    segments = dict[int, tuple[int, int]]()
    tiles_at = _main_header(source, boxes.start, segments)
    size = _size(source, segments)
    picture = _picture(source, size, boxes)
    if _PACKED_HEADERS in segments or boxes.space == _SYCC:
        return picture, None
    return picture, _plan(source, boxes.start, tiles_at, size, picture)


# ---------------------------------------------------------------------------- boxes
def _read_boxes(source: Source, at: int, end: int, found: _Boxes) -> None:
    for _ in range(_MAX_PARTS):
        head = source.read(at, 16)
        if at + 8 > end or len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head[:8])
        skip = 8
        if length == 1 and len(head) == 16:
            length, skip = int.from_bytes(head[8:]), 16
        stop = end if length == 0 else at + length
        if (stop > end and name != b"jp2c") or stop < at + skip:
            raise damaged(source, f"a box of {length} bytes at {at}")
        if name == b"jp2c":
            found.start = found.start or at + skip
        elif name in (b"jp2h", b"res "):
            _read_boxes(source, at + skip, stop, found)
        elif name in (b"colr", b"pclr", b"cdef", b"resc", b"resd") and stop - at < MAX_EXTRA:
            _read_box(name, source.read(at + skip, stop - at - skip), found)
        at = stop


def _read_box(name: bytes, body: bytes, found: _Boxes) -> None:
    if name == b"pclr":
        found.palette = True
    elif name == b"colr" and body[:1] == b"\1" and len(body) >= 7 and not found.space:
        found.space = int.from_bytes(body[3:7])
    elif name == b"colr" and body[:1] in (b"\2", b"\3") and found.icc is None:
        found.icc = body[3:] or None
    elif name == b"cdef":
        for i in range(2, len(body) - 5, 6):
            component, kind, _ = struct.unpack_from(">HHH", body, i)
            if kind in (1, 2):
                found.alpha = component, kind
    elif name in (b"resc", b"resd") and len(body) == 10 and (name == b"resc" or not found.density):
        top_y, low_y, top_x, low_x, exp_y, exp_x = struct.unpack(">HHHHbb", body)
        if low_y and low_x:
            found.density = top_y / low_y * 10.0**exp_y, top_x / low_x * 10.0**exp_x


# ---------------------------------------------------------------------------- codestream
def _main_header(source: Source, start: int, segments: dict[int, tuple[int, int]]) -> int:
    """Note where each kind of segment (start, end) is; where the first tile's part begins."""
    if source.read(start, 4) != J2K_MAGIC:
        raise damaged(source, f"no codestream at byte {start}")
    at = start + 2
    for _ in range(_MAX_PARTS):
        head = source.read(at, 4)
        if len(head) < 4 or head[0] != 0xFF:
            break
        if head[1] == _SOT:
            return at
        stop = at + 2 + int.from_bytes(head[2:4])
        segments.setdefault(head[1], (at, stop))
        at = stop
    raise damaged(source, "no tile in the codestream")


def _size(source: Source, segments: dict[int, tuple[int, int]]) -> _Size:
    begin, end = segments[_SIZ]
    body = source.read(begin + 4, end - begin - 4)
    if len(body) < 36:
        raise damaged(source, "its size is cut off")
    numbers = struct.unpack(">8I", body[2:34])
    count = int.from_bytes(body[34:36])
    if len(body) < 36 + 3 * count or not count:
        raise damaged(source, f"{count} components")
    parts = [body[i : i + 3] for i in range(36, 36 + 3 * count, 3)]
    pairs = [(numbers[i], numbers[i + 1]) for i in (0, 2, 4, 6)]
    steps = tuple((part[1], part[2]) for part in parts)
    if not all(map(all, steps)) or not all(pairs[2]):
        raise damaged(source, "tiles or components without extent")
    return _Size(pairs[0], pairs[1], pairs[2], pairs[3], tuple(part[0] for part in parts), steps)


def _picture(source: Source, size: _Size, boxes: _Boxes) -> Picture:
    if boxes.palette:
        raise unsupported(source, "a JPEG 2000 with a palette")
    depths = {(depth & 0x7F) + 1 for depth in size.depths}
    signed = {depth >> 7 for depth in size.depths}
    bits = max(depths)
    if bits > 16 or len(signed) > 1:
        raise unsupported(source, f"a JPEG 2000 of {', '.join(map(str, sorted(depths)))} bits")
    dtype = f"{'' if signed.pop() else 'u'}int{8 if bits <= 8 else 16}"
    count = len(size.depths)
    alpha = ""
    if boxes.alpha is not None and boxes.alpha[0] == count - 1 and dtype[0] == "u":
        alpha = {1: "straight", 2: "premultiplied"}[boxes.alpha[1]]
    colours = count - bool(alpha)
    grey = colours == 1 or boxes.space == _GREY
    colour: Colour = "rgb" if colours == 3 and not grey else "grey" if colours == 1 else "other"
    (right, bottom), (left, top) = size.stop, size.origin
    mpp = None if boxes.density is None else per_length(boxes.density[1], boxes.density[0], 1e6)
    step_x, step_y = (min(s[axis] for s in size.steps) for axis in (0, 1))
    return Picture(
        "jp2", -(-right // step_x) - -(-left // step_x), -(-bottom // step_y) - -(-top // step_y),
        count, dtype, colour, alpha, mpp, boxes.icc,  # type: ignore[arg-type]
        effort=1 + _WORKING / np.dtype(dtype).itemsize,
    )  # fmt: skip


def _plan(
    source: Source, start: int, tiles_at: int, size: _Size, picture: Picture
) -> LevelPlan | None:
    if size.tile_origin != size.origin or any(step != (1, 1) for step in size.steps):
        return None
    grid = -(-picture.height // size.tile[1]), -(-picture.width // size.tile[0])
    count = grid[0] * grid[1]
    if not 1 < count <= 65535:
        return None
    offsets, counts = np.zeros((1, count), np.int64), np.zeros((1, count), np.int64)
    for number, at, length in _tile_parts(source, tiles_at):
        if number >= count:
            raise damaged(source, f"tile {number} of {count}")
        if not counts[0, number]:
            offsets[0, number] = at
        elif offsets[0, number] + counts[0, number] != at:
            return None
        counts[0, number] += length
    # a stream has every tile: of one that is cut off, those behind the end are errors
    absent = counts == 0
    offsets[absent], counts[absent] = source.size, 1
    main = source.read(start, tiles_at - start)
    dtype = np.dtype(picture.dtype)
    convert = None
    if picture.alpha:
        convert = blend_alpha(picture.background, dtype, associated=picture.alpha[0] == "p")
    decode = _decoder(main, size, grid[1], dtype)
    return LevelPlan(
        level=0,
        shape=(picture.height, picture.width, picture.channels),
        tile=(size.tile[1], size.tile[0]),
        grid=grid,
        tiles=TileTable(offsets, counts),
        decoder=Decoder(decode, convert, picture.samples, picture.channels),
        dtype=dtype,
    )


def _tile_parts(source: Source, at: int) -> Iterator[tuple[int, int, int]]:
    """Number of the tile, place and length of each part."""
    for _ in range(_MAX_TILE_PARTS):
        head = source.read(at, 12)
        if head[:2] == bytes((0xFF, _EOC)) or not head:
            return
        if len(head) < 12 or head[:2] != bytes((0xFF, _SOT)):
            raise damaged(source, f"no tile at byte {at}")
        number, length = struct.unpack(">HI", head[4:10])
        if length == 0:  # the last one, up to the end
            length = source.size - at
        if length < 14:
            raise damaged(source, f"a tile of {length} bytes at {at}")
        yield number, at, length
        at += length


def _decoder(main: bytes, size: _Size, columns: int, dtype: np.dtype[np.generic]) -> Decode:
    """Decodes the parts of one tile behind a main header that is made for it."""
    head = _without_lists(main)

    def decode(data: bytes, out: Array) -> Array:
        row, column = divmod(int.from_bytes(data[4:6]), columns)
        x = size.origin[0] + column * size.tile[0]
        y = size.origin[1] + row * size.tile[1]
        stop = min(x + size.tile[0], size.stop[0]), min(y + size.tile[1], size.stop[1])
        own = bytearray(head)
        # of the size segment behind the two first markers
        own[8:40] = struct.pack(">8I", *stop, x, y, *size.tile, x, y)
        found = imagecodecs.jpeg2k_decode(bytes(own) + _renumbered(data) + b"\xff\xd9")
        tile = np.asarray(found)
        tile = tile[..., None] if tile.ndim == 2 else tile
        expected = (stop[1] - y, stop[0] - x, out.shape[2])
        if tile.shape != expected or tile.dtype != dtype:
            raise DecodeError(
                f"the tile decodes to {tile.shape} {tile.dtype}, expected {expected} {dtype}"
            )
        return tile

    return decode


def _without_lists(main: bytes) -> bytes:
    kept, at = main[:2], 2
    while at < len(main):
        stop = at + 2 + int.from_bytes(main[at + 2 : at + 4])
        if main[at + 1] not in _LISTS:
            kept += main[at:stop]
        at = stop
    return kept


def _renumbered(data: bytes) -> bytes:
    """The parts of a tile as those of tile 0."""
    parts, at = bytearray(data), 0
    while at + 12 <= len(parts):
        parts[at + 4 : at + 6] = b"\0\0"
        length = int.from_bytes(parts[at + 6 : at + 10])
        if length == 0:
            break
        at += length
    return bytes(parts.removesuffix(b"\xff\xd9")) if at < len(parts) else bytes(parts)
