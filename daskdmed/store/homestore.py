"""A Zarr store in the memory of one process, which says so in every other.

Pickled, a store on ``memory://`` would be an empty one elsewhere, and an array in it all fill
value. Not covered: zarr's own `MemoryStore`, which takes its content along.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from typing import Any

from zarr.abc.store import Store
from zarr.storage import FsspecStore, WrapperStore

from daskdmed.core.errors import StoreError

_ID = uuid.uuid4().hex
#: stores and file systems that hold their content in memory
_IN_MEMORY = {"MemoryStore", "MemoryFileSystem"}
#: where wrappers of stores and file systems keep what they wrap
_INNER = ("_store", "store", "fs", "sync_fs")


def in_memory(target: str | Store) -> bool:
    """Whether other processes cannot see a store."""
    if isinstance(target, str):
        return target.rpartition("::")[2].startswith("memory://")
    inner: Any = target
    for _ in range(8):
        if {kind.__name__ for kind in type(inner).__mro__} & _IN_MEMORY:
            return True
        found = [getattr(inner, name, None) for name in _INNER]
        inner = next((value for value in found if value is not None), None)
    return False


def at_home(target: str | Store) -> str | Store:
    """What Zarr opens, as a `HomeStore` where another process would find nothing."""
    if not in_memory(target) or (isinstance(target, Store) and hasattr(target, "_store_dict")):
        return target
    if isinstance(target, str):
        return HomeStore(FsspecStore.from_url(target))
    return target if isinstance(target, HomeStore) else HomeStore(target)


class HomeStore(WrapperStore[Store]):  # type: ignore[misc]
    """A store that refuses to be used in another process than the one that made it."""

    def __init__(self, store: Store, home: tuple[int, str] | None = None) -> None:
        super().__init__(store)
        self._home = home or (os.getpid(), _ID)

    def __reduce__(self) -> tuple[Any, ...]:
        return HomeStore, (self._store, self._home)

    def _with_store(self, store: Store) -> HomeStore:
        return HomeStore(store, self._home)

    def with_read_only(self, read_only: bool = False) -> HomeStore:
        """The same for reading only, or not."""
        return self._with_store(self._store.with_read_only(read_only))

    def _check(self) -> None:
        if self._home != (os.getpid(), _ID):
            raise StoreError(
                f"{self._store} lies in the memory of process {self._home[0]}, and this is process "
                f"{os.getpid()}: compute with scheduler='threads', or write the result to a path "
                "or URL that all processes see (out=)"
            )

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        """Read an object."""
        self._check()
        return await super().get(*args, **kwargs)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[Any]) -> Any:
        """Read parts of objects."""
        self._check()
        return await super().get_partial_values(prototype, key_ranges)

    async def set(self, *args: Any, **kwargs: Any) -> None:
        """Write an object."""
        self._check()
        await super().set(*args, **kwargs)
