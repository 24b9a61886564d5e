"""Open readers of this process, keyed by value.

Slides, views and Dask graphs hold values (uri, backend, fingerprint); whoever reads leases
the open reader from here. At most ``daskdmed.images.open-files`` (default 128) stay open,
the longest unused is closed first and never while it is in use, and a forked child starts
with none.

Not covered: choosing a backend (`daskdmed.images.registry`).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dask

from daskdmed.core.errors import ImageError
from daskdmed.images.protocols import Reader

DEFAULT_LIMIT = 128


@dataclass(frozen=True, slots=True)
class FileKey:
    """What an open reader is known by."""

    uri: str
    backend: str
    fingerprint: str


class _Entry:
    """One reader with the number of its users."""

    __slots__ = ("closed", "lock", "reader", "users")

    def __init__(self) -> None:
        self.reader: Reader | None = None
        self.users = 0
        self.closed = False
        self.lock = threading.Lock()


class FileCache:
    """A bounded, thread-safe collection of open readers.

    Parameters
    ----------
    limit : int, optional
        Readers kept open; default: the configuration's, looked up at every opening.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[FileKey, _Entry] = OrderedDict()

    @property
    def limit(self) -> int:
        """Readers kept open."""
        if self._limit is not None:
            return self._limit
        return max(1, int(dask.config.get("daskdmed.images.open-files", DEFAULT_LIMIT)))

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def lease(self, key: FileKey) -> Iterator[Reader]:
        """Use a reader; it stays open at least until the block ends.

        Parameters
        ----------
        key : FileKey
            Which file, by value.

        Yields
        ------
        Reader
            Open; opened now when it was not.

        Raises
        ------
        ImageError
            The file changed since the slide was opened, or cannot be opened.
        """
        entry = self._enter(key)
        try:
            reader = entry.reader
            if reader is None:
                reader = self._open(key, entry)
            yield reader
        finally:
            self._leave(key, entry)

    def put(self, key: FileKey, reader: Reader) -> None:
        """Hand over a reader that is already open; closed when there is one for the key."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
                entry.reader = reader
                spare = self._overdue()
            else:
                spare = [reader] if entry.reader is not reader else []
        _close(spare)

    def discard(self, uri: str) -> None:
        """Close the readers of a file, at once or when their last user is done."""
        with self._lock:
            spare = []
            for key in [k for k in self._entries if k.uri == uri]:
                entry = self._entries.pop(key)
                entry.closed = True
                if entry.users == 0 and entry.reader is not None:
                    spare.append(entry.reader)
        _close(spare)

    def clear(self) -> None:
        """Close all readers, those in use when their last user is done."""
        for key in list(self._entries):
            self.discard(key.uri)

    def _enter(self, key: FileKey) -> _Entry:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
            else:
                self._entries.move_to_end(key)
            entry.users += 1
            return entry

    def _open(self, key: FileKey, entry: _Entry) -> Reader:
        with entry.lock:
            if entry.reader is None:
                try:
                    entry.reader = open_reader(key)
                except BaseException:
                    with self._lock:
                        if self._entries.get(key) is entry:
                            del self._entries[key]
                        entry.closed = True
                    raise
            reader = entry.reader
        with self._lock:
            spare = self._overdue()
        _close(spare)
        return reader

    def _leave(self, key: FileKey, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            done = entry.users == 0 and entry.closed
            spare = [entry.reader] if done and entry.reader is not None else []
            if len(self._entries) > self.limit:
                spare += self._overdue()
        if spare:
            _close(spare)

    def _overdue(self) -> list[Reader]:
        """Take out the longest unused readers above the limit. Called under the lock."""
        spare: list[Reader] = []
        excess = len(self._entries) - self.limit
        if excess <= 0:
            return spare
        for key in [k for k, e in self._entries.items() if e.users == 0][:excess]:
            entry = self._entries.pop(key)
            entry.closed = True
            if entry.reader is not None:
                spare.append(entry.reader)
        return spare


def open_reader(key: FileKey) -> Reader:
    """Open a file again, making sure that it is still the same.

    Raises
    ------
    ImageError
        Its fingerprint is another one.
    """
    from daskdmed.images.registry import get_backend

    backend = get_backend(key.backend)
    found = backend.fingerprint(key.uri)
    if found != key.fingerprint:
        raise ImageError(
            f"{key.uri}: the file changed since the slide was opened (it was "
            f"{key.fingerprint}, it is {found}); open the slide again",
            uri=key.uri,
        )
    return backend.open(key.uri)


def _close(readers: list[Reader]) -> None:
    for reader in readers:
        reader.close()


#: the readers of this process
cache = FileCache()

if hasattr(os, "register_at_fork"):
    # locks may be held and descriptors are the parent's: the child begins anew
    os.register_at_fork(after_in_child=cache._reset)
