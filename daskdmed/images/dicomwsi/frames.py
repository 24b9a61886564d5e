"""Where the frames of a file lie, as arrays of offsets and lengths, and what is in such a place.

Offsets come from the file's own table (extended or basic) where it has one; else the items of the
encapsulated stream are visited once. A place begins with the header of the frame's first item, as
a frame may lie in several: `unwrapped` takes the stream out.

Not covered: decoding (`daskdmed.images.dicomwsi.decoders`).
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import CorruptImageError
from daskdmed.images.source import LocalSource
from daskdmed.images.tiff.fetch import DecodeError
from daskdmed.images.volumes.dicom.frames import Pixels

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def places_of(pixels: Pixels, samples: int, source: LocalSource) -> _Places:
    """(offset, length) of every frame."""
    if not pixels.encapsulated:
        size = pixels.frame_bytes * samples
        offsets = pixels.offset + np.arange(pixels.frames, dtype=np.int64) * size
        return offsets, np.full(pixels.frames, size, np.int64)
    table, first = _basic_table(pixels, source)
    if pixels.extended_offsets is not None:
        table = np.frombuffer(pixels.extended_offsets[0], "<u8").astype(np.int64)
    if len(table) == pixels.frames and _rises(table):
        return _spans(pixels, first + table, source)
    items, lengths, _ = _visit(pixels, first, source)
    if len(items) == pixels.frames:
        return items, lengths + 8
    if pixels.frames == 1 and len(items):
        return items[:1], items[-1:] + lengths[-1:] + 8 - items[:1]
    raise CorruptImageError.of(
        pixels.path,
        f"{pixels.frames} frames in {len(items)} items, and no table that says where each begins; "
        "the copy may be incomplete, fetch it again",
    )


def _basic_table(pixels: Pixels, source: LocalSource) -> tuple[npt.NDArray[np.int64], int]:
    """The table that begins every encapsulated stream, often empty, and where frames begin."""
    head = source.read(pixels.offset, 8)
    count = int.from_bytes(head[4:8], "little")
    if head[:4] != _ITEM or pixels.offset + 8 + count > source.size:
        raise CorruptImageError.of(
            pixels.path, f"no frames at byte {pixels.offset}; fetch the file again"
        )
    body = source.read(pixels.offset + 8, count // 4 * 4)
    return np.frombuffer(body, "<u4").astype(np.int64), pixels.offset + 8 + count


def _rises(table: npt.NDArray[np.int64]) -> bool:
    """Whether a table can be true: in files above 4 GiB the basic one wraps around."""
    return bool(len(table)) and int(table[0]) == 0 and bool((np.diff(table) >= 8).all())


def _spans(pixels: Pixels, offsets: npt.NDArray[np.int64], source: LocalSource) -> _Places:
    """Up to where the next frame begins; the last one up to the end of the stream."""
    ends = np.empty_like(offsets)
    ends[:-1] = offsets[1:]
    _, _, ends[-1] = _visit(pixels, int(offsets[-1]), source)
    return offsets, ends - offsets


def _visit(
    pixels: Pixels, at: int, source: LocalSource
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Offsets and lengths of the items from one on, and where the stream ends."""
    offsets, lengths = [], []
    while at + 8 <= source.size:
        head = source.read(at, 8)
        if head[:4] != _ITEM:
            if head[:4] == _END:
                break
            raise CorruptImageError.of(
                pixels.path, f"no frame at byte {at}; the file is damaged, fetch it again"
            )
        count = struct.unpack("<I", head[4:])[0]
        offsets.append(at)
        lengths.append(count)
        at += 8 + count
    return np.array(offsets, np.int64), np.array(lengths, np.int64), min(at, source.size)


def unwrapped(data: bytes) -> bytes:
    """The stream of a frame out of its items."""
    parts, at = [], 0
    while at + 8 <= len(data) and data[at : at + 4] == _ITEM:
        stop = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if stop > len(data):
            raise DecodeError(f"its compressed data end {stop - len(data)} bytes too early")
        parts.append(data[at + 8 : stop])
        at = stop
    if not parts:
        raise DecodeError("no frame is where the file's table says")
    return parts[0] if len(parts) == 1 else b"".join(parts)
