"""One range of one file: over HTTP, from S3, from Google, or from any file system of fsspec.

Over HTTP, from S3 and from Google every answer says of which version of the file it is, and the
answer to the first range says size and version of the file, so that nothing else is asked: a
server that refuses HEAD, or lies in its answer, does as well. Elsewhere fsspec's `info` is asked.

Not covered: attempts (`daskdmed.images.remote.retry`), which ranges (`daskdmed.images.remote.
source`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from daskdmed.core.errors import (
    ChangedImageError,
    ImageNotFoundError,
    MissingExtraError,
    UnsupportedImageError,
)
from daskdmed.core.places import filesystem, told
from daskdmed.images.refusals import RangeError
from daskdmed.images.remote.retry import PASSING_STATUS, PassingError, code_of, status_of
from daskdmed.images.remote.settings import Settings, settings

#: facts by which file systems tell versions of a file apart
_VERSION = (
    *("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "created"),
    *("Last-Modified", "generation"),
)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
#: an answer with the whole file is taken as such up to this, and refused unread above
SMALL = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Facts:
    """Size and version of a file; `version` are the facts that its server tells."""

    size: int
    version: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Text that changes when the content does."""
        facts = "|".join([str(self.size), *self.version])
        return hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()


class Remote(Protocol):
    """A file behind a URL."""

    uri: str

    async def first(self, count: int) -> tuple[Facts, bytes]:
        """Facts, and the first bytes."""
        ...

    async def range(self, start: int, stop: int, known: Facts) -> bytes:
        """A part of the file that is known: all of it, and of no other version."""
        ...


def changed(uri: str, was: Facts, found: object) -> ChangedImageError:
    """The error of a file that was replaced."""
    return ChangedImageError.of(
        uri,
        f"the file changed on the server since it was opened (it was {was.size} bytes, "
        f"{', '.join(was.version) or 'of no known version'}; it is {found}); open it again",
    )


def whole_file(uri: str, start: int, stop: int, sent: object, size: object) -> RangeError:
    """The error of a server that does not know ranges."""
    return RangeError.of(
        uri,
        f"asked for the range of {stop - start} bytes at {start}, the server sent {sent}, as those "
        f"that ignore ranges send the whole file ({size} bytes); download it, or open "
        f"simplecache::{uri}, which downloads it once",
    )


