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
from typing import Any, TypeVar

import zarr
from zarr.storage import LocalStore, MemoryStore

from daskdmed.core.types import Array

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose executor is the calling thread itself; closed with that thread."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # raised where the call is awaited
            future.set_exception(error)
        return future


class _OfThread:
    def __init__(self) -> None:
        self.loop = _Loop()
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
    if not hasattr(_local, "own"):
        _local.own = _OfThread()
    _local.own.loop.run_until_complete(inner.setitem(key, values))


def _in_loop() -> bool:
    """Whether this thread runs an event loop already, in which no other one can run."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False
