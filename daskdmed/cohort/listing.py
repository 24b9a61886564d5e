"""Images below a URL that its file system can list: S3, Google, memory, and servers of HTTP that
show folders as pages with links.

Not covered: local folders (`daskdmed.cohort.folder`), DICOM behind URLs, which is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath, PurePosixPath
from typing import Any

from daskdmed.core.errors import DatasetError
from daskdmed.core.places import filesystem, told
from daskdmed.images.remote.retry import attempt_now
from daskdmed.images.remote.settings import settings

_ZARR_SUFFIX = ".zarr"


def list_remote(folder: str, recursive: bool) -> tuple[PurePath, dict[PurePath, str]]:
    """The folder as a path of its file system, and the paths of files and Zarr groups below it
    with their URLs."""
    if "::" in folder:
        raise DatasetError(
            f"{folder}: chains of file systems are not listed; write a manifest with the uris and "
            "read it with Dataset.from_manifest"
        )
    try:
        fs, root = filesystem(folder.rstrip("/") + "/")
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{folder}: cannot be listed: {error}") from error
    root = root.rstrip("/")
    try:
        found = attempt_now(lambda: list(_walk(fs, root, recursive)), folder, told(), settings())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(f"{folder}: there is no such folder") from error
    except NotImplementedError as error:
        raise DatasetError(
            f"{folder}: this kind of file system cannot be listed; write a manifest with the uris "
            "and read it with Dataset.from_manifest"
        ) from error
    return PurePosixPath(root), {
        PurePosixPath(path.rstrip("/")): fs.unstrip_protocol(path.rstrip("/")) for path in found
    }


def _walk(fs: Any, root: str, recursive: bool) -> Iterator[str]:
    """Files and Zarr groups, which are not entered: they may hold millions of files."""
    waiting = [root]
    while waiting:
        for entry in sorted(fs.ls(waiting.pop(), detail=True), key=lambda e: str(e["name"])):
            name = str(entry["name"])
            short = name.rstrip("/").rsplit("/", 1)[-1]
            if name.rstrip("/") == root.rstrip("/") or not name.startswith(root):
                continue  # itself, or elsewhere on the server
            if entry["type"] != "directory" or short.lower().endswith(_ZARR_SUFFIX):
                yield name
            elif recursive and not short.startswith("."):
                waiting.append(name)
