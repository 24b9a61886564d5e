"""What `make_slide` gives back: where the slide is, and what is true about every place on it.

How slides are made is in `daskdmed.samples._make`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import UsageError

if TYPE_CHECKING:
    from daskdmed.core.types import Array

#: names of the classes in `MadeSlide.class_map`
CLASS_NAMES: tuple[str, ...] = ("background", "benign", "tumour")


@dataclass(frozen=True)
class MadeSlide:
    """A slide made by `make_slide`, with its ground truth. Small and picklable.

    `mask_path`, ``<stem>.mask.npy`` beside it, is the ground truth, uint8 (rows, columns) with one
    pixel per `cell` level-0 pixels. Sizes are (width, height); `tile` is the side of a storage
    tile.
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
        """Majority class of each cell, uint8 (ceil(height / cell), ceil(width / cell)): 0
        background, 1 benign, 2 tumour. Mapped from `mask_path`, read-only."""
        return np.asarray(np.load(self.mask_path, mmap_mode="r"))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "class_map"}

    def mask(self, downsample: float | None = None) -> Array:
        """Ground truth, uint8: 0 background, 1 benign, 2 tumour; by nearest neighbour at a
        downsample (level-0 pixels per pixel of the result), `cell` by default."""
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
        """Class of the cell under a level-0 location (x, y) on the slide."""
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
