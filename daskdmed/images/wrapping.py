"""Arrays of any library as lazy Dask arrays, under names that are the same in every process.

Not covered: what is an image of which shape (`daskdmed.images.arrayview`).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from daskdmed.core.errors import DatasetError

#: a wrapped Zarr or HDF5 array gets Dask chunks of about this size, whole storage chunks each
_CHUNK_BYTES = 4 * 2**20


def as_dask(array: Any, spatial_ndim: int | None) -> Any:
    """A lazy Dask array with a deterministic name over a Dask, NumPy, Zarr or h5py array, spatial
    axes first; `spatial_ndim` says how many these are, when it is known."""
    import dask.array as da

    if isinstance(array, da.Array):
        lazy = array
    elif isinstance(array, np.ndarray):
        lazy = da.from_array(array, chunks=_numpy_chunks(array, spatial_ndim))
    elif type(array).__module__.split(".")[0] == "zarr" and hasattr(array, "chunks"):
        store = str(array.store_path)
        # a memory store's address is its own process's: only its content can name it elsewhere
        memory = store.startswith("memory:")
        named = array if memory else (store, array.metadata.to_dict())
        lazy = _stored(array, array, "zarr", named)
    elif type(array).__module__.split(".")[0] == "h5py" and hasattr(array, "chunks"):
        values = _HDF5(os.path.realpath(array.file.filename), array.name, array)
        lazy = _stored(values, array, "hdf5", values.facts)
    else:
        raise DatasetError(
            f"array= takes a Dask, NumPy, Zarr or h5py array, got {type(array).__module__}."
            f"{type(array).__name__}; wrap others with dask.array.from_array(x, name=...)"
        )
    if lazy.ndim < 2 or (spatial_ndim and not spatial_ndim <= lazy.ndim <= spatial_ndim + 1):
        raise DatasetError(
            f"an array of shape {lazy.shape} cannot be an image"
            + (f" with spatial_ndim={spatial_ndim}" if spatial_ndim else "")
            + "; spatial axes come first, (y, x[, c]) or (z, y, x[, c])"
        )
    return lazy


def _numpy_chunks(array: np.ndarray[Any, Any], spatial_ndim: int | None) -> tuple[int, ...]:
    """Pieces small enough that a task carries little more than the pixels it needs."""
    guess = array.ndim - (1 if array.ndim > 2 and array.shape[-1] <= 4 else 0)
    axes = spatial_ndim or guess
    edge = 1024 if axes <= 2 else 128
    return tuple(max(1, min(n, edge) if i < axes else n) for i, n in enumerate(array.shape))


def _stored(values: Any, array: Any, kind: str, named: Any) -> Any:
    """Over an array that is stored in chunks."""
    import dask.array as da
    from dask.base import tokenize

    chunks = da.core.normalize_chunks(
        "auto", array.shape, limit=_CHUNK_BYTES, dtype=array.dtype, previous_chunks=array.chunks
    )
    name = f"{kind}-{tokenize('record', named)}"
    return da.from_array(values, chunks=chunks, name=name, inline_array=True)


class _HDF5:
    """A dataset of an HDF5 file by its name, so that no handle travels."""

    def __init__(self, path: str, name: str, like: Any) -> None:
        self.path, self.name = path, name
        self.shape, self.dtype, self.ndim = like.shape, like.dtype, like.ndim
        found = os.stat(path)
        #: what names the content: the file as it is now, and the dataset
        self.facts = (path, found.st_size, found.st_mtime_ns, name, like.shape, like.dtype.str)

    def __getitem__(self, index: Any) -> Any:
        from daskdmed.images.volumes.hdf5 import open_unlocked

        with open_unlocked(self.path) as file:
            return file[self.name][index]
