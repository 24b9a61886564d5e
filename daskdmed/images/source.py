"""Names of images, and raw bytes of one file.

Covers: the normal form of a URI, the fingerprint that tells whether the content changed,
and `Source`, positioned reads without a shared file position (so without a lock).

Not covered: files behind URLs (`daskdmed.images.remote`), what the bytes mean
(`daskdmed.images.tiff`), and how long a file stays open (`daskdmed.images.filecache`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
from daskdmed.core.places import is_remote, local_path
from daskdmed.core.types import PathLike
from daskdmed.images.refusals import MAX_READ


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
    from daskdmed.images.remote.source import facts_of

    return facts_of(uri).fingerprint


class Source(Protocol):
    """Bytes of one file, readable from many threads at once."""

    uri: str
    size: int
    #: neighbours in the file closer than this are read with one call...
    gap: int
    #: ... as long as that reads no more than this
    run: int
    #: bytes of tiles worth asking for with one call; 0 where waiting for them costs nothing
    together: int

    @property
    def descriptor(self) -> int | None:
        """Of an open file that anybody may read at any place; None where there is none."""
        ...

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at an offset; fewer only at the end of the file."""
        ...

    def read_many(self, offsets: Sequence[int], counts: Sequence[int]) -> list[bytes]:
        """Several ranges."""
        ...

    def scanning(self) -> AbstractContextManager[None]:
        """For as long as the file is parsed."""
        ...

    def open_file(self) -> Any:
        """A second, buffered handle for the parser."""
        ...

    def close(self) -> None:
        """Release handles. Idempotent."""
        ...


def open_source(uri: str) -> Source:
    """Open the bytes of a local or remote file."""
    if is_remote(uri):
        from daskdmed.images.remote.source import RemoteSource

        return RemoteSource(uri)
    try:
        return LocalSource(uri)
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


class LocalSource:
    """A local file read with ``pread``: no position, no lock."""

    gap = 64 * 2**10
    run = 8 * 2**20
    together = 0

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

    def read_many(self, offsets: Sequence[int], counts: Sequence[int]) -> list[bytes]:
        return list(map(self.read, offsets, counts))

    @property
    def descriptor(self) -> int | None:
        return self._fd if self._lock is None and self._fd >= 0 else None

    def scanning(self) -> AbstractContextManager[None]:
        return nullcontext()

    def open_file(self) -> Any:
        return Path(self.uri).open("rb")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
