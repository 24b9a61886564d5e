"""JPEG streams for TIFF tiles: encode, and split off the tables that all tiles share.

Slide scanners store the quantisation and Huffman tables once per level (tag 347) and an
abbreviated stream per tile; made slides do the same, so that they decode like real ones.
Not covered: decoding (`daskdmed.images`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from daskdmed.core.errors import UsageError

if TYPE_CHECKING:
    from daskdmed.core.types import Array

#: chroma subsampling name -> (horizontal, vertical), the value of TIFF tag 530
SUBSAMPLINGS: dict[str, tuple[int, int]] = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _DQT, _DHT, _SOS = 0xE0, 0xDB, 0xC4, 0xDA


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """Split a JPEG stream into (tables, abbreviated stream). The JFIF header is dropped: inside a
    TIFF the photometric tag says the colour space."""
    tables, rest = [_SOI], [_SOI]
    at = 2
    while True:
        marker = stream[at + 1]
        end = at + 2 + struct.unpack_from(">H", stream, at + 2)[0]
        if marker == _SOS:
            rest.append(stream[at:])
            break
        if marker in (_DQT, _DHT):
            tables.append(stream[at:end])
        elif marker != _APP0:
            rest.append(stream[at:end])
        at = end
    return b"".join([*tables, _EOI]), b"".join(rest)


class JpegEncoder:
    """Encodes RGB tiles into abbreviated YCbCr streams with common `tables`, TIFF tag 347."""

    def __init__(self, quality: int, subsampling: str) -> None:
        if subsampling not in SUBSAMPLINGS:
            raise UsageError(
                f"subsampling must be one of {', '.join(map(repr, SUBSAMPLINGS))}, "
                f"got {subsampling!r}"
            )
        if not 1 <= quality <= 100:
            raise UsageError(f"quality must be between 1 and 100, got {quality!r}")
        self.quality = int(quality)
        self.subsampling = subsampling
        self.tables = b""

    def encode(self, tile: Array) -> bytes:
        """Encode an RGB uint8 tile (height, width, 3)."""
        import imagecodecs

        stream = imagecodecs.jpeg8_encode(
            tile,
            level=self.quality,
            colorspace="RGB",
            outcolorspace="YCBCR",
            subsampling=self.subsampling,
            optimize=False,
        )
        self.tables, abbreviated = split_tables(bytes(stream))
        return abbreviated
