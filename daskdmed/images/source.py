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
from pathlib import Path
from typing import Any, Protocol

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


class Source(Protocol):
    """Bytes of one file, readable from many threads at once."""

    uri: str
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`; fewer only at the end of the file."""
        ...

    def read_many(self, offsets: list[int], counts: list[int]) -> list[bytes]:
        """Several ranges at once; one round trip where the file system can do that."""
        ...

    def open_file(self) -> Any:
        """A fresh seekable file object (or a path) for a parser that wants one."""
        ...

    def close(self) -> None:
        """Release the handle. Idempotent."""
        ...


def normalize_uri(uri: PathLike) -> str:
    """Absolute path of a local file, or the URL of a remote one.

    Parameters
    ----------
    uri : str or path-like
        ``slide.svs``, ``~/slide.svs``, ``file:///data/slide.svs``, ``s3://bucket/slide.svs``.

    Returns
    -------
    str
        An absolute path without ``~``, or the URL as it is.

    Raises
    ------
    UsageError
        `uri` is empty or no path.
    """
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
    """Text that changes when the content of a file does.

    Size and modification time in nanoseconds for local files, otherwise the etag or what
    else the file system knows.

    Raises
    ------
    ImageNotFoundError, ImagePermissionError, ImageError
        The file cannot be looked at.
    """
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
    """Open the bytes of a local or remote file.

    Raises
    ------
    ImageNotFoundError, ImagePermissionError, UnsupportedImageError, ImageError
        The file cannot be opened; the message names it.
    """
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
        return ImageNotFoundError(f"{uri}: no such file; check the path", uri=uri)
    if isinstance(exc, PermissionError):
        return ImagePermissionError(
            f"{uri}: no permission to read the file; ask for read access", uri=uri
        )
    if isinstance(exc, IsADirectoryError):
        return UnsupportedImageError(
            f"{uri}: this is a directory, not a slide; name a file in it", uri=uri
        )
    if isinstance(exc, ImportError):
        return UnsupportedImageError(
            f"{uri}: reading this kind of URL needs another package: {exc}", uri=uri
        )
    return ImageError(f"{uri}: cannot be opened: {type(exc).__name__}: {exc}", uri=uri)


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
        """Bytes at an offset."""
        if self._lock is not None:
            return self._seek_read(offset, count)
        if count > MAX_READ:
            raise CorruptImageError(f"{self.uri}: a single read of {count} bytes", uri=self.uri)
        data = os.pread(self._fd, count, offset)
        if len(data) == count or offset + len(data) >= self.size:
            return data
        return self._read_rest(offset, count, data)

    def read_many(self, offsets: list[int], counts: list[int]) -> list[bytes]:
        """Several ranges, one after the other."""
        read = self.read
        return [read(o, c) for o, c in zip(offsets, counts, strict=True)]

    def _read_rest(self, offset: int, count: int, data: bytes) -> bytes:
        parts = [data]
        got = len(data)
        while got < count:
            more = os.pread(self._fd, count - got, offset + got)
            if not more:
                break
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def _seek_read(self, offset: int, count: int) -> bytes:
        assert self._lock is not None
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, count)

    def open_file(self) -> Any:
        """A second, buffered handle for the parser."""
        return Path(self.uri).open("rb")

    def close(self) -> None:
        """Close the descriptor."""
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
            raise UnsupportedImageError(
                f"{uri}: the server does not tell the size, so ranges cannot be read; "
                "download the file first",
                uri=uri,
            )
        self.size = int(size)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes at an offset."""
        stop = min(offset + count, self.size)
        if offset >= stop:
            return b""
        return bytes(self._fs.cat_file(self._path, start=offset, end=stop))

    def read_many(self, offsets: list[int], counts: list[int]) -> list[bytes]:
        """All ranges in one request where the file system is asynchronous."""
        if not offsets:
            return []
        stops = [min(o + c, self.size) for o, c in zip(offsets, counts, strict=True)]
        starts = [min(o, s) for o, s in zip(offsets, stops, strict=True)]
        found = self._fs.cat_ranges([self._path] * len(starts), starts, stops)
        return [bytes(part) for part in found]

    def open_file(self) -> Any:
        """A buffered file object."""
        return self._fs.open(self._path, "rb")

    def close(self) -> None:
        """Nothing to release: fsspec owns its connections."""
