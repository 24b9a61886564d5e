"""Running blocks of work with Dask: on the threads of this process, or on a cluster.

What is left of a result is a `Job`: a small Dask graph with one key per block. `run` has
Dask's threaded scheduler compute it, or the cluster of a client. Blocks write their results
themselves and give back flags, so that neither side holds pixels; a bounded number is in
flight; jobs are prepared when the blocks before theirs are on their way, so that no thread
waits for the last block of one image before the first of the next.

Not covered: what a block is, and where it is recorded as done (`daskdmed.store.results`).
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import dask
from dask.local import SynchronousExecutor, get_async
from dask.task_spec import DataNode, GraphNode, Task, TaskRef

from daskdmed.core import events, progress
from daskdmed.core.errors import DaskdmedError, StoreError, UsageError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("daskdmed.work")
Index: TypeAlias = tuple[int, ...]
Key: TypeAlias = Any
T = TypeVar("T")
#: blocks in flight on a cluster, at least
_IN_FLIGHT = 64


class Job:
    """What is left of one result, in blocks. To be derived from.

    Attributes
    ----------
    name : str
        What is done, for instance "heatmap": the name that its keys begin with, by which
        Dask's dashboard shows and counts them.
    image : str
        With what, for people.
    total, finished : int
        Blocks, and how many of them are done.
    wants_results : bool
        Whether `mark` is given what blocks give back; else it may be given None.
    needs_those_before : bool
        It begins when all jobs before it have ended, whose results it reads.
    """

    name: str = "work"
    wants_results: bool = False
    needs_those_before: bool = False
    image: str = ""
    total: int = 0
    finished: int = 0

    def graph(self) -> tuple[Mapping[Key, GraphNode], Mapping[Key, Index]]:
        """The work, and which of its keys give which pending block.

        Keys of values that many blocks need (a model, a view) are plain strings; such values
        are sent to a cluster once. Everything else belongs to a block, and is sent with it.
        """
        raise NotImplementedError

    def mark(self, index: Index, result: Any) -> None:
        """A block was computed and written. Never called twice at the same time."""
        raise NotImplementedError

    def flush(self) -> None:
        """Record what is done; also called when a run is stopped."""

    def finish(self) -> Any:
        """All blocks are done: the result."""

    def state(self) -> str:
        """How far it is and how to go on, for errors. Empty when nothing is kept."""
        return ""


def call_graph(
    name: str, call: Callable[[Any], Any], items: Mapping[Index, Any]
) -> tuple[dict[Key, GraphNode], dict[Key, Index]]:
    """The graph of a function that is called on items: for `Job.graph`.

    Parameters
    ----------
    name : str
        What is done, see `Job`.
    call : callable
        Sent to workers once; picklable.
    items : mapping of index to object
        What it is called with; small.
    """
    run = uuid.uuid4().hex
    shared = f"{name}-task-{run}"
    keys = {(f"{name}-{run}", *index): index for index in items}
    graph: dict[Key, GraphNode] = {shared: DataNode(shared, call)}
    for key, index in keys.items():
        graph[key] = Task(key, _call, TaskRef(shared), DataNode(None, items[index]))
    return graph, keys


def _call(call: Callable[[Any], Any], item: Any) -> Any:
    return call(item)


class _Calls(Job):
    """A function and its items."""

    wants_results = True

    def __init__(
        self, name: str, call: Callable[[Any], Any], items: list[Any], done: Callable[..., None]
    ) -> None:
        self.name, self.total = name, len(items)
        self._call, self._items, self._done = call, items, done

    def graph(self) -> tuple[Mapping[Key, GraphNode], Mapping[Key, Index]]:
        numbered: dict[Index, Any] = {(i,): item for i, item in enumerate(self._items)}
        return call_graph(self.name, self._call, numbered)

    def mark(self, index: Index, result: Any) -> None:
        self._done(self._items[index[0]], result)
        self.finished += 1


def run_all(
    name: str,
    items: Iterable[Any],
    call: Callable[[Any], Any],
    done: Callable[[Any, Any], None] = lambda item, result: None,
    *,
    client: Client | None = None,
    show: bool = False,
) -> None:
    """Call a function on every item.

    Parameters
    ----------
    name : str
        What is done, see `Job`.
    items : iterable
        Small values.
    call : callable
        Gets one item; picklable when there is a client. Its results are small.
    done : callable
        Gets each item and its result as they end, one after the other.
    client : distributed.Client, optional
        Run on its workers, default on threads of this process.
    show : bool
        Show a progress bar.

    Raises
    ------
    UsageError
        The client is asynchronous.
    Exception
        The first error of a call, after those already running in this process have ended;
        items that ended well are told to `done` first.
    """
    run([_Calls(name, call, list(items), done)], name=name, client=client, show=show)


def default_threads() -> int:
    """Threads for work in this process: ``dask.config`` "pool" or "num_workers", else the CPUs."""
    from dask.system import CPU_COUNT

    pool = dask.config.get("pool", None)
    if isinstance(pool, Executor):
        return int(getattr(pool, "_max_workers", CPU_COUNT))
    return max(int(dask.config.get("num_workers", None) or CPU_COUNT), 1)


def threads_here() -> int:
    """How many tasks the process that calls this runs at once."""
    import sys

    if "distributed" in sys.modules:
        from distributed import get_worker

        try:
            return int(get_worker().state.nthreads)
        except ValueError:  # not called by a worker
            pass
    return 1 if _synchronous() else default_threads()


def _synchronous() -> bool:
    """Whether the user wants everything in the calling thread, to look at it in a debugger."""
    wanted = dask.config.get("scheduler", None)
    return wanted in ("sync", "synchronous", "single-threaded")


def run(
    jobs: Iterable[Job],
    *,
    name: str,
    client: Client | None = None,
    threads: int | None = None,
    resources: Mapping[str, float] | None = None,
    show: bool = False,
) -> list[Any]:
    """Do jobs, one after the other and the ends of each beside the beginnings of the next.

    Parameters
    ----------
    jobs : iterable of Job
        Asked for the next one when few blocks are left: opening images belongs there.
    name : str
        What is done.
    client : distributed.Client, optional
        Run on its workers. Default: Dask's threaded scheduler in this process, with as many
        threads as ``dask.config`` "num_workers" or "pool" says or CPUs are there; its
        synchronous one where ``dask.config`` "scheduler" says so.
    threads : int, optional
        Blocks that this process computes at once, at most; default as many as threads.
    resources : mapping, optional
        What a worker must offer for the last task of a block; tasks before it may run anywhere.
    show : bool
        Show a progress bar.

    Returns
    -------
    list
        What each job's `finish` gave, in order.

    Raises
    ------
    StoreError
        A block of a job that keeps what is done failed for a reason outside this library
        (the cause is chained).
    Exception
        The first error otherwise, with a note on how far the jobs are. Blocks that were
        running in this process end first, and all that ended well are recorded.
    """
    state = _Run(name)
    with progress.bar(state.id, name, show):
        try:
            if client is None:
                _Threads(state, threads).run(jobs)
            else:
                _Cluster(state, client, resources).run(jobs)
        except BaseException as error:
            told = state.stop(error)
            if not told or not isinstance(error, Exception):
                raise
            if isinstance(error, DaskdmedError):
                error.add_note(told)
                raise
            notes = "; ".join(getattr(error, "__notes__", ()))
            images = ", ".join(job.image for job in state.open.values())
            raise StoreError(
                f"{name} of {images} stopped: {type(error).__name__}: {error} ({notes}). {told}"
            ) from error
    return [state.results[number] for number in sorted(state.results)]


class _Run:
    """The jobs of one call that are begun, and what they gave."""

    def __init__(self, name: str) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self.open: dict[int, Job] = {}
        self.left: dict[int, int] = {}
        self.results: dict[int, Any] = {}
        self._begun = 0

    def begin(self, job: Job, blocks: int) -> int:
        """The number of a new job."""
        number = self._begun
        self._begun += 1
        self.open[number], self.left[number] = job, blocks
        self._emit(events.RunStarted, job, total=job.total, done=job.finished)
        if not blocks:
            self._end(number)
        return number

    def done(self, number: int, index: Index, result: Any) -> None:
        """A block was computed."""
        job = self.open[number]
        job.mark(index, result)
        self._emit(events.BlockDone, job, index=index)
        self.left[number] -= 1
        if not self.left[number]:
            self._end(number)

    def _end(self, number: int) -> None:
        job = self.open[number]
        self.results[number] = job.finish()
        del self.open[number], self.left[number]
        self._emit(events.RunFinished, job, total=job.total, done=job.finished)

    def stop(self, error: BaseException) -> str:
        """Record what is done of the jobs that are open; how far they are."""
        for job in self.open.values():
            try:
                job.flush()
            except StoreError as failed:
                error.add_note(str(failed))
            text = f"{type(error).__name__}: {error}"
            self._emit(events.RunFinished, job, total=job.total, done=job.finished, error=text)
        return "; ".join(filter(None, (job.state() for job in self.open.values())))

    def _emit(self, kind: Callable[..., events.Event], job: Job, **facts: Any) -> None:
        if events.listening():
            events.emit(kind(self.id, self.name, job.image, **facts))


# ---------------------------------------------------------------------- in this process
_SKIPPED = object()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


#: number of the job, index of the block, and its result
_Ended: TypeAlias = tuple[int, Index, Any]


class _Attempt:
    """A block's task that gives an error back, so that blocks beside it end and are recorded."""

    def __init__(self, node: GraphNode, stop: threading.Event) -> None:
        self._node, self._stop = node, stop
        self.needs = tuple(node.dependencies)

    def __call__(self, *values: Any) -> Any:
        if self._stop.is_set():
            return _SKIPPED
        try:
            return self._node(dict(zip(self.needs, values, strict=True)))
        except BaseException as error:
            self._stop.set()
            return _Failed(error)


