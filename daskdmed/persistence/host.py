"""What reading processes of a machine hang in: a process that runs a Dask cluster of them.

Started by `daskdmed.persistence.hosting` as ``python -m daskdmed.persistence.host JOB``, so that
the process that trains runs a client and nothing else, and so that nothing has to be imported
anew there: no script needs a main guard. It answers with one line on its standard output, and
ends when whoever started it is gone; a shared one, when nobody has been connected for a while.
Its workers (`daskdmed.persistence.crew`) end with it, however it ends. They import no torch.

Not covered: starting, and who may use it (`daskdmed.persistence.hosting`,
`daskdmed.persistence.meeting`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from daskdmed.persistence.crew import Crew

#: what the line begins with that tells of the scheduler
ANSWER = "daskdmed-host "
#: seconds without any client after which a shared host ends; and until the first one comes
IDLE_LIMIT, UNUSED_LIMIT = 5.0, 60.0
#: seconds between looks at who is there
LOOK_EVERY = 0.5
#: seconds that closing may take
CLOSE_LIMIT = 10.0

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
        with _cluster(job) as (cluster, crew):
            _answer(cluster)
            started.set()
            while not gone.wait(LOOK_EVERY):
                crew.look()
        return
    from daskdmed.persistence.meeting import Meeting

    place = Meeting.at(job["meeting"])
    with place.held() as mine:
        # not the child of whoever came first, which may end long before it
        if not mine or os.fork():
            os._exit(0)
        with _cluster(job) as (cluster, crew):
            place.tell(cluster.scheduler_address)
            _serve(cluster, place, crew, *job["limits"])


@contextlib.contextmanager
def _cluster(job: dict[str, Any]) -> Iterator[tuple[Any, Crew]]:
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
    dask.config.set(config)
    dashboard = job["dashboard"]
    with LocalCluster(
        n_workers=0,
        host="127.0.0.1",
        dashboard_address=dashboard or ":0",
        scheduler_kwargs={} if dashboard else {"dashboard": False},
        silence_logs=False,  # the loader's configuration says what is logged
    ) as cluster:
        options = {
            "nthreads": job["threads"],
            "memory_limit": MEMORY_LIMIT // job["workers"],
            "host": "127.0.0.1",
            "dashboard": False,
        }
        crew = Crew(cluster.scheduler_address, job["workers"], options, config)
        crew.come(cluster.scheduler)
        yield cluster, crew
        _end_soon()
    crew.close(CLOSE_LIMIT / 2)


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


def _serve(cluster: Any, place: Any, crew: Crew, idle_limit: float, unused_limit: float) -> None:
    """Return when nobody wants this host, with the door locked."""
    last, limit = time.monotonic(), unused_limit
    while True:
        time.sleep(LOOK_EVERY)
        crew.look()
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
