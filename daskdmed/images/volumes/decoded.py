"""What compressed volumes become once they are decoded: arrays in memory, or files beside.

Small ones are kept in memory as long as they are in use, together at most
``daskdmed.images.decoded-kept`` (default 1 GiB), the longest unused goes first. Those above
``daskdmed.images.decoded-limit`` (512 MiB, a quarter of a loader's usual budget) are written
once into the cache folder, uncompressed, which takes at most ``daskdmed.images.cache-limit``
(50 GiB). All three are settings of ``dask.config``.

Not covered: how they are decoded (`daskdmed.images.volumes.inflate`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import dask
from dask.utils import parse_bytes

from daskdmed.core.cachefolder import CACHE_DIR_VARIABLE, cache_dir, make_room
from daskdmed.core.errors import StoreError
from daskdmed.core.files import new_file
from daskdmed.core.types import Array
from daskdmed.images.source import LocalSource

_log = logging.getLogger("daskdmed.images")
_DEFAULTS = {
    "decoded-limit": "512 MiB",
    "decoded-kept": "1 GiB",
    "cache-limit": "50 GiB",
    "picture-limit": "4 GiB",
}
#: seconds after which a file that nobody goes on writing was left by a process that was killed
_ABANDONED = 3600


def setting(name: str) -> int:
    """Bytes that ``dask.config`` gives under ``daskdmed.images``."""
    return int(parse_bytes(dask.config.get(f"daskdmed.images.{name}", _DEFAULTS[name])))


@dataclass(slots=True, eq=False)
class Decoded:
    """What one compressed file holds, for as many readers as have it open."""

    array: Array | None = None
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class DecodedFiles:
    """The decoded files of this process by key, the longest unused dropped first. Thread-safe."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, Decoded] = OrderedDict()

    def enter(self, key: str) -> Decoded:
        """Say that a reader uses a file, and get what is kept of it."""
        with self._lock:
            found = self._files.setdefault(key, Decoded())
            found.users += 1
            return found

    def leave(self, key: str) -> None:
        """Say that a reader uses it no longer; what nobody uses is dropped."""
        with self._lock:
            found = self._files.get(key)
            if found is not None:
                found.users -= 1
                if found.users == 0:
                    del self._files[key]

    def get(self, key: str, file: Decoded, decode: Callable[[], Array]) -> Array:
        """The array of a file, decoded now by one thread when it is not there."""
        array = file.array
        if array is None:
            with file.lock:
                array = file.array
                if array is None:
                    array = file.array = decode()
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
            total = sum(f.array.nbytes for f in self._files.values() if f.array is not None)
            if total > setting("decoded-kept"):
                self._trim(total, file)
        return array

    def _trim(self, total: int, used: Decoded) -> None:
        for other in self._files.values():
            if other is not used and other.array is not None:
                total -= other.array.nbytes
                other.array = None
            if total <= setting("decoded-kept"):
                return


#: of this process
decoded_files = DecodedFiles()
_converting: dict[str, threading.Lock] = {}
_converting_lock = threading.Lock()


def converted(uri: str, name: str, nbytes: int, data: Callable[[], Iterable[bytes]]) -> LocalSource:
    """An open file of the cache folder that holds `data`, so many bytes; written when it is not
    there.

    Written to a name of its own and renamed when it is whole: of a process that is killed nothing
    is left that could be taken for it, and several at once do not meet.
    """
    target = cache_dir() / "volumes" / f"{name}.raw"
    with _converting_lock:
        lock = _converting.setdefault(str(target), threading.Lock())
    with lock:
        return _open(target, nbytes) or _write(uri, target, nbytes, data)


def _open(target: Path, nbytes: int) -> LocalSource | None:
    try:
        source = LocalSource(str(target))
    except OSError:
        return None
    if source.size != nbytes:
        source.close()
        return None
    try:
        os.utime(target)  # used now
    except OSError as error:
        _log.debug("%s: %s", target, error)
    return source


def _write(uri: str, target: Path, nbytes: int, data: Callable[[], Iterable[bytes]]) -> LocalSource:
    limit = setting("cache-limit")
    if nbytes > limit:
        raise StoreError(
            f"{uri} is compressed and has {nbytes} bytes decoded, which are too many for memory "
            f"(daskdmed.images.decoded-limit, {setting('decoded-limit')}) and for the cache folder "
            f"(daskdmed.images.cache-limit, {limit}); raise one of both in dask.config, or "
            "uncompress the file"
        )
    _log.info("%s: decoded once into %s, %d bytes", uri, target, nbytes)
    _sweep(target.parent)
    make_room(target.parent, "*.raw", nbytes, limit)
    source = None
    try:
        with new_file(target, overwrite=True) as partial:
            with partial.open("wb") as file:
                for piece in data():
                    file.write(piece)
            if os.name != "nt":  # opened before others can delete it, where that can be renamed
                source = LocalSource(str(partial))
    except StoreError as error:
        if source is not None:
            source.close()
        raise StoreError(f"{error}; {CACHE_DIR_VARIABLE} names another folder") from error
    return source or LocalSource(str(target))


def _sweep(folder: Path) -> None:
    """Delete what killed processes left."""
    for left in folder.glob(".*.partial"):
        try:
            if left.stat().st_mtime < time.time() - _ABANDONED:
                left.unlink()
        except OSError as error:
            _log.debug("%s: %s", left, error)


def _reset() -> None:
    global _converting_lock
    decoded_files._reset()
    _converting_lock = threading.Lock()
    _converting.clear()


if hasattr(os, "register_at_fork"):
    # locks may be held by threads that the child does not have
    os.register_at_fork(after_in_child=_reset)
