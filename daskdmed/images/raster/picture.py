"""What is known of a plain picture before its pixels are decoded. Values, and checks of sizes.

Not covered: how it is found in a file (`daskdmed.images.raster.headers`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError
from daskdmed.images.source import Source
from daskdmed.images.tiff.metadata import Mpp, plausible
from daskdmed.images.volumes.decoded import setting

Kind = Literal["png", "jpeg", "jp2", "bmp", "webp"]
#: "labels" are the numbers behind a palette, and pixels of one bit; "other" are samples of
#: which the file does not say what they are
Colour = Literal["grey", "rgb", "cmyk", "labels", "other"]
#: bytes of a colour profile, or of EXIF; more is damage
MAX_EXTRA = 2**26
_EXIF_ORIENTATION, _EXIF_X, _EXIF_Y, _EXIF_UNIT = 0x112, 0x11A, 0x11B, 0x128


@dataclass(frozen=True, slots=True)
class Exif:
    """How to hold a picture, 1 to 8 as EXIF counts, and micrometers per pixel."""

    orientation: int = 1
    mpp: Mpp | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is stored: extent, samples, and what they mean."""

    kind: Kind
    width: int
    height: int
    #: what the decoder gives per pixel, alpha included
    samples: int
    dtype: str
    colour: Colour
    alpha: Literal["", "straight", "premultiplied"] = ""
    mpp: Mpp | None = None
    icc_profile: bytes | None = None
    orientation: int = 1
    #: bits of a stored sample
    bits: int = 8
    #: where the compressed pixels begin
    start: int = 0
    #: most decoded bytes that one byte of the file can stand for; 0 when there is no such bound
    ratio: int = 0
    #: bytes of memory that decoding takes per byte of the picture
    effort: float = 1.0

    @property
    def channels(self) -> int:
        """Channels given out: alpha is blended away, CMYK becomes RGB."""
        return 3 if self.colour == "cmyk" else self.samples - bool(self.alpha)

    @property
    def turned(self) -> bool:
        """Whether rows become columns."""
        return self.orientation >= 5

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) as it is given out."""
        size = (self.width, self.height) if self.turned else (self.height, self.width)
        return (*size, self.channels)

    @property
    def shown_mpp(self) -> Mpp | None:
        """(x, y) of the picture as it is given out."""
        return self.mpp[::-1] if self.mpp and self.turned else self.mpp

    @property
    def background(self) -> tuple[int, ...]:
        """White for colours, and for what lies on white; 0 for gray values and labels."""
        top = int(np.iinfo(self.dtype).max) if np.dtype(self.dtype).kind == "u" else 0
        white = self.colour in ("rgb", "cmyk") or bool(self.alpha)
        return (top if white else 0,) * self.channels


def check_sizes(picture: Picture, source: Source) -> None:
    """Refuse pictures that cannot be true, or that memory should not be spent on."""
    width, height = picture.width, picture.height
    what = f"it declares {width} x {height} pixels of {picture.samples} x {picture.dtype}"
    if width <= 0 or height <= 0 or picture.samples <= 0:
        raise CorruptImageError.of(source.uri, f"{what}; the file is damaged, fetch it again")
    nbytes = width * height * picture.samples * np.dtype(picture.dtype).itemsize
    packed = nbytes * picture.bits // (8 * np.dtype(picture.dtype).itemsize)
    if picture.ratio and packed > picture.ratio * source.size + 2**20:
        raise CorruptImageError.of(
            source.uri,
            f"{what}, {nbytes} bytes, and the file has {source.size}, which cannot hold them; the "
            "copy is incomplete or damaged, fetch it again",
        )


def check_memory(picture: Picture, source: Source) -> None:
    """Refuse what has to be decoded whole and is too large for that."""
    nbytes = picture.width * picture.height * picture.samples * np.dtype(picture.dtype).itemsize
    needed, limit = int(nbytes * picture.effort), setting("picture-limit")
    if needed > limit:
        raise UnsupportedImageError.of(
            source.uri,
            f"a {picture.kind} picture of {picture.width} x {picture.height} pixels is decoded "
            f"whole, which takes {needed} bytes, more than daskdmed.images.picture-limit "
            f"({limit}); raise that in dask.config, or convert the file to a tiled TIFF "
            "(for instance by vips tiffsave --tile --pyramid)",
        )


def per_length(x: float, y: float, micrometers: float) -> Mpp | None:
    """Micrometers per pixel of pixels per so many micrometers; None where that is no microscope's
    but, as most, a printer's."""
    return plausible(micrometers / x, micrometers / y) if x > 0 and y > 0 else None


def parse_exif(data: bytes) -> Exif:
    """Of the first directory of EXIF data; whatever is wrong with it is as if it were not there."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return Exif()
    found: dict[int, float] = {}
    try:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        for i in range(min(count, 256)):
            tag, kind, number = struct.unpack_from(order + "HHI", data, at + 2 + 12 * i)
            if number != 1:
                continue
            value = at + 10 + 12 * i
            if kind == 3:
                found[tag] = struct.unpack_from(order + "H", data, value)[0]
            elif kind == 5:
                (where,) = struct.unpack_from(order + "I", data, value)
                top, bottom = struct.unpack_from(order + "II", data, where)
                found[tag] = top / bottom if bottom else 0.0
    except struct.error:
        pass  # what was found before counts
    orientation = int(found.get(_EXIF_ORIENTATION, 1))
    unit = {2: 25400.0, 3: 10000.0}.get(int(found.get(_EXIF_UNIT, 2)), 0.0)
    mpp = per_length(found.get(_EXIF_X, 0.0), found.get(_EXIF_Y, 0.0), unit) if unit else None
    return Exif(orientation if 1 <= orientation <= 8 else 1, mpp)
