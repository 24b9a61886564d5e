"""Mutations of TIFF that know its directories: fields, what they point to, and their order.

The directories are followed here no further than needed to find their fields; nothing of the
library is used, so that its own ideas of the format are not those tested.
"""

from __future__ import annotations

import struct

from tests.fuzz.draw import Draw, extreme

#: what places raise that no index reaches
_FAR = (OverflowError, IndexError)
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
        except (struct.error, *_FAR):
            return None

    def put(self, at: int, kind: str, value: int) -> None:
        bits = 8 * struct.calcsize("=" + kind)
        try:
            struct.pack_into(self.order + kind, self.data, at, value % (1 << bits))
        except (struct.error, *_FAR):  # behind the end
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
