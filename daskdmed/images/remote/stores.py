"""Zarr hierarchies behind URLs: chunks and metadata are asked for as often as it takes.

Not covered: what lies in them, and whether it was replaced (`daskdmed.images.ngff.storage`).
How many chunks are in flight is Zarr's own setting, ``zarr.config`` "async.concurrency".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.storage import FsspecStore, WrapperStore

from daskdmed.core.places import StorageOptions, told
from daskdmed.images.remote.counting import counted
from daskdmed.images.remote.objects import gate, s3_options
from daskdmed.images.remote.retry import attempt
from daskdmed.images.remote.settings import settings

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

T = TypeVar("T")


def remote_store(uri: str) -> Any:
    """A read-only store of a URL, with the options of `daskdmed.core.places.using`."""
    is_s3 = uri.partition("://")[0].lower() in ("s3", "s3a")
    options = s3_options() if is_s3 else dict(told() or {})
    store = FsspecStore.from_url(uri, storage_options=options, read_only=True)
    if is_s3 and store.fs is not None:
        store.fs.retries = 1  # of an instance of our own, by its options
    return PersistentStore(store, uri, told())


class PersistentStore(WrapperStore[FsspecStore]):  # type: ignore[misc]
    """A store that asks again where that may help, and says in its errors what failed."""

    def __init__(self, store: FsspecStore, uri: str, options: StorageOptions | None) -> None:
        super().__init__(store)
        self._uri, self._options = uri, options

    def _with_store(self, store: FsspecStore) -> PersistentStore:
        return PersistentStore(store, self._uri, self._options)

    async def _asked(self, request: Callable[[], Awaitable[T]]) -> T:
        limits = settings()
        bound = gate(asyncio.get_running_loop(), limits)
        return await attempt(request, self._uri, self._options, limits, bound, lenient=True)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        found = await self._asked(lambda: self._store.get(key, prototype, byte_range))
        counted(
            fetched=0 if found is None else len(found), needed=0 if found is None else len(found)
        )
        return found

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        wanted = list(key_ranges)
        return list(await asyncio.gather(*(self.get(k, prototype, r) for k, r in wanted)))

    async def exists(self, key: str) -> bool:
        return await self._asked(lambda: self._store.exists(key))
