"""`SlidingWindowDL`: every window of every image once, in order, as batches.

The ordered counterpart of `LightDL`. It checks what it is given, opens the images and plans;
what all loaders have in common is in `daskdmed.loading.loader`.

Not covered: maps of one value per window (`daskdmed.heatmap` computes where the block lies
and is faster), and what becomes of batches (`daskdmed.tables`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from dask.base import tokenize

from daskdmed.cohort.sources import ImagesLike, Request, check_on_error, images_of
from daskdmed.core import live
from daskdmed.core.checks import check_choice, check_count
from daskdmed.core.errors import UsageError
from daskdmed.core.types import (
    LevelLike,
    MppLike,
    OnError,
    OnTileError,
    PowerLike,
    RecordLike,
    SpacingLike,
)
from daskdmed.core.work import default_threads
from daskdmed.images.channels import ChannelsLike
from daskdmed.images.context import ContextEdge, ContextLike
from daskdmed.loading.delivery import Delivery, DeviceLike
from daskdmed.loading.loader import Loader
from daskdmed.loading.prefetch import Prefetcher
from daskdmed.loading.ranks import RankLike
from daskdmed.loading.sliding.ahead import ReadAhead
from daskdmed.loading.sliding.batches import WindowBatch, WindowChunks
from daskdmed.loading.sliding.images import Layout, MasksLike, open_images
from daskdmed.loading.sliding.plan import ImageWindows, LoadPlan, Order
from daskdmed.loading.sliding.progress import WindowProgress
from daskdmed.loading.sliding.read import LoadReader
from daskdmed.loading.stats import Meter, SlidingStats
from daskdmed.persistence.budget import to_bytes
from daskdmed.persistence.cluster import ClientLike, WorkersLike
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis, spatial_axes
from daskdmed.tiling.imagegrid import ImageGrid


class SlidingWindowDL(Loader[WindowChunks]):
    """Batches of the windows of one image, or of a whole dataset, each window exactly once.

    A context manager, an iterator, and a `torch.utils.data.IterableDataset` for
    ``DataLoader(loader, batch_size=None, num_workers=0)``.

    Each loop over it (``for``, ``iter``) is a pass from the first window on, wherever the
    last one was left; after `load_state_dict`, the first gives what is left of the pass that
    was saved. ``next`` and `get` take batches without a loop: they go on in the present pass,
    and a loop after them gives the rest of it. To leave a loop and go on, keep its iterator.

    Windows come block by block, and in C order within a block, so that every storage tile
    is decoded about once; blocks begin on tiles where the geometry allows it.

    Parameters
    ----------
    dataset_or_image : Dataset, Patient, Record, Slide, view, path, URL, array, or list of these
        What to slide over.
    kernel_size : int or sequence of int
        Extent of a window in pixels at the resolution asked for, array order (y, x). One
        number: two spatial axes.
    stride : int or sequence of int, optional
        Distance between windows, default the kernel size.
    overlap : int, float or sequence, optional
        Instead of `stride`: int = pixels, float in [0, 1) = fraction of the kernel; the
        stride is then ``max(int(kernel * (1 - overlap)), 1)``, as MONAI has it.
    batch_size : int, default 64
        Windows per batch; the last batch may be shorter.
    edge : {"pad", "shift", "drop"}
        Windows over the far border see the background, are moved inside, or are left out.
    mask : array, object with `data` and `scale`, mapping, or function of the patient
        Windows without any cover are not delivered, and storage tiles under no other
        window not read. An array lies over the whole image at any resolution; an object
        with a `scale` (level-0 pixels per mask pixel and axis) lies where that says. A
        mapping has one of these, or None for everything, for each patient id.
    min_mask : float, default 0
        Least covered share of a window to be delivered.
    order : {"sequential", "interleaved"}
        One image after the other, or blocks of `slides_at_once` images by turns.
    slides_at_once : int, default 4
        For ``order="interleaved"``.
    resident : int or str, default "512 MiB"
        Bytes of all blocks in memory, those being read included. Never exceeded. Batches
        that wait for the consumer come on top, up to 64 MiB or two of them.
    min_interval : float, optional
        Least seconds between the beginnings of block reads, to spare a shared disk.
    block_windows : int or sequence of int, optional
        Windows per block. Default: about 4096 pixels, tile-aligned, within the budget.
    rank, world_size : int
        Each rank delivers whole blocks of its own, about equally many windows; together
        every window once. Not given: as for `LightDL`.
    on_error : {"raise", "skip"}
        What an image or region does that cannot be read after several attempts: reach
        ``next`` as an error that names patient, record and region; or be left out, window
        by window, and reported by `stats`.
    context, context_edge, squeeze
        As for `LightDL`: neighbouring slices as channels, without an axis for the one slice.
        Blocks hold each slice with its neighbours, ``2 * context + 1`` times the bytes.
    device, pin_memory
        As for `LightDL`, but blocks stay in host memory: batches are copied.
    level, mpp, power, spacing, orientation, channels, record, tfms, batch_tfms, tile_error,
    client, workers
        As for `LightDL`.

    Raises
    ------
    UsageError, DatasetError, GeometryError, ResolutionError
        An argument is wrong; the message names it, and the patient where it is one.
    LoaderError
        An image cannot be opened.
    BudgetError
        `resident` holds fewer than two blocks of one window, or exceeds half of the memory.

    Notes
    -----
    ``x`` is a tensor ``[n, c, *kernel]`` of the images' sample type, in channels-last
    memory. The sliding-window loader of PyDmed, with each window once.

    Examples
    --------
    >>> with SlidingWindowDL("slide.svs", kernel_size=224) as loader:  # doctest: +SKIP
    ...     for x, patients, windows in loader:
    ...         ...
    """

    def __init__(
        self,
        dataset_or_image: ImagesLike,
        *,
        kernel_size: PerAxis,
        stride: PerAxis | None = None,
        overlap: OverlapLike | None = None,
        batch_size: int = 64,
        level: LevelLike = 0,
        mpp: MppLike | None = None,
        power: PowerLike | None = None,
        spacing: SpacingLike | None = None,
        orientation: str | None = None,
        channels: ChannelsLike | None = None,
        record: RecordLike | None = None,
        edge: Edge = "pad",
        mask: MasksLike = None,
        min_mask: float = 0.0,
        order: Order = "sequential",
        slides_at_once: int = 4,
        resident: int | str = "512 MiB",
        min_interval: float | None = None,
        tfms: Callable[[Any], Any] | None = None,
        batch_tfms: Callable[[Any], Any] | None = None,
        rank: RankLike = None,
        world_size: int | None = None,
        on_error: OnError = "raise",
        tile_error: OnTileError = "raise",
        client: ClientLike = None,
        workers: WorkersLike = None,
        device: DeviceLike | None = None,
        pin_memory: bool | None = None,
        block_windows: PerAxis | None = None,
        context: ContextLike | None = None,
        context_edge: ContextEdge = "reflect",
        squeeze: bool = False,
    ) -> None:
        delivery = Delivery(device, pin_memory)
        super().__init__(
            batch_size, tfms, batch_tfms, rank, world_size, client, workers, delivery=delivery
        )
        check_choice("order", order, ("sequential", "interleaved"))
        check_on_error(on_error)
        if min_interval is not None and not (np.isfinite(min_interval) and min_interval >= 0):
            raise UsageError(f"min_interval must be seconds >= 0, got {min_interval!r}")
        self._order = order
        self._slides_at_once = check_count("slides_at_once", slides_at_once)
        self._skip = on_error == "skip"
        self._min_interval = float(min_interval or 0)
        self._budget = to_bytes(resident)
        self._squeeze = squeeze
        layout = Layout(
            kernel_size,
            stride,
            overlap,
            edge,
            min_mask,
            block_windows,
            self._budget,
            context,
            context_edge,
        )
        axes = spatial_axes(kernel_size)
        request = Request(
            record, level, mpp, power, axes, tile_error, spacing, orientation, channels
        )
        images, failures = open_images(images_of(dataset_or_image, request), layout, mask, on_error)
        self._resolution = request.parameters(image.patient for image in images)
        self._not_opened = tuple(failures)
        self._ahead: ReadAhead | None = None
        self._deal(images)

    def _deal(self, images: Sequence[ImageWindows] = ()) -> None:
        if images:
            plan = LoadPlan(images, order=self._order, at_once=self._slides_at_once)
        else:
            plan = self._plan
        self._progress: WindowProgress = WindowProgress(plan.dealt(*self._share))

    @property
    def _plan(self) -> LoadPlan:
        return self._progress.plan

    # -- life -----------------------------------------------------------------------

    def _begin(self) -> Prefetcher:
        reader = self._reader()
        ahead = ReadAhead(
            self._meter,
            self._plan,
            reader,
            self._budget,
            self.batch_size,
            self._prepare,
            squeeze=self._squeeze,
        )
        self._ahead = ahead
        return Prefetcher(
            ahead.batches(self._progress.position),
            ahead.batch_bytes,
            meter=self._meter,
            interrupt=reader.close,
            describe=ahead.describe,
        )

    def _reader(self) -> LoadReader:
        if self._client is None and self._workers in (None, "threads"):
            threads = default_threads()
        else:
            if self._cluster is None:
                self._cluster = self._connect()
                self._own(None)
            # two more than can be computed at a time: their results are on their way here
            threads = self._cluster.threads + 2
        self._claim(self._budget, self._cluster)
        return LoadReader(self._cluster, threads, min_interval=self._min_interval, skip=self._skip)

    def _took(self, batch: WindowBatch) -> None:
        self._progress.take(batch, self._dealt)

    def _begins_anew(self) -> bool:
        return True

    def _next_pass(self, *, again: bool) -> None:
        self.rewind()

    def rewind(self) -> None:
        """Begin another pass at the first window, wherever this one stands.

        Raises
        ------
        LoaderClosedError
            The loader is closed.
        """
        self._stop()
        self._deal()
        self._ahead, self._meter = None, Meter(self.name)

    def __len__(self) -> int:
        """Batches of a pass, when nothing fails.

        Where the state of another number of ranks or another batch size was loaded, the pass
        has the batches that were taken then, and those that what is left makes now.
        """
        self._look_for_others()
        return self._progress.batches_of_pass(self.batch_size)

    # -- what there is --------------------------------------------------------------

    @property
    def windows(self) -> int:
        """Windows that this rank delivers in a pass.

        Where the state of another number of ranks was loaded: its part of what these had
        delivered, and of what was left.
        """
        self._look_for_others()
        return self._plan.behind + self._plan.windows

    @property
    def windows_of(self) -> dict[tuple[str, str], int]:
        """(patient id, record) -> windows that this rank delivers of it in a pass.

        Where the state of another number of ranks was loaded: of what was left.
        """
        self._look_for_others()
        return self._plan.windows_of()

    @property
    def position(self) -> int:
        """Windows of this pass that lie behind, those that failed included; 0 between passes."""
        behind = self._plan.behind + self._progress.position
        return behind % self.windows if self.windows else 0

    @property
    def images(self) -> tuple[ImageGrid, ...]:
        """The grids of all images, of all ranks."""
        return tuple(image.described for image in self._plan.images)

    def _parameters(self) -> dict[str, Any]:
        """What batches depend on."""
        images = self._plan.images
        facts = [
            # by name and shape: on another machine the same files have other paths and times
            (str(i.patient.id), i.record, i.view.shape, str(i.view.dtype), i.block_windows, i.keep)
            for i in images
        ]
        grid = images[0].grid
        return {
            "images": tokenize(facts),
            "windows": self._plan.total_windows,
            "kernel_size": list(grid.kernel_size),
            "stride": list(grid.stride),
            "edge": grid.edge,
            "batch_size": self.batch_size,
            "order": self._order,
            "slides_at_once": self._slides_at_once if self._order == "interleaved" else None,
            "rank": self._share[0],
            "world_size": self._share[1],
            **self._resolution,
        }

    # -- looking at it --------------------------------------------------------------

    def stats(self) -> SlidingStats:
        """Counters of this pass; cheap."""
        failures = self._progress.failures
        lost = sum(len(f.windows) for f in failures)
        return SlidingStats(**self._counters(), failed=self._failures(), lost_windows=lost)

    def _counters(self) -> dict[str, Any]:
        progress, ahead, meter = self._progress, self._ahead, self._meter
        return dict(
            batches=progress.batches,
            windows=progress.windows,
            total_windows=self.windows,
            **meter.counters(),
            pixels_drawn=progress.windows * math.prod(self._plan.images[0].grid.kernel_size),
            blocks_read=ahead.reader.loads_read if ahead else 0,
            total_blocks=len(self._plan),
            retries=ahead.reader.retries if ahead else 0,
            resident_bytes=ahead.held if ahead and not self._closed else 0,
            peak_bytes=ahead.peak if ahead else 0,
            budget_bytes=self._budget,
            batches_ready=self._ready,
        )

    def _failures(self) -> tuple[Any, ...]:
        return (*self._not_opened, *self._progress.failures)

    def _shown(self) -> dict[str, Any]:
        return {"unit": "windows", "ranks": {}}

    def _cells(self) -> list[live.Cell]:
        return [] if self._ahead is None else self._ahead.cells()

    def _place(self, visit: int) -> live.Place | None:
        return None if self._ahead is None else self._ahead.place(visit)

    def __repr__(self) -> str:
        size = "x".join(map(str, self._plan.images[0].grid.kernel_size))
        return (
            f"<SlidingWindowDL: {len(self._plan.images)} images, {self.windows} windows of "
            f"{size}, {len(self)} batches, {self._life}>"
        )
