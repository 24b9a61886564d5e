"""Blocks of jobs as tasks of a cluster, a bounded number at a time.

Part of `daskdmed.core.work`, which says what a job is.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import dask
from dask.task_spec import GraphNode

from daskdmed.core import processes
from daskdmed.core.errors import UsageError
from daskdmed.core.waiting import Silence, explain, workers_of

if TYPE_CHECKING:
    from distributed import Client

    from daskdmed.core.work import Index, Job, Key, Run

logger = logging.getLogger("daskdmed.work")
T = TypeVar("T")
#: blocks in flight on a cluster, at least
_IN_FLIGHT = 64


class ClusterRun:
    def __init__(self, state: Run, client: Client, resources: Mapping[str, float] | None) -> None:
        processes.check_not_forked(state.name)
        if client.asynchronous:
            raise UsageError("a synchronous client is needed; make it with asynchronous=False")
        if resources:
            _check_offered(client, resources)
        self._state, self._client = state, client
        self._resources = dict(resources or {})
        self._graphs: dict[int, Mapping[Key, GraphNode]] = {}
        #: values that many blocks need, kept until the end
        self._shared: dict[Key, Any] = {}
        self._running: dict[Any, tuple[int, Index]] = {}
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._silence = Silence(f"block of {state.name}", logger, self._describe)

    def run(self, jobs: Iterable[Job]) -> None:
        threads = max(sum(self._client.nthreads().values()), 1)
        self._state.at_once = threads
        # blocks of pixels that wait for the model are kept few
        most = 2 * threads + 1 if self._resources else max(_IN_FLIGHT, 4 * threads)
        waiting = self._blocks(jobs)
        running = self._running
        try:
            while True:
                drawn = list(_until_none(itertools.islice(waiting, most - len(running))))
                for number, blocks in itertools.groupby(drawn, lambda block: block[0]):
                    keys = {key: index for _, key, index in blocks}
                    for future in self._submit(self._graphs[number], list(keys)):
                        running[future] = (number, keys[future.key])
                        self._client.loop.add_callback(self._watch, future)
                if not running:
                    return
                self._collect(self._next())
        finally:
            if running:
                self._client.cancel(list(running), force=True)
            self._shared.clear()

    def _next(self) -> list[Any]:
        """Futures that have ended since the last time, at least one."""
        self._silence.begin()
        while True:
            left = self._silence.left
            try:
                ended = [self._ended.get(timeout=None if math.isinf(left) else left)]
                break
            except queue.Empty:
                self._silence.tell()
        self._silence.end()
        while not self._ended.empty():
            ended.append(self._ended.get())
        return ended

    async def _watch(self, future: Any) -> None:
        with contextlib.suppress(Exception):  # which it is asks `_collect`
            await future.exception()
        self._ended.put(future)

    def _describe(self) -> str:
        return explain(self._client, [future.key for future in self._running])

    def _blocks(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Key, Index] | None]:
        """The blocks of all jobs: number of the job, key and index; None to wait for others."""
        for job in jobs:
            while job.needs_those_before and self._state.open:
                yield None
            graph, keys = job.graph()
            number = self._state.begin(job, len(keys))
            self._graphs[number] = graph
            for key, index in keys.items():
                if number in self._state.open:
                    yield number, key, index

    def _submit(self, graph: Mapping[Key, GraphNode], keys: list[Key]) -> list[Any]:
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

    def _error_of(self, future: Any) -> BaseException | None:
        """Waits: a result may be lost again with its worker."""
        self._silence.begin()
        while True:
            try:
                left = self._silence.left
                error: BaseException | None = future.exception(None if math.isinf(left) else left)
            except TimeoutError:
                self._silence.tell()
            else:
                self._silence.end()
                return error

    def _collect(self, ended: Iterable[Any]) -> None:
        """Mark what succeeded, then raise what did not."""
        failure: BaseException | None = None
        for future in ended:
            number, index = self._running.pop(future)
            error = self._error_of(future)
            if error is None and future.status != "finished":
                error = RuntimeError(
                    f"a task was {future.status}: the client was closed, or somebody cancelled it"
                )
            if error is not None:
                if not self._state.drop(number, error):
                    failure = failure or error
                continue
            job = self._state.open.get(number)
            wanted = job is not None and job.wants_results
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
    workers = workers_of(client).values()
    offered = [dict(worker.get("resources", {})) for worker in workers]
    if offered and not any(
        all(have.get(name, 0) >= amount for name, amount in resources.items()) for have in offered
    ):
        raise UsageError(
            f"no worker offers resources={dict(resources)!r}; they offer {offered}. Start "
            "workers with dask worker --resources 'GPU=1', or LocalCluster(resources=...)"
        )
