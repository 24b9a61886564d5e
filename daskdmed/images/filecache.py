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
from dataclasses import dataclass, field

import dask

from daskdmed.core.errors import ChangedImageError
from daskdmed.core.places import StorageOptions, using
from daskdmed.core.view import FailedTile
from daskdmed.images.protocols import Reader

DEFAULT_LIMIT = 128


@dataclass(frozen=True, slots=True)
class FileKey:
    """What an open reader is known by; `image` is the text of `SlideOptions` or
    `VolumeOptions`, "" where nothing is unusual."""

    uri: str
    backend: str
    fingerprint: str
    image: str = ""
    #: what the file system of a URL is told, by whoever reads; not part of what the key names
    storage_options: StorageOptions | None = field(default=None, compare=False, repr=False)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "FileKey", repr(self)

    def __repr__(self) -> str:
        # part of the names of results: those of the usual image stay what they were
        extra = f", image={self.image!r}" if self.image else ""
        return (
            f"FileKey(uri={self.uri!r}, backend={self.backend!r}, "
            f"fingerprint={self.fingerprint!r}{extra})"
        )


@dataclass(slots=True, eq=False)
class _Entry:
    """One reader with the number of its users."""

    reader: Reader | None = None
    stamp: object = None
    users: int = 0
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class FileCache:
    """A bounded, thread-safe collection of open readers; without `limit` the configuration's,
    looked up at every opening."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[FileKey, _Entry] = OrderedDict()
        #: whether more than the limit were in use when it was last looked at
        self._crowded = False

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
        """Use a reader, opened now when it was not; it stays open until the block ends. An error
        where the file changed since the slide was opened."""
        entry = self._enter(key)
        try:
            reader = entry.reader
            if reader is None:
                reader = self._open(key, entry)
            yield reader
        finally:
            self._leave(key, entry)

    def put(self, key: FileKey, reader: Reader) -> None:
        """Hand over a reader that is already open; closed when there is one for the key.

        Unless that one is of a file which was replaced since by another one of the same size and
        time (rsync -t, cp -p).
        """
        stamp = _stamp(key.uri)
        with self._lock:
            old = self._entries.get(key)
            if old is not None and old.stamp == stamp:
                spare = [reader] if old.reader is not reader else []
            else:
                spare = [] if old is None else self._dropped(self._entries.pop(key))
                self._entries[key] = _Entry(reader, stamp)
                spare += self._overdue()
        _close(spare)

    def discard(self, uri: str) -> None:
        """Close the readers of a file, at once or when their last user is done."""
        with self._lock:
            spare = []
            for key in [k for k in self._entries if k.uri == uri]:
                spare += self._dropped(self._entries.pop(key))
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
                    entry.stamp = _stamp(key.uri)
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
            spare = self._dropped(entry) if entry.closed else []
            if self._crowded:
                spare += self._overdue()
        _close(spare)

    @staticmethod
    def _dropped(entry: _Entry) -> list[Reader]:
        """What to close now of an entry that was taken out; else its last user does it."""
        entry.closed = True
        return [entry.reader] if entry.users == 0 and entry.reader is not None else []

    def _overdue(self) -> list[Reader]:
        """Take out the longest unused readers above the limit. Called under the lock."""
        excess = max(0, len(self._entries) - self.limit)
        unused = [k for k, e in self._entries.items() if e.users == 0] if excess else []
        self._crowded = len(unused) < excess
        return [r for k in unused[:excess] for r in self._dropped(self._entries.pop(k))]


def open_reader(key: FileKey) -> Reader:
    """Open a file again, making sure that it is still the same."""
    with using(key.storage_options):
        return _open_same(key)


def _open_same(key: FileKey) -> Reader:
    from daskdmed.images.registry import fingerprint_of, get_backend, open_image, options_of

    backend = get_backend(key.backend)
    what = options_of(backend, key.image)
    found = fingerprint_of(backend, key.uri, what)
    if found != key.fingerprint:
        raise ChangedImageError.of(
            key.uri,
            f"the file changed since it was opened (it was {key.fingerprint}, it is {found}); "
            "open it again",
        )
    return open_image(backend, key.uri, what)


def _stamp(uri: str) -> object:
    """Which file it is on this machine, at its last change; None for a remote one."""
    try:
        facts = os.stat(uri)
    except (OSError, ValueError):
        return None
    return facts.st_ino, facts.st_ctime_ns


def _close(readers: list[Reader]) -> None:
    for reader in readers:
        reader.close()


#: the readers of this process
cache = FileCache()


class OfFile:
    """What slides and views know of their file, which they name by value."""

    __slots__ = ()
    key: FileKey

    @property
    def uri(self) -> str:
        """Absolute path or URL."""
        return self.key.uri

    @property
    def backend(self) -> str:
        """Name of the backend that reads the file."""
        return self.key.backend

    @property
    def fingerprint(self) -> str:
        """State of the file when it was opened."""
        return self.key.fingerprint

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        """Tiles that ``tile_error="fill"`` painted in this process since the file was opened."""
        with cache.lease(self.key) as reader:
            return reader.failed_tiles


if hasattr(os, "register_at_fork"):
    # locks may be held and descriptors are the parent's: the child begins anew
    os.register_at_fork(after_in_child=cache._reset)
