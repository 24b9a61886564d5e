"""Big-chunk loaders that walk over a slide: grid, spiral, circle, low discrepancy.

Each visit of a record goes one step further along a path, or holds several smaller regions
of it. Paths are pure functions of the step and the image's shape.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from daskdmed.core.checks import check_count
from daskdmed.core.errors import UsageError
from daskdmed.core.region import Region
from daskdmed.core.told import Told
from daskdmed.core.types import Array
from daskdmed.loading.collectors import BigChunkLoader
from daskdmed.persistence.reading import LoadContext

Shape: TypeAlias = tuple[int, ...]


class Explorer(Told, BigChunkLoader):
    """A path over the image; subclasses say where it goes.

    Parameters
    ----------
    size : int or sequence of int, optional
        Extent of a region per spatial axis. Default: `bigchunk_size` divided so that
        `regions` of them hold as many pixels.
    regions : int, default 1
        Regions that one visit holds: consecutive steps of the path. Small chunks are drawn
        from all of them, so more and smaller ones mix better at the same cost.

    Notes
    -----
    Regions that would reach over the border are moved inside. A path starts anew when it is
    over.
    """

    def __init__(self, size: int | Sequence[int] | None = None, *, regions: int = 1) -> None:
        self.size = size
        self.regions = check_count("regions", regions)

    @abstractmethod
    def place(self, step: int, room: Shape, size: Shape, context: LoadContext) -> Sequence[float]:
        """First pixel of a step, which count from 0 over all visits of the record.

        `room` is the largest first pixel along each axis, `size` the extent of a region,
        `context` knows patient, record and downsample.
        """

    def extract_bigchunk(
        self,
        read: Callable[[Region], Array],
        context: LoadContext,
        rng: np.random.Generator,
    ) -> list[Region]:
        size = self._extent(context)
        room = tuple(n - s for n, s in zip(context.shape, size, strict=True))
        first = context.nth * self.regions
        return [
            self._region(step, room, size, context) for step in range(first, first + self.regions)
        ]

    def _extent(self, context: LoadContext) -> tuple[int, ...]:
        axes = len(context.shape)
        if self.size is None:
            # rounded down to whole multiples of 64, so that few tiles are decoded twice
            part = self.regions ** (-1 / axes)
            wanted = tuple(max(1, int(b * part)) for b in context.bigchunk_size)
            wanted = tuple(w if w < 64 else w // 64 * 64 for w in wanted)
        else:
            given = self.size
            wanted = (given,) * axes if isinstance(given, int) else tuple(given)
            if len(wanted) != axes:
                raise UsageError(f"size {wanted} has {len(wanted)} axes, the image {axes}")
        return tuple(min(w, n) for w, n in zip(wanted, context.shape, strict=True))

    def _region(self, step: int, room: Shape, size: Shape, context: LoadContext) -> Region:
        place = self.place(step, room, size, context)
        origin = tuple(min(max(round(p), 0), r) for p, r in zip(place, room, strict=True))
        return Region(origin, size)


class GridExplorer(Explorer):
    """Row by row over a regular grid of regions, as a sliding window would.

    Parameters
    ----------
    size, regions
        See `Explorer`.
    overlap : float, default 0
        Fraction of a region shared with its neighbour, in [0, 1).
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        *,
        regions: int = 1,
        overlap: float = 0.0,
    ) -> None:
        super().__init__(size, regions=regions)
        if not 0 <= overlap < 1:
            raise UsageError(f"overlap is a fraction in [0, 1), got {overlap}")
        self.overlap = overlap

    def place(self, step: int, room: Shape, size: Shape, context: LoadContext) -> Sequence[float]:
        strides = [max(1.0, s * (1 - self.overlap)) for s in size]
        counts = [math.ceil(r / d) + 1 for r, d in zip(room, strides, strict=True)]
        at = np.unravel_index(step % math.prod(counts), counts)
        return [float(i) * d for i, d in zip(at, strides, strict=True)]


class SpiralExplorer(Explorer):
    """From the centre outwards in a square spiral, in the last two axes.

    Further axes are gone through one layer after the other.
    """

    def place(self, step: int, room: Shape, size: Shape, context: LoadContext) -> Sequence[float]:
        counts = tuple(math.ceil(r / s) + 1 for r, s in zip(room, size, strict=True))
        path = _spiral(counts[-2], counts[-1])
        layer, at = divmod(step % (len(path) * math.prod(counts[:-2])), len(path))
        index = (*(int(i) for i in np.unravel_index(layer, counts[:-2])), *path[at])
        steps = [r / max(1, n - 1) for r, n in zip(room, counts, strict=True)]
        return [i * d for i, d in zip(index, steps, strict=True)]


@lru_cache(maxsize=64)
def _spiral(rows: int, columns: int) -> list[tuple[int, int]]:
    """Cells of a grid from its centre outwards."""
    path = _outwards(rows, columns)
    return [(y, x) for y, x in path if 0 <= y < rows and 0 <= x < columns]


def _outwards(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    y, x = (rows - 1) // 2, (columns - 1) // 2
    yield y, x
    turns = itertools.cycle(((0, 1), (1, 0), (0, -1), (-1, 0)))
    for leg in range(1, 2 * max(rows, columns) + 2):
        for dy, dx in itertools.islice(turns, 2):
            for _ in range(leg):
                y, x = y + dy, x + dx
                yield y, x


class CircleExplorer(Explorer):
    """Around a circle about the centre of the image, as in PyDmed's second notebook.

    Parameters
    ----------
    size, regions
        See `Explorer`.
    radius : float, default 0.5
        Of the way from the centre to the border, along each of the last two axes.
    steps : int, default 16
        Regions on the circle.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        *,
        regions: int = 1,
        radius: float = 0.5,
        steps: int = 16,
    ) -> None:
        super().__init__(size, regions=regions)
        if not 0 <= radius <= 1 or steps < 1:
            raise UsageError(f"radius is in [0, 1] and steps at least 1, got {radius} and {steps}")
        self.radius, self.steps = radius, steps

    def place(self, step: int, room: Shape, size: Shape, context: LoadContext) -> Sequence[float]:
        angle = 2 * math.pi * (step % self.steps) / self.steps
        turns = [0.0] * (len(room) - 2) + [math.sin(angle), math.cos(angle)]
        return [r / 2 * (1 + self.radius * t) for r, t in zip(room, turns, strict=True)]


class LowDiscrepancyExplorer(Explorer):
    """Evenly spread places that never repeat: the generalised golden ratio sequence.

    Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018): after any
    number of steps the image is covered about as evenly as that number allows. Patients
    begin at different places.
    """

    def place(self, step: int, room: Shape, size: Shape, context: LoadContext) -> Sequence[float]:
        axes = len(room)
        phi = _golden(axes)
        start = np.random.default_rng(list(context.patient.encode()) or [0]).random(axes)
        return [
            ((start[i] + (step + 1) * phi ** -(i + 1)) % 1.0) * (r + 1) - 0.5
            for i, r in enumerate(room)
        ]


@lru_cache(maxsize=8)
def _golden(axes: int) -> float:
    """The root of x**(axes + 1) = x + 1."""
    x = 2.0
    for _ in range(64):
        x = (1 + x) ** (1 / (axes + 1))
    return x
