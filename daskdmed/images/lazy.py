"""A view as a lazy Dask array.

One task per block, block edges on the storage tile grid, values instead of handles in the
graph, and a name that is the same wherever and whenever the same file is opened.

Not covered: reading (`daskdmed.core.view` and who derives from it).
"""

from __future__ import annotations

import math
import operator
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.delayed import delayed

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.view import SlideView

_Edges: TypeAlias = tuple[tuple[int, ...], ...]
#: default extent of a block: of volumes, and of planes
DEFAULT_CHUNKS = (256, 4096)
#: blocks of one array: a graph has a task for each
_MOST_BLOCKS = 2**26


def align_chunk(chunk: int, tile: int, extent: int) -> int:
    """Chunk extent on the grid of storage tiles: the largest multiple of `tile` that is at most
    `chunk` (4080 for 4096 and tiles of 240), one tile at least, and never more than the image."""
    if chunk == -1 or chunk >= extent:
        return max(1, extent)
    return max(1, min(extent, max(1, chunk // tile) * tile))


def to_dask(view: ImageView, chunks: Any = None) -> da.Array:
    """A view as a Dask array, spatial axes first, channels last; an array's view gives that array.

    `chunks` is the extent of a block along the spatial axes, rounded down to whole storage tiles,
    -1 for the whole axis; or every block's extent, as Dask has it. Default 4096 for planes and 256
    for volumes. Name and graph depend on the view's token and `chunks` only.
    """
    if isinstance(view, ArrayView):
        array: da.Array = view.array
        return array
    _require_graphs()
    edges = _edges(view, DEFAULT_CHUNKS[view.spatial_ndim == 2] if chunks is None else chunks)
    kind = "slide" if isinstance(view, SlideView) else "view"
    # what may hold more than numbers travels once per worker, and not once per block
    value = view if isinstance(view, SlideView) else delayed(view, name=view.token, traverse=False)
    return da.map_blocks(
        _read_block,
        chunks=(*edges, *((n,) for n in view.channel_shape)),
        dtype=view.dtype,
        meta=np.empty((0,) * len(view.shape), view.dtype),
        name=f"{kind}-{tokenize(f'daskdmed-{kind}', view.token, edges)}",
        view=value,
        edges=edges,
    )


def _read_block(view: ImageView, edges: _Edges, block_id: tuple[int, ...] = ()) -> Array:
    """One block; module level, so that the graph pickles small."""
    numbers = list(zip(edges, block_id, strict=False))
    origin = tuple(sum(axis[:i]) for axis, i in numbers)
    return view.read(Region(origin, tuple(axis[i] for axis, i in numbers)))


def _edges(view: ImageView, chunks: Any) -> _Edges:
    """Extents of the blocks along each spatial axis."""
    shape, ndim = view.spatial_shape, view.spatial_ndim
    if 0 in view.shape:
        raise GeometryError(f"{view.name}: the image has no pixels: {view.shape}")
    if isinstance(chunks, tuple) and chunks and isinstance(chunks[0], tuple):
        edges = tuple(tuple(int(n) for n in axis) for axis in chunks[:ndim])
        if tuple(sum(axis) for axis in edges) != shape:
            raise GeometryError(
                f"the chunks add up to {tuple(sum(a) for a in edges)}, the image has {shape}"
            )
        return edges
    try:
        numbers = [
            operator.index(c) for c in ((chunks,) * ndim if isinstance(chunks, int) else chunks)
        ]
    except TypeError:
        numbers = []
    if len(numbers) != ndim or not all(c > 0 or c == -1 for c in numbers):
        raise UsageError(
            f"chunks must be a positive number of pixels, {ndim} of them in array order, -1 for "
            f"the whole axis, or the chunks of a Dask array, got {chunks!r}"
        )
    sizes = (align_chunk(*axis) for axis in zip(numbers, view.tile_shape, shape, strict=True))
    axes = list(zip(shape, sizes, strict=True))
    if math.prod(-(-extent // n) for extent, n in axes) > _MOST_BLOCKS:
        raise GeometryError(
            f"{view.name}: an array of {shape} in blocks of {tuple(n for _, n in axes)} has more "
            f"than {_MOST_BLOCKS} of them; give larger chunks="
        )
    return tuple((n,) * (extent // n) + ((extent % n,) if extent % n else ()) for extent, n in axes)


def _require_graphs() -> None:
    enabled = getattr(da, "array_expr_enabled", None)
    if enabled is not None and enabled():
        raise UsageError(
            "Dask's array expressions are switched on (array.query-planning), which lack "
            "parts that slides need; set dask.config.set({'array.query-planning': False}) "
            "before dask.array is imported"
        )
