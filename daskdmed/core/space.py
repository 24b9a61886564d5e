"""`Space`: where the voxels of a volume lie in the patient.

Pure arithmetic over an affine. Not covered: what a file's header means
(`daskdmed.images.volumes`), reading at another resolution or orientation
(`daskdmed.images.volumes.view`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core import html
from daskdmed.core.errors import GeometryError, ResolutionError
from daskdmed.core.types import Array

#: RAS+: the letters of both directions along each world axis
_LETTERS = ("LR", "PA", "IS")
_AXES = {letter: axis for axis, pair in enumerate(_LETTERS) for letter in pair}


@dataclass(frozen=True, eq=False, repr=False)
class Space:
    """Where the voxels of a volume lie, in millimeters.

    Parameters
    ----------
    affine : array_like of float
        (4, 4), from array index (z, y, x) of a voxel's centre to RAS+ millimeters: x grows to
        the patient's right, y to anterior, z to superior. Axes may be sheared (a tilted gantry).
    shape : sequence of int
        Voxels along (z, y, x).

    Raises
    ------
    GeometryError
        The affine is not finite, cannot be inverted, or its last row is not (0, 0, 0, 1).
    """

    affine: Array
    shape: tuple[int, int, int]

    def __init__(self, affine: Any, shape: Sequence[int]) -> None:
        matrix = np.array(affine, np.float64)
        extent = tuple(int(n) for n in shape)
        if matrix.shape != (4, 4) or len(extent) != 3:
            raise GeometryError(
                f"a space has an affine of shape (4, 4) and three extents (z, y, x), got "
                f"{matrix.shape} and {tuple(shape)}"
            )
        if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
            raise GeometryError(f"not an affine of finite numbers ending in (0, 0, 0, 1): {matrix}")
        steps = np.linalg.norm(matrix[:3, :3], axis=0)
        if not steps.all() or abs(np.linalg.det(matrix[:3, :3] / steps)) < 1e-6:
            raise GeometryError(f"the axes of the affine lie in one plane or vanish: {matrix}")
        matrix[3] = (0, 0, 0, 1)
        matrix.flags.writeable = False
        object.__setattr__(self, "affine", matrix)
        object.__setattr__(self, "shape", extent)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimeters from voxel to voxel along (z, y, x)."""
        z, y, x = (float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))
        return z, y, x

    @property
    def axcodes(self) -> str:
        """The direction in which each array axis grows, the nearest of six: "SAR" for z up, y to
        anterior and x to the right."""
        return "".join(_LETTERS[world][sign > 0] for world, sign in self._directions)

    @property
    def orientation(self) -> str:
        """The same as nibabel, ITK and MONAI write it, x first: "RAS" for axcodes "SAR"."""
        return self.axcodes[::-1]

    @property
    def _directions(self) -> list[tuple[int, int]]:
        """(world axis, sign) nearest to each array axis; no world axis twice."""
        # the rotation nearest to sheared axes
        left, _, right = np.linalg.svd(self.affine[:3, :3] / self.spacing)
        rotation = left @ right
        left_over, found = np.abs(rotation), {}
        for _ in range(3):
            world, axis = np.unravel_index(int(left_over.argmax()), (3, 3))
            found[int(axis)] = (int(world), 1 if rotation[world, axis] > 0 else -1)
            left_over[world], left_over[:, axis] = -1, -1
        return [found[axis] for axis in range(3)]

    def to_world(self, index: Any) -> Array:
        """RAS+ millimeters (..., 3) of array indexes (..., 3), (z, y, x); the centre of voxel 0 is
        index 0."""
        moved: Array = np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return moved

    def to_index(self, world: Any) -> Array:
        """Array indexes (..., 3), (z, y, x), of RAS+ millimeters (..., 3): the inverse."""
        at = np.asarray(world, np.float64) - self.affine[:3, 3]
        found: Array = at @ np.linalg.inv(self.affine[:3, :3]).T
        return found

    # ------------------------------------------------------------------ other spaces from it
    def crop(self, origin: Sequence[float], shape: Sequence[int]) -> Space:
        """The part that begins at voxel `origin` (z, y, x), which may lie outside."""
        return self._with(np.eye(3), origin, shape)

    def reorient(self, axcodes: Any) -> Space:
        """The same voxels with axes that grow as `axcodes` says, array order (z, y, x): nothing is
        interpolated."""
        order, flips = self.permutation(axcodes)
        shape = [self.shape[axis] for axis in order]
        steps, origin = np.zeros((3, 3)), np.zeros(3)
        for new, (axis, flip) in enumerate(zip(order, flips, strict=True)):
            steps[axis, new] = -1 if flip else 1
            origin[axis] = self.shape[axis] - 1 if flip else 0
        return self._with(steps, origin, shape)

    def permutation(self, axcodes: Any) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """How `reorient` does it: the present axis that each new one is, and whether it is
        flipped. ResolutionError for what is no orientation."""
        wanted = [_AXES.get(letter) for letter in axcodes] if isinstance(axcodes, str) else []
        if sorted(w for w in wanted if w is not None) != [0, 1, 2]:
            raise ResolutionError(
                f"an orientation is three letters, one of each of L/R, P/A, I/S, such as 'RAS'; "
                f"got {axcodes!r}"
            )
        mine = self._directions
        at = {world: axis for axis, (world, _) in enumerate(mine)}
        order = tuple(at[_AXES[letter]] for letter in axcodes)
        flips = tuple(
            (mine[axis][1] > 0) != (letter == _LETTERS[mine[axis][0]][1])
            for axis, letter in zip(order, axcodes, strict=True)
        )
        return order, flips  # type: ignore[return-value]

    def resample(self, spacing: float | Sequence[float | None]) -> Space:
        """The same extent in voxels of another size, in millimeters; None leaves an axis alone.

        Voxels are areas: the first new voxel begins where the first old one does, the last may
        reach over the end by less than half of itself.
        """
        wanted = spacing_of(spacing)
        new = [w or s for w, s in zip(wanted, self.spacing, strict=True)]
        scale = np.array([w / s for w, s in zip(new, self.spacing, strict=True)])
        shape = [max(1, round(n / c)) for n, c in zip(self.shape, scale, strict=True)]
        return self._with(np.diag(scale), (scale - 1) / 2, shape)

    def _with(self, steps: Array, origin: Any, shape: Sequence[int]) -> Space:
        """Of voxels whose axes are `steps` (columns) and whose first is at `origin`, in voxels."""
        moved = np.eye(4)
        moved[:3, :3], moved[:3, 3] = steps, origin
        return Space(self.affine @ moved, shape)

    # ------------------------------------------------------------------ comparing
    def isclose(self, other: Space, voxels: float = 0.01) -> bool:
        """Whether both have one shape, and no voxel lies further apart than this part of one."""
        return self.shape == other.shape and self.distance(other) <= voxels

    def distance(self, other: Space) -> float:
        """The furthest that a voxel of this lies from the same voxel of the other, in voxels."""
        corners = np.array(list(itertools.product(*((0, n - 1) for n in self.shape))), float)
        return float(np.abs(self.to_index(other.to_world(corners)) - corners).max())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Space):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return "Space", self.shape, self.affine.tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self.affine, self.shape)  # an unpickled array could be written to

    def __str__(self) -> str:
        steps = " x ".join(f"{s:.4g}" for s in self.spacing)
        first = ", ".join(f"{v:.2f}" for v in self.affine[:3, 3])
        return (
            f"{' x '.join(map(str, self.shape))} voxels (z, y, x) of {steps} mm, axes to "
            f"{self.axcodes}, the first at ({first}) mm"
        )

    def __repr__(self) -> str:
        return f"<Space: {self}>"

    def _repr_html_(self) -> str:
        ends = self.to_world([(0, 0, 0), [n - 1 for n in self.shape]])
        first, last = (", ".join(f"{v:.4g}" for v in end) for end in ends.tolist())
        told = [
            ("voxels (z, y, x)", html.times(self.shape)),
            ("mm per voxel", html.times(f"{s:.4g}" for s in self.spacing)),
            ("axes to", self.axcodes),
            ("first voxel at (RAS+ mm)", first),
            ("last voxel at", last),
        ]
        return html.page(html.title("Space"), html.facts(told))


def spacing_of(spacing: Any) -> tuple[float | None, float | None, float | None]:
    """Millimeters along (z, y, x) as users give them: one number for all, or three, None for an
    axis that stays. ResolutionError otherwise."""
    given = (spacing,) * 3 if np.ndim(spacing) == 0 else tuple(spacing)
    values = tuple(None if v is None else float(v) for v in given)
    if len(values) != 3 or not all(v is None or 0 < v < np.inf for v in values):
        raise ResolutionError(
            "spacing is positive numbers, millimeters along each axis in array order (z, y, x), "
            f"one for all or three, None for an axis that stays as it is; got {spacing!r}"
        )
    return values
