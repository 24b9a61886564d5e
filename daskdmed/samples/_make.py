"""Making slides: JPEG pyramids of any size with tissue islands, two classes and a ground truth.

What these functions check and how the file is written is in `daskdmed.samples._plan`;
fetching published slides is in `daskdmed.samples._fetch`.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.samples._made import MadeSlide
from daskdmed.samples._plan import SlidePlan

if TYPE_CHECKING:
    from daskdmed.core.types import PathLike
    from daskdmed.samples._bank import TileBank


def make_slide(
    path: PathLike,
    size: int | tuple[int, int] = 51_200,
    *,
    tile: int = 256,
    levels: int | None = None,
    downsample: int = 4,
    quality: int = 80,
    subsampling: str = "420",
    tissue: float = 0.5,
    classes: int = 2,
    tumour: float = 0.5,
    mpp: float = 0.5,
    power: float = 20,
    seed: int = 0,
    tiles_from: Any = None,
    share_tiles: bool = False,
    bigtiff: bool | None = None,
    progress: bool = False,
) -> MadeSlide:
    """Write a realistic JPEG tiled pyramid of any size, and its ground truth.

    The same arguments give the same bytes.

    Parameters
    ----------
    path : path
        File to write. A name that ends in ``.svs`` gets an Aperio header (so that readers
        find the objective power), any other is a generic tiled TIFF.
    size : int or tuple of int
        (width, height) in pixels, or the side of a square.
    tile : int
        Side of a storage tile, a multiple of 16.
    levels : int, optional
        Number of levels; by default until the larger side is at most 2048.
    downsample : {2, 4, 8}
        From one level to the next.
    quality : int
        JPEG quality, 1 to 100.
    subsampling : {"444", "422", "420"}
        Chroma subsampling.
    tissue : float
        Fraction of the slide that is tissue: about 0.5 for a usual slide, 1 for a dense one.
    classes : {1, 2}
        Number of tissue classes.
    tumour : float
        Fraction of the tissue that is of class 2, when there are two.
    mpp : float
        Micrometers per pixel: written into the file, and the scale of the drawn tissue.
    power : float
        Objective power, for the header.
    seed : int
        Seed of layout and texture.
    tiles_from : path or Slide, optional
        A real slide whose tissue is used instead of the drawn one: its tiles, told from
        glass by saturation and sorted into two classes by how much haematoxylin they show.
    share_tiles : bool
        Store equal tiles once. The file is then a few MB at any size, but its pages are
        always in the page cache, so do not measure reading speed on it.
    bigtiff : bool, optional
        64-bit offsets; by default when 32 bits might not suffice.
    progress : bool
        Show a progress bar.

    Raises
    ------
    UsageError
        An argument is outside its range.
    """
    plan = SlidePlan(
        size, tile, levels, downsample, quality, subsampling, tissue, classes, tumour, mpp, power
    )
    textures = plan.textures(seed, tiles_from)
    bank = plan.bank(textures, seed)
    return plan.write(
        Path(path).expanduser(), bank, seed=seed, share=share_tiles, big=bigtiff, progress=progress
    )


def make_cohort(
    folder: PathLike,
    n: int = 8,
    size: int | tuple[int, int] = 8192,
    *,
    seed: int = 0,
    tissue: float = 0.6,
    purity: tuple[float, float] = (0.75, 0.95),
    **options: Any,
) -> list[MadeSlide]:
    """Make slides of two kinds, and ``labels.csv`` that says which is which.

    Slides alternate between mostly benign and mostly tumour tissue.

    Parameters
    ----------
    folder : path
        Where to write ``slide_000.tif``, their ground truth, and ``labels.csv`` with the
        columns slide and label.
    n : int
        Number of slides.
    size : int or tuple of int
        (width, height) of each, or the side of a square.
    seed : int
        Seed of the cohort; the slides differ in layout and share their textures.
    tissue : float
        Fraction of each slide that is tissue.
    purity : tuple of float
        Least and greatest fraction of the tissue that is of the slide's own class,
        above 0.5.
    **options
        As in `make_slide`: tile, levels, downsample, quality, subsampling, mpp, power,
        tiles_from, share_tiles, bigtiff.

    Raises
    ------
    UsageError
        An argument is outside its range.
    """
    if int(n) != n or n < 1:
        raise UsageError(f"n must be a positive integer, got {n!r}")
    low, high = purity
    if not 0.5 < low <= high <= 1:
        raise UsageError(f"purity must satisfy 0.5 < low <= high <= 1, got {purity!r}")
    source = options.pop("tiles_from", None)
    share, big = bool(options.pop("share_tiles", False)), options.pop("bigtiff", None)
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    made: list[MadeSlide] = []
    bank: TileBank | None = None
    own = np.random.default_rng((seed, 4)).uniform(low, high, n)
    for i in range(n):
        tumour = float(own[i]) if i % 2 else 1 - float(own[i])
        plan = SlidePlan(size, tissue=tissue, tumour=tumour, **options)
        if bank is None:
            bank = plan.bank(plan.textures(seed, source), seed)
        path = folder / f"slide_{i:03d}.tif"
        made.append(plan.write(path, bank, seed=seed * 100_003 + i, share=share, big=big))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(("slide", "label"))
        table.writerows((m.path.name, m.label) for m in made)
    return made
