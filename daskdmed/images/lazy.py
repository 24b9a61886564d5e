"""A view as a lazy Dask array.

One task per block, block edges on the storage tile grid, values instead of handles in the
graph, and a name that is the same wherever and whenever the same file is opened.

Not covered: reading (`daskdmed.images.view`).
"""

from __future__ import annotations

import operator
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.view import SlideView


def align_chunk(chunk: int, tile: int, extent: int) -> int:
    """Chunk extent that lies on the grid of storage tiles.

    Parameters
    ----------
    chunk : int
        Extent asked for, in pixels; -1 for the whole axis.
    tile : int
        Storage tile along the axis.
    extent : int
        Extent of the image.

    Returns
    -------
    int
        The largest multiple of `tile` that is at most `chunk` (4080 for 4096 and tiles of
        240), one tile at least, and never more than the image.
    """
    if chunk == -1 or chunk >= extent:
        return max(1, extent)
    return max(1, min(extent, max(1, chunk // tile) * tile))


def to_dask(view: SlideView, chunks: int | tuple[int, int] = 4096) -> da.Array:
    """The view as a Dask array (y, x, c).

    Parameters
    ----------
    view : SlideView
        Level or resampled view.
    chunks : int or (int, int)
        Extent of a block along (y, x), rounded down to whole storage tiles; -1 for all.

    Returns
    -------
    dask.array.Array
        Name and graph depend on the file, its fingerprint, the resolution and `chunks` only.

    Raises
    ------
    UsageError
        `chunks` is wrong, or Dask's array expressions are switched on.
    """
    _require_graphs()
    sizes = _chunk_sizes(view, chunks)
    edges = tuple(
        _regular(extent, size) for extent, size in zip(view.shape[:2], sizes, strict=True)
    )
    name = f"slide-{tokenize('daskdmed-slide', view.token, sizes)}"
    return da.map_blocks(
        _read_block,
        chunks=(*edges, (view.shape[2],)),
        dtype=view.dtype,
        meta=np.empty((0, 0, 0), view.dtype),
        name=name,
        view=view,
        sizes=sizes,
    )


def _read_block(view: SlideView, sizes: tuple[int, int], block_id: Any = None) -> Array:
    """One block; module level, so that the graph pickles small."""
    origin = (block_id[0] * sizes[0], block_id[1] * sizes[1])
    shape = tuple(
        min(size, extent - o) for size, extent, o in zip(sizes, view.shape, origin, strict=False)
    )
    return view.read(Region(origin, shape))


def _chunk_sizes(view: SlideView, chunks: int | tuple[int, int]) -> tuple[int, int]:
    try:
        pair = (chunks, chunks) if isinstance(chunks, int) else tuple(chunks)
        numbers = [operator.index(c) for c in pair]
    except TypeError:
        numbers = []
    if len(numbers) != 2 or not all(c > 0 or c == -1 for c in numbers):
        raise UsageError(
            f"chunks must be a positive number of pixels, two of them (y, x), or -1, got {chunks!r}"
        )
    if 0 in view.shape:
        raise GeometryError(f"{view.uri}: the image has no pixels: {view.shape}")
    height, width = (
        align_chunk(c, tile, extent)
        for c, tile, extent in zip(numbers, view.tile_shape, view.shape, strict=False)
    )
    return height, width


def _regular(extent: int, size: int) -> tuple[int, ...]:
    whole, rest = divmod(extent, size)
    return (size,) * whole + ((rest,) if rest else ())


def _require_graphs() -> None:
    enabled = getattr(da, "array_expr_enabled", None)
    if enabled is not None and enabled():
        raise UsageError(
            "Dask's array expressions are switched on (array.query-planning), which lack "
            "parts that slides need; set dask.config.set({'array.query-planning': False}) "
            "before dask.array is imported"
        )
