"""What was asked for and is there now: told by threads of Dask, waited for by the one that batches.

A unit has arrived when its jobs have been read, by a thread of this process, or by a worker whose
memory was mapped if it lies on this machine. Not covered: what is asked for, and when it is let go
(`daskdmed.persistence.resident`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

from daskdmed.core.errors import LoaderClosedError, LoaderError
from daskdmed.core.shared import segments
from daskdmed.persistence.cluster import LOOK_EVERY, Workers, lost_connection
from daskdmed.persistence.reading import Ticket, read_jobs
from daskdmed.persistence.sharing import Sharing
from daskdmed.persistence.units import Unit

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger("daskdmed.persistence")
T = TypeVar("T")


class Arrivals:
    """Units that are there, of those that were asked for.

    `in_process`: the workers are threads of this process. Of each unit that arrives and is still
    wanted, `tell` hears in whatever thread it is, and `count` one after the other.
    """

    def __init__(
        self,
        client: Client,
        workers: Workers,
        *,
        in_process: bool,
        tell: Callable[[Unit], None],
        count: Callable[[Unit], None],
    ) -> None:
        self._client, self._workers = client, workers
        self._tell, self._count = tell, count
        self._sharing = None if in_process or not segments.enabled() else Sharing(client)
        self._there: set[Unit] = set()
        self._wake = threading.Condition()
        self._closed = False
        self._lost: LoaderError | None = None
        #: units or keys of tasks that the thread which makes batches waits for
        self.wanted: list[Any] = []

    def __contains__(self, unit: Unit) -> bool:
        return unit in self._there

    # -- told by Dask's threads -------------------------------------------------------

    def expect(self, unit: Unit) -> None:
        """Notice when a unit arrives that has just been asked for."""
        future, ticket = unit.future, unit.ticket
        assert future is not None
        if ticket is None:
            future.add_done_callback(lambda future: self._look_for(unit, future))
            return
        ticket.when_done(lambda: self._arrived(unit))
        future.add_done_callback(lambda future: self._recover(ticket, future, unit))

    def _look_for(self, unit: Unit, future: Future) -> None:
        """Map what was read where it lies on this machine; then it has arrived."""
        sharing = self._sharing
        if sharing is None or future.status != "finished" or not unit.waiting_for:
            self._arrived(unit, future)
            return

        async def look() -> None:
            try:
                mapped, holder = await sharing.map(unit.key)
                if unit.waiting_for:
                    unit.mapped, unit.holder = mapped, holder
            except Exception as error:  # a worker that is lost, or too busy: it is sampled there
                logger.debug("%s is not mapped: %s: %s", unit.key, type(error).__name__, error)
            finally:
                self._arrived(unit, future)

        self._client.loop.add_callback(look)

    def _recover(self, ticket: Ticket, future: Future, unit: Unit) -> None:
        """Fill a ticket whose task did not run: Dask had the result, or lost it.

        Dask calls back in one thread for the whole process: what waited in it for a cluster that is
        closed would keep what other loaders asked for from arriving, for ever.
        """
        if ticket.done or not unit.waiting_for:
            return
        client = self._client

        async def recover() -> None:
            try:
                (result,) = await client.gather([future], direct=True, asynchronous=True)
                if result is None and unit.waiting_for:
                    # begun for a loader that was closed meanwhile, whose ticket was gone
                    result = await asyncio.to_thread(read_jobs, ticket.jobs)
                if result is not None:
                    ticket.deliver(result)
            except Exception as error:  # a lost worker, or a restart: reading itself never raises
                if unit.waiting_for:  # else others may share the ticket
                    ticket.deliver_failure(error)

        client.loop.add_callback(recover)

    def _arrived(self, unit: Unit, future: Future | None = None) -> None:
        if unit.waiting_for:
            self._tell(unit)
        with self._wake:
            if unit.waiting_for:
                self._there.add(unit)
                self._count(unit)
                if future is not None and future.cancelled():
                    self._lost = restarted()
            self._wake.notify_all()

    # -- for the thread that makes batches ---------------------------------------------

    def forget(self, unit: Unit) -> None:
        """Note that a unit is not wanted any more."""
        with self._wake:
            self._there.discard(unit)

    def wait(self, units: Iterable[Unit]) -> Unit:
        """Block until one of some units is there.

        LoaderClosedError: the loader was closed meanwhile. LoaderError: there has been no
        worker for long, see `Workers.check_alive`.
        """
        wanted = list(units)

        def there() -> Unit | None:
            return next((unit for unit in wanted if unit in self._there), None)

        return self._until(there, "big chunks", list(wanted))

    def wait_for(self, future: Any, keys: Iterable[Any]) -> None:
        """Block until a future is done that is made of some tasks; raises as `wait` does."""
        if not future.done():
            future.add_done_callback(lambda _: self._tick())
            self._until(future.done, "a batch", list(keys))

    def pause(self, seconds: float, what: str) -> None:
        """Wait until something has come, so many seconds at most, for what is called `what`."""
        with self._wake:
            if self._closed:
                raise LoaderClosedError(f"the loader was closed while it waited for {what}")
            self._wake.wait(seconds)

    def _until(self, done: Callable[[], T | None], what: str, wanted: list[Any]) -> T:
        self.wanted = wanted
        while True:
            with self._wake:
                if self._closed:
                    raise LoaderClosedError(f"the loader was closed while it waited for {what}")
                if self._lost is not None:
                    raise self._lost
                if found := done():
                    self.wanted = []
                    return found
                notified = self._wake.wait(LOOK_EVERY)
            if not notified:
                self._workers.check_alive()

    def find_holders(self, units: Iterable[Unit]) -> None:
        """Note which worker holds each of some units that have arrived, None for those that have
        been lost since."""
        there = self._workers.there()
        asked = {u.key: u for u in units if u.holder not in there}
        if asked:
            try:
                held = self._client.who_has([u.future for u in asked.values()])
            except Exception as error:  # whatever a lost or closed connection raises
                raise lost_connection(error) from error
            for unit in asked.values():
                unit.holder = min(held.get(unit.key) or (), default=None)

    # -- the end ----------------------------------------------------------------------

    def interrupt(self) -> None:
        """Wake whoever waits; they get `LoaderClosedError`. Safe from any thread."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def clear(self) -> None:
        self._there.clear()

    def _tick(self) -> None:
        with self._wake:
            self._wake.notify_all()


def restarted() -> LoaderError:
    """What cancelled tasks mean: nobody here cancels what is wanted."""
    return lost_connection(CancelledError("its tasks were cancelled"))
