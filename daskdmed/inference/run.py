"""Computing the blocks of a result: in threads of this process, or on a cluster.

One task per block: read its pixels, run the model, write one chunk. Tasks give back only
their index, so that neither side holds results, and a bounded number is in flight. Nothing
here knows what the values mean.

Not covered: how a model reaches the workers (`daskdmed.inference.cluster`), what is recorded
as done (`daskdmed.store.results.resumable`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import dask
import numpy as np

from daskdmed.core.files import write_failure
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.inference.models.values import Layout
from daskdmed.inference.models.window import WindowModel
from daskdmed.store.results import inline
from daskdmed.tiling.extract import Windows, read_block
from daskdmed.tiling.grid import WindowBlock, WindowGrid
from daskdmed.tiling.strips import Strip, batches, read_strips

Index = tuple[int, ...]
J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class BlockJob:
    """One output block.

    Parameters
    ----------
    index : tuple of int
        Of the block.
    block : WindowBlock
        All its windows; they make one chunk of the result.
    keep : ndarray of bool, optional
        Windows that are computed; None for all.
    """

    index: Index
    block: WindowBlock
    keep: Array | None = None


@dataclass(frozen=True)
class BlockTask:
    """What is done with every block. A picklable value without handles.

    Parameters
    ----------
    view : ImageView
        The image.
    grid : WindowGrid
        The windows.
    target : zarr.Array
        Float32, (rows, columns) or (k, rows, columns); one block is one chunk.
    batch_size : int
        Windows per call of the model.
    outputs : int
        k, or 0 for one plain value per window.
    cells : tuple of int
        Extent of the map that each window gives, which `target` has in the place of one
        cell; empty for plain values.
    """

    view: ImageView
    grid: WindowGrid
    target: Any
    batch_size: int
    outputs: int
    cells: tuple[int, ...] = ()

    def for_block(self, job: BlockJob) -> BlockTask:
        """The same task, its view cut down to what the block needs (cheap to send)."""
        return replace(self, view=self.view.narrowed(job.block.region))

    def without_pixels(self, job: BlockJob) -> BlockTask:
        """The same task for `finish`, which only asks the view for its shape and dtype."""
        return replace(self, view=self.view.detached(job.block.region))

    def __call__(self, model: WindowModel, job: BlockJob) -> Index:
        """Compute and write one block.

        Returns
        -------
        tuple of int
            Its index.

        Raises
        ------
        StoreError
            It cannot be written (disk full...).
        """
        with _context(job):
            self._write(job, self.compute(model, job))
        return job.index

    def read(self, job: BlockJob) -> Array:
        """The pixels that a block needs, to be computed by `finish` elsewhere."""
        with _context(job):
            return read_block(self.view, self._needed(job)[0])

    def finish(self, model: WindowModel, job: BlockJob, pixels: Array) -> Index:
        """Compute and write one block from the pixels that `read` gave."""
        with _context(job):
            inner, _, keep = self._needed(job)
            windows = Windows(pixels, inner, self.grid, keep)
            self._write(job, self._values(model, job, [Strip(0, windows)]))
        return job.index

    def compute(self, model: WindowModel, job: BlockJob) -> Array:
        """Values of one block, NaN where windows are not kept, channel first."""
        inner, _, keep = self._needed(job)
        return self._values(model, job, read_strips(self.view, inner, self.grid, keep))

    def _values(self, model: WindowModel, job: BlockJob, strips: Iterable[Strip]) -> Array:
        width, shape = max(self.outputs, 1), job.block.shape
        result = np.full((job.block.count, width, *self.cells), np.nan, np.float32)
        inner, offset, keep = self._needed(job)
        total = inner.count if keep is None else int(np.count_nonzero(keep))
        expected = Layout(self.outputs, self.cells)
        for where, values in self._stream(model, strips, total):
            places = np.unravel_index(where, inner.shape)
            shifted = tuple(p + o for p, o in zip(places, offset, strict=True))
            flat = np.ravel_multi_index(shifted, shape)
            if values.shape[1:] != expected.shape:
                found = Layout.of(values, self.grid.ndim)
                raise ValueError(f"the model gave {found}, where its first output had {expected}")
            result[flat] = values.reshape(len(values), *result.shape[1:])
        result = np.moveaxis(result.reshape(*shape, width, *self.cells), self.grid.ndim, 0)
        if self.cells:
            # (k, rows, columns, h, w) -> (k, rows, h, columns, w)
            ndim = self.grid.ndim
            order = [a for axis in range(ndim) for a in (1 + axis, 1 + ndim + axis)]
            result = result.transpose(0, *order).reshape(width, *self._extent(job))
        return result if self.outputs else result[0]

    def _stream(
        self, model: WindowModel, strips: Iterable[Strip], total: int
    ) -> Iterator[tuple[Array, Array]]:
        """Values of the `total` windows of some strips: (flat positions, values)."""
        form = model.form(self.grid.kernel_size, self.view)

        def size() -> int:
            return model.limit.of(self.batch_size)

        for where, batch in batches(
            strips,
            total,
            self.grid,
            size,
            form.allocate,
            form.convert,
            in_place=not model.is_torch,
        ):
            values = model.values(batch, self.grid.ndim)
            del batch  # so that its memory can be used for the next
            yield where, values

    def _extent(self, job: BlockJob) -> tuple[int, ...]:
        return tuple(n * c for n, c in zip(job.block.shape, self.cells, strict=True))

    def _write(self, job: BlockJob, values: Array) -> None:
        cells = self.cells or (1,) * self.grid.ndim
        places = tuple(
            slice(s.start * c, s.stop * c) for s, c in zip(job.block.slices, cells, strict=True)
        )
        lead = (slice(None),) if self.outputs else ()
        try:
            inline.write(self.target, (*lead, *places), values)
        except OSError as error:
            raise write_failure(f"the chunk of block {job.index}", error) from error

    def _needed(self, job: BlockJob) -> tuple[WindowBlock, Index, Array | None]:
        """The smallest block around the kept windows, so that no more pixels are read."""
        if job.keep is None or job.keep.all():
            return job.block, (0,) * self.grid.ndim, None
        occupied = np.nonzero(job.keep)
        first = tuple(int(p.min()) for p in occupied)
        stop = tuple(int(p.max()) + 1 for p in occupied)
        start = [a + f for a, f in zip(job.block.start, first, strict=True)]
        inner = self.grid.box(start, [b - a for a, b in zip(first, stop, strict=True)])
        keep = job.keep[tuple(slice(a, b) for a, b in zip(first, stop, strict=True))]
        return inner, first, keep


@contextlib.contextmanager
def _context(job: BlockJob) -> Iterator[None]:
    """Say in which block an error happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in windows {_where(job.block)} (block {job.index})")
        raise


