"""Pictures that lie beside the image in a CZI: label, preview of the slide, thumbnail.

They are files within the file: JPEG, or again CZI. pylibCZIrw does not give them, so their
directory is read here.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass

from daskdmed.images.source import LocalSource

_log = logging.getLogger("daskdmed.images")
#: name in the file -> OpenSlide's
_NAMES = {"Label": "label", "SlidePreview": "macro", "Thumbnail": "thumbnail"}
_ENTRY = 128
#: attachments of one file; more is damage
_MOST = 4096
_MOST_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where the file within the file is, and whether it is "JPG" or "CZI"."""

    kind: str
    offset: int
    size: int


def attachments(source: LocalSource) -> dict[str, Attachment]:
    """By OpenSlide's names; what is wrong with them is no reason to refuse the slide."""
    try:
        return dict(sorted(_read(source).items()))
    except struct.error as error:
        _log.warning("%s: attachments are left out: %s", source.uri, error)
        return {}


def _read(source: LocalSource) -> dict[str, Attachment]:
    (at,) = struct.unpack("<q", source.read(32 + 72, 8))
    head = source.read(at, 36) if 0 < at < source.size else b""
    if head[:12] != b"ZISRAWATTDIR":
        return {}
    count = min(struct.unpack("<i", head[32:36])[0], _MOST)
    table = source.read(at + 32 + 256, max(0, count) * _ENTRY)
    found: dict[str, Attachment] = {}
    for begin in range(0, len(table) - _ENTRY + 1, _ENTRY):
        entry = table[begin : begin + _ENTRY]
        (place,) = struct.unpack("<q", entry[12:20])
        kind, name = (part.split(b"\0")[0].decode("latin-1") for part in (entry[40:48], entry[48:]))
        known = _NAMES.get(name)
        if known is None or kind.upper() not in ("JPG", "CZI") or not 0 < place < source.size:
            continue
        segment = source.read(place, 36)
        size = struct.unpack("<i", segment[32:36])[0]
        offset = place + 32 + 256
        if segment[:12] == b"ZISRAWATTACH" and 0 < size <= min(_MOST_BYTES, source.size - offset):
            found[known] = Attachment(kind.upper(), offset, size)
    return found
