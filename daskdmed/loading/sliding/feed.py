"""A pass of a sliding-window loader: loads read ahead, cut in order, in a thread of its own.

Not covered: reading (`loader_read`), cutting (`loader_batches`), what users hold (`loader`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future as PoolFuture
from typing import Any, Generic, TypeVar

import numpy as np

from daskdmed.core.errors import LoaderClosedError
from daskdmed.images import buffers
from daskdmed.loading import torchbridge
from daskdmed.loading.sliding.batches import Cutter, WindowBatch, WindowChunks
from daskdmed.loading.sliding.plan import Load, LoadPlan
from daskdmed.loading.sliding.read import Loaded, LoadReader

T = TypeVar("T")


class Pass:
    """One pass: loads read ahead within the budget, cut into batches in order."""

    def __init__(
        self,
        plan: LoadPlan,
        reader: LoadReader,
        budget: int,
        batch_size: int,
        tfms: Callable[[Any], Any] | None,
    ) -> None:
        self.reader = reader
        self.held = self.peak = 0
        self._plan = plan
        self._budget = budget
        self._size = batch_size
        self._tfms = tfms
        view = plan.images[0].view
        grid = plan.images[0].grid
        self._shape = (*grid.kernel_size, *view.shape[grid.ndim :])
        self._dtype = view.dtype
        self._ndim = grid.ndim
        self.window_bytes = int(np.prod(self._shape, dtype=np.int64)) * view.dtype.itemsize

    def items(self, position: int) -> Generator[tuple[WindowBatch, Any], None, None]:
        """Batches from a position on, each with its tensor."""
        cutter = Cutter(self._size, self._shape, self._dtype)
        number, skip = self._plan.locate(position)
        ahead: deque[tuple[Load, PoolFuture[Loaded]]] = deque()
        while True:
            while number < len(self._plan):
                load = self._plan.load(number)
                if ahead and self.held + load.nbytes > self._budget:
                    break
                ahead.append((load, self.reader.submit(load)))
                self.held += load.nbytes
                self.peak = max(self.peak, self.held)
                number += 1
            if not ahead:
                break
            load, future = ahead.popleft()
            loaded = future.result()
            del future  # it holds the pixels
            for batch in cutter.cut(load, loaded, skip):
                yield batch, self._tensor(batch.chunks)
                del batch
            del loaded
            self.held -= load.nbytes
            skip = 0
        rest = cutter.rest(self._plan.windows)
        if rest is not None:
            yield rest, self._tensor(rest.chunks)

    def _tensor(self, chunks: WindowChunks) -> Any:
        x = torchbridge.to_tensor(chunks.data, self._ndim)
        if self._tfms is None or not len(chunks):
            return x
        if torchbridge.takes_smallchunks(self._tfms):
            return torchbridge.transform_batch(x, self._tfms, chunks)
        return torchbridge.transform_each(x, self._tfms)


class Feed(Generic[T]):
    """Takes items from an iterator in a thread of its own, a bounded number ahead.

    Parameters
    ----------
    items : generator
        Closed in that thread at the end.
    ahead : int
        Items ready before the thread waits.
    stop : callable
        Called once by `close`, first: makes a waiting `items` end.
    """

    def __init__(
        self, items: Generator[T, None, None], ahead: int, stop: Callable[[], None]
    ) -> None:
        self.started = time.perf_counter()
        self._items = items
        self._ahead = ahead
        self._stop = stop
        self._ready: deque[T] = deque()
        self._change = threading.Condition()
        self._running = True
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="daskdmed-windows", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        end: BaseException
        try:
            with contextlib.closing(self._items):
                end = self._run()
        except BaseException as error:  # handed to the consumer, whatever it is
            end = error
        with self._change:
            self._end = end
            self._change.notify_all()

    def _run(self) -> BaseException:
        for item in self._items:
            with self._change:
                while self._running and len(self._ready) >= self._ahead:
                    self._change.wait()
                if not self._running:
                    break
                self._ready.append(item)
                self._change.notify_all()
            del item  # no reference while the next one is made
        return StopIteration()

    def get(self, timeout: float | None = None) -> T:
        """The next item.

        Raises
        ------
        StopIteration
            There are no more.
        TimeoutError
            None came in time.
        LoaderClosedError
            The feed is closed.
        Exception
            What went wrong, again at every further call.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._change:
            while not self._ready:
                if not self._running:
                    raise LoaderClosedError("the loader is closed; make a new one")
                if self._end is not None:
                    raise self._end
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"no batch within {timeout} s")
                self._change.wait(left)
            item = self._ready.popleft()
            self._change.notify_all()
            return item

    @property
    def ready(self) -> int:
        """Items made and not yet taken."""
        return len(self._ready)

    def close(self) -> None:
        """Stop the thread and forget what is ready. Idempotent."""
        with self._change:
            if not self._running:
                return
            self._running = False
            self._ready.clear()
            self._change.notify_all()
        self._stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)
        buffers.clear()
