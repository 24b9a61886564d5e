"""Masks that were made before: in this process, and in a folder of the user.

A mask is known by the content of its slide (path, size, time of change), the method and the
parameters. The folder is ``DASKDMED_CACHE_DIR`` or the user's cache folder; files appear
whole or not at all, damaged ones are made again, and a folder that cannot be written is
reported once. Not covered: making masks (`daskdmed.cohort.tissue.find`).
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daskdmed.cohort.tissue.mask import TissueMask
from daskdmed.core.cachefolder import CACHE_DIR_VARIABLE, cache_dir
from daskdmed.core.errors import ImageError, ImageNotFoundError, StoreError

_log = logging.getLogger("daskdmed.cohort")
#: part of every key: raised when a method gives another result than before
_VERSION = 1
#: packed masks kept in this process, some ten KiB each
_KEPT = 1024

_lock = threading.Lock()
_memory: OrderedDict[tuple[str, str], TissueMask] = OrderedDict()
_reported: set[str] = set()


def parameters_key(method: str | Callable[..., Any], parameters: dict[str, Any]) -> str | None:
    """Name of a method with its parameters; None for a callable without a stable name."""
    stable = method if isinstance(method, str) else _callable_key(method)
    if stable is None:
        return None
    facts = repr((_VERSION, stable, sorted(parameters.items())))
    return hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()


def _callable_key(function: Callable[..., Any]) -> str | None:
    """Dask's token and, because that names imported functions only, the source."""
    import dask
    from dask.base import tokenize

    try:
        with dask.config.set({"tokenize.ensure-deterministic": True}):
            token = str(tokenize(function))
    # TokenizationError, and whatever pickling an odd object raises
    except Exception as error:
        _log.debug("the masks of %r are not cached: %s", function, error)
        return None
    try:
        source = inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return None
    return f"{token}-{hashlib.blake2b(source.encode(), digest_size=8).hexdigest()}"


def lookup(slide: str, key: str) -> TissueMask | None:
    """The mask of a slide (by its token) made with these parameters, if there is one."""
    with _lock:
        found = _memory.get((slide, key))
        if found is not None:
            _memory.move_to_end((slide, key))
            return found
    path = _path(slide, key)
    try:
        found = TissueMask.load(path)
    except ImageNotFoundError:
        return None
    except ImageError as error:
        _log.warning("the cached tissue mask is made again: %s", error)
        return None
    _remember(slide, key, found)
    return found


def store(slide: str, key: str, mask: TissueMask) -> None:
    """Keep a mask, here and in the folder."""
    _remember(slide, key, mask)
    try:
        mask.save(_path(slide, key))
    except StoreError as error:
        _report(error)


def _report(error: StoreError) -> None:
    folder = str(cache_dir())
    with _lock:
        known = folder in _reported
        _reported.add(folder)
    if not known:
        _log.warning(
            "tissue masks are not kept in %s: %s; set %s to a folder that can be written",
            folder,
            error,
            CACHE_DIR_VARIABLE,
        )


def latest(slide: str) -> TissueMask | None:
    """The mask of a slide that was made or used last, with whatever parameters."""
    with _lock:
        for token, key in reversed(_memory):
            if token == slide:
                return _memory[token, key]
    folder = _path(slide, "").parent
    try:
        files = [(p.stat().st_mtime_ns, p) for p in folder.glob("*.npz")]
    except OSError as error:
        _log.debug("no cached tissue masks: %s", error)
        return None
    for _, path in sorted(files, reverse=True):
        try:
            return TissueMask.load(path)
        except ImageError as error:
            _log.debug("a cached tissue mask is passed over: %s", error)
    return None


def forget() -> None:
    """Drop the masks of this process; the files stay."""
    with _lock:
        _memory.clear()
        _reported.clear()


def _remember(slide: str, key: str, mask: TissueMask) -> None:
    with _lock:
        _memory[slide, key] = mask
        _memory.move_to_end((slide, key))
        while len(_memory) > _KEPT:
            _memory.popitem(last=False)


def _path(slide: str, key: str) -> Path:
    return cache_dir() / "tissue" / slide[:2] / slide / f"{key}.npz"
