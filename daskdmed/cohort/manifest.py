"""Datasets as files: one row per record in CSV, or one JSON document.

JSON keeps everything. CSV is for spreadsheets: types follow from the whole column, and a
column whose types would not survive that is written as JSON, one value per cell, under the
name ``label:<name>:json``. Not covered: arrays (they have no uri to write).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskdmed.cohort.options import IMAGE_OPTIONS
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.cohort.tables import parse_column, read_csv
from daskdmed.core.errors import DaskdmedError, DatasetError
from daskdmed.core.files import new_file
from daskdmed.core.places import is_remote, is_url, local, local_path
from daskdmed.core.space import Space
from daskdmed.core.types import PathLike

if TYPE_CHECKING:
    from daskdmed.cohort.dataset import Dataset

FORMAT = "daskdmed-manifest"
VERSION = 1
_FIXED = ("patient", "record", "uri", "mpp", "backend")
_JSON = ":json"
#: arguments of a record that JSON keeps, where they say something
_TOLD = ("mpp", "backend", "spatial_ndim", "facts")
#: what records say of their images, in JSON and in columns of their own where one says it
_OF_IMAGES = ("spacing", "background", "space", *IMAGE_OPTIONS)
_ABSENT: Any = object()
#: what values that make no sense raise somewhere
_WRONG = (LookupError, TypeError, ValueError, OverflowError)


def write_manifest(dataset: Dataset, path: PathLike) -> None:
    """See `Dataset.to_manifest`."""
    target = local(path, "a manifest", DatasetError)
    _check_writable(dataset)
    text = _to_json(dataset, target) if _is_json(target) else _to_csv(dataset, target)
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(f"{target}: a name is not valid Unicode: {error}") from error
    with new_file(target, overwrite=True) as partial:
        partial.write_bytes(content)


def read_manifest(
    cls: type[Dataset],
    path: PathLike,
    name: str | None,
    storage_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """See `Dataset.from_manifest`."""
    source = local(path, "a manifest", DatasetError)
    if _is_json(source):
        return _from_json(cls, source, name, storage_options)
    return _from_csv(cls, source, source.stem if name is None else name, storage_options)


def _is_json(path: Path) -> bool:
    if path.suffix.lower() not in {".json", ".csv", ".tsv"}:
        raise DatasetError(f"{path}: a manifest is a .json, .csv or .tsv file")
    return path.suffix.lower() == ".json"


# -------------------------------------------------------------------- uris
def _written(uri: str, folder: Path) -> str:
    """Relative when the slide lies below the manifest, so that the folder can be moved."""
    if is_url(uri):
        return uri
    absolute = str(local_path(uri))
    try:
        relative = Path(absolute).relative_to(folder).as_posix()
    except ValueError:
        return uri if os.path.isabs(uri) else absolute
    return relative if not os.path.isabs(uri) or _resolved(relative, folder) == uri else uri


def _resolved(uri: str, folder: Path) -> str:
    own = is_url(uri) or os.path.isabs(os.path.expanduser(uri))
    return uri if own else os.path.join(folder, uri)


# -------------------------------------------------------------------- JSON
def _check_writable(dataset: Dataset) -> None:
    for patient in dataset:
        for record in patient.records.values():
            where = f"patient {patient.id!r}, record {record.name!r}"
            if record.uri is None:
                raise DatasetError(
                    f"{where}: is an array or annotations in memory, which a manifest cannot "
                    "hold; write it as Zarr and use Record('image.zarr'), or with to_geojson and "
                    "use Record('drawn.geojson')"
                )
            _check_json(record.facts, f"{where}, fact")
        _check_json(patient.labels, f"patient {patient.id!r}, label")


def _check_json(values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if not _survives(value):
            raise DatasetError(
                f"{where} {name!r}: {value!r} ({type(value).__name__}) would not come back the "
                "same from JSON; use numbers, texts, True, False, None, lists and dicts"
            )


def _survives(value: Any) -> bool:
    if value is None or type(value) in (bool, int, float, str):
        return True
    if type(value) is list:
        return all(_survives(v) for v in value)
    if type(value) is dict:
        return all(type(k) is str and _survives(v) for k, v in value.items())
    return False


def _to_json(dataset: Dataset, target: Path) -> str:
    patients = []
    for patient in dataset:
        records = {}
        for name, record in patient.records.items():
            entry: dict[str, Any] = {"uri": _written(str(record.uri), target.parent)}
            told = {n: getattr(record, n) for n in _TOLD} | {"facts": dict(record.facts) or None}
            told |= _of_image(record)
            records[name] = entry | {n: value for n, value in told.items() if value is not None}
        patients.append({"id": patient.id, "records": records, "labels": dict(patient.labels)})
    document = {"format": FORMAT, "version": VERSION, "name": dataset.name, "patients": patients}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _access(uri: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The argument of a record behind a URL; others take none."""
    return {"storage_options": given} if is_remote(uri) else {}