class _Threads:
    """Dask's threaded scheduler: one call per job, all with the same threads.

    Each call needs a thread that waits for it. These put what ended into a queue; all else
    is done by the thread that runs the jobs, which needs no lock that Ctrl-C might leave held.
    """

    def __init__(self, state: _Run, most: int | None) -> None:
        self._state = state
        self._threads = min(most or default_threads(), default_threads())
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._drivers: list[threading.Thread] = []

    def run(self, jobs: Iterable[Job]) -> None:
        """Do them all."""
        if _synchronous():
            self._with(SynchronousExecutor(), jobs, threads=0)
        elif isinstance(pool := dask.config.get("pool", None), Executor):
            self._with(pool, jobs, self._threads)
        else:
            from dask.threaded import ContextAwareThreadPoolExecutor

            with ContextAwareThreadPoolExecutor(self._threads, "daskdmed") as own:
                self._with(own, jobs, self._threads)
        if self._failure is not None:
            raise self._failure

    def _with(self, pool: Executor, jobs: Iterable[Job], threads: int) -> None:
        try:
            for job in jobs:
                if job.needs_those_before:
                    self._listen(1)
                    if self._stop.is_set():
                        break
                graph, keys = job.graph()
                number = self._state.begin(job, len(keys))
                if keys and threads:
                    self._drive(pool, threads, number, graph, keys)
                elif keys:
                    self._compute(pool, 1, number, graph, keys, self._note)
                self._listen(2 * threads)
                if self._stop.is_set():
                    break
            self._listen(1)
        finally:
            self._stop.set()
            for driver in self._drivers:
                if driver.ident is not None:  # Ctrl-C may have come before it was started
                    driver.join()
            while not self._ended.empty():
                self._note(self._ended.get())

    def _listen(self, blocks: int) -> None:
        """Until less than so many blocks are left of what is begun, or there is no more use."""
        while not self._stop.is_set() and sum(self._state.left.values()) >= max(blocks, 1):
            self._note(self._ended.get())

    def _note(self, ended: _Ended) -> None:
        number, index, result = ended
        if isinstance(result, _Failed):
            self._fail(result.error)
            return
        try:
            self._state.done(number, index, result)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._stop.set()
        self._failure = self._failure or error

    def _drive(self, pool: Executor, threads: int, number: int, graph: Any, keys: Any) -> None:
        """Compute a job beside others."""
        driver = threading.Thread(
            target=self._compute,
            args=(pool, threads, number, graph, keys, self._ended.put),
            name=f"daskdmed-{self._state.name}",
            daemon=True,
        )
        self._drivers = [*(d for d in self._drivers if d.is_alive()), driver]
        driver.start()

    def _compute(
        self,
        pool: Executor,
        threads: int,
        number: int,
        graph: Mapping[Key, GraphNode],
        keys: Mapping[Key, Index],
        tell: Callable[[_Ended], None],
    ) -> None:
        """Have Dask compute a job's graph."""
        guarded = {key: node for key, node in graph.items() if key not in keys}
        indexes: dict[Key, Index] = {}
        for place, (key, index) in enumerate(keys.items()):
            attempt = _Attempt(graph[key], self._stop)
            # of tasks that are alike Dask takes the last name first: files are read forwards
            named = (key[0], f"{len(keys) - place:09}", *index)
            indexes[named] = index
            guarded[named] = Task(named, attempt, *map(TaskRef, attempt.needs))

        def ended(key: Key, result: Any, *_: Any) -> None:
            if key in indexes and result is not _SKIPPED:
                tell((number, indexes[key], result))

        callbacks = [(None, None, None, ended, None), *dask.callbacks.Callback.active]
        try:
            get_async(pool.submit, threads, guarded, list(indexes), callbacks=callbacks)
        except BaseException as error:
            tell((number, (), _Failed(error)))


