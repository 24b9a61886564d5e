"""Starting reading processes of this machine, finding those that others started, ending them.

Loaders of one process that ask for as many have them in common; so have ranks of one machine,
by a meeting (`daskdmed.persistence.meeting`). Not covered: what runs in them
(`daskdmed.persistence.host`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing import spawn
from typing import IO, TYPE_CHECKING, Any

import dask

from daskdmed import __version__
from daskdmed.core.errors import LoaderError, UsageError
from daskdmed.persistence.host import ANSWER, CLOSE_LIMIT, IDLE_LIMIT, UNUSED_LIMIT
from daskdmed.persistence.meeting import Meeting

if TYPE_CHECKING:
    from distributed import Client

#: seconds that reading processes have to start
START_LIMIT = 120.0
#: lines of what was printed that an error shows
_TAIL = 20
#: unless the user's configuration says otherwise
_LOGGING = dict.fromkeys(("distributed", "distributed.client", "distributed.gc"), "error")


class Host:
    """Reading processes that end with this one, or when they are closed."""

    def __init__(self, workers: int, dashboard: str | None) -> None:
        self.path = _path()
        self._process = _launch(workers, dashboard)
        self._voice = _Voice(self._process)
        try:
            self.address = self._voice.address(workers)
        except BaseException:
            self._end(0.0)
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._end(2 * CLOSE_LIMIT)

    def _end(self, patience: float) -> None:
        process = self._process
        with contextlib.suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()  # which tells it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if process.returncode is None:
            # it alone: its workers end with it, and what counts its semaphores removes them
            process.kill()
            process.wait()
        self._voice.end()


_hosts: dict[tuple[int, str | None], tuple[Host, int]] = {}
_lock = threading.RLock()


def _in_child() -> None:
    """What the parent of a forked process has started is the parent's."""
    global _lock
    _lock = threading.RLock()
    _hosts.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def of_this_process(workers: int, dashboard: str | None) -> tuple[Client, Callable[[], None]]:
    """A client of reading processes for the loaders of this process, and what ends its use.

    UsageError: this Python cannot start another. LoaderError: they did not start.
    """
    key = (workers, dashboard)
    with _lock:
        host, users = _hosts.get(key, (None, 0))
        if host is None or not host.alive:
            host, users = Host(workers, dashboard), 0
        _hosts[key] = (host, users + 1)
    try:
        client = _client(host.address, host.path)
    except BaseException as error:
        _release(key, host)
        if isinstance(error, OSError):
            raise LoaderError(
                f"the reading processes of workers={workers} were killed just now ({error}); "
                "make the loader again, with less memory if that is what there was too little of"
            ) from error
        raise

    def close() -> None:
        client.close()
        _release(key, host)

    return client, close


def _release(key: tuple[int, str | None], host: Host) -> None:
    with _lock:
        current, users = _hosts.get(key, (host, 1))
        if current is host and users > 1:
            _hosts[key] = (host, users - 1)
            return
        if current is host:
            _hosts.pop(key, None)
    host.close()


def shared(workers: int, dashboard: str | None) -> tuple[Client, Callable[[], None]]:
    """The same of reading processes that other processes of this machine use, too."""
    versions = (__version__, dask.__version__, sys.version, sys.executable)
    place = Meeting.of(workers, *versions)
    end = time.monotonic() + START_LIMIT
    with place.coming_in(START_LIMIT):
        while True:
            found = place.found(START_LIMIT)
            if found is None:
                _start_shared(workers, dashboard, place)
                continue
            try:
                client = _client(found["address"], found["path"])
            except OSError:  # it was killed just now
                if time.monotonic() > end:
                    raise
                continue
            return client, client.close


def _start_shared(workers: int, dashboard: str | None, place: Meeting) -> None:
    with open(place.log, "w+", opener=_private) as log:
        process = _launch(workers, dashboard, place, log)
        try:
            process.wait(START_LIMIT)  # it leaves a child that holds the lock of the host
            if place.found(START_LIMIT) is not None:
                return
            why = "ended while they started"
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired | LoaderError):
                raise
            why = f"have not started within {START_LIMIT:.0f} s"
        log.seek(0)
        raise _not_started(workers, why, log.readlines()[-_TAIL:])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _client(address: str, path: Iterable[str]) -> Client:
    """A client; what can be imported here can be there, although it was started before."""
    from distributed import Client

    client = Client(address, set_as_default=False, direct_to_workers=True)
    try:
        missing = [folder for folder in _path() if folder not in path]
        if missing:
            from daskdmed.persistence.plugin import WorkerSetup

            client.run_on_scheduler(_look_there_too, missing)  # which unpickles graphs
            client.register_plugin(WorkerSetup(path=missing))
    except BaseException:
        client.close()
        raise
    return client


