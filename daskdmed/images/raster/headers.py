"""From the first bytes of a picture to what it holds: PNG, JPEG, BMP and WebP.

Nothing is decoded; of a file only its header is read. Not covered: JPEG 2000
(`daskdmed.images.raster.jpeg2000`), and pixels (`daskdmed.images.raster.pixels`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError
from daskdmed.images.raster.picture import MAX_EXTRA, Colour, Exif, Picture, parse_exif, per_length
from daskdmed.images.source import Source

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
#: parts of a header that are looked at; more is damage
_MAX_PARTS = 4096
_EXIF, _ICC = b"Exif\0\0", b"ICC_PROFILE\0"


def damaged(source: Source, what: str) -> CorruptImageError:
    """The error of a header that makes no sense."""
    return CorruptImageError.of(
        source.uri, f"its header is damaged: {what} ({source.size} bytes); fetch the file again"
    )


def unsupported(source: Source, what: str) -> UnsupportedImageError:
    """The error of a sound picture that is not read."""
    return UnsupportedImageError.of(source.uri, f"the raster backend does not read {what}")


def _bytes(source: Source, offset: int, count: int) -> bytes:
    if count > MAX_EXTRA:
        raise damaged(source, f"a part of {count} bytes at {offset}")
    data = source.read(offset, count)
    if len(data) < count:
        raise damaged(source, "it ends too early")
    return data


# ---------------------------------------------------------------------------- PNG
def parse_png(source: Source) -> Picture:
    """Of a PNG: what stands before its pixels."""
    head = _bytes(source, 8, 25)
    width, height, bits, colour = struct.unpack(">IIBB", head[8:18])
    if head[4:8] != b"IHDR" or bits not in (1, 2, 4, 8, 16) or colour not in _PNG:
        raise damaged(source, f"{bits} bits, colour type {colour}")
    samples, meaning = _PNG[colour]
    labels = colour == 3 or (colour == 0 and bits == 1)
    alpha, mpp, icc, exif = colour in (4, 6), None, None, Exif()
    at, start = 33, 0
    for _ in range(_MAX_PARTS):
        length, name = struct.unpack(">I4s", _bytes(source, at, 8))
        if name == b"IDAT":
            start = at
            break
        if name == b"pHYs" and length == 9:
            x, y, unit = struct.unpack(">IIB", _bytes(source, at + 8, 9))
            mpp = per_length(x, y, 1e6) if unit == 1 else None
        elif name == b"iCCP":
            icc = _png_profile(_bytes(source, at + 8, length))
        elif name == b"eXIf":
            exif = parse_exif(_bytes(source, at + 8, length))
        elif name == b"tRNS" and not labels:
            alpha = True
        at += 12 + length
    if not start:
        raise damaged(source, "no pixels in its first parts")
    if labels:
        samples, meaning, alpha = 1, "labels", False
    if alpha and colour in (0, 2):
        samples += 1
    return Picture(
        "png", width, height, samples, "uint16" if bits == 16 else "uint8", meaning,
        "straight" if alpha else "", mpp or exif.mpp, icc, exif.orientation, bits, start,
        ratio=2066,  # of DEFLATE; transparency may be made up
    )  # fmt: skip


def is_label_png(path: str) -> bool:
    """Whether a local file is a PNG of numbers behind a palette, or of one bit. Never raises."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
    except OSError:
        return False
    is_png = len(head) == 26 and head.startswith(PNG_MAGIC)
    return is_png and (head[25] == 3 or head[24:26] == b"\1\0")


#: colour type -> samples, and what they are
_PNG: dict[int, tuple[int, Colour]] = {
    0: (1, "grey"), 2: (3, "rgb"), 3: (1, "labels"), 4: (2, "grey"), 6: (4, "rgb"),
}  # fmt: skip


def _png_profile(data: bytes) -> bytes | None:
    _, _, packed = data.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], MAX_EXTRA) or None
    except zlib.error:
        return None  # it says nothing of the pixels


# ---------------------------------------------------------------------------- JPEG
def parse_jpeg(source: Source) -> Picture:
    """Of a JPEG: its segments up to the first scan."""
    exif, profile, density = Exif(), {}, None
    frame: Picture | None = None
    start = 0
    for marker, at, length in _segments(source):
        if marker == 0xDA:
            start = at
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = _jpeg_frame(source, marker, _bytes(source, at, length))
        elif marker == 0xE0 and length >= 14:
            body = _bytes(source, at, 14)
            unit = {1: 25400.0, 2: 10000.0}.get(body[7])
            if body[:5] == b"JFIF\0" and unit:
                x, y = int.from_bytes(body[8:10]), int.from_bytes(body[10:12])
                density = per_length(x, y, unit)
        elif marker in (0xE1, 0xE2):
            body = _bytes(source, at, length)
            if body.startswith(_EXIF):
                exif = parse_exif(body)
            elif body.startswith(_ICC) and length > 14:
                profile[body[12]] = body[14:]
    if frame is None or not start:
        raise damaged(source, "no picture before its end")
    icc = b"".join(profile[n] for n in sorted(profile)) or None
    return replace(
        frame, mpp=density or exif.mpp, icc_profile=icc, orientation=exif.orientation, start=start
    )


