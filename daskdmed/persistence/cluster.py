"""The cluster under a loader: threads or processes of its own, or the user's.

An in-process cluster gives the loader big chunks by reference, on the dashboard's terms
but without a dashboard server, nannies, spilling or profiling. `Workers` says who is there, and
complains when nobody is. Not covered: how processes are started, and shared
(`daskdmed.persistence.hosting`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import dask

from daskdmed.core import processes
from daskdmed.core.checks import check_count
from daskdmed.core.errors import DaskdmedError, LoaderError, MissingExtraError, UsageError
from daskdmed.core.versions import check_versions
from daskdmed.core.waiting import explain, workers_of
from daskdmed.persistence.crew import is_news
from daskdmed.persistence.host import own_config

if TYPE_CHECKING:
    from distributed import Client

#: seconds without any worker after which waiting is given up
WORKERLESS_LIMIT = 60.0
#: seconds between looks at the cluster while waiting
LOOK_EVERY = 5.0
#: processes of ``client="shared"``, unless ``workers=`` says so
SHARED_WORKERS = 2

#: first part of the keys of big chunks, and of tasks that crop from them where these are
BIG_CHUNK, SAMPLING = "big-chunk", "small-chunks"


@dataclass(frozen=True)
class Cluster:
    """Where big chunks live.

    `own`: only this process uses it, and `close` ends it when no other loader does. `in_process`:
    the workers are threads of this process. `limits`: memory of each worker in bytes, 0 for no
    limit. `dashboard`: where one of its own has its dashboard, empty without. `of_machine`: it is
    shared by processes of this machine, and by no others.
    """

    client: Client
    own: bool
    in_process: bool
    limits: tuple[int, ...]
    threads: int
    close: Callable[[], None]
    dashboard: str = ""
    of_machine: bool = False

    @property
    def shown_by(self) -> Client | None:
        """Whose dashboard may show what goes on: that of the user's cluster, or one asked for."""
        return self.client if self.dashboard or not self.own else None

    @property
    def page(self) -> str | None:
        """Where loaders are shown in a browser; None without a dashboard."""
        link = self.dashboard
        if not self.own:
            with contextlib.suppress(Exception):  # a client that is closed, or another's services
                link = self.client.dashboard_link or ""
        return link.removesuffix("status") + "daskdmed" if link else None

    @property
    def workers(self) -> int:
        return len(self.limits)


#: where to read: threads, or so many processes, of this machine
WorkersLike: TypeAlias = int | Literal["threads"] | None
#: a cluster of the user's, or reading processes that others of this machine use too
ClientLike: TypeAlias = "Client | Literal['shared'] | None"


def check_workers_asked(client: ClientLike, workers: WorkersLike) -> None:
    """Raise UsageError where `client` and `workers` make no sense."""
    if isinstance(client, str) and client != "shared":
        raise UsageError(f'client={client!r} must be a distributed.Client, "shared" or None')
    if workers is None:
        return
    if client not in (None, "shared"):
        raise UsageError(
            f"workers={workers!r} with client=: the client's cluster has its workers; give one "
            "of the two"
        )
    if isinstance(workers, str) and workers != "threads":
        raise UsageError(f'workers={workers!r} must be "threads" or a number of processes')
    if workers == "threads" and client == "shared":
        raise UsageError(
            'workers="threads" with client="shared": threads cannot be shared; give a number of '
            "processes"
        )
    if workers != "threads":
        check_count("workers", workers)


def connect(
    client: ClientLike,
    workers: WorkersLike = None,
    *,
    world_size: int = 1,
    dashboard: str | None = None,
) -> Cluster:
    """Use the client given, or start threads or processes, or find those that others have started.

    With several ranks (`world_size`), those of one machine have their processes in common. What is
    started has a `dashboard` at an address.

    UsageError: the client is asynchronous or closed, or this process is a fork that cannot
    have one. LoaderError: the client's cluster has no workers, or processes did not start.
    """
    processes.check_not_forked("a loader")
    processes.loops_run()
    _leave_generators_alone()
    if client == "shared":
        count = SHARED_WORKERS if workers is None else int(workers)
        return _reading_processes(count, shared=True, dashboard=dashboard)
    if client is None:
        if workers in (None, "threads"):
            return _start(dashboard)
        return _reading_processes(int(workers), shared=world_size > 1, dashboard=dashboard)
    assert not isinstance(client, str)
    if getattr(client, "asynchronous", False):
        raise UsageError("client= must be a synchronous Client; this one is asynchronous")
    if client.status != "running":
        raise UsageError(f"client= is {client.status}; connect it before making a loader")
    found = _workers_of(client)
    if client not in _known:
        _look_at(client)
        _still_cancelled_reads(client)
        _known.add(client)
    known = weakref.ref(client)
    processes.after_closing(known, functools.partial(_let_hear, known))
    return _described(client, found, own=False, close=lambda: None)


