"""Cells and columns: typed values out of text, and label tables out of files.

Covers CSV (no pandas needed), Parquet and DataFrames (extra "tables"), and mappings. What
the values mean, and which patients they belong to, is the caller's business.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from daskdmed.core.errors import DatasetError
from daskdmed.core.extras import extra
from daskdmed.core.frozen import missing, plain
from daskdmed.core.places import local

#: cells that say "not known"
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan"})
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_ID_COLUMNS = (
    *("patient", "patient_id", "patientid", "id", "case", "case_id", "slide", "slide_id"),
    *("image", "image_id", "filename", "file", "uri"),
)


def parse_column(cells: Sequence[str]) -> list[Any]:
    """One type for a column: int if every known cell is one, else float, else str.

    "007" and "+1" are codes and stay text, as does the whole column with them. Cells in
    `MISSING` become None.
    """
    known = [c for c in cells if c not in MISSING]
    kind: type = str
    if known and all(_INTEGER.fullmatch(c) for c in known):
        kind = int
    elif known and all(_FLOAT.fullmatch(c) for c in known):
        kind = float
    return [None if c in MISSING else kind(c) for c in cells]


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV or TSV; every row as long as the header."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file, delimiter=delimiter, strict=True) if row]
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DatasetError(
            f"{path}: cannot be read as CSV: {error}; save it as UTF-8 with commas"
        ) from error
    if not lines:
        raise DatasetError(f"{path}: is empty; the first line gives the column names")
    header, rows = lines[0], lines[1:]
    if len(set(header)) < len(header):
        raise DatasetError(f"{path}: a column name occurs twice in {header}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DatasetError(
                f"{path}: row {number} has {len(row)} cells, the header has {len(header)}: {row}"
            )
    return header, rows


LabelTable = dict[str, dict[str, Any]]


def read_labels(
    source: Any, id_column: str | None, label_columns: Sequence[str] | None
) -> tuple[LabelTable, list[str], str]:
    """Labels by id (as text) from whatever `Dataset.from_folder` accepts."""
    if isinstance(source, Mapping):
        return _from_mapping(source, label_columns)
    if hasattr(source, "columns") and hasattr(source, "iloc"):
        return (*_from_frame(source, id_column, label_columns, "the DataFrame"), "the DataFrame")
    if not isinstance(source, (str, Path)) and not hasattr(source, "__fspath__"):
        raise DatasetError(
            f"labels= takes a CSV or Parquet path, a mapping or a DataFrame, got "
            f"{type(source).__name__}"
        )
    path = local(source, "labels", DatasetError)
    if path.suffix.lower() in {".parquet", ".pq"}:
        frame = _read_parquet(path)
        return (*_from_frame(frame, id_column, label_columns, str(path)), str(path))
    header, rows = read_csv(path)
    chosen, labels = _choose(header, id_column, label_columns, str(path))
    cells = {name: [row[header.index(name)] for row in rows] for name in labels}
    columns = {name: parse_column(column) for name, column in cells.items()}
    ids = [row[header.index(chosen)] for row in rows]
    return _rows(ids, columns, str(path)), labels, str(path)


def _from_mapping(
    source: Mapping[Any, Any], label_columns: Sequence[str] | None
) -> tuple[LabelTable, list[str], str]:
    scalar = "label" if not label_columns else label_columns[0]
    table: LabelTable = {}
    for key, value in source.items():
        row = dict(value) if isinstance(value, Mapping) else {scalar: value}
        if label_columns is not None:
            row = {k: v for k, v in row.items() if k in label_columns}
        table[str(key)] = {str(k): v for k, v in row.items() if not missing(v)}
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    return table, list(label_columns or names), "labels="


def _from_frame(
    frame: Any, id_column: str | None, label_columns: Sequence[str] | None, where: str
) -> tuple[LabelTable, list[str]]:
    header = [str(c) for c in frame.columns]
    chosen, labels = _choose(header, id_column, label_columns, where)
    columns = {n: [plain(v) for v in frame.iloc[:, header.index(n)].tolist()] for n in labels}
    ids = [str(plain(v)) for v in frame.iloc[:, header.index(chosen)].tolist()]
    return _rows(ids, columns, where), labels


def _read_parquet(path: Path) -> Any:
    pandas = extra("pandas", "tables", f"{path}: save it as CSV, or reading Parquet needs")
    try:
        return pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as Parquet: {error}") from error


def _choose(
    header: list[str], id_column: str | None, label_columns: Sequence[str] | None, where: str
) -> tuple[str, list[str]]:
    """Which column gives the ids, and which the labels."""
    wanted = [*([id_column] if id_column is not None else []), *(label_columns or ())]
    absent = [name for name in wanted if name not in header]
    if absent or not header:
        raise DatasetError(f"{where}: no column {absent}; it has {header}")
    lower = {name.lower(): name for name in reversed(header)}
    guess = next((lower[name] for name in _ID_COLUMNS if name in lower), header[0])
    chosen = guess if id_column is None else id_column
    labels = [n for n in header if n != chosen] if label_columns is None else list(label_columns)
    return chosen, labels


def _rows(ids: Iterable[str], columns: Mapping[str, Sequence[Any]], where: str) -> LabelTable:
    table: LabelTable = {}
    for position, key in enumerate(ids):
        row = {name: c[position] for name, c in columns.items() if not missing(c[position])}
        if table.setdefault(key, row) != row:
            raise DatasetError(
                f"{where}: {key!r} has two rows that differ, {table[key]} and {row}; keep one"
            )
    return table
