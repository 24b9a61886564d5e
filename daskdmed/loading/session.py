"""A running loader: the thread that makes batches ahead, and the queue to the consumer.

The session owns the cluster connection and the resident set, and knows nothing of the
object that users hold, so that a forgotten loader is collected and closes its session.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from daskdmed.core.errors import LoaderClosedError
from daskdmed.images import buffers
from daskdmed.loading.batch import Batch
from daskdmed.loading.engine import Engine
from daskdmed.persistence.cluster import Cluster

logger = logging.getLogger("daskdmed.loading")


class Session:
    """Makes batches in a thread of its own, a bounded number ahead.

    Parameters
    ----------
    cluster : Cluster
        Closed with the session when it was started for it.
    engine : Engine
        Where batches come from.
    prepare : callable
        Applied to each batch in the background (per-sample transforms).
    ahead : int
        Batches ready before the thread waits.
    drop_last : bool
        Whether a short last batch is dropped.
    """

    def __init__(
        self,
        cluster: Cluster,
        engine: Engine,
        prepare: Callable[[Batch], tuple[Batch, object]],
        *,
        ahead: int,
        drop_last: bool,
    ) -> None:
        self.cluster = cluster
        self.engine = engine
        self.started = time.perf_counter()
        self._prepare = prepare
        self._ahead = ahead
        self._drop_last = drop_last
        self._ready: deque[tuple[Batch, object]] = deque()
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
            for batch in self._batches():
                prepared = self._prepare(batch)
                with self._change:
                    while self._running and (self._paused or len(self._ready) >= self._ahead):
                        self._change.wait()
                    if not self._running:
                        return
                    self._ready.append(prepared)
                    self._change.notify_all()
                del batch, prepared  # no reference while the next one is made
        except BaseException as error:  # handed to the consumer, whatever it is
            end = error
        with self._change:
            self._end = end
            self._change.notify_all()

    def _batches(self) -> Iterator[Batch]:
        size = self.engine.sampling.batch_size
        for batch in self.engine.batches():
            if not (self._drop_last and len(batch.smallchunks) < size):
                yield batch

    # -- consumer -------------------------------------------------------------------

    def get(self, timeout: float | None) -> tuple[Batch, object]:
        """The next batch.

        Raises
        ------
        StopIteration
            The plan is finite and over.
        TimeoutError
            None came in time.
        LoaderClosedError
            The session is closed.
        Exception
            What went wrong while batches were made, again at every further call.
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
                    raise TimeoutError(
                        f"no batch within {timeout} s ({self.engine.residents.resident_visits} "
                        "big chunks in memory or being read); is the loader paused?"
                    )
                self._change.wait(left)
            item = self._ready.popleft()
            self._change.notify_all()
            return item

    @property
    def batches_ready(self) -> int:
        """Batches made and not yet taken."""
        return len(self._ready)

    @property
    def running(self) -> bool:
        """Whether the session has not been closed."""
        return self._running

    def pause(self) -> None:
        """Make no further batches until `resume`; those that are ready can be taken."""
        with self._change:
            self._paused = True

    def resume(self) -> None:
        """Go on after `pause`."""
        with self._change:
            self._paused = False
            self._change.notify_all()

    def close(self) -> None:
        """Stop the thread, let go of all big chunks, close what was started. Idempotent."""
        if self._stop():
            self.cluster.close()
            buffers.clear()

    def hand_over(self) -> Cluster:
        """Stop, let go of all big chunks, but leave the cluster to the next session."""
        self._stop()
        return self.cluster

    def _stop(self) -> bool:
        """Stop the thread, let go of all big chunks; False when that was done before."""
        with self._change:
            if not self._running:
                return False
            self._running = False
            self._ready.clear()
            self._change.notify_all()
        self.engine.interrupt()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)
            if self._thread.is_alive():
                logger.warning("the loader's thread is still busy in user code")
        self.engine.close()
        return True
