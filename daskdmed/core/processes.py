"""What a process is to those that keep threads in it: maybe a fork of another, and about to end.

A fork copies no threads. In a child of a process where event loops ran, whoever needs one waits
for ever: such work is refused there, with the remedy. And at the end of a process loops have to
be stopped before the threads that they hand work to, or they complain on stderr.

Not covered: open files, which are opened anew in a forked child (`daskdmed.images.filecache`).
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from daskdmed.core.errors import UsageError

#: how the threads of event loops, and those that these hand work to, are called
_LOOPS = ("IO loop", "Dask-", "daskdmed-")

_closers: list[weakref.finalize[..., Any]] = []
_last: dict[object, Callable[[], object]] = {}
#: whether event loops have run here, or were copied without their threads
_loops_ran = _forked = False
_prepared = False
_lock = threading.RLock()


def loops_run() -> None:
    """Note that event loops run in this process from now on."""
    global _loops_ran
    _loops_ran = True


def check_not_forked(what: str) -> None:
    """Raise UsageError in a forked child of a process in which event loops ran."""
    if _forked:
        raise UsageError(
            f"{what} in process {os.getpid()}, a fork of one in which Dask's threads ran: a fork "
            "copies no threads, and this would wait for ever. Start processes by "
            'multiprocessing.get_context("spawn") or "forkserver" (of a DataLoader: '
            'multiprocessing_context="spawn"), or fork before the first loader or client is made'
        )


def check_owner(pid: int, what: str) -> None:
    """Raise UsageError in another process than the one that made it."""
    if pid != os.getpid():
        raise UsageError(
            f"{what} was made in process {pid} and is used in process {os.getpid()}, a fork of it "
            "without its threads: make one in each process, and start processes by "
            'multiprocessing.get_context("spawn") or "forkserver"'
        )


def close_at_exit(closer: weakref.finalize[..., Any]) -> None:
    """Call a finalizer when the process ends, while event loops and thread pools still work."""
    global _prepared
    closer.atexit = False
    with _lock:
        if not _prepared:
            # this stops its threads here too, before any `atexit`; who registers later comes first
            import concurrent.futures.thread  # noqa: F401

            register = getattr(threading, "_register_atexit", atexit.register)
            register(_close_all)
            _prepared = True
        _closers[:] = [c for c in _closers if c.alive]
        _closers.append(closer)


def after_closing(key: object, call: Callable[[], object]) -> None:
    """Call something (once for a key) when the process ends and all finalizers were called."""
    _last[key] = call


def _close_all() -> None:
    while _closers:
        _closers.pop()()
    while _last:
        _last.popitem()[1]()
    logging.getLogger("asyncio").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not the waits with a time limit that Dask's event loops leave behind at exit: asyncio tells
    of them, in Tornado's words, when the interpreter frees them."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, TimeoutError) and str(error) == "Timeout")


def _before_fork() -> None:
    global _loops_ran
    _loops_ran = _loops_ran or any(t.name.startswith(_LOOPS) for t in threading.enumerate())


def _in_child() -> None:
    """What the parent keeps open is the parent's to close."""
    global _forked, _lock
    _forked, _lock = _forked or _loops_ran, threading.RLock()
    for closer in _closers:
        closer.detach()
    _closers.clear()
    _last.clear()
    threaded: Any = sys.modules.get("dask.threaded")
    if threaded is not None:  # else `compute()` of any array would wait for its copied pools
        threaded.default_pool, threaded.pools_lock = None, threading.Lock()
        threaded.pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
