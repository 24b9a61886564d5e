"""The cluster under a loader: one of its own in this process, or the user's.

An in-process cluster gives the loader big chunks by reference, on the dashboard's terms
but without a dashboard server, nannies, spilling or profiling. Not covered: starting
worker processes, which is the user's choice (``LocalCluster``, ``dask scheduler``...).
`Workers` says who is there, and complains when nobody is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask

from daskdmed.core import processes
from daskdmed.core.errors import LoaderError, UsageError
from daskdmed.core.waiting import explain

if TYPE_CHECKING:
    from distributed import Client

#: seconds without any worker after which waiting is given up
WORKERLESS_LIMIT = 60.0
#: seconds between looks at the cluster while waiting
LOOK_EVERY = 5.0

#: first part of the keys of big chunks, and of tasks that crop from them where these are
BIG_CHUNK, SAMPLING = "big-chunk", "small-chunks"

#: for a cluster that serves one loader: nothing is stolen, replicated, profiled or queued.
#: Queuing would put milliseconds between reads; profiling and ticking wake the interpreter
#: hundreds of times a second, each time making a decoding thread wait for the lock.
_CONFIG: dict[str, Any] = {
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.worker-saturation": float("inf"),
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.scheduler.dashboard.status.task-stream-length": 0,
}


@dataclass(frozen=True)
class Cluster:
    """Where big chunks live.

    `own`: it was started for this loader, and `close` ends it. `in_process`: the workers are
    threads of this process. `limits`: memory of each worker in bytes, 0 for no limit.
    """

    client: Client
    own: bool
    in_process: bool
    limits: tuple[int, ...]
    threads: int
    close: Callable[[], None]

    @property
    def workers(self) -> int:
        return len(self.limits)


def connect(client: Client | None) -> Cluster:
    """Use the client given, or start a cluster in this process.

    UsageError: the client is asynchronous or closed, or this process is a fork that cannot
    have one. LoaderError: the client's cluster has no workers.
    """
    processes.check_not_forked("a loader")
    processes.loops_run()
    if client is None:
        return _start()
    if getattr(client, "asynchronous", False):
        raise UsageError("client= must be a synchronous Client; this one is asynchronous")
    if client.status != "running":
        raise UsageError(f"client= is {client.status}; connect it before making a loader")
    try:
        client.wait_for_workers(1, timeout=WORKERLESS_LIMIT)
        workers = client.scheduler_info(n_workers=-1)["workers"]
    except TimeoutError:
        workers = {}
    if not workers:
        raise LoaderError(
            f"no worker could be used within {WORKERLESS_LIMIT:.0f} s: {explain(client, ())}; "
            "start workers first"
        )
    known = weakref.ref(client)
    processes.after_closing(known, functools.partial(_let_hear, known))
    return Cluster(
        client=client,
        own=False,
        in_process=all(address.startswith("inproc://") for address in workers),
        limits=tuple(int(w["memory_limit"]) for w in workers.values()),
        threads=sum(w["nthreads"] for w in workers.values()),
        close=lambda: None,
    )


def _let_hear(known: weakref.ref[Client]) -> None:
    """Wait until the scheduler knows that nothing is wanted any more.

    Workers that stop sooner, as those of a `LocalCluster` do at the end of a process, would
    make it complain of what they held.
    """

    async def heard(name: str, kinds: tuple[str, ...], dask_scheduler: Any) -> None:
        import asyncio

        mine = dask_scheduler.clients.get(name)
        while mine is not None and any(t.prefix.name in kinds for t in mine.wants_what):
            await asyncio.sleep(0.01)

    client = known()
    if client is not None and client.status == "running":
        with contextlib.suppress(Exception):  # too late: then it may complain
            client.run_on_scheduler(
                heard, client.id, (BIG_CHUNK, SAMPLING, "window-block"), callback_timeout=LOOK_EVERY
            )


def _start() -> Cluster:
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    _quiet.begin()
    try:
        with dask.config.set(_CONFIG):
            cluster = LocalCluster(
                n_workers=1,
                threads_per_worker=CPU_COUNT,
                processes=False,
                memory_limit=0,
                dashboard_address=":0",  # a fixed port would clash with the user's own
                worker_dashboard_address=None,
                scheduler_kwargs={"dashboard": False},
                silence_logs=False,  # see `_Quiet`
            )
            cluster.shutdown_on_close = False  # the loader does that, in time, and in its process
            client = Client(cluster, set_as_default=False, direct_to_workers=True)
    except BaseException:
        _quiet.end()
        raise

    def close() -> None:
        client.close()
        cluster.close()
        _quiet.end()

    return Cluster(client, True, True, (0,), CPU_COUNT, close)


class _Quiet(logging.Filter):
    """Keeps to itself what Dask logs below errors while clusters of loaders are open.

    Dask itself sets the levels of handlers and restores them, which is right only for clusters
    that are closed in the reverse order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open = 0
        self._lock = threading.RLock()

    def begin(self) -> None:
        with self._lock:
            self._open += 1
            for handler in logging.getLogger("distributed").handlers:
                handler.addFilter(self)  # once, however often

    def end(self) -> None:
        with self._lock:
            self._open -= 1

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._open or record.levelno >= logging.ERROR