def _where(block: WindowBlock) -> str:
    first, stop = block.region.origin, block.region.stop
    spans = ", ".join(f"{a}:{b}" for a, b in zip(first, stop, strict=True))
    return f"{block.start} to {tuple(s.stop - 1 for s in block.slices)}, pixels [{spans}]"


def make_jobs(
    grid: WindowGrid, block_windows: Index, pending: Iterable[Index], keep: Array | None
) -> Iterator[BlockJob]:
    """A job for each pending block; one without any kept window has an all-False `keep`."""
    for index in pending:
        block = grid.block(index, block_windows)
        part = None if keep is None else keep[block.slices]
        yield BlockJob(index, block, part)


def worker_threads() -> int:
    """Threads for work in this process: ``dask.config`` "num_workers", else the CPUs."""
    from dask.system import CPU_COUNT

    return max(int(dask.config.get("num_workers", None) or CPU_COUNT), 1)


def run_in_threads(
    jobs: Iterable[J],
    call: Callable[[J], R],
    done: Callable[[R], None],
    threads: int,
) -> None:
    """Run jobs in threads of this process.

    Parameters
    ----------
    jobs : iterable
        Consumed as threads become free.
    call : callable
        Computes and writes one block.
    done : callable
        Told what `call` returned for every block that was written, in the calling thread.
    threads : int
        How many.

    Raises
    ------
    Exception
        The first error of a job, after the jobs already running have ended.
    """
    waiting = iter(jobs)
    running: set[concurrent.futures.Future[R]] = set()
    failure: BaseException | None = None
    with concurrent.futures.ThreadPoolExecutor(threads, "daskdmed-windows") as pool:
        try:
            while True:
                while failure is None and len(running) < threads + 1:
                    job = next(waiting, None)
                    if job is None:
                        break
                    running.add(pool.submit(call, job))
                if not running:
                    break
                ended, running = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    error = future.exception()
                    if error is None:
                        done(future.result())
                    else:
                        failure = failure or error
                        running = {f for f in running if not f.cancel()}
        except BaseException:
            for future in running:
                future.cancel()
            raise
    if failure is not None:
        raise failure
