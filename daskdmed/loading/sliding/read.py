"""Reading the loads of a sliding-window loader, in threads of this process or by Dask.

Each load is read by one thread of a small pool. Without a client that thread decodes; with
one it has a worker do so and waits, so that ordering, retries and the interval between
loads are the same in both cases. What cannot be read after some attempts is an error, or is
narrowed down to its storage tiles and left out, window by window.

Not covered: which loads there are (`daskdmed.loading.sliding.plan`) and how far ahead they
are read (`daskdmed.loading.sliding.ahead`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from distributed import KilledWorker

from daskdmed.core import buffers
from daskdmed.core.errors import DaskdmedError, ImageError, LoaderClosedError, LoaderError
from daskdmed.core.region import Region
from daskdmed.core.shared import segments
from daskdmed.core.types import Array
from daskdmed.core.waiting import explain
from daskdmed.loading.sliding.plan import Load, needed_regions, windows_touching
from daskdmed.persistence.cluster import LOOK_EVERY, Cluster, Workers, lost_connection
from daskdmed.persistence.reading import (
    Job,
    ReadFailure,
    leave_ticket,
    read_for_others,
    read_jobs,
    read_ticket,
)
from daskdmed.persistence.sharing import Sharing

logger = logging.getLogger("daskdmed.inference")

#: how often a region is tried before it counts as unreadable
ATTEMPTS = 3
#: reads that may fail while one load is narrowed down; then the rest of it is given up
_NARROWING = 48


@dataclass(frozen=True, slots=True, eq=False)
class WindowFailure:
    """Windows that could not be read, under ``on_error="skip"``.

    Parameters
    ----------
    patient, record : str
        Whose.
    where : str
        "open", or the region of the load.
    message : str
        The error.
    windows : ndarray of int64, shape (n, axes)
        Numbers along each axis of the windows that are missing. Empty when the image could
        not even be opened, since then it is not known which there are.
    """

    patient: str
    record: str
    where: str
    message: str
    windows: Array

    def __str__(self) -> str:
        return f"{self.patient}/{self.record} {self.where}: {self.message}"


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Pixels of a load."""

    #: ``(*block.extent[, c])``, undefined under windows that are not delivered
    pixels: Array
    #: bool, shape ``block.shape``: windows that could not be read
    lost: Array | None = None
    failure: WindowFailure | None = None


