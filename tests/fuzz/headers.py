"""Mutations of binary formats that know their headers: DICOM, NIfTI, NumPy, PNG, JPEG."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

from tests.fuzz.draw import Draw, extreme

_LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"OL", b"SQ", b"UN", b"UT", b"UC", b"UR")
#: groups that say what pixels are, and where they lie
_TELLING_GROUPS = (0x0002, 0x0018, 0x0020, 0x0028, 0x5200, 0x7FE0)


def _elements(data: bytes) -> list[tuple[int, int, int, int]]:
    """(tag, length, width of the length, value) where elements have them, also in sequences."""
    found, at, explicit, order = [], 132, True, "little"
    syntax = b""
    while at + 8 <= len(data) and len(found) < 3000:
        group = int.from_bytes(data[at : at + 2], order)  # type: ignore[arg-type]
        if group != 2 and syntax:
            order = "big" if syntax.startswith(b"1.2.840.10008.1.2.2") else "little"
            explicit = syntax.rstrip(b"\0 ") != b"1.2.840.10008.1.2"
            syntax = b""
            continue
        vr = data[at + 4 : at + 6]
        if explicit and vr.isalpha() and vr.isupper():
            place, width = (at + 8, 4) if vr in _LONG_VR else (at + 6, 2)
        else:
            place, width = at + 4, 4
        length = int.from_bytes(data[place : place + width], order)  # type: ignore[arg-type]
        value = place + width
        found.append((at, place, width, value))
        if data[at : at + 4] == b"\x02\0\x10\0":
            syntax = data[value : value + length]
        inside = vr == b"SQ" or group == 0xFFFE or length == 0xFFFFFFFF
        at = value if inside else value + length
    return found


def dicom(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """The length, the kind, the tag or the value of an element."""
    elements = _elements(data)
    telling = [
        e for e in elements if int.from_bytes(data[e[0] : e[0] + 2], "little") in _TELLING_GROUPS
    ]
    if not elements:
        return data[:-1], "cut"
    at, place, width, value = draw.choice(telling if telling and draw.chance(0.7) else elements)
    length = int.from_bytes(data[place : place + width], "little")
    tag = data[at : at + 4].hex()
    how = draw.choice(("length", "length", "value", "value", "value", "kind", "tag", "missing",
                       "twice"))  # fmt: skip
    out = bytearray(data)
    end = min(len(data), value + length)
    if how == "length":
        new = draw.choice((0, length + 1, length + 2, 2 * length, max(0, length - 2),
                           0xFFFFFFFF, 0xFFFFFFFE, extreme(draw, 8 * width)))  # fmt: skip
        out[place : place + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    elif how == "value":
        short = extreme(draw, 16).to_bytes(2, "little")
        text = draw.choice(
            (b"0", b"-1", b"1e400", b"nan", b"x", b"1\\2", b"9" * 16, b"\\\\\\", b"1.5")
        )
        new_value = draw.choice((short, short, text, draw.bytes(4), b"\0" * (end - value)))
        if draw.chance(0.5):  # of the same length, so that what follows stays where it is
            new_value = new_value[: end - value].ljust(end - value, b" ")
        else:
            out[place : place + width] = (len(new_value) % (1 << 8 * width)).to_bytes(
                width, "little"
            )
        out[value:end] = new_value
    elif how == "kind":
        kinds = (b"US", b"SS", b"UL", b"DS", b"IS", b"SQ", b"OB", b"OW", b"UN", b"FD", b"AT", b"ZZ")
        out[at + 4 : at + 6] = draw.choice(kinds)
    elif how == "tag":
        other = draw.choice(elements)[0]
        out[at : at + 4] = data[other : other + 4] if draw.chance(0.7) else draw.bytes(4)
    elif how == "missing":
        del out[at:end]
    else:
        out[end:end] = data[at:end]
    return bytes(out), f"{how} of {tag}"


# -------------------------------------------------------------------- NIfTI, NumPy, pictures
#: (place, format, how many) of fields: dim, datatype, bitpix, pixdim, vox_offset, slope, forms
_NIFTI1 = ((0, "i", 1), (40, "h", 8), (40, "h", 8), (70, "h", 1), (72, "h", 1), (76, "f", 8),
           (108, "f", 1), (112, "f", 2), (123, "B", 1), (252, "h", 2), (256, "f", 6),
           (280, "f", 12), (344, "B", 4))  # fmt: skip
_NIFTI2 = ((0, "i", 1), (4, "B", 8), (12, "h", 2), (16, "q", 8), (16, "q", 8), (104, "d", 8),
           (168, "q", 1), (176, "d", 2), (344, "i", 2), (352, "d", 6), (400, "d", 12),
           (500, "i", 1))  # fmt: skip
_DATATYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2304)


def nifti(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A field of the header."""
    order = "<" if data[:1] in (b"\x5c", b"\x1c") else ">"
    fields = _NIFTI1 if data[344:347] in (b"n+1", b"ni1") else _NIFTI2
    at, kind, count = draw.choice(fields)
    at += draw.below(count) * struct.calcsize(kind)
    bits = 8 * struct.calcsize(kind)
    if kind in "fd":
        value: Any = draw.choice((0.0, -0.0, -1.0, 1.0, 1e-30, 1e30, float("nan"), float("inf"),
                                  float("-inf"), 352.0, 1e5, 0.5, 348.0, 2.0**33))  # fmt: skip
    else:
        value = draw.choice((extreme(draw, bits), *_DATATYPES, 5, 6, 7, 3)) % (1 << bits)
        kind = kind.upper()
    out = bytearray(data)
    if at + bits // 8 <= len(out):
        struct.pack_into(order + kind, out, at, value)
    return bytes(out), f"field at {at} is {value}"


