"""Sums of per-chunk counts over pairs of arrays, without holding more than a few chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import dask.array as da
import numpy as np

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array

#: what metrics take
AnyArray: TypeAlias = Any
#: chunks of arrays that have none, per axis
_CHUNK = {1: 2**22, 2: 2048, 3: 160}


def as_dask(array: AnyArray) -> da.Array:
    """A Dask array over what the user has; UsageError where it is no array."""
    if isinstance(array, da.Array):
        if any(np.isnan(n) for n in array.shape):
            raise UsageError(
                f"array {array.name!r} has unknown chunk sizes; call compute_chunk_sizes() first"
            )
        return array
    if type(array).__module__.startswith("zarr."):
        return da.from_array(array, chunks=array.chunks, lock=False)
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise UsageError(f"metrics take Dask, NumPy or Zarr arrays, got {type(array).__name__}")
    values = np.asarray(array)
    chunk = _CHUNK.get(values.ndim, 64)
    return da.from_array(values, chunks=chunk, name=False)


def paired(y_true: AnyArray, y_pred: AnyArray, mask: AnyArray | None) -> list[da.Array]:
    """Truth, prediction and (if given) mask with the chunks of the prediction, of one shape."""
    true, predicted = as_dask(y_true), as_dask(y_pred)
    arrays = [true, predicted] if mask is None else [true, predicted, as_dask(mask)]
    shapes = [a.shape for a in arrays]
    if len(set(shapes)) > 1:
        raise GeometryError(
            f"shapes differ: y_true {shapes[0]}, y_pred {shapes[1]}"
            + (f", mask {shapes[2]}" if mask is not None else "")
            + "; bring them to one resolution first"
        )
    if 0 in true.shape or not true.ndim:
        raise GeometryError(f"an array of shape {true.shape} has nothing to count")
    return [a.rechunk(predicted.chunks) for a in arrays]


def summed(
    count: Callable[..., Array], arrays: Sequence[da.Array], length: int, dtype: np.dtype[Any]
) -> Array:
    """Sum over all chunks of what `count` gives for them, (length,)."""
    ndim = arrays[0].ndim

    def one(*chunks: Array) -> Array:
        return np.asarray(count(*chunks), dtype).reshape(*(1,) * ndim, length)

    counts = da.map_blocks(
        one,
        *arrays,
        chunks=(*((1,) * n for n in arrays[0].numblocks), (length,)),
        new_axis=ndim,
        dtype=dtype,
        meta=np.empty((0,) * (ndim + 1), dtype),
    )
    # added up in a tree, so that few of them wait at any time
    return np.asarray(counts.sum(axis=tuple(range(ndim)), dtype=dtype).compute())
