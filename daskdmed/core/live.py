"""What goes on in this process, for those who show it: loaders and runs that can be asked.

A loader that was started, and a run on a cluster, are `Watched`: they say at any moment how far
they are, in plain values. `show` has what is watched shown on the dashboard of a client, as
``dask.config`` "daskdmed.monitor" allows; nothing waits for that, and nothing fails because of it.

What shows it (`daskdmed.monitor`) stands above all this and is found by its name, when there is
something to show. What *happens* is told by `daskdmed.core.events`.
"""

from __future__ import annotations

import importlib
import logging
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import dask

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("daskdmed.monitor")

#: what becomes of a big chunk: it was asked for, it is there, it is waited for (more than both)
ASKED, READY, WAITED = 0, 1, 2
#: a visit's number, what becomes of it, and how many draws it has left (-1: all of them)
Cell: TypeAlias = tuple[int, int, int]
#: patient, record, origin and shape of a visit, and the seconds since it was asked for
Place: TypeAlias = tuple[str, str, tuple[int, ...], tuple[int, ...], float]


class Watched(Protocol):
    """What can be shown; asked by other threads than its own."""

    name: str

    def now(self) -> dict[str, Any]:
        """How far it is: plain values, "kind" ("loader" or "run") among them.

        Nothing when it is over; a run says that it has "ended".
        """

    def cells(self) -> list[Cell]:
        """The big chunks in memory or being read."""

    def place(self, visit: int) -> Place | None:
        """Where a visit's big chunk lies; None when it has gone meanwhile."""


class WatchedRun:
    """How far some work in blocks is; `total`, `before` and `done` count those of all images."""

    def __init__(self, of: str, number: str) -> None:
        self.name = f"{of}-{number[:6]}"
        #: "done", the error that ended it, or empty while it goes on
        self.ended = ""
        self.total = self.before = self.done = 0
        self._of, self._image = of, ""
        self._began = time.monotonic()

    def begin(self, image: str, total: int, done: int) -> None:
        """The blocks of an image are about to be computed, some were done before."""
        self._image = image
        self.total += total
        self.before += done
        self.done += done

    def now(self) -> dict[str, Any]:
        return {
            "kind": "run",
            "of": self._of,
            "image": self._image,
            "total": self.total,
            "before": self.before,
            "done": self.done,
            "seconds": time.monotonic() - self._began,
            "ended": self.ended,
        }

    def cells(self) -> list[Cell]:
        return []

    def place(self, visit: int) -> Place | None:
        return None


_loaders: weakref.WeakSet[Any] = weakref.WeakSet()


def add(loader: Watched) -> None:
    """A loader has been started: `loaders` has it until it is forgotten."""
    _loaders.add(loader)


def remove(loader: Watched) -> None:
    """It was closed."""
    _loaders.discard(loader)


def loaders() -> Iterable[Watched]:
    """Those that go on in this process."""
    return list(_loaders)


def show(client: Client | None, what: Watched) -> None:
    """Have it shown on the dashboard of a client's scheduler, until it says that it is over.

    What that lacks (a dashboard, daskdmed, anything) is said in one line of the log, at debug
    level.
    """
    if client is None or not dask.config.get("daskdmed.monitor", True):
        return
    try:
        monitor("feed").start(client, what)
    except Exception as error:  # whatever it is, the work goes on
        logger.debug("%s is not shown: %s: %s", what.name, type(error).__name__, error)


def monitor(module: str) -> Any:
    """A module of `daskdmed.monitor`, which stands above all that can be watched."""
    return importlib.import_module(f"daskdmed.monitor.{module}")
