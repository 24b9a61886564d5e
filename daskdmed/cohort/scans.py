"""Volumes as their publishers lay them out: images and labels in two folders, slices in files.

``imagesTr`` and ``labelsTr`` of nnU-Net and the Medical Segmentation Decathlon; one file per slice
as in the Osteoarthritis Initiative and MedSegPy. Names are matched, nothing is opened but the
first slice of each scan. Not covered: one folder of images (`daskdmed.cohort.folder`), what is
read of a slice (`daskdmed.cohort.slices`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daskdmed.cohort.folder import find_images, image_id, walk
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.cohort.slices import natural
from daskdmed.core.errors import DatasetError, listing
from daskdmed.core.places import local
from daskdmed.core.types import PathLike

logger = logging.getLogger("daskdmed.cohort")

#: the end of a name that is the number of a channel, as nnU-Net writes it
_CHANNEL = re.compile(r"(.+)_([0-9]{4})")
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
IMAGE, LABEL = "image", "label"


def check_missing(value: Any) -> None:
    """Refuse what is no choice for labels that are missing."""
    if value not in ("raise", "allow"):
        raise DatasetError(f'missing_labels is "raise" or "allow", got {value!r}')


# ------------------------------------------------------------------ two folders
def read_pairs(
    images: PathLike,
    labels: PathLike | None,
    channels: bool | None,
    missing_labels: str,
    options: Mapping[str, Any],
) -> tuple[str, list[Patient]]:
    """Name and patients of two folders, see `Dataset.from_bids_like`."""
    check_missing(missing_labels)
    root = local(images, "the folder of images", DatasetError)
    found = _by_id(root)
    cases = _cases(root, found, channels)
    truth = {}
    if labels is not None:
        place = local(labels, "the folder of labels", DatasetError)
        truth = _by_id(place)
        _check_labels(place, list(cases), truth, missing_labels)
    patients = []
    for key, parts in cases.items():
        records = {name: Record(path, **options) for name, path in parts.items()}
        if key in truth:
            records[LABEL] = Record(truth[key])
        patients.append(Patient(key, records))
    return root.parent.name if root.name.lower().startswith("images") else root.name, patients


def _by_id(root: Path) -> dict[str, Path]:
    """Images of a folder by id."""
    found: dict[str, Path] = {}
    for path in find_images(root, recursive=False):
        key = image_id(path)
        if key in found:
            raise DatasetError(
                f"{root}: {key!r} is there twice: {found[key].name} and {path.name}; move one away"
            )
        found[key] = path
    return found


def _cases(
    root: Path, found: Mapping[str, Path], channels: bool | None
) -> dict[str, dict[str, Path]]:
    """Files of each case by name of the record."""
    parts = {key: _CHANNEL.fullmatch(key) for key in found}
    if channels is None:
        # every name ends in a number of four digits, and they begin at 0000
        channels = all(parts.values()) and any(p and p[2] == "0000" for p in parts.values())
    if not channels:
        return {key: {IMAGE: path} for key, path in found.items()}
    unnumbered = [found[key].name for key, part in parts.items() if part is None]
    if unnumbered:
        raise DatasetError(
            f"{root}: {len(unnumbered)} of {len(found)} names do not end in the number of a "
            f"channel, case_0000: {listing(unnumbered)}; rename them, or give channels=False"
        )
    cases: dict[str, dict[str, Path]] = {}
    for key, part in parts.items():
        assert part is not None
        cases.setdefault(part[1], {})[part[2]] = found[key]
    every = sorted({number for own in cases.values() for number in own})
    lacking = [f"{c}_{n}" for c, own in cases.items() for n in every if n not in own]
    if lacking:
        raise DatasetError(
            f"{root}: {len(lacking)} channels are missing, others have {listing(every)}: "
            f"{listing(lacking)}; add them, or leave these cases out"
        )
    if every == ["0000"]:
        return {case: {IMAGE: own["0000"]} for case, own in cases.items()}
    return {case: {number: own[number] for number in every} for case, own in cases.items()}


def _check_labels(
    place: Path, cases: Sequence[str], truth: Mapping[str, Any], missing_labels: str
) -> None:
    absent = [key for key in cases if key not in truth]
    if absent and missing_labels == "raise":
        raise DatasetError(
            f"{place}: no label for {len(absent)} of {len(cases)} images: {listing(absent)} (it "
            f'has {listing(list(truth))}); add them, or pass missing_labels="allow"'
        )
    others = len(truth) - (len(cases) - len(absent))
    logger.info("%s: %d labels, %d of no image", place, len(truth), others)


# ------------------------------------------------------------------ one file per slice
@dataclass
class _Scan:
    """Slices of one scan by number, and what else its names say."""

    slices: dict[int, Path] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)


def read_slices(
    folder: PathLike,
    pattern: str,
    labels: str | None,
    missing_labels: str,
    missing_slices: str,
    label_options: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[str, list[Patient]]:
    """Name and patients of a folder of slices, see `Dataset.from_slices`."""
    check_missing(missing_labels)
    if missing_slices not in ("raise", "allow"):
        raise DatasetError(f'missing_slices is "raise" or "allow", got {missing_slices!r}')
    root = local(folder, "the folder", DatasetError)
    files = [path for path in walk(root) if not path.name.startswith(".")]
    scans = _scans(root, files, pattern, "pattern")
    for key, scan in scans.items():
        _check_whole(root, key, scan, missing_slices)
    truth = {}
    if labels is not None:
        truth = _scans(root, files, labels, "labels")
        _check_labels(root, list(scans), truth, missing_labels)
    patients = []
    for key, scan in scans.items():
        records = {IMAGE: _stacked(scan, options)}
        if key in truth:
            _check_same(root, key, scan, truth[key])
            records[LABEL] = _stacked(truth[key], label_options)
        patients.append(Patient(key, records, scan.said))
    return root.name, patients


def _stacked(scan: _Scan, options: Mapping[str, Any]) -> Record:
    return Record.stack([scan.slices[number] for number in sorted(scan.slices)], **options)


def _scans(root: Path, files: Iterable[Path], pattern: str, argument: str) -> dict[str, _Scan]:
    """Scans by id, in natural order."""
    expression = _compiled(pattern, argument)
    deep = "/" in pattern
    scans: dict[str, _Scan] = {}
    for path in files:
        match = expression.fullmatch(path.relative_to(root).as_posix() if deep else path.name)
        if match is None:
            continue
        said = match.groupdict()
        key, number = said.pop("id"), _number(path, said.pop("slice"))
        scan = scans.setdefault(key, _Scan(said=said))
        if scan.said != said:
            raise DatasetError(
                f"{root}: scan {key!r} is of {scan.said} and of {said} ({path.name}); what tells "
                f"scans apart belongs into {{id}}: {argument}='{{id}}_{{slice}}.im'"
            )
        if number in scan.slices:
            raise DatasetError(
                f"{root}: slice {number} of scan {key!r} is there twice: "
                f"{scan.slices[number].relative_to(root)} and {path.relative_to(root)}"
            )
        scan.slices[number] = path
    if not scans:
        raise DatasetError(
            f"{root}: no file matches {argument}={pattern!r}; the pattern is of the whole name, or "
            "of the path below the folder where it contains a slash"
        )
    return {key: scans[key] for key in sorted(scans, key=natural)}


def _compiled(pattern: str, argument: str) -> re.Pattern[str]:
    """A pattern with fields in braces, or a regular expression with named groups."""
    text = pattern
    if "(?P<" not in pattern:
        pieces = _FIELD.split(pattern)
        kinds = {"slice": "[0-9]+"}
        text = "".join(
            f"(?P<{piece}>{kinds.get(piece, '[^/]+')})" if i % 2 else re.escape(piece)
            for i, piece in enumerate(pieces)
        )
    try:
        expression = re.compile(text)
    except re.error as error:
        raise DatasetError(f"{argument}={pattern!r} is no pattern: {error}") from error
    if not {"id", "slice"} <= expression.groupindex.keys():
        raise DatasetError(
            f"{argument}={pattern!r} must say which part of a name is the scan's id and which the "
            "number of the slice: '{id}_{slice}.im', or a regular expression with the groups id "
            "and slice"
        )
    return expression


def _number(path: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DatasetError(f"{path}: the slice {text!r} is no number; mend the pattern") from None


def _check_whole(root: Path, key: str, scan: _Scan, missing_slices: str) -> None:
    numbers = scan.slices.keys()
    gaps = sorted(set(range(min(numbers), max(numbers) + 1)) - numbers)
    if gaps and missing_slices == "raise":
        raise DatasetError(
            f"{root}: scan {key!r} has slices {min(numbers)} to {max(numbers)} without "
            f'{listing(gaps)}; add them, or stack what is there with missing_slices="allow"'
        )


def _check_same(root: Path, key: str, scan: _Scan, label: _Scan) -> None:
    differing = sorted(scan.slices.keys() ^ label.slices.keys())
    if differing:
        raise DatasetError(
            f"{root}: scan {key!r} has {len(scan.slices)} slices and its label "
            f"{len(label.slices)}; only one of both has {listing(differing)}"
        )
