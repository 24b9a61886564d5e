"""Mutations of JSON and XML: values of other kinds, at other places, nested beyond reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.fuzz.draw import Draw, extreme

#: what opens and closes a level of nesting
_BRACKETS = (
    (b"[", b"]"),
    (b'{"a":', b"}"),
    (b'{"type":"GeometryCollection","geometries":[', b"]}"),
)
_WORDS = (
    *(b"", b"-1", b"NaN", b"1e999", b"9" * 400, b"\xff\xfe", b"\0", b'"', b"\xc3("),
    *(b"x" * 2000, b"\r\n", b"\xe2\x80\xae"),
)
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
    opening, closing = draw.choice(_BRACKETS)
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
    word = draw.choice(_WORDS)
    return data[: at.start()] + word + data[at.end() :]


# -------------------------------------------------------------------- XML
_OF_XML = (
    *("attribute", "attribute", "attribute", "text", "element", "element"),
    *("nested", "entities", "word", "head"),
)
_XML_WORDS = (
    *(b"", b"-1", b"nan", b"inf", b"1e999", b"-1e300", b"99999999999999999999", b"1,5"),
    *(b"1,000.5", b"x", b"&#0;", b"&b;", b"\xff", b"9" * 5000, b"None", b"0"),
    *(b"#GG0000", b"lesion", b"tumor", b"7"),
)
_HEADS = (
    *(b'<?xml version="1.0" encoding="utf-7"?>', b'<?xml version="9"?>', b"\xef\xbb\xbf"),
    *(b'<?xml version="1.0" encoding="nope"?>', b"", b" "),
)
_ENTITIES = b"""<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">
<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e SYSTEM "file:///etc/passwd">]>"""


def xml(data: bytes, draw: Draw) -> tuple[bytes, str]:
    """An attribute, a text, an element or the head of a document."""
    how = draw.choice(_OF_XML)
    if how == "attribute":
        found = list(re.finditer(rb'(?<==")[^"]*(?=")', data))
    elif how == "text":
        found = list(re.finditer(rb"(?<=>)[^<>]+(?=<)", data))
    else:
        found = list(re.finditer(rb"</?[A-Za-z][^<>]*>", data))
    if how == "word" or not found:
        return _text(data, draw), "word"
    at = draw.choice(found)
    word = draw.choice(_XML_WORDS)
    if how == "nested":
        depth = draw.choice((10, 40, 1000, 20000))
        word = b"<a>" * depth + b"</a>" * (depth if draw.chance(0.8) else 0)
        return data[: at.start()] + word + data[at.start() :], how
    if how == "entities":
        head = data.find(b"?>") + 2 if b"?>" in data else 0
        use = at.group() + draw.choice((b"&d;", b"&e;", b""))
        return data[:head] + _ENTITIES + data[head : at.start()] + use + data[at.end() :], how
    if how == "head":
        new = draw.choice(_HEADS)
        return new + (data[data.find(b"?>") + 2 :] if b"?>" in data else data), how
    if how == "element":
        times = draw.choice((0, 2, 3, 50))
        return data[: at.start()] + at.group() * times + data[at.end() :], how
    return data[: at.start()] + word + data[at.end() :], how
