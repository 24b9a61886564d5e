"""The sweeps that a run consists of: which steps of which bands, for how many workers.

Pure. A band is swept in one go where there are enough bands for all workers; else it is cut
into several sweeps, each of which first computes again what windows of the steps before
give to it.

Not covered: what happens in a sweep (`daskdmed.inference.dense.sweep`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from daskdmed.core.types import Array
from daskdmed.inference.dense.cellmask import CellMask, CellWindow
from daskdmed.inference.dense.mosaic import MosaicPlan

Index = tuple[int, ...]
#: a band is cut for more workers while its windows are computed at most so often
_SPLIT_OVERHEAD = 1.1


@dataclass(frozen=True)
class SweepJob:
    """Consecutive steps of one band."""

    index: Index  # band and first step, which name the job
    band: Index  # which band
    begin: int
    stop: int
    #: which windows of the band are computed: one axis per spatial axis, the last one over the
    #: windows from `first`. None for all
    keep: Array | None = None
    first: int = 0  # first window along the last axis that `keep` is about
    mask: CellWindow | None = None  # which cells are wanted


def make_sweeps(
    plan: MosaicPlan,
    pending: Iterable[Index],
    mask: CellMask | None,
    longest: int,
    skip: Callable[[Index], None],
) -> Iterator[SweepJob]:
    """Jobs of at most `longest` steps for all chunks that are pending.

    `skip` is told each pending chunk of which no cell is wanted.
    """
    steps: dict[Index, set[int]] = {}
    for chunk in pending:
        if mask is not None and not mask.any([[s] for s in _chunk_cells(plan, chunk)]).item():
            skip(chunk)
            continue
        band = tuple(i // r for i, r in zip(chunk[:-1], plan.rows, strict=True))
        steps.setdefault(band, set()).add(chunk[-1])
    for band, wanted in steps.items():
        for begin, stop in step_runs(sorted(wanted), longest):
            yield _job(plan, band, begin, stop, mask)


def _chunk_cells(plan: MosaicPlan, chunk: Index) -> list[tuple[int, int]]:
    return [
        (i * c, min((i + 1) * c, axis.cells))
        for i, c, axis in zip(chunk, plan.chunk, plan.axes, strict=True)
    ]


def step_runs(steps: Iterable[int], longest: int) -> Iterator[tuple[int, int]]:
    """Consecutive steps, cut into nearly equal parts of at most `longest`."""
    for _, members in itertools.groupby(enumerate(steps), lambda pair: pair[1] - pair[0]):
        run = [step for _, step in members]
        parts = -(-len(run) // longest)
        cuts = [len(run) * i // parts for i in range(parts + 1)]
        yield from ((run[a], run[b - 1] + 1) for a, b in itertools.pairwise(cuts))


def _job(plan: MosaicPlan, band: Index, begin: int, stop: int, mask: CellMask | None) -> SweepJob:
    index = (*band, begin)
    if mask is None:
        return SweepJob(index, band, begin, stop)
    last = plan.axes[-1]
    span = (plan.step_cells(begin)[0], plan.step_cells(stop - 1)[1])
    # batches hold whole groups, so that groups are asked for as a whole
    groups = [g.windows for s in range(begin, stop) for g in plan.groups_for(s, begin=begin)]
    columns = range(min(w.start for w in groups), max(w.stop for w in groups))
    windows = (*plan.band_windows(band), columns)
    # cut to the band, not to the steps: what is computed must not depend on these
    limits = [*plan.band_cells(band), (0, last.cells)]
    spans = [
        [(max(axis.starts[i], a), min(axis.stops[i], b)) for i in w]
        for axis, w, (a, b) in zip(plan.axes, windows, limits, strict=True)
    ]
    cells = mask.crop([*plan.band_cells(band), span])
    return SweepJob(index, band, begin, stop, mask.any(spans), columns.start, cells)


def last_axis_overhead(plan: MosaicPlan, longest: int) -> float:
    """Windows computed along the last axis over those needed, when jobs have `longest` steps."""
    count = 0
    for begin, stop in step_runs(range(plan.steps), longest):
        for step in range(begin, stop):
            count += sum(len(g.windows) for g in plan.groups_for(step, begin=begin))
    return count / len(plan.axes[-1])


def steps_per_job(plan: MosaicPlan, workers: int, overhead: float = _SPLIT_OVERHEAD) -> int:
    """Steps per sweep, so that there is work for all without computing much twice.

    Sweeps that begin within a band compute again what the windows of the step before give to
    them; windows are computed `overhead` times at most for this, a tenth more by default.
    """
    longest = plan.steps
    while longest > 1:
        shorter = -(-plan.steps // (-(-plan.steps // longest) + 1))
        shorter = min(shorter, longest - 1)
        busy = math.prod(plan.bands) * -(-plan.steps // longest)
        if busy >= workers or last_axis_overhead(plan, shorter) > overhead:
            break
        longest = shorter
    return longest
