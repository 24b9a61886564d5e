"""Where things lie: local paths, and URLs of file systems that fsspec opens.

One answer to what is local and what is remote, for images, stores, tables and manifests, and
what users tell the file system of a URL (`StorageOptions`).
Not covered: whether something is there, and how it is read or written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from daskdmed.core.errors import DaskdmedError, UsageError
from daskdmed.core.types import PathLike


def is_remote(place: PathLike) -> bool:
    """Whether a place is on an fsspec file system rather than a local path.

    ``s3://bucket/a``, ``memory://a`` and chains as ``simplecache::https://host/a`` are;
    ``C:\\a``, ``C://a``, ``file:///a`` and paths are not.
    """
    head, separator, _ = os.fspath(place).partition("://")
    is_chained = "::" in head
    return bool(separator) and (is_chained or (len(head) > 1 and head != "file"))


def is_url(place: PathLike) -> bool:
    """Whether a place is written as a URL, remote or ``file:``."""
    return is_remote(place) or os.fspath(place).startswith("file:")


def local_path(place: PathLike) -> str | None:
    """Absolute path of a local place, without ``~`` and ``file:``; None for a remote one."""
    text = os.fspath(place)
    if is_remote(text):
        return None
    if text.startswith("file:"):
        text = text.removeprefix("file:")
        if text.startswith("//"):  # a host, as a rule empty, comes first
            text = "/" + text[2:].partition("/")[2]
        text = unquote(text)
        if os.name == "nt" and text[2:3] == ":":  # /C:/data
            text = text[1:]
    return os.path.abspath(os.path.expanduser(text))


def local(place: PathLike, what: str, error: type[DaskdmedError] = UsageError) -> Path:
    """Absolute path of what has to be on this machine; an `error` for a URL of another one."""
    path = local_path(place)
    if path is None:
        raise error(
            f"{os.fspath(place)}: {what} must be local, not behind a URL; copy it here first"
        )
    return Path(path)


class StorageOptions(Mapping[str, Any]):
    """What a file system is told beside a URL: credentials, endpoints, headers.

    A mapping that shows its names and none of its values, and is part of no token: the content is
    the same whoever reads it. Pickled whole, for workers have to read too.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    @classmethod
    def of(cls, place: PathLike, given: Any) -> StorageOptions | None:
        """As users give them for a place; None when they say nothing."""
        if given is None:
            return None
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise UsageError(
                f"storage_options is a mapping of names to values, got {type(given).__name__}"
            )
        if not given:
            return None
        if not is_remote(place):
            raise UsageError(
                f"{os.fspath(place)}: storage_options= are for URLs, this is a local path; leave "
                "them away"
            )
        return given if isinstance(given, StorageOptions) else cls(given)

    def hidden_in(self, text: str) -> str:
        """A text, as of an error of a library, without the values of these options."""
        for secret in sorted(_texts(self._values), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<storage options {sorted(self._values)}, values hidden>"

    def __reduce__(self) -> tuple[Any, ...]:
        return StorageOptions, (self._values,)

    def __dask_tokenize__(self) -> str:
        return "StorageOptions"


#: texts shorter than this are no secrets ("us-1", "true"), and hiding them hides messages
_SECRET = 6


def _texts(value: Any) -> Iterator[str]:
    """Texts within nested options."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):  # also aiohttp's BasicAuth
        for one in value:
            yield from _texts(one)
    elif isinstance(value, bytes):
        yield from _texts(value.decode(errors="replace"))
    elif isinstance(value, str) and len(value) >= _SECRET:
        yield value


# A context variable, so that backends, of third parties too, need no further argument: they open
# a file within one call in the caller's thread. What reads later in other threads (sources,
# stores) holds the file system that it was opened with.
_Call = tuple[StorageOptions | None, dict[Any, Any]]
_call: ContextVar[_Call | None] = ContextVar("daskdmed_storage_options", default=None)


@contextmanager
def using(options: StorageOptions | None) -> Iterator[None]:
    """Have `filesystem` use these options, and no others, in this thread."""
    outer = _call.get()
    same = outer is not None and outer[0] is options
    token = _call.set(outer if same else (options, {}))
    try:
        yield
    finally:
        _call.reset(token)


def told() -> StorageOptions | None:
    """The options of `using`."""
    call = _call.get()
    return None if call is None else call[0]


def notes() -> dict[Any, Any]:
    """What is known of URLs within `using`, so that several backends do not ask the same; outside
    of it nothing is kept."""
    call = _call.get()
    return {} if call is None else call[1]


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL with the options of `using`, and the path there; ImportError
    or ValueError where there is none."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url, **dict(told() or {}))
    return fs, path
