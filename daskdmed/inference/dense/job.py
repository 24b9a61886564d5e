"""A dense prediction as Dask blocks: written chunk by chunk, or a lazy array.

A block is a sweep over some steps of a band. Both ways run the same sweeps, and values do
not depend on how the result is cut into them.

Not covered: what happens in a sweep (`daskdmed.inference.dense.sweep`), who computes
(`daskdmed.core.work`).
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from dask import delayed
from dask._task_spec import DataNode, Task, TaskRef, convert_legacy_graph
from dask.base import tokenize

from daskdmed.core.files import write_failure
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.core.work import Index, call_graph, threads_here
from daskdmed.inference.blocks import Part, image_parts
from daskdmed.inference.dense.cellmask import CellMask
from daskdmed.inference.dense.sweep import Sweeper
from daskdmed.inference.dense.sweepjobs import (
    SweepJob,
    last_axis_overhead,
    make_sweeps,
    step_runs,
    steps_per_job,
)
from daskdmed.inference.models.shipped import Shipped
from daskdmed.inference.resultjob import ResultJob
from daskdmed.store.location import Location
from daskdmed.store.results.resumable import ResultSpec

logger = logging.getLogger("daskdmed.inference")
#: blocks of a lazy result, where cutting bands for them costs little
_LAZY_BLOCKS = 16
#: how often windows may be computed for that
_LAZY_OVERHEAD = 1.25
#: bytes of a block of a lazy result, at most, unless one step has more
_LAZY_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Work:
    """Everything that the values of one image depend on. Picklable."""

    view: ImageView
    sweeper: Sweeper
    mask: CellMask | None  # which cells are wanted
    spec: ResultSpec


class PredictJob(ResultJob):
    """The chunks of one result that are not done yet."""

    unit = "chunks"

    def __init__(
        self,
        work: Work,
        model: Shipped,
        location: Location,
        *,
        resume: bool,
        overwrite: bool,
        workers: int,
        local: bool,
    ) -> None:
        super().__init__(location, work.spec, resume=resume, overwrite=overwrite)
        store, plan = self.store, work.sweeper.plan
        self._work, self._model, self._local = work, model, local
        self.block_bytes = work.sweeper.nbytes(work.view)
        self._lock = threading.Lock()
        longest = steps_per_job(plan, workers)
        self._parallel = min(workers, math.prod(plan.bands) * -(-plan.steps // longest))
        sweeps = make_sweeps(plan, list(store.pending()), work.mask, longest, store.mark)
        self._jobs = {job.index: job for job in sweeps}
        self.total, self.windows = len(self._jobs), plan.needed
        logger.info(
            "%s: %d of %d chunks to compute in %d sweeps; %d windows needed, %d computed (x%.3f)",
            location,
            store.total - store.finished,
            store.total,
            len(self._jobs),
            plan.needed,
            round(plan.computed * last_axis_overhead(plan, longest)),
            plan.recomputed * last_axis_overhead(plan, longest),
        )

    def graph(self) -> tuple[Mapping[Any, Any], Mapping[Any, Index]]:
        """A task per sweep."""
        work = self._work
        call = _Write(
            work.sweeper,
            self._model,
            self.store.array,
            self._parallel if self._local else None,
            self._wrote if self._local else None,
        )
        if self._local:
            return call_graph(self.name, call, {i: (work.view, j) for i, j in self._jobs.items()})
        regions = {i: work.sweeper.region(work.view, job) for i, job in self._jobs.items()}
        if work.view.remote is None or not regions:
            items = {i: (work.view.narrowed(regions[i]), job) for i, job in self._jobs.items()}
            return call_graph(self.name, call, items)
        # the cluster delivers the pixels that are persisted on it
        source = image_parts(work.view, regions, f"predict-image-{uuid.uuid4().hex}")
        graph, keys = call_graph(self.name, call, self._jobs)
        (shared,) = (key for key in graph if isinstance(key, str))
        for key, index in keys.items():
            part = TaskRef((source.name, *index))
            job = DataNode(None, self._jobs[index])
            graph[key] = Task(key, _write_part, TaskRef(shared), part, job)
        return {**graph, **convert_legacy_graph(dict(source.dask))}, keys

    def mark(self, index: Index, result: Any) -> None:
        """A sweep has written all its chunks."""
        job = self._jobs[tuple(index)]
        for step in range(job.begin, job.stop):
            self._wrote(job.band, step)
        self.finished += 1

    def _wrote(self, band: Index, step: int) -> None:
        with self._lock:
            for chunk in self._work.sweeper.plan.band_chunks(band, step):
                self.store.mark(chunk)

    def flush(self) -> None:
        """Record what is done."""
        with self._lock:
            super().flush()


@dataclass(frozen=True)
class _Write:
    """Computes and writes the chunks of one sweep."""

    sweeper: Sweeper
    model: Shipped
    target: Any  # ([k,] *cells)
    #: sweeps that this process runs side by side; None: as many as it runs tasks
    threads: int | None = None
    wrote: Callable[[Index, int], None] | None = None  # told band and step of what is written

    def __call__(self, item: tuple[ImageView, SweepJob]) -> None:
        view, job = item
        model = self.model.get()
        threads = threads_here() if self.threads is None else self.threads
        with model.ready(threads):
            for step, values in self.sweeper.steps(model, view, job):
                if values is not None:
                    self._write(job.band, step, values)
                if self.wrote is not None:
                    self.wrote(job.band, step)

    def _write(self, band: Index, step: int, values: Array) -> None:
        try:
            self.target[self.sweeper.place(band, step)] = values
        except OSError as error:
            raise write_failure(f"the chunks of step {step}", error) from error


def _write_part(call: _Write, part: Part, job: SweepJob) -> None:
    call((part.view, job))


def lazy(work: Work, model: Shipped) -> da.Array:
    """The result as a lazy array, one block per sweep, of which nothing is written.

    Bands are cut along the last axis, for about 16 blocks and for a bounded size of them;
    this depends on the geometry alone, so that the array has the same name everywhere.
    """
    plan, spec = work.sweeper.plan, work.spec
    longest = steps_per_job(plan, _LAZY_BLOCKS, _LAZY_OVERHEAD)
    rows = [c * r for c, r in zip(plan.chunk[:-1], plan.rows, strict=True)]
    step = max(spec.outputs, 1) * math.prod(rows) * plan.chunk[-1] * np.dtype(spec.dtype).itemsize
    longest = max(min(longest, _LAZY_BYTES // step), 1)
    runs = list(step_runs(range(plan.steps), longest))
    edges = [
        tuple(min(size, axis.cells - a) for a in range(0, axis.cells, size))
        for size, axis in zip(rows, plan.axes[:-1], strict=True)
    ]
    edges.append(tuple(plan.step_cells(b - 1)[1] - plan.step_cells(a)[0] for a, b in runs))
    outputs = ((spec.outputs,),) if spec.outputs else ()
    name = f"predict-{tokenize(spec, runs)}"
    sources: list[Any] = []
    if type(work.view).narrowed is not ImageView.narrowed:
        # what holds pixels, or a graph, is sent block by block
        counts = [len(edge) for edge in edges]
        regions = {}
        for index in itertools.product(*map(range, counts)):
            job = SweepJob(index, index[:-1], *runs[index[-1]])
            regions[(0,) * len(outputs) + index] = work.sweeper.region(work.view, job)
        sources = [image_parts(work.view, regions, f"predict-image-{name}")]
        everything = Region.of(work.view.spatial_shape)
        work = replace(work, view=work.view.detached(everything))
    # a key of its own each, so that they are kept and sent once
    shared = [
        delayed(value, name=f"predict-{kind}-{name}", traverse=False)
        for kind, value in (("work", work), ("model", model))
    ]
    return da.map_blocks(
        _block,
        *sources,
        work=shared[0],
        model=shared[1],
        runs=runs,
        chunks=(*outputs, *edges),
        dtype=spec.dtype,
        meta=np.empty((0,) * len(spec.shape), spec.dtype),
        name=name,
    )


def _block(
    part: Part | None = None, *, work: Work, model: Shipped, runs: list[Index], block_id: Index
) -> Array:
    """One block of `lazy`, of the whole image or of the part of it that was cut out."""
    view = work.view if part is None else part.view
    sweeper, spec, plan = work.sweeper, work.spec, work.sweeper.plan
    placed = model.get()
    outputs = (spec.outputs,) if spec.outputs else ()
    *band, run = block_id[len(outputs) :]
    begin, stop = runs[run]
    first, last = plan.step_cells(begin)[0], plan.step_cells(stop - 1)[1]
    extent = (*(b - a for a, b in plan.band_cells(band)), last - first)
    block = np.full((*outputs, *extent), spec.fill_value, spec.dtype)
    chunks = [chunk for step in range(begin, stop) for chunk in plan.band_chunks(band, step)]
    with placed.ready(threads_here()):
        for job in make_sweeps(plan, chunks, work.mask, stop - begin, lambda chunk: None):
            for step, values in sweeper.steps(placed, view, job):
                if values is not None:
                    a, b = plan.step_cells(step)
                    block[..., a - first : b - first] = values
    return block
