"""Tables of windows as files: Parquet and CSV, written and read by pyarrow.

Both have the columns of `daskdmed.tables.rows`. What else a file says of itself
(`rows.describe`) is key-value metadata in Parquet, and a last line that begins with "# " in
CSV. Files are written beside the final name, under a hidden name of their own, and renamed when
the table is complete.

Not covered: buffering (`daskdmed.tables.writer`), maps of rows (`daskdmed.tables.raster`).
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed.core.errors import MissingExtraError, StoreError, UsageError
from daskdmed.core.files import sweep_partials
from daskdmed.core.types import Array, PathLike
from daskdmed.tables.rows import WindowTable, describe, described, row_columns
from daskdmed.tiling.imagegrid import ImageGrid

#: key of the metadata in Parquet
METADATA = "daskdmed"
#: a result of more numbers than this is one list column of a Parquet file
MOST_COLUMNS = 256
#: names of such columns: of streams, and of `daskdmed.tables.features`
LISTS = ("values", "features")


def require_pyarrow() -> Any:
    """The module, with its parts for Parquet and CSV."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            'tables of windows on disk need pyarrow; pip install "daskdmed[tables]"'
        ) from error
    return pyarrow


# -------------------------------------------------------------------- rows as Arrow's
def schema_of(ndim: int, value_shape: Sequence[int], dtype: Any, column: str | None = None) -> Any:
    """The columns of a file; results in `column` as one list, else one number each."""
    pa = require_pyarrow()
    fields = [
        (name, pa.string() if kind == np.dtype(object) else pa.from_numpy_dtype(kind))
        for name, kind in row_columns(ndim).items()
    ]
    width, value = math.prod(value_shape), pa.from_numpy_dtype(dtype)
    if column is not None:
        fields.append((column, pa.list_(value, width)))
    else:
        fields += [(f"value_{i}", value) for i in range(width)]
    return pa.schema(fields)


def to_arrow(table: WindowTable, schema: Any) -> Any:
    """Rows as a table of this schema."""
    pa = require_pyarrow()
    arrays = [
        pa.array(table.columns[name], type=schema.field(name).type)
        for name in row_columns(table.ndim)
    ]
    flat = table.values.reshape(len(table), math.prod(table.value_shape))
    if schema.names[-1] in LISTS:
        kind = schema.types[-1]
        numbers = pa.array(np.ascontiguousarray(flat).ravel(), type=kind.value_type)
        arrays.append(pa.FixedSizeListArray.from_arrays(numbers, kind.list_size))
    else:
        # columns of one row-major array are not contiguous, which Arrow copies one by one
        columns = np.ascontiguousarray(flat.T)
        kind = schema.types[-1]
        arrays += [pa.array(column).cast(kind) for column in columns]
    return pa.Table.from_arrays(arrays, schema=schema)


def from_arrow(table: Any, metadata: Any, where: str) -> WindowTable:
    """Rows back from `to_arrow`, with what the file says of itself."""
    images, ndim, shape, dtype = described(metadata, where)
    columns: dict[str, Array] = {}
    for name, kind in row_columns(ndim).items():
        column = table.column(name)
        text = kind == np.dtype(object)
        columns[name] = np.array(column.to_pylist(), object) if text else column.to_numpy()
    if (name := table.column_names[-1]) in LISTS:
        chunks = [c.flatten().to_numpy(zero_copy_only=False) for c in table.column(name).chunks]
        flat = np.concatenate([np.empty(0, dtype), *chunks])
    else:
        flat = np.empty((len(table), math.prod(shape)), dtype)
        for i in range(flat.shape[1]):
            flat[:, i] = table.column(f"value_{i}").to_numpy()
    return WindowTable(columns, flat.reshape(len(table), *shape), images)


