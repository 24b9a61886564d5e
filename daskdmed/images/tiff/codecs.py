"""From the bytes of one tile to its pixels.

`make_decoder` looks at a page's tags once and returns a small object whose `decode` does
nothing but decode. imagecodecs wants contiguous output, so a tile is decoded into a scratch
array that the caller owns, or straight into the destination when that is contiguous.

Not covered: which tiles a region needs (`daskdmed.images.tiff.decode`), and JPEG
(`daskdmed.images.tiff.jpeg`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np

from daskdmed.core.errors import UnsupportedImageError
from daskdmed.core.types import Array
from daskdmed.images.refusals import FinalError
from daskdmed.images.tiff import jpeg
from daskdmed.images.tiff.fetch import DecodeError
from daskdmed.images.tiff.jpeg import Many, Paint, Part, Ways

#: decoded tile (rows, tile width, samples); the second argument is scratch of that shape
Decode = Callable[[bytes, Array], Array]
Convert = Callable[[Array], Array]

_JPEG = 7
#: compression -> decoder to bytes
_BYTES: dict[int, Any] = {
    5: imagecodecs.lzw_decode,
    8: imagecodecs.zlib_decode,
    32946: imagecodecs.zlib_decode,
    32773: imagecodecs.packbits_decode,
    34925: imagecodecs.lzma_decode,
    34926: imagecodecs.zstd_decode,
    50000: imagecodecs.zstd_decode,
}
#: compression -> decoder to pixels; 33003 to 33005 are Aperio's numbers
_IMAGES: dict[int, Any] = {
    **dict.fromkeys((33003, 33004, 33005, 34712), imagecodecs.jpeg2k_decode),
    34892: imagecodecs.jpeg8_decode,
    **dict.fromkeys((22610, 34934), imagecodecs.jpegxr_decode),
    34887: imagecodecs.lerc_decode,
    34933: imagecodecs.png_decode,
    **dict.fromkeys((50001, 34927), imagecodecs.webp_decode),
    **dict.fromkeys((50002, 52546), imagecodecs.jpegxl_decode),
}
#: bytes that a tile may decode to beyond its own, of which the rest is cut off
_SURPLUS = 2**26
_DTYPES = ("uint8", "uint16", "int8", "int16", "uint32", "int32", "float32")
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6

_LEVELS = np.arange(256, dtype=np.int64) - 128
# ITU-R BT.601 as in JFIF, rounded half up as OpenSlide rounds it
_R_CR = ((1402 * _LEVELS + 500) // 1000).astype(np.int16)
_B_CB = ((1772 * _LEVELS + 500) // 1000).astype(np.int16)
_G_CB_CR = (-34414 * _LEVELS[:, None] - 71414 * _LEVELS + 50000) // 100000
_G_CB_CR = _G_CB_CR.astype(np.int16)


@dataclass(frozen=True, slots=True)
class PageFormat:
    """What the decoder of a page depends on; pages with equal formats share one, whatever their
    extents. `writer` is whose habits hold where the tags leave two readings."""

    compression: int
    photometric: int
    planar: bool
    samples: int
    extrasamples: tuple[int, ...]
    dtype: str
    bits: int
    predictor: int
    fillorder: int
    byteorder: str
    tables: bytes | None
    header: bytes | None
    writer: Literal["svs", "ome", ""] = ""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes the tiles of one level."""

    decode: Decode
    #: from stored samples to those that are given out, and how many there are of each
    convert: Convert | None
    stored: int
    given: int
    #: tiles need no change, so that a part of one can be read
    raw: bool = False
    #: the fastest way is into the destination, when that is contiguous
    direct: bool = False
    #: the fastest way is into scratch tiles that are copied together
    grouped: bool = False
    #: a whole tile to its place in a large array; nothing is faster, but it may decline
    paint: Paint | None = None
    #: a part of a tile at less than the whole costs; may decline too
    part: Part | None = None
    #: parts of many tiles in one call; may decline each of them
    many: Many | None = None


def make_decoder(fmt: PageFormat, background: tuple[int, ...], uri: str) -> Decoder:
    """Choose how the tiles of a page are decoded; an error for what is not covered."""
    # masks of one bit are read as labels, 0 and 1
    mask = fmt.bits == fmt.samples == 1 and fmt.compression in (1, *_BYTES)
    if not mask and (fmt.dtype not in _DTYPES or fmt.bits != 8 * np.dtype(fmt.dtype).itemsize):
        # OpenSlide would make 8-bit colours of them
        raise FinalError.of(
            uri,
            f"no backend reads {fmt.bits}-bit samples of type {fmt.dtype or 'unknown'}; "
            f"convert them to one of {', '.join(_DTYPES)}",
        )
    stored = 1 if fmt.planar else fmt.samples
    code = fmt.compression
    convert, given = _colours(fmt, background, uri)
    if code == _JPEG:
        ways = _jpeg(fmt, uri)
        return Decoder(
            ways.decode, convert, stored, given, grouped=True, paint=ways.paint, part=ways.part,
            many=ways.many if convert is None else None,
        )  # fmt: skip
    if code in _IMAGES:
        return Decoder(_image(_IMAGES[code], fmt), convert, stored, given)
    if mask:
        return Decoder(_mask(_BYTES.get(code), fmt), convert, stored, given)
    if code == 1 or code in _BYTES:
        if fmt.photometric == _YCBCR and fmt.samples == 3:
            raise _unsupported(uri, "YCbCr pixels without JPEG compression")
        if fmt.predictor not in (1, 2):
            raise _unsupported(uri, f"TIFF predictor {fmt.predictor}")
        raw = code == 1 and fmt.predictor == 1 and fmt.fillorder != 2
        unpack = _BYTES.get(code)
        return Decoder(_plain(unpack, fmt), convert, stored, given, raw, direct=not raw)
    raise _unsupported(uri, f"TIFF compression {code}")


