"""A folder of slides as a dataset.

Walks in a fixed order, opens nothing, takes a Zarr group as one slide, and joins a table of
labels. Not covered: folders behind URLs (list them into a manifest).
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from daskdmed.cohort.tables import read_labels
from daskdmed.core.errors import DatasetError, listing
from daskdmed.core.places import is_remote, local
from daskdmed.core.types import PathLike

logger = logging.getLogger("daskdmed.cohort")

#: longest first, so that "a.ome.tif" gives the id "a"
SLIDE_SUFFIXES = (
    *(".ome.tiff", ".ome.zarr", ".ome.tif", ".ome.tf2", ".ome.tf8", ".ome.btf"),
    *(".qptiff", ".svslide", ".tiff", ".mrxs", ".ndpi", ".zarr", ".svs", ".tif"),
    *(".scn", ".bif", ".btf", ".vms", ".vmu"),
)
_ZARR_SUFFIX = ".zarr"
#: what is behind the suffix of a compressed file
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def read_slides(
    folder: PathLike,
    pattern: str,
    recursive: bool,
    patient: Callable[[Any], str | int] | None,
    labels: tuple[Any, str | None, Sequence[str] | None, str],
) -> tuple[str, list[tuple[str | int, list[Path], Mapping[str, Any]]]]:
    """Name of a folder; id, files and labels of the patients in it. See `Dataset.from_folder`."""
    if labels[-1] not in ("raise", "allow"):
        raise DatasetError(f'missing_labels is "raise" or "allow", got {labels[-1]!r}')
    if is_remote(folder):
        raise DatasetError(
            f"{folder}: only local folders are listed; write a manifest with the uris and read "
            "it with Dataset.from_manifest"
        )
    root = local(folder, "the folder", DatasetError)
    groups = _group(find_slides(root, pattern, recursive), patient, root)
    rows = {} if labels[0] is None else _match_labels(groups, *labels)
    return root.name, [(own, paths, rows.get(key, {})) for key, (own, paths) in groups.items()]


def find_slides(root: Path, pattern: str = "*", recursive: bool = True) -> list[Path]:
    """Paths of slides below a folder, sorted."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "there is no such folder"
        raise DatasetError(f"{root}: {what}")
    found, seen = [], 0
    for path in _walk(root, recursive):
        seen += 1
        if _matches(path, root, pattern):
            found.append(path)
    if not found:
        remedy = (
            f"known suffixes are {', '.join(sorted(SLIDE_SUFFIXES))}; give pattern= for others"
            if pattern == "*"
            else "check pattern=, or leave it out to take every known suffix"
        )
        deeper = "" if recursive else " (subfolders were not searched)"
        raise DatasetError(
            f"{root}: no slides match {pattern!r} among {seen} files{deeper}; {remedy}"
        )
    return sorted(found, key=lambda p: p.relative_to(root).parts)


def image_id(uri: PathLike) -> str:
    """The name of a file or URL without its suffix; compound ones are one: ``.nii.gz``."""
    name = PurePath(os.fspath(uri).rstrip("/")).name
    lower = name.lower()
    suffix = next((s for s in SLIDE_SUFFIXES if lower.endswith(s)), None)
    if suffix is None:
        packed = PurePath(name).suffix
        inner = PurePath(name[: len(name) - len(packed)]).suffix
        suffix = inner + packed if packed.lower() in _PACKED else packed
    return name[: len(name) - len(suffix)] or name


def _walk(root: Path, recursive: bool) -> Iterator[Path]:
    """Files and Zarr groups; links are followed, each real folder is entered once."""
    entered = {os.path.realpath(root)}
    for here, folders, files in os.walk(root, followlinks=True, onerror=_cannot_list):
        deeper = []
        for sub in sorted(folders):
            path = Path(here, sub)
            if sub.lower().endswith(_ZARR_SUFFIX):
                yield path
            elif recursive and not sub.startswith(".") and os.path.realpath(path) not in entered:
                entered.add(os.path.realpath(path))
                deeper.append(sub)
        folders[:] = deeper
        for file in sorted(files):
            yield Path(here, file)


def _cannot_list(error: OSError) -> None:
    raise DatasetError(
        f"{error.filename}: cannot be listed: {error.strerror}; grant read permission, or "
        "leave the folder out with recursive=False"
    ) from error


def _matches(path: Path, root: Path, pattern: str) -> bool:
    if path.name.startswith(".") and not pattern.startswith("."):
        return False
    if pattern == "*":
        return path.name.lower().endswith(SLIDE_SUFFIXES)
    name = path.relative_to(root).as_posix() if "/" in pattern else path.name
    return fnmatch.fnmatchcase(name, pattern)


_Groups = dict[str, tuple["str | int", list[Path]]]


def _group(
    paths: Sequence[Path], patient: Callable[[Any], str | int] | None, root: Path
) -> _Groups:
    groups: _Groups = {}
    for path in paths:
        key = image_id(path) if patient is None else patient(path)
        groups.setdefault(str(key), (key, []))[1].append(path)
    twice = {k: p for k, (_, p) in groups.items() if len(p) > 1}
    if patient is None and twice:
        shown = "; ".join(
            f"{key!r}: {', '.join(str(p.relative_to(root)) for p in same)}"
            for key, same in list(twice.items())[:10]
        )
        raise DatasetError(
            f"{root}: {len(twice)} ids occur more than once ({shown}); give "
            "patient=lambda path: ... which returns an id per path (slides with the same id "
            "become one patient), or a narrower pattern="
        )
    return groups


def _match_labels(
    groups: _Groups,
    source: Any,
    id_column: str | None,
    label_columns: Sequence[str] | None,
    missing_labels: str,
) -> dict[str, dict[str, Any]]:
    table, names, where = read_labels(source, id_column, label_columns)
    rows: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for key, (_, paths) in groups.items():
        # a table may name the patient, or the file
        candidates = [key, *(path.name for path in paths)]
        match = next((c for c in candidates if c in table), None)
        if match is not None:
            rows[key] = table[match]
            used.add(match)
    logger.info(
        "%s: labels for %d of %d patients, %d rows for others",
        *(where, len(rows), len(groups), len(table) - len(used)),
    )
    if missing_labels == "raise":
        _check_complete(groups, rows, names, where)
    return rows


def _check_complete(
    groups: _Groups, rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], where: str
) -> None:
    absent = [key for key in groups if key not in rows]
    if absent:
        raise DatasetError(
            f"{where}: no labels for {len(absent)} of {len(groups)} patients: {listing(absent)}; "
            'add them, check id_column=, or pass missing_labels="allow"'
        )
    for name in names:
        empty = [key for key in groups if name not in rows[key]]
        if empty:
            raise DatasetError(
                f"{where}: {name!r} is empty for {len(empty)} of {len(groups)} patients: "
                f"{listing(empty)}; fill it in, leave it out of label_columns=, or pass "
                'missing_labels="allow"'
            )
