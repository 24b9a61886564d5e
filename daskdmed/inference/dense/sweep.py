"""Sweeping a band of a result: read pixels, run the model, blend, step by step.

A sweep goes along the last axis and holds the pixels and the partial sums of one step and
of the windows that reach beyond it, nothing of the size of the result. A chunk is written
once, when nothing more comes to it.

Not covered: how the result is cut into bands and steps (`daskdmed.inference.dense.mosaic`), and who
writes what sweeps give (`daskdmed.inference.dense.job`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.inference.dense.blend import Blend
from daskdmed.inference.dense.finish import Finish
from daskdmed.inference.dense.mosaic import Group, MosaicPlan
from daskdmed.inference.dense.sweepjobs import Index, SweepJob
from daskdmed.inference.models.outputs import window_name
from daskdmed.inference.models.values import Layout
from daskdmed.inference.models.window import WindowModel

#: pixels read beyond what is needed, to end on a storage tile, take at most these bytes
_AHEAD_BYTES = 32 * 2**20


class Strip:
    """Pixels of a band, read once from left to right."""

    def __init__(self, view: ImageView, lead: Sequence[tuple[int, int]], tile: int) -> None:
        self.view, self.tile = view, tile
        self.lead = tuple(lead)
        self._begin = self._stop = 0
        self._memory: Array | None = None
        self._channels = tuple(view.channel_shape)
        column = math.prod(b - a for a, b in self.lead) * math.prod(self._channels)
        self._ahead = _AHEAD_BYTES // max(column * view.dtype.itemsize, 1)

    def columns(self, begin: int, stop: int) -> Array:
        """Pixels from `begin` to `stop` along the last axis, (*lead, columns[, c]).

        `begin` never goes back, and what was given before is overwritten. Outside the image
        they are the background.
        """
        if self._memory is None:
            self._begin = self._stop = begin
        if stop > self._stop:
            self._keep(begin, self._tile_end(stop))
        return self._at(begin, stop)

    def _at(self, begin: int, stop: int) -> Array:
        assert self._memory is not None
        columns = slice(begin - self._begin, stop - self._begin)
        return self._memory[(*(slice(None),) * len(self.lead), columns)]

    def _keep(self, begin: int, end: int) -> None:
        """Hold the columns from `begin` to `end`: move those that are there, read the rest."""
        kept = self._at(begin, self._stop) if begin < self._stop else None
        read = max(begin, self._stop)
        memory = self._memory
        if memory is None or memory.shape[len(self.lead)] < end - begin:
            extent = tuple(b - a for a, b in self.lead)
            memory = np.empty((*extent, end - begin, *self._channels), self.view.dtype)
        self._memory, self._begin, self._stop = memory, begin, end
        if kept is not None:
            self._at(begin, read)[...] = kept
        self._read(self._at(read, end), read)

    def _tile_end(self, stop: int) -> int:
        size = self.view.shape[len(self.lead)]
        end = min(-(-stop // self.tile) * self.tile, size)
        return end if stop < end <= stop + self._ahead else stop

    def _read(self, target: Array, begin: int) -> None:
        """Fill `target`, whose last spatial axis begins at pixel `begin`."""
        origin = (*(a for a, _ in self.lead), begin)
        self.view.read_padded(Region(origin, target.shape[: len(origin)]), target)


@dataclass(frozen=True)
class Sweeper:
    """What is done in every sweep. A picklable value without handles."""

    plan: MosaicPlan  # windows, bands and steps
    blend: Blend | None  # weights; None where each cell comes from one window
    finish: Finish  # what becomes of blended values
    layout: Layout  # what the model gives for a window
    batch_size: int  # windows per call of the model
    #: storage tile of the image along the last axis, in pixels. Views that were cut down for a
    #: sweep know it no more
    tile: int

    def lead(self, band: Index) -> list[tuple[int, int]]:
        """(begin, stop) in pixels of a band along all axes but the last, the outside included."""
        windows = self.plan.band_windows(band)
        return [
            (axis.origins[w[0]], axis.origins[w[-1]] + axis.kernel_size)
            for axis, w in zip(self.plan.axes[:-1], windows, strict=True)
        ]

    def sums(self, band: Index) -> tuple[int, ...]:
        """Shape of the partial sums of a step, (k, *cells)."""
        plan = self.plan
        cells = (b - a for a, b in plan.band_cells(band))
        return max(self.layout.outputs, 1), *cells, plan.chunk[-1] + plan.reach

    def nbytes(self, view: ImageView) -> int:
        """What a sweep takes, about: pixels of a step, partial sums, and a batch of floats."""
        plan, last = self.plan, self.plan.axes[-1]
        band = (0,) * (len(plan.axes) - 1)
        channels = math.prod(view.channel_shape)
        origins = last.origins
        columns = max(origins[g.windows[-1]] - origins[g.windows[0]] for g in plan.groups)
        pixels = math.prod(b - a for a, b in self.lead(band)) * (columns + last.kernel_size)
        batch = self.batch_size * math.prod(plan.kernel_size)
        floats = math.prod(self.sums(band)) + batch * channels
        return pixels * channels * view.dtype.itemsize + floats * 4

    def region(self, view: ImageView, job: SweepJob) -> Region:
        """The pixels that a sweep may read."""
        axis = self.plan.axes[-1]
        begin, stop = self.plan.step_cells(job.begin)[0], self.plan.step_cells(job.stop - 1)[1]
        touched = axis.touching(begin, stop)
        # a strip may read on to the end of a storage tile
        end = axis.origins[touched[-1]] + axis.kernel_size
        spans = [*self.lead(job.band), (axis.origins[touched[0]], -(-end // self.tile) * self.tile)]
        return Region.between(*zip(*spans, strict=True)).clip(view.spatial_shape)

    def steps(
        self, model: WindowModel, view: ImageView, job: SweepJob
    ) -> Iterator[tuple[int, Array | None]]:
        """Compute the steps of one sweep, in order: which, and its values ([k,] *cells).

        These lie in memory that is used again; None where no cell is wanted.
        """
        sweep = _Sweep(self, model, view, job)
        step = job.begin
        try:
            for step in range(job.begin, job.stop):
                yield step, sweep.step(step)
                sweep.move()
        except Exception as error:
            where = [*self.plan.band_cells(job.band), self.plan.step_cells(step)]
            spans = ", ".join(f"{a}:{b}" for a, b in where)
            error.add_note(f"in cells [{spans}] of the result (band {job.band}, step {step})")
            raise

    def place(self, band: Index, step: int) -> tuple[slice, ...]:
        """Where the values of a step lie in the result."""
        lead = (slice(None),) if self.finish.outputs else ()
        spans = [*self.plan.band_cells(band), self.plan.step_cells(step)]
        return (*lead, *(slice(a, b) for a, b in spans))


class _Sweep:
    """State of one job: pixels and partial sums."""

    def __init__(self, task: Sweeper, model: WindowModel, view: ImageView, job: SweepJob) -> None:
        self.task, self.model, self.job = task, model, job
        plan = self.plan = task.plan
        self.lead = plan.band_cells(job.band)
        self.rows = plan.band_windows(job.band)
        self.strip = Strip(view, task.lead(job.band), task.tile)
        self.sums = np.zeros(task.sums(job.band), np.float32)
        if task.blend is not None:
            self.scratch = np.empty((len(self.sums), *task.blend.weights.shape), np.float32)
        self._scale: tuple[Any, Array] | None = None

    def step(self, step: int) -> Array | None:
        """Compute what begins in this step, and end it."""
        wanted = self._inside(step)
        for group in self.plan.groups_for(step, begin=self.job.begin):
            for batch in self._batches(group):
                self._compute(group, batch, step)
        return self._finished(step, wanted) if wanted is None or wanted.any() else None

    def move(self) -> None:
        """Go on to the next step."""
        width = self.plan.chunk[-1]
        self.sums[..., : self.plan.reach] = self.sums[..., width:]
        self.sums[..., self.plan.reach :] = 0

    def _inside(self, step: int) -> Array | None:
        if self.job.mask is None:
            return None
        return self.job.mask.at([*self.lead, self.plan.step_cells(step)])

    def _batches(self, group: Group) -> Iterator[list[Index]]:
        """Windows of a group that are computed, a few at a time, in a fixed order."""
        keep, first = self.job.keep, self.job.first
        origin = (*(r.start for r in self.rows), first)
        windows: Iterable[Index] = itertools.product(*self.rows, group.windows)
        if keep is not None:
            windows = (
                w for w in windows if keep[tuple(i - o for i, o in zip(w, origin, strict=True))]
            )
        waiting = iter(windows)
        while batch := list(itertools.islice(waiting, self.task.batch_size)):
            yield batch

    def _compute(self, group: Group, batch: list[Index], step: int) -> None:
        axes = self.plan.axes
        last = axes[-1]
        begin = last.origins[group.windows[0]]
        pixels = self.strip.columns(begin, last.origins[group.windows[-1]] + last.kernel_size)
        corner = [a for a, _ in self.strip.lead] + [begin]
        views = []
        for window in batch:
            at = [axis.origins[i] - o for axis, i, o in zip(axes, window, corner, strict=True)]
            views.append(
                pixels[tuple(slice(a, a + x.kernel_size) for a, x in zip(at, axes, strict=True))]
            )
        width = self.plan.chunk[-1]
        spans = [*self.lead, (step * width, step * width + self.sums.shape[-1])]

        def where(i: int) -> str:
            return window_name(
                batch[i], (x.origins[n] for x, n in zip(axes, batch[i], strict=True))
            )

        maps = self.model.maps(views, self.task.layout, where)
        for window, values in zip(batch, maps, strict=True):
            places = [
                axis.spans(range(i, i + 1), *span)[0]
                for axis, i, span in zip(axes, window, spans, strict=True)
            ]
            self._add(values, places)

    def _add(self, values: Array, places: Sequence[tuple[int, int, int]]) -> None:
        """Add one map, (k, *cells), where it lies."""
        own = tuple(slice(o, o + b - a) for a, b, o in places)
        target = self.sums[(slice(None), *(slice(a, b) for a, b, _ in places))]
        blend = self.task.blend
        if blend is None:
            target[...] = values[(slice(None), *own)]
            return
        size = tuple(slice(0, s.stop - s.start) for s in own)
        part = self.scratch[(slice(None), *size)]
        np.multiply(values[(slice(None), *own)], blend.weights[own], out=part)
        target += part

    def _finished(self, step: int, inside: Array | None) -> Array:
        begin, stop = self.plan.step_cells(step)
        values = self.sums[..., : stop - begin]
        if self.task.blend is not None:
            values *= self._scaling(step)  # these sums are of no more use
        return self.task.finish(values, inside)

    def _scaling(self, step: int) -> Array:
        """One over the sum of the weights; steps whose windows lie alike share it."""
        blend = self.task.blend
        assert blend is not None
        boxes = [*self.lead, self.plan.step_cells(step)]
        spans = [
            axis.spans(axis.touching(*box), *box)
            for axis, box in zip(self.plan.axes, boxes, strict=True)
        ]
        shape = [b - a for a, b in boxes]
        if self._scale is None or self._scale[0] != (spans[-1], shape[-1]):
            total = blend.total(spans, shape)
            self._scale = (spans[-1], shape[-1]), np.reciprocal(total, out=total)
        return self._scale[1]
