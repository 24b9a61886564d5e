"""What happens while loaders and runs go on, as small values that anybody can listen to.

Progress bars, logs, dashboards and counters are subscribers; what emits does not know them.
Events are of the process that trains or that called `heatmap`: workers of a cluster emit none.

An event is made only when somebody listens::

    if events.listening():
        events.emit(events.BatchTaken(loader, number, size, waited))

Not covered: what becomes of events (`daskdmed.core.progress` shows one use).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

logger = logging.getLogger("daskdmed.events")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Parameters
    ----------
    time : float
        When, by `time.monotonic`, in seconds.
    """

    time: float = field(default_factory=time.monotonic, kw_only=True)


@dataclass(frozen=True, slots=True)
class _OfBigChunk(Event):
    """A big chunk's place.

    Parameters
    ----------
    loader : str
        Name of the loader, one per loader and process.
    patient, record : str
        Of which image.
    visit : int
        Number of the stay in memory, counted from 0 per loader.
    origin, shape : tuple of int
        Its box in pixels of the resolution that is read, array order.
    """

    loader: str
    patient: str
    record: str
    visit: int
    origin: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BigChunkRequested(_OfBigChunk):
    """A big chunk was asked for; a worker is going to read it."""


@dataclass(frozen=True, slots=True)
class BigChunkReady(_OfBigChunk):
    """A big chunk is in memory, or could not be read.

    Parameters
    ----------
    seconds : float
        Since it was asked for.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class BigChunkEvicted(_OfBigChunk):
    """A big chunk was let go of: it has given all its draws, or the loader was closed."""


@dataclass(frozen=True, slots=True)
class _OfBatch(Event):
    """A batch.

    Parameters
    ----------
    loader : str
        Name of the loader.
    number : int
        Of the batch, counted from 0 per loader.
    size : int
        Small chunks or windows in it.
    """

    loader: str
    number: int
    size: int


@dataclass(frozen=True, slots=True)
class BatchMade(_OfBatch):
    """A batch is complete and waits to be taken."""


@dataclass(frozen=True, slots=True)
class BatchTaken(_OfBatch):
    """A batch was given to the caller.

    Parameters
    ----------
    waited : float
        Seconds that the caller waited for it.
    """

    waited: float


@dataclass(frozen=True, slots=True)
class SlideSkipped(Event):
    """An image is left out, as ``on_error="skip"`` asks for.

    Parameters
    ----------
    patient, record : str
        Which one.
    reason : str
        Kind and message of the error.
    """

    patient: str
    record: str
    reason: str


@dataclass(frozen=True, slots=True)
class _OfRun(Event):
    """Some work on one image, in blocks.

    Parameters
    ----------
    run : str
        Unique per call; the images of a dataset share it.
    name : str
        What is done: "heatmap", "predict", "tissue", "to-ome-zarr"...
    image : str
        What it is done with.
    """

    run: str
    name: str
    image: str


@dataclass(frozen=True, slots=True)
class _Progress(_OfRun):
    """How far the work on one image is.

    Parameters
    ----------
    total, done : int
        Blocks, and how many of them are done (of a run that is resumed: were done before).
    """

    total: int
    done: int


@dataclass(frozen=True, slots=True)
class RunStarted(_Progress):
    """The blocks of one image are about to be computed."""


@dataclass(frozen=True, slots=True)
class BlockDone(_OfRun):
    """A block was computed, written and noted.

    Parameters
    ----------
    index : tuple of int
        Its position among the blocks.
    """

    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunFinished(_Progress):
    """The work on one image ended.

    Parameters
    ----------
    error : str
        Kind and message of what ended it, empty when it is complete.
    """

    error: str = ""


Callback: TypeAlias = Callable[[Event], object]

_subscribers: tuple[Callback, ...] = ()
_lock = threading.Lock()


def subscribe(callback: Callback) -> Callable[[], None]:
    """Have a function called with every event of this process.

    Parameters
    ----------
    callback : callable
        Gets each event, in the thread in which it happened and before that goes on: be quick.
        Filter by type; there will be more types. What it raises is logged and harms nobody.

    Returns
    -------
    callable
        Ends the subscription; may be called more than once.

    Examples
    --------
    >>> from daskdmed import events
    >>> seen = []
    >>> unsubscribe = events.subscribe(seen.append)
    >>> unsubscribe()
    """
    global _subscribers
    own: Callback = lambda event: callback(event)  # noqa: E731  each subscription is one of its own
    with _lock:
        _subscribers = (*_subscribers, own)

    def unsubscribe() -> None:
        global _subscribers
        with _lock:
            _subscribers = tuple(s for s in _subscribers if s is not own)

    return unsubscribe


def listening() -> bool:
    """Whether anybody listens; ask before making an event."""
    return bool(_subscribers)


def emit(event: Event) -> None:
    """Tell all subscribers, in the calling thread."""
    for callback in _subscribers:
        try:
            callback(event)
        except Exception:
            logger.exception("a subscriber failed on %s", type(event).__name__)
