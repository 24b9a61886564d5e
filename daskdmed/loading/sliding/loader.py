"""`SlidingWindowDL`: every window of every image once, in order, as batches.

The ordered counterpart of `LightDL`. It checks what it is given, plans, and puts together
the plan (`loader_plan`), the reader (`loader_read`), batches (`loader_batches`) and the
thread that makes them (`loader_run`).

Not covered: maps of one value per window (`daskdmed.heatmap` computes where the block lies
and is faster), and what becomes of batches (`daskdmed.tables`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from dask.base import tokenize

from daskdmed.cohort.record import Patient
from daskdmed.core.errors import LoaderClosedError, MissingExtraError, StateError, UsageError
from daskdmed.core.types import LevelLike, MppLike, PowerLike
from daskdmed.inference.run import worker_threads
from daskdmed.loading import torchbridge
from daskdmed.loading.ranks import RankLike, resolve
from daskdmed.loading.sliding.batches import WindowChunks
from daskdmed.loading.sliding.feed import Feed, Pass
from daskdmed.loading.sliding.images import MasksLike, Wish, open_images
from daskdmed.loading.sliding.plan import LoadPlan, Order
from daskdmed.loading.sliding.read import LoadReader, WindowFailure
from daskdmed.loading.sliding.stats import SlidingStats
from daskdmed.persistence.budget import check_memory, to_bytes
from daskdmed.persistence.cluster import connect
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis
from daskdmed.tiling.imagegrid import ImageGrid

if TYPE_CHECKING:
    import torch
    from distributed import Client

    _Base = torch.utils.data.IterableDataset[Any]
else:
    try:
        from torch.utils.data import IterableDataset as _Base
    except ImportError as error:
        raise MissingExtraError(
            'SlidingWindowDL needs torch; pip install "daskdmed[torch]"'
        ) from error

#: batches made ahead of the consumer, at most this many bytes of them
_AHEAD_BYTES = 64 << 20
_AHEAD_BATCHES = 4
_STATE_VERSION = 1

#: what the loader yields
Item = tuple[Any, list[Patient], WindowChunks]


class SlidingWindowDL(_Base):
    """Batches of the windows of one image, or of a whole dataset, each window exactly once.

    A context manager, an iterator, and a `torch.utils.data.IterableDataset` for
    ``DataLoader(loader, batch_size=None, num_workers=0)``. Each ``for`` over a loader that
    has come to its end is another pass; one that was left goes on where it was.

    Windows come block by block, and in C order within a block, so that every storage tile
    is decoded about once; blocks begin on tiles where the geometry allows it.

    Parameters
    ----------
    dataset_or_image : Dataset, Patient, Slide, Record, path, URL, view or array
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
    level, mpp, power
        Resolution, mutually exclusive; each a value or a function of the patient.
    record : str, optional
        Name of the record; not needed when patients have one.
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
    tfms : callable, optional
        Applied to each sample tensor (c, *spatial) in the background. A transform of
        `daskdmed.transforms` is applied to the whole batch, in the background too.
    batch_tfms : callable, optional
        Applied to the whole batch in the consumer's thread, on the consumer's device; called
        as ``batch_tfms(x, windows)`` when it says ``needs_smallchunks = True``.
    rank, world_size : int
        Each rank delivers whole blocks of its own, about equally many windows; together
        every window once. Not given: as for `LightDL`, those of `torch.distributed` when a
        process group has been initialised, otherwise 0 of 1.
    on_error : {"raise", "skip"}
        What an image or region does that cannot be read after several attempts: reach
        ``next`` as an error that names patient, record and region; or be left out, window
        by window, and reported by `stats`.
    client : distributed.Client, optional
        Where blocks are read. None: threads of this process.
    block_windows : int or sequence of int, optional
        Windows per block. Default: about 4096 pixels, tile-aligned, within the budget.

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
        dataset_or_image: Any,
        *,
        kernel_size: PerAxis,
        stride: PerAxis | None = None,
        overlap: OverlapLike | None = None,
        batch_size: int = 64,
        level: LevelLike = 0,
        mpp: MppLike | None = None,
        power: PowerLike | None = None,
        record: str | None = None,
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
        on_error: Literal["raise", "skip"] = "raise",
        client: Client | None = None,
        block_windows: PerAxis | None = None,
    ) -> None:
        super().__init__()
        _check_choice("order", order, ("sequential", "interleaved"))
        _check_choice("on_error", on_error, ("raise", "skip"))
        _check_count("batch_size", batch_size)
        _check_count("slides_at_once", slides_at_once)
        if min_interval is not None and not (np.isfinite(min_interval) and min_interval >= 0):
            raise UsageError(f"min_interval must be seconds >= 0, got {min_interval!r}")
        self.batch_size = int(batch_size)
        self.rank, self.world_size = resolve(rank, world_size)
        self.order, self.on_error = order, on_error
        self.tfms, self.batch_tfms = tfms, batch_tfms
        self._slides_at_once = int(slides_at_once)
        self._min_interval = float(min_interval or 0)
        self._budget = to_bytes(resident)
        self._client = client
        wish = Wish(
            kernel_size, stride, overlap, edge, level, mpp, power, record, mask, min_mask,
            block_windows, self._budget,
        )  # fmt: skip
        images, failures = open_images(dataset_or_image, wish, skip=on_error == "skip")
        self._plan = LoadPlan(
            images,
            order=order,
            at_once=self._slides_at_once,
            rank=self.rank,
            world_size=self.world_size,
        )
        self._opening_failures = tuple(failures)
        self._failures: list[WindowFailure] = []
        self._run: Pass | None = None
        self._feed: Feed[Any] | None = None
        self._closer: weakref.finalize[[], SlidingWindowDL] | None = None
        self._closed = self._over = False
        self._position = self._batches = self._windows = 0
        self._wait = 0.0

    # -- life -----------------------------------------------------------------------

    def start(self) -> SlidingWindowDL:
        """Begin to read, before the first batch is asked for. Idempotent."""
        if self._closed:
            raise LoaderClosedError("the loader is closed; make a new one")
        if self._feed is None:
            self._run = Pass(self._plan, self._reader(), self._budget, self.batch_size, self.tfms)
            item_bytes = self._run.window_bytes * self.batch_size
            ahead = max(1, min(_AHEAD_BATCHES, _AHEAD_BYTES // max(item_bytes, 1)))
            self._feed = Feed(self._run.items(self._position), ahead, self._run.reader.close)
            self._closer = weakref.finalize(self, self._feed.close)
        return self

    def _reader(self) -> LoadReader:
        if self._client is None:
            from distributed.system import MEMORY_LIMIT

            check_memory(self._budget, int(MEMORY_LIMIT))
            cluster, threads = None, worker_threads()
        else:
            cluster = connect(self._client)
            check_memory(self._budget, cluster.memory_limit)
            # two more than can be computed at a time: their results are on their way here
            threads = sum(self._client.nthreads().values()) + 2
        return LoadReader(
            cluster, threads, min_interval=self._min_interval, skip=self.on_error == "skip"
        )

    def close(self) -> None:
        """Stop, and let go of all memory. Idempotent."""
        self._closed = True
        if self._closer is not None:
            self._closer()

    def __enter__(self) -> SlidingWindowDL:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- batches --------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Item:
        """The next batch.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait, for ever by default.

        Returns
        -------
        x : torch.Tensor
            ``[n, c, *kernel]``, after `tfms` and `batch_tfms`.
        patients : list of Patient
            Of each window.
        windows : WindowChunks
            Location, index in the grid, level, mpp, patient, record of each.

        Raises
        ------
        StopIteration
            All windows have been delivered.
        TimeoutError
            No batch came in time.
        LoaderError
            A region could not be read; names patient, record, windows and pixels.
        """
        self.start()
        assert self._feed is not None
        began = time.perf_counter()
        try:
            while True:
                batch, x = self._feed.get(timeout)
                self._position = batch.position
                self._failures += batch.failures
                if len(batch.chunks):
                    break
        except StopIteration:
            self._over = True
            raise
        finally:
            self._wait += time.perf_counter() - began
        self._batches += 1
        self._windows += len(batch.chunks)
        chunks = batch.chunks
        if self.batch_tfms is not None:
            x = torchbridge.transform_batch(x, self.batch_tfms, chunks)
        return x, chunks.patients, chunks

    def __iter__(self) -> Iterator[Item]:
        if torchbridge.in_dataloader_worker():
            raise UsageError(
                "SlidingWindowDL reads in threads or Dask workers, not in processes of a "
                "DataLoader: use DataLoader(loader, batch_size=None, num_workers=0)"
            )
        if self._over and not self._closed:
            self.rewind()
        return self._iterate()

    def rewind(self) -> None:
        """Begin another pass at the first window, wherever this one stands.

        Raises
        ------
        LoaderClosedError
            The loader is closed.
        """
        if self._closed:
            raise LoaderClosedError("the loader is closed; make a new one")
        if self._closer is not None:
            self._closer()
        self._feed, self._over = None, False
        self._position = self._batches = self._windows = 0
        self._failures.clear()
        self._wait = 0.0

    def _iterate(self) -> Iterator[Item]:
        while True:
            try:
                item = self.get()
            except StopIteration:
                return
            yield item
            del item

    def __next__(self) -> Item:
        return self.get()

    def __len__(self) -> int:
        """Batches of a pass, when nothing fails."""
        return -(-self._plan.windows // self.batch_size)

    # -- what there is --------------------------------------------------------------

    @property
    def windows(self) -> int:
        """Windows that this rank delivers in a pass."""
        return self._plan.windows

    @property
    def windows_of(self) -> dict[tuple[str, str], int]:
        """(patient id, record) -> windows that this rank delivers of it in a pass."""
        return self._plan.windows_of()

    @property
    def position(self) -> int:
        """Windows of this pass that lie behind, those that failed included; 0 between passes."""
        return 0 if self._over else self._position

    @property
    def images(self) -> tuple[ImageGrid, ...]:
        """The grids of all images, of all ranks."""
        return tuple(image.described for image in self._plan.images)

    # -- state ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the batch after the last one taken.

        Small and made of plain values: save it as JSON beside what was made of the batches.
        """
        return {
            "version": _STATE_VERSION,
            "position": self._position,
            "batches": self._batches,
            "windows": self._windows,
            "failed": [
                [f.patient, f.record, f.where, f.message, f.windows.tolist()]
                for f in self._failures
            ],
            "parameters": self._parameters(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which a state was saved, here or on another machine.

        Call it before the first batch is taken.

        Raises
        ------
        StateError
            The state is of other images or parameters; names the differences.
        UsageError
            The loader has already started.
        """
        if self._feed is not None:
            raise UsageError("load_state_dict must be called before the loader starts")
        try:
            version, theirs = state["version"], dict(state["parameters"])
            position, batches = int(state["position"]), int(state["batches"])
            windows, failed = int(state["windows"]), list(state["failed"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"this is no state of a SlidingWindowDL: {error!r}") from error
        if version != _STATE_VERSION:
            raise StateError(f"this state has version {version!r}, expected {_STATE_VERSION}")
        mine = self._parameters()
        differing = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        if differing:
            lines = [f"{k}: saved {theirs.get(k)!r}, now {mine.get(k)!r}" for k in differing]
            raise StateError(f"the state belongs to another loader ({'; '.join(lines)})")
        if not 0 <= position <= self._plan.windows:
            raise StateError(f"position {position} is not in a plan of {self._plan.windows}")
        self._position, self._batches, self._windows = position, batches, windows
        self._failures = [
            WindowFailure(p, r, w, m, np.array(v, np.int64)) for p, r, w, m, v in failed
        ]

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
            "order": self.order,
            "slides_at_once": self._slides_at_once if self.order == "interleaved" else None,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    # -- looking at it --------------------------------------------------------------

    def stats(self) -> SlidingStats:
        """Counters of this pass; cheap."""
        run, feed = self._run, self._feed
        return SlidingStats(
            batches=self._batches,
            windows=self._windows,
            total_windows=self._plan.windows,
            seconds=time.perf_counter() - feed.started if feed is not None else 0.0,
            wait_seconds=self._wait,
            blocks_read=run.reader.loads_read if run else 0,
            total_blocks=len(self._plan),
            retries=run.reader.retries if run else 0,
            resident_bytes=run.held if run and not self._closed else 0,
            peak_bytes=run.peak if run else 0,
            budget_bytes=self._budget,
            batches_ready=feed.ready if feed is not None else 0,
            failed=(*self._opening_failures, *self._failures),
        )

    def __repr__(self) -> str:
        size = "x".join(map(str, self._plan.images[0].grid.kernel_size))
        state = "closed" if self._closed else "running" if self._feed else "not started"
        return (
            f"<SlidingWindowDL: {len(self._plan.images)} images, {self.windows} windows of "
            f"{size}, {len(self)} batches, {state}>"
        )

    def _repr_html_(self) -> str:
        import html

        return f"<div><b>{html.escape(repr(self))}</b>{self.stats()._repr_html_()}</div>"

    def __reduce__(self) -> Any:
        raise UsageError(
            "SlidingWindowDL cannot be pickled (a DataLoader with num_workers > 0 does that): "
            "use DataLoader(loader, batch_size=None, num_workers=0); parallelism lives in Dask"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_count(name: str, value: Any) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise UsageError(f"{name} must be an integer >= 1, got {value!r}")
