"""`heatmap`: one value, k values or a map per window of whole images, written to Zarr.

The public function; images, models, blocks, stores and whoever computes have their modules.
Not covered: dense prediction with overlapping windows (`daskdmed.inference.dense.predict`), and
drawing (`daskdmed.plot`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from daskdmed.cohort.sources import Image, ImagesLike
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
from daskdmed.images.channels import ChannelsLike
from daskdmed.images.context import ContextEdge, ContextLike
from daskdmed.inference.blocks import WindowBlocks
from daskdmed.inference.call import Call
from daskdmed.inference.heatmapjob import HeatmapJob, ModelFacts, Settings, lazy
from daskdmed.inference.inputs import locations_of
from daskdmed.inference.models.outputs import Output
from daskdmed.inference.models.window import Model, Transform
from daskdmed.store.results.resumable import ResultSpec
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis

if TYPE_CHECKING:
    from distributed import Client
    from numpy.typing import ArrayLike
    from zarr.abc.store import Store


def heatmap(
    image: ImagesLike,
    model: Model | PathLike,
    *,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    level: LevelLike = 0,
    mpp: MppLike | None = None,
    power: PowerLike | None = None,
    spacing: SpacingLike | None = None,
    orientation: str | None = None,
    out: PathLike | Store | None = None,
    mask: ArrayLike | Mapping[Any, Any] | Any = None,
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
    """Run a model over every window of an image, or of every image of a dataset.

    Blocks of windows are read, computed and written one by one, each as one chunk, so that
    memory does not grow with the image. Each store is an OME-Zarr 0.5 image (float32) with
    scale and translation, so that it lies on its slide in viewers.

    Parameters
    ----------
    image : Dataset, Patient, Slide, Record, path, URL, view, array, or a list of these
        Arrays have their spatial axes first and at most one channel axis behind them; a
        `kernel_size` with one number per axis says how many are space, a single number
        means two. The patients of a dataset are computed in order, the blocks of the next
        one beginning while the last ones of the previous are on their way.
    model : torch.nn.Module, path, torch.export.ExportedProgram or callable
        A module gets what `batch_tfms` makes of a batch, by default ``(n, c, *kernel)`` in the
        type of its weights and in [0, 1] (uint8 / 255, uint16 / 65535, others as they are), in
        evaluation and inference mode; so does a program (TorchScript, ``torch.export``)
        given by its path. Any other callable gets the windows as an array,
        ``(n, *kernel, c)`` or ``(n, *kernel)``, in the dtype of the image. All return an array or
        tensor (n,), (n, k), or maps (n, h, w) or (n, k, h, w) with as many axes as the image
        has of space; (n, 1) counts as (n,). The shape is learnt from two windows of
        background. In-process the model is called from several threads at once.
    kernel_size : int or sequence of int
        Extent of a window in pixels at the chosen resolution, array order (y, x).
    stride : int or sequence of int, optional
        Distance between windows, default the kernel size.
    level, mpp, power, spacing, orientation
        The resolution, at most one of the first four, and the orientation of volumes; as for
        `daskdmed.LightDL`.
    out : path, URL or zarr store, optional
        Where to write; for a dataset the folder that gets one store per image,
        ``<id>/<record>.zarr``, and a report of the run, ``run.json`` and ``run.csv``.
        Default: in memory, for results that need not be kept.
    mask : array-like or TissueMask, optional
        Over the whole image at any resolution, bool or values in [0, 1]; of a volume also a
        record, a path or a view, which is read with the image's `spacing` and `orientation`,
        and has to lie where the image does. An array lies over the image as it is read, a
        `TissueMask` of a volume is turned with it. Windows without any cover are not computed
        and stay NaN; blocks without any are not read. For a dataset ``{id: mask}`` or a
        function of the patient.
    batch_size : int
        Windows per call of the model, at most. Callables get strided views of one row of
        windows, which may be fewer: of neighbours where windows lie side by side, of every n-th
        one where they overlap, so that no two of a batch share a pixel (if such a row has a
        quarter of a batch, and without a mask's gaps; else full batches are copied). They may
        write into them. When torch says that the memory of the device is full, the batch is
        halved and the new size kept.
    resume, overwrite : bool
        Go on with what an interrupted run left in `out`; parameters and model must be the
        same, and the result is bit-identical to that of an uninterrupted run. Or replace a
        result, which stays until the new one is finished. Both: go on with a replacement.
    client : distributed.Client, optional
        Compute on a cluster. Default: threads of this process, as many as
        ``dask.config`` "num_workers" says or CPUs are there.
    overlap : int, float or sequence, optional
        Instead of `stride`: int = pixels, float in [0, 1) = fraction of the kernel; the
        stride is then ``max(int(kernel * (1 - overlap)), 1)``, as MONAI has it.
    edge : {"pad", "shift", "drop"}
        Windows over the far border see the background, are moved inside, or are left out.
    batch_tfms : callable, optional
        For a module: gets the batch as a tensor ``(n, c, *kernel)`` in the dtype of the image,
        channels-last memory, on the module's device. For a callable: gets the array.
    mask_fraction : float
        Least covered share of a window to be computed.
    block_windows : int or sequence of int, optional
        Windows per block and chunk. Default: about 4096 pixels, on the storage tiles where
        the geometry allows, so that each tile is decoded once; where it does not, up to 8192
        pixels of large images.
    device : str or torch.device, or several of them
        Where a module runs (as a copy when it has to move, once per worker). Of several
        devices the threads of each process take one after the other.
    autocast : bool, str or torch.dtype, optional
        Run a module with mixed precision: True for the device's usual type, or one such as
        "bfloat16".
    channels_last : bool
        Give a module (a copy) and its batches channels-last memory, which convolutions are
        often faster with.
    output : int or str, optional
        Which one, of a model that returns several (a tuple or list by position, a dictionary,
        dataclass or named tuple by key or name).
    context : int or sequence of int, optional
        Neighbouring slices on each side that a model for 2.5 dimensions sees as channels: of the
        first axis, or along each axis (1, 0, 0). Windows then have ``(2 k + 1) * c`` channels,
        those of the slice before first; what comes out belongs to the slice in the middle.
    context_edge : {"reflect", "edge", "constant"}
        What stands for slices beyond the ends, as for `LightDL`.
    squeeze : bool
        Drop the axes along which windows have one pixel, for a network over planes, and put them
        back in its maps: (n, c, h, w) for windows of (1, h, w). A callable gets (n, h, w, c), and
        gives k maps with k last.
    resources : mapping, optional
        What a worker of `client` must offer to run the model, for example ``{"GPU": 1}``
        with workers started with ``--resources "GPU=1"``. Blocks are then read by separate
        tasks, on any thread of any worker, while the model runs on earlier ones: give such
        workers at least two threads.
    record : str or sequence of str, optional
        Which record of each patient, see `daskdmed.Patient.record`; several are stacked as
        channels, as for `daskdmed.LightDL`.
    channels : str, int or sequence of these, optional
        Names or numbers of the channels that the model sees, as for `daskdmed.LightDL`.
    on_error : {"raise", "skip"}
        What an image of a dataset or list that cannot be opened or read becomes: an error, or
        a report in the `failures` of the result, in the log and in ``run.json``. What the
        model raises is always raised.
    tile_error : {"raise", "fill"}
        What a storage tile that cannot be decoded becomes: an error, or background and a
        warning.
    compute : bool
        False: nothing is written. The same blocks as a lazy Dask array, for any scheduler, to
        be sliced without computing the rest, persisted, stored or gone on with. The model
        counts as it is now, a module in training mode is copied.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    dask.array.Array, or dict of str to dask.array.Array for a dataset
        Float32, lazy, of the Zarr array written: (rows, columns) for one value per window,
        (k, rows, columns) for k; NaN where nothing was computed. Maps of windows are laid
        side by side: ``(rows * h, columns * w)`` or ``(k, rows * h, columns * w)``.

    Raises
    ------
    StoreError
        `out` holds something already, belongs to a run with other parameters, or cannot be
        written (disk full, read-only); or a block failed for a reason outside this library
        (the cause is chained). Blocks that are done stay and can be resumed.
    GeometryError, ResolutionError, UsageError
        Arguments that do not fit, a mask of another aspect ratio, a model whose output has
        another shape or is NaN or infinite, maps of overlapping windows (`daskdmed.predict`
        blends them), or `resources` that no worker offers.
    DatasetError
        No patients, or records that are missing.
    ImageError
        An image, or one of its tiles, cannot be read.

    Examples
    --------
    >>> slide = daskdmed.open_slide("slide.svs")  # doctest: +SKIP
    >>> brightness = daskdmed.heatmap(  # doctest: +SKIP
    ...     slide, lambda w: w.mean(axis=(1, 2, 3)), kernel_size=224, out="mean.zarr"
    ... )
    """
    settings = Settings(
        kernel_size, stride, overlap, edge, batch_size, mask_fraction, block_windows,
        context, context_edge,
    )  # fmt: skip
    call = Call("heatmap", image, dict(locals()), settings.ndim)
    with call.ready():
        facts = ModelFacts(call.model, call.placed)

        def prepared(one: Image) -> tuple[WindowBlocks, ResultSpec]:
            return settings.prepare(one, call.mask_of(one), facts)

        if not compute:
            return call.lazy(lambda one: lazy(*prepared(one), call.shipped))
        replaces = resume or overwrite
        places = locations_of(call.images, out, client, replaces=replaces, on_error=on_error)

        def job(one: Image) -> HeatmapJob:
            return HeatmapJob(
                *prepared(one),
                call.shipped,
                places[one.key],
                resume=resume,
                overwrite=overwrite,
                travels=client is not None,
                split=bool(resources),
            )

        return call.run(job, report=not call.images.single)


__all__ = ["heatmap"]