class Throttle:
    """Least interval in seconds between the beginnings of loads."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._lock = threading.Lock()
        self._next = float("-inf")

    def reserve(self, now: float) -> float:
        """Book the next beginning; gives the seconds to wait from `now`."""
        with self._lock:
            begin = max(now, self._next)
            self._next = begin + self.interval
            return begin - now


class LoadReader:
    """Reads loads in a pool of threads; on the cluster where there is one."""

    def __init__(
        self, cluster: Cluster | None, threads: int, *, min_interval: float, skip: bool
    ) -> None:
        self.cluster = cluster
        self.retries = 0
        self.loads_read = 0
        self._skip = skip
        self._throttle = Throttle(min_interval)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "daskdmed-windows")
        self._label = uuid4().hex[:12]
        self._serial = itertools.count()
        self._flying: set[Any] = set()
        self._workers = None if cluster is None else Workers(cluster.client)
        self._sharing = None
        if cluster is not None and not cluster.in_process and segments.enabled():
            self._sharing = Sharing(cluster.client)

    def submit(self, load: Load) -> concurrent.futures.Future[Loaded]:
        """Begin to read a load once a thread is free."""
        return self._pool.submit(self._read, load)

    def close(self) -> None:
        """Give up what is being read, and end the threads. Idempotent."""
        self._closed.set()
        with self._lock:
            flying, self._flying = list(self._flying), set()
        if flying and self.cluster is not None and self.cluster.client.status == "running":
            self.cluster.client.cancel(flying, force=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def describe(self) -> str:
        """What becomes of the reads that are under way, in words."""
        if self.cluster is None:
            return "threads of this process are reading"
        with self._lock:
            keys = sorted((future.key for future in self._flying), key=lambda key: key[2:])
        return explain(self.cluster.client, keys)

    # -- one load -------------------------------------------------------------------

    def _read(self, load: Load) -> Loaded:
        self._closed.wait(self._throttle.reserve(time.monotonic()))
        regions = needed_regions(load)
        answers = self._attempt(load, regions)
        errors = [a.error for a in answers if isinstance(a, ReadFailure)]
        lost: list[Region] = []
        if errors and not self._skip:
            raise _described(load, errors[0]) from errors[0]
        if errors:
            regions, answers, lost = self._narrow(load, regions, answers)
        pixels = _assembled(load, regions, answers)
        with self._lock:
            self.loads_read += 1
        if not lost:
            return Loaded(pixels)
        return _with_losses(load, pixels, lost, errors[0])

    def _attempt(
        self, load: Load, regions: Sequence[Region], attempts: int = ATTEMPTS
    ) -> list[Any]:
        """Arrays or `ReadFailure` for some regions, those that fail tried again."""
        answers: dict[int, Any] = {}
        todo = list(range(len(regions)))
        for attempt in range(attempts):
            if attempt:
                with self._lock:
                    self.retries += 1
                logger.info("%s: reading %s again", load.image.patient.id, load)
            fetched = self._fetch(load, [regions[i] for i in todo])
            answers.update(zip(todo, fetched, strict=True))
            # only what may pass is tried again: files, networks, workers
            todo = [i for i in todo if isinstance(getattr(answers[i], "error", None), OSError)]
            if not todo:
                break
        return [answers[i] for i in range(len(regions))]

    def _narrow(
        self, load: Load, regions: Sequence[Region], answers: Sequence[Any]
    ) -> tuple[list[Region], list[Array], list[Region]]:
        """Halve what failed until single storage tiles fail: (regions, pixels, lost)."""
        good: list[Region] = []
        pixels: list[Array] = []
        lost: list[Region] = []
        left = _NARROWING
        todo = list(zip(regions, answers, strict=True))
        while todo:
            region, answer = todo.pop()
            if not isinstance(answer, ReadFailure):
                good.append(region)
                pixels.append(answer)
                continue
            halves = _halves(region, load.image.view.tile_shape) if left > 0 else None
            if halves is None:
                lost.append(region)
                continue
            found = self._attempt(load, halves, attempts=1)
            left -= sum(isinstance(a, ReadFailure) for a in found)
            todo += zip(halves, found, strict=True)
        return good, pixels, lost

    # -- pixels ---------------------------------------------------------------------

    def _fetch(self, load: Load, regions: Sequence[Region]) -> list[Any]:
        if self._closed.is_set():
            raise LoaderClosedError("the loader was closed while it read")
        whole = load.block.region  # read with its padding, straight into one array
        padded = Region(whole.origin, load.block.extent)
        jobs = tuple(Job(load.image.view, None, padded if r == whole else r) for r in regions)
        loaded = read_jobs(jobs) if self.cluster is None else self._on_cluster(load, jobs)
        return [loaded] if len(jobs) == 1 else loaded

    def _on_cluster(self, load: Load, jobs: tuple[Job, ...]) -> Any:
        assert self.cluster is not None
        assert self._workers is not None
        self._workers.check_same()
        client = self.cluster.client
        key = ("window-block", self._label, load.number, next(self._serial))
        ticket = None
        call: tuple[Any, ...]
        try:
            if self.cluster.in_process:
                # Dask pickles tasks even for threads; jobs may hold what does not survive that
                name = f"{client.scheduler.address} {key}"
                ticket = leave_ticket(name, jobs)
                call = (read_ticket, name)
            else:
                travelling, values = zip(*(j.localised(client) for j in jobs), strict=True)
                call = (read_for_others, travelling)
                if any(v != (None, None) for v in values):
                    call = (read_for_others, travelling, [list(v) for v in values])
            future = client.submit(*call, key=key, priority=-load.number)
        except DaskdmedError:
            raise
        except Exception as error:
            raise lost_connection(error) from error
        with self._lock:
            self._flying.add(future)
        try:
            result = self._wait(client, future)
            return result if ticket is None else ticket.result
        except KilledWorker as error:
            # Dask has tried several workers; an error of its own kind per region is tried again
            died = ImageError(f"workers died while they read this: {error}")
            failures = [ReadFailure(died, job.region) for job in jobs]
            return failures[0] if len(failures) == 1 else failures
        finally:
            with self._lock:
                self._flying.discard(future)
            # whoever else may hold the future for a while, the worker's memory is free now
            with contextlib.suppress(RuntimeError):  # the client's event loop has ended
                future.release()

    def _wait(self, client: Any, future: Any) -> Any:
        """What a task gave; waits through the death of workers."""
        while True:
            try:
                # waits by its own client, which need not be the default one
                future.exception(timeout=LOOK_EVERY)
                mapped = None
                if self._sharing is not None:
                    mapped, _ = client.sync(self._sharing.map, future.key)
                return client.gather([future], direct=True)[0] if mapped is None else mapped
            except TimeoutError:
                self._check()
            except (KilledWorker, DaskdmedError):
                raise
            except Exception as error:  # reading itself raises nothing: this is the cluster's
                if self._closed.is_set():
                    raise LoaderClosedError("the loader was closed while it read") from error
                raise lost_connection(error) from error

    def _check(self) -> None:
        if self._closed.is_set():
            raise LoaderClosedError("the loader was closed while it read")
        assert self._workers is not None
        self._workers.check_alive()


def _halves(region: Region, tiles: Sequence[int]) -> list[Region] | None:
    """Two halves that meet on a storage tile edge; None for a region within one tile."""
    spans = [
        -(-stop // tile) - first // tile
        for first, stop, tile in zip(region.origin, region.stop, tiles, strict=True)
    ]
    axis = max(range(len(spans)), key=lambda a: spans[a])
    if spans[axis] < 2:
        return None
    cut = (region.origin[axis] // tiles[axis] + spans[axis] // 2) * tiles[axis]
    before, after = list(region.shape), list(region.shape)
    origin = list(region.origin)
    before[axis] = cut - region.origin[axis]
    after[axis] -= before[axis]
    origin[axis] = cut
    return [Region(region.origin, tuple(before)), Region(tuple(origin), tuple(after))]


def _assembled(load: Load, regions: Sequence[Region], answers: Sequence[Array]) -> Array:
    """The pixels of a block from its parts, background outside the image."""
    block, view = load.block, load.image.view
    if len(answers) == 1 and answers[0].shape[: view.spatial_ndim] == block.extent:
        return answers[0]
    pixels = buffers.empty((*block.extent, *view.channel_shape), view.dtype)
    for region, part in zip(regions, answers, strict=True):
        pixels[region.local_to(block.region).slices] = part
    background = np.asarray(view.background, view.dtype)
    for axis, pad in enumerate(block.padding):
        if pad:
            outside = (slice(None),) * axis + (slice(block.region.shape[axis], None),)
            pixels[outside] = background
    return pixels


def _described(load: Load, error: BaseException) -> LoaderError:
    patient, record = load.image.patient.id, load.image.record
    said = f"patient {patient!r}, record {record!r}, {load}: {type(error).__name__}: {error}"
    return LoaderError(said, patient=str(patient), record=record)


def _with_losses(
    load: Load, pixels: Array, regions: Sequence[Region], error: BaseException
) -> Loaded:
    lost = windows_touching(load, regions)
    if load.keep is not None:
        lost &= load.keep
    windows = np.argwhere(lost) + np.array(load.block.start)
    failure = WindowFailure(
        patient=str(load.image.patient.id),
        record=load.image.record,
        where=str(load),
        message=f"{len(windows)} windows left out: {type(error).__name__}: {error}",
        windows=windows.astype(np.int64),
    )
    logger.warning("left out %s", failure)
    return Loaded(pixels, lost, failure)
