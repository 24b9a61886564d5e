"""Pieces of a stream as rows of a table.

Not covered: files (`daskdmed.tables.formats`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array
from daskdmed.loading.chunks import SmallChunk
from daskdmed.tables.rows import WindowTable, axes_of, extent_column
from daskdmed.tiling.imagegrid import ImageGrid

if TYPE_CHECKING:
    from daskdmed.tables.collector import ProcessedPiece


def tabulate(
    pieces: Iterable[ProcessedPiece], *, by_patient: bool = True
) -> dict[str, WindowTable]:
    """Rows of some pieces."""
    groups: dict[str, list[ProcessedPiece]] = {}
    for piece in pieces:
        key = str(piece.source_smallchunk.patient.id) if by_patient else ""
        groups.setdefault(key, []).append(piece)
    return {key: _table(group) for key, group in groups.items()}


def _table(pieces: list[ProcessedPiece]) -> WindowTable:
    chunks = [p.source_smallchunk for p in pieces]
    values = _values(pieces)
    ndim = len(chunks[0].origin)
    axes = axes_of(ndim)
    n = len(chunks)
    grids: list[ImageGrid | None] = [getattr(c, "image", None) for c in chunks]
    images = tuple({id(g): g for g in grids if g is not None}.values())
    origins = _whole([c.origin for c in chunks], n, ndim)
    places = _whole([c.location[::-1] for c in chunks], n, ndim)
    indices = _whole(
        [(-1,) * ndim if g is None else c.index for c, g in zip(chunks, grids, strict=True)],  # type: ignore[attr-defined]
        n,
        ndim,
    )
    kernels = _whole([p.size for p in pieces], n, ndim)
    strides = _whole([(0,) * ndim if g is None else g.grid.stride for g in grids], n, ndim)
    extents = kernels.copy()
    for row, grid in enumerate(grids):
        if grid is not None:
            extents[row] = np.minimum(kernels[row], np.array(grid.grid.shape) - origins[row])
    downsample = np.array([c.bigchunk.downsample for c in chunks], np.float64).reshape(n, ndim)
    mpp = np.array([_mpp(c) for c in chunks], np.float64).reshape(n, 2)
    columns: dict[str, Array] = {
        "patient": _text(str(c.patient.id) for c in chunks),
        "record": _text(c.record for c in chunks),
    }
    columns |= {f"index_{a}": indices[:, i] for i, a in enumerate(axes)}
    columns |= {a: places[:, i] for i, a in enumerate(axes)}
    columns |= {f"origin_{a}": origins[:, i] for i, a in enumerate(axes)}
    columns |= {extent_column(a): extents[:, i] for i, a in enumerate(axes)}
    columns["level"] = np.array([-1 if c.level is None else c.level for c in chunks], np.int64)
    columns |= {f"mpp_{a}": mpp[:, -1 if a == "x" else 0] for a in axes[-2:]}
    columns |= {f"downsample_{a}": downsample[:, i] for i, a in enumerate(axes)}
    columns |= {f"kernel_{a}": kernels[:, i] for i, a in enumerate(axes)}
    columns |= {f"stride_{a}": strides[:, i] for i, a in enumerate(axes)}
    return WindowTable(columns, values, images)


def _whole(rows: list[Any], n: int, ndim: int) -> Array:
    return np.array(rows, np.int64).reshape(n, ndim)


def _text(values: Iterable[str]) -> Array:
    return np.array(list(values), dtype=object)


def _mpp(chunk: SmallChunk) -> tuple[float, float]:
    """(y, x), NaN when unknown."""
    return (np.nan, np.nan) if chunk.mpp is None else (chunk.mpp[1], chunk.mpp[0])


def _values(pieces: list[ProcessedPiece]) -> Array:
    arrays = [_number(p) for p in pieces]
    first = arrays[0]
    for piece, array in zip(pieces, arrays, strict=True):
        if array.shape != first.shape or array.dtype != first.dtype:
            chunk = piece.source_smallchunk
            raise UsageError(
                f"results of one stream must agree: the first is {first.dtype} of shape "
                f"{first.shape}, that at {chunk.location} of patient {chunk.patient.id!r} is "
                f"{array.dtype} of shape {array.shape}"
            )
    return np.stack(arrays)


def _number(piece: ProcessedPiece) -> Array:
    data = piece.data
    if hasattr(data, "detach"):
        data = data.detach().cpu().numpy()
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:
        raise UsageError(f"a result cannot be written as numbers: {error}") from error
    if array.dtype.kind not in "biuf" or 0 in array.shape:
        chunk = piece.source_smallchunk
        raise UsageError(
            f"results on disk are numbers, bool or integer or float; that at {chunk.location} "
            f"of patient {chunk.patient.id!r} is {array.dtype} of shape {array.shape}"
        )
    return array
