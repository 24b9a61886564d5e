"""`predict`: a value per pixel (or per few pixels) of whole images, written to Zarr or lazy.

The public function; windows, weights, models, stores and whoever computes have their modules.
Not covered: one value per window (`daskdmed.inference.heatmap`), scans with their truth and
times (`daskdmed.inference.infer`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from daskdmed.cohort.sources import Image, ImagesLike
from daskdmed.core.errors import UsageError
from daskdmed.core.fingerprint import fingerprint
from daskdmed.core.types import (
    LevelLike,
    MppLike,
    OnError,
    OnTileError,
    PathLike,
    PowerLike,
    RecordLike,
    SpacingLike,
)
from daskdmed.core.view import ImageView
from daskdmed.core.work import default_threads
from daskdmed.images.channels import ChannelsLike
from daskdmed.images.context import ContextEdge, ContextLike, with_context
from daskdmed.inference.call import Call
from daskdmed.inference.dense.arrange import Mosaic, WindowChoice
from daskdmed.inference.dense.blend import BlendMode
from daskdmed.inference.dense.cellmask import CellMask
from daskdmed.inference.dense.finish import Finish, Post
from daskdmed.inference.dense.job import PredictJob, Work, lazy
from daskdmed.inference.dense.sweep import Sweeper
from daskdmed.inference.inputs import locations_of, mask_over
from daskdmed.inference.models.outputs import Output
from daskdmed.inference.models.window import Model, Transform, WindowModel
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.resumable import ResultSpec
from daskdmed.tiling.grid import OverlapLike, PerAxis, spatial_axes
from daskdmed.tiling.mask import placed

if TYPE_CHECKING:
    from distributed import Client
    from zarr.abc.store import Store

#: pixels of a batch of windows; a quarter of it on the CPU
_BATCH_PIXELS = 2**20


def predict(
    image: ImagesLike,
    model: Model | PathLike,
    *,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    overlap: OverlapLike | None = None,
    level: LevelLike = 0,
    mpp: MppLike | None = None,
    power: PowerLike | None = None,
    spacing: SpacingLike | None = None,
    orientation: str | None = None,
    out: PathLike | Store | None = None,
    mask: ArrayLike | Mapping[Any, Any] | Any = None,
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
    output: Output | None = None,
    context: ContextLike | None = None,
    context_edge: ContextEdge = "reflect",
    squeeze: bool = False,
    resources: Mapping[str, float] | None = None,
    record: RecordLike | None = None,
    channels: ChannelsLike | None = None,
    on_error: OnError = "raise",
    tile_error: OnTileError = "raise",
    compute: bool = True,
    progress: bool = False,
) -> Any:
    """Dense prediction: run a model that gives a map per window, and blend the maps.

    Equal to MONAI's ``sliding_window_inference`` with the same model and settings, but the
    image and the result are streamed: bands of the result are swept from left to right, and
    each of its chunks is written once, when all windows over it are in. Memory does not grow
    with the image. A window is computed once within its band; windows over the edge between
    two bands are computed for both (bands are as high as 96 MiB of partial sums allow). The
    log and the parameters kept in the store say how many windows were needed and computed.

    Parameters
    ----------
    image, level, mpp, power, spacing, orientation, record, channels, out, resume, overwrite
        As for `daskdmed.heatmap`.
    client, on_error, tile_error, batch_tfms, device, autocast, channels_last, output
        As for `daskdmed.heatmap`.
    context, context_edge, squeeze
        As for `daskdmed.heatmap`.
    model : torch.nn.Module, callable, path or exported program
        A module or program gets batches as for `daskdmed.heatmap`, and gives ``(n, k, *cells)``
        or ``(n, *cells)``. Any other callable gets ``(n, *kernel[, c])`` in the dtype of the image
        and gives ``(n, *cells)``, ``(n, *cells, k)`` or ``(n, k, *cells)``. ``cells`` is the
        kernel divided by a whole number r per axis, 1 for a value per pixel; it and k are learnt
        from a window of background. Windows over the border see the background of the image.
    kernel_size : int or sequence of int
        Extent of a window in pixels at the chosen resolution, array order. An image that is
        smaller is padded with background on both sides.
    stride : int or sequence of int, optional
        Distance between windows, at most `kernel_size` and a multiple of r. The last window
        of an axis is moved inside.
    overlap : int, float or sequence, optional
        Instead of `stride`, as for `daskdmed.heatmap`, in whole cells; default 0.25.
    mask : array-like or TissueMask, optional
        Over the whole image at any resolution, true (above 0) where a prediction is wanted; of
        a volume also a record, a path or a view, see `daskdmed.heatmap`.
        A cell is inside where the mask under its middle is true. Cells inside have exactly
        the value they have without a mask; windows without any are neither read nor computed.
        For a dataset ``{id: mask}`` or a function of the patient.
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
        are clipped) times 255 or 65535, rounded. "float16". It is done chunk by chunk: the maps
        of all classes are never held, nor stored, over the whole image.
    fill : float, optional
        Value of cells outside the mask. Default: NaN for floating point, 0 for integers.
    receptive_field, output_stride : int or sequence of int, optional
        Both or none. The exact dense mode for fully convolutional models, see
        `daskdmed.inference.dense.convolutional`: the model is run over pieces of up to
        `kernel_size` pixels, and no window is blended (`stride`, `overlap`, `blend` do not
        apply). A declaration that does not hold on a patch of noise is refused.
        `output_stride` is the product of all strides within the network.
    chunks : int or sequence of int, optional
        Cells per chunk of the result. Default: about 768 x 768, or 96^3.
    resources : mapping, optional
        What a worker of `client` must offer, for example ``{"GPU": 1}``; pixels are read
        where the model runs.
    compute : bool
        False: nothing is written. The same sweeps as a lazy Dask array, for any scheduler,
        to be sliced without computing other bands, persisted, stored or gone on with.
    progress : bool
        Show a progress bar over sweeps.

    Returns
    -------
    dask.array.Array, or dict of str to dask.array.Array for a dataset or list
        Lazy, of the Zarr array written: ``(*cells)`` for one value, ``(k, *cells)`` for k, with
        ``ceil(size / r)`` cells along each axis of the image. Valid networks in dense mode:
        as many as `daskdmed.heatmap` has windows.

    Raises
    ------
    UsageError
        A model that gives no such map, values that are NaN or infinite, or a declaration that
        does not hold.
    GeometryError, ResolutionError
        Arguments that do not fit each other or the image.
    BudgetError
        A batch of windows would take more than 8 GiB.
    StoreError, DatasetError, ImageError
        As for `daskdmed.heatmap`.

    Examples
    --------
    >>> labels = daskdmed.predict(  # doctest: +SKIP
    ...     slide, unet, kernel_size=512, overlap=0.25, post="argmax", out="labels.zarr"
    ... )
    """
    settings = _Settings(
        kernel_size, stride, overlap, receptive_field, output_stride, blend, sigma_scale, chunks,
        batch_size, post, fill, context, context_edge,
    )  # fmt: skip
    call = Call("predict", image, dict(locals()), spatial_axes(kernel_size))
    threads = sweeps_at_once(call.model, default_threads())
    threads = min(threads * len(call.devices), default_threads())
    with call.ready(threads):

        def work(one: Image) -> Work:
            return settings.work(one, call.mask_of(one), call.model, call.placed)

        if not compute:
            return call.lazy(lambda one: lazy(work(one), call.shipped))
        replaces = resume or overwrite
        places = locations_of(call.images, out, client, replaces=replaces, on_error=on_error)
        if client is not None:
            threads = 2 * max(sum(client.nthreads().values()), 1)

        def job(one: Image) -> PredictJob:
            return PredictJob(
                work(one),
                call.shipped,
                places[one.key],
                resume=resume,
                overwrite=overwrite,
                workers=threads,
                local=client is None,
            )

        return call.run(job, report=not call.images.single, threads=threads)


def sweeps_at_once(model: WindowModel, threads: int) -> int:
    """How many sweeps this process runs side by side.

    A module on the CPU uses all threads by itself, and its activations are the largest part
    of the memory: one sweep. On another device two, so that one reads and blends while the
    model runs for the other. Other callables run in as many threads as there are.
    """
    if not model.is_torch:
        return threads
    return 1 if model.device_type == "cpu" else min(2, threads)


@dataclass(frozen=True)
class _Settings:
    """What a call says about every image. See `predict`."""

    kernel_size: PerAxis
    stride: PerAxis | None
    overlap: OverlapLike | None
    receptive_field: PerAxis | None
    output_stride: PerAxis | None
    blend: BlendMode
    sigma_scale: float | Sequence[float]
    chunks: PerAxis | None
    batch_size: int | None
    post: Post
    fill: float | None
    context: ContextLike | None
    context_edge: ContextEdge

    def __post_init__(self) -> None:
        size = self.batch_size
        if size is not None and (int(size) != size or size < 1):
            raise UsageError(f"batch_size must be a whole number >= 1, got {size!r}")

    def work(self, image: Image, mask: Any, model: WindowModel, here: WindowModel) -> Work:
        """Open an image, try the model, and lay out the windows."""
        view = with_context(image.view(), self.context, self.context_edge)
        windows = WindowChoice.of(
            view,
            self.kernel_size,
            self.stride,
            self.overlap,
            self.receptive_field,
            self.output_stride,
        )
        windows.check_bytes(self.batch_size or 1)
        mosaic = windows.try_model(here, self.blend, self.sigma_scale, self.chunks)
        finish = Finish.of(self.post, mosaic.layout.outputs, self.fill)
        cells = None
        if mask is not None:
            mask = mask_over(mask, image, view)
            values, spans = placed(mask, view.spatial_shape, view.downsample)
            # without the extent of its image nobody knows whether a mask ends where that does
            beyond = hasattr(mask, "scale") and getattr(mask, "shape0", None) is None
            cells = CellMask(values, mosaic.plan.axes, spans, beyond=beyond)
        on_cpu = here.is_torch and here.device_type == "cpu"
        pixels = _BATCH_PIXELS // (4 if on_cpu else 1)
        size = self.batch_size or max(pixels // math.prod(mosaic.plan.kernel_size), 1)
        tile = view.tile_shape[-1]
        sweeper = Sweeper(mosaic.plan, mosaic.blend, finish, mosaic.layout, size, tile)
        spec = _spec(view, windows, mosaic, finish, image.parameters, model, cells)
        return Work(view, sweeper, cells, spec)


def _spec(
    view: ImageView,
    windows: WindowChoice,
    mosaic: Mosaic,
    finish: Finish,
    asked: Mapping[str, Any],
    model: WindowModel,
    mask: CellMask | None,
) -> ResultSpec:
    """Everything that the values depend on goes into the parameters; `batch_size` does not."""
    plan, blend = mosaic.plan, mosaic.blend
    place = Georeference.of(view, *mosaic.place, plan.cells)
    parameters = {
        "image": view.token,
        "shape": view.shape,
        **asked,
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
