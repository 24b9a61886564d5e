"""Rows of windows as a map: every row in its cell, holes stay holes.

The map is the one that `daskdmed.heatmap` would have written: the same shape, place and
store. Not covered: reading tables (`daskdmed.tables.formats`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize
from zarr.abc.store import Store

from daskdmed.core.errors import GeometryError, StoreError, UsageError
from daskdmed.core.files import write_failure
from daskdmed.core.types import Array, PathLike
from daskdmed.store.location import Location
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.resumable import ResultSpec, lazy_result, open_result
from daskdmed.tables.formats import read_windows
from daskdmed.tables.rows import WindowTable, axes_of, row_columns
from daskdmed.tiling.grid import PerAxis, per_axis
from daskdmed.tiling.imagegrid import ImageGrid

if TYPE_CHECKING:
    import pandas as pd

#: cells per axis of a chunk
_BLOCK = 256
#: wrong rows that a message names
_SHOWN = 3


def windows_to_heatmap(
    table: WindowTable | PathLike | Iterable[PathLike] | pd.DataFrame,
    out: PathLike | Store | None = None,
    *,
    patient: str | None = None,
    record: str | None = None,
    image: ImageGrid | None = None,
    dtype: str = "float32",
    block_windows: PerAxis | None = None,
    overwrite: bool = False,
) -> da.Array:
    """Make the heatmap of an image from rows of its windows.

    Rows may be in any order, and any subset of the windows: cells without a row are NaN.

    Parameters
    ----------
    table : WindowTable, path, several paths, or pandas.DataFrame
        What a `StreamWriter` wrote (".parquet", ".csv", or a folder of them), or
        rows in memory with the columns of `daskdmed.tables.rows`. A data frame does
        not know the grid and needs `image`.
    out, overwrite
        As for `daskdmed.heatmap`.
    patient, record : str, optional
        Which image of the table, when it has several.
    image : ImageGrid, optional
        Its grid, when the table does not know it.
    dtype : {"float32", "float64"}
        Of the map.
    block_windows : int or sequence of int, optional
        Cells per chunk, default 256 per axis.

    Returns
    -------
    dask.array.Array
        Lazy: (rows, columns) for one plain value per row, (k, rows, columns) for k; results
        of more axes are channels in C order.

    Raises
    ------
    GeometryError
        A window has two rows, lies outside its grid or elsewhere than its grid says, or
        belongs to no grid.
    UsageError
        Several images fit, or none; or `table` is no table.
    StoreError
        `out` holds something already or cannot be written, or a file is no table.

    Examples
    --------
    >>> daskdmed.tables.windows_to_heatmap("patient-1.parquet", "map.zarr")  # doctest: +SKIP
    """
    if dtype not in ("float32", "float64"):
        raise UsageError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    rows = _table(table)
    image = rows.image(patient, record) if image is None else image
    rows = rows.select(image.patient, image.record)
    indices = checked_indices(rows, image)
    if rows.values.dtype.kind not in "uifb":
        raise UsageError(f"values of type {rows.values.dtype} make no map; they must be numbers")
    outputs = int(np.prod(rows.value_shape, dtype=int)) if rows.value_shape else 0
    values = rows.values.reshape(len(rows), outputs or 1)
    spec = _spec(image, outputs, dtype, block_windows, tokenize(indices, values))
    location = Location.of(zarr.storage.MemoryStore() if out is None else out).writable()
    store, place = open_result(location, spec, resume=False, overwrite=overwrite)
    try:
        for index, picked in _by_block(indices, spec.block_windows):
            store.array[_slices(index, spec)] = _cells(index, spec, indices[picked], values[picked])
        for index in list(store.pending()):
            store.mark(index)
        store.flush()
        if place != location:
            location.replace(place)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise write_failure(
            location, error, "the table is unchanged: call again with overwrite=True"
        ) from error
    return lazy_result(location, spec)


def checked_indices(rows: WindowTable, image: ImageGrid) -> Array:
    """Cell of each row, (rows, axes), once all rows are found to fit the grid."""
    grid = image.grid
    if rows.ndim != grid.ndim:
        raise GeometryError(f"rows over {rows.ndim} axes, a grid over {grid.ndim}")
    indices = np.asarray(rows.indices, np.int64).reshape(len(rows), grid.ndim)
    counts = np.asarray(grid.counts)
    _refuse(
        ((indices < 0) | (indices >= counts)).any(axis=1),
        indices,
        f"lie outside the grid of {grid.counts} windows; crops without a grid make no map",
    )
    expected = WindowTable.of_grid(image, indices, rows.values).columns
    for name in axes_of(grid.ndim):
        for column in (f"origin_{name}", f"kernel_{name}", f"stride_{name}"):
            _refuse(
                np.not_equal(rows.columns[column], expected[column]),
                indices,
                f"do not fit their grid: {column} is not that of {image.patient}/{image.record}",
            )
    flat = np.ravel_multi_index(tuple(indices.T), grid.counts) if len(rows) else np.empty(0, int)
    _, first, number = np.unique(flat, return_index=True, return_counts=True)
    if (number > 1).any():
        twice = [tuple(indices[i].tolist()) for i in first[number > 1][:_SHOWN]]
        raise GeometryError(
            f"{int((number > 1).sum())} windows have several rows, for example {twice}; a map "
            "has one value per window: drop or merge the duplicates first"
        )
    return indices


def _refuse(wrong: Any, indices: Array, why: str) -> None:
    if wrong.any():
        shown = [tuple(indices[i].tolist()) for i in np.nonzero(wrong)[0][:_SHOWN]]
        raise GeometryError(f"{int(wrong.sum())} windows, for example {shown}, {why}")


def _table(table: Any) -> WindowTable:
    if isinstance(table, WindowTable):
        return table
    if hasattr(table, "columns") and hasattr(table, "to_numpy"):
        return _from_pandas(table)
    if isinstance(table, (str, os.PathLike, Sequence)):
        return read_windows(table)
    raise UsageError(
        f"a table of windows is a WindowTable, a path or a data frame, got {type(table).__name__}"
    )


def _from_pandas(frame: pd.DataFrame) -> WindowTable:
    ndim = sum(f"index_{a}" in frame.columns for a in axes_of(4))
    wanted = row_columns(ndim) if ndim else {}
    missing = [name for name in wanted if name not in frame.columns]
    values = sorted(
        (c for c in map(str, frame.columns) if c.startswith("value_")),
        key=lambda c: int(c.removeprefix("value_")),
    )
    if not ndim or missing or not values:
        raise UsageError(
            f"this data frame is no table of windows: it lacks {missing or 'index_y, index_x'}"
            f"{'' if values else ', value_0'}"
        )
    columns: Mapping[str, Array] = {
        name: frame[name].to_numpy().astype(kind) for name, kind in wanted.items()
    }
    results = frame[values].to_numpy()
    return WindowTable(columns, results[:, 0] if len(values) == 1 else results)


def _spec(
    image: ImageGrid, outputs: int, dtype: str, block_windows: PerAxis | None, content: str
) -> ResultSpec:
    grid = image.grid
    wanted = per_axis(
        _BLOCK if block_windows is None else block_windows, grid.ndim, "block_windows"
    )
    if min(wanted) < 1:
        raise GeometryError(f"block_windows must be at least 1, got {wanted}")
    block = tuple(min(b, max(n, 1)) for b, n in zip(wanted, grid.counts, strict=True))
    place = Georeference(
        grid.kernel_size, grid.stride, tuple(image.downsample), image.mpp, image.spacing
    )
    parameters = {
        "image": image.source or f"{image.patient}/{image.record}",
        "shape": grid.shape,
        "resolution": "table" if image.level is None else f"level={image.level}",
        "kernel_size": grid.kernel_size,
        "stride": grid.stride,
        "edge": grid.edge,
        "rows": content,
        "block_windows": block,
        "outputs": outputs,
    }
    name = image.source or f"{image.patient}/{image.record}"
    return ResultSpec("heatmap", grid.counts, outputs, block, place, name, parameters, dtype=dtype)


def _by_block(indices: Array, block: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Blocks that have rows, each with the numbers of its rows."""
    if not len(indices):
        return
    blocks, owner = np.unique(indices // np.asarray(block), axis=0, return_inverse=True)
    order = np.argsort(owner.ravel(), kind="stable")
    edges = np.searchsorted(owner.ravel()[order], np.arange(len(blocks) + 1))
    for i, index in enumerate(blocks.tolist()):
        yield tuple(index), order[edges[i] : edges[i + 1]]


def _slices(index: tuple[int, ...], spec: ResultSpec) -> tuple[slice, ...]:
    lead = (slice(None),) if spec.outputs else ()
    space = (
        slice(i * b, min((i + 1) * b, n))
        for i, b, n in zip(index, spec.block_windows, spec.counts, strict=True)
    )
    return (*lead, *space)


def _cells(index: tuple[int, ...], spec: ResultSpec, indices: Array, values: Array) -> Array:
    """One block, NaN where there is no row."""
    shape = tuple(s.stop - s.start for s in _slices(index, spec)[-len(index) :])
    block = np.full((*shape, max(spec.outputs, 1)), np.nan, spec.dtype)
    first = np.asarray(index) * np.asarray(spec.block_windows)
    block[tuple((indices - first).T)] = values
    return np.moveaxis(block, -1, 0) if spec.outputs else block[..., 0]
