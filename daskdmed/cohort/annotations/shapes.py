"""Shapes as flat arrays of edges, which is what painting needs.

Made once per table of annotations and shared by all regions painted from it. Not covered:
painting (`daskdmed.cohort.annotations.raster`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.core.extras import extra

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

_POINT, _LINE, _RING, _POLYGON, _FIRST_COLLECTION = 0, 1, 2, 3, 4


@functools.cache
def require_shapely() -> Any:
    """The shapely module."""
    return extra("shapely", "annotations", "annotations need")


@dataclass(frozen=True)
class ShapeTable:
    """Edges, lines and points of a list of geometries, ordered by geometry.

    `bounds` are (n, 4): x0, y0, x1, y1, NaN of empty ones. `edges` of rings and `lines` are
    (e, 4): x0, y0, x1, y1, y0 <= y1; those of geometry k are ``edge_stop[k]`` to
    ``edge_stop[k + 1]``. `points` are (p, 2).
    """

    bounds: Floats
    edges: Floats
    edge_stop: Ints
    lines: Floats
    line_stop: Ints
    points: Floats
    point_stop: Ints

    @classmethod
    def of(cls, geometries: npt.NDArray[np.object_]) -> ShapeTable:
        """Take shapely geometries apart."""
        shapely = require_shapely()
        number = len(geometries)
        parts, owner = geometries, np.arange(number)
        kinds = shapely.get_type_id(parts)
        while (kinds >= _FIRST_COLLECTION).any():
            parts, index = shapely.get_parts(parts, return_index=True)
            owner, kinds = owner[index], shapely.get_type_id(parts)
        polygons = kinds == _POLYGON
        rings, index = shapely.get_rings(parts[polygons], return_index=True)
        edges, edge_owner = _segments(rings, owner[polygons][index])
        curves = (kinds == _LINE) | (kinds == _RING)
        lines, line_owner = _segments(parts[curves], owner[curves])
        points, index = shapely.get_coordinates(parts[kinds == _POINT], return_index=True)
        point_owner = owner[kinds == _POINT][index]
        ends = np.arange(number + 1)
        return cls(
            bounds=shapely.bounds(geometries).reshape(-1, 4),
            edges=edges,
            edge_stop=np.searchsorted(edge_owner, ends),
            lines=lines,
            line_stop=np.searchsorted(line_owner, ends),
            points=points,
            point_stop=np.searchsorted(point_owner, ends),
        )

    def near(self, box: tuple[float, float, float, float]) -> Bools:
        """Whether each geometry's bounds touch a box (x0, y0, x1, y1); False for empty ones."""
        x0, y0, x1, y1 = self.bounds.T
        touching: Bools = (x0 <= box[2]) & (x1 >= box[0]) & (y0 <= box[3]) & (y1 >= box[1])
        return touching

    def edges_of(self, owners: Ints) -> tuple[Floats, Ints]:
        """Edges of some geometries, and whose they are; so the next two."""
        index, owner = _gather(self.edge_stop, owners)
        return self.edges[index], owner

    def lines_of(self, owners: Ints) -> tuple[Floats, Ints]:
        index, owner = _gather(self.line_stop, owners)
        return self.lines[index], owner

    def points_of(self, owners: Ints) -> tuple[Floats, Ints]:
        index, owner = _gather(self.point_stop, owners)
        return self.points[index], owner


def _segments(curves: npt.NDArray[np.object_], owner: Ints) -> tuple[Floats, Ints]:
    """Consecutive pairs of coordinates, the end with the smaller y first.

    Both polygons of a shared edge then compute its crossings from the same numbers.
    """
    xy, index = require_shapely().get_coordinates(curves, return_index=True)
    follows = index[1:] == index[:-1]
    first, second = xy[:-1][follows], xy[1:][follows]
    swap = (first[:, 1] > second[:, 1]) | (
        (first[:, 1] == second[:, 1]) & (first[:, 0] > second[:, 0])
    )
    low = np.where(swap[:, None], second, first)
    high = np.where(swap[:, None], first, second)
    return np.hstack([low, high]), owner[index[1:][follows]]


def _gather(stops: Ints, owners: Ints) -> tuple[Ints, Ints]:
    number = stops[owners + 1] - stops[owners]
    before = np.cumsum(number) - number
    index = np.repeat(stops[owners] - before, number) + np.arange(int(number.sum()))
    return index, np.repeat(owners, number)
