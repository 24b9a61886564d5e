"""A bounded walk over the directories (IFDs) of a TIFF file.

It runs before the real parser and proves that the parser will end: every directory lies in
the file and is visited once, every tag's values lie in the file, and the declared sizes
agree with the number of tiles. Classic TIFF, BigTIFF and Hamamatsu's 64-bit variant.

Not covered: what the tags mean (`daskdmed.images.tiff.index`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError
from daskdmed.images.source import Source
from daskdmed.images.tiff.tables import LONG, Stretch

#: bytes per value of each TIFF field type
_TYPE_SIZE = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
    16: 8, 17: 8, 18: 8,
}  # fmt: skip
#: those of whole numbers
_WHOLE = {1, 3, 4, 6, 8, 9, 13, 16, 17, 18}
_INTEGER = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
#: directories in one file; a Z-stack of a thousand planes with pyramids stays far below
MAX_IFDS = 50_000
#: a decoded tile or strip larger than this is damage, not an image
MAX_SEGMENT_BYTES = 2**30
#: rows in which a single strip of raw pixels is read
VIRTUAL_ROWS = 256
_MAX_SIDE = 2**31 - 1
_WIDTH, _LENGTH, _SAMPLES, _ROWS, _TILE_W, _TILE_H, _SUBIFD = 256, 257, 277, 278, 322, 323, 330
_STRIP_OFFSETS, _STRIP_COUNTS = 273, 279
#: tags of where tiles lie, and of their sizes
TILE_OFFSETS, TILE_COUNTS = 324, 325
#: tags of whole numbers, without which nothing can be found
_PLACED = (_WIDTH, _LENGTH, _STRIP_OFFSETS, TILE_OFFSETS, _STRIP_COUNTS, TILE_COUNTS)
_PLANAR, _BITS, _COMPRESSION, _NDPI = 284, 258, 259, 65420
#: tags that say how pixels are stored: sizes, bits, compression, photometric interpretation, order
#: of bits, samples, planes, predictor, kind of samples; and what they say where they are missing
_DECISIVE = {
    _WIDTH: 0, _LENGTH: 0, _BITS: 1, _COMPRESSION: 1, 262: 0, 266: 1, _SAMPLES: 1, _PLANAR: 1,
    317: 1, _TILE_W: 0, _TILE_H: 0, 339: 1,
}  # fmt: skip


@dataclass(slots=True)
class IFD:
    """What the walk keeps of one directory."""

    offset: int
    #: tag -> (number of values, first values as far as they are small integers)
    tags: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    #: tag -> where its numbers lie, of long lists of tiles
    lists: dict[int, Stretch] = field(default_factory=dict)

    @property
    def layout(self) -> tuple[int, ...]:
        """What decides how pixels are stored."""
        return tuple(self.first(tag, default) for tag, default in _DECISIVE.items())

    def first(self, tag: int, default: int = 0) -> int:
        entry = self.tags.get(tag)
        return entry[1][0] if entry and entry[1] else default


class _Layout:
    """Sizes and formats of one TIFF variant."""

    def __init__(self, order: str, big: bool) -> None:
        self.order = order
        self.big = big
        self.ndpi = False
        self.count = struct.Struct(order + ("Q" if big else "H"))
        self.entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
        self.inline = 8 if big else 4
        self.word = struct.Struct(order + ("Q" if big else "I"))
        self.wide = struct.Struct(order + "Q")


def walk(source: Source) -> list[IFD]:
    """Visit every directory of a TIFF file once: top-level and sub-directories in the order found.

    An error where one or its values lie outside the file, directories form a cycle, or the declared
    sizes cannot be true.
    """
    layout, offset = _header(source)
    found: dict[int, IFD] = {}
    while offset:
        if offset in found:
            _corrupt(source, f"the directories form a cycle: offset {offset} comes twice")
        main, offset = _visit(source, layout, offset, found)
        _descend(source, layout, main, found)
    if not found:
        _corrupt(source, "it has no directory, so no image")
    return list(found.values())


def _visit(source: Source, layout: _Layout, offset: int, found: dict[int, IFD]) -> tuple[IFD, int]:
    if len(found) >= MAX_IFDS:
        _corrupt(source, f"more than {MAX_IFDS} directories")
    ifd, following = _read_ifd(source, layout, offset, is_first=not found)
    found[offset] = ifd
    _check_sizes(source, ifd)
    return ifd, following


def _descend(source: Source, layout: _Layout, main: IFD, found: dict[int, IFD]) -> None:
    """Visit sub-directories. Their own chains are not followed: parsers use the lists."""
    stack = [(main, {main.offset})]
    while stack:
        parent, ancestors = stack.pop()
        count, children = parent.tags.get(_SUBIFD, (0, ()))
        if count != len(children):
            _corrupt(source, f"{count} sub-directories in the directory at {parent.offset}")
        for child in children:
            if child in ancestors:
                _corrupt(source, f"the directories form a cycle: offset {child} is its own child")
            if child and child not in found:
                ifd, _ = _visit(source, layout, child, found)
                stack.append((ifd, {*ancestors, child}))


def _corrupt(source: Source, what: str) -> NoReturn:
    raise CorruptImageError.of(
        source.uri,
        f"broken TIFF structure: {what} (the file has {source.size} bytes); "
        "the copy may be incomplete, fetch it again from where it came",
    )


def _header(source: Source) -> tuple[_Layout, int]:
    head = source.read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if len(head) == 0:
        raise CorruptImageError.of(source.uri, "the file is empty (0 bytes); fetch it again")
    version = struct.unpack(order + "H", head[2:4])[0] if order and len(head) >= 4 else 0
    if order is None or version not in (42, 43):
        raise UnsupportedImageError.of(
            source.uri,
            f"not a TIFF file (it starts with {head[:4]!r}); "
            "check the path, or name another backend",
        )
    if len(head) < (16 if version == 43 else 8):
        _corrupt(source, "it ends within the header")
    layout = _Layout(order, version == 43)
    if version == 43:
        if struct.unpack(order + "HH", head[4:8]) != (8, 0):
            _corrupt(source, "unknown BigTIFF offset size")
        return layout, struct.unpack(order + "Q", head[8:16])[0]
    offset = int(layout.word.unpack(head[4:8])[0])
    high = int(layout.word.unpack(head[8:12])[0]) if len(head) >= 12 else 0
    if order == "<" and high and _is_ndpi(source, layout, offset + (high << 32)):
        offset += high << 32
    return layout, offset


def _is_ndpi(source: Source, layout: _Layout, offset: int) -> bool:
    """Whether the directory at a 64-bit offset is Hamamatsu's."""
    if offset + 2 > source.size:
        return False
    count = layout.count.unpack(source.read(offset, 2))[0]
    body = source.read(offset + 2, 12 * count)
    return any(
        struct.unpack_from(layout.order + "H", body, i)[0] == _NDPI
        for i in range(0, len(body) - 11, 12)
    )