def _from_json(
    cls: type[Dataset], source: Path, name: str | None, access: Mapping[str, Any] | None
) -> Dataset:
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{source}: there is no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{source}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DatasetError(f'{source}: is not a manifest, it lacks "format": "{FORMAT}"')
    if document.get("version") != VERSION:
        raise DatasetError(
            f"{source}: has manifest version {document.get('version')!r}, this release reads "
            f"{VERSION}; update daskdmed"
        )
    patients = []
    entries = document.get("patients")
    for position, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        try:
            records = {
                key: Record(
                    _resolved(r["uri"], source.parent),
                    **{n: r.get(n) for n in _TOLD},
                    **_as_arguments(r),
                    **_access(r["uri"], access),
                )
                for key, r in entry["records"].items()
            }
            patients.append(Patient(entry["id"], records, entry.get("labels", {})))
        except (*_WRONG, AttributeError, DaskdmedError) as error:
            raise DatasetError(
                f"{source}: patient number {position} is wrong: {type(error).__name__}: {error}; "
                'each has "id", "records" of name to {"uri": ...}, and "labels"'
            ) from error
    return cls(str(document.get("name", source.stem)) if name is None else name, patients)


def _of_image(record: Record) -> dict[str, Any]:
    """What a record says of its image, in what JSON can hold."""
    said: dict[str, Any] = {"spacing": record.spacing, "background": record.background}
    said |= record.options
    if "channels" in said:
        said["channels"] = list(said["channels"])
    if record.space is not None:
        said["space"] = {"affine": record.space.affine.tolist(), "shape": record.space.shape}
    return {name: value for name, value in said.items() if value is not None}


