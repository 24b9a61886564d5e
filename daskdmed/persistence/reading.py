"""What a read task does, in the worker: big chunks from disk into memory.

A `Job` is a small picklable value; `read_jobs` is the function that Dask runs. A job that
fails gives a `ReadFailure` instead of an exception, so that the other big chunks of its
task survive and the loader meets the error exactly where the plan would have drawn from it.
"""

from __future__ import annotations

import math
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.errors import LoaderError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.shared import segments
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.images.context import Context
from daskdmed.images.parts import Boxes, Parts, parts_of, read_some
from daskdmed.persistence.content import Content, Part, choose
from daskdmed.persistence.drawn import Drawn, parts_drawn


@dataclass(frozen=True, slots=True)
class Piece:
    """Pixels that one visit holds; a visit has one or more of them, or an object.

    Spatial axes first, channels last; `origin` in the frame of the view; `target`: see
    `Job.target_region`. With a `Job.around`, `data` begins so many pixels before `origin`. `shape`:
    the extent that is meant by an object, of a `Content`.
    """

    data: Any
    origin: tuple[int, ...]
    target: Array | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a `BigChunkLoader` is told.

    Parameters
    ----------
    patient : str
        Patient id.
    record : str
        Name of the record.
    labels : mapping
        Labels of the patient.
    region : Region
        The big chunk that the grid proposes for this visit, in pixels of the view.
    shape : tuple of int
        Spatial shape of the whole image.
    bigchunk_size : tuple of int
        Largest extent per spatial axis; what a loader returns may not hold more pixels.
    downsample : tuple of float
        Level-0 pixels per pixel along each spatial axis.
    mpp : (float, float) or None
        (x, y) micrometers per pixel.
    visit : int
        Number of the visit in the plan.
    nth : int
        How many visits the record had before.
    """

    patient: str
    record: str
    labels: Any
    region: Region
    shape: tuple[int, ...]
    bigchunk_size: tuple[int, ...]
    downsample: tuple[float, ...]
    mpp: tuple[float, float] | None
    visit: int
    nth: int


#: ``f(read, context, rng)``, see `daskdmed.persistence.content`
RegionChooser: TypeAlias = Callable[
    [Callable[[Region], Array], LoadContext, np.random.Generator], Any
]


@dataclass(frozen=True)
class Job:
    """One visit's read: of a view and maybe a target, of a big chunk that may reach beyond a padded
    image.

    With a `chooser`, the user's loader, `context` is given too, and `rng_place`: key and place of
    its random numbers. `target_ratio`: pixels of the image per pixel of the target, empty for one.
    `around`: what of the image around each region is read with it. `parts`, `target_parts`: what of
    both is read, where that is not all of it. `apart`: boxes of the image that are kept, one behind
    the other along the first axis, in the place of the region.
    """

    view: ImageView
    target: ImageView | None
    region: Region
    context: LoadContext | None = None
    chooser: RegionChooser | None = None
    rng_place: tuple[int, int] = (0, 0)
    target_ratio: tuple[int, ...] = ()
    around: Context | None = None
    parts: Parts | None = None
    target_parts: Parts | None = None
    apart: Boxes | None = None

    @property
    def pixels(self) -> int:
        """Of the image that are read; without what lies around a big chunk that is read whole."""
        return math.prod(self.region.shape) if self.parts is None else self.parts.pixels

    @property
    def nbytes(self) -> int:
        """About what it brings, in bytes; each array begins on a cache line."""
        return sum(
            math.prod((*region.shape, *view.channel_shape)) * view.dtype.itemsize + buffers.LINE
            for view, region in self._parts()
        )

    def _parts(self) -> list[tuple[ImageView, Region]]:
        if self.apart is not None:
            held = [(self.view, self.apart), (self.target, self.target_boxes(self.apart))]
            return [(view, _strip(boxes)) for view, boxes in held if view is not None]
        parts = [(self.view, self.image_region)]
        if self.target is not None:
            parts.append((self.target, self.target_region(self.region)))
        return parts

    @property
    def image_region(self) -> Region:
        """What is read of the image."""
        if self.around is not None:
            return self.around.grown(self.region)
        return self.view.kept(self.region)

    def target_region(self, region: Region) -> Region:
        """The target's pixels that a region of the image touches."""
        return region.cells(self.target_ratio or (1,) * len(region.origin))

    def target_boxes(self, boxes: Boxes) -> Boxes:
        """The target's pixels that boxes of the image touch."""
        return boxes.cells(self.target_ratio or (1,) * len(self.region.origin))

    def drawn(self, drawn: Drawn | None) -> Job:
        """The same, reading no more than is drawn, where that is worth it."""
        if drawn is None:
            return self
        boxes, target = drawn.boxes, None
        if drawn.apart:
            parts: Parts | None = parts_of(self.view, self.region, boxes)
            if self.target is not None:
                region = self.target_region(self.region)
                target = parts_of(self.target, region, self.target_boxes(boxes))
            return replace(self, parts=parts, target_parts=target, apart=boxes)
        grown = boxes if self.around is None else boxes.padded(self.around.around)
        parts = parts_drawn(self.view, self.image_region, grown)
        if self.target is not None:
            region = self.target_region(self.region)
            target = parts_drawn(self.target, region, self.target_boxes(boxes))
        return replace(self, parts=parts, target_parts=target)

    @property
    def digest(self) -> str:
        """Names what is read of the region; empty for all of it."""
        if self.apart is not None:
            return f"|{self.apart.digest}"
        named = [("", self.parts), ("+", self.target_parts)]
        return "".join(name + parts.digest for name, parts in named if parts is not None)

    def localised(self, client: Any) -> tuple[Job, tuple[Any, Any]]:
        """A copy that can travel, and what has to be delivered to it (for the image and its
        target).

        Dask arrays are culled to the region. Arrays that are persisted on the cluster are replaced
        by a future of the region's values, see `read_delivered`.
        """
        view, pixels = _travelling(self.view, self.region, self, client)
        if self.target is None:
            return replace(self, view=view), (pixels, None)
        region = self.target_region(self.region)
        target, target_pixels = _travelling(self.target, region, self, client)
        return replace(self, view=view, target=target), (pixels, target_pixels)


