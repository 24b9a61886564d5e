"""Running blocks of work with Dask: on the threads of this process, or on a cluster.

What is left of a result is a `Job`: a small Dask graph with one key per block. `run` has
Dask's threaded scheduler compute it, or the cluster of a client. Blocks write their results
themselves and give back flags, so that neither side holds pixels; a bounded number is in
flight; jobs are prepared when the blocks before theirs are on their way, so that no thread
waits for the last block of one image before the first of the next.

Not covered: what a block is, and where it is recorded as done (`daskdmed.store.results`).
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import dask
from dask.local import SynchronousExecutor, get_async
from dask.task_spec import DataNode, GraphNode, Task, TaskRef
from dask.utils import format_bytes

from daskdmed.core import clusterwork, events, live, memory, progress
from daskdmed.core.errors import DaskdmedError, StoreError

if TYPE_CHECKING:
    from distributed import Client

Index: TypeAlias = tuple[int, ...]
Key: TypeAlias = Any


class Job:
    """What is left of one result, in blocks. To be derived from.

    `name`: what is done, for instance "heatmap": the name that its keys begin with, by which Dask's
    dashboard shows and counts them. `image`: with what, for people. `total`, `finished`: blocks,
    and how many of them are done. `wants_results`: whether `mark` is given what blocks give back;
    else it may be given None. `needs_those_before`: it begins when all jobs before it have ended,
    whose results it reads. `block_bytes`: what a block takes while it is computed,
    about; 0 when that is little.
    """

    name: str = "work"
    wants_results: bool = False
    needs_those_before: bool = False
    image: str = ""
    total: int = 0
    finished: int = 0
    block_bytes: int = 0

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

    def gives_up(self, error: BaseException) -> bool:
        """Whether the job ends with this error of a block, and those beside it go on."""
        return False

    def state(self) -> str:
        """How far it is and how to go on, for errors. Empty when nothing is kept."""
        return ""


def call_graph(
    name: str, call: Callable[[Any], Any], items: Mapping[Index, Any]
) -> tuple[dict[Key, GraphNode], dict[Key, Index]]:
    """For `Job.graph`: a function (sent to workers once; picklable) is called on small items."""
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
    """Call a function on every item; `done` gets each and its result as they end, one after the
    other.

    On the workers of `client` (the function is picklable then), default on threads of this process.
    The first error of a call is raised after those already running in this process have ended;
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

        with contextlib.suppress(ValueError):  # not called by a worker
            return int(get_worker().state.nthreads)
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

    Gives what each job's `finish` gave, in order; None of those that gave up. StoreError: a block
    of a job that keeps what is done failed for a reason outside this library (the cause is
    chained). Otherwise the first error, with a note on how far the jobs are. Blocks that were
    running in this process end first, and all that ended well are recorded.

    jobs: Asked for the next one when few blocks are left: opening images belongs there.

    client: Run on its workers. Default: Dask's threaded scheduler in this process, with as many
    threads as ``dask.config`` "num_workers" or "pool" says or CPUs are there; its synchronous one
    where ``dask.config`` "scheduler" says so.

    threads: Blocks that this process computes at once, at most.

    resources: What a worker must offer for the last task of a block; tasks before it may run
    anywhere.
    """
    state = Run(name, client)
    live.show(client, state.watched)
    with progress.bar(state.id, name, show):
        try:
            if client is None:
                _Threads(state, threads).run(jobs)
            else:
                clusterwork.ClusterRun(state, client, resources).run(jobs)
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
        finally:
            state.watched.ended = state.watched.ended or "done"
            state.give_back()
    return [state.results[number] for number in sorted(state.results)]


class Run:
    """The jobs of one call that are begun, what they gave, and the memory that they take."""

    def __init__(self, name: str, client: Client | None) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self.watched = live.WatchedRun(name, self.id)
        self.open: dict[int, Job] = {}
        self.left: dict[int, int] = {}
        self.results: dict[int, Any] = {}
        #: blocks that are computed at a time
        self.at_once = 1
        self._client = client
        self._begun = self._claimed = 0
        self._share: weakref.finalize[..., Any] | None = None

    def begin(self, job: Job, blocks: int) -> int:
        """The number of a new job."""
        self._claim(self.at_once * job.block_bytes)
        number = self._begun
        self._begun += 1
        self.open[number], self.left[number] = job, blocks
        self.watched.begin(job.image, job.total, job.finished)
        self._emit(events.RunStarted, job, total=job.total, done=job.finished)
        if not blocks:
            self._end(number)
        return number

    def _claim(self, nbytes: int) -> None:
        """Be counted beside loaders, which hold memory for long; alone, a run is not refused."""
        if nbytes > self._claimed:
            self._share = memory.claim(
                self,
                f"{self.name}-{self.id[:6]}",
                nbytes,
                client=self._client,
                here=self._client is None,
                asked=f"{self.name} ({format_bytes(nbytes)} for {self.at_once} blocks at a time)",
                alone=False,
            )
            self._claimed = nbytes

    def give_back(self) -> None:
        """It is over: the memory is free for others."""
        if self._share is not None:
            self._share()

    def done(self, number: int, index: Index, result: Any) -> None:
        job = self.open.get(number)
        if job is None:  # it gave up
            return
        job.mark(index, result)
        self._emit(events.BlockDone, job, index=index)
        self.watched.done += 1
        self.left[number] -= 1
        if not self.left[number]:
            self._end(number)

    def drop(self, number: int, error: BaseException) -> bool:
        """A block failed; whether its job gave up, or had before, and the run goes on."""
        job = self.open.get(number)
        if job is not None:
            if not job.gives_up(error):
                return False
            job.flush()
            self.results[number] = None
            del self.open[number], self.left[number]
            text = f"{type(error).__name__}: {error}"
            self._emit(events.RunFinished, job, total=job.total, done=job.finished, error=text)
        return number in self.results

    def _end(self, number: int) -> None:
        job = self.open[number]
        self.results[number] = job.finish()
        del self.open[number], self.left[number]
        self._emit(events.RunFinished, job, total=job.total, done=job.finished)

    def stop(self, error: BaseException) -> str:
        """Record what is done of the jobs that are open; how far they are."""
        self.watched.ended = f"{type(error).__name__}: {error}"
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
    """A block's task that gives an error back, so that blocks beside it end and are recorded.

    `failed` is shared by the blocks of a job, `stop` by those of all.
    """

    def __init__(self, node: GraphNode, stop: threading.Event, failed: threading.Event) -> None:
        self._node, self._stop, self._failed = node, stop, failed
        self.needs = tuple(node.dependencies)

    def __call__(self, *values: Any) -> Any:
        if self._stop.is_set() or self._failed.is_set():
            return _SKIPPED
        try:
            return self._node(dict(zip(self.needs, values, strict=True)))
        except BaseException as error:
            self._failed.set()
            return _Failed(error)


#: seconds after which this thread looks up: a Ctrl-C that the system gave to another thread does
#: not wake it
_LOOK_EVERY = 1.0


class _Pool(ThreadPoolExecutor):
    """Threads in which context variables are those of whoever submits, as in Dask since 2026.3."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)


