"""Computing the blocks of a result: in threads of this process, or on a cluster.

One task per block: read its pixels, run the model, write one chunk. Tasks give back only
their index, so that neither side holds results, and a bounded number is in flight. Nothing
here knows what the values mean.

Not covered: how a model reaches the workers (`daskdmed.windows.cluster`), what is recorded
as done (`daskdmed.store.manifest`).
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np

from daskdmed.types import Array, ImageView
from daskdmed.windows.extract import Windows, read_block
from daskdmed.windows.grid import WindowBlock, WindowGrid
from daskdmed.windows.models import WindowModel

Index = tuple[int, ...]


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
    """

    view: ImageView
    grid: WindowGrid
    target: Any
    batch_size: int
    outputs: int

    def for_block(self, job: BlockJob) -> BlockTask:
        """The same task, its view cut down to what the block needs (cheap to send)."""
        restrict = getattr(self.view, "restrict", None)
        if restrict is None:
            return self
        view = restrict(job.block.region)
        return BlockTask(view, self.grid, self.target, self.batch_size, self.outputs)

    def __call__(self, model: WindowModel, job: BlockJob) -> Index:
        """Compute and write one block.

        Returns
        -------
        tuple of int
            Its index.
        """
        try:
            values = self.compute(model, job)
            lead = (slice(None),) if self.outputs else ()
            self.target[(*lead, *job.block.slices)] = values
        except Exception as error:
            error.add_note(f"in windows {_where(job.block)} (block {job.index})")
            raise
        return job.index

    def compute(self, model: WindowModel, job: BlockJob) -> Array:
        """Values of one block, NaN where windows are not kept, channel first."""
        width = max(self.outputs, 1)
        result = np.full((job.block.count, width), np.nan, np.float32)
        inner, offset, keep = self._needed(job)
        windows = Windows(read_block(self.view, inner), inner, self.grid, keep)
        for where, values in model.outputs(windows, self.batch_size):
            places = np.unravel_index(where, inner.shape)
            shifted = tuple(p + o for p, o in zip(places, offset, strict=True))
            flat = np.ravel_multi_index(shifted, job.block.shape)
            if values.shape[1:] != ((self.outputs,) if self.outputs else ()):
                raise ValueError(
                    f"the model gave values of shape {values.shape}, where its first output "
                    f"had {self.outputs or 'one plain'} value(s) per window"
                )
            result[flat] = values.reshape(len(values), width)
        result = result.reshape(*job.block.shape, width)
        return np.moveaxis(result, -1, 0) if self.outputs else result[..., 0]

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
    jobs: Iterable[BlockJob],
    call: Callable[[BlockJob], Index],
    done: Callable[[Index], None],
    threads: int,
) -> None:
    """Run jobs in threads of this process.

    Parameters
    ----------
    jobs : iterable of BlockJob
        Consumed as threads become free.
    call : callable
        Computes and writes one block.
    done : callable
        Told the index of every block that was written, in the calling thread.
    threads : int
        How many.

    Raises
    ------
    Exception
        The first error of a job, after the jobs already running have ended.
    """
    waiting = iter(jobs)
    running: set[concurrent.futures.Future[Index]] = set()
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