# -------------------------------------------------------------------- files
class TableFile(ABC):
    """Writes one table, some rows at a time.

    Any rows `like` those to come give axes, and shape and type of the values; `facts` are
    what the file says of itself beside these.
    """

    def __init__(
        self, path: Path, like: WindowTable, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.facts, self._began = path, dict(facts or {}), time.time()
        self.kind = like.ndim, like.value_shape, like.values.dtype
        self.images: dict[tuple[str, str], ImageGrid] = {}
        self.partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        self._writer: Any = None

    @abstractmethod
    def open(self) -> Any:
        """A writer of pyarrow's into `partial`."""

    @abstractmethod
    def describe(self, metadata: str) -> None:
        """Add what the file says of itself, and close it."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> WindowTable:
        """Rows, values and image grids of a complete file."""

    def append(self, table: WindowTable) -> None:
        """Write rows behind those before: one row group of Parquet."""
        if self._writer is None:
            self._writer = self.open()
        self._writer.write_table(to_arrow(table, self._writer.schema), max(len(table), 1))

    def know(self, images: Iterable[ImageGrid]) -> None:
        """Take note of images whose rows may come."""
        for image in images:
            self.images.setdefault((image.patient, image.record), image)

    def finish(self) -> Path:
        """Complete the table and give it its final name."""
        if self._writer is None:
            self._writer = self.open()
        self.describe(json.dumps({**describe(self.images.values(), *self.kind), **self.facts}))
        self._writer = None
        with open(self.partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.partial, self.path)
        sweep_partials(self.path, self._began)
        return self.path

    def abort(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()
        try:
            self.partial.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self.partial}: cannot be removed: {error}") from error


class ParquetFile(TableFile):
    """Text dictionary-encoded; wide results as one list column, or all in one named so."""

    column: str | None = None

    def open(self) -> Any:
        """A `pyarrow.parquet.ParquetWriter`."""
        wide = math.prod(self.kind[1]) > MOST_COLUMNS
        column = self.column or ("values" if wide else None)
        schema = schema_of(*self.kind, column)
        return require_pyarrow().parquet.ParquetWriter(self.partial, schema)

    def describe(self, metadata: str) -> None:
        """Key-value metadata, and the footer."""
        self._writer.add_key_value_metadata({METADATA: metadata})
        self._writer.close()

    @staticmethod
    def read(path: Path) -> WindowTable:
        """The whole file."""
        with require_pyarrow().parquet.ParquetFile(path) as file:
            raw = (file.metadata.metadata or {}).get(METADATA.encode())
            return from_arrow(file.read(), json.loads(raw) if raw else None, str(path))


class CsvFile(TableFile):
    """A column for each number, with the shortest text that reads back as the same."""

    @staticmethod
    def schema(ndim: int, value_shape: Sequence[int], dtype: Any) -> Any:
        """Half floats are written as floats: text has no such type."""
        kind = np.dtype(np.float32) if dtype == np.float16 else dtype
        return schema_of(ndim, value_shape, kind)

    def open(self) -> Any:
        """A `pyarrow.csv.CSVWriter`."""
        schema = self.schema(*self.kind)
        writer = require_pyarrow().csv.CSVWriter(self.partial, schema)
        return _WithSchema(writer, schema)

    def describe(self, metadata: str) -> None:
        """The last line."""
        self._writer.close()
        with open(self.partial, "a", encoding="utf-8") as file:
            file.write(f"# {metadata}\n")

    @staticmethod
    def read(path: Path) -> WindowTable:
        """The whole file; one without its last line is not complete."""
        pa = require_pyarrow()
        body, _, last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
        metadata = json.loads(last[2:]) if last.startswith(b"# ") else None
        _, ndim, shape, dtype = described(metadata, str(path))
        schema = CsvFile.schema(ndim, shape, dtype)
        table = pa.csv.read_csv(
            pa.BufferReader(body + b"\n"),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=schema, include_columns=schema.names, null_values=[]
            ),
        )
        return from_arrow(table, metadata, str(path))


class _WithSchema:
    """A CSV writer that knows its schema, as the one of Parquet does."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self.schema = schema
        self.write_table, self.close = writer.write_table, writer.close


FORMATS: dict[str, type[TableFile]] = {"parquet": ParquetFile, "csv": CsvFile}


# -------------------------------------------------------------------- reading
def read_windows(path: PathLike | Iterable[PathLike]) -> WindowTable:
    """Read tables that a `StreamWriter` wrote.

    Parameters
    ----------
    path : path, or several
        A table (".parquet", ".csv"), or a folder of them or of folders of them. Several are put
        one below the other.

    Returns
    -------
    WindowTable
        Rows, values and image grids.

    Raises
    ------
    StoreError
        There is none, one cannot be read, or they differ in the shape of values.
    MissingExtraError
        pyarrow is not installed.
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
    found = (f for f in path.rglob("*") if f.suffix[1:] in FORMATS)
    return sorted(
        f
        for f in found
        if not any(part.startswith(".") for part in f.relative_to(path).parts)
        and not (f.name == "run.csv" and f.with_suffix(".json").exists())  # the report of a run
    )


def stored_facts(path: Path) -> dict[str, Any]:
    """What a Parquet file of windows says of itself."""
    pq = require_pyarrow().parquet
    try:
        raw = (pq.read_metadata(path).metadata or {}).get(METADATA.encode())
        facts: Any = json.loads(raw) if raw else None
    except Exception as error:
        raise _unreadable(path, error) from error
    described(facts, str(path))
    return dict(facts)


def _unreadable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path} cannot be read as a table of windows: {type(error).__name__}: {error}"
    )


def _read(path: Path) -> WindowTable:
    require_pyarrow()
    try:
        return FORMATS[path.suffix[1:]].read(path)
    except StoreError:
        raise
    except Exception as error:  # whatever damage does to a format
        raise _unreadable(path, error) from error