class _Threads:
    """Dask's threaded scheduler: one call per job, all with the same threads.

    Each call needs a thread that waits for it. These put what ended into a queue; all else
    is done by the thread that runs the jobs, which needs no lock that Ctrl-C might leave held.
    """

    def __init__(self, state: Run, most: int | None) -> None:
        self._state = state
        self._threads = state.at_once = min(most or default_threads(), default_threads())
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._drivers: list[threading.Thread] = []

    def run(self, jobs: Iterable[Job]) -> None:
        if _synchronous():
            self._with(SynchronousExecutor(), jobs, threads=0)
        elif isinstance(pool := dask.config.get("pool", None), Executor):
            self._with(pool, jobs, self._threads)
        else:
            with _Pool(self._threads, "daskdmed") as own:
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
            with contextlib.suppress(queue.Empty):
                self._note(self._ended.get(timeout=_LOOK_EVERY))

    def _note(self, ended: _Ended) -> None:
        number, index, result = ended
        try:
            if not isinstance(result, _Failed):
                self._state.done(number, index, result)
            elif not self._state.drop(number, result.error):
                self._fail(result.error)
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
        guarded = {key: node for key, node in graph.items() if key not in keys}
        indexes: dict[Key, Index] = {}
        failed = threading.Event()
        for place, (key, index) in enumerate(keys.items()):
            attempt = _Attempt(graph[key], self._stop, failed)
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
