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
    # the padding is one cell, centres are at one half
    loops = [shapely.linearrings(loop - 0.5) for loop in find_contours(field, 0.0) if len(loop) > 3]
    found = shapely.build_area(shapely.geometrycollections(loops)) if loops else None
    return [] if found is None else [p for p in shapely.get_parts(found) if not p.is_empty]


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
