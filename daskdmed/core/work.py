"""Running independent pieces of work: in threads of this process, or on a cluster.

A bounded number is in flight, and results are small or None, so that neither side holds
pixels. Not covered: what a piece is, and what is recorded as done.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import dask

from daskdmed.core.errors import UsageError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")


def default_threads() -> int:
    """Threads for work in this process: ``dask.config`` "num_workers", else the CPUs."""
    from dask.system import CPU_COUNT

    return max(int(dask.config.get("num_workers", None) or CPU_COUNT), 1)


def run_all(
    items: Iterable[T],
    call: Callable[[T], Any],
    done: Callable[[T, Any], None] = lambda item, result: None,
    *,
    client: Client | None = None,
    threads: int | None = None,
) -> None:
    """Call a function on every item.

    Parameters
    ----------
    items : iterable
        Consumed as earlier ones end.
    call : callable
        Gets one item; picklable when there is a client.
    done : callable
        Gets each item and its result, in the calling thread, as they end.
    client : distributed.Client, optional
        Run on its workers, default in threads of this process.
    threads : int, optional
        How many, default `default_threads`.

    Raises
    ------
    UsageError
        The client is asynchronous.
    Exception
        The first error of a call, after those already running in this process have ended;
        items that ended well are told to `done` first.
    """
    if client is not None:
        _on_cluster(client, items, call, done)
        return
    threads = threads or default_threads()
    waiting = iter(items)
    running: dict[concurrent.futures.Future[Any], T] = {}
    failure: BaseException | None = None
    with concurrent.futures.ThreadPoolExecutor(threads, "daskdmed-store") as pool:
        try:
            while True:
                if failure is None:
                    for item in itertools.islice(waiting, threads + 1 - len(running)):
                        running[pool.submit(call, item)] = item
                if not running:
                    break
                ended, _ = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    item = running.pop(future)
                    error = future.exception()
                    if error is None:
                        done(item, future.result())
                    else:
                        failure = failure or error
                if failure is not None:
                    running = {f: item for f, item in running.items() if not f.cancel()}
        except BaseException:
            for future in running:
                future.cancel()
            raise
    if failure is not None:
        raise failure


def _on_cluster(
    client: Client,
    items: Iterable[T],
    call: Callable[[T], Any],
    done: Callable[[T, Any], None],
) -> None:
    from distributed import wait

    if client.asynchronous:
        raise UsageError("a synchronous client is needed; make it with asynchronous=False")
    name, numbers = f"store-{uuid.uuid4().hex}", itertools.count()
    waiting = iter(items)
    running: dict[Any, T] = {}
    in_flight = max(8, 2 * sum(client.nthreads().values()))
    try:
        while True:
            for item in itertools.islice(waiting, in_flight - len(running)):
                running[client.submit(call, item, key=(name, next(numbers)))] = item
            if not running:
                return
            ended, _ = wait(list(running), return_when="FIRST_COMPLETED")
            failure: BaseException | None = None
            for future in ended:
                item = running.pop(future)
                if future.status == "finished":
                    done(item, future.result())
                else:
                    failure = failure or future.exception()
            if failure is not None:
                raise failure
    finally:
        if running:
            client.cancel(list(running), force=True)
