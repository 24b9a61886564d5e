"""Writing to a Zarr array in the calling thread.

``array[key] = values`` hands a chunk from thread to thread half a dozen times: zarr's event
loop, its executor for codecs, another for files. While other threads decode, each of these
waits for the interpreter. Here an event loop of the calling thread runs the same coroutine
of the same library, and what that would hand to an executor is called at once. A whole chunk
of plain numbers, compressed by Zstandard or not at all, is encoded here to the same bytes, and
only handed to the store: half of the time goes to a dozen coroutines otherwise.

Not covered: stores on a network, whose clients belong to zarr's own loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import zarr
from zarr.storage import LocalStore, MemoryStore

from daskdmed.core.types import Array
from daskdmed.images.ngff.chunks import in_own_order, ordinary_pipeline

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
    if not isinstance(array.store, (LocalStore, MemoryStore)) or _in_loop():
        array[key] = values
        return
    if not hasattr(_local, "own"):
        _local.own = _OfThread()
    loop = _local.own.loop
    encoded = _encoded(array, key, values)
    if encoded is None:
        loop.run_until_complete(array.async_array.setitem(key, values))
    else:
        loop.run_until_complete(array.store.set(*encoded))


def _encoded(
    array: zarr.Array[Any], key: tuple[slice, ...], values: Array
) -> tuple[str, Any] | None:
    """The object that holds a whole chunk of these values: its key and its bytes, as zarr would
    have them. None: zarr has to do it."""
    try:
        place = _chunk_at(array, key)
        unit = None if place is None else _unit(array, values)
        if place is None or unit is None:
            return None
        from zarr.core.buffer import default_buffer_prototype

        content = default_buffer_prototype().buffer.from_bytes(unit)
        name = array.metadata.encode_chunk_key(place)
    except (AttributeError, ImportError):  # another version of zarr names things otherwise
        return None
    return f"{array.path}/{name}" if array.path else name, content


def _chunk_at(array: zarr.Array[Any], key: tuple[slice, ...]) -> tuple[int, ...] | None:
    """Which chunk a selection is all of, as far as that lies in the array."""
    chunk = array.metadata.chunk_grid.chunk_shape
    place = []
    for part, size, extent in zip(key, chunk, array.shape, strict=True):
        first, stop, step = part.indices(extent)
        if step != 1 or first % size or stop != min(first + size, extent):
            return None
        place.append(first // size)
    return tuple(place)


def _unit(array: zarr.Array[Any], values: Array) -> bytes | None:
    """The bytes of a chunk, that at an edge filled up."""
    from zarr.codecs import BytesCodec, ZstdCodec

    metadata, dtype = array.metadata, array.dtype
    codecs = list(metadata.codecs)
    if metadata.zarr_format != 3 or not ordinary_pipeline() or dtype.kind not in "uif":
        return None
    if [type(codec) for codec in codecs] not in ([BytesCodec], [BytesCodec, ZstdCodec]):
        return None
    if not in_own_order(codecs[0], dtype):
        return None
    fill, whole = metadata.fill_value, np.asarray(values, dtype, order="C")
    if (whole == fill).all() or (fill != fill and np.isnan(whole).all()):
        return None  # zarr may write no object then
    chunk = metadata.chunk_grid.chunk_shape
    if whole.shape != chunk:
        inside = whole
        whole = np.full(chunk, fill, dtype)
        whole[tuple(slice(n) for n in inside.shape)] = inside
    if len(codecs) == 1:
        return whole.tobytes()
    import numcodecs  # type: ignore[import-untyped]

    codec = numcodecs.Zstd(level=codecs[1].level, checksum=codecs[1].checksum)
    return bytes(codec.encode(whole))


def _in_loop() -> bool:
    """Whether this thread runs an event loop already, in which no other one can run."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False