def _travelling(view: ImageView, region: Region, job: Job, client: Any) -> tuple[ImageView, Any]:
    inside = region.clip(view.spatial_shape)
    if job.around is not None and view is job.view:
        inside = job.around.needs(view, region)
    if view.remote is None:
        # a loader of the user's may read anywhere
        return (view.narrowed(inside) if job.chooser is None else view), None
    if view.remote is not client or job.chooser is not None:
        raise UsageError(
            "a persisted Dask array can only be drawn from on the cluster that holds it, and "
            "not with a bigchunk_loader; give that cluster's client, or the array before "
            "persist()"
        )
    return view.detached(inside), client.compute(view.delivery(inside))


def _strip(boxes: Boxes) -> Region:
    """The shape of boxes of one size that lie one behind the other along the first axis."""
    size = boxes.size
    return Region.of((len(boxes) * size[0], *size[1:]))


class ReadFailure:
    """A big chunk that could not be read, in place of its pixels."""

    def __init__(self, error: BaseException, region: Region) -> None:
        self.error = error
        self.region = region

    def __reduce__(self) -> tuple[Any, ...]:
        error: BaseException = self.error
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever an exception of unknown origin does when pickled
            error = LoaderError(f"{type(error).__name__}: {error}")
        return type(self), (error, self.region)


#: what one job gives: the block itself, or pieces, or the failure
Loaded: TypeAlias = Any


def read_jobs(jobs: Sequence[Job], memory: segments.Allocator | None = None) -> Loaded:
    """Read big chunks, one after the other, into recycled memory or that of an allocator.

    Gives an ndarray, a list of (origin, ndarray, ndarray or None), a Content, or a ReadFailure for
    one job; a list of these for several. A plain block is a bare array, so that Dask counts its
    bytes and moves it without copying.
    """
    loaded = [_read_job(job, memory) for job in jobs]
    return loaded[0] if len(loaded) == 1 else loaded


def read_for_others(
    jobs: Sequence[Job], delivered: Sequence[tuple[Any, Any]] | None = None
) -> Loaded:
    """Read big chunks in a worker process; the body of a Dask task.

    Into memory that other processes of the machine can map, unless ``daskdmed.shared-memory`` says
    no. `delivered`: values of (image, target) for views that were detached.
    """
    if delivered is not None:
        jobs = [
            replace(job, view=_attach(job.view, pixels), target=_attach(job.target, target))
            for job, (pixels, target) in zip(jobs, delivered, strict=True)
        ]
    if not segments.enabled():
        return read_jobs(jobs)
    return read_jobs(jobs, segments.Allocator(sum(job.nbytes for job in jobs)))


def _attach(view: Any, values: Array | None) -> Any:
    return view if values is None else view.attached(np.asarray(values))


