"""Where things lie: local paths, and URLs of file systems that fsspec opens.

One answer to what is local and what is remote, for images, stores, tables and manifests.
Not covered: whether something is there, and how it is read or written.
"""

from __future__ import annotations

import os
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


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path there; ImportError or ValueError where none
    is."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url)
    return fs, path
