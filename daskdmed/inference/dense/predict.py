"""`predict`: a value per pixel (or per few pixels) of a whole image, written to Zarr.

Puts together windows, weights, the model, the store and whoever computes; each of these has
its module. Not covered: one value per window (`daskdmed.inference.heatmap`), whole datasets
(`daskdmed.inference.infer`).
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
from numpy.typing import ArrayLike

from daskdmed.core.errors import DaskdmedError, StoreError, UsageError
from daskdmed.core.fingerprint import fingerprint
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import Array, OnTileError, PathLike
from daskdmed.core.view import ImageView
from daskdmed.inference.dense.arrange import Mosaic, WindowChoice
from daskdmed.inference.dense.blend import BlendMode
from daskdmed.inference.dense.cellmask import CellMask
from daskdmed.inference.dense.finish import Finish, Post
from daskdmed.inference.dense.sweep import SweepTask
from daskdmed.inference.dense.sweepjobs import (
    SweepJob,
    last_axis_overhead,
    make_sweeps,
    steps_per_job,
)
from daskdmed.inference.inputs import as_location, as_view
from daskdmed.inference.models.window import Model, Transform, WindowModel
from daskdmed.inference.run import run_in_threads, worker_threads
from daskdmed.store.location import Location
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.resumable import ResultSpec, ResultStore, lazy_result, open_result
from daskdmed.tiling.grid import OverlapLike, PerAxis, spatial_axes

if TYPE_CHECKING:
    from distributed import Client
    from zarr.abc.store import Store

    from daskdmed.cohort.record import Record
    from daskdmed.images.slide import Slide

logger = logging.getLogger("daskdmed.inference")
#: pixels of a batch of windows; a quarter of it on the CPU
_BATCH_PIXELS = 2**20
#: cells per axis of a chunk of the returned Dask array


def predict(
    image: Slide | Record | ImageView | PathLike | da.Array | Array,
    model: Model,
    *,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    overlap: OverlapLike | None = None,
    level: int = 0,
    mpp: float | tuple[float, float] | None = None,
    power: float | None = None,
    out: PathLike | Store | None = None,
    mask: ArrayLike | None = None,
    blend: BlendMode = "gaussian",
    sigma_scale: float | Sequence[float] = 0.125,
    batch_size: int | None = None,
    post: Post = None,
    fill: float | None = None,
    receptive_field: PerAxis | None = None,
    output_stride: PerAxis | None = None,
    resume: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    chunks: PerAxis | None = None,
    batch_tfms: Transform | None = None,
    device: Any = None,
    autocast: Any = None,
    channels_last: bool = False,
    tile_error: OnTileError = "raise",
    progress: bool = False,
) -> da.Array:
    """Dense prediction: run a model that gives a map per window, and blend the maps.

    Equal to MONAI's ``sliding_window_inference`` with the same model and settings, but the
    image and the result are streamed: bands of the result are swept from left to right, and
    each of its chunks is written once, when all windows over it are in. Memory does not grow
    with the image. A window is computed once within its band; windows over the edge between
    two bands are computed for both (bands are as high as 96 MiB of partial sums allow). The
    log and the parameters kept in the store say how many windows were needed and computed.

    Parameters
    ----------
    image : Slide, Record, path, URL, view, dask.array.Array or numpy.ndarray
        As for `heatmap`: spatial axes first, at most one channel axis behind them.
    model : torch.nn.Module, callable, path or exported program
        A module (or TorchScript archive, or exported program, by path) gets float32
        (n, c, *kernel), uint8 and uint16 in [0, 1] and others as they are (the scale of
        `daskdmed.transforms.ToFloat`), or what `batch_tfms` makes of it, and gives
        (n, k, *cells) or (n, *cells). Any other callable gets (n, *kernel[, c]) in the dtype
        of the image and gives (n, *cells), (n, *cells, k) or (n, k, *cells). ``cells`` is the
        kernel divided by a whole number r per axis, 1 for a value per pixel; it and k are learnt
        from a window of background. NaN or infinite values are refused. Windows over the
        border see the background of the image. In-process the model may be called from
        several threads at once.
    kernel_size : int or sequence of int
        Extent of a window in pixels at the chosen resolution, array order. An image that is
        smaller is padded with background on both sides.
    stride : int or sequence of int, optional
        Distance between windows, at most `kernel_size` and a multiple of r. The last window
        of an axis is moved inside.
    overlap : int, float or sequence, optional
        Instead of `stride`: int = pixels, float in [0, 1) = fraction of the kernel; default
        0.25. The stride is ``max(int(kernel * (1 - overlap)), 1)``, as MONAI has it, in whole
        cells.
    level, mpp, power
        The resolution, at most one of them.
    out : path, URL or zarr store, optional
        Where to write. Default: in memory.
    mask : array-like or TissueMask, optional
        Over the whole image at any resolution, true (above 0) where a prediction is wanted.
        A cell is inside where the mask under its middle is true. Cells inside have exactly
        the value they have without a mask; windows without any are neither read nor computed.
    blend : {"gaussian", "constant", "hann"}
        Weights of overlapping windows, see `daskdmed.inference.dense.blend`.
    sigma_scale : float or sequence of float
        Standard deviation of the Gaussian as a fraction of the kernel.
    batch_size : int, optional
        Windows per call of the model, at most. Default: as many as have 2^18 pixels together
        (one of 512 x 512) for a module on the CPU, where more cost memory and gain no time,
        2^20 pixels elsewhere; at least one.
    post : optional
        What is written of the blended values. None: float32. "argmax": the channel with the
        largest value, uint8, without a channel axis. "threshold" or ("threshold", t): uint8,
        1 where the value is at least t (0.5). "uint8", "uint16": values in [0, 1] (others
        are clipped) times 255 or 65535, rounded. "float16".
    fill : float, optional
        Value of cells outside the mask. Default: NaN for floating point, 0 for integers.
    receptive_field, output_stride : int or sequence of int, optional
        Both or none. The exact dense mode for fully convolutional models, see
        `daskdmed.inference.dense.convolutional`: the model is run over pieces of up to
        `kernel_size` pixels, and no window is blended (`stride`, `overlap`, `blend` do not
        apply). A declaration that does not hold on a patch of noise is refused.
        `output_stride` is the product of all strides within the network.
    resume : bool
        Go on with what an interrupted run left in `out`; parameters and model must be the
        same, the result is that of an uninterrupted run.
    overwrite : bool
        Replace a result in `out`, which stays there until the new one is finished.
    client : distributed.Client, optional
        Compute on a cluster. Default: threads of this process.
    chunks : int or sequence of int, optional
        Cells per chunk of the result. Default: about 768 x 768, or 96^3.
    batch_tfms, device, autocast, channels_last, tile_error, progress
        As for `heatmap`.

    Returns
    -------
    dask.array.Array
        Lazy, of the Zarr array written: (*cells) for one value, (k, *cells) for k, with
        ``ceil(size / r)`` cells along each axis of the image. Valid networks in dense mode:
        as many as `heatmap` has windows.

    Raises
    ------
    UsageError
        A model that gives no such map, or a declaration that does not hold.
    GeometryError, ResolutionError
        Arguments that do not fit each other or the image.
    BudgetError
        A batch of windows would take more than 8 GiB.
    StoreError
        As for `heatmap`.
    ImageError
        The image, or one of its tiles, cannot be read.

    Examples
    --------
    >>> labels = daskdmed.predict(  # doctest: +SKIP
    ...     slide, unet, kernel_size=512, overlap=0.25, post="argmax", out="labels.zarr"
    ... )
    """
    if batch_size is not None and (int(batch_size) != batch_size or batch_size < 1):
        raise UsageError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
    resolution = Resolution.of(level, mpp, power)
    ndim = spatial_axes(kernel_size)
    view = as_view(image, ndim, resolution, tile_error)
    windows = WindowChoice.of(view, kernel_size, stride, overlap, receptive_field, output_stride)
    windows.check_bytes(batch_size or 1)
    location = as_location(out, client)
    adapted = WindowModel(model, batch_tfms, device, autocast, channels_last)
    threads = worker_threads() if client is None else 1
    with adapted.ready(threads):
        ready = adapted.place() if client is None else adapted
        mosaic = windows.try_model(ready, blend, sigma_scale, chunks)
    finish = Finish.of(post, mosaic.layout.outputs, fill)
    cells = None if mask is None else CellMask(mask, mosaic.plan.axes, view.downsample)
    spec = _spec(view, windows, mosaic, finish, resolution, adapted, cells)
    store, place = open_result(location, spec, resume=resume, overwrite=overwrite)
    size = batch_size or _windows_per_call(ready, mosaic)
    task = SweepTask(view, mosaic.plan, mosaic.blend, finish, store.array, mosaic.layout, size)
    work = _Work(task, cells, store, location, progress)
    work.compute(ready, client)
    if place != location:
        location.replace(place)
    return lazy_result(location, spec)


@dataclass(frozen=True)
class _Work:
    """The chunks of one call that are not done yet."""

    task: SweepTask
    mask: CellMask | None
    store: ResultStore
    location: Location
    progress: bool

    def compute(self, model: WindowModel, client: Client | None) -> None:
        """Compute them all, and record what is done whatever happens."""
        store, plan = self.store, self.task.plan
        if client is None:
            workers = sweeps_at_once(model, worker_threads())
        else:
            workers = 2 * max(sum(client.nthreads().values()), 1)
        longest = steps_per_job(plan, workers)
        parallel = min(workers, math.prod(plan.bands) * -(-plan.steps // longest))
        jobs = list(make_sweeps(plan, list(store.pending()), self.mask, longest, store.mark))
        logger.info(
            "%s: %d of %d chunks to compute in %d sweeps; %d windows needed, %d computed (x%.3f)",
            self.location,
            store.total - store.finished,
            store.total,
            len(jobs),
            plan.needed,
            round(plan.computed * last_axis_overhead(plan, longest)),
            plan.recomputed * last_axis_overhead(plan, longest),
        )
        try:
            with _bar(store, self.progress) as mark:
                if client is None:
                    with model.ready(parallel):
                        self._in_threads(model, jobs, mark, parallel)
                else:
                    self._on_cluster(model, jobs, mark, client)
        except DaskdmedError as error:
            error.add_note(self._state())
            raise
        except Exception as error:
            notes = "; ".join(getattr(error, "__notes__", ()))
            raise StoreError(
                f"prediction of {store.spec.image} stopped: {type(error).__name__}: {error} "
                f"({notes}). {self._state()}"
            ) from error
        finally:
            store.flush()

    def _in_threads(
        self, model: WindowModel, jobs: list[SweepJob], mark: _Mark, threads: int
    ) -> None:
        lock = threading.Lock()

        def call(job: SweepJob) -> tuple[int, ...]:
            def wrote(step: int) -> None:
                with lock:
                    self._mark(job.band, step, mark)

            return self.task(model, job, wrote)

        run: Any = run_in_threads  # sweeps have an index, which is all that it asks of jobs
        run(jobs, call, lambda index: None, threads)

    def _on_cluster(
        self, model: WindowModel, jobs: list[SweepJob], mark: _Mark, client: Client
    ) -> None:
        from daskdmed.inference.cluster import run_on_cluster

        by_index = {job.index: job for job in jobs}

        def done(index: tuple[int, ...]) -> None:
            job = by_index[tuple(index)]
            for step in range(job.begin, job.stop):
                self._mark(job.band, step, mark)

        run: Any = run_on_cluster
        with model.ready(1):
            run(client, jobs, self.task, model, done)

    def _mark(self, band: tuple[int, ...], step: int, mark: _Mark) -> None:
        for chunk in self.task.plan.band_chunks(band, step):
            mark(chunk)

    def _state(self) -> str:
        store = self.store
        kept = f"{store.finished} of {store.total} chunks are done"
        if self.location.in_memory:
            return f"{kept}; give out= to keep them when a run stops"
        return f"{kept} and kept in {self.location}; call again with resume=True to go on"


_Mark = Callable[[tuple[int, ...]], None]


def _windows_per_call(model: WindowModel, mosaic: Mosaic) -> int:
    on_cpu = model.is_torch and model.device_type == "cpu"
    return max((_BATCH_PIXELS // (4 if on_cpu else 1)) // math.prod(mosaic.plan.kernel_size), 1)


def sweeps_at_once(model: WindowModel, threads: int) -> int:
    """How many sweeps this process runs side by side.

    A module on the CPU uses all threads by itself, and its activations are the largest part
    of the memory: one sweep. On another device two, so that one reads and blends while the
    model runs for the other. Other callables run in as many threads as there are.
    """
    if not model.is_torch:
        return threads
    return 1 if model.device_type == "cpu" else min(2, threads)


@contextmanager
def _bar(store: ResultStore, show: bool) -> Iterator[_Mark]:
    if not show:
        yield store.mark
        return
    from tqdm.auto import tqdm

    with tqdm(total=store.total, initial=store.finished, unit="chunk", desc="predict") as bar:

        def done(index: tuple[int, ...]) -> None:
            store.mark(index)
            bar.update()

        yield done


def _spec(
    view: ImageView,
    windows: WindowChoice,
    mosaic: Mosaic,
    finish: Finish,
    resolution: Resolution,
    model: WindowModel,
    mask: CellMask | None,
) -> ResultSpec:
    """Everything that the values depend on goes into the parameters; `batch_size` does not."""
    plan, blend = mosaic.plan, mosaic.blend
    place = Georeference.of(view, *mosaic.place)
    parameters = {
        "image": view.token,
        "shape": view.shape,
        "resolution": str(resolution),
        "kernel_size": plan.kernel_size,
        "stride": windows.stride,
        "blend": None if blend is None else [blend.mode, *blend.sigma_scale],
        "receptive_field": windows.receptive_field,
        "output_stride": windows.output_stride,
        "model": model.fingerprint,
        "autocast": str(model.autocast or None),
        "mask": None if mask is None else fingerprint(mask.inside),
        "post": [finish.kind, finish.least, str(finish.fill)],
        "outputs": mosaic.layout.outputs,
        "pixels_per_cell": mosaic.place[1],
        "chunk": plan.chunk,
        "chunks_per_band": plan.rows,
        "windows_needed": plan.needed,
        "windows_computed": plan.computed,
    }
    return ResultSpec(
        kind="predict",
        counts=plan.cells,
        outputs=finish.outputs,
        block_windows=plan.chunk,
        georeference=place,
        image=view.name,
        parameters=parameters,
        dtype=finish.dtype,
        fill_value=finish.fill,
    )


__all__ = ["predict"]
