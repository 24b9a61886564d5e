"""Making slides: JPEG pyramids of any size with tissue islands, two classes and a ground truth.

Level 0 is put together from a bank of encoded tiles, the upper levels are area means of it.
One pass, row by row, so time grows with the number of tiles and memory with one row of them.
Fetching published slides is in `daskdmed.samples._fetch`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.errors import UsageError
from daskdmed.samples._bank import CELLS, TileBank
from daskdmed.samples._jpeg import JpegEncoder
from daskdmed.samples._layout import corner_labels
from daskdmed.samples._pyramid import CLASSIC_LIMIT, LevelAssembler, PyramidWriter, grid
from daskdmed.samples._texture import LABEL_CLASSES, synthetic_textures, textures_from_slide

if TYPE_CHECKING:
    from daskdmed.types import Array, PathLike

#: names of the classes in `MadeSlide.class_map`
CLASS_NAMES: tuple[str, ...] = ("background", "benign", "tumour")


@dataclass(frozen=True)
class MadeSlide:
    """A slide made by `make_slide`, with its ground truth. Small and picklable.

    Parameters
    ----------
    path : Path
        The TIFF.
    mask_path : Path
        ``<stem>.mask.npy`` beside it: the ground truth, uint8 (rows, columns).
    size : tuple of int
        (width, height) at level 0.
    tile : int
        Side of a storage tile.
    cell : int
        Level-0 pixels per pixel of the ground truth.
    mpp : float
        Micrometers per pixel at level 0.
    level_dimensions : tuple
        (width, height) of each level.
    """

    path: Path
    mask_path: Path
    size: tuple[int, int]
    tile: int
    cell: int
    mpp: float
    level_dimensions: tuple[tuple[int, int], ...]

    @cached_property
    def class_map(self) -> Array:
        """Majority class of each cell: uint8 (ceil(height / cell), ceil(width / cell)).

        0 background, 1 benign, 2 tumour; mapped from `mask_path`, read-only.
        """
        return np.asarray(np.load(self.mask_path, mmap_mode="r"))

    def mask(self, downsample: float | None = None) -> Array:
        """Ground truth at a downsample, nearest neighbour.

        Parameters
        ----------
        downsample : float, optional
            Level-0 pixels per pixel of the result, for instance the downsample of a level;
            `cell` by default.

        Returns
        -------
        ndarray
            uint8 (ceil(height / downsample), ceil(width / downsample)): 0 background,
            1 benign, 2 tumour.

        Raises
        ------
        UsageError
            `downsample` is not positive.
        """
        if downsample is None or downsample == self.cell:
            return np.array(self.class_map)
        if not downsample > 0:
            raise UsageError(f"downsample must be positive, got {downsample!r}")
        at = [
            np.minimum((np.arange(int(np.ceil(n / downsample))) + 0.5) * downsample, n - 1)
            for n in self.size
        ]
        columns, rows = ((a // self.cell).astype(np.intp) for a in at)
        return np.array(self.class_map[np.ix_(rows, columns)])

    def label_at(self, x: float, y: float) -> int:
        """Class of the cell under a level-0 location (x, y).

        Raises
        ------
        UsageError
            The location lies outside the slide.
        """
        if not (0 <= x < self.size[0] and 0 <= y < self.size[1]):
            raise UsageError(f"({x}, {y}) lies outside the slide of size {self.size}")
        return int(self.class_map[int(y) // self.cell, int(x) // self.cell])

    @property
    def class_fractions(self) -> tuple[float, ...]:
        """Fraction of the slide that each class covers, in the order of `CLASS_NAMES`."""
        counts = np.bincount(self.class_map.ravel(), minlength=len(CLASS_NAMES))
        return tuple(float(c) for c in counts / counts.sum())

    @property
    def tissue_fraction(self) -> float:
        """Fraction of the slide that is tissue."""
        return 1.0 - self.class_fractions[0]

    @property
    def label(self) -> str:
        """Name of the class that covers more of the tissue."""
        _, first, second = self.class_fractions
        return CLASS_NAMES[1] if first >= second else CLASS_NAMES[2]


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

    Returns
    -------
    MadeSlide
        Where the slide and its ground truth are.

    Raises
    ------
    UsageError
        An argument is outside its range.
    """
    plan = _Plan.check(
        size, tile, levels, downsample, quality, subsampling, tissue, classes, tumour, mpp, power
    )
    textures = plan.textures(seed, tiles_from)
    bank = plan.bank(textures, seed)
    return plan.write(
        Path(path), bank, seed=seed, share=share_tiles, big=bigtiff, progress=progress
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Checked arguments of `make_slide`."""

    size: tuple[int, int]
    tile: int
    sizes: tuple[tuple[int, int], ...]
    downsample: int
    quality: int
    subsampling: str
    tissue: float
    tumour: float
    mpp: float
    power: float

    @classmethod
    def check(
        cls,
        size: int | tuple[int, int],
        tile: int,
        levels: int | None,
        downsample: int,
        quality: int,
        subsampling: str,
        tissue: float,
        classes: int,
        tumour: float,
        mpp: float,
        power: float,
    ) -> _Plan:
        pair = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
        if len(pair) != 2 or not all(int(n) == n and n >= 1 for n in pair):
            raise UsageError(f"size must be one or two positive integers, got {size!r}")
        if int(tile) != tile or not 16 <= tile <= 4096 or tile % 16:
            raise UsageError(f"tile must be a multiple of 16 from 16 to 4096, got {tile!r}")
        if downsample not in (2, 4, 8):
            raise UsageError(f"downsample must be 2, 4 or 8, got {downsample!r}")
        if classes not in (1, 2):
            raise UsageError(f"classes must be 1 or 2, got {classes!r}")
        for name, value in (("tissue", tissue), ("tumour", tumour)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is a fraction from 0 to 1, got {value!r}")
        for name, value in (("mpp", mpp), ("power", power)):
            if not (np.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a positive number, got {value!r}")
        JpegEncoder(quality, subsampling)
        whole = (int(pair[0]), int(pair[1]))
        return cls(
            size=whole,
            tile=int(tile),
            sizes=_level_sizes(whole, levels, downsample),
            downsample=downsample,
            quality=quality,
            subsampling=subsampling,
            tissue=float(tissue),
            tumour=float(tumour) if classes == 2 else 0.0,
            mpp=float(mpp),
            power=float(power),
        )

    def textures(self, seed: int, source: Any) -> Array:
        """Textures of all labels; about 1024 pixels long, in whole tiles."""
        period = max(1, round(1024 / self.tile)) * self.tile
        if source is None:
            return synthetic_textures(seed, period, self.mpp)
        return textures_from_slide(source, seed, period, self.tile)

    def bank(self, textures: Array, seed: int) -> TileBank:
        """The tiles."""
        capacity = max(64, 768 * 256**2 // self.tile**2)
        return TileBank(
            textures,
            LABEL_CLASSES,
            self.tile,
            JpegEncoder(self.quality, self.subsampling),
            self.downsample,
            seed,
            min(capacity, 4096),
        )

    def description(self, path: Path, seed: int) -> str:
        """ImageDescription of the first page."""
        w, h = self.size
        head = "Aperio Image (made)" if path.suffix.lower() == ".svs" else "daskdmed made slide"
        return (
            f"{head}\r\n{w}x{h} ({self.tile}x{self.tile}) JPEG/RGB Q={self.quality}"
            f"|AppMag = {self.power:g}|MPP = {self.mpp:.6g}|Seed = {seed}"
        )

    def write(
        self,
        path: Path,
        bank: TileBank,
        *,
        seed: int,
        share: bool,
        big: bool | None,
        progress: bool,
    ) -> MadeSlide:
        """Write the slide and its ground truth."""
        rows, columns = grid(self.size, self.tile)
        corners = corner_labels(seed, (rows, columns), tissue=self.tissue, second=self.tumour)
        if big is None:
            big = not share and self._estimate(bank, corners) > CLASSIC_LIMIT // 2
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = PyramidWriter(path, self.sizes, self.tile, big=big, share=share)
        mask_path = path.with_name(f"{path.stem}.mask.npy")
        try:
            self._fill(writer, bank, corners, mask_path, progress)
            writer.finish(bank.encoder, self.mpp, self.description(path, seed), "daskdmed.samples")
        except BaseException:
            writer.abort()
            raise
        return MadeSlide(
            path, mask_path, self.size, self.tile, self.tile // CELLS, self.mpp, self.sizes
        )

    def _estimate(self, bank: TileBank, corners: Array) -> float:
        """Bytes of the file, from one tile per label."""
        streams = [
            len(bank.encoder.encode(t[: self.tile, : self.tile].copy())) for t in bank.textures
        ]
        share = np.bincount(corners.ravel(), minlength=len(streams)) / corners.size
        return float(np.dot(share, streams)) * corners.size * (1 + 1 / (self.downsample**2 - 1))

    def _fill(
        self, writer: PyramidWriter, bank: TileBank, corners: Array, mask_path: Path, progress: bool
    ) -> None:
        """Write all tiles and the ground truth, row by row of level 0."""
        from tqdm import tqdm

        cell = self.tile // CELLS
        truth = np.lib.format.open_memmap(
            mask_path, "w+", np.uint8, (-(-self.size[1] // cell), -(-self.size[0] // cell))
        )
        upper = [
            LevelAssembler(s, self.tile, self.downsample, bank.encoder) for s in self.sizes[1:]
        ]
        rows = grid(self.size, self.tile)[0]
        for row in tqdm(range(rows), desc=writer.path.name, unit="row", disable=not progress):
            keys = bank.keys(corners, row)
            tiles = [bank.get(key) for key in keys.tolist()]
            writer.add_row(0, [t.stream for t in tiles], keys.tolist())
            band = truth[row * CELLS : (row + 1) * CELLS]
            band[:] = np.concatenate([t.truth for t in tiles], 1)[: band.shape[0], : band.shape[1]]
            self._rise(writer, upper, [t.small for t in tiles], keys)
        for level, assembler in enumerate(upper):
            if assembler.pending:
                self._pass_up(writer, upper, level)
        truth.flush()

    def _rise(
        self,
        writer: PyramidWriter,
        upper: list[LevelAssembler],
        smalls: list[Array],
        ids: Array,
        level: int = 0,
    ) -> None:
        """Give one row of shrunken tiles to a level, and on to the next when it is complete."""
        if level < len(upper) and upper[level].push(smalls, ids):
            self._pass_up(writer, upper, level)

    def _pass_up(self, writer: PyramidWriter, upper: list[LevelAssembler], level: int) -> None:
        streams, smalls, ids = upper[level].take()
        writer.add_row(level + 1, streams, ids.tolist())
        self._rise(writer, upper, smalls, ids, level + 1)


def _level_sizes(
    size: tuple[int, int], levels: int | None, factor: int
) -> tuple[tuple[int, int], ...]:
    """(width, height) of each level."""
    if levels is not None and (int(levels) != levels or levels < 1):
        raise UsageError(f"levels must be a positive integer, got {levels!r}")
    sizes = [size]
    while len(sizes) < levels if levels is not None else max(sizes[-1]) > 2048:
        w, h = size[0] // factor ** len(sizes), size[1] // factor ** len(sizes)
        if min(w, h) < 1:
            if levels is None:
                break
            raise UsageError(
                f"{levels} levels of downsample {factor} are too many for a slide of {size}: "
                f"level {len(sizes)} would be empty"
            )
        sizes.append((w, h))
    return tuple(sizes)


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
        Passed on to `make_slide` (tile, levels, quality, subsampling, mpp, tiles_from, ...).

    Returns
    -------
    list of MadeSlide

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
    settings: dict[str, Any] = {
        "tile": 256, "levels": None, "downsample": 4, "quality": 80, "subsampling": "420",
        "mpp": 0.5, "power": 20,
    }  # fmt: skip
    extra = {"tiles_from": None, "share_tiles": False, "bigtiff": None}
    unknown = set(options) - set(settings) - set(extra)
    if unknown:
        raise UsageError(f"make_cohort does not take {sorted(unknown)}")
    settings.update({k: v for k, v in options.items() if k in settings})
    extra.update({k: v for k, v in options.items() if k in extra})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made: list[MadeSlide] = []
    bank: TileBank | None = None
    own = np.random.default_rng((seed, 4)).uniform(low, high, n)
    for i in range(n):
        tumour = float(own[i]) if i % 2 else 1 - float(own[i])
        plan = _Plan.check(size, tissue=tissue, classes=2, tumour=tumour, **settings)
        if bank is None:
            bank = plan.bank(plan.textures(seed, extra["tiles_from"]), seed)
        made.append(
            plan.write(
                folder / f"slide_{i:03d}.tif",
                bank,
                seed=seed * 100_003 + i,
                share=bool(extra["share_tiles"]),
                big=extra["bigtiff"],
                progress=False,
            )
        )
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(("slide", "label"))
        table.writerows((m.path.name, m.label) for m in made)
    return made