def _unsupported(uri: str, what: str) -> UnsupportedImageError:
    return UnsupportedImageError.of(uri, f"the tiff backend does not read {what}")


def _colours(fmt: PageFormat, background: tuple[int, ...], uri: str) -> tuple[Convert | None, int]:
    """Change from stored to given samples, and their number."""
    photometric, samples = fmt.photometric, 1 if fmt.planar else fmt.samples
    dtype = np.dtype(fmt.dtype)
    if photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR):
        names = {5: "CMYK", 8: "CIELab"}
        raise _unsupported(uri, names.get(photometric, f"photometric interpretation {photometric}"))
    if photometric == _MINISWHITE:
        if samples != 1 or dtype.kind != "u":
            raise _unsupported(uri, f"min-is-white pixels of {samples} samples, type {dtype}")
        return (_opposite if fmt.bits == 1 else np.invert), 1
    if fmt.planar and has_alpha(fmt):
        raise _unsupported(uri, "an alpha channel in a plane of its own")
    if samples in (2, 4) and has_alpha(fmt):
        if dtype.kind != "u" or dtype.itemsize > 2:
            raise _unsupported(uri, f"an alpha channel of type {dtype}")
        associated = fmt.extrasamples[:1] != (2,)
        return blend_alpha(background, dtype, associated=associated), samples - 1
    # of a palette the stored values: of label maps they are the labels, of a channel's lookup
    # table the intensities
    return None, samples


def has_alpha(fmt: PageFormat) -> bool:
    """Whether the last sample is alpha. One of unspecified meaning (0) is a channel, as TIFF 6.0,
    GDAL and Pillow have it: near infrared or a mask beside RGB. (libtiff takes it for alpha.)"""
    return len(fmt.extrasamples) == 1 and fmt.extrasamples[0] in (1, 2)


def _jpeg(fmt: PageFormat, uri: str) -> Ways:
    if fmt.dtype != "uint8":
        raise _unsupported(uri, "JPEG tiles of more than 8 bits")
    stored = 1 if fmt.planar else fmt.samples
    if stored not in (1, 3):
        raise _unsupported(uri, f"JPEG tiles of {stored} samples")
    space: int | None = None
    outspace: int | None = None
    if stored == 3:
        # as OpenSlide: the photometric tag decides, not a JFIF or Adobe marker; but Bio-Formats
        # and QuPath tag RGB whatever their encoder made of it
        space = {_RGB: jpeg.RGB, _YCBCR: jpeg.YCBCR}.get(fmt.photometric)
        outspace = jpeg.RGB
    elif fmt.planar:
        outspace = jpeg.GREY
    return jpeg.make_jpeg(
        samples=stored, space=space, outspace=outspace, tables=fmt.tables, header=fmt.header,
        trust_jfif=fmt.writer == "ome",
    )  # fmt: skip


def _image(unpack: Callable[..., Any], fmt: PageFormat) -> Decode:
    """Codecs that know the shape of what they hold."""
    webp = fmt.compression in (50001, 34927)
    options = {"hasalpha": True} if webp and fmt.samples == 4 else {}
    kind = np.dtype(fmt.dtype)
    # Bio-Formats writes this number for lossless RGB, of any slide
    aperio = fmt.compression == 33003 and fmt.samples == 3 and fmt.writer != "ome"

    def decode(data: bytes, out: Array) -> Array:
        _check_codestream_size(data, out.shape)
        tile = np.asarray(unpack(data, **options))
        if tile.ndim == 2:
            tile = tile[..., None]
        if aperio and not _subsampled(data):
            tile = ycbcr_to_rgb(tile)
        if tile.ndim != 3 or tile.shape[2] != out.shape[2] or tile.dtype != kind:
            raise DecodeError(
                f"the tile decodes to {tile.shape} {tile.dtype}, expected {out.shape} {kind}"
            )
        return tile

    return decode