def _segments(source: Source) -> Iterator[tuple[int, int, int]]:
    """Marker, place and length of the bodies of the segments."""
    at = 2
    for _ in range(_MAX_PARTS):
        head = source.read(at, 4)
        if len(head) < 4 or head[0] != 0xFF:
            raise damaged(source, f"no segment at byte {at}")
        if head[1] == 0xFF:  # padding
            at += 1
            continue
        length = int.from_bytes(head[2:4])
        if length < 2 or at + 2 + length > source.size:
            raise damaged(source, f"a segment of {length} bytes at {at}")
        yield head[1], at + 4, length - 2
        at += 2 + length


def _jpeg_frame(source: Source, marker: int, body: bytes) -> Picture:
    bits, height, width, samples = struct.unpack(">BHHB", body[:6].ljust(6, b"\0"))
    if not 2 <= bits <= 16:
        raise damaged(source, f"{bits} bits per sample")
    if samples not in (1, 3, 4):
        raise unsupported(source, f"a JPEG of {samples} components")
    if not height:
        raise unsupported(source, "a JPEG that tells its height behind its pixels (DNL)")
    colour: Colour = {1: "grey", 3: "rgb", 4: "cmyk"}[samples]  # type: ignore[assignment]
    if colour == "cmyk" and bits != 8:
        raise unsupported(source, f"CMYK of {bits} bits")
    # a bit per block of 8 x 8 at least, and 10 blocks for at most 512 pixels of 3 samples
    huffman = marker < 0xC9
    dtype = "uint8" if bits <= 8 else "uint16"
    return Picture("jpeg", width, height, samples, dtype, colour, ratio=1300 if huffman else 0)


# ---------------------------------------------------------------------------- BMP
def parse_bmp(source: Source) -> Picture:
    """Of a Windows bitmap."""
    head = _bytes(source, 0, 54)
    start, size, width, height, _, bits, packing = struct.unpack("<IIiiHHI", head[10:34])
    x, y, used = struct.unpack("<iiI", head[38:50])
    if size not in (40, 52, 56, 108, 124):
        raise unsupported(source, f"a bitmap with a header of {size} bytes")
    if packing not in (0, 3, 6) or bits not in (1, 4, 8, 16, 24, 32):
        raise unsupported(source, f"a bitmap of {bits} bits, packed by method {packing}")
    samples, colour = 3, "rgb"
    if bits <= 8:
        samples, colour = 1, "labels"
        count = min(used or 1 << bits, 256)
        if _is_ramp(_bytes(source, 14 + size, 4 * count), bits):
            colour = "grey"
    alpha = packing in (3, 6) and size >= 56 and any(_bytes(source, 66, 4))
    line = (width * bits + 31) // 32 * 4
    if start < 14 + size or start + line * abs(height) > source.size:
        raise damaged(source, f"{width} x {abs(height)} pixels of {bits} bits from byte {start}")
    return Picture(
        "bmp", width, abs(height), samples + alpha, "uint8", colour,  # type: ignore[arg-type]
        "straight" if alpha else "", per_length(x, y, 1e6), bits=8, start=start,
    )  # fmt: skip


def _is_ramp(palette: bytes, bits: int) -> bool:
    """Whether the colours are the gray values of their numbers."""
    gray = b"".join(bytes((i, i, i)) for i in range(256))
    entries = b"".join(palette[i : i + 3] for i in range(0, len(palette), 4))
    return bits == 8 and entries == gray[: len(entries)]


# ---------------------------------------------------------------------------- WebP
def parse_webp(source: Source) -> Picture:
    """Of a WebP of one picture."""
    at, exif, icc = 12, Exif(), None
    size: tuple[int, int] | None = None
    alpha = extended = False
    for _ in range(_MAX_PARTS):
        head = source.read(at, 8)
        if len(head) < 8:
            break
        name, length = struct.unpack("<4sI", head)
        if name == b"VP8X":
            body, extended = _bytes(source, at + 8, 10), True
            if body[0] & 2:
                raise unsupported(source, "an animated WebP; take one picture out of it")
            alpha = bool(body[0] & 16)
            size = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        elif name == b"VP8 " and size is None:
            w, h = struct.unpack("<HH", _bytes(source, at + 14, 4))
            size = w & 0x3FFF, h & 0x3FFF
        elif name == b"VP8L" and not extended:
            facts = int.from_bytes(_bytes(source, at + 9, 4), "little")
            size = (facts & 0x3FFF) + 1, (facts >> 14 & 0x3FFF) + 1
            alpha = bool(facts >> 28 & 1)
        elif name == b"ICCP":
            icc = _bytes(source, at + 8, length)
        elif name == b"EXIF":
            exif = parse_exif(_bytes(source, at + 8, length))
        at += 8 + length + length % 2
    if size is None:
        raise damaged(source, "no picture in it")
    return Picture(
        "webp", *size, 4 if alpha else 3, "uint8", "rgb", "straight" if alpha else "",
        exif.mpp, icc, exif.orientation,
    )  # fmt: skip
