"""Nobody waits in silence: after a while one line of log says what is waited for, and why.

`Silence` measures how long nothing has come. `workers_of` and `explain` ask a scheduler who is
there, and what becomes of some tasks. Not covered: waiting itself, which is done by conditions
and queues where it happens.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta

if TYPE_CHECKING:
    from distributed import Client

#: seconds without anything new after which it is said, ``dask.config`` "daskdmed.report-after"
REPORT_AFTER = 30.0
#: seconds that a scheduler has to answer
_ANSWER_WITHIN = 5.0
#: tasks that are looked at
_MOST = 100


class Silence:
    """Since when nothing has come of what is called `what`; says so once, until something comes.

    `describe` says what is waited for; it is called by the thread that waits.
    """

    def __init__(self, what: str, logger: logging.Logger, describe: Callable[[], str]) -> None:
        self._what, self._logger, self.describe = what, logger, describe
        self._lock = threading.Lock()
        self._since: float | None = None
        self._said = False

    def begin(self) -> None:
        with self._lock:
            self._since = time.monotonic() if self._since is None else self._since

    def end(self) -> None:
        self._since, self._said = None, False

    @property
    def left(self) -> float:
        """Seconds until it is to be said; infinite when it was, or when nobody waits."""
        since = self._since
        if self._said or since is None:
            return math.inf
        after = _seconds(dask.config.get("daskdmed.report-after", REPORT_AFTER))
        return max(float(since + after - time.monotonic()), 0.0)

    def tell(self) -> None:
        """Say it, when it is time and nobody has."""
        with self._lock:
            since = self._since
            if since is None or self.left > 0:
                return
            self._said = True
        seconds = time.monotonic() - since
        self._logger.warning("no %s for %.0f s: %s", self._what, seconds, self.describe())


def workers_of(client: Client) -> dict[str, Any]:
    """What a scheduler says of its workers, by their addresses.

    Not ``client.scheduler_info()``: that returns what the client knew last, and each two seconds
    its thread renews that without the workers, in between as well.
    """
    found: dict[str, Any] = client.sync(client.scheduler.identity)["workers"]
    return found


@functools.lru_cache(8)
def _seconds(text: Any) -> float:
    """Of "30 s" or a number: asked at every wait."""
    return float(parse_timedelta(text, "s"))


def explain(client: Client, keys: Iterable[Any]) -> str:
    """What becomes of some tasks of a cluster, and what they lack; in words."""
    wanted = list(itertools.islice(keys, _MOST))
    address = getattr(client.scheduler, "address", "?")
    try:
        found = client.run_on_scheduler(_looker(), wanted, callback_timeout=_ANSWER_WITHIN)
    except Exception as error:  # whatever a lost, busy or closed connection raises
        return f"the scheduler at {address} does not answer ({type(error).__name__}: {error})"
    workers, tasks = found
    if not workers:
        return f"the cluster at {address} has no workers; it goes on when one comes"
    running = [name for name, w in workers.items() if w["status"] == "running"]
    if not running:
        states = sorted({w["status"] for w in workers.values()})
        return (
            f"none of the {len(workers)} workers at {address} takes tasks ({', '.join(states)}: "
            "a worker pauses when its memory is nearly full)"
        )
    order = ("no-worker", "erred", "unknown", "processing", "queued", "waiting", "memory")
    for state in order:
        for task in tasks:
            if task["state"] == state:
                return _in_words(task, workers)
    return f"{len(running)} workers are there, and nothing is waited for on the cluster"


def _in_words(task: dict[str, Any], workers: dict[str, dict[str, Any]]) -> str:
    name = f"task {task['key']}"
    if task["state"] == "no-worker":
        lacks = []
        if task["resources"]:
            offered = [w["resources"] for w in workers.values()]
            lacks.append(f"a worker with resources={task['resources']} (they offer {offered})")
        if task["workers"]:
            lacks.append(f"one of the workers {task['workers']} (there are {sorted(workers)})")
        return f"{name} waits for {' and '.join(lacks) or 'a worker that takes it'}"
    if task["state"] == "processing":
        worker = workers.get(task["on"], {"tasks": "?", "threads": "?"})
        return (
            f"{name} runs or is next on worker {task['on']}, which has {worker['tasks']} tasks "
            f"for {worker['threads']} threads"
        )
    return {
        "queued": f"{name} is queued: the {len(workers)} workers are busy",
        "memory": f"{name} is done, its result is on its way",
        "erred": f"{name} has failed",
    }.get(task["state"], f"{name} is {task['state']} to the scheduler")


def _looker() -> Callable[..., Any]:
    """What is asked. Nested, so that the scheduler's process needs no daskdmed."""

    def look(keys: list[Any], dask_scheduler: Any) -> Any:
        workers = {
            address: {
                "status": worker.status.name,
                "threads": worker.nthreads,
                "tasks": len(worker.processing),
                "resources": dict(worker.resources),
            }
            for address, worker in dask_scheduler.workers.items()
        }
        tasks = []
        for key in keys:
            task = dask_scheduler.tasks.get(key)
            while task is not None and task.state == "waiting" and task.waiting_on:
                task = next(iter(task.waiting_on))
            on = None if task is None else task.processing_on
            tasks.append(
                {
                    "key": str(key if task is None else task.key),
                    "state": "unknown" if task is None else task.state,
                    "on": None if on is None else on.address,
                    "workers": [] if task is None else sorted(task.worker_restrictions or ()),
                    "resources": {} if task is None else dict(task.resource_restrictions or {}),
                }
            )
        return workers, tasks

    return look
