"""Batches made ahead of the consumer, by a thread of its own.

A `Prefetcher` knows nothing of the object that users hold, so that a forgotten loader is
collected and its thread ends. Not covered: how batches are made.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from daskdmed.core.errors import LoaderClosedError
from daskdmed.core.waiting import Silence
from daskdmed.loading.stats import Meter

logger = logging.getLogger("daskdmed.loading")

#: a batch, with its `smallchunks`, and its tensor
Item: TypeAlias = tuple[Any, Any]

#: batches made ahead of the consumer, at most this many bytes of them
_AHEAD_BYTES = 64 << 20
_AHEAD_BATCHES = 4
#: seconds that closing waits for user code which the thread runs
_PATIENCE = 60.0


class Prefetcher:
    """Takes pairs of a batch (with `smallchunks`) and its tensor from a generator, in a thread.

    At most 64 MiB and four batches are ready before the thread waits. `interrupt` is called by
    `close`, first: it makes `items` end, though it waits for something; `close` last: it lets go
    of what `items` used. `describe` says what is going on, for those who wait long.
    """

    def __init__(
        self,
        items: Generator[Item, None, None],
        nbytes: int,
        *,
        meter: Meter,
        interrupt: Callable[[], None],
        close: Callable[[], None] = lambda: None,
        describe: Callable[[], str] = lambda: "",
    ) -> None:
        self._items = items
        self._ahead = max(1, min(_AHEAD_BATCHES, _AHEAD_BYTES // max(nbytes, 1)))
        self._meter = meter
        self._interrupt, self._close, self._describe = interrupt, close, describe
        self._silence = Silence(f"batch of {meter.loader}", logger, self._why)
        self._ready: deque[Item] = deque()
        self._change = threading.Condition()
        self._running = True
        self._paused = False
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="daskdmed-loader", daemon=True)
        self._thread.start()

    # -- producer -------------------------------------------------------------------

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            with contextlib.closing(self._items):
                self._run()
        except BaseException as error:  # handed to the consumer, whatever it is
            end = error
        with self._change:
            self._end = end
            self._change.notify_all()

    def _run(self) -> None:
        for item in self._items:
            size = len(item[0].smallchunks)
            if size:
                self._meter.made(size)
            with self._change:
                while self._running and (self._paused or len(self._ready) >= self._ahead):
                    self._change.wait()
                if not self._running:
                    return
                self._ready.append(item)
                self._change.notify_all()
            del item  # no reference while the next one is made

    # -- consumer -------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Item:
        """The next item.

        StopIteration: there are no more. TimeoutError: none came in time; says what is waited
        for, as one line of log does after a while. LoaderClosedError: it is closed. What went
        wrong while items were made is raised again at every further call.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            item = self._take(deadline)
            if item is not None:
                return item
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no batch within {timeout} s ({self._why()})")
            self._silence.tell()

    def _take(self, deadline: float) -> Item | None:
        """The next item; None at the deadline, or when the silence has been long."""
        silence = self._silence
        with self._change:
            while not self._ready:
                if not self._running:
                    raise LoaderClosedError("the loader is closed; make a new one")
                if self._end is not None:
                    raise self._end
                silence.begin()
                left = min(deadline - time.monotonic(), silence.left)
                if left <= 0:
                    return None
                self._change.wait(None if math.isinf(left) else left)
            silence.end()
            item = self._ready.popleft()
            self._change.notify_all()
            return item

    def _why(self) -> str:
        if self._paused:
            return f"the loader is paused, call resume(); {self._describe()}"
        return self._describe()

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """Make no further items until `resume`; those that are ready can be taken."""
        with self._change:
            self._paused = True

    def resume(self) -> None:
        with self._change:
            self._paused = False
            self._change.notify_all()

    def close(self) -> None:
        """Stop the thread, forget what is ready, let go of what was used. Idempotent."""
        with self._change:
            if not self._running:
                return
            self._running = False
            self._ready.clear()
            self._change.notify_all()
        self._interrupt()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=_PATIENCE)
            if self._thread.is_alive():
                logger.warning("the loader's thread is still busy in user code")
        self._close()