# ------------------------------------------------------------------------ on a cluster
class _Cluster:
    """Blocks of jobs as tasks of a cluster, a bounded number at a time."""

    def __init__(self, state: _Run, client: Client, resources: Mapping[str, float] | None) -> None:
        if client.asynchronous:
            raise UsageError("a synchronous client is needed; make it with asynchronous=False")
        if resources:
            _check_offered(client, resources)
        self._state, self._client = state, client
        self._resources = dict(resources or {})
        self._graphs: dict[int, Mapping[Key, GraphNode]] = {}
        #: values that many blocks need, kept until the end
        self._shared: dict[Key, Any] = {}

    def run(self, jobs: Iterable[Job]) -> None:
        """Do them all."""
        from distributed import as_completed

        threads = max(sum(self._client.nthreads().values()), 1)
        # blocks of pixels that wait for the model are kept few
        most = 2 * threads + 1 if self._resources else max(_IN_FLIGHT, 4 * threads)
        waiting = self._blocks(jobs)
        running: dict[Any, tuple[int, Index]] = {}
        # told its loop, or it would ask for a default client
        ended = as_completed(loop=self._client.loop)
        try:
            while True:
                drawn = list(_until_none(itertools.islice(waiting, most - len(running))))
                for number, blocks in itertools.groupby(drawn, lambda block: block[0]):
                    keys = {key: index for _, key, index in blocks}
                    futures = self._submit(self._graphs[number], list(keys))
                    running |= {future: (number, keys[future.key]) for future in futures}
                    ended.update(futures)
                if not running:
                    return
                self._collect(ended.next_batch(), running)
        finally:
            if running:
                self._client.cancel(list(running), force=True)
            self._shared.clear()

    def _blocks(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Key, Index] | None]:
        """The blocks of all jobs: number of the job, key and index; None to wait for others."""
        for job in jobs:
            while job.needs_those_before and self._state.open:
                yield None
            graph, keys = job.graph()
            number = self._state.begin(job, len(keys))
            self._graphs[number] = graph
            for key, index in keys.items():
                yield number, key, index

    def _submit(self, graph: Mapping[Key, GraphNode], keys: list[Key]) -> list[Any]:
        """Futures of some blocks."""
        before, shared = _needs(graph, keys)
        new = {key: graph[key] for key in shared if key not in self._shared}
        self._shared.update(zip(new, self._get(new, list(new)), strict=True))
        own = {key: graph[key] for key in keys}
        if not self._resources:
            return self._get({**before, **own}, keys)
        held = self._get(before, list(before))
        futures = self._get(own, keys, resources=self._resources)
        del held  # tasks that need these keep them from now on
        return futures

    def _get(self, graph: dict[Key, Any], keys: list[Key], **options: Any) -> list[Any]:
        if not keys:
            return []
        # what is sent was asked for, and is sent once
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            futures: list[Any] = self._client.get(graph, keys, sync=False, **options)
        return futures

    def _collect(self, ended: Iterable[Any], running: dict[Any, tuple[int, Index]]) -> None:
        """Mark what succeeded, then raise what did not."""
        failure: BaseException | None = None
        for future in ended:
            number, index = running.pop(future)
            error = future.exception()  # waits: a result may be lost again with its worker
            if error is None and future.status != "finished":
                error = RuntimeError(
                    f"a task was {future.status}: the client was closed, or somebody cancelled it"
                )
            if error is not None:
                failure = failure or error
                continue
            wanted = self._state.open[number].wants_results
            self._state.done(number, index, future.result() if wanted else None)
        if failure is not None:
            raise failure


