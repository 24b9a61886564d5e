"""Worker processes of a host: so many at any time, whoever of them is killed, and whenever.

Dask's nannies give up a worker that dies while it starts, and have one more process each. Here
whoever ends is replaced, and all end with the process that has started them, however it ends.

Not covered: the scheduler that they belong to, and when there is work for them
(`daskdmed.persistence.host`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing import get_all_start_methods
from typing import Any

#: what workers import once, for all of them
_PRELOADED = ("distributed", "daskdmed.persistence.reading", "daskdmed.loading.answers")
#: workers that may end one after the other before the first of them has worked
_TRIES = 5
#: seconds between looks while workers start
_SOON = 0.05


class Crew:
    """Processes that run a Dask worker each; a context manager.

    `options` are those of ``distributed.Worker``, `config` is Dask's configuration there.
    """

    def __init__(self, address: str, workers: int, options: Any, config: Mapping[str, Any]) -> None:
        forks = "forkserver" in get_all_start_methods()
        if forks:
            # one import for all, whose pages they share
            multiprocessing.set_forkserver_preload(list(_PRELOADED))
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        self._call = (address, dict(options), dict(config))
        self._ended = 0
        self._members = [self._new() for _ in range(workers)]

    def _new(self) -> Any:
        process = self._context.Process(target=work, args=self._call, daemon=True)
        process.start()
        return process

    def look(self) -> None:
        """Start others in place of those that have ended."""
        for place, process in enumerate(self._members):
            if not process.is_alive():
                process.join()
                self._ended += 1
                self._members[place] = self._new()

    def come(self, scheduler: Any) -> None:
        """Wait until all work for a scheduler of this process. RuntimeError: they end instead."""
        while len(scheduler.workers) < len(self._members):
            self.look()
            if self._ended > _TRIES * len(self._members) and not scheduler.workers:
                raise RuntimeError(f"{self._ended} worker processes ended while they started")
            time.sleep(_SOON)

    def close(self, patience: float) -> None:
        """End them; those that their scheduler has told to close have so many seconds for it."""
        end = time.monotonic() + patience
        for process in self._members:
            process.join(max(end - time.monotonic(), 0.0))
            process.kill()
            process.join()
        self._members = []


def work(address: str, options: dict[str, Any], config: dict[str, Any]) -> None:
    """Work for a scheduler until it says that it is over, or the parent process is no more."""
    import asyncio

    import dask

    threading.Thread(target=_end_with_parent, daemon=True).start()
    dask.config.set(config)
    logging.getLogger("distributed.worker").addFilter(is_news)
    try:
        asyncio.run(_work(address, options))
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)  # whatever threads are still reading, and however it came to its end


def is_news(record: logging.LogRecord) -> bool:
    """Whether to log it: not that a heartbeat found no scheduler.

    That is closed then, on purpose or not, and its workers end with it.
    """
    return not str(record.msg).startswith("Failed to communicate with scheduler during heartbeat")


async def _work(address: str, options: dict[str, Any]) -> None:
    from distributed import Worker

    async with Worker(address, **options) as worker:
        await worker.finished()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
