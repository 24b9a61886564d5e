"""The cluster under a loader: one of its own in this process, or the user's.

An in-process cluster gives the loader big chunks by reference, on the dashboard's terms
but without a dashboard server, nannies, spilling or profiling. Not covered: starting
worker processes, which is the user's choice (``LocalCluster``, ``dask scheduler``...).
`Workers` says who is there, and complains when nobody is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask

from daskdmed.core.errors import LoaderError, UsageError

if TYPE_CHECKING:
    from distributed import Client

#: seconds without any worker after which waiting is given up
WORKERLESS_LIMIT = 60.0
#: seconds between looks at the cluster while waiting
LOOK_EVERY = 5.0

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

    Parameters
    ----------
    client : distributed.Client
        Connection.
    in_process : bool
        Whether the workers are threads of this process.
    workers : int
        Number of workers.
    memory_limit : int or None
        Memory of all workers together, in bytes.
    close : callable
        Undo what was started; does nothing to a client that the user gave.
    """

    client: Client
    in_process: bool
    workers: int
    memory_limit: int | None
    close: Callable[[], None]


def connect(client: Client | None, threads: int | None = None) -> Cluster:
    """Use the client given, or start a cluster in this process.

    Parameters
    ----------
    client : distributed.Client, optional
        The user's.
    threads : int, optional
        Threads of the in-process cluster, one per core by default.

    Raises
    ------
    LoaderError
        The client's cluster has no workers.
    UsageError
        The client is asynchronous or closed.
    """
    if client is None:
        return _start(threads)
    if getattr(client, "asynchronous", False):
        raise UsageError("client= must be a synchronous Client; this one is asynchronous")
    if client.status != "running":
        raise UsageError(f"client= is {client.status}; connect it before making a loader")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        client.wait_for_workers(1, timeout=30)
        workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise LoaderError(f"the cluster at {client.scheduler.address} has no workers")
    limits = [w["memory_limit"] for w in workers.values()]
    in_process = all(address.startswith("inproc://") for address in workers)
    return Cluster(
        client=client,
        in_process=in_process,
        workers=len(workers),
        memory_limit=_system_memory() if in_process and not all(limits) else _total(limits),
        close=lambda: None,
    )


def _start(threads: int | None) -> Cluster:
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    threads = threads or CPU_COUNT
    with dask.config.set(_CONFIG):
        cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            processes=False,
            memory_limit=0,
            dashboard_address=":0",  # a fixed port would clash with the user's own
            worker_dashboard_address=None,
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.ERROR,
        )
        client = Client(cluster, set_as_default=False, direct_to_workers=True)

    def close() -> None:
        client.close()
        cluster.close()

    return Cluster(client, True, 1, _system_memory(), close)


def _system_memory() -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def _total(limits: list[int]) -> int | None:
    """Memory of all workers; None when one of them has no limit."""
    return sum(limits) if all(limits) else None


class Workers:
    """Which workers a cluster has; asks the scheduler at most every `LOOK_EVERY` seconds.

    Parameters
    ----------
    client : distributed.Client
        Connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._given: dict[str, int] = {}
        self._asked = float("-inf")
        self._last_seen = time.monotonic()

    def there(self) -> set[str]:
        """Addresses of the workers.

        Raises
        ------
        LoaderError
            The connection to the scheduler is lost.
        """
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
        """Complain when the cluster has had no workers for long.

        Raises
        ------
        LoaderError
            For `WORKERLESS_LIMIT` seconds; or the connection is lost.
        """
        there = self.there()
        silent = time.monotonic() - self._last_seen
        if not there and silent > WORKERLESS_LIMIT:
            raise LoaderError(
                f"the cluster at {self._client.scheduler.address} has had no workers for "
                f"{silent:.0f} s; start workers and make a new loader from state_dict()"
            )


def lost_connection(error: BaseException) -> LoaderError:
    """What to raise when the scheduler cannot be reached."""
    return LoaderError(
        f"the connection to the cluster is lost ({type(error).__name__}: {error}); make a new "
        "client, and a new loader from state_dict()"
    )


def keep_in_place(client: Client, name: str) -> None:
    """Have the scheduler move no waiting task of a kind to another worker.

    A task that crops from big chunks goes to the worker that holds them; were it stolen, the
    big chunks would follow, and be held twice.

    Parameters
    ----------
    client : distributed.Client
        Connection.
    name : str
        First part of the tasks' keys.
    """

    def keep() -> None:  # nested, so that the scheduler's process needs no daskdmed
        from distributed import stealing

        kept: set[str] = getattr(stealing, "fast_tasks", set())
        kept.add(name)

    try:
        client.run_on_scheduler(keep)
    except Exception as error:  # whatever a lost or closed connection raises
        raise lost_connection(error) from error