class Ticket:
    """Jobs that a worker thread of this process fetches, and the result that it leaves.

    Dask pickles every task, even for workers in the same process: arrays made of closures
    would not survive that, and large graphs would cost more than the read. And asking Dask
    for a result costs several turns of its event loop, which decoding threads pay for.
    """

    __slots__ = ("__weakref__", "_done", "_listeners", "_lock", "jobs", "result")

    def __init__(self, jobs: tuple[Job, ...]) -> None:
        self.jobs = jobs
        self.result: Loaded = None
        self._done = False
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def deliver(self, result: Loaded) -> None:
        """Leave the result and tell those who wait for it."""
        with self._lock:
            self.result = result
            self._done = True
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def deliver_failure(self, error: BaseException) -> None:
        """Leave a failure in place of every job's result."""
        failures = [ReadFailure(error, job.region) for job in self.jobs]
        self.deliver(failures[0] if len(failures) == 1 else failures)

    @property
    def done(self) -> bool:
        return self._done

    def when_done(self, listener: Callable[[], None]) -> None:
        """Call a function once the result is there, which may be now."""
        with self._lock:
            if not self._done:
                self._listeners.append(listener)
                return
        listener()


_tickets: weakref.WeakValueDictionary[str, Ticket] = weakref.WeakValueDictionary()
_tickets_lock = threading.Lock()


def leave_ticket(name: str, jobs: tuple[Job, ...]) -> Ticket:
    """Leave jobs for `read_ticket`, which finds them as long as someone keeps the ticket.

    Loaders that want the same content share the name, and so the ticket.
    """
    with _tickets_lock:
        ticket = _tickets.get(name)
        if ticket is None:
            ticket = _tickets[name] = Ticket(jobs)
        return ticket


def read_ticket(name: str) -> Loaded:
    """Read the jobs left under a name; the body of a task in an in-process cluster.

    Gives None when all loaders that wanted them have been closed meanwhile.
    """
    ticket = _tickets.get(name)
    if ticket is None:
        return None
    result = read_jobs(ticket.jobs)
    ticket.deliver(result)
    return result


def pieces_of(loaded: Loaded, job_region: Region) -> list[Piece] | ReadFailure:
    """Give what `read_jobs` made of one job its common form."""
    if isinstance(loaded, ReadFailure):
        return loaded
    if isinstance(loaded, np.ndarray):
        return [Piece(loaded, job_region.origin)]
    if isinstance(loaded, Content):
        region = loaded.region or job_region
        return [Piece(loaded.value, region.origin, shape=region.shape)]
    return [Piece(data, tuple(origin), target) for origin, data, target in loaded]


def _read_job(job: Job, memory: segments.Allocator | None) -> Loaded:
    try:
        if job.apart is not None:
            return _read_apart(job, job.apart, memory)
        parts = [job.region] if job.chooser is None else choose(job)
        if isinstance(parts, Content):
            return parts
        blocks = [_block(job, part, memory) for part in parts]
    except Exception as error:  # carried to the consumer, see the module's docstring
        return ReadFailure(error, job.region)
    if job.chooser is None and job.target is None:
        return blocks[0][1]
    return blocks


def _read_apart(job: Job, boxes: Boxes, memory: segments.Allocator | None) -> Loaded:
    data = _boxes(job.view, job.parts, boxes, memory)
    if job.target is None:
        return data
    target = _boxes(job.target, job.target_parts, job.target_boxes(boxes), memory)
    return [(job.region.origin, data, target)]


def _boxes(
    view: ImageView, parts: Parts | None, boxes: Boxes, memory: segments.Allocator | None
) -> Array:
    assert parts is not None
    empty = buffers.empty if memory is None else memory.empty
    strip = empty((*_strip(boxes).shape, *view.channel_shape), view.dtype)
    parts.read_apart(view, boxes, strip.reshape(len(boxes), *boxes.size, *view.channel_shape))
    return strip


def _block(
    job: Job, part: Part, memory: segments.Allocator | None
) -> tuple[tuple[int, ...], Array, Array | None]:
    if isinstance(part, Region):
        return part.origin, _read_image(job, part, memory), _read_target(job, part, memory)
    data, region = part
    own = data if memory is None else memory.own(data)
    return region.origin, own, _read_target(job, region, memory)


def _read_image(job: Job, region: Region, memory: segments.Allocator | None) -> Array:
    if job.around is not None:
        read = job.around.read(job.view, region, job.parts)
        return read if memory is None else memory.own(read)
    kept = job.view.kept(region)
    return _read(job.view, kept, job.parts, memory)[region.local_to(kept).slices]


def _read_target(job: Job, region: Region, memory: segments.Allocator | None) -> Array | None:
    if job.target is None:
        return None
    return _read(job.target, job.target_region(region), job.target_parts, memory)


def _read(
    view: ImageView, region: Region, parts: Parts | None, memory: segments.Allocator | None
) -> Array:
    out = None
    if memory is not None:
        out = memory.empty((*region.shape, *view.channel_shape), view.dtype)
    return read_some(view, region, parts, out)
