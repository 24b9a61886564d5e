"""`heatmap`: one value (or k) per window of a whole image, written to Zarr.

Puts together the grid, the blocks, the model, the store and whoever computes; each of these
has its module. Not covered: dense prediction with overlapping windows, and drawing
(`daskdmed.plot`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import ArrayLike

from daskdmed.errors import DaskdmedError, GeometryError, StoreError, UsageError
from daskdmed.store.location import Location
from daskdmed.store.manifest import LEVEL, ResultSpec, ResultStore, open_result
from daskdmed.store.ngff import Georeference
from daskdmed.types import Array, ImageView, OnError, PathLike, Resolution
from daskdmed.windows.fingerprint import fingerprint
from daskdmed.windows.grid import Edge, OverlapLike, PerAxis, WindowGrid, per_axis
from daskdmed.windows.mask import kept_windows
from daskdmed.windows.models import Model, Transform, WindowModel
from daskdmed.windows.plan import choose_block
from daskdmed.windows.run import BlockTask, make_jobs, run_in_threads, worker_threads

if TYPE_CHECKING:
    from distributed import Client
    from zarr.abc.store import Store

    from daskdmed.cohort.record import Record
    from daskdmed.images.slide import Slide

logger = logging.getLogger("daskdmed.windows")
#: cells per axis of a chunk of the returned Dask array
_RESULT_CHUNK = 2048


def heatmap(
    image: Slide | Record | ImageView | PathLike | da.Array | Array,
    model: Model,
    *,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    level: int = 0,
    mpp: float | tuple[float, float] | None = None,
    power: float | None = None,
    out: PathLike | Store | None = None,
    mask: ArrayLike | None = None,
    batch_size: int = 64,
    resume: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    overlap: OverlapLike | None = None,
    edge: Edge = "pad",
    batch_tfms: Transform | None = None,
    mask_fraction: float = 0.0,
    block_windows: PerAxis | None = None,
    device: Any = None,
    on_error: OnError = "raise",
    progress: bool = False,
) -> da.Array:
    """Run a model over every window of an image and write the values to Zarr.

    Blocks of windows are read, computed and written one by one, each as one chunk, so that
    memory does not grow with the image. The store is an OME-Zarr 0.5 image (float32) with
    scale and translation, so that it lies on its slide in viewers.

    Parameters
    ----------
    image : Slide, Record, path, URL, view, dask.array.Array or numpy.ndarray
        Arrays have their spatial axes first and at most one channel axis behind them; a
        `kernel_size` with one number per axis says how many are space, a single number
        means two.
    model : torch.nn.Module or callable
        A module gets what `batch_tfms` makes of a batch, by default float32
        (n, c, *kernel) in [0, 1] (uint8 / 255, uint16 / 65535, others as they are), in
        evaluation and inference mode. Any other callable gets the windows as an array,
        (n, *kernel, c) or (n, *kernel), in the dtype of the image. Both return an array or
        tensor (n,) or (n, k); (n, 1) counts as (n,). The number of values is learnt from two
        windows of background. In-process the model is called from several threads at once.
    kernel_size : int or sequence of int
        Extent of a window in pixels at the chosen resolution, array order (y, x).
    stride : int or sequence of int, optional
        Distance between windows, default the kernel size.
    level, mpp, power
        The resolution, at most one of them.
    out : path, URL or zarr store, optional
        Where to write. Default: in memory, for results that need not be kept.
    mask : array-like, optional
        Over the whole image at any resolution, bool or values in [0, 1]. Windows without
        any cover are not computed and stay NaN; blocks without any are not read.
    batch_size : int
        Windows per call of the model, at most. Callables get strided views of one row of
        windows where windows lie side by side, which may be fewer.
    resume : bool
        Go on with what an interrupted run left in `out`. The parameters and the model must
        be the same; the result is bit-identical to that of an uninterrupted run. With
        `overwrite`: go on with an interrupted replacement.
    overwrite : bool
        Replace a result in `out`, which stays there until the new one is finished.
    client : distributed.Client, optional
        Compute on a cluster. Default: threads of this process, as many as
        ``dask.config`` "num_workers" says or CPUs are there.
    overlap : int, float or sequence, optional
        Instead of `stride`: int = pixels, float in [0, 1) = fraction of the kernel.
    edge : {"pad", "shift", "drop"}
        Windows over the far border see the background, are moved inside, or are left out.
    batch_tfms : callable, optional
        For a module: gets the batch as a tensor (n, c, *kernel) in the dtype of the image,
        channels-last memory, on the module's device. For a callable: gets the array.
    mask_fraction : float
        Least covered share of a window to be computed.
    block_windows : int or sequence of int, optional
        Windows per block and chunk. Default: about 4096 pixels, on the storage tiles where
        the geometry allows, so that each tile is decoded once.
    device : str or torch.device, optional
        Where a module runs (as a copy when it has to move).
    on_error : {"raise", "fill"}
        What a storage tile that cannot be decoded becomes: an error, or background and a
        warning.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    dask.array.Array
        Float32, lazy, of the Zarr array written: (rows, columns) for one value per window,
        (k, rows, columns) for k; NaN where nothing was computed.

    Raises
    ------
    StoreError
        `out` holds something already, belongs to a run with other parameters, or cannot be
        written; or a block failed for a reason outside this library (the cause is chained).
        Blocks that are done stay and can be resumed.
    GeometryError, ResolutionError, UsageError
        Arguments that do not fit, or a model that returns no (n,) or (n, k) array.
    ImageError
        The image, or one of its tiles, cannot be read.

    Examples
    --------
    >>> slide = daskdmed.open_slide("slide.svs")  # doctest: +SKIP
    >>> brightness = daskdmed.heatmap(  # doctest: +SKIP
    ...     slide, lambda w: w.mean(axis=(1, 2, 3)), kernel_size=224, out="mean.zarr"
    ... )
    """
    if int(batch_size) != batch_size or batch_size < 1:
        raise UsageError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
    resolution = Resolution.of(level, mpp, power)
    ndim = 2 if isinstance(kernel_size, (int, float)) else len(tuple(kernel_size))
    view = as_view(image, ndim, resolution, on_error)
    grid = WindowGrid.of(
        view.shape[: view.spatial_ndim], kernel_size, stride=stride, overlap=overlap, edge=edge
    )
    if not len(grid):
        raise GeometryError(
            f"no window of {grid.kernel_size} pixels lies inside an image of {grid.shape}; "
            "edge='pad' or 'shift' keeps windows over the border, or use a finer level"
        )
    location = _location(out, client)
    keep = None if mask is None else kept_windows(mask, grid, mask_fraction)
    windows = _block_windows(grid, view, block_windows)
    adapted = WindowModel(model, batch_tfms, device)
    threads = worker_threads()
    with adapted.ready(threads if client is None else 1):
        ready = adapted.place() if client is None else adapted
        outputs = ready.probe(view, grid.kernel_size, batch_size)
        spec = _spec(view, grid, windows, outputs, resolution, adapted, keep)
        store, place = open_result(location, spec, resume=resume, overwrite=overwrite)
        work = _Work(view, grid, keep, store, location, progress)
        work.compute(ready, batch_size, client, threads)
    if place != location:
        location.replace(place)
    return _lazy(location, spec)


@dataclass(frozen=True)
class _Work:
    """The blocks of one call that are not done yet."""

    view: ImageView
    grid: WindowGrid
    keep: Array | None
    store: ResultStore
    location: Location
    progress: bool

    def compute(
        self, model: WindowModel, batch_size: int, client: Client | None, threads: int
    ) -> None:
        """Compute them all, and record what is done whatever happens."""
        store, spec = self.store, self.store.spec
        task = BlockTask(self.view, self.grid, store.array, batch_size, spec.outputs)
        jobs = list(make_jobs(self.grid, spec.block_windows, store.pending(), self.keep))
        logger.info("%s: %d of %d blocks to compute", self.location, len(jobs), store.total)
        for job in jobs:
            if job.keep is not None and not job.keep.any():
                store.mark(job.index)  # the fill value is the result
        jobs = [job for job in jobs if job.keep is None or job.keep.any()]
        try:
            with _bar(len(jobs), store, self.progress) as done:
                if client is None:
                    run_in_threads(jobs, lambda job: task(model, job), done, threads)
                else:
                    from daskdmed.windows.cluster import run_on_cluster

                    run_on_cluster(client, jobs, task, model, done)
        except DaskdmedError as error:
            error.add_note(self._state())
            raise
        except Exception as error:
            notes = "; ".join(getattr(error, "__notes__", ()))
            raise StoreError(
                f"heatmap of {spec.image} stopped: {type(error).__name__}: {error} "
                f"({notes}). {self._state()}"
            ) from error
        finally:
            store.flush()

    def _state(self) -> str:
        store = self.store
        kept = f"{store.finished} of {store.total} blocks are done"
        if self.location.in_memory:
            return f"{kept}; give out= to keep them when a run stops"
        return f"{kept} and kept in {self.location}; call again with resume=True to go on"


@contextmanager
def _bar(total: int, store: ResultStore, show: bool) -> Iterator[Callable[[tuple[int, ...]], None]]:
    if not show:
        yield store.mark
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="block", desc="heatmap") as bar:

        def done(index: tuple[int, ...]) -> None:
            store.mark(index)
            bar.update()

        yield done


def as_view(
    image: Any, spatial_ndim: int, resolution: Resolution, on_error: OnError = "raise"
) -> ImageView:
    """Anything that `heatmap` takes as an image, at one resolution.

    Raises
    ------
    UsageError
        It is no image, or a view or array with a resolution beside it.
    """
    from daskdmed.cohort.record import Record

    keywords: dict[str, Any] = {
        "level": resolution.level or 0,
        "mpp": resolution.mpp,
        "power": resolution.power,
    }
    if isinstance(image, (str, os.PathLike)):
        from daskdmed.images.slide import open_slide

        image = open_slide(image)
    if _is_array(image):
        image = Record(array=image)
    if isinstance(image, Record):
        if image.array is not None:
            return image.view(**keywords, spatial_ndim=spatial_ndim)
        image = image.open()
    if hasattr(image, "to_dask") and hasattr(image, "view"):
        view: ImageView = image.view(**keywords, on_error=on_error)
        return _checked(view, spatial_ndim)
    if isinstance(image, ImageView):
        if resolution != Resolution(level=0):
            raise UsageError(
                f"{resolution} beside a view, which has its resolution already; "
                "give the slide, or leave level, mpp and power away"
            )
        return _checked(image, spatial_ndim)
    raise UsageError(
        f"image must be a slide, a Record, a path, a view or an array, got {type(image).__name__}"
    )


def _is_array(image: Any) -> bool:
    return isinstance(image, (np.ndarray, da.Array)) or type(image).__module__.startswith("zarr.")


def _checked(view: ImageView, spatial_ndim: int) -> ImageView:
    if view.spatial_ndim != spatial_ndim:
        raise GeometryError(
            f"kernel_size has {spatial_ndim} axes, the image has {view.spatial_ndim} axes of "
            f"space (shape {view.shape}); give one number per axis"
        )
    return view


def _location(out: PathLike | Store | None, client: Client | None) -> Location:
    if out is None:
        import zarr

        out = zarr.storage.MemoryStore()
    location = Location.of(out)
    if client is not None and location.in_memory:
        raise UsageError(
            "workers of a cluster cannot write into this process's memory; "
            "give out= a path or URL that all of them see"
        )
    return location


def _block_windows(
    grid: WindowGrid, view: ImageView, block_windows: PerAxis | None
) -> tuple[int, ...]:
    if block_windows is not None:
        wanted = per_axis(block_windows, grid.ndim, "block_windows")
        if min(wanted) < 1:
            raise GeometryError(f"block_windows must be at least 1, got {wanted}")
        return tuple(min(n, c) for n, c in zip(wanted, grid.counts, strict=True))
    channels = int(np.prod(view.shape[grid.ndim :], dtype=int))
    return choose_block(grid, view.tile_shape, bytes_per_pixel=channels * view.dtype.itemsize)


def _spec(
    view: ImageView,
    grid: WindowGrid,
    block_windows: tuple[int, ...],
    outputs: int,
    resolution: Resolution,
    model: WindowModel,
    keep: Array | None,
) -> ResultSpec:
    """Everything that the values depend on goes into the parameters; `batch_size` does not."""
    place = Georeference(grid.kernel_size, grid.stride, tuple(view.downsample), view.mpp)
    parameters = {
        "image": view.token,
        "shape": view.shape,
        "resolution": str(resolution),
        "kernel_size": grid.kernel_size,
        "stride": grid.stride,
        "edge": grid.edge,
        "model": model.fingerprint,
        "mask": None if keep is None else fingerprint(keep),
        "block_windows": block_windows,
        "outputs": outputs,
    }
    name = str(getattr(view, "uri", "") or f"array of shape {view.shape}")
    return ResultSpec("heatmap", grid.counts, outputs, block_windows, place, name, parameters)


def _lazy(location: Location, spec: ResultSpec) -> da.Array:
    array: Any = location.open("r")[LEVEL]
    chunks = [
        min(n, max(_RESULT_CHUNK // c, 1) * c) for n, c in zip(spec.shape, spec.chunks, strict=True)
    ]
    # a store object has no name that says which one it is
    which = str(location) if isinstance(location.target, str) else id(location.target)
    name = f"heatmap-{tokenize(which, spec)}"
    return da.from_array(array, chunks=tuple(chunks), name=name, lock=False)


__all__ = ["as_view", "heatmap"]