def _described(
    client: Client,
    workers: Mapping[str, Any],
    *,
    own: bool,
    close: Callable[[], None],
    dashboard: bool = False,
) -> Cluster:
    return Cluster(
        client=client,
        own=own,
        in_process=all(address.startswith("inproc://") for address in workers),
        limits=tuple(int(w["memory_limit"]) for w in workers.values()),
        threads=sum(w["nthreads"] for w in workers.values()),
        close=close,
        dashboard=(client.dashboard_link or "") if dashboard else "",
    )


def _reading_processes(workers: int, *, shared: bool, dashboard: str | None = None) -> Cluster:
    from daskdmed.persistence import hosting

    begin = hosting.shared if shared else hosting.of_this_process
    client, close = begin(workers, dashboard)
    try:
        found = _workers_of(client)
        cluster = _described(client, found, own=not shared, close=close, dashboard=bool(dashboard))
        return replace(cluster, of_machine=shared)
    except BaseException:
        close()
        raise


def _workers_of(client: Client) -> dict[str, Any]:
    """What the scheduler says of its workers; LoaderError: there are none."""
    try:
        client.wait_for_workers(1, timeout=WORKERLESS_LIMIT)
        workers = workers_of(client)
    except TimeoutError:
        workers = {}
    if not workers:
        raise LoaderError(
            f"no worker could be used within {WORKERLESS_LIMIT:.0f} s: {explain(client, ())}; "
            "start workers first"
        )
    return workers


def _leave_generators_alone() -> None:
    """Have Dask choose among workers, and items to measure, by a generator of its own.

    It takes from that of `random` whenever something is gathered or kept, in threads of its own:
    from the training loop's, or from what a transform that is called just then was promised.
    """
    from dask import sizeof
    from distributed import utils_comm
    from distributed.comm import core

    for module in (sizeof, utils_comm, core):
        if getattr(module, "random", None) is random:
            module.random = random.Random()


#: clients whose clusters have been looked at
_known: weakref.WeakSet[Client] = weakref.WeakSet()


def _look_at(client: Client, workers: Iterable[str] | None = None) -> None:
    try:
        check_versions(client, workers)
    except DaskdmedError:
        raise
    except Exception as error:  # whatever a lost or closed connection raises
        raise lost_connection(error) from error


def _still_cancelled_reads(client: Client) -> None:
    """Have workers that stop in the middle of a read say nothing of it, those of later too.

    Dask logs each task that a worker runs while it closes; nobody wants these any more.
    """
    from distributed import WorkerPlugin

    def is_news(kinds: tuple[str, ...]) -> Callable[[logging.LogRecord], bool]:
        def news(record: logging.LogRecord) -> bool:
            text = record.getMessage()
            cancelled = text.startswith("Async instruction") and "CancelledError" in text
            return not (cancelled and any(f"execute(('{kind}'" in text for kind in kinds))

        return news

    class Quiet(WorkerPlugin):  # type: ignore[misc]
        # nested, so that workers without daskdmed can join the cluster
        name = "daskdmed-quiet"

        def __init__(self, news: Any) -> None:
            self.news = news

        def setup(self, worker: Any) -> None:
            logging.getLogger("distributed.worker.state_machine").addFilter(self.news)

        def teardown(self, worker: Any) -> None:
            logging.getLogger("distributed.worker.state_machine").removeFilter(self.news)

    client.register_plugin(Quiet(is_news((BIG_CHUNK, SAMPLING, "window-block"))))


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


