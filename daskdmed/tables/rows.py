"""The rows of a table of windows: one row per window, whatever the file format.

Columns, for images with the axes (y, x); volumes have z in front, everywhere:

========================== ======= ==========================================================
patient, record            str     whose image
index_y, index_x           int64   number of the window along each axis of its grid, -1 for a
                                   crop that belongs to no grid
y, x                       int64   first pixel in the level-0 frame, rounded
origin_y, origin_x         int64   first pixel at the resolution that was read
height, width              int64   the part of the window inside the image, in pixels at the
                                   resolution that was read (depth for z)
level                      int64   level that was read, -1 when mpp or power was asked for
mpp_y, mpp_x               float64 micrometers per pixel, NaN when unknown
downsample_y, downsample_x float64 level-0 pixels per pixel
kernel_y, kernel_x         int64   the whole window, at the resolution that was read
stride_y, stride_x         int64   distance between windows, 0 without a grid
value_0 ... value_{k-1}    any     results, in C order of `value_shape`
========================== ======= ==========================================================

Beside the rows a table knows the grid of every image in it (`ImageGrid`), so that a map can
be made of the rows with its holes where they belong.

Not covered: files (`daskdmed.tables.formats`), and making maps of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import GeometryError, MissingExtraError, StoreError, UsageError
from daskdmed.core.types import Array
from daskdmed.tiling.imagegrid import ImageGrid

if TYPE_CHECKING:
    import pandas as pd

#: names of the last axes of an image
AXES = ("t", "z", "y", "x")
_EXTENTS = {"t": "length", "z": "depth", "y": "height", "x": "width"}
#: what a file says of itself
FORMAT, VERSION = "daskdmed-windows", 1


def axes_of(ndim: int) -> tuple[str, ...]:
    """Names of the spatial axes, array order."""
    if not 1 <= ndim <= len(AXES):
        raise GeometryError(f"tables of windows have 1 to {len(AXES)} spatial axes, got {ndim}")
    return AXES[-ndim:]


def row_columns(ndim: int) -> dict[str, np.dtype[Any]]:
    """Columns in front of the values, in order, with their types (object for text)."""
    axes = axes_of(ndim)
    text, whole, real = np.dtype(object), np.dtype(np.int64), np.dtype(np.float64)
    columns = {"patient": text, "record": text}
    columns |= {f"index_{a}": whole for a in axes}
    columns |= dict.fromkeys(axes, whole)
    columns |= {f"origin_{a}": whole for a in axes}
    columns |= {_EXTENTS[a]: whole for a in axes}
    columns |= {"level": whole}
    columns |= {f"mpp_{a}": real for a in axes[-2:]}
    columns |= {f"downsample_{a}": real for a in axes}
    columns |= {f"kernel_{a}": whole for a in axes}
    columns |= {f"stride_{a}": whole for a in axes}
    return columns


def extent_column(axis: str) -> str:
    """Name of the column with a window's extent along an axis: "height" for "y"."""
    return _EXTENTS[axis]


