"""Exact outlines of masks: polygons along the borders of pixels.

Every border between pixels of different values becomes a straight line, lines end wherever
others meet them, and the faces between lines are the regions (shapely's ``polygonize``). The
polygons are valid by construction, also where a region touches itself at a corner.

Not covered: smooth contours; simplify the geometries with shapely where that is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.annotations.shapes import require_shapely
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array


def outlines(
    mask: npt.ArrayLike,
    scale: float | tuple[float, float],
    labels: str | Mapping[int, str] | Sequence[str],
    origin: tuple[float, float],
) -> Iterator[tuple[Any, str]]:
    """Polygons of a mask with their labels, see ``Annotations.from_mask``."""
    values = np.asarray(mask)
    if values.ndim != 2 or 0 in values.shape:
        raise GeometryError(f"a mask is (rows, columns) with pixels, got shape {values.shape}")
    if values.dtype.kind not in "iub":
        raise UsageError(f"a mask is of bool or integers, got {values.dtype}; compare it first")
    pair = np.broadcast_to(np.asarray(scale, float), 2)
    if not (np.isfinite(pair).all() and (pair > 0).all()):
        raise GeometryError(f"scale is one or two positive numbers, got {scale!r}")
    names = _names(values, labels)
    kept = values if values.dtype.kind == "b" else np.where(np.isin(values, list(names)), values, 0)
    shapely = require_shapely()
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(_borders(kept))))
    inner = shapely.get_coordinates(shapely.point_on_surface(faces))
    columns, rows = np.floor(inner).astype(np.intp).T
    found = kept[rows, columns]
    faces, found = faces[found != 0], found[found != 0]
    first = shapely.bounds(faces).reshape(-1, 4)
    order = np.lexsort((first[:, 0], first[:, 1]))
    factor = np.array([pair[1], pair[0]])
    placed = shapely.transform(faces[order], lambda xy: xy * factor + np.asarray(origin))
    for polygon, value in zip(placed, found[order].tolist(), strict=True):
        yield polygon, names[int(value)]


def _names(values: Array, labels: Any) -> dict[int, str]:
    """Value to label."""
    if isinstance(labels, str):
        if values.dtype.kind != "b" and values.max() > 1:
            raise UsageError(
                f"the one label {labels!r} fits a mask of 0 and 1, this one has values up to "
                f"{values.max()}; give labels={{1: 'tumour', 2: 'stroma'}}, or compare first"
            )
        return {1: labels}
    if isinstance(labels, Mapping):
        names = {int(value): str(label) for value, label in labels.items()}
    else:
        names = dict(enumerate(map(str, labels), start=1))
    if not names or 0 in names:
        raise UsageError(f"labels= names values from 1 (0 is the background), got {labels!r}")
    return names


def _borders(values: Array) -> npt.NDArray[np.float64]:
    """(n, 2, 2) straight borders between pixels of different values, in (x, y)."""
    padded = np.pad(values, 1)
    across = padded[:-1, 1:-1] != padded[1:, 1:-1]  # between rows: (h + 1, w)
    along = padded[1:-1, :-1] != padded[1:-1, 1:]  # between columns: (h, w + 1)
    horizontal = _runs(across, along)
    vertical = _runs(along.T, across.T)[:, :, ::-1]
    return np.concatenate([horizontal, vertical]).astype(np.float64)


def _runs(edges: npt.NDArray[np.bool_], crossing: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Ends of the longest runs of edges along the rows that no crossing edge meets inside."""
    rows, columns = edges.shape
    meets = np.zeros((rows, columns + 1), bool)
    meets[1:] |= crossing
    meets[:-1] |= crossing
    edge = np.pad(edges, ((0, 0), (1, 1)))
    # the two edges beside each corner; a run begins or ends where they differ or one is met
    before, after = edge[:, :-1], edge[:, 1:]
    begin = np.argwhere(after & (~before | meets))
    end = np.argwhere(before & (~after | meets))
    return np.stack([begin[:, ::-1], end[:, ::-1]], axis=1)