_NPY_WORDS = (
    *(b"0", b"-1", b"99999999999", b"9" * 30, b"True", b"'|O'", b"'<f8'", b"'>u2'"),
    *(b"'<c16'", b"'|S10'", b"1.5", b"(" * 200, b"__import__('os')", b"'x'", b"[1]", b"2"),
)


def npy(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """The words of the header, of the same length."""
    length = int.from_bytes(data[8:10], "little")
    head = data[10 : 10 + length]
    words = list(re.finditer(rb"'[^']*'|\d+|True|False|\(|\)", head))
    if not words:
        return data[:-1], "cut"
    at = draw.choice(words)
    word = draw.choice(_NPY_WORDS)
    new = head[: at.start()] + word + head[at.end() :]
    new = new.rstrip(b" \n").ljust(length - 1) + b"\n"
    size = len(new).to_bytes(2, "little")
    return data[:8] + size + new + data[10 + length :], f"{at.group()!r} is {word[:20]!r}"


def png(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A chunk's length or content, with a checksum that is right again in half of all cases."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((at, length))
        at += 12 + length
    if not chunks:
        return data[:-1], "cut"
    at, length = draw.choice(chunks)
    out = bytearray(data)
    if draw.chance(0.3):
        out[at : at + 4] = extreme(draw, 32).to_bytes(4, "big")
        return bytes(out), f"length of the chunk at {at}"
    if length:
        place = at + 8 + draw.below(min(length, 26))
        out[place : place + 1] = bytes([draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 127, 255))])
    if draw.chance(0.7):
        body = bytes(out[at + 4 : at + 8 + length])
        out[at + 8 + length : at + 12 + length] = zlib.crc32(body).to_bytes(4, "big")
    return bytes(out), f"content of the chunk at {at}"


def markers(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A segment of JPEG or JPEG 2000: its length, or what it says of sizes."""
    telling = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE, 0x51, 0x52, 0x5C, 0x90)
    found = [i for i in range(len(data) - 10) if data[i] == 0xFF and data[i + 1] in telling]
    if not found:
        return data[:-1], "cut"
    at = draw.choice(found)
    out = bytearray(data)
    place = at + 2 + draw.below(16)
    width = draw.choice((1, 2, 2, 4))
    out[place : place + width] = extreme(draw, 8 * width).to_bytes(width, "big")
    return bytes(out), f"segment {data[at + 1]:02x} at {at}"


def czi(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A number in a segment of CZI: its size, or what stands at its beginning."""
    segments = [found.start() for found in re.finditer(b"ZISRAW", data)]
    at = draw.choice(segments)
    place = at + 16 + draw.choice((0, 8, 16, 24, 32, 36, 40, draw.below(400)))
    width = draw.choice((1, 4, 4, 8))
    out = bytearray(data)
    out[place : place + width] = extreme(draw, 8 * width).to_bytes(width, "little")
    return bytes(out[: len(data)]), f"number at {place} of the segment at {at}"