@dataclass(frozen=True, eq=False)
class WindowTable:
    """Rows in memory: what a file holds, or a part of it.

    Parameters
    ----------
    columns : mapping of str to ndarray
        The columns of `row_columns`, one element per row.
    values : ndarray, shape (rows, *value_shape)
        Results; ``(rows,)`` for one plain value per window.
    images : tuple of ImageGrid
        One for each image that has windows of a grid in the table, possibly none of whose
        windows were kept.
    """

    columns: Mapping[str, Array]
    values: Array
    images: tuple[ImageGrid, ...] = field(default=())

    def __post_init__(self) -> None:
        wanted = row_columns(self.ndim or 2)
        missing = [name for name in wanted if name not in self.columns]
        lengths = {name: len(column) for name, column in self.columns.items()}
        if missing or set(lengths.values()) - {len(self.values)}:
            raise StoreError(
                f"this is no table of windows: columns {missing or 'none'} are missing, "
                f"{len(self.values)} rows of values, lengths {lengths}"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return sum(f"index_{a}" in self.columns for a in AXES)

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Shape of one window's result; () for a plain value."""
        return tuple(self.values.shape[1:])

    @property
    def indices(self) -> Array:
        """(rows, axes) int64: number of each window along each axis of its grid."""
        return np.stack([self.columns[f"index_{a}"] for a in axes_of(self.ndim)], axis=-1)

    def image(self, patient: str | None = None, record: str | None = None) -> ImageGrid:
        """The only image of the table, or the one named.

        Raises
        ------
        UsageError
            None fits, or several do; lists them.
        """
        found = [
            i for i in self.images if patient in (None, i.patient) and record in (None, i.record)
        ]
        if len(found) != 1:
            there = ", ".join(f"{i.patient}/{i.record}" for i in self.images[:10]) or "none"
            raise UsageError(
                f"{len(found)} images of this table fit patient={patient!r}, record={record!r} "
                f"(it has: {there}); name one with patient= and record="
            )
        return found[0]

    def select(self, patient: str | None = None, record: str | None = None) -> WindowTable:
        """The rows and the images of one patient, or one record."""
        rows = np.ones(len(self), bool)
        for name, wanted in (("patient", patient), ("record", record)):
            if wanted is not None:
                rows &= self.columns[name] == wanted
        images = tuple(
            i for i in self.images if patient in (None, i.patient) and record in (None, i.record)
        )
        picked = {name: column[rows] for name, column in self.columns.items()}
        return WindowTable(picked, self.values[rows], images)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with the columns of the module's table, values flat.

        Raises
        ------
        MissingExtraError
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError('pip install "daskdmed[tables]" for data frames') from error
        flat = self.values.reshape(len(self), math.prod(self.value_shape))
        values = {f"value_{i}": flat[:, i] for i in range(flat.shape[1])}
        return pd.DataFrame({**self.columns, **values})

    @classmethod
    def empty(
        cls, ndim: int = 2, value_shape: Sequence[int] = (), dtype: Any = np.float32
    ) -> WindowTable:
        """A table without rows."""
        columns = {name: np.empty(0, kind) for name, kind in row_columns(ndim).items()}
        return cls(columns, np.empty((0, *value_shape), dtype))

    @classmethod
    def of_grid(cls, image: ImageGrid, indices: Array, values: Array) -> WindowTable:
        """Rows of windows of an image, by their number along each axis, (rows, axes)."""
        grid, axes, n = image.grid, axes_of(image.grid.ndim), len(indices)
        columns: dict[str, Array] = {
            "patient": np.full(n, image.patient, object),
            "record": np.full(n, image.record, object),
            "level": np.full(n, -1 if image.level is None else image.level, np.int64),
        }
        mpp = (np.nan, np.nan) if image.mpp is None else image.mpp
        for axis, name in enumerate(axes):
            at = np.array([grid.axis_origin(axis, i) for i in range(grid.counts[axis])], np.int64)
            origin = at[indices[:, axis]]
            kernel, downsample = grid.kernel_size[axis], image.downsample[axis]
            columns |= {
                f"index_{name}": indices[:, axis].astype(np.int64),
                name: np.rint(origin * downsample).astype(np.int64),
                f"origin_{name}": origin,
                _EXTENTS[name]: np.minimum(kernel, grid.shape[axis] - origin),
                f"downsample_{name}": np.full(n, downsample, np.float64),
                f"kernel_{name}": np.full(n, kernel, np.int64),
                f"stride_{name}": np.full(n, grid.stride[axis], np.int64),
            }
            if name in axes[-2:]:
                columns[f"mpp_{name}"] = np.full(n, mpp[0 if name == "x" else 1], np.float64)
        return cls({name: columns[name] for name in row_columns(grid.ndim)}, values, (image,))

    @classmethod
    def concatenate(cls, tables: Sequence[WindowTable]) -> WindowTable:
        """Tables one below the other; images that occur twice are kept once.

        Raises
        ------
        StoreError
            There are none, or they differ in axes or in the shape of values.
        """
        shapes = {(t.ndim, t.value_shape) for t in tables}
        if len(shapes) != 1:
            raise StoreError(f"tables of {len(shapes)} kinds (axes, value shape): {sorted(shapes)}")
        first = tables[0]
        columns = {n: np.concatenate([t.columns[n] for t in tables]) for n in first.columns}
        images = tuple(dict.fromkeys(i for t in tables for i in t.images))
        return cls(columns, np.concatenate([t.values for t in tables]), images)


def describe(
    images: Iterable[ImageGrid], ndim: int, value_shape: Sequence[int], dtype: Any
) -> dict[str, Any]:
    """What a file says of itself beside its rows: plain values for JSON."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "axes": list(axes_of(ndim)),
        "value_shape": [int(n) for n in value_shape],
        "dtype": np.dtype(dtype).str,
        "images": [image.to_json() for image in images],
    }


def described(
    plain: Any, where: str
) -> tuple[tuple[ImageGrid, ...], int, tuple[int, ...], np.dtype[Any]]:
    """Back from `describe`: images, number of axes, shape and type of values."""
    if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
        raise StoreError(f"{where} is no table of windows: it does not say what is in it")
    if plain.get("version") != VERSION:
        raise StoreError(
            f"{where} is a table of version {plain.get('version')!r}, this library reads {VERSION}"
        )
    images = tuple(ImageGrid.from_json(i) for i in plain["images"])
    shape = tuple(int(n) for n in plain["value_shape"])
    return images, len(plain["axes"]), shape, np.dtype(plain["dtype"])
