"""Tables of windows as files: what writes Parquet, CSV and Zarr.

Every sink writes beside the final name, under ``.<name>.partial``, and renames when the
table is complete. What else a file holds beside its rows is `rows.describe`: key-value
metadata in Parquet, attributes in Zarr, a last line that begins with "# " in CSV.

Not covered: reading them (`daskdmed.tables.reading`), buffering
(`daskdmed.tables.writer`).
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed.core.errors import GeometryError, MissingExtraError, StoreError
from daskdmed.core.types import Array
from daskdmed.tables.rows import WindowTable, describe, row_columns
from daskdmed.tiling.imagegrid import ImageGrid

#: key of the metadata in Parquet and Zarr
METADATA = "daskdmed"
#: a result of more numbers than this is one list column of a Parquet file
MOST_COLUMNS = 256
#: columns in front of the values of a CSV file, the seed's; C, h, w are those of the result
CSV_COLUMNS = ("y", "x", "H", "W", "level", "kernel_size", "downsample", "C", "h", "w")


class Sink(ABC):
    """Writes one table.

    Parameters
    ----------
    path : Path
        Final name.
    like : WindowTable
        Any rows: gives axes, and shape and type of the values.
    group_rows : int
        Rows that come at a time, the last time excepted.
    several : bool
        Whether rows of several patients come.
    """

    def __init__(self, path: Path, like: WindowTable, group_rows: int, several: bool) -> None:
        self.path = path
        self.ndim, self.value_shape = like.ndim, like.value_shape
        self.dtype = like.values.dtype
        self.group_rows = group_rows
        self.several = several
        self.images: dict[tuple[str, str], ImageGrid] = {}
        self.partial = path.with_name(f".{path.name}.partial")
        _remove(self.partial)  # of a run that was killed

    @classmethod
    def check(cls) -> None:
        """Raise `MissingExtraError` when what writes this format is not installed."""
        return

    @abstractmethod
    def append(self, table: WindowTable) -> None:
        """Write rows behind those before."""

    @abstractmethod
    def complete(self, metadata: dict[str, Any]) -> None:
        """Write what the file says of itself, and close it."""

    def let_go(self) -> None:
        """Close without completing; for formats that keep a file open."""
        return

    def know(self, images: Iterable[ImageGrid]) -> None:
        """Take note of images whose rows may come."""
        for image in images:
            self.images.setdefault((image.patient, image.record), image)

    def finish(self) -> Path:
        """Complete the table and give it its final name."""
        self.complete(describe(self.images.values(), self.ndim, self.value_shape))
        if self.partial.is_file():
            with open(self.partial, "rb+") as file:
                os.fsync(file.fileno())
        if self.path.is_dir():
            # a folder cannot be renamed onto another: the old one goes when the new is complete
            old = _old(self.path)
            _remove(old)
            os.rename(self.path, old)
            os.rename(self.partial, self.path)
            _remove(old)
        else:
            os.replace(self.partial, self.path)
        return self.path

    def abort(self) -> None:
        """Remove what was written."""
        self.let_go()
        _remove(self.partial)


class ParquetSink(Sink):
    """One row group per append; text dictionary-encoded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._file: Any = None
        self._schema = self._make_schema()

    @classmethod
    def check(cls) -> None:
        """Parquet needs pyarrow."""
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                'Parquet tables need pyarrow; pip install "daskdmed[tables]", or use '
                'format="csv" or "zarr"'
            ) from error

    @property
    def _width(self) -> int:
        return math.prod(self.value_shape)

    def _make_schema(self) -> Any:
        import pyarrow as pa

        fields = []
        for name, kind in row_columns(self.ndim).items():
            text = kind == np.dtype(object)
            fields.append((name, pa.string() if text else pa.from_numpy_dtype(kind)))
        value = pa.from_numpy_dtype(self.dtype)
        if self._width > MOST_COLUMNS:
            fields.append(("values", pa.list_(value, self._width)))
        else:
            fields += [(f"value_{i}", value) for i in range(self._width)]
        return pa.schema(fields)

    def append(self, table: WindowTable) -> None:
        """One row group."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._file is None:
            self._file = pq.ParquetWriter(self.partial, self._schema)
        arrays = [
            pa.array(table.columns[name], type=self._schema.field(name).type)
            for name in row_columns(self.ndim)
        ]
        flat = np.ascontiguousarray(table.values.reshape(len(table), math.prod(self.value_shape)))
        if self._width > MOST_COLUMNS:
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), self._width))
        else:
            columns = np.ascontiguousarray(flat.T)
            arrays += [pa.array(columns[i]) for i in range(self._width)]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema), len(table) or 1)

    def complete(self, metadata: dict[str, Any]) -> None:
        """Key-value metadata, and the footer."""
        import pyarrow.parquet as pq

        if self._file is None:
            self._file = pq.ParquetWriter(self.partial, self._schema)
        self._file.add_key_value_metadata({METADATA: json.dumps(metadata)})
        file, self._file = self._file, None
        file.close()

    def let_go(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class CsvSink(Sink):
    """The seed's row for images (y, x): y, x in pixels of the level read, H, W of the image.

    One table for several patients has the columns patient and record in front. Two numbers,
    where the axes differ, are written as ``224x112``, along y first.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.ndim != 2 or len(self.value_shape) > 3:
            raise GeometryError(
                f"CSV rows are for images (y, x) and results of at most 3 axes (C, h, w); these "
                f'have {self.ndim} axes and results of shape {self.value_shape}: use "parquet"'
            )
        self._begun = False

    def append(self, table: WindowTable) -> None:
        """Rows, the header before the first."""
        with open(self.partial, "a" if self._begun else "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            if not self._begun:
                out.writerow(self._header())
                self._begun = True
            out.writerows(self._rows(table))

    def _header(self) -> list[str]:
        width = math.prod(self.value_shape)
        who = ["patient", "record"] if self.several else []
        return [*who, *CSV_COLUMNS, *(f"value_{i}" for i in range(width))]

    def _rows(self, table: WindowTable) -> list[list[Any]]:
        shape = (1,) * (3 - len(self.value_shape)) + self.value_shape
        if len(self.value_shape) == 1:  # a vector is one pixel with k channels
            shape = (*self.value_shape, 1, 1)
        flat = table.values.reshape(len(table), math.prod(self.value_shape))
        # the shortest text that reads back as the same number
        text = flat.astype(np.int8) if flat.dtype == np.bool_ else flat
        numbers = text.astype(str).tolist()
        column = table.columns
        rows = []
        for i in range(len(table)):
            who = [column["patient"][i], column["record"][i]] if self.several else []
            image = self.images.get((column["patient"][i], column["record"][i]))
            # the size of an image without a grid is not known
            size: Sequence[Any] = ("", "") if image is None else image.grid.shape
            rows.append(
                [
                    *who,
                    column["origin_y"][i],
                    column["origin_x"][i],
                    *size,
                    column["level"][i],
                    _pair(column["kernel_y"][i], column["kernel_x"][i]),
                    _pair(column["downsample_y"][i], column["downsample_x"][i]),
                    *shape,
                    *numbers[i],
                ]
            )
        return rows

    def complete(self, metadata: dict[str, Any]) -> None:
        """The last line."""
        if not self._begun:
            self.append(WindowTable.empty(2, self.value_shape, self.dtype))
        metadata = {**metadata, "dtype": self.dtype.str}
        with open(self.partial, "a", encoding="utf-8") as file:
            file.write(f"# {json.dumps(metadata)}\n")


class ZarrSink(Sink):
    """A group with one array per column and ``values`` (rows, *value_shape).

    Patient and record are numbers into the attribute "sources"; a chunk is a group of rows.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._group: Any = None
        self._rows = 0
        self._sources: dict[tuple[str, str], int] = {}

    def _open(self) -> Any:
        import zarr

        if self._group is None:
            self._group = zarr.open_group(self.partial, mode="w", zarr_format=3)
            for name, kind in self._kinds().items():
                self._group.create_array(
                    name, shape=(0,), chunks=(self.group_rows,), dtype=kind, fill_value=0
                )
            self._group.create_array(
                "values",
                shape=(0, *self.value_shape),
                chunks=(self.group_rows, *(max(n, 1) for n in self.value_shape)),
                dtype=self.dtype,
                fill_value=0,
            )
        return self._group

    def _kinds(self) -> dict[str, np.dtype[Any]]:
        kinds = row_columns(self.ndim)
        del kinds["patient"], kinds["record"]
        return {"source": np.dtype(np.int64), **kinds}

    def append(self, table: WindowTable) -> None:
        """Whole chunks, so that none is read again."""
        group = self._open()
        pairs = zip(table.columns["patient"], table.columns["record"], strict=True)
        numbers = [self._sources.setdefault(p, len(self._sources)) for p in pairs]
        stop = self._rows + len(table)
        for name in self._kinds():
            column: Array = np.array(numbers) if name == "source" else table.columns[name]
            group[name].resize((stop,))
            group[name][self._rows : stop] = column
        group["values"].resize((stop, *self.value_shape))
        group["values"][self._rows : stop] = table.values
        self._rows = stop

    def complete(self, metadata: dict[str, Any]) -> None:
        """Attributes."""
        group = self._open()
        group.attrs.update({METADATA: {**metadata, "sources": [list(s) for s in self._sources]}})


FORMATS: dict[str, type[Sink]] = {"parquet": ParquetSink, "csv": CsvSink, "zarr": ZarrSink}


def sink_for(format: str, path: Path, several: bool, *, like: WindowTable, group_rows: int) -> Sink:
    """The sink of a format."""
    return FORMATS[format](path, like, group_rows, several)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def recover(path: Path) -> None:
    """Put back a folder whose replacement was killed between its two renames."""
    old = _old(path)
    if old.exists() and not path.exists():
        os.rename(old, path)


def _pair(first: Any, second: Any) -> str:
    return str(first) if first == second else f"{first}x{second}"


def _remove(path: Path) -> None:
    """Delete a file or a folder that may be there."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be removed: {error}") from error