def _until_none(items: Iterable[T | None]) -> Iterator[T]:
    for item in items:
        if item is None:
            return
        yield item


def _needs(
    graph: Mapping[Key, GraphNode], keys: Iterable[Key]
) -> tuple[dict[Key, GraphNode], set[str]]:
    """What blocks need for themselves, and the keys of what others need too."""
    before: dict[Key, GraphNode] = {}
    shared: set[str] = set()
    waiting = [need for key in keys for need in graph[key].dependencies]
    while waiting:
        key = waiting.pop()
        if isinstance(key, str):
            shared.add(key)
        elif key in graph and key not in before:  # else persisted by the user, or met before
            before[key] = graph[key]
        else:
            continue
        waiting.extend(graph[key].dependencies)
    return before, shared


def _check_offered(client: Client, resources: Mapping[str, float]) -> None:
    """A task that no worker may run waits for ever: say so instead."""
    for name, amount in resources.items():
        if not amount > 0:
            raise UsageError(f"resources={dict(resources)!r}: {name} needs a positive amount")
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    offered = [dict(worker.get("resources", {})) for worker in workers]
    if offered and not any(
        all(have.get(name, 0) >= amount for name, amount in resources.items()) for have in offered
    ):
        raise UsageError(
            f"no worker offers resources={dict(resources)!r}; they offer {offered}. Start "
            "workers with dask worker --resources 'GPU=1', or LocalCluster(resources=...)"
        )
