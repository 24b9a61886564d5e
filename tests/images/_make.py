"""Small TIFF slides of every kind, written with tifffile."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

TILE = (128, 160)  # height, width: a swapped pair shows
APERIO = (
    "Aperio Image Library v11.2.1 \r\n46000x32914 (256x256) J2K|AppMag = 40|MPP = 0.2525|"
    "Date = 01/02/03"
)


def picture(height: int, width: int, channels: int = 3, dtype: str = "uint8", seed: int = 0):
    """Smooth and noisy at once, different in every channel: (height, width[, channels])."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [
        np.sin(x / (17 + k) + k) * np.cos(y / (23 - k)) * 100
        + 128
        + rng.normal(0, 4, (height, width))
        for k in range(max(1, channels))
    ]
    image = np.clip(np.stack(planes, -1), 0, 255)
    if dtype == "uint16":
        image = image * 257
    image = image.astype(dtype)
    return image[..., 0] if channels == 0 else image


#: name -> (channels, dtype, options of tifffile.imwrite); 0 channels is grey
FORMATS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "jpeg-444": (3, "uint8", {"compression": "jpeg", "subsampling": (1, 1)}),
    "jpeg-422": (3, "uint8", {"compression": "jpeg", "subsampling": (2, 1)}),
    "jpeg-420": (3, "uint8", {"compression": "jpeg", "subsampling": (2, 2)}),
    "jpeg-rgb": (3, "uint8", {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}),
    "jpeg-grey": (0, "uint8", {"compression": "jpeg"}),
    "jpeg-planar": (3, "uint8", {"compression": "jpeg", "planarconfig": "separate"}),
    "lzw": (3, "uint8", {"compression": "lzw"}),
    "lzw-predictor": (3, "uint8", {"compression": "lzw", "predictor": True}),
    "deflate": (3, "uint8", {"compression": "deflate"}),
    "zstd": (3, "uint8", {"compression": "zstd", "predictor": True}),
    "packbits": (3, "uint8", {"compression": "packbits"}),
    "none": (3, "uint8", {}),
    "webp": (3, "uint8", {"compression": "webp", "compressionargs": {"lossless": True}}),
    "jpeg2000": (3, "uint8", {"compression": "jpeg2000"}),
    "jpegxl": (3, "uint8", {"compression": "jpegxl"}),
    "planar": (3, "uint8", {"compression": "deflate", "planarconfig": "separate"}),
    "grey": (0, "uint8", {"compression": "lzw"}),
    "grey16": (0, "uint16", {"compression": "lzw", "predictor": True}),
    "grey16-big-endian": (0, "uint16", {"byteorder": ">"}),
    "rgb16": (3, "uint16", {"compression": "deflate", "predictor": True}),
    "rgb16-big-endian": (3, "uint16", {"compression": "zstd", "predictor": True, "byteorder": ">"}),
    "bigtiff": (3, "uint8", {"compression": "jpeg", "bigtiff": True}),
    "strips-jpeg": (3, "uint8", {"compression": "jpeg", "rowsperstrip": 64}),
    "strips-lzw": (3, "uint8", {"compression": "lzw", "rowsperstrip": 77}),
    "strips-none": (3, "uint8", {"rowsperstrip": 77}),
    "strips-one": (3, "uint8", {"rowsperstrip": 10**6}),
    "strips-planar": (3, "uint8", {"rowsperstrip": 50, "planarconfig": "separate"}),
    "strips-webp": (3, "uint8", {"compression": "webp", "rowsperstrip": 77}),
}
#: those that OpenSlide reads, with the same values
WITH_OPENSLIDE = tuple(
    name
    for name, (_, dtype, options) in FORMATS.items()
    if dtype == "uint8"
    and "rowsperstrip" not in options
    and options.get("compression") not in ("webp", "jpeg2000", "jpegxl")
)


def write_format(path: Path, name: str, height: int = 500, width: int = 611) -> np.ndarray:
    """Write one image of a format; returns it as it went in, (height, width, channels)."""
    channels, dtype, options = FORMATS[name]
    image = picture(height, width, channels, dtype)
    options = {"photometric": "rgb" if channels else "minisblack", "metadata": None, **options}
    if "rowsperstrip" not in options:
        options["tile"] = TILE
    data = image
    if options.get("planarconfig") == "separate":
        data = np.ascontiguousarray(image.transpose(2, 0, 1))
    tifffile.imwrite(path, data, **options)
    return image if channels else image[..., None]