def _look_there_too(folders: list[str]) -> None:
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]


# -- starting ---------------------------------------------------------------------------------


def _launch(
    workers: int, dashboard: str | None, place: Meeting | None = None, log: IO[str] | None = None
) -> subprocess.Popen[str]:
    from dask.system import CPU_COUNT

    job = {
        "workers": workers,
        "threads": max(1, CPU_COUNT // workers),
        "dashboard": dashboard,
        "meeting": None if place is None else str(place.path),
        "limits": (IDLE_LIMIT, UNUSED_LIMIT),
    }
    own = log is None
    return subprocess.Popen(
        [_python(), "-P", "-m", "daskdmed.persistence.host", json.dumps(job)],
        stdin=subprocess.PIPE if own else subprocess.DEVNULL,
        stdout=subprocess.PIPE if own else log,
        stderr=subprocess.PIPE if own else log,
        text=True,
        errors="replace",
        env=_environment(),
        start_new_session=True,  # Ctrl-C in a terminal goes to those that it knows of
    )


def _python() -> str:
    """What `multiprocessing` would run, too."""
    found = os.fsdecode(spawn.get_executable() or "")
    frozen = getattr(sys, "frozen", False) and found == sys.executable
    if not found or frozen or shutil.which(found) is None:
        raise UsageError(
            f"workers= cannot start processes here: {found or 'sys.executable, which is empty,'} "
            'is no Python interpreter. Give workers="threads", or client= of a cluster that was '
            "started elsewhere, or name an interpreter by multiprocessing.set_executable"
        )
    return found


def _path() -> list[str]:
    """Where modules are found here, but those of Python itself."""
    library = sysconfig.get_path("stdlib")  # other Pythons that workers run have their own
    path = [os.path.abspath(folder) for folder in sys.path]
    return [folder for folder in path if library not in (folder, os.path.dirname(folder))]


def _environment() -> dict[str, str]:
    """Of the host: what can be imported here can be there, and Dask is configured as it is here."""
    config = {k: v for k, v in dask.config.config.items() if k != "scheduler" and _is_plain(v)}
    config.setdefault("logging", _LOGGING)
    spawned = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {
        **{k: str(v) for k, v in spawned.items() if v is not None},
        **os.environ,
        "PYTHONPATH": os.pathsep.join(_path()),
        "PYTHONUNBUFFERED": "1",
        "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(config),
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _not_started(workers: int, why: str, said: Iterable[str]) -> LoaderError:
    return LoaderError(
        f"the reading processes of workers={workers} (`{_python()} -m daskdmed.persistence.host`) "
        f'{why}; mend what they complain of, or give workers="threads" or client=. They said:\n'
        f"{''.join(said).strip() or 'nothing'}"
    )


class _Voice:
    """What a host says: its answer, and afterwards what it and its workers print."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        #: while it starts
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._answered = False
        self._listeners = [
            threading.Thread(
                target=listen, args=(stream,), name=f"daskdmed-host-{name}", daemon=True
            )
            for name, stream, listen in (
                ("stdout", process.stdout, self._hear_stdout),
                ("stderr", process.stderr, self._hear_stderr),
            )
        ]
        for listener in self._listeners:
            listener.start()

    def address(self, workers: int) -> str:
        """Of the scheduler; LoaderError: it does not come."""
        why = f"have not started within {START_LIMIT:.0f} s"
        with contextlib.suppress(queue.Empty):
            answer = self._answers.get(timeout=START_LIMIT)
            if answer is not None:
                return str(json.loads(answer)["address"])
            why = "ended while they started"
            self._listeners[1].join(CLOSE_LIMIT)
        raise _not_started(workers, why, self._tail)

    def end(self) -> None:
        """Wait until all is heard."""
        for listener in self._listeners:
            listener.join()

    def _hear_stdout(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                if line.startswith(ANSWER):
                    self._answered = True
                    self._answers.put(line.removeprefix(ANSWER))
                else:
                    self._pass_on(line, sys.stdout)
        self._answers.put(None)

    def _hear_stderr(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._pass_on(line, sys.stderr)

    def _pass_on(self, line: str, target: IO[str] | None) -> None:
        if not self._answered:
            self._tail.append(line)
        elif target is not None:
            with contextlib.suppress(OSError, ValueError):  # it was closed
                _say(line, target)


def _say(line: str, target: IO[str]) -> None:
    """Write a line, beside what other threads write.

    Past the text layer where there is one: until Python 3.12.4 it loses what one thread writes
    while another one flushes (CPython 119506), which may be a line of the script's own.
    """
    buffer = getattr(target, "buffer", None)
    if buffer is None:
        target.write(line)
        target.flush()
    else:
        buffer.write(line.encode(getattr(target, "encoding", None) or "utf-8", "replace"))
        buffer.flush()
