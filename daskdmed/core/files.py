"""Files that appear whole or not at all, and what a failed write means.

Not covered: Zarr stores (`daskdmed.store.location`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daskdmed.core.errors import DaskdmedError, StoreError
from daskdmed.core.places import local_path
from daskdmed.core.types import PathLike

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2
#: what a system or file system answers that cannot exchange
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_REMEDIES = {
    errno.ENOSPC: "the disk is full: make room",
    errno.EDQUOT: "the quota is used up: make room",
    errno.EROFS: "the file system is read-only: give another place",
    errno.EACCES: "writing is not permitted there: change the rights or give another place",
    errno.EPERM: "writing is not permitted there: change the rights or give another place",
}


def write_failure(where: object, error: BaseException, then: str = "") -> StoreError:
    """The error for a write that failed, with its remedy; `then` says what holds now and how to go
    on."""
    number = getattr(error, "errno", None)
    remedy = _REMEDIES.get(number, "") if number is not None else ""
    tail = "; ".join(part for part in (remedy, then) if part)
    return StoreError(
        f"{where} cannot be written ({type(error).__name__}: {error})"
        + (f"; {tail}" if tail else "")
    )


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths of one file system in a single step; False, with nothing changed, where
    the system has no such call."""
    a, b = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            result = library.renamex_np(a, b, ctypes.c_uint(_RENAME_SWAP))
        else:
            result = library.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, ctypes.c_uint(_RENAME_EXCHANGE))
    except (OSError, AttributeError, TypeError):  # no such library or function here
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one))


@contextmanager
def new_file(path: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """A sibling to write into, of a name of its own so that writers do not meet, that takes the
    place of `path` when the block ends, and is removed when it ends in an error. The folder is
    made; with `overwrite` a file that is there stays until the new one is complete."""
    place = local_path(path)
    if place is None:
        raise StoreError(f"{path} is a URL; this kind of file is written to local paths only")
    target = Path(place)
    if target.is_dir() or (target.exists() and not overwrite):
        kind = "a folder" if target.is_dir() else "a file; overwrite=True replaces it"
        raise StoreError(f"{target} is {kind}; or give another path")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, DaskdmedError):
            then = "what was there before is unchanged" if target.exists() else ""
            raise write_failure(target, error, then) from error
        raise


def sweep_partials(target: Path, before: float) -> None:
    """Delete what killed runs left of writing `target`, last written before a time."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*partial"):
        with contextlib.suppress(OSError):  # another run may be as quick
            if left.stat().st_mtime < before:
                left.unlink()
