"""Writing to a Zarr array in the calling thread.

``array[key] = values`` hands a chunk from thread to thread half a dozen times: zarr's event
loop, its executor for codecs, another for files. While other threads decode, each of these
waits for the interpreter. Here an event loop of the calling thread runs the same coroutine
of the same library, and what that would hand to an executor is called at once.

Not covered: stores on a network, whose clients belong to zarr's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import zarr
from zarr.storage import LocalStore, MemoryStore

from daskdmed.core.types import Array

P = ParamSpec("P")
T = TypeVar("T")


class _AtOnce(ThreadPoolExecutor):
    """Runs what it is given in the thread that gives it; asyncio wants this base class."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # asyncio raises it where the call was awaited
            future.set_exception(error)
        return future


class _Loop:
    """An event loop that is closed with its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_AtOnce(max_workers=1))
        weakref.finalize(self, _close, self.loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """At exit a thread may still be writing; its loop ends with the process."""
    if not loop.is_running():
        loop.close()


_local = threading.local()


def write(array: zarr.Array[Any], key: tuple[slice, ...], values: Array) -> None:
    """``array[key] = values``, in this thread where the store allows it (local and in-memory
    ones)."""
    inner = getattr(array, "async_array", None)  # older versions of zarr have none
    if inner is None or not isinstance(array.store, (LocalStore, MemoryStore)) or _in_loop():
        array[key] = values
        return
    if not hasattr(_local, "loop"):
        _local.loop = _Loop()
    _local.loop.loop.run_until_complete(inner.setitem(key, values))


def _in_loop() -> bool:
    """Whether this thread runs an event loop already, in which no other one can run."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False
