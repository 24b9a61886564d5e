"""Isolines of a grid of values as polygons with holes (marching squares).

W. E. Lorensen and H. E. Cline, "Marching cubes", SIGGRAPH 1987, in the plane, as scikit-image
has it; here loops become polygons. Pure geometry in units of cells.

Not covered: the exact borders of cells (``Annotations.from_mask``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from daskdmed.core.errors import MissingExtraError
from daskdmed.core.types import Array


def isolines(values: Array, level: float) -> list[Any]:
    """Polygons (y, x) of the regions where linear interpolation between cell centres is above a
    level.

    Values equal to it count as above; lines and points have no area and are left out. The centre of
    the first cell is (0.5, 0.5). Next to unknown cells (NaN) and at the border of the grid regions
    end half-way, which is the border of the cell.
    """
    try:
        import shapely
    except ImportError as error:
        raise MissingExtraError(
            "contours need shapely; install it with: pip install 'daskdmed[annotations]'"
        ) from error
    from skimage.measure import find_contours

    field = _closed(np.asarray(values, np.float64), level)
    shells: list[Any] = []
    holes: list[Any] = []
    for loop in find_contours(field, 0.0, positive_orientation="high"):
        if len(loop) < 4:
            continue
        ring = loop - 0.5  # the padding is one cell, centres are at one half
        area = _signed_area(ring)
        if area == 0:
            continue
        (shells if area > 0 else holes).append(shapely.make_valid(shapely.Polygon(ring)))
    if not shells:
        return []
    return _with_holes(shells, holes)


def _closed(values: Array, level: float) -> Array:
    """Values minus the level, padded, with unknown cells such that loops end on borders."""
    field = np.pad(values - level, 1, constant_values=np.nan)
    unknown = ~np.isfinite(field)
    infinite = np.isinf(field)
    largest = np.abs(field[~unknown]).max(initial=1.0)
    # equal counts as above: nothing lies exactly on the level
    tiny = max(largest * 1e-12, np.finfo(np.float64).tiny)
    field[~unknown & (np.abs(field) < tiny)] = tiny
    beside = np.zeros(field.shape)
    for axis in (0, 1):
        for step in (1, -1):
            neighbour = np.roll(np.where(unknown, 0.0, field), step, axis)
            beside = np.maximum(beside, neighbour)
    field[unknown] = -np.where(beside > 0, beside, largest)[unknown]
    field[infinite] = np.copysign(largest, np.pad(values, 1)[infinite])
    return field


def _signed_area(ring: Array) -> float:
    """Positive when high values are inside, for loops as find_contours gives them."""
    y, x = ring[:, 0], ring[:, 1]
    return float(np.sum(y[:-1] * x[1:] - y[1:] * x[:-1])) / 2


def _with_holes(shells: list[Any], holes: list[Any]) -> list[Any]:
    """Cut every hole out of the smallest shell around it."""
    import shapely

    if not holes:
        return shells
    tree = shapely.STRtree(shells)
    areas = shapely.area(shells)
    points = shapely.point_on_surface(holes)
    inside = tree.query(points, predicate="within")
    owners: dict[int, int] = {}
    for hole, shell in inside.T.tolist():
        if hole not in owners or areas[shell] < areas[owners[hole]]:
            owners[hole] = shell
    cut: dict[int, list[Any]] = {}
    for hole, shell in owners.items():
        cut.setdefault(shell, []).append(holes[hole])
    return [
        shapely.difference(shell, shapely.union_all(cut[i])) if i in cut else shell
        for i, shell in enumerate(shells)
    ]