class HttpFile:
    """A file of an HTTP server."""

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self.uri, self._fs = uri, fs
        self._url = fs.encode_url(path)
        self._address = self._url
        # a place that another host is redirected to may know no credentials of this one
        self._bare = not (fs.kwargs or fs.client_kwargs)

    async def first(self, count: int) -> tuple[Facts, bytes]:
        data, facts = await self._get(0, count, None)
        return facts, data

    async def range(self, start: int, stop: int, known: Facts) -> bytes:
        return (await self._get(start, stop, known))[0]

    async def _session(self) -> tuple[Any, dict[str, str], dict[str, Any]]:
        """Of the client, with the headers and what else it sends with each request."""
        session, more = await self._fs.set_session(), dict(self._fs.kwargs)
        return session, more.pop("headers", None) or {}, more

    async def _get(self, start: int, stop: int, known: Facts | None) -> tuple[bytes, Facts]:
        session, own, more = await self._session()
        # compressed on their way, ranges would be of other bytes
        asked = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        async with session.get(self._address, headers={**own, **asked}, **more) as answer:
            if answer.status >= 400 and answer.status != 416:
                self._refused(answer)
            if self._bare:
                self._address = answer.url  # where redirections lead: asked at once from now on
            return await self._taken(answer, start, stop, known)

    def _refused(self, answer: Any) -> None:
        moved, self._address = self._address != self._url, self._url
        what = f"status {answer.status} {answer.reason}"
        if moved or answer.status in PASSING_STATUS:
            # where it led to is often signed for a while only: the way is asked for anew
            raise PassingError(what, _seconds(answer.headers.get("Retry-After")))
        answer.raise_for_status()

    async def _taken(
        self, answer: Any, start: int, stop: int, known: Facts | None
    ) -> tuple[bytes, Facts]:
        headers = answer.headers
        encoding = headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("identity", ""):
            raise RangeError.of(
                self.uri,
                f"the server sends it compressed ({encoding}) although asked not to, so ranges of "
                "it are none of the file; have it served as it is, or download it",
            )
        begin, end, size = _content_range(headers.get("Content-Range", ""))
        if answer.status == 416:
            facts = Facts(size or 0, ())
            if known is None and not size:
                return b"", _facts(0, headers)
            raise changed(self.uri, known or facts, f"{size} bytes")
        if answer.status != 206:
            return await self._whole(answer, start, stop, known)
        if size is None and known is not None:
            size = known.size
        if size is None:
            raise UnsupportedImageError.of(
                self.uri,
                "the server does not tell the size, so ranges cannot be read; "
                "download the file first",
            )
        facts = _facts(size, headers)
        if known is not None and facts != known:
            raise changed(self.uri, known, f"{size} bytes, {', '.join(facts.version)}")
        if begin != start or end != min(stop, size):
            sent = f"that from {begin} to {end}"
            raise whole_file(self.uri, start, stop, sent, size)
        return await _body(answer, self.uri, start, end), facts

    async def _whole(
        self, answer: Any, start: int, stop: int, known: Facts | None
    ) -> tuple[bytes, Facts]:
        """What comes for a range without being one: taken if it is a small file, else refused
        before it is read."""
        said = answer.headers.get("Content-Length", "")
        size = int(said) if said.isdecimal() else None
        if start or size is None or size > min(stop, SMALL):
            raise whole_file(self.uri, start, stop, size or "more", size or "of unknown size")
        facts = _facts(size, answer.headers)
        if known is not None and facts != known:
            raise changed(self.uri, known, f"{size} bytes, {', '.join(facts.version)}")
        return await _body(answer, self.uri, 0, size), facts


async def _body(answer: Any, uri: str, start: int, stop: int) -> bytes:
    """What an answer brings, no more than was asked for."""
    parts, count = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        count += len(part)
        if count > stop - start:
            raise whole_file(uri, start, stop, f"at least {count}", "of unknown size")
    if count < stop - start:
        raise PassingError(f"the answer ended after {count} of {stop - start} bytes")
    return b"".join(parts)


def _content_range(text: str) -> tuple[int | None, int | None, int | None]:
    """Start, stop and size of ``bytes 0-9/100``."""
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        return None, None, None
    first, last, size = (int(g) if g and g != "*" else None for g in match.groups())
    return first, None if last is None else last + 1, size


def _facts(size: int, headers: Mapping[str, str]) -> Facts:
    generation = headers.get("x-goog-generation")  # Google's ETag is of the metadata, too
    names = ("ETag", "Last-Modified") if generation is None else ("x-goog-generation",)
    return Facts(size, tuple(fact for name in names if (fact := headers.get(name))))


def _seconds(text: str | None) -> float | None:
    """Of ``Retry-After``; a date in its place is not looked at."""
    return float(text) if text and text.strip().isdecimal() else None


class GcsFile(HttpFile):
    """An object of Google's storage, over HTTP with gcsfs's credentials.

    What gcsfs reads by itself says no version, and is asked for several times before we hear of a
    failure.
    """

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self.uri, self._fs = uri, fs
        if not fs.split_path(path)[1]:
            raise UnsupportedImageError.of(uri, "this is a bucket, not a slide; name a file in it")
        self._url = self._address = fs.url(path)
        self._bare = False

    async def _session(self) -> tuple[Any, dict[str, str], dict[str, Any]]:
        await self._fs._set_session()
        # who pays for the request, where users say that they do
        more = {"params": params} if (params := self._fs._get_params({})) else {}
        return self._fs.session, self._fs._get_headers(None), more