def _check_codestream_size(data: bytes, shape: tuple[int, ...]) -> None:
    """Refuse a JPEG 2000 codestream that claims to be larger than its tile."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, bottom, left, top = (int.from_bytes(data[i : i + 4]) for i in (8, 12, 16, 20))
        if right - left > shape[1] or bottom - top > shape[0]:
            raise DecodeError(
                f"the JPEG 2000 stream holds {right - left} x {bottom - top} pixels, "
                f"the tile {shape[1]} x {shape[0]}"
            )


def _subsampled(data: bytes) -> bool:
    """Whether a JPEG 2000 codestream has subsampled chroma: its colours are then converted while
    decoding (within 1 of OpenSlide's rounding)."""
    return data[:4] == b"\xff\x4f\xff\x51" and data[46:48] != b"\x01\x01"


def _plain(unpack: Callable[..., Any] | None, fmt: PageFormat) -> Decode:
    """Codecs that give bytes: lossless compression with or without a predictor."""
    native = np.dtype(fmt.dtype)
    stored = np.dtype(fmt.byteorder + native.str[1:])
    swap, reverse, delta = not stored.isnative, fmt.fillorder == 2, fmt.predictor == 2

    def decode(data: bytes, out: Array) -> Array:
        if reverse:
            data = bytes(imagecodecs.bitorder_decode(data))
        flat: Any = data
        if unpack is not None:
            flat = _unpacked(unpack, data, out.view(np.uint8).reshape(-1))
        got = len(flat)
        if got < out.nbytes:
            raise DecodeError(f"the tile decodes to {got} bytes, expected {out.nbytes}")
        if unpack is None:
            tile = np.frombuffer(data, stored, out.size).reshape(out.shape)
            if not (delta or swap):
                return tile
            np.copyto(out, tile)
        elif swap:
            out.byteswap(inplace=True)
        if delta:
            imagecodecs.delta_decode(out, axis=-2, out=out)
        return out

    return decode


def _mask(unpack: Callable[..., Any] | None, fmt: PageFormat) -> Decode:
    """Pixels of one bit, every row of which begins with a byte, as 0 and 1."""

    def decode(data: bytes, out: Array) -> Array:
        rows, width = out.shape[:2]
        packed = np.empty((rows, -(-width // 8)), np.uint8)
        if unpack is None:
            if len(data) < packed.nbytes:
                raise DecodeError(f"the tile has {len(data)} bytes, expected {packed.nbytes}")
            packed = np.frombuffer(data, np.uint8, packed.size).reshape(packed.shape)
        else:
            got = len(_unpacked(unpack, data, packed.reshape(-1)))
            if got < packed.nbytes:
                raise DecodeError(f"the tile decodes to {got} bytes, expected {packed.nbytes}")
        if fmt.fillorder == 2:
            packed = np.frombuffer(imagecodecs.bitorder_decode(packed.tobytes()), np.uint8)
            packed = packed.reshape(rows, -1)
        out[..., 0] = np.unpackbits(packed, axis=1, count=width)
        return out

    return decode


def _opposite(bits: Array) -> Array:
    return bits ^ np.uint8(1)


def _unpacked(unpack: Callable[..., Any], data: bytes, out: Array) -> Any:
    """Decoded into `out`; of what decodes to more the beginning.

    Some writers compress the last strip at full height.
    """
    try:
        return unpack(data, out=out)
    except Exception:
        size = 4 * len(out)
        while size <= 4 * len(out) + _SURPLUS:
            try:
                found = unpack(data, out=size)
            except Exception:
                size *= 4
                continue
            if len(found) < len(out):
                break
            out[...] = np.frombuffer(found, np.uint8, len(out))
            return out
        raise


def ycbcr_to_rgb(tile: Array) -> Array:
    """Full-range YCbCr (h, w, 3) uint8 to RGB, rounded as OpenSlide rounds it."""
    luma = tile[..., 0].astype(np.int16)
    cb, cr = tile[..., 1], tile[..., 2]
    rgb = np.empty(tile.shape, np.int16)
    rgb[..., 0] = luma + _R_CR[cr]
    rgb[..., 1] = luma + _G_CB_CR[cb, cr]
    rgb[..., 2] = luma + _B_CB[cb]
    return np.clip(rgb, 0, 255).astype(np.uint8)


def blend_alpha(
    background: tuple[int, ...], dtype: np.dtype[Any], *, associated: bool
) -> Callable[[Array], Array]:
    """Function that lays pixels (h, w, c + 1) of unsigned integers with alpha on the background,
    rounded to nearest. With `associated` alpha colours are already multiplied by it."""
    top = int(np.iinfo(dtype).max)
    ground = np.asarray(background, np.uint64)

    def blend(tile: Array) -> Array:
        alpha = tile[..., -1:]
        if alpha.size and int(alpha.min()) == top:
            return tile[..., :-1]
        wide = tile.astype(np.uint64)
        alpha = wide[..., -1:]
        colour = wide[..., :-1] * (top if associated else alpha)
        mixed = (colour + (top - alpha) * ground + top // 2) // top
        return np.asarray(np.minimum(mixed, top).astype(dtype))

    return blend