def _read_ifd(source: Source, layout: _Layout, offset: int, *, is_first: bool) -> tuple[IFD, int]:
    size = layout.count.size
    head = source.read(offset, size) if offset < source.size else b""
    if len(head) < size:
        _corrupt(source, f"a directory at offset {offset}, behind the end of the file")
    count = layout.count.unpack(head)[0]
    step = layout.entry.size
    if count == 0 or count > 4096 or offset + size + count * step > source.size:
        _corrupt(source, f"{count} entries in the directory at offset {offset}")
    body = source.read(offset + size, count * step + 8 + 4 * count)
    entries = [layout.entry.unpack_from(body, i * step) for i in range(count)]
    if is_first and not layout.big and layout.order == "<":
        layout.ndpi = any(e[0] == _NDPI for e in entries)
    high = _high_words(layout, body, count) if layout.ndpi else [0] * count
    ifd = IFD(offset)
    for (tag, kind, number, raw), upper in zip(entries, high, strict=True):
        _read_tag(source, layout, ifd, tag, kind, number, raw, upper)
    word = layout.wide if layout.ndpi else layout.word
    if len(body) < count * step + word.size:
        _corrupt(source, f"the directory at offset {offset} is cut off")
    return ifd, int(word.unpack_from(body, count * step)[0])