class S3File:
    """An object of S3, or of a server that speaks as S3 does."""

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self.uri, self._fs = uri, fs
        bucket, key, version = fs.split_path(path)
        self._place = {"Bucket": bucket, "Key": key}
        if not key:
            raise UnsupportedImageError.of(uri, "this is a bucket, not a slide; name a file in it")
        if version:
            self._place["VersionId"] = version

    async def first(self, count: int) -> tuple[Facts, bytes]:
        data, facts = await self._get(0, count, None)
        return facts, data

    async def range(self, start: int, stop: int, known: Facts) -> bytes:
        return (await self._get(start, stop, known))[0]

    async def _get(self, start: int, stop: int, known: Facts | None) -> tuple[bytes, Facts]:
        await self._fs.set_session()
        client = await self._fs.get_s3(self._place["Bucket"])
        request = {**self._place, "Range": f"bytes={start}-{stop - 1}"}
        if known is not None and known.version:
            request["IfMatch"] = known.version[0]
        # adds what users said of all requests, such as who pays and keys of encryption
        request = self._fs._get_s3_method_kwargs(client.get_object, **request)
        try:
            answer = await client.get_object(**request)
        except Exception as error:
            return self._refused(error, known)
        async with answer["Body"] as body:
            begin, end, size = _content_range(answer.get("ContentRange", ""))
            length = int(answer.get("ContentLength", 0))
            if size is None or end is None:
                if start or length > min(stop, SMALL):
                    raise whole_file(self.uri, start, stop, length, length)
                begin, end, size = 0, length, length
            version = (answer.get("ETag"), answer.get("LastModified"))
            facts = Facts(size, tuple(str(fact) for fact in version if fact))
            if known is not None and facts != known:
                raise changed(self.uri, known, f"{size} bytes, {', '.join(facts.version)}")
            if begin != start or end != min(stop, size):
                raise whole_file(self.uri, start, stop, f"that from {begin} to {end}", size)
            data: bytes = await body.read()
        if len(data) != end - begin:
            raise PassingError(f"the answer ended after {len(data)} of {end - begin} bytes")
        return data, facts

    def _refused(self, error: Exception, known: Facts | None) -> tuple[bytes, Facts]:
        status, code = status_of(error), code_of(error)
        if status == 412 and known is not None:
            raise changed(self.uri, known, "another version") from error
        if status == 416 and known is None:
            return b"", Facts(0, ())
        if status == 416 and known is not None:
            raise changed(self.uri, known, "shorter") from error
        if code in ("NoSuchKey", "NoSuchBucket"):
            raise ImageNotFoundError.of(self.uri, f"no such file ({code}); check the URL")
        raise error


