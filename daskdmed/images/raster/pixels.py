"""From the bytes of a whole picture to its pixels, as it is given out.

Not covered: what the header says (`daskdmed.images.raster.headers`), JPEG 2000 by tiles
(`daskdmed.images.raster.jpeg2000`).
"""

from __future__ import annotations

import struct
import zlib

import imagecodecs
import numpy as np

from daskdmed.core.types import Array
from daskdmed.images.raster.headers import PNG_MAGIC
from daskdmed.images.raster.picture import Picture
from daskdmed.images.tiff.codecs import blend_alpha
from daskdmed.images.tiff.fetch import DecodeError


def decode(picture: Picture, data: bytes) -> Array:
    """(height, width, channels): upright, RGB or gray or labels, transparency over white."""
    stored = np.asarray(_DECODERS[picture.kind](picture, data))
    stored = stored[..., None] if stored.ndim == 2 else stored
    expected = (picture.height, picture.width, picture.samples)
    if stored.shape != expected or stored.dtype != np.dtype(picture.dtype):
        raise DecodeError(
            f"it decodes to {stored.shape} {stored.dtype}, its header says {expected} "
            f"{picture.dtype}"
        )
    if picture.colour == "cmyk":
        stored = from_cmyk(stored)
    elif picture.alpha:
        associated = picture.alpha == "premultiplied"
        stored = blend_alpha(picture.background, stored.dtype, associated=associated)(stored)
    return np.ascontiguousarray(upright(stored, picture.orientation))


def upright(image: Array, orientation: int) -> Array:
    """A view of (height, width, channels) as it is to be held, by EXIF's number."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
        orientation = {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    if orientation in (3, 4):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3) else image


def from_cmyk(inks: Array) -> Array:
    """RGB of CMYK (h, w, 4) as JPEG stores it, inverted by Adobe's habit; by plain arithmetic, as
    Pillow and viewers without colour management, rounded as Pillow does."""
    black = inks[..., 3:].astype(np.uint16)
    product = (255 - inks[..., :3]).astype(np.uint16) * black + 128
    return (black - ((product >> 8) + product >> 8)).astype(np.uint8)


def _png(picture: Picture, data: bytes) -> Array:
    if picture.colour != "labels":
        return np.asarray(imagecodecs.png_decode(data))
    # as gray values: without the palette, and stretched to 8 bits
    head = struct.pack(
        ">4sIIBBBBB", b"IHDR", picture.width, picture.height, picture.bits, 0, *data[26:29]
    )
    plain = b"".join(
        (PNG_MAGIC, b"\0\0\0\x0d", head, struct.pack(">I", zlib.crc32(head)), data[picture.start :])
    )
    return np.asarray(imagecodecs.png_decode(plain)) // (255 // ((1 << picture.bits) - 1))


def _jpeg(picture: Picture, data: bytes) -> Array:
    if data.rfind(b"\xff\xd9", picture.start) < 0:
        raise DecodeError("the JPEG stream has no end")
    return np.asarray(imagecodecs.jpeg8_decode(data))


def _jpeg2000(_: Picture, data: bytes) -> Array:
    return np.asarray(imagecodecs.jpeg2k_decode(data))


def _webp(picture: Picture, data: bytes) -> Array:
    return np.asarray(imagecodecs.webp_decode(data, hasalpha=bool(picture.alpha)))


def _bitmap(picture: Picture, data: bytes) -> Array:
    bits, upside_down = int.from_bytes(data[28:30], "little"), not data[25] & 0x80
    if bits > 8:
        return np.asarray(imagecodecs.bmp_decode(data, asrgb=True))
    line = (picture.width * bits + 31) // 32 * 4
    rows = np.frombuffer(data, np.uint8, line * picture.height, picture.start)
    found: Array = rows.reshape(picture.height, line)
    if bits < 8:  # the highest bits are the first pixel's
        each = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
        found = (found[..., None] >> each & (1 << bits) - 1).reshape(picture.height, -1)
    found = found[:, : picture.width]
    return found[::-1] if upside_down else found


_DECODERS = {"png": _png, "jpeg": _jpeg, "jp2": _jpeg2000, "webp": _webp, "bmp": _bitmap}
