"""Names of images, and raw bytes of one file.

Covers: the normal form of a URI, the fingerprint that tells whether the content changed,
and `Source`, positioned reads without a shared file position (so without a lock), on local
files and on any fsspec file system.

Not covered: what the bytes mean (`daskdmed.images.tiff`), and how long a file stays open
(`daskdmed.images.filecache`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from daskdmed.core.errors import (
    CorruptImageError,
    ImageError,
    ImageNotFoundError,
    ImagePermissionError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.core.places import filesystem, is_remote, local_path
from daskdmed.core.types import PathLike

#: read at most this much with one call, so that one damaged number cannot ask for terabytes
MAX_READ = 2**31


def normalize_uri(uri: PathLike) -> str:
    """Absolute path of a local file, without ``~`` and ``file://``, or a URL as it is."""
    try:
        text = os.fsdecode(os.fspath(uri))
    except TypeError:
        raise UsageError(
            f"an image is named by a path or a URL, got {type(uri).__name__}: {uri!r:.80}"
        ) from None
    if not text or "\0" in text:
        raise UsageError(f"an image is named by a path or a URL, got {text!r:.80}")
    return local_path(text) or text


def fingerprint(uri: str) -> str:
    """Text that changes when the content of a file does: size and modification time of local files,
    otherwise the etag or what else the file system knows."""
    if not is_remote(uri):
        try:
            stat = os.stat(uri)
        except (OSError, ValueError) as exc:
            raise explain_os_error(exc, uri) from exc
        return f"{stat.st_size}-{stat.st_mtime_ns}"
    try:
        fs, path = filesystem(uri)
        info = fs.info(path)
    except Exception as exc:
        raise explain_os_error(exc, uri) from exc
    names = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "created")
    facts = [str(info.get("size"))] + [str(info[n]) for n in names if info.get(n) is not None]
    return hashlib.blake2b("|".join(facts).encode(), digest_size=12).hexdigest()


def open_source(uri: str) -> Source:
    """Open the bytes of a local or remote file."""
    try:
        return RemoteSource(uri) if is_remote(uri) else LocalSource(uri)
    except ImageError:
        raise
    except Exception as exc:
        raise explain_os_error(exc, uri) from exc


def explain_os_error(exc: BaseException, uri: str) -> ImageError:
    """Typed error for what the operating system or a file system library raised."""
    if isinstance(exc, ImageError):
        return exc
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        return ImageNotFoundError.of(uri, "no such file; check the path")
    if isinstance(exc, PermissionError):
        return ImagePermissionError.of(uri, "no permission to read the file; ask for read access")
    if isinstance(exc, IsADirectoryError):
        return UnsupportedImageError.of(uri, "this is a directory, not a slide; name a file in it")
    if isinstance(exc, ImportError):
        return UnsupportedImageError.of(
            uri, f"reading this kind of URL needs another package: {exc}"
        )
    return ImageError.of(uri, f"cannot be opened: {type(exc).__name__}: {exc}")


class FinalError(UnsupportedImageError):
    """What no other backend is asked, because it would open the file and give other pixels."""


class RangeError(FinalError):
    """A server sends other bytes than the range it was asked for, as a rule the whole file."""


class LocalSource:
    """A local file read with ``pread``: no position, no lock."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        if os.path.isdir(uri):
            raise IsADirectoryError(uri)
        self._fd = os.open(uri, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self._fd).st_size
        self._lock: threading.Lock | None = None if hasattr(os, "pread") else threading.Lock()

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at an offset; fewer only at the end of the file."""
        if self._lock is not None:
            with self._lock:
                os.lseek(self._fd, offset, os.SEEK_SET)
                return os.read(self._fd, count)
        if count > MAX_READ:
            raise CorruptImageError.of(self.uri, f"a single read of {count} bytes")
        data = os.pread(self._fd, count, offset)
        if len(data) == count or offset + len(data) >= self.size:
            return data
        while len(data) < count:
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_many(self, offsets: list[int], counts: list[int]) -> list[bytes]:
        return list(map(self.read, offsets, counts))

    def open_file(self) -> Any:
        """A second, buffered handle for the parser."""
        return Path(self.uri).open("rb")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RemoteSource:
    """A file on an fsspec file system, read by ranges."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._fs, self._path = filesystem(uri)
        info = self._fs.info(self._path)
        if info.get("type") == "directory":
            raise IsADirectoryError(uri)
        size = info.get("size")
        if size is None:
            raise UnsupportedImageError.of(
                uri,
                "the server does not tell the size, so ranges cannot be read; "
                "download the file first",
            )
        self.size = int(size)

    def read(self, offset: int, count: int) -> bytes:
        return self.read_many([offset], [count])[0]

    def read_many(self, offsets: list[int], counts: list[int]) -> list[bytes]:
        """All ranges in one request where the file system is asynchronous."""
        ranges = [(o, min(o + c, self.size)) for o, c in zip(offsets, counts, strict=True)]
        asked = [(start, stop) for start, stop in ranges if start < stop]
        found: Iterator[Any] = iter(())
        if asked:
            starts, stops = map(list, zip(*asked, strict=True))
            paths = [self._path] * len(asked)
            found = iter(self._fs.cat_ranges(paths, starts, stops, on_error="raise"))
        return [self._checked(bytes(next(found)), a, b) if a < b else b"" for a, b in ranges]

    def _checked(self, data: bytes, start: int, stop: int) -> bytes:
        """Servers and proxies without ranges answer with the whole file, from its beginning."""
        if len(data) <= stop - start:
            return data
        raise RangeError.of(
            self.uri,
            f"asked for the range of {stop - start} bytes at {start}, the server sent "
            f"{len(data)}, as those that ignore ranges send the whole file ({self.size} bytes); "
            f"download it, or open simplecache::{self.uri}, which downloads it once",
        )

    def open_file(self) -> Any:
        return self._fs.open(self._path, "rb")

    def close(self) -> None:
        """Nothing to release: fsspec owns its connections."""


#: bytes of one file, readable from many threads at once
Source: TypeAlias = LocalSource | RemoteSource
