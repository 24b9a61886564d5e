"""Which failures of servers pass, how long to wait, and the error in the end.

Not covered: the libraries' own attempts, which `daskdmed.images.remote.objects` switches off
where it can, so that the number of attempts is the one that is configured.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from daskdmed.core.errors import (
    DaskdmedError,
    ImageError,
    ImageNotFoundError,
    ImagePermissionError,
    MissingExtraError,
    RemoteError,
    UnsupportedImageError,
)
from daskdmed.core.places import StorageOptions
from daskdmed.images.remote.counting import counted
from daskdmed.images.remote.settings import Settings

_log = logging.getLogger("daskdmed.images")
T = TypeVar("T")

#: answers after which the same request may do
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_ERRNO = {
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "EBUSY", "EAGAIN", "ETIMEDOUT", "EPIPE", "ENETDOWN"),
        *("ENETUNREACH", "EHOSTUNREACH", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED"),
    )
    if hasattr(errno, name)
}
_DENIED = {"AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_DENIED |= {"ExpiredToken", "InvalidToken", "AllAccessDisabled", "Unauthorized"}
#: errors of clients for what passes, by module, as none of these need be installed
_PASSING = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "botocore.exceptions": ("HTTPClientError", "IncompleteReadError", "ConnectionError"),
    "urllib3.exceptions": ("ProtocolError", "TimeoutError"),
    "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
}
#: of these the ones that do not pass
_LASTING = {"aiohttp": ("ClientSSLError", "InvalidURL")}


class PassingError(Exception):
    """An answer after which the same request may do; `after` are seconds that the server asks to
    wait."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


def status_of(error: BaseException) -> int:
    """The HTTP status that an error of some client carries; 0 for none."""
    response = getattr(error, "response", None)
    found: Any = None
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):
        found = found or getattr(error, name, None)
    try:
        return int(found or 0)
    except (TypeError, ValueError):
        return 0


def code_of(error: BaseException) -> str:
    """What S3 calls an error; "" for others."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return str(code)


def passes(error: BaseException) -> bool:
    """Whether the same request may do later."""
    if isinstance(error, DaskdmedError):
        return False
    if isinstance(error, PassingError | TimeoutError | asyncio.TimeoutError | ConnectionError):
        return True
    status = status_of(error)
    if status:
        return status in PASSING_STATUS
    if _is_one_of(error, _LASTING):
        return False
    if _is_one_of(error, _PASSING) or isinstance(error, EOFError):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO


def _is_one_of(error: BaseException, kinds: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether an error is of a class of a module that somebody has imported."""
    for module, names in kinds.items():
        loaded = sys.modules.get(module)
        if loaded is not None:
            classes = tuple(c for n in names if (c := getattr(loaded, n, None)) is not None)
            if isinstance(error, classes):
                return True
    return False


def explain(
    error: BaseException, uri: str, options: StorageOptions | None, tries: int = 1
) -> DaskdmedError:
    """Typed error for what a file system raised, without the values of its options."""
    if isinstance(error, DaskdmedError):
        return error
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    text = text if options is None else options.hidden_in(text)
    status, code = status_of(error), code_of(error)
    if isinstance(error, ImportError):
        return MissingExtraError(f"{uri}: the file system needs a package: {text}")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return ImageNotFoundError.of(uri, f"no such file ({text}); check the URL")
    denied = isinstance(error, PermissionError) or status in (401, 403) or code in _DENIED
    if denied or "Credentials" in type(error).__name__:
        return ImagePermissionError.of(
            uri, f"the server does not let it be read ({text}); check storage_options="
        )
    if isinstance(error, IsADirectoryError):
        return UnsupportedImageError.of(uri, "this is a directory, not a slide; name a file in it")
    if not passes(error):
        return ImageError.of(uri, f"cannot be read: {text}")
    return RemoteError(
        f"{uri}: the server did not answer as it should in {tries} tries, the last time {text}; "
        "try again later, or raise daskdmed.images.remote.tries in dask.config",
        uri=uri,
        tries=tries,
    )


def pause(limits: Settings, failed: int, asked: float | None) -> float:
    """Seconds to wait after so many failures: doubled each time, and spread by chance, so that
    many workers do not come back together; not less than the server asks for, up to the limit."""
    longest = limits.backoff_limit
    wait = min(longest, limits.backoff * 2.0 ** min(failed - 1, 60)) * random.uniform(0.5, 1.0)
    return wait if asked is None else min(longest, max(wait, asked))


#: what says that something is not there, or cannot be asked: answers rather than failures
_ANSWERS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotImplementedError, KeyError)


async def attempt(
    request: Callable[[], Awaitable[T]],
    uri: str,
    options: StorageOptions | None,
    limits: Settings,
    gate: asyncio.Semaphore,
    *,
    lenient: bool = False,
) -> T:
    """The answer to a request, tried again as long as its failures pass; a typed error then.
    Where `lenient`, that something is not there is raised as it is."""
    failed = 0
    while True:
        try:
            async with gate:
                counted(requests=1, retries=int(failed > 0))
                return await asyncio.wait_for(request(), limits.timeout)
        except Exception as error:
            if lenient and isinstance(error, _ANSWERS):
                raise
            failed += 1
            last = error
        await asyncio.sleep(_wait(last, failed, uri, options, limits))


def attempt_now(
    request: Callable[[], T], uri: str, options: StorageOptions | None, limits: Settings
) -> T:
    """A lenient `attempt` by calls that wait."""
    failed = 0
    while True:
        try:
            counted(requests=1, retries=int(failed > 0))
            return request()
        except _ANSWERS:
            raise
        except Exception as error:
            failed += 1
            last = error
        time.sleep(_wait(last, failed, uri, options, limits))


def _wait(
    last: Exception, failed: int, uri: str, options: StorageOptions | None, limits: Settings
) -> float:
    """Seconds before another attempt; the typed error where none is left, or would help."""
    if not passes(last) or failed >= limits.tries:
        # what the library raised may hold headers with credentials
        cause = None if options or isinstance(last, DaskdmedError) else last
        raise explain(last, uri, options, failed) from cause
    wait = pause(limits, failed, getattr(last, "after", None))
    shown = f"{type(last).__name__}: {last}"
    shown = shown if options is None else options.hidden_in(shown)
    _log.debug("%s: attempt %d failed, the next in %.2f s: %s", uri, failed, wait, shown)
    return wait