_quiet = _Quiet()


class Workers:
    """Which workers a cluster has; asks the scheduler at most every `LOOK_EVERY` seconds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._given: dict[str, int] = {}
        self._asked = float("-inf")
        self._last_seen = time.monotonic()

    def there(self) -> set[str]:
        """Addresses of the workers; LoaderError: the connection to the scheduler is lost."""
        now = time.monotonic()
        if now - self._asked >= LOOK_EVERY:
            self._asked = now
            try:
                there = self._client.nthreads()
            except Exception as error:  # whatever a lost or closed connection raises
                raise lost_connection(error) from error
            if there:
                self._last_seen = now
            least = min((self._given[w] for w in there if w in self._given), default=0)
            # a worker that joins starts level with the least used, not with a backlog to fill
            self._given = {w: self._given.get(w, least) for w in there}
        return set(self._given)

    def pick(self, count: int) -> str | None:
        """The worker that was given least so far, per the record kept here."""
        if not self.there():
            return None
        home = min(self._given, key=lambda w: (self._given[w], w))
        self._given[home] += count
        return home

    def nth(self, number: int) -> str | None:
        """The worker for a read, the same for all who see the same workers."""
        there = sorted(self.there())
        return there[number % len(there)] if there else None

    def check_alive(self) -> None:
        """LoaderError: there has been no worker for `WORKERLESS_LIMIT`, or no connection is."""
        there = self.there()
        silent = time.monotonic() - self._last_seen
        if not there and silent > WORKERLESS_LIMIT:
            raise LoaderError(
                f"the cluster at {self._client.scheduler.address} has had no workers for "
                f"{silent:.0f} s; start workers and make a new loader from state_dict()"
            )


def lost_connection(error: BaseException) -> LoaderError:
    """What to raise when the scheduler cannot be reached, or has forgotten all tasks."""
    return LoaderError(
        f"the connection to the cluster is lost, or it was restarted ({type(error).__name__}: "
        f"{error}); make a new loader from state_dict(), with a new client if that is closed"
    )


def prepare_scheduler(client: Client) -> None:
    """Have the scheduler keep cropping where big chunks are, and wait for no worker that is gone.

    A task that crops from big chunks goes to the worker that holds them; were it stolen, the
    big chunks would follow, and be held twice. The worker is a preference, but one that is gone
    is waited for all the same when it was the last: Dask gives a task that no worker could
    take to a new one only if that is among those named (dask/distributed#7346).
    """

    def prepare(kinds: tuple[str, ...], dask_scheduler: Any) -> None:
        # nested, so that the scheduler's process needs no daskdmed
        from distributed import stealing
        from distributed.diagnostics.plugin import SchedulerPlugin

        kept: set[str] = getattr(stealing, "fast_tasks", set())
        kept.add(kinds[-1])

        class Untie(SchedulerPlugin):  # type: ignore[misc]
            def update_graph(self, scheduler: Any, *, tasks: Any, **_: Any) -> None:
                self.untie(scheduler, tasks)

            def add_worker(self, scheduler: Any, worker: str) -> None:
                self.untie(scheduler, scheduler.tasks)

            def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
                self.untie(scheduler, scheduler.tasks)

            def untie(self, scheduler: Any, keys: Any) -> None:
                for task in map(scheduler.tasks.get, keys):
                    named = task is not None and task.worker_restrictions
                    if named and task.loose_restrictions and task.prefix.name in kinds:
                        task.worker_restrictions = {w for w in named if w in scheduler.workers}

        dask_scheduler.add_plugin(Untie(), name="daskdmed-untie", idempotent=True)

    try:
        client.run_on_scheduler(prepare, (BIG_CHUNK, SAMPLING))
    except Exception as error:  # whatever a lost or closed connection raises
        raise lost_connection(error) from error