def _as_arguments(said: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse: arguments of a record."""
    found = {name: said[name] for name in _OF_IMAGES if said.get(name) is not None}
    if "space" in found:
        found["space"] = Space(found["space"]["affine"], found["space"]["shape"])
    return found


# -------------------------------------------------------------------- CSV
def _to_csv(dataset: Dataset, target: Path) -> str:
    rows = [(p, n, r) for p in dataset for n, r in p.records.items()]
    label_columns = _columns("label", [p.labels for p, _, _ in rows])
    fact_columns = _columns("fact", [r.facts for _, _, r in rows])
    columns = {**label_columns, **fact_columns}
    out = io.StringIO(newline="")
    # "\r\n" as the line end makes the writer quote both characters inside cells
    writer = csv.writer(out, delimiter=_delimiter(target), lineterminator="\r\n")
    said = [_of_image(r) | ({"spatial_ndim": r.spatial_ndim} if _odd(r) else {}) for *_, r in rows]
    used = [n for n in _ALSO if any(n in one for one in said)]
    writer.writerow([*_FIXED, *used, *columns])
    for position, (patient, name, record) in enumerate(rows):
        pair = record.mpp
        mpp = "" if pair is None else " ".join(repr(v) for v in dict.fromkeys(pair))
        uri = _written(str(record.uri), target.parent)
        fixed = [patient.key, name, uri, mpp, record.backend or ""]
        fixed += [_cell(said[position].get(n)) for n in used]
        writer.writerow([*fixed, *(cells[position] for cells in columns.values())])
    return out.getvalue()


#: columns that are there where a record says something
_ALSO = ("spatial_ndim", *_OF_IMAGES)


def _odd(record: Record) -> bool:
    """Whether its number of axes does not follow from what else it says."""
    twin = Record(str(record.uri), spacing=record.spacing, space=record.space)
    return record.spatial_ndim != twin.spatial_ndim


def _cell(value: Any) -> str:
    """A value as people would write it, where it is read back the same, else as JSON."""
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(repr, value))
    return value if isinstance(value, str) and _parsed(value) == value else json.dumps(value)


def _parsed(cell: str) -> Any:
    """The inverse: JSON, or several numbers, or text."""
    with contextlib.suppress(ValueError):
        return json.loads(cell)
    with contextlib.suppress(ValueError):
        return tuple(map(json.loads, cell.split()))
    return cell


def _columns(prefix: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Header -> cells; as plain text where that reads back the same, else as JSON."""
    columns = {}
    for name in dict.fromkeys(n for row in rows for n in row):
        values = [row.get(name, _ABSENT) for row in rows]
        cells = ["" if v is _ABSENT else v if type(v) is str else repr(v) for v in values]
        header = f"{prefix}:{name}"
        if header.endswith(_JSON) or not _reads_back(cells, values):
            header += _JSON
            cells = ["" if v is _ABSENT else json.dumps(v, ensure_ascii=False) for v in values]
        columns[header] = cells
    return columns


def _reads_back(cells: Sequence[str], values: Sequence[Any]) -> bool:
    parsed = [_ABSENT if v is None else v for v in parse_column(cells)]
    return all(type(a) is type(b) and a == b for a, b in zip(parsed, values, strict=True))


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _from_csv(
    cls: type[Dataset], source: Path, name: str, access: Mapping[str, Any] | None
) -> Dataset:
    header, rows = read_csv(source)
    for needed in ("patient", "uri"):
        if needed not in header:
            raise DatasetError(f"{source}: has no column {needed!r}, only {header}")
    extra = {h: _decode(h, [row[i] for row in rows], source) for i, h in enumerate(header)
             if h.startswith(("label:", "fact:"))}  # fmt: skip
    records: dict[str, dict[str, Record]] = {}
    labels: dict[str, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        where = f"{source}: row {position + 2}"
        cell = dict(zip(header, row, strict=True))
        key = cell["patient"]
        record = cell.get("record") or "wsi"
        if record in records.setdefault(key, {}):
            raise DatasetError(f"{where}: patient {key!r} has the record {record!r} twice")
        try:
            records[key][record] = Record(
                _resolved(cell["uri"], source.parent) if cell["uri"] else "",
                mpp=_parse_mpp(cell.get("mpp", "")),
                backend=cell.get("backend") or None,
                spatial_ndim=_parsed(cell.get("spatial_ndim") or "null"),
                facts=_named(extra, "fact:", position),
                **_as_arguments({n: _parsed(cell[n]) for n in _OF_IMAGES if cell.get(n)}),
                **_access(cell["uri"], access),
            )
        except (*_WRONG, DaskdmedError) as error:
            raise DatasetError(f"{where}: {error}") from error
        found = _named(extra, "label:", position)
        if labels.setdefault(key, found) != found:
            raise DatasetError(
                f"{where}: patient {key!r} has labels {found} here and {labels[key]} before"
            )
    try:
        return cls(name, [Patient(key, records[key], labels[key]) for key in records])
    except DatasetError as error:
        raise DatasetError(f"{source}: {error}") from error


def _decode(header: str, cells: Sequence[str], source: Path) -> list[Any]:
    if not header.endswith(_JSON):
        return [_ABSENT if v is None else v for v in parse_column(cells)]
    values = []
    for number, cell in enumerate(cells, start=2):
        try:
            values.append(json.loads(cell) if cell else _ABSENT)
        except ValueError as error:
            raise DatasetError(
                f"{source}: row {number}, column {header!r}: {cell!r} is not JSON: {error}"
            ) from error
    return values


def _named(extra: Mapping[str, Sequence[Any]], prefix: str, position: int) -> dict[str, Any]:
    return {
        header.removeprefix(prefix).removesuffix(_JSON): values[position]
        for header, values in extra.items()
        if header.startswith(prefix) and values[position] is not _ABSENT
    }


def _parse_mpp(cell: str) -> Any:
    numbers = [float(part) for part in cell.split()]
    if len(numbers) > 2:
        raise DatasetError(f"mpp is one number or two with a space between, got {cell!r}")
    return None if not numbers else numbers[0] if len(numbers) == 1 else tuple(numbers)
