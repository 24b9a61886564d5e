"""What reading processes of a machine hang in: a process that runs a Dask cluster of them.

Started by `daskdmed.persistence.hosting` as ``python -m daskdmed.persistence.host JOB``, so that
the process that trains runs a client and nothing else, and so that nothing has to be imported
anew there: no script needs a main guard. It answers with one line on its standard output, and
ends when whoever started it is gone; a shared one, when nobody has been connected for a while.
Its workers end with it, however it ends. They import no torch.

Not covered: starting, and who may use it (`daskdmed.persistence.hosting`,
`daskdmed.persistence.meeting`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from multiprocessing import get_all_start_methods
from typing import Any

#: what the line begins with that tells of the scheduler
ANSWER = "daskdmed-host "
#: seconds without any client after which a shared host ends; and until the first one comes
IDLE_LIMIT, UNUSED_LIMIT = 5.0, 60.0
#: seconds between looks at who is there
LOOK_EVERY = 0.5
#: seconds that a worker may take to start again
RESTART_LIMIT = 20.0
#: seconds that closing may take
CLOSE_LIMIT = 10.0
#: what workers import once, for all of them
_PRELOADED = ("distributed.nanny", "daskdmed.persistence.reading", "daskdmed.loading.answers")

#: of clusters that serve nothing but loaders: nothing is stolen, replicated, profiled or queued.
#: Queuing would put milliseconds between reads; profiling and ticking wake the interpreter
#: hundreds of times a second, each time making a decoding thread wait for the lock.
OWN_CONFIG: dict[str, Any] = {
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.worker-saturation": float("inf"),
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "2s",
}
_NO_DASHBOARD = {"distributed.scheduler.dashboard.status.task-stream-length": 0}


def own_config(dashboard: str | None) -> dict[str, Any]:
    """`OWN_CONFIG`, and less bookkeeping where there is no dashboard to show it."""
    return OWN_CONFIG if dashboard else {**OWN_CONFIG, **_NO_DASHBOARD}


def main(job: dict[str, Any]) -> None:
    """Serve until nobody wants it: `workers`, `threads` of each, `dashboard`; for a shared one its
    `meeting` and `limits` (as `IDLE_LIMIT` and `UNUSED_LIMIT`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the business of whoever trains
    if job["meeting"] is None:
        gone, started = threading.Event(), threading.Event()
        _watch_parent(gone, started)
        with _cluster(job) as cluster:
            _answer(cluster)
            started.set()
            replace = _Replacing(cluster, job["workers"])
            while not gone.wait(LOOK_EVERY):
                replace.look()
            _end_soon()
        return
    from daskdmed.persistence.meeting import Meeting

    place = Meeting.at(job["meeting"])
    with place.held() as mine:
        # not the child of whoever came first, which may end long before it
        if not mine or os.fork():
            os._exit(0)
        with _cluster(job) as cluster:
            place.tell(cluster.scheduler_address)
            _serve(cluster, place, _Replacing(cluster, job["workers"]), *job["limits"])
            _end_soon()


def _cluster(job: dict[str, Any]) -> Any:
    import dask
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    config: dict[str, Any] = {
        **own_config(job["dashboard"]),
        # with a worker that is killed all fails that waits for it, not only what it was at
        "distributed.scheduler.allowed-failures": 20,
        # what is spilled has left shared memory, and is read from another disk than it was
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
    }
    if "forkserver" in get_all_start_methods():
        import multiprocessing

        # one import for all, whose pages they share
        multiprocessing.set_forkserver_preload(list(_PRELOADED))
        config["distributed.worker.multiprocessing-method"] = "forkserver"
    dask.config.set(config)
    dashboard = job["dashboard"]
    return LocalCluster(
        n_workers=job["workers"],
        threads_per_worker=job["threads"],
        processes=True,
        host="127.0.0.1",
        memory_limit=MEMORY_LIMIT // job["workers"],
        dashboard_address=dashboard or ":0",
        worker_dashboard_address=None,
        scheduler_kwargs={} if dashboard else {"dashboard": False},
        silence_logs=False,  # the loader's configuration says what is logged
    )


def _answer(cluster: Any) -> None:
    sys.stdout.write(ANSWER + json.dumps({"address": cluster.scheduler_address}) + "\n")
    sys.stdout.flush()


def _watch_parent(gone: threading.Event, started: threading.Event) -> None:
    """Set `gone` when standard input ends, or the process that started this one is no more."""
    parent = os.getppid()

    def end() -> None:
        gone.set()
        if not started.is_set():  # whatever it is busy with
            os._exit(1)

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            while sys.stdin.buffer.read(1 << 12):
                pass
        end()

    def look() -> None:  # a fork of the parent may keep the pipe open
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY)
        end()

    for watch in (read, look):
        threading.Thread(target=watch, daemon=True).start()


class _Replacing:
    """Workers that are not restarted any more: Dask gives up one that dies while it starts."""

    def __init__(self, cluster: Any, workers: int) -> None:
        self._cluster, self._workers = cluster, workers
        #: since when a nanny has had no worker
        self._without: dict[Any, float] = {}

    def look(self) -> None:
        """Start others in place of those that have ended for good, or do not come."""
        if self._cluster.sync(self._remove):
            self._cluster.scale(self._workers)

    async def _remove(self) -> bool:
        nannies, now = self._cluster.workers, time.monotonic()
        working = {worker.nanny for worker in self._cluster.scheduler.workers.values()}
        idle = [nanny for nanny in nannies.values() if nanny.address_safe not in working]
        self._without = {nanny: self._without.get(nanny, now) for nanny in idle}
        lost = {
            nanny
            for nanny, since in self._without.items()
            if nanny.status.name in ("closed", "failed") or now - since > RESTART_LIMIT
        }
        for name in [name for name, nanny in nannies.items() if nanny in lost]:
            with contextlib.suppress(Exception):  # whatever it is in the middle of
                await asyncio.wait_for(nannies.pop(name).close(timeout=1), CLOSE_LIMIT)
        return bool(lost)


def _serve(
    cluster: Any, place: Any, replace: _Replacing, idle_limit: float, unused_limit: float
) -> None:
    """Return when nobody wants this host, with the door locked."""
    last, limit = time.monotonic(), unused_limit
    while True:
        time.sleep(LOOK_EVERY)
        replace.look()
        if _clients(cluster):
            last, limit = time.monotonic(), idle_limit
        elif time.monotonic() - last > limit and place.close_door():
            if not _clients(cluster):
                return
            place.open_door()


def _clients(cluster: Any) -> set[str]:
    return set(cluster.scheduler.clients) - {"fire-and-forget"}


def _end_soon() -> None:
    """However long workers take to close: they end with this process anyway."""
    end = threading.Timer(CLOSE_LIMIT, os._exit, (0,))
    end.daemon = True
    end.start()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
