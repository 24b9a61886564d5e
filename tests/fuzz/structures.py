"""Mutations that know a format: values with a meaning become others, extreme or false.

`of` finds the one for some bytes. Formats are taken apart here no further than needed to find
values; nothing of the library is used, so that its own ideas of a format are not those tested.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from tests.fuzz.draw import Draw

Mutation: TypeAlias = Callable[[bytes, Draw], tuple[bytes, str]]


def of(data: bytes) -> Mutation | None:
    """The mutation that knows what these bytes are; None where none does."""
    head = data[:4]
    if head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return tiff
    if data[128:132] == b"DICM":
        return dicom
    if data[344:348] in (b"n+1\0", b"ni1\0") or data[4:8] in (b"n+2\0", b"ni2\0"):
        return nifti
    if head == b"\x93NUM":
        return npy
    if head == b"\x89PNG":
        return png
    if head[:2] == b"\xff\xd8" or head in (b"\xff\x4f\xff\x51", b"\0\0\0\x0c"):
        return markers
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start in (b"{", b"["):
        return json_values
    if start == b"<" or data[:3] == b"\xff\xfe<":
        return xml
    return None


def extreme(draw: Draw, bits: int) -> int:
    """An unsigned number at some edge of its range, or of those within it."""
    edge = draw.choice([n for n in (7, 8, 15, 16, 31, 32, 63, 64) if n <= bits])
    near = (1 << edge) + draw.choice((-2, -1, 0, 1))
    value = draw.choice((0, 1, 2, 3, near, near, draw.below(1 << min(bits, 62)), draw.below(300)))
    return max(0, value) % (1 << bits)


# -------------------------------------------------------------------- TIFF
#: sizes of types of fields
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}  # fmt: skip
#: what tags may plausibly say, so that files stay nearly right
_PLAUSIBLE = {
    254: (0, 1, 2, 4, 9), 256: (1, 16, 31, 32, 33, 64, 70, 4096, 65536),
    257: (1, 16, 44, 45, 64, 4096, 65536), 258: (1, 2, 4, 8, 12, 16, 24, 32, 64),
    259: (1, 2, 3, 4, 5, 6, 7, 8, 9, 22610, 32773, 32946, 33003, 33005, 34712, 34887, 34892, 34925,
          34926, 34927, 34933, 34934, 50000, 50001, 50002, 52546),
    262: (0, 1, 2, 3, 4, 5, 6, 8, 32803), 266: (1, 2, 3), 274: (1, 3, 6, 8),
    277: (1, 2, 3, 4, 5, 16, 100), 278: (1, 2, 16, 44, 1000, 2**32 - 1), 284: (1, 2, 3),
    317: (1, 2, 3, 34892), 322: (1, 16, 17, 32, 48, 64, 256, 4096, 32768),
    323: (1, 16, 17, 32, 64, 256, 4096, 32768), 338: (0, 1, 2), 339: (1, 2, 3, 4, 5, 6),
    530: (1, 2, 4), 32997: (1, 2), 32998: (1, 4), 65420: (1,),
}  # fmt: skip


class _Tiff:
    """Places of entries in a TIFF file, as far as they can be followed."""

    def __init__(self, data: bytes) -> None:
        self.order = "<" if data[:1] == b"I" else ">"
        self.big = data[2:4] in (b"+\0", b"\0+")
        self.count, self.word = ("Q", "Q") if self.big else ("H", "I")
        self.step = 20 if self.big else 12
        self.data = bytearray(data)
        #: where the offset of a directory stands
        self.links = [8 if self.big else 4]
        self.directories: list[int] = []
        self.entries: list[int] = []
        waiting = [self.links[0]]
        while waiting and len(self.directories) < 50:
            offset = self.get(waiting.pop(0), self.word)
            if offset is None or offset in self.directories or offset == 0:
                continue
            number = self.get(offset, self.count)
            if number is None or number > 500:
                continue
            first = offset + struct.calcsize("=" + self.count)
            self.directories.append(offset)
            self.entries += [first + i * self.step for i in range(number)]
            waiting.append(first + number * self.step)
            self.links.append(first + number * self.step)

    def get(self, at: int, kind: str) -> int | None:
        try:
            return int(struct.unpack_from(self.order + kind, self.data, at)[0])
        except (struct.error, OverflowError):
            return None

    def put(self, at: int, kind: str, value: int) -> None:
        bits = 8 * struct.calcsize("=" + kind)
        try:
            struct.pack_into(self.order + kind, self.data, at, value % (1 << bits))
        except (struct.error, OverflowError):  # behind the end
            return

    def value_at(self, entry: int) -> int:
        """Where the values of an entry stand."""
        place = entry + (12 if self.big else 8)
        kind, number = self.get(entry + 2, "H") or 0, self.get(entry + 4, self.word) or 0
        if _SIZES.get(kind, 1) * number > (8 if self.big else 4):
            return self.get(place, self.word) or 0
        return place


def tiff(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """One field of one directory, or how directories follow each other."""
    found = _Tiff(data)
    if not found.entries or draw.chance(0.1):
        link = draw.choice(found.links)
        targets = [*found.directories, 0, len(data), len(data) - 2, extreme(draw, 32)]
        found.put(link, found.word, draw.choice(targets))
        return bytes(found.data), f"link at {link}"
    entry = draw.choice(found.entries)
    tag = found.get(entry, "H") or 0
    how = draw.choice(("value", "value", "value", "value", "plausible", "plausible", "plausible",
                       "count", "type", "tag", "swap", "sub", "number"))  # fmt: skip
    if how == "plausible":
        entry, tag = _known_entry(found, draw, entry)
        how = "plausible" if tag in _PLAUSIBLE else "value"
    if how in ("value", "plausible"):
        _put_value(found, draw, entry, _PLAUSIBLE.get(tag) if how == "plausible" else None)
    elif how == "count":
        real = found.get(entry + 4, found.word) or 0
        value = draw.choice((0, 1, 2, real + 1, max(0, real - 1), 2 * real, extreme(draw, 32)))
        found.put(entry + 4, found.word, value)
    elif how == "type":
        found.put(entry + 2, "H", draw.below(20))
    elif how == "tag":
        found.put(entry, "H", draw.choice([*_PLAUSIBLE, 330, 273, 279, 324, 325, 347, 700, 34675]))
    elif how == "swap":
        other = draw.choice(found.entries)
        a, b = (slice(e, e + found.step) for e in (entry, other))
        if len(found.data[a]) == len(found.data[b]):
            found.data[a], found.data[b] = found.data[b], found.data[a]
    elif how == "sub":  # a directory below another, or below itself
        found.put(entry, "H", 330)
        found.put(entry + 2, "H", 16 if found.big else 4)
        found.put(entry + 4, found.word, 1)
        target = draw.choice(found.directories)
        found.put(entry + (12 if found.big else 8), found.word, target)
    else:
        where = draw.choice(found.directories)
        real = found.get(where, found.count) or 0
        found.put(where, found.count, draw.choice((0, 1, real - 1, real + 1, extreme(draw, 16))))
    return bytes(found.data), f"{how} of tag {tag} at {entry}"


def _known_entry(found: _Tiff, draw: Draw, entry: int) -> tuple[int, int]:
    """An entry of which plausible values are known."""
    known = [e for e in found.entries if (found.get(e, "H") or 0) in _PLAUSIBLE]
    entry = draw.choice(known) if known else entry
    return entry, found.get(entry, "H") or 0


def _put_value(found: _Tiff, draw: Draw, entry: int, plausible: tuple[int, ...] | None) -> None:
    """One of the values of an entry, or all of them."""
    size = _SIZES.get(found.get(entry + 2, "H") or 0, 1)
    number = min(found.get(entry + 4, found.word) or 0, 5000)
    kind = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
    at = found.value_at(entry)
    value = extreme(draw, 8 * size) if plausible is None else draw.choice(plausible)
    places = range(number) if draw.chance(0.3) else [draw.below(number)]
    for place in places:
        found.put(at + place * size, kind, value)


# -------------------------------------------------------------------- JSON
_STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), 2**31,
    2**63, 2**64, 10**40, "", "x", "0", "../../etc", "é\U0001f642\ud800", "a" * 3000, "NaN", [],
    {}, [[]], [None], {"": None}, [1, 2, 3], {"type": "Polygon"}, "1e5", "uint8", "<f4", "/",
)  # fmt: skip


def json_values(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A value is replaced, missing, doubled, or nested beyond reason."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _text(data, draw), "text"
    places = list(_places(document))
    if not places:
        return _nested(data, draw), "nested"
    holder, key = draw.choice(places)
    how = draw.choice(("strange", "strange", "strange", "extreme", "missing", "moved", "list",
                       "nested"))  # fmt: skip
    if how == "nested":
        return _nested(data, draw), how
    if how == "missing":
        del holder[key]
    elif how == "extreme":
        sign = draw.choice((1, 1, -1))
        holder[key] = sign * draw.choice((extreme(draw, 64), extreme(draw, 32), 1e-300, 1e300))
    elif how == "moved":
        other, place = draw.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))
    elif how == "list":
        holder[key] = [json.loads(json.dumps(holder[key]))] * draw.choice((1, 2, 5))
    else:
        holder[key] = draw.choice(_STRANGE)
    text = json.dumps(document, ensure_ascii=draw.chance(0.5))
    return text.encode("utf-8", "surrogatepass"), f"{how} {key!r}"


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a document, as what holds it and its key there."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _places(node[key])


def _nested(data: bytes, draw: Draw) -> bytes:
    """Brackets inside brackets, in the place of some value or around everything."""
    depth = draw.choice((5, 40, 300, 2000, 30000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"type":"GeometryCollection",'
                                   b'"geometries":[', b"]}")))  # fmt: skip
    deep = opening * depth + b"1" + (closing * depth if draw.chance(0.8) else b"")
    values = list(re.finditer(rb"(?<=: )[^,{}\[\]]+", data))
    if not values or draw.chance(0.3):
        return opening * depth + data + closing * depth
    at = draw.choice(values)
    return data[: at.start()] + deep + data[at.end() :]


def _text(data: bytes, draw: Draw) -> bytes:
    """A word in the place of another."""
    words = list(re.finditer(rb"[\w.+-]+", data)) or list(re.finditer(rb"", data))
    at = draw.choice(words)
    word = draw.choice((b"", b"-1", b"NaN", b"1e999", b"9" * 400, b"\xff\xfe", b"\0", b'"', b"\xc3(",
                        b"x" * 2000, b"\r\n", b"\xe2\x80\xae"))  # fmt: skip
    return data[: at.start()] + word + data[at.end() :]


# -------------------------------------------------------------------- XML
_ENTITIES = b"""<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e SYSTEM "file:///etc/passwd">]>"""


def xml(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """An attribute, a text, an element or the head of a document."""
    how = draw.choice(("attribute", "attribute", "attribute", "text", "element", "element", "nested",
                       "entities", "word", "head"))  # fmt: skip
    if how == "attribute":
        found = list(re.finditer(rb'(?<==")[^"]*(?=")', data))
    elif how == "text":
        found = list(re.finditer(rb"(?<=>)[^<>]+(?=<)", data))
    else:
        found = list(re.finditer(rb"</?[A-Za-z][^<>]*>", data))
    if how == "word" or not found:
        return _text(data, draw), "word"
    at = draw.choice(found)
    word = draw.choice((b"", b"-1", b"nan", b"inf", b"1e999", b"-1e300", b"99999999999999999999", b"1,5",
                        b"1,000.5", b"x", b"&#0;", b"&b;", b"\xff", b"9" * 5000, b"None", b"0",
                        b"#GG0000", b"lesion", b"tumor", b"7"))  # fmt: skip
    if how == "nested":
        depth = draw.choice((10, 40, 1000, 20000))
        word = b"<a>" * depth + b"</a>" * (depth if draw.chance(0.8) else 0)
        return data[: at.start()] + word + data[at.start() :], how
    if how == "entities":
        head = data.find(b"?>") + 2 if b"?>" in data else 0
        use = at.group() + draw.choice((b"&d;", b"&e;", b""))
        return data[:head] + _ENTITIES + data[head : at.start()] + use + data[at.end() :], how
    if how == "head":
        new = draw.choice((b'<?xml version="1.0" encoding="utf-7"?>', b'<?xml version="9"?>', b"\xef\xbb\xbf",
                           b'<?xml version="1.0" encoding="nope"?>', b"", b" "))  # fmt: skip
        return new + (data[data.find(b"?>") + 2 :] if b"?>" in data else data), how
    if how == "element":
        times = draw.choice((0, 2, 3, 50))
        return data[: at.start()] + at.group() * times + data[at.end() :], how
    return data[: at.start()] + word + data[at.end() :], how


# -------------------------------------------------------------------- DICOM
_LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"OL", b"SQ", b"UN", b"UT", b"UC", b"UR")
#: groups that say what pixels are, and where they lie
_TELLING_GROUPS = (0x0002, 0x0018, 0x0020, 0x0028, 0x5200, 0x7FE0)


def _elements(data: bytes) -> list[tuple[int, int, int, int]]:
    """(tag at, length at, width of the length, value at) of elements, also of those in sequences."""
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
        text = draw.choice((b"0", b"-1", b"1e400", b"nan", b"x", b"1\\2", b"9" * 16, b"\\\\\\", b"1.5"))
        new_value = draw.choice((short, short, text, draw.bytes(4), b"\0" * (end - value)))
        if draw.chance(0.5):  # of the same length, so that what follows stays where it is
            new_value = new_value[: end - value].ljust(end - value, b" ")
        else:
            out[place : place + width] = (len(new_value) % (1 << 8 * width)).to_bytes(width, "little")
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
           (108, "f", 1), (112, "f", 2), (123, "B", 1), (252, "h", 2), (256, "f", 6), (280, "f", 12),
           (344, "B", 4))  # fmt: skip
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


def npy(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """The words of the header, of the same length."""
    length = int.from_bytes(data[8:10], "little")
    head = data[10 : 10 + length]
    words = list(re.finditer(rb"'[^']*'|\d+|True|False|\(|\)", head))
    if not words:
        return data[:-1], "cut"
    at = draw.choice(words)
    word = draw.choice((b"0", b"-1", b"99999999999", b"9" * 30, b"True", b"'|O'", b"'<f8'", b"'>u2'",
                        b"'<c16'", b"'|S10'", b"1.5", b"(" * 200, b"__import__('os')", b"'x'",
                        b"[1]", b"2"))  # fmt: skip
    new = head[: at.start()] + word + head[at.end() :]
    new = new.rstrip(b" \n").ljust(length - 1) + b"\n"
    size = len(new).to_bytes(2, "little")
    return data[:8] + size + new + data[10 + length :], f"{at.group()!r} is {word[:20]!r}"


def png(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A chunk's length or content, with a checksum that is right again in half of all cases."""
    import zlib

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
    found = [
        i for i in range(len(data) - 10) if data[i] == 0xFF and data[i + 1] in telling
    ]
    if not found:
        return data[:-1], "cut"
    at = draw.choice(found)
    out = bytearray(data)
    place = at + 2 + draw.below(16)
    width = draw.choice((1, 2, 2, 4))
    out[place : place + width] = extreme(draw, 8 * width).to_bytes(width, "big")
    return bytes(out), f"segment {data[at + 1]:02x} at {at}"
