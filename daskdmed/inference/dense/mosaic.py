"""How maps of windows make up a result: which window gives which cells, in which order.

Pure geometry. A *cell* is an element of the result, one pixel or several. The result is cut
into chunks; rows of chunks along all axes but the last make a *band*; a band is swept along
the last axis, one column of chunks (a *step*) at a time, so that a window is computed once
within its band although many chunks need it. Windows over the edge between two bands are
computed by both: `MosaicPlan.recomputed` says how often a window is computed on average.

A sweep may begin at any step: it then computes first what the windows of earlier steps give
to it. Windows are batched in groups that do not depend on where a sweep begins, and added in
the same order, so that a result does not depend on how the work was cut up.

Not covered: reading pixels and running models (`daskdmed.inference.dense.sweep`), weights
(`daskdmed.inference.dense.blend`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from daskdmed.core.types import Array

#: cells per axis that a chunk of the result aims at, by number of spatial axes
_CHUNK = {1: 2**16, 2: 768, 3: 96}
_CHUNK_BYTES = 8 * 2**20
#: bytes of partial sums that a sweep may hold
_SWEEP_BYTES = 96 * 2**20
#: computations per window that are good enough not to look for higher bands
_GOOD_RATIO = 1.05


@dataclass(frozen=True)
class AxisWindows:
    """The windows along one axis."""

    size: int  # extent of the image, in pixels
    cells: int  # extent of the result
    kernel_size: int  # extent of a window, in pixels
    unit: int  # pixels per cell
    #: first pixel of each window; negative, or with its far end outside the image, where the
    #: image is padded
    origins: tuple[int, ...]
    starts: tuple[int, ...]  # the cells of the result that a window gives
    stops: tuple[int, ...]
    offsets: tuple[int, ...]  # first of the window's own cells that is used
    #: position of the middle of cell 0, in pixels from the edge of the image (0.5 for single
    #: pixels)
    centre: float

    def __len__(self) -> int:
        return len(self.origins)

    def touching(self, begin: int, stop: int) -> range:
        """Windows that give something to the cells from `begin` to `stop`."""
        first = int(np.searchsorted(self.stops, begin, side="right"))
        last = int(np.searchsorted(self.starts, stop, side="left"))
        return range(first, max(first, last))

    def spans(self, windows: range, begin: int, stop: int) -> list[tuple[int, int, int]]:
        """(start, stop, offset) of windows, clipped to a range of cells and relative to it."""
        spans = []
        for j in windows:
            a, b = max(self.starts[j], begin), min(self.stops[j], stop)
            spans.append((a - begin, b - begin, self.offsets[j] + a - self.starts[j]))
        return spans

    @functools.cached_property
    def middles(self) -> Array:
        """Middle of each cell in pixels from the edge of the image, inside of it."""
        places = self.centre + np.arange(self.cells, dtype=np.float64) * self.unit
        return np.clip(places, 0, self.size - 0.5)


def blended_axis(size: int, kernel: int, stride: int, reduction: int) -> AxisWindows:
    """Overlapping windows that give all their cells, the last one moved inside.

    An image smaller than the window is padded on both sides, as MONAI does; one that is no
    multiple of `reduction` is padded at its far side.
    """
    cells = -(-size // reduction)
    if size < kernel:
        before = (kernel - size) // 2 // reduction * reduction
        places = (-before,), (0,), (cells,), (before // reduction,)
        return AxisWindows(size, cells, kernel, reduction, *places, reduction / 2)
    last = cells * reduction - kernel
    origins = tuple(min(i * stride, last) for i in range(-(-last // stride) + 1))
    starts = tuple(o // reduction for o in origins)
    stops = tuple(s + kernel // reduction for s in starts)
    zeros = (0,) * len(origins)
    return AxisWindows(size, cells, kernel, reduction, origins, starts, stops, zeros, reduction / 2)


@dataclass(frozen=True)
class Group:
    """Windows along the last axis that are batched together."""

    first: int  # the steps that they begin and end in
    last: int
    windows: range


@dataclass(frozen=True)
class MosaicPlan:
    """Chunks, bands and steps of a result."""

    axes: tuple[AxisWindows, ...]  # one per spatial axis
    chunk: tuple[int, ...]  # cells per chunk of the result
    rows: tuple[int, ...]  # chunks per band, along all axes but the last

    @property
    def cells(self) -> tuple[int, ...]:
        """Extent of the result."""
        return tuple(axis.cells for axis in self.axes)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Extent of a window, in pixels."""
        return tuple(axis.kernel_size for axis in self.axes)

    @property
    def bands(self) -> tuple[int, ...]:
        """Number of bands along all axes but the last."""
        return tuple(
            -(-axis.cells // (c * r))
            for axis, c, r in zip(self.axes[:-1], self.chunk[:-1], self.rows, strict=True)
        )

    @property
    def steps(self) -> int:
        """Chunks along the last axis."""
        return -(-self.axes[-1].cells // self.chunk[-1])

    def band_cells(self, band: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """(begin, stop) in cells of a band, along all axes but the last."""
        spans = []
        for i, axis, c, r in zip(band, self.axes[:-1], self.chunk[:-1], self.rows, strict=True):
            spans.append((i * c * r, min((i + 1) * c * r, axis.cells)))
        return tuple(spans)

    def step_cells(self, step: int) -> tuple[int, int]:
        """(begin, stop) in cells of a step, along the last axis."""
        begin = step * self.chunk[-1]
        return begin, min(begin + self.chunk[-1], self.axes[-1].cells)

    def band_windows(self, band: Sequence[int]) -> tuple[range, ...]:
        """Windows that a band needs, along all axes but the last."""
        return tuple(
            axis.touching(*span)
            for axis, span in zip(self.axes[:-1], self.band_cells(band), strict=True)
        )

    def band_chunks(self, band: Sequence[int], step: int) -> Iterator[tuple[int, ...]]:
        """Indices of the chunks of one step of a band."""
        spans = [
            range(begin // c, -(-stop // c))
            for (begin, stop), c in zip(self.band_cells(band), self.chunk[:-1], strict=True)
        ]
        for lead in itertools.product(*spans):
            yield (*lead, step)

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """Windows along the last axis by the steps in which they begin and end, in order."""
        axis, width = self.axes[-1], self.chunk[-1]
        keys = [
            (a // width, (b - 1) // width) for a, b in zip(axis.starts, axis.stops, strict=True)
        ]
        found, j = [], 0
        for key, members in itertools.groupby(keys):
            n = len(list(members))
            found.append(Group(*key, range(j, j + n)))
            j += n
        return tuple(found)

    def groups_for(self, step: int, *, begin: int) -> list[Group]:
        """What is computed at a step of a sweep that begins at step `begin`."""
        return [g for g in self.groups if max(g.first, begin) == step and g.last >= step]

    @functools.cached_property
    def reach(self) -> int:
        """Cells along the last axis by which windows reach beyond the step they begin in."""
        last, width = self.axes[-1], self.chunk[-1]
        begun = (a // width for a in last.starts)
        return max(0, *(b - (a + 1) * width for a, b in zip(begun, last.stops, strict=True)))

    @property
    def needed(self) -> int:
        """Number of windows."""
        return math.prod(len(axis) for axis in self.axes)

    @property
    def computed(self) -> int:
        """Number of windows that all bands compute, each swept in one go, without a mask."""
        total = len(self.axes[-1])
        for i, axis in enumerate(self.axes[:-1]):
            size = self.chunk[i] * self.rows[i]
            cuts = range(0, axis.cells, size)
            total *= sum(len(axis.touching(a, min(a + size, axis.cells))) for a in cuts)
        return total

    @property
    def recomputed(self) -> float:
        """How often a window is computed, 1.0 at best."""
        return self.computed / self.needed


def choose_mosaic(
    axes: Sequence[AxisWindows],
    outputs: int,
    *,
    pitch: Sequence[int] | None = None,
    chunk: Sequence[int] | None = None,
) -> MosaicPlan:
    """Chunks of about 768 x 768 cells (96^3), bands as high as the memory for them allows.

    Partial sums of a sweep stay within 96 MiB, unless one row of chunks needs more. Depends
    on the geometry alone, so that a run can be resumed on another machine.
    """
    if chunk is None:
        chunk = _choose_chunk(axes, outputs, pitch or (1,) * len(axes))
    chunk = tuple(min(c, axis.cells) for c, axis in zip(chunk, axes, strict=True))
    reach = max(b - a for a, b in zip(axes[-1].starts, axes[-1].stops, strict=True))
    per_row = 4 * outputs * (chunk[-1] + reach)
    rows = [1] * (len(axes) - 1)
    # the axis whose windows are computed again most often grows first
    while MosaicPlan(tuple(axes), chunk, tuple(rows)).recomputed > _GOOD_RATIO:
        best: tuple[float, int] | None = None
        for i, axis in enumerate(axes[:-1]):
            count = -(-axis.cells // chunk[i])
            wider = [r + (j == i) for j, r in enumerate(rows)]
            held = per_row * math.prod(
                min(c * r, a.cells) for c, r, a in zip(chunk[:-1], wider, axes[:-1], strict=True)
            )
            if rows[i] < count and held <= _SWEEP_BYTES:
                gain = (
                    MosaicPlan(tuple(axes), chunk, tuple(rows)).recomputed
                    - MosaicPlan(tuple(axes), chunk, tuple(wider)).recomputed
                )
                if best is None or gain > best[0]:
                    best = gain, i
        if best is None:
            break
        rows[best[1]] += 1
    for i, axis in enumerate(axes[:-1]):  # bands of nearly one height
        count = -(-axis.cells // chunk[i])
        rows[i] = -(-count // -(-count // rows[i]))
    return MosaicPlan(tuple(axes), chunk, tuple(rows))


def _choose_chunk(
    axes: Sequence[AxisWindows], outputs: int, pitch: Sequence[int]
) -> tuple[int, ...]:
    ndim = len(axes)
    target = _CHUNK.get(ndim, 32)
    limit = max(round((_CHUNK_BYTES / (4 * max(outputs, 1))) ** (1 / ndim)), 16)
    chunk = []
    for axis, step in zip(axes, pitch, strict=True):
        wanted = min(target, limit, axis.cells)
        near = max(round(wanted / step), 1) * step
        chunk.append(near if near <= wanted * 3 // 2 else wanted)
    return tuple(chunk)
