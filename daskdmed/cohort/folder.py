"""A folder of slides or volumes as a dataset.

Walks in a fixed order, takes a Zarr group, a folder of DICOM files, and of volumes a pair of
``.hdr`` and ``.img``, as one image, and joins a table of labels. Nothing is opened; of DICOM files
and PNGs the first bytes are looked at. Not covered: how
folders behind URLs are listed (`daskdmed.cohort.listing`), images and labels in two folders and
slices in files (`daskdmed.cohort.scans`).
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from daskdmed.cohort.listing import list_remote
from daskdmed.cohort.tables import read_labels
from daskdmed.core.errors import DatasetError, listing
from daskdmed.core.places import is_remote, local
from daskdmed.core.types import PathLike
from daskdmed.images.dicomwsi.backend import is_slide_file
from daskdmed.images.raster.headers import is_label_png

logger = logging.getLogger("daskdmed.cohort")
P = TypeVar("P", bound=PurePath)

#: longest first, so that "a.ome.tif" gives the id "a"
SLIDE_SUFFIXES = (
    *(".ome.tiff", ".ome.zarr", ".ome.tif", ".ome.tf2", ".ome.tf8", ".ome.btf"),
    *(".qptiff", ".svslide", ".tiff", ".mrxs", ".ndpi", ".zarr", ".svs", ".tif"),
    *(".scn", ".bif", ".btf", ".vms", ".vmu", ".czi", ".isyntax", ".vsi"),
)
#: of slides only where there is nothing else: thumbnails, masks and figures lie beside images
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jp2", ".j2k", ".bmp", ".webp")
#: files of volumes; a folder with files of the last is a volume too
VOLUME_SUFFIXES = (
    *(".nii.gz", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img", ".hdf5", ".h5", ".npy", ".dcm"),
)
_DICOM_SUFFIX = ".dcm"
_ZARR_SUFFIX = ".zarr"
#: what is behind the suffix of a compressed file
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def read_images(
    folder: PathLike,
    pattern: str,
    recursive: bool,
    patient: Callable[[Any], str | int] | None,
    labels: tuple[Any, str | None, Sequence[str] | None, str],
) -> tuple[str, list[tuple[str | int, list[PurePath | str], Mapping[str, Any]]]]:
    """Name of a folder; id, files and labels of the patients in it. See `Dataset.from_folder`."""
    if labels[-1] not in ("raise", "allow"):
        raise DatasetError(f'missing_labels is "raise" or "allow", got {labels[-1]!r}')
    root: PurePath
    found: Sequence[PurePath]
    urls: Mapping[PurePath, str] = {}
    if is_remote(folder):
        root, listed = list_remote(os.fspath(folder), recursive)
        found, urls = _chosen(list(listed), root, pattern, recursive, _known_by_name), listed
    else:
        root = local(folder, "the folder", DatasetError)
        found = find_images(root, pattern, recursive)
    groups = _group(found, patient, root)
    rows = {} if labels[0] is None else _match_labels(groups, *labels)
    return root.name, [
        (own, [urls.get(p, p) for p in paths], rows.get(key, {}))
        for key, (own, paths) in groups.items()
    ]


def find_images(root: Path, pattern: str = "*", recursive: bool = True) -> list[Path]:
    """Paths of images below a folder, sorted; for "*" slides, or volumes where there are none, or
    else pictures."""
    there = list(walk(root, recursive))
    return _chosen(there, root, pattern, recursive, lambda paths: _known(paths, root))


def _chosen(
    there: Sequence[P],
    root: PurePath,
    pattern: str,
    recursive: bool,
    known_images: Callable[[Sequence[P]], list[P]],
) -> list[P]:
    """The images among what is there."""
    found = (
        known_images(there)
        if pattern == "*"
        else [path for path in there if _matches(path, root, pattern)]
    )
    found = _without_pixels(found)
    if not found:
        known = sorted({*SLIDE_SUFFIXES, *VOLUME_SUFFIXES, *PICTURE_SUFFIXES})
        remedy = (
            f"known suffixes are {', '.join(known)}; give pattern= for others"
            if pattern == "*"
            else "check pattern=, or leave it out to take every known suffix"
        )
        deeper = "" if recursive else " (subfolders were not searched)"
        raise DatasetError(
            f"{root}: no images match {pattern!r} among {len(there)} files{deeper}; {remedy}"
        )
    return sorted(found, key=lambda p: p.relative_to(root).parts)


def _known_by_name(there: Sequence[P]) -> list[P]:
    """The best that there is behind a URL, where no file is looked into."""
    seen = [path for path in there if not path.name.startswith(".")]
    for suffixes in (SLIDE_SUFFIXES, (".nii", ".nii.gz"), PICTURE_SUFFIXES):
        found = [path for path in seen if path.name.lower().endswith(suffixes)]
        if found:
            return found
    return []


def _known(there: Sequence[Path], root: Path) -> list[Path]:
    """The best that there is: slides, or volumes, or pictures."""
    seen = [path for path in there if not path.name.startswith(".")]
    dicom: dict[Path, Path] = {}
    for path in seen:
        if path.name.lower().endswith(_DICOM_SUFFIX):
            dicom.setdefault(path.parent, path)
    # a folder of DICOM files is one slide or one volume: its first file tells
    folders = {folder: is_slide_file(str(path)) for folder, path in dicom.items()}
    slides = [path for path in seen if path.name.lower().endswith(SLIDE_SUFFIXES)]
    slides += [folder for folder, is_slide in folders.items() if is_slide]
    kinds = {
        "slides": slides,
        "volumes": _volumes(seen, {f for f, is_slide in folders.items() if not is_slide}),
        "pictures": _pictures(seen),
    }
    taken = next((kind for kind, found in kinds.items() if found), "slides")
    for kind, others in kinds.items():
        if kind != taken and others:
            logger.info(
                "%s: %d %s are taken, not the %s beside them (%s); pattern= takes these",
                *(root, len(kinds[taken]), taken, kind, listing([p.name for p in others])),
            )
    return kinds[taken]


def _volumes(paths: Sequence[Path], folders: Collection[Path]) -> list[Path]:
    """Volumes among files, and the folders of DICOM files that are some."""
    found = []
    for path in paths:
        name = path.name.lower()
        if name.endswith(_DICOM_SUFFIX):
            path = path.parent
            if path not in folders:
                continue
        elif not name.endswith(VOLUME_SUFFIXES):
            continue
        found.append(path)
    return list(dict.fromkeys(found))


def _pictures(paths: Sequence[Path]) -> list[Path]:
    """Plain pictures, without the label maps among them."""
    found = [path for path in paths if path.name.lower().endswith(PICTURE_SUFFIXES)]
    maps = {path for path in found if path.suffix.lower() == ".png" and is_label_png(str(path))}
    return [path for path in found if path not in maps] or found


def _without_pixels(paths: Sequence[P]) -> list[P]:
    """Without the ``.img`` of a pair, whose ``.hdr`` names it."""
    there = {str(path).lower() for path in paths}

    def is_second(path: PurePath) -> bool:
        name = str(path).lower()
        stem, dot, rest = name.rpartition(".img")
        return (
            bool(dot) and rest in ("", ".gz") and {f"{stem}.hdr", f"{stem}.hdr.gz"} & there != set()
        )

    return [path for path in paths if not is_second(path)]


def image_id(uri: PathLike) -> str:
    """The name of a file or URL without its suffix; compound ones are one: ``.nii.gz``. Numbers
    behind a dot are none: a folder of DICOM files may be named by a UID."""
    name = PurePath(os.fspath(uri).rstrip("/")).name
    lower = name.lower()
    suffix = next((s for s in SLIDE_SUFFIXES if lower.endswith(s)), None)
    if suffix is None:
        packed = "" if (last := PurePath(name).suffix)[1:].isdigit() else last
        inner = PurePath(name[: len(name) - len(packed)]).suffix
        suffix = inner + packed if packed.lower() in _PACKED else packed
    return name[: len(name) - len(suffix)] or name


def walk(root: Path, recursive: bool = True) -> Iterator[Path]:
    """Files and Zarr groups; links are followed, each real folder is entered once."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "there is no such folder"
        raise DatasetError(f"{root}: {what}")
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


def _matches(path: PurePath, root: PurePath, pattern: str) -> bool:
    if path.name.startswith(".") and not pattern.startswith("."):
        return False
    name = path.relative_to(root).as_posix() if "/" in pattern else path.name
    return fnmatch.fnmatchcase(name, pattern)


_Groups = dict[str, tuple["str | int", list[PurePath]]]


def _group(
    paths: Sequence[PurePath], patient: Callable[[Any], str | int] | None, root: PurePath
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
            "patient=lambda path: ... which returns an id per path (images with the same id "
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