def check_dashboard(dashboard: str | None, client: ClientLike) -> str | None:
    """An address for the dashboard of what a loader starts."""
    if dashboard is None:
        return None
    if client is not None and not isinstance(client, str):
        raise UsageError(
            f"dashboard={dashboard!r} is for a cluster of the loader's own; that of client= has "
            f"its dashboard already ({client.dashboard_link}), where the loader is shown too"
        )
    found = re.fullmatch(r"[^\s/]*:(\d{1,5})", str(dashboard))  # a port alone is no address
    if found is None or int(found[1]) > 65535:
        raise UsageError(
            f'dashboard={dashboard!r} is no address; write ":8787" (this machine\'s, on that '
            'port), "127.0.0.1:8787" (for this machine only), or ":0" for any free port'
        )
    if importlib.util.find_spec("bokeh") is None:
        raise MissingExtraError('dashboard= needs bokeh; pip install "daskdmed[dashboard]"')
    return dashboard


def _start(dashboard: str | None = None) -> Cluster:
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    _quiet.begin()
    try:
        with dask.config.set(own_config(dashboard)):
            cluster = LocalCluster(
                n_workers=1,
                threads_per_worker=CPU_COUNT,
                processes=False,
                memory_limit=0,
                dashboard_address=dashboard or ":0",  # another would clash with the user's own
                worker_dashboard_address=None,
                scheduler_kwargs={"dashboard": dashboard is not None},
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

    link = "" if dashboard is None else _link(dashboard, cluster.scheduler.http_server.port)
    return Cluster(client, True, True, (0,), CPU_COUNT, close, link)


def _link(dashboard: str, port: int) -> str:
    """Dask's own link names this machine to others, also where only this one is served."""
    host = dashboard.rpartition(":")[0]
    return f"http://{'localhost' if host in ('', '0.0.0.0') else host}:{port}/status"


class _Quiet(logging.Filter):
    """Keeps to itself what is below an error, or is no news, while clusters of loaders are open.

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
        return not self._open or (record.levelno >= logging.ERROR and is_news(record))


_quiet = _Quiet()


class Workers:
    """Which workers a cluster has; asks the scheduler at most every `LOOK_EVERY` seconds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._given: dict[str, int] = {}
        self._asked = float("-inf")
        self._last_seen = time.monotonic()
        #: a restart of the cluster makes the client's next: all that was computed is forgotten
        self._generation = client.generation
        #: those that were there when the loader began have been looked at
        self._checked: set[str] | None = None

    def there(self) -> set[str]:
        """Addresses of the workers; LoaderError: the connection to the scheduler is lost."""
        self.check_same()
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
            self._check(set(there))
            # a worker that joins starts level with the least used, not with a backlog to fill
            self._given = {w: self._given.get(w, least) for w in there}
        return set(self._given)

    def _check(self, there: set[str]) -> None:
        """UsageError: workers that have joined run other versions."""
        if self._checked is not None and there - self._checked:
            _look_at(self._client, there - self._checked)
        self._checked = (self._checked or set()) | there

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

    def check_same(self) -> None:
        """LoaderError: the cluster was restarted, which is no mere loss of workers; also when no
        task was under way that would be told."""
        if self._client.generation != self._generation:
            raise lost_connection(CancelledError("all tasks were forgotten"))

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

    What is lost with a worker is read again by one other, and cropped there: a task that crops
    from several big chunks would else bring them together from wherever each was read.
    """

    def prepare(kinds: tuple[str, ...], dask_scheduler: Any) -> None:
        # nested, so that the scheduler's process needs no daskdmed
        from distributed import stealing
        from distributed.diagnostics.plugin import SchedulerPlugin

        kept: set[str] = getattr(stealing, "fast_tasks", set())
        kept.add(kinds[-1])

        class Untie(SchedulerPlugin):  # type: ignore[misc]
            #: where what is lost is read again
            refuge = ""

            def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
                if (start, finish) == ("memory", "released"):
                    task = dask_scheduler.tasks.get(key)
                    if task is not None and task.prefix.name == kinds[0]:
                        self.tie(task)

            def tie(self, task: Any) -> None:
                running = {w.address: w for w in dask_scheduler.running}
                if running and self.refuge not in running:
                    self.refuge = min(running, key=lambda w: len(running[w].has_what))
                task.worker_restrictions = {self.refuge} & set(running)
                task.loose_restrictions = True

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
                        if not task.worker_restrictions:
                            self.tie(task)

        dask_scheduler.add_plugin(Untie(), name="daskdmed-untie", idempotent=True)

    try:
        client.run_on_scheduler(prepare, (BIG_CHUNK, SAMPLING))
    except Exception as error:  # whatever a lost or closed connection raises
        raise lost_connection(error) from error