def _high_words(layout: _Layout, body: bytes, count: int) -> list[int]:
    """Upper halves of the 64-bit values that NDPI keeps behind the directory."""
    start = count * layout.entry.size + 8
    if len(body) < start + 4 * count:
        return [0] * count
    return [v[0] for v in layout.word.iter_unpack(body[start : start + 4 * count])]


def _read_tag(
    source: Source, layout: _Layout, ifd: IFD, tag: int, kind: int, number: int, raw: bytes, up: int
) -> None:
    width = _TYPE_SIZE.get(kind)
    if tag in _PLACED and kind not in _WHOLE:
        _corrupt(source, f"tag {tag} of the directory at {ifd.offset} has type {kind}")
    if width is None:
        return
    length, code, wanted, data = width * number, _INTEGER.get(kind), number, raw
    if length > layout.inline:
        where = layout.word.unpack(raw)[0] + (up << 32)
        if where + length > source.size:
            _corrupt(
                source,
                f"tag {tag} of the directory at offset {ifd.offset} claims {number} values "
                f"({length} bytes) at offset {where}",
            )
        if code and number > LONG and tag in (TILE_OFFSETS, TILE_COUNTS) and not layout.ndpi:
            dtype = np.dtype(f"{layout.order}u{width}")
            ifd.lists.setdefault(tag, Stretch(where, number, dtype))  # of two the first counts
        # bits per sample is the only other list, and its first value stands for all
        wanted = number if tag == _SUBIFD and number <= 4096 else 1
        data = source.read(where, width * wanted) if code else b""
    values = struct.unpack_from(f"{layout.order}{wanted}{code}", data) if code and wanted else ()
    if up and number == 1 and data is raw and values:
        values = (values[0] + (up << 32),)
    ifd.tags[tag] = (number, tuple(int(v) for v in values))


def _check_sizes(source: Source, ifd: IFD) -> None:
    """Refuse extents that the number of tiles, or memory, contradicts."""
    width, length = ifd.first(_WIDTH), ifd.first(_LENGTH)
    where = f"the image in the directory at offset {ifd.offset}"
    tiled = TILE_OFFSETS in ifd.tags
    if not tiled and _STRIP_OFFSETS not in ifd.tags:
        return  # holds metadata only
    if not (0 < width <= _MAX_SIDE and 0 < length <= _MAX_SIDE):
        _corrupt(source, f"{where} claims {width} x {length} pixels")
    samples = ifd.first(_SAMPLES, 1)
    if not 0 < samples <= 4096:
        _corrupt(source, f"{where} claims {samples} samples per pixel")
    tile_w = ifd.first(_TILE_W) if tiled else width
    tile_h = ifd.first(_TILE_H) if tiled else min(ifd.first(_ROWS, length), length)
    if tile_w <= 0 or tile_h <= 0:
        _corrupt(source, f"{where} claims tiles of {tile_w} x {tile_h} pixels")
    planes = samples if ifd.first(_PLANAR, 1) == 2 else 1
    expected = -(-width // tile_w) * -(-length // tile_h) * planes
    offsets = ifd.tags[TILE_OFFSETS if tiled else _STRIP_OFFSETS][0]
    if offsets < expected:
        _corrupt(
            source,
            f"{where} claims {width} x {length} pixels, which are {expected} tiles of "
            f"{tile_w} x {tile_h}, but lists {offsets}",
        )
    bits = ifd.first(_BITS, 1)
    segment = tile_w * tile_h * (samples // planes) * max(1, bits // 8)
    if not tiled and expected == planes and ifd.first(_COMPRESSION, 1) == 1:
        segment = segment // tile_h * min(tile_h, VIRTUAL_ROWS)  # it is read in parts
    if segment > MAX_SEGMENT_BYTES and _NDPI not in ifd.tags:
        _corrupt(
            source,
            f"{where} claims tiles of {tile_w} x {tile_h} pixels, {segment} bytes each, more "
            f"than the limit of {MAX_SEGMENT_BYTES}",
        )
