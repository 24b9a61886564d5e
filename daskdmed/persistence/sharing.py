"""Blocks that worker processes of this machine hold, mapped: nothing but handles is sent.

Who holds a block is asked of the scheduler; the holder is asked where it lies, once a block, by
the client's own connection to it and past the scheduler. Not covered: the memory itself
(`daskdmed.core.shared`), and what is done with blocks that are elsewhere
(`daskdmed.loading.remote`).
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.shared import mapping, segments
from daskdmed.core.types import Array
from daskdmed.persistence.reading import Loaded, ReadFailure

if TYPE_CHECKING:
    from distributed import Client


class NotSharedError(Exception):
    """Some memory cannot be reached by other processes, or by this one."""


def describe(worker: Any, key: Any) -> bytes:
    """The machine of a worker, and handles in place of the arrays that it holds under a key; None
    where it does not hold them in shared memory. Runs on the worker's event loop; pickled."""
    handles = None
    data = worker.data
    data = getattr(data, "memory", data)  # what lies on disk is not read for it
    with contextlib.suppress(KeyError, NotSharedError):
        handles = _each_array(data[key], _handle)
    return pickle.dumps((segments.machine(), handles))


def install(dask_worker: Any) -> None:
    """Have a worker answer those who ask where its blocks lie."""

    def answer(key: Any) -> bytes:
        return describe(dask_worker, key)

    dask_worker.handlers.setdefault("daskdmed_handles", answer)


class Sharing:
    """Maps blocks of a client's cluster; for its event loop."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: workers that answer, True, or are known to be on other machines, False
        self._known: dict[str, bool] = {}

    async def map(self, key: Any) -> tuple[Loaded | None, str | None]:
        """What was read under a key, by reference; None where it does not lie on this machine.

        Also one of the workers that hold it, None when nobody does any more.
        """
        held = await self._client.scheduler.who_has(keys=[key])
        holders = sorted(held.get(key) or ())
        for worker in holders:
            if self._known.get(worker, True):
                try:
                    machine, handles = await self._ask(worker, key)
                except OSError:  # it has just been lost
                    continue
                self._known[worker] = machine == segments.machine()
                if self._known[worker] and handles is not None:
                    with contextlib.suppress(NotSharedError):
                        return _each_array(handles, _attached, segments.Handle), worker
        return None, min(holders, default=None)

    async def _ask(self, worker: str, key: Any) -> tuple[str, Any]:
        rpc = self._client.rpc(worker)
        if worker not in self._known:
            await rpc.run(function=pickle.dumps(install), args=b"", kwargs=b"")
        answer: tuple[str, Any] = pickle.loads(await rpc.daskdmed_handles(key=key))
        return answer


def _each_array(
    loaded: Loaded, change: Callable[[Any], Any], kind: type[Any] = np.ndarray
) -> Loaded:
    """What tasks of `daskdmed.persistence.reading` give, other things in place of its arrays."""
    if isinstance(loaded, kind):
        return change(loaded)
    if isinstance(loaded, list):
        return [_each_array(item, change, kind) for item in loaded]
    if isinstance(loaded, tuple):  # the origin of a piece, its pixels, those of the target
        origin, data, target = loaded
        return origin, change(data), None if target is None else change(target)
    if isinstance(loaded, ReadFailure):
        return loaded
    raise NotSharedError(f"{type(loaded).__name__} has no handle")


def _handle(array: Array) -> segments.Handle:
    handle = segments.handle_of(array)
    if handle is None:
        raise NotSharedError("memory of this process alone")
    return handle


def _attached(handle: segments.Handle) -> Array:
    array = mapping.attach(handle)
    if array is None:
        raise NotSharedError("it cannot be reached from this process")
    return array
