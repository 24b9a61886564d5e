"""From transfer syntax and photometric interpretation to the decoders of TIFF tiles.

The photometric interpretation decides the colours of JPEG frames, as in OpenSlide, but RGB of
frames that begin as JFIF, which always is YCbCr.

Not covered: where frames lie (`daskdmed.images.dicomwsi.frames`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np

from daskdmed.core.errors import UnsupportedImageError
from daskdmed.core.types import Array
from daskdmed.images.dicomwsi.frames import unwrapped
from daskdmed.images.dicomwsi.instance import Instance
from daskdmed.images.tiff.codecs import Decode, Decoder, PageFormat, make_decoder
from daskdmed.images.tiff.fetch import DecodeError
from daskdmed.images.tiff.jpeg import Paint
from daskdmed.images.volumes.dicom.pixels import NATIVE, stream_size

_JPEG = "1.2.840.10008.1.2.4."
_RLE = "1.2.840.10008.1.2.5"
_PLAIN, _TIFF_JPEG, _ANY_JPEG, _J2K_YCBCR, _J2K, _JPEG_XL = 1, 7, 34892, 33003, 33005, 50002
#: UID -> TIFF compression
_COMPRESSIONS = {
    **dict.fromkeys(NATIVE, _PLAIN),
    _JPEG + "50": _TIFF_JPEG,
    **{_JPEG + end: _ANY_JPEG for end in ("51", "57", "70")},
    **{_JPEG + end: _J2K for end in ("90", "91", "201", "202", "203")},
    **{_JPEG + end: _JPEG_XL for end in ("110", "111", "112")},
}
_LOSSLESS_LS = {_JPEG + "80", _JPEG + "81"}
#: photometric interpretation -> that of TIFF
_PHOTOMETRIC = {
    "MONOCHROME1": 0, "MONOCHROME2": 1, "RGB": 2, "YBR_RCT": 2, "YBR_ICT": 2,
    "YBR_FULL": 6, "YBR_FULL_422": 6,
}  # fmt: skip


def decoder_of(instance: Instance, background: tuple[int, ...]) -> tuple[Decoder, np.dtype[Any]]:
    """How the frames of a file are decoded, and to what type; an error for what is not covered."""
    pixels = instance.pixels
    fmt = _format(instance)
    if pixels.syntax in _LOSSLESS_LS or pixels.syntax == _RLE:
        # what colours are made of samples is as of pixels without compression
        plain = make_decoder(replace(fmt, compression=_PLAIN), background, pixels.path)
        other = _run_lengths if pixels.syntax == _RLE else _jpeg_ls
        decoder = Decoder(_checked(other), plain.convert, plain.stored, plain.given)
    else:
        decoder = make_decoder(fmt, background, pixels.path)
    if pixels.encapsulated:
        decoder = replace(
            decoder,
            decode=_decode_item(decoder.decode, fmt),
            paint=None if decoder.paint is None else _paint_item(decoder.paint),
        )
    return decoder, np.dtype(fmt.dtype)


def _format(instance: Instance) -> PageFormat:
    pixels = instance.pixels
    code, photometric = _COMPRESSIONS.get(pixels.syntax), _PHOTOMETRIC.get(instance.photometric)
    if pixels.syntax in _LOSSLESS_LS or pixels.syntax == _RLE:
        code = _PLAIN
    if code is None or photometric is None or pixels.deflated:
        raise UnsupportedImageError.of(
            pixels.path,
            f"slides in the transfer syntax {pixels.syntax}, {instance.photometric}, are not read; "
            "convert the file",
        )
    if code == _J2K and photometric == 6:  # the stream itself knows nothing of it
        code, photometric = _J2K_YCBCR, 2
    kind = "f" if pixels.floating else "i" if pixels.signed else "u"
    dtype = np.dtype(f"{kind}{pixels.allocated // 8}")
    return PageFormat(
        compression=code,
        photometric=photometric,
        planar=instance.planar and instance.samples > 1 and not pixels.encapsulated,
        samples=instance.samples,
        extrasamples=(),
        dtype=dtype.name,
        bits=pixels.allocated,
        predictor=1,
        fillorder=1,
        byteorder=">" if pixels.big_endian else "<",
        tables=None,
        header=None,
        # of JPEG: RGB is doubted where the stream says YCbCr
        writer="ome" if code == _TIFF_JPEG else "",
    )


def _stream(data: bytes) -> bytes:
    """Of a frame, without the byte that makes its length even."""
    found = unwrapped(data)
    return found[:-1] if found[-3:-1] == b"\xff\xd9" and found[-1:] == b"\0" else found


def _decode_item(decode: Decode, fmt: PageFormat) -> Decode:
    def inner(data: bytes, out: Array) -> Array:
        stream = _stream(data)
        found = stream_size(stream)
        if found is not None and found != out.shape[:2]:
            raise DecodeError(
                f"the stream holds {found[1]} x {found[0]} pixels, the header says "
                f"{out.shape[1]} x {out.shape[0]}"
            )
        return decode(stream, out)

    return inner


def _paint_item(paint: Paint) -> Paint:
    def inner(data: bytes, address: int, pitch: int, rows: int, width: int) -> bool:
        try:
            stream = _stream(data)
        except DecodeError:
            return False  # the other way says what is wrong
        return paint(stream, address, pitch, rows, width)

    return inner


def _checked(unpack: Callable[[bytes, Array], Array]) -> Decode:
    def decode(data: bytes, out: Array) -> Array:
        tile = unpack(data, out)
        tile = tile[..., None] if tile.ndim == 2 else tile
        if tile.shape != out.shape or tile.dtype != out.dtype:
            raise DecodeError(
                f"the frame decodes to {tile.shape} {tile.dtype}, expected {out.shape} {out.dtype}"
            )
        return tile

    return decode


def _jpeg_ls(data: bytes, _: Array) -> Array:
    return np.asarray(imagecodecs.jpegls_decode(data))


def _run_lengths(data: bytes, out: Array) -> Array:
    """Bytes of each sample in planes of their own, the most significant first."""
    kind = out.dtype.newbyteorder("<")
    flat = np.frombuffer(imagecodecs.dicomrle_decode(data, kind), kind)
    if flat.size < out.size:
        raise DecodeError(f"{flat.size} of {out.size} samples are there")
    planes = flat[: out.size].reshape(out.shape[2], *out.shape[:2])
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1)).astype(out.dtype, copy=False)
