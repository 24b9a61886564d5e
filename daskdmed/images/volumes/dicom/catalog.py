"""Which volumes lie in a folder, a list of files or a file: headers are read once.

Headers are read in threads, without pixels. What was found is kept for the state of the files
(size and time of each), so that asking for the fingerprint of a volume after it was opened
reads nothing again.

Not covered: which slices make a volume (`daskdmed.images.volumes.dicom.grouping`).
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from daskdmed.core.errors import UnsupportedImageError
from daskdmed.core.extras import extra
from daskdmed.images.readers import check_readable
from daskdmed.images.source import explain_os_error
from daskdmed.images.volumes.dicom.frames import Frame
from daskdmed.images.volumes.dicom.grouping import Group, group
from daskdmed.images.volumes.dicom.header import looks_like_dicom, read_frames
from daskdmed.images.volumes.dicom.pixels import supported

#: files in a folder; more is no series but an archive
_MOST_FILES = 100_000
#: files that are looked at to guess whether a folder holds DICOM
_GLANCE = 500
_THREADS = 8
#: path, size, times and number of a file
_State = tuple[str, int, int, int, int]
#: what stands in folders that are an image of another kind
_OF_ZARR = {"zarr.json", ".zgroup", ".zarray", ".zattrs"}


@dataclass(frozen=True, slots=True)
class Catalog:
    """The volumes that are there, and (path, why) of files that belong to none."""

    groups: tuple[Group, ...]
    left_out: tuple[tuple[str, str], ...]


def holds_dicom(path: str) -> bool:
    """Whether a file, or one of the first files in a folder, begins as DICOM does. Never raises."""
    try:
        names = files_below(path) if os.path.isdir(path) else iter([path])
        names = filter(os.path.isfile, names)  # a pipe would wait for ever
        return any(looks_like_dicom(head_of(name)) for name in itertools.islice(names, _GLANCE))
    except OSError:
        return False


def head_of(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(132)
    except OSError:
        return b""


def files_below(folder: str) -> Iterator[str]:
    """Regular files in a folder and below, in order; not in hidden folders, nor in Zarr."""
    for place, folders, files in os.walk(folder):
        if _OF_ZARR.intersection(files):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(place, name)
            if os.path.isfile(path):
                yield path


def all_files(folder: str) -> list[str]:
    found = list(itertools.islice(files_below(folder), _MOST_FILES + 1))
    if len(found) > _MOST_FILES:
        raise UnsupportedImageError.of(
            folder, f"there are more than {_MOST_FILES} files below; name a folder in it"
        )
    return found


def catalog(uri: str, files: Sequence[str]) -> Catalog:
    """What is in a folder, in `files` of it, or in a file."""
    return _read(_states(uri, files))


def _states(uri: str, files: Sequence[str]) -> tuple[_State, ...]:
    paths = [uri]
    if os.path.isdir(uri):
        check_readable(uri, uri)
        paths = [os.path.join(uri, name) for name in files] or all_files(uri)
    found = []
    for path in paths:
        try:
            facts = os.stat(path)
        except OSError as error:
            raise explain_os_error(error, path) from error
        if not stat.S_ISREG(facts.st_mode):
            raise UnsupportedImageError.of(path, "it is no regular file")
        times = facts.st_mtime_ns, facts.st_ctime_ns
        found.append((path, facts.st_size, *times, facts.st_ino))
    return tuple(found)


@lru_cache(maxsize=4)
def _read(states: tuple[_State, ...]) -> Catalog:
    extra("pydicom", "volumes", "DICOM files need")
    paths = [path for path, *_ in states]
    if len(paths) == 1:
        read = [read_frames(paths[0])]
    else:
        with ThreadPoolExecutor(_THREADS, "daskdmed-headers") as pool:
            read = list(pool.map(read_frames, paths))
    frames: list[Frame] = []
    left_out = []
    for path, found in zip(paths, read, strict=True):
        if isinstance(found, str):
            left_out.append((path, found))
        elif not supported(pixels := found[0].pixels):
            what = f"{pixels.allocated} bits in the transfer syntax {_name(pixels.syntax)}"
            left_out.append((path, f"{what} are not read; convert the file"))
        else:
            frames += found
    return Catalog(group(frames), tuple(left_out))


def _name(uid: str) -> str:
    return str(extra("pydicom.uid", "volumes", "DICOM files need").UID(uid).name)
