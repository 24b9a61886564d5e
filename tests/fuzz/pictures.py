"""Seeds of plain pictures that are one-level slides, and of masks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from daskdmed.cohort.tissue.mask import TissueMask
from tests.fuzz.seeds import Seed
from tests.images import _make

SHAPE = 44, 70


def make(folder: Path) -> Iterator[Seed]:
    yield from _masks(folder)


def _masks(folder: Path) -> Iterator[Seed]:
    found = _make.picture(*SHAPE, 0) > 140
    options = {"shape0": (4 * SHAPE[0], 4 * SHAPE[1])}
    path = folder / "mask.png"
    path.write_bytes(imagecodecs.png_encode(found.astype(np.uint8) * 255))
    yield Seed.of("mask/png", "mask", path, **options)
    path = folder / "palette.png"
    file = io.BytesIO()
    Image.fromarray(found.astype(np.uint8)).convert("P").save(file, "PNG")
    path.write_bytes(file.getvalue())
    yield Seed.of("mask/png-palette", "mask", path, **options)
    path = folder / "mask.npy"
    np.save(path, found)
    yield Seed.of("mask/npy", "mask", path, **options)
    path = folder / "mask.npz"
    TissueMask(found, shape0=options["shape0"], mpp=(0.5, 0.5)).save(path)
    yield Seed.of("mask/npz", "mask", path, **options)
