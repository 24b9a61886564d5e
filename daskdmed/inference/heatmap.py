"""`heatmap`: one value, k values or a map per window of whole images, written to Zarr.

The public function; images, models, blocks, stores and whoever computes have their modules.
Not covered: dense prediction with overlapping windows (`daskdmed.inference.dense.predict`), and
drawing (`daskdmed.plot`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da

from daskdmed.core.errors import UsageError
from daskdmed.core.resolution import Resolution as _Resolution
from daskdmed.core.types import Array, LevelLike, MppLike, OnTileError, PathLike, PowerLike
from daskdmed.core.view import ImageView
from daskdmed.inference.execute import Prepare, compute_images
from daskdmed.inference.imagejob import ImageJob, ModelFacts, Settings
from daskdmed.inference.inputs import as_location, as_view
from daskdmed.inference.models.window import Model, Transform, WindowModel
from daskdmed.inference.run import worker_threads
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis

if TYPE_CHECKING:
    from distributed import Client
    from numpy.typing import ArrayLike
    from zarr.abc.store import Store

    from daskdmed.cohort.dataset import Dataset
    from daskdmed.cohort.record import Patient, Record
    from daskdmed.images.slide import Slide


def heatmap(
    image: Dataset | Patient | Slide | Record | ImageView | PathLike | da.Array | Array,
    model: Model | PathLike,
    *,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    level: LevelLike = 0,
    mpp: MppLike | None = None,
    power: PowerLike | None = None,
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
    resources: Mapping[str, float] | None = None,
    record: str | None = None,
    tile_error: OnTileError = "raise",
    progress: bool = False,
) -> Any:
    """Run a model over every window of an image, or of every image of a dataset.

    Blocks of windows are read, computed and written one by one, each as one chunk, so that
    memory does not grow with the image. Each store is an OME-Zarr 0.5 image (float32) with
    scale and translation, so that it lies on its slide in viewers.

    Parameters
    ----------
    image : Dataset, Patient, Slide, Record, path, URL, view, dask or numpy array
        Arrays have their spatial axes first and at most one channel axis behind them; a
        `kernel_size` with one number per axis says how many are space, a single number
        means two. The patients of a dataset are computed in order, the blocks of the next
        one beginning while the last ones of the previous are on their way.
    model : torch.nn.Module, path, torch.export.ExportedProgram or callable
        A module gets what `batch_tfms` makes of a batch, by default float32
        (n, c, *kernel) in [0, 1] (uint8 / 255, uint16 / 65535, others as they are), in
        evaluation and inference mode; so does a program (TorchScript, ``torch.export``)
        given by its path. Any other callable gets the windows as an array,
        (n, *kernel, c) or (n, *kernel), in the dtype of the image. All return an array or
        tensor (n,), (n, k), or maps (n, h, w) or (n, k, h, w) with as many axes as the image
        has of space; (n, 1) counts as (n,). The shape is learnt from two windows of
        background. In-process the model is called from several threads at once.
    kernel_size : int or sequence of int
        Extent of a window in pixels at the chosen resolution, array order (y, x).
    stride : int or sequence of int, optional
        Distance between windows, default the kernel size.
    level, mpp, power
        The resolution, at most one of them. For a dataset also functions of the patient.
    out : path, URL or zarr store, optional
        Where to write; for a dataset the folder that gets one store per image,
        ``<id>/<record>.zarr``. Default: in memory, for results that need not be kept.
    mask : array-like or TissueMask, optional
        Over the whole image at any resolution, bool or values in [0, 1]. Windows without
        any cover are not computed and stay NaN; blocks without any are not read. For a
        dataset ``{id: mask}`` or a function of the patient.
    batch_size : int
        Windows per call of the model, at most. Callables get strided views of one row of
        windows where windows lie side by side, which may be fewer. When torch says that the
        memory of the device is full, the batch is halved and the new size kept.
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
        Instead of `stride`: int = pixels, float in [0, 1) = fraction of the kernel; the
        stride is then ``max(int(kernel * (1 - overlap)), 1)``, as MONAI has it.
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
        Where a module runs (as a copy when it has to move, once per worker).
    autocast : bool, str or torch.dtype, optional
        Run a module with mixed precision: True for the device's usual type, or one such as
        "bfloat16".
    channels_last : bool
        Give a module (a copy) and its batches channels-last memory, which convolutions are
        often faster with.
    resources : mapping, optional
        What a worker of `client` must offer to run the model, for example ``{"GPU": 1}``
        with workers started with ``--resources "GPU=1"``. Blocks are then read by separate
        tasks, on any thread of any worker, while the model runs on earlier ones: give such
        workers at least two threads.
    record : str, optional
        Which record of each patient, see `daskdmed.Patient.record`.
    tile_error : {"raise", "fill"}
        What a storage tile that cannot be decoded becomes: an error, or background and a
        warning.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    dask.array.Array, or dict of str to dask.array.Array for a dataset
        Float32, lazy, of the Zarr array written: (rows, columns) for one value per window,
        (k, rows, columns) for k; NaN where nothing was computed. Maps of windows are laid
        side by side: (rows * h, columns * w) or (k, rows * h, columns * w).

    Raises
    ------
    StoreError
        `out` holds something already, belongs to a run with other parameters, or cannot be
        written (disk full, read-only); or a block failed for a reason outside this library
        (the cause is chained). Blocks that are done stay and can be resumed.
    GeometryError, ResolutionError, UsageError
        Arguments that do not fit, a model whose output has another shape, maps of
        overlapping windows (`daskdmed.predict` blends them), or `resources` that no worker
        offers.
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
        tile_error, resume, overwrite,
    )  # fmt: skip
    if resources and client is None:
        raise UsageError(
            f"resources={dict(resources)!r} are offered by workers of a cluster; give client=, "
            "or device= to run in this process"
        )
    adapted = WindowModel(model, batch_tfms, device, autocast, channels_last)
    threads = worker_threads()
    with adapted.ready(threads if client is None else 1):
        # a client may lack the device of its workers: it tries the model where it is
        placed = (adapted if client is None else replace(adapted, device=None)).place()
        images = _images(
            image,
            ModelFacts(adapted, placed),
            settings,
            {"level": level, "mpp": mpp, "power": power},
            {"out": out, "mask": mask, "client": client},
            record,
        )
        found = compute_images(
            images,
            placed if client is None else adapted,
            client=client,
            threads=threads,
            resources=resources,
            progress=progress,
        )
    return found.get(None, found)  # a single image has no name