class AnyFile:
    """A file of any file system of fsspec, asynchronous or not.

    Whether it was replaced is looked at after a range has come, when that has not been done for
    ``check-interval``, and when a range comes short.
    """

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self.uri, self._fs, self._path = uri, fs, path
        self._checked = time.monotonic()
        self._one_at_a_time = asyncio.Lock()

    async def first(self, count: int) -> tuple[Facts, bytes]:
        facts = await self._facts()
        count = min(count, facts.size)
        data = await self._get(0, count) if count else b""
        if len(data) > count:
            raise whole_file(self.uri, 0, count, len(data), facts.size)
        if len(data) < count:
            raise PassingError(f"the answer ended after {len(data)} of {count} bytes")
        return facts, data

    async def range(self, start: int, stop: int, known: Facts) -> bytes:
        try:
            data = await self._get(start, stop)
        except FileNotFoundError:
            raise
        except Exception:
            await self._check(known, 0)
            raise
        if len(data) > stop - start:
            raise whole_file(self.uri, start, stop, len(data), known.size)
        is_short = len(data) < stop - start
        await self._check(known, 0 if is_short else settings().check_interval)
        if is_short:
            raise PassingError(f"the answer ended after {len(data)} of {stop - start} bytes")
        return data

    async def _get(self, start: int, stop: int) -> bytes:
        if self._fs.async_impl:
            return bytes(await self._fs._cat_file(self._path, start=start, end=stop))
        async with self._one_at_a_time:  # few of them may be used by several threads
            return bytes(await asyncio.to_thread(self._fs.cat_file, self._path, start, stop))

    async def _facts(self) -> Facts:
        self._fs.invalidate_cache()
        if self._fs.async_impl:
            info = await self._fs._info(self._path)
        else:
            async with self._one_at_a_time:
                info = await asyncio.to_thread(self._fs.info, self._path)
        if info.get("type") == "directory":
            raise IsADirectoryError(self.uri)
        size = info.get("size")
        if size is None:
            raise UnsupportedImageError.of(
                self.uri,
                "the server does not tell the size, so ranges cannot be read; "
                "download the file first",
            )
        version = tuple(str(info[name]) for name in _VERSION if info.get(name) is not None)
        return Facts(int(size), version)

    async def _check(self, known: Facts, interval: float) -> None:
        now = time.monotonic()
        if now - self._checked < interval:
            return
        found = await self._facts()
        if found != known:
            raise changed(self.uri, known, f"{found.size} bytes, {', '.join(found.version)}")
        self._checked = now


_Kind: TypeAlias = type[HttpFile] | type[S3File] | type[AnyFile]
#: kinds of URLs that need a package of an extra
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def remote_file(uri: str) -> tuple[Remote, Any]:
    """The file of a URL, and the event loop in which it is asked."""
    from fsspec.asyn import get_loop

    protocol = uri.partition("://")[0].lower()
    try:
        fs, path = _s3(uri) if protocol in ("s3", "s3a") else filesystem(uri)
    except ImportError as error:
        named = _EXTRAS.get(protocol)
        extra = "install it" if named is None else f"install 'daskdmed[{named}]'"
        raise MissingExtraError(
            f"{uri}: this kind of URL needs a package, {extra}: {error}"
        ) from error
    except ValueError as error:
        raise UnsupportedImageError.of(uri, f"fsspec knows no such file system: {error}") from error
    kind: _Kind = AnyFile
    if protocol in ("http", "https") and hasattr(fs, "encode_url"):
        kind = HttpFile
    elif protocol in ("s3", "s3a") and hasattr(fs, "_get_s3_method_kwargs"):
        kind = S3File
    elif protocol in ("gs", "gcs") and hasattr(fs, "_get_headers"):
        kind = GcsFile
    loop = getattr(fs, "loop", None) if fs.async_impl else None
    return kind(uri, fs, path), loop or get_loop()


def s3_options() -> dict[str, Any]:
    """The options of `daskdmed.core.places.using` for S3, whose own attempts shall not multiply
    ours."""
    import fsspec.config

    options = dict(told() or {})
    usual = fsspec.config.conf.get("s3", {}).get("config_kwargs")
    config = dict(options.pop("config_kwargs", usual) or {})
    config.setdefault("retries", {"total_max_attempts": 1})
    config.setdefault("max_pool_connections", settings().connections)
    return {**options, "config_kwargs": config}


def _s3(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(uri, **s3_options())
    return fs, path


# of each event loop; who waits before another attempt does not count
_gates: weakref.WeakKeyDictionary[Any, tuple[int, asyncio.Semaphore]] = weakref.WeakKeyDictionary()
_gates_lock = threading.Lock()


def gate(loop: Any, limits: Settings) -> asyncio.Semaphore:
    """What bounds the requests in flight at once."""
    with _gates_lock:
        known = _gates.get(loop)
        if known is None or known[0] != limits.connections:
            known = _gates[loop] = (limits.connections, asyncio.Semaphore(limits.connections))
        return known[1]


def _reset() -> None:
    global _gates_lock
    _gates_lock = threading.Lock()
    _gates.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)
