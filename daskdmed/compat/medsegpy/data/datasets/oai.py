"""Scans of the Osteoarthritis Initiative as MedSegPy has them, in a folder of one's own.

Slices in files, ``9000099_V00-Aug00_001.im`` and ``.seg``: subject, time point, augmentation and
number of the slice from 1, the array ``data`` in each. Or whole scans in ``.h5`` files,
``9000099_V00.h5``: the arrays ``volume`` (rows, columns, slices) and ``seg`` with the masks behind.

Not covered: other names (make the dicts yourself, or use `daskdmed.Dataset.from_slices`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daskdmed.cohort.slices import natural
from daskdmed.compat.medsegpy.data.catalog import DatasetCatalog, MetadataCatalog
from daskdmed.core.errors import DatasetError, listing
from daskdmed.core.extras import extra
from daskdmed.core.places import local
from daskdmed.core.types import PathLike
from daskdmed.images.volumes.hdf5 import open_unlocked

logger = logging.getLogger("daskdmed.compat")

_SLICE = re.compile(r"((\d+)_V(\d+)-Aug(\d+))_(\d+)[.]im")
_SCAN = re.compile(r"((\d+)_V(\d+)(?:-Aug\d+)?)[.]h5")

#: what the six masks of OAI files make: positions, name and short name
OAI_CATEGORIES: tuple[tuple[int | tuple[int, ...], str, str], ...] = (
    (0, "femoral cartilage", "fc"),
    ((1, 2), "tibial cartilage", "tc"),
    (3, "patellar cartilage", "pc"),
    ((4, 5), "meniscus", "men"),
)
#: millimetres per voxel: rows, columns, slices
OAI_SPACING = (0.3125, 0.3125, 0.7)


def register_oai(
    name: str,
    scan_root: PathLike,
    *,
    spacing: Sequence[float] = OAI_SPACING,
    categories: Sequence[str] | None = None,
) -> None:
    """Register a folder of OAI scans, of slices or of whole scans, in both catalogues.

    Files are listed when the dataset is asked for.

    Parameters
    ----------
    name : str
        Under which `DatasetCatalog` and `MetadataCatalog` have it.
    scan_root : path
        The folder; it holds ``.im`` (and ``.seg``) files, or ``.h5`` files.
    spacing : sequence of float
        Millimetres per voxel along rows, columns, slices.
    categories : sequence of str, optional
        Names of the masks in order, when they are not those of iMorphics (`OAI_CATEGORIES`).

    Raises
    ------
    UsageError
        The name is taken.
    """
    DatasetCatalog.register(name, lambda: load_oai(scan_root))
    told = OAI_CATEGORIES
    if categories is not None:
        told = tuple((i, text, text) for i, text in enumerate(categories))
    ids = tuple(number for number, *_ in told)
    MetadataCatalog.get(name).set(
        scan_root=str(scan_root),
        category_ids=ids,
        categories=tuple(text for _, text, _ in told),
        category_abbreviations=tuple(short for *_, short in told),
        category_id_to_contiguous_id={number: i for i, number in enumerate(ids)},
        evaluator_type="SemSegEvaluator",
        spacing=tuple(float(s) for s in spacing),
    )


def load_oai(scan_root: PathLike) -> list[dict[str, Any]]:
    """Dicts of a folder, whichever of both kinds it holds.

    Raises
    ------
    DatasetError
        No such folder, none of these files in it, or slices that are missing.
    """
    root = local(scan_root, "the folder of scans", DatasetError)
    names = [p.name for p in root.iterdir()] if root.is_dir() else []
    if any(_SLICE.fullmatch(n) for n in names):
        return load_oai_2d_from_dir(root)
    if any(_SCAN.fullmatch(n) for n in names):
        return load_oai_3d_from_dir(root)
    raise DatasetError(
        f"{root}: {'there is no such folder' if not root.is_dir() else 'no OAI files'}; wanted are "
        "slices such as 9000099_V00-Aug00_001.im with 9000099_V00-Aug00_001.seg beside them, or "
        f"scans such as 9000099_V00.h5; it has {listing(sorted(names)) or 'nothing'}"
    )


def load_oai_2d_from_dir(scan_root: PathLike) -> list[dict[str, Any]]:
    """A dict for each slice of a folder, scan by scan, in order of their numbers."""
    root = Path(scan_root)
    scans: dict[str, list[tuple[int, re.Match[str]]]] = {}
    for path in root.iterdir():
        if match := _SLICE.fullmatch(path.name):
            scans.setdefault(match[1], []).append((int(match[5]), match))
    dicts = []
    for scan in sorted(scans, key=natural):
        slices = sorted(scans[scan], key=lambda pair: pair[0])
        gaps = sorted({*range(1, slices[-1][0] + 1)} - {number for number, _ in slices})
        if gaps:
            raise DatasetError(
                f"{root}: scan {scan!r} has no slice {listing(gaps)}; copy them again, or leave "
                "the scan out"
            )
        for number, match in slices:
            found = {
                "file_name": str(root / match[0]),
                "scan_id": scan,
                "subject_id": match[2],
                "time_point": int(match[3]),
                "slice_id": number,
                "scan_num_slices": len(slices),
            }
            dicts.append(_with_masks(found, (root / match[0]).with_suffix(".seg")))
    _tell(root, dicts)
    return dicts


def load_oai_3d_from_dir(scan_root: PathLike) -> list[dict[str, Any]]:
    """A dict for each scan of a folder."""
    extra("h5py", "volumes", f"{scan_root} holds HDF5 files, which need")
    root = Path(scan_root)
    dicts = []
    for path in sorted(root.iterdir(), key=lambda p: natural(p.name)):
        match = _SCAN.fullmatch(path.name)
        if match is None:
            continue
        with open_unlocked(str(path)) as file:
            if "volume" not in file:
                raise DatasetError(f"{path} has no array 'volume'; it has {listing(list(file))}")
            found = {
                "file_name": str(path),
                "scan_id": match[1],
                "subject_id": match[2],
                "time_point": int(match[3]),
                "image_size": tuple(int(n) for n in file["volume"].shape),
            }
            labelled = "seg" in file
        dicts.append({**found, "sem_seg_file": str(path)} if labelled else found)
    _tell(root, dicts)
    return dicts


def _with_masks(found: dict[str, Any], path: Path) -> dict[str, Any]:
    return {**found, "sem_seg_file": str(path)} if path.exists() else found


def _tell(root: Path, dicts: Sequence[dict[str, Any]]) -> None:
    labelled = sum("sem_seg_file" in d for d in dicts)
    scans = len({d["scan_id"] for d in dicts})
    logger.info("%s: %d scans, %d files, %d with masks", root, scans, len(dicts), labelled)