def _images(
    image: Any,
    facts: ModelFacts,
    settings: Settings,
    resolution: dict[str, Any],
    given: dict[str, Any],
    record: str | None,
) -> Iterable[tuple[str | None, Prepare]]:
    """Name (None for a single image) and preparation of each image; checked as far as can be."""
    from daskdmed.cohort.dataset import Dataset
    from daskdmed.cohort.record import Patient
    from daskdmed.inference.cohorts import PatientImage, images_of, resolution_of

    if isinstance(image, Dataset):
        replaces = settings.resume or settings.overwrite
        listed = images_of(image, record=record, **resolution, **given, replaces=replaces)

        def prepare(one: PatientImage) -> ImageJob:
            return ImageJob.prepare(
                one.record, one.resolution, one.location, one.mask_of(), facts, settings
            )

        return [(i.patient.key, lambda i=i: prepare(i)) for i in listed]  # type: ignore[misc]
    if isinstance(image, Patient):
        wanted = resolution_of(image, **resolution)
        image = image.record(record)
    else:
        functions = [name for name, value in resolution.items() if callable(value)]
        if functions or record is not None:
            raise UsageError(
                f"{(functions or ['record'])[0]}= as given is for patients of a dataset; this "
                f"image is a {type(image).__name__}, give a value"
                if functions
                else f"record={record!r} is for patients; this image is a {type(image).__name__}"
            )
        wanted = _Resolution.of(**resolution)
    location = as_location(given["out"], given["client"])
    mask = given["mask"]
    return [(None, lambda: ImageJob.prepare(image, wanted, location, mask, facts, settings))]


__all__ = ["as_view", "heatmap"]
