"""Seeds of plain pictures, of CZI and of DICOM slides, and of masks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from daskdmed.cohort.tissue.mask import TissueMask
from tests.fuzz.seeds import Seed
from tests.images import _czi, _dicomwsi, _make

SHAPE = 44, 70
_COLOURS = _make.picture(*SHAPE)
#: an EXIF that turns the picture
_EXIF = Image.Exif()
_EXIF[0x0112] = 6


def make(folder: Path) -> Iterator[Seed]:
    yield from _plain(folder)
    yield from _slides(folder)
    yield from _masks(folder)


def _plain(folder: Path) -> Iterator[Seed]:
    colours = Image.fromarray(_COLOURS)
    grey, wide = colours.convert("L"), _make.picture(*SHAPE, 0, "uint16")
    clear = np.dstack([_COLOURS, _COLOURS[..., 0]])
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (colours, {"dpi": (25400, 25400), "icc_profile": b"x" * 200}),
        "clear.png": (Image.fromarray(clear, "RGBA"), {"exif": _EXIF}),
        "grey16.png": (Image.fromarray(wide), {}),
        "palette.png": (grey.quantize(16), {}),
        "bits.png": (grey.convert("1"), {}),
        "plain.jpg": (colours, {"quality": 80, "dpi": (25400, 25400), "exif": _EXIF}),
        "progressive.jpg": (colours, {"progressive": True, "icc_profile": b"x" * 200}),
        "grey.jpg": (grey, {}),
        "ink.jpg": (colours.convert("CMYK"), {}),
        "tiled.jp2": (colours, {"tile_size": (32, 32), "irreversible": False}),
        "whole.jp2": (grey, {}),
        "stream.j2k": (colours, {"irreversible": True}),
        "plain.bmp": (colours, {}),
        "palette.bmp": (grey.quantize(16), {}),
        "exact.webp": (colours, {"lossless": True, "exif": _EXIF}),
        "lossy.webp": (Image.fromarray(clear, "RGBA"), {}),
    }
    for name, (image, options) in kinds.items():
        path = folder / name
        image.save(path, **options)
        yield Seed.of(f"picture/{name}", "slide", path)


def _slides(folder: Path) -> Iterator[Seed]:
    image = _COLOURS // 32 * 32
    for name, options in {
        "jpeg": {},
        "j2k": {"syntax": _dicomwsi.JPEG2000, "offsets": "extended"},
        "rle": {"syntax": _dicomwsi.RLE, "photometric": "RGB"},
        "native": {"syntax": _dicomwsi.NATIVE, "photometric": "RGB", "sparse": True,
                   "skip": ((0, 1),)},
    }.items():  # fmt: skip
        path = folder / f"{name}.dcm"
        _dicomwsi.write(path, image, tile=32, **options)
        yield Seed.of(f"dicomwsi/{name}", "slide", path)
    series = folder / "series"
    series.mkdir()
    for number, step in ((1, 1), (2, 2)):
        part = np.ascontiguousarray(image[::step, ::step])
        _dicomwsi.write(series / f"{number}.dcm", part, tile=32, number=number, mpp=0.5 * step)
    yield Seed.of("dicomwsi/series", "slide", series, share=2)
    path = folder / "colours.czi"
    tiles = _czi.mosaic(image, 32) + _czi.mosaic(image[::2, ::2], 32, factor=2)
    _czi.write(path, tiles)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    _czi.attach(path, {"Label": ("JPG", file.getvalue())})
    yield Seed.of("czi/colours", "slide", path)
    path = folder / "channels.czi"
    grey = [_make.picture(*SHAPE, 0, "uint16", seed=n) for n in range(2)]
    tiles = [t for n, one in enumerate(grey) for t in _czi.mosaic(one, 32, plane={"C": n})]
    _czi.write(path, tiles, channels=("DAPI", "FITC"))
    yield Seed.of("czi/channels", "slide", path)


def _masks(folder: Path) -> Iterator[Seed]:
    found = _make.picture(*SHAPE, 0) > 140
    options = {"shape0": (4 * SHAPE[0], 4 * SHAPE[1])}
    path = folder / "mask.png"
    path.write_bytes(imagecodecs.png_encode(found.astype(np.uint8) * 255))
    yield Seed.of("mask/png", "mask", path, **options)
    path = folder / "mask-palette.png"
    Image.fromarray(found.astype(np.uint8)).convert("P").save(path)
    yield Seed.of("mask/png-palette", "mask", path, **options)
    path = folder / "mask.npy"
    np.save(path, found)
    yield Seed.of("mask/npy", "mask", path, **options)
    path = folder / "mask.npz"
    TissueMask(found, shape0=options["shape0"], mpp=(0.5, 0.5)).save(path)
    yield Seed.of("mask/npz", "mask", path, **options)
