"""Tables of windows back from their files.

Not covered: writing (`daskdmed.tables.formats`), making maps of them.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed.core.errors import StoreError, UsageError
from daskdmed.core.types import Array, PathLike
from daskdmed.tables.formats import CSV_COLUMNS, FORMATS, METADATA, ParquetSink
from daskdmed.tables.rows import (
    WindowTable,
    described,
    row_columns,
)
from daskdmed.tiling.imagegrid import ImageGrid


def read_windows(path: PathLike | Iterable[PathLike]) -> WindowTable:
    """Read tables that a `StreamWriter` wrote.

    Parameters
    ----------
    path : path, or several
        A table (".parquet", ".csv", ".zarr"), or a folder of them. Several are put one
        below the other.

    Returns
    -------
    WindowTable
        Rows, values and image grids.

    Raises
    ------
    StoreError
        There is none, one cannot be read, or they differ in the shape of values.
    MissingExtraError
        Parquet without pyarrow.
    """
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    files = [file for p in given for file in _files(Path(p))]
    if not files:
        raise StoreError(f"no table of windows in {[str(p) for p in given]}")
    tables = [_read(file) for file in files]
    return tables[0] if len(tables) == 1 else WindowTable.concatenate(tables)


def _files(path: Path) -> list[Path]:
    if path.suffix[1:] in FORMATS:
        return [path]
    if not path.is_dir():
        raise UsageError(
            f"{path} is no table of windows: it ends in none of "
            f"{', '.join('.' + f for f in FORMATS)}, and is no folder"
        )
    return sorted(
        f for f in path.iterdir() if f.suffix[1:] in FORMATS and not f.name.startswith(".")
    )


def _read(path: Path) -> WindowTable:
    reader = {"parquet": _parquet, "csv": _csv, "zarr": _zarr}[path.suffix[1:]]
    try:
        return reader(path)
    except StoreError:
        raise
    except ImportError:
        raise
    except Exception as error:  # whatever damage does to three formats
        raise StoreError(
            f"{path} cannot be read as a table of windows: {type(error).__name__}: {error}"
        ) from error


def _parquet(path: Path) -> WindowTable:
    ParquetSink.check()
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        table = file.read()
        metadata = table.schema.metadata or file.metadata.metadata or {}
        raw = metadata.get(METADATA.encode()) or (file.metadata.metadata or {}).get(
            METADATA.encode()
        )
    images, ndim, shape = described(json.loads(raw) if raw else None, str(path))
    columns: dict[str, Array] = {}
    for name, kind in row_columns(ndim).items():
        column = table.column(name)
        if kind == np.dtype(object):
            columns[name] = np.array(column.to_pylist(), dtype=object)
        else:
            columns[name] = column.to_numpy()
    if "values" in table.column_names:
        chunks = [c.flatten().to_numpy(zero_copy_only=False) for c in table.column("values").chunks]
        dtype = table.schema.field("values").type.value_type.to_pandas_dtype()
        flat = np.concatenate([np.empty(0, dtype), *chunks])
    else:
        names = [n for n in table.column_names if n.startswith("value_")]
        dtype = table.schema.field("value_0").type.to_pandas_dtype()
        flat = np.empty((len(table), len(names)), dtype)
        for i in range(len(names)):
            flat[:, i] = table.column(f"value_{i}").to_numpy()
    return WindowTable(columns, flat.reshape(len(table), *shape), images)


def _zarr(path: Path) -> WindowTable:
    import zarr

    group = zarr.open_group(path, mode="r")
    metadata: Any = group.attrs.asdict().get(METADATA)
    images, ndim, _ = described(metadata, str(path))
    sources = np.array([*metadata["sources"], [None, None]], dtype=object)[:-1]
    number: Any = np.asarray(group["source"][:])
    columns: dict[str, Array] = {}
    for name in row_columns(ndim):
        if name in ("patient", "record"):
            columns[name] = sources[number, 0 if name == "patient" else 1]
        else:
            columns[name] = np.asarray(group[name][:])
    return WindowTable(columns, np.asarray(group["values"][:]), images)


def _csv(path: Path) -> WindowTable:
    text = path.read_text(encoding="utf-8")
    body, _, last = text.rstrip("\n").rpartition("\n")
    if not last.startswith("# "):
        raise StoreError(f"{path} is no table of windows: it does not say what is in it")
    metadata = json.loads(last[2:])
    images, _, shape = described(metadata, str(path))
    lines = list(csv.reader(io.StringIO(body)))
    header, rows = lines[0], lines[1:]
    at = {name: i for i, name in enumerate(header)}
    missing = [name for name in CSV_COLUMNS if name not in at]
    if missing:
        raise StoreError(f"{path} lacks the columns {missing}")
    first = at["value_0"]
    dtype = np.dtype(metadata["dtype"])
    flat = np.array([row[first:] for row in rows], dtype=str)
    values = flat.astype(np.int8).astype(bool) if dtype == np.bool_ else flat.astype(dtype)
    if "patient" in at:
        who = [(row[at["patient"]], row[at["record"]]) for row in rows]
    else:
        name = (images[0].patient, images[0].record) if images else (path.stem, "")
        who = [name] * len(rows)

    def pairs(column: str, kind: type) -> Array:
        found = [row[at[column]].split("x") for row in rows]
        return np.array([[kind(p[0]), kind(p[-1])] for p in found]).reshape(len(rows), 2)

    origins = np.array([[int(r[at["y"]]), int(r[at["x"]])] for r in rows], np.int64)
    levels = np.array([int(r[at["level"]]) for r in rows], np.int64)
    columns = _columns(
        who,
        origins.reshape(len(rows), 2),
        levels,
        pairs("kernel_size", int).astype(np.int64),
        pairs("downsample", float).astype(np.float64),
        images,
    )
    return WindowTable(columns, values.reshape(len(rows), *shape), images)


def _columns(
    who: Sequence[tuple[str, str]],
    origins: Array,
    levels: Array,
    kernels: Array,
    downsample: Array,
    images: Sequence[ImageGrid],
) -> dict[str, Array]:
    """The columns that CSV leaves out, from the grids."""
    n = len(who)
    indices = np.full((n, 2), -1, np.int64)
    strides = np.zeros((n, 2), np.int64)
    extents = kernels.copy()
    mpp = np.full((n, 2), np.nan)
    owners = np.array(who, dtype=object).reshape(n, 2)
    for image in images:
        rows = np.flatnonzero((owners[:, 0] == image.patient) & (owners[:, 1] == image.record))
        for axis in range(2):
            places = [image.grid.axis_origin(axis, i) for i in range(image.grid.counts[axis])]
            indices[rows, axis] = np.searchsorted(places, origins[rows, axis])
        strides[rows] = image.grid.stride
        extents[rows] = np.minimum(kernels[rows], np.array(image.grid.shape) - origins[rows])
        if image.mpp is not None:
            mpp[rows] = image.mpp[::-1]
    places0 = np.rint(origins * downsample).astype(np.int64)
    columns: dict[str, Array] = {"patient": owners[:, 0], "record": owners[:, 1], "level": levels}
    for axis, name in enumerate("yx"):
        columns[f"index_{name}"] = indices[:, axis]
        columns[name] = places0[:, axis]
        columns[f"origin_{name}"] = origins[:, axis]
        columns["height" if name == "y" else "width"] = extents[:, axis]
        columns[f"mpp_{name}"] = mpp[:, axis]
        columns[f"downsample_{name}"] = downsample[:, axis]
        columns[f"kernel_{name}"] = kernels[:, axis]
        columns[f"stride_{name}"] = strides[:, axis]
    return {name: columns[name] for name in row_columns(2)}
