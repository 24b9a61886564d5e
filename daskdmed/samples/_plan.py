"""From checked arguments to a file: one pass over the rows of tiles of level 0.

Level 0 is put together from a bank of encoded tiles, the upper levels are area means of it,
so time grows with the number of tiles and memory with one row of them per level. The public
functions are in `daskdmed.samples._make`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.samples._bank import CELLS, TileBank, corner_labels
from daskdmed.samples._made import MadeSlide
from daskdmed.samples._pyramid import (
    CLASSIC_LIMIT,
    JpegEncoder,
    LevelAssembler,
    PyramidWriter,
    grid,
)
from daskdmed.samples._texture import LABEL_CLASSES, synthetic_textures, textures_from_slide

if TYPE_CHECKING:
    from daskdmed.core.types import Array


@dataclass(frozen=True)
class SlidePlan:
    """Arguments of `make_slide`, whose defaults these are, checked."""

    size: Any
    tile: int = 256
    levels: int | None = None
    downsample: int = 4
    quality: int = 80
    subsampling: str = "420"
    tissue: float = 0.5
    classes: int = 2
    tumour: float = 0.5
    mpp: float = 0.5
    power: float = 20

    def __post_init__(self) -> None:
        size = self.size
        pair: tuple[Any, ...] = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        whole = all(isinstance(n, (int, np.integer)) and n >= 1 for n in pair)
        if len(pair) != 2 or not whole:
            raise UsageError(f"size must be one or two positive integers, got {size!r}")
        if int(self.tile) != self.tile or not 16 <= self.tile <= 4096 or self.tile % 16:
            raise UsageError(f"tile must be a multiple of 16 from 16 to 4096, got {self.tile!r}")
        for name, choices in (("downsample", (2, 4, 8)), ("classes", (1, 2))):
            if getattr(self, name) not in choices:
                *first, last = choices
                shown = f"{', '.join(map(str, first))} or {last}"
                raise UsageError(f"{name} must be {shown}, got {getattr(self, name)!r}")
        for name in ("tissue", "tumour"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a fraction from 0 to 1, got {getattr(self, name)!r}")
        for name in ("mpp", "power"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"{name} must be a positive number, got {getattr(self, name)!r}")
        JpegEncoder(self.quality, self.subsampling)
        object.__setattr__(self, "size", (int(pair[0]), int(pair[1])))
        object.__setattr__(self, "tile", int(self.tile))
        self.sizes  # noqa: B018  too many levels are refused now

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level."""
        return _level_sizes(self.size, self.levels, self.downsample)

    def textures(self, seed: int, source: Any) -> Array:
        """Textures of all labels, about 1024 pixels long or as the slide, in whole tiles."""
        longest = max(grid(self.size, self.tile))
        period = max(1, min(round(1024 / self.tile), longest)) * self.tile
        if source is None:
            return synthetic_textures(seed, period, self.mpp)
        return textures_from_slide(source, seed, period, self.tile)

    def bank(self, textures: Array, seed: int) -> TileBank:
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
        share: bool = False,
        big: bool | None = None,
        progress: bool = False,
    ) -> MadeSlide:
        rows, columns = grid(self.size, self.tile)
        second = self.tumour if self.classes == 2 else 0.0
        corners = corner_labels(seed, (rows, columns), tissue=self.tissue, second=second)
        if big is None:
            big = not share and self._estimate(bank, corners) > CLASSIC_LIMIT // 2
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = PyramidWriter(path, self.sizes, self.tile, big=big, share=share)
        mask_path = path.with_name(f"{path.stem}.mask.npy")
        try:
            self._fill(writer, bank, corners, mask_path, progress)
            writer.finish(bank.encoder, self.mpp, self.description(path, seed))
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