def write_pyramid(
    path: Path,
    size: tuple[int, int] = (1024, 1536),
    levels: int = 3,
    *,
    subifds: bool = False,
    tile: tuple[int, int] = TILE,
    compression: str | None = "jpeg",
    bigtiff: bool = False,
    reduced: bool = True,
    **options: Any,
) -> list[np.ndarray]:
    """Write a pyramid (height, width) by factors of two; returns the levels as they went in."""
    images = [picture(size[0] >> i, size[1] >> i, seed=i) for i in range(levels)]
    options = {"photometric": "rgb", "compression": compression, "metadata": None, **options}
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tif:
        for number, image in enumerate(images):
            kind = {"subfiletype": 1} if number and reduced else {}
            if subifds and number == 0:
                kind["subifds"] = levels - 1
            tif.write(image, tile=tile, **kind, **options)
    return images


def tiles(image: np.ndarray, tile: tuple[int, int], encode):
    """Encoded tiles of an image, row by row, padded."""
    height, width = image.shape[:2]
    for y in range(0, height, tile[0]):
        for x in range(0, width, tile[1]):
            part = image[y : y + tile[0], x : x + tile[1]]
            pad = [(0, tile[0] - part.shape[0]), (0, tile[1] - part.shape[1]), (0, 0)]
            yield encode(np.pad(part, pad))


def write_tiles(path: Path, image: np.ndarray, encode, code: int | None = None, **options: Any):
    """Write tiles encoded by a function; `code` then replaces the compression tag."""
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            tiles(image, (256, 256), encode),
            shape=image.shape,
            dtype=image.dtype,
            tile=(256, 256),
            metadata=None,
            **options,
        )
    if code is not None:
        with tifffile.TiffFile(path, mode="r+") as tif:
            tif.pages[0].tags[259].overwrite(code)


def jpeg2000(tile: np.ndarray) -> bytes:
    """A raw codestream without a colour transform, as Aperio writes it."""
    return imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", mct=False, reversible=True)


def jpeg2000_422(tile: np.ndarray) -> bytes:
    """A codestream whose second and third component have half the width."""
    planes = (tile[..., 0], tile[:, ::2, 1], tile[:, ::2, 2])
    segments, bodies = zip(*[_codestream(p) for p in planes], strict=True)
    siz, cod = bytearray(segments[0][0xFF51]), bytearray(segments[0][0xFF52])
    components = bytes([7, 1, 1, 7, 2, 1, 7, 2, 1])
    siz = siz[:2] + struct.pack(">H", 47) + siz[4:38] + struct.pack(">H", 3) + components
    cod[5] = 4  # component by component, so that the bodies follow each other
    body = b"".join(bodies)
    start = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + len(body), 0, 1)
    head = b"\xff\x4f" + bytes(siz) + bytes(cod) + segments[0][0xFF5C]
    return head + start + b"\xff\x93" + body + b"\xff\xd9"


def _codestream(plane: np.ndarray) -> tuple[dict[int, bytes], bytes]:
    data = imagecodecs.jpeg2k_encode(
        np.ascontiguousarray(plane),
        level=0,
        codecformat="j2k",
        mct=False,
        reversible=True,
        resolutions=3,
    )
    segments, at = {}, 2
    while True:
        marker, length = struct.unpack(">HH", data[at : at + 4])
        if marker == 0xFF93:
            return segments, data[at + 2 : -2]
        segments[marker] = data[at : at + 2 + length]
        at += 2 + length


def page_facts(path: Path, page: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and byte counts of a page."""
    with tifffile.TiffFile(path) as tif:
        found = tif.pages[page]
        return found.dataoffsets, found.databytecounts


def overwrite_tag(path: Path, code: int, value: Any, page: int = 0) -> None:
    """Replace a tag's value."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[page].tags[code].overwrite(value)


def damage(path: Path, offset: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def scanner_profile(gamma: float = 1.8) -> bytes:
    """An ICC profile (version 2) of RGB with wide primaries and a gamma of its own."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*values)

    text = b"scanner\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78 + 4)
    tags = {
        b"desc": described,
        b"cprt": b"text\0\0\0\0" + text,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        # of Adobe RGB, adapted to D50
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    place, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", place + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", place + len(body), b"test", 0x02100000, b"scnr", b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += fixed(0.9642, 1.0, 0.8249) + b"test"
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
