"""From the bytes of one frame to the numbers stored in it.

Native pixels are read in part; encapsulated frames are found by `pydicom.encaps` and decoded by
imagecodecs. Nothing is kept open: a file that was replaced meanwhile is noticed.

Not covered: slope and intercept (`daskdmed.images.volumes.dicom.values`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import imagecodecs
import numpy as np

from daskdmed.core.errors import ImageError
from daskdmed.core.extras import extra
from daskdmed.core.types import Array
from daskdmed.images.source import explain_os_error
from daskdmed.images.volumes.dicom.frames import Frame, Pixels
from daskdmed.images.volumes.dicom.header import inflated
from daskdmed.images.volumes.dicom.values import stored_dtype

_JPEG = "1.2.840.10008.1.2.4."
#: not compressed
NATIVE = {f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99")}
_RLE = "1.2.840.10008.1.2.5"
#: bytes that may follow the end of a JPEG stream
_PADDING = 256
#: UID -> decoder of a frame
_CODECS: dict[str, Callable[[bytes], Any]] = {
    **{_JPEG + end: imagecodecs.jpeg8_decode for end in ("50", "51", "57", "70")},
    **{_JPEG + end: imagecodecs.jpegls_decode for end in ("80", "81")},
    **{_JPEG + end: imagecodecs.jpeg2k_decode for end in ("90", "91")},
}


def supported(p: Pixels) -> bool:
    """Whether pixels in this transfer syntax can be decoded."""
    if p.encapsulated:
        return p.syntax == _RLE or p.syntax in _CODECS
    # words of which each holds two pixels in the wrong order, where they are words at all
    return p.syntax in NATIVE and not (p.big_endian and p.allocated == 8)


def read_stored(frame: Frame, rows: slice) -> Array:
    """Rows (rows, columns) of a frame as they are stored.

    ImageError for a file that changed or is gone; ValueError, or what codecs raise, for pixels
    that are damaged.
    """
    p = frame.pixels
    try:
        with open(p.path, "rb") as file:
            facts = os.fstat(file.fileno())
            if (facts.st_size, facts.st_mtime_ns) != (p.size, p.mtime_ns):
                raise ImageError.of(
                    p.path, "the file changed since the volume was opened; open it again"
                )
            if p.encapsulated:
                return _decoded(file, frame)[rows]
            return _native(file, frame, rows)
    except OSError as error:
        raise explain_os_error(error, p.path) from error
    except Exception as error:  # codecs raise all sorts
        raise ValueError(f"{p.path}, frame {frame.index}: {error}") from error


def _native(file: Any, frame: Frame, rows: slice) -> Array:
    p = frame.pixels
    row = p.frame_bytes // p.rows
    start = frame.index * p.frame_bytes + rows.start * row
    count = (rows.stop - rows.start) * row
    if p.deflated:
        data = inflated(file, p.offset + start + count)[p.offset + start :]
    else:
        file.seek(p.offset + start)
        data = file.read(min(count, max(0, p.length - start)))
    if len(data) < count:
        raise ValueError(f"the pixel data end {count - len(data)} bytes too early")
    kind = stored_dtype(p)
    there = kind.newbyteorder(">" if p.big_endian else "<")
    found = np.frombuffer(data, there).reshape(-1, p.columns)
    return _significant(found.astype(kind, copy=False), p)


def _decoded(file: Any, frame: Frame) -> Array:
    p = frame.pixels
    data = _encapsulated(file, frame)
    unsigned = np.dtype(f"u{p.allocated // 8}")
    if p.syntax == _RLE:
        found = _run_lengths(data, p, unsigned)
    else:
        _check_stream(data, p)
        found = np.asarray(_CODECS[p.syntax](data))
    if found.shape != (p.rows, p.columns) or found.dtype.itemsize > unsigned.itemsize:
        raise ValueError(
            f"it decodes to {found.shape} {found.dtype}, the header says {p.rows} x {p.columns} "
            f"of {p.allocated} bits"
        )
    if p.syntax != _RLE:  # codecs know nothing of unused bits below those stored
        unused = p.high + 1 - p.stored
        found = found.astype(unsigned) << unused
    return _significant(found.view(stored_dtype(p)), p)


def _encapsulated(file: Any, frame: Frame) -> bytes:
    """The compressed bytes of a frame."""
    p = frame.pixels
    if p.frames > 1 and p.extended_offsets is None:
        offsets = _fragments(p)
        if len(offsets) == p.frames:
            file.seek(offsets[frame.index] + 4)
            count = int.from_bytes(file.read(4), "little")
            if len(data := bytes(file.read(count))) < count:
                raise ValueError(f"its compressed data end {count - len(data)} bytes too early")
            return data
    file.seek(p.offset)
    found: bytes = _encaps().get_frame(
        file, frame.index, extended_offsets=p.extended_offsets, number_of_frames=p.frames
    )
    return found


@lru_cache(maxsize=32)
def _fragments(p: Pixels) -> tuple[int, ...]:
    """Where the fragments of a file are: found once, frames come in any order."""
    with open(p.path, "rb") as file:
        file.seek(p.offset)
        _encaps().parse_basic_offsets(file)
        return tuple(_encaps().parse_fragments(file)[1])


def _encaps() -> Any:
    return extra("pydicom.encaps", "volumes", "DICOM files need")


def _run_lengths(data: bytes, p: Pixels, unsigned: np.dtype[Any]) -> Array:
    count = int.from_bytes(data[:4], "little")
    if count != unsigned.itemsize:
        raise ValueError(f"{count} segments of run lengths, {unsigned.itemsize} are needed")
    found = imagecodecs.dicomrle_decode(data, unsigned.newbyteorder("<"))
    flat = np.frombuffer(found, unsigned.newbyteorder("<"))
    if flat.size < p.rows * p.columns:
        raise ValueError(f"{flat.size} of {p.rows * p.columns} pixels are there")
    return flat[: p.rows * p.columns].astype(unsigned).reshape(p.rows, p.columns)


def _significant(found: Array, p: Pixels) -> Array:
    """Without bits that do not belong to the value (overlays lay there once), with its sign."""
    if p.floating or p.stored == p.allocated:
        return found
    above = p.allocated - p.high - 1
    # the highest bit of the value to the top, then down to the bottom: this carries the sign
    return (found << above) >> (p.allocated - p.stored)


def _check_stream(data: bytes, p: Pixels) -> None:
    """Refuse streams that claim to be larger than their frame, before memory is taken for them;
    and those of JPEG that are cut off, of which the decoder makes up the rest."""
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9", max(0, len(data) - _PADDING)) < 0:
        raise ValueError("the JPEG stream has no end")
    found = stream_size(data)
    if found is not None and found != (p.rows, p.columns):
        raise ValueError(
            f"the compressed stream holds {found[0]} x {found[1]} pixels, the header says "
            f"{p.rows} x {p.columns}"
        )


def stream_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream declares; None where it has none."""
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 24:
        return None
    right, bottom, left, top = (int.from_bytes(data[at + i : at + i + 4]) for i in (8, 12, 16, 20))
    return bottom - top, right - left


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Of JPEG and JPEG-LS: what the first start of a frame says."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        # start of frame; C4, C8 and CC are tables, F7 is that of JPEG-LS
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
