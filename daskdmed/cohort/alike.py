"""Whether two images of a patient lie at the same places: image and target, t1 and t2.

A network trains on a label that is mirrored against its image without a word. So what both say
of where they lie in the patient is compared, and what cannot be compared has at least the same
shape. Not covered: how an image is turned or resampled (`daskdmed.images.volumes.view`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from daskdmed.core.errors import GeometryError
from daskdmed.core.space import Space
from daskdmed.core.view import ImageView

#: no voxel may lie further from its counterpart than this part of one
TOLERANCE = 0.01
#: sizes of voxels that differ by more than this part are two
_SAME_SPACING = 0.01


def check_alike(
    name: str, view: ImageView, other_name: str, other: ImageView, ratio: Sequence[int] = ()
) -> None:
    """Make sure that both views lie at the same places, `ratio` pixels of the first per pixel of
    the other along each axis (none: one each).

    GeometryError with both spaces, and what can be done. Of volumes space is compared, or what both
    say of the size of voxels; where one says nothing, and of planes, the shape alone; with a
    `ratio` that has been done before.
    """
    if not ratio and view.spatial_shape != other.spatial_shape:
        raise GeometryError(
            f"{name} has {view.spatial_shape} pixels and {other_name} {other.spatial_shape}"
            f"{_at(view, other)}; they must lie on the same grid: {REMEDY}"
        )
    if view.space is not None and other.space is not None:
        steps = [s * r for s, r in zip(view.space.spacing, ratio, strict=True)] if ratio else None
        check_spaces(name, view.space, other_name, other.space, steps)
        return
    said = view.spacing, other.spacing
    # with an mpp it is of two axes, whatever the image has
    if said[0] is not None and said[1] is not None and len(said[0]) == len(said[1]) == 3:
        _check_spacing(name, said[0], other_name, said[1], ratio)


#: what can be done about volumes that lie apart
REMEDY = (
    'give orientation="RAS" to turn both the same way, and spacing=, such as spacing=1.0, to '
    "bring both to one size of voxels; what lies elsewhere or is rotated has to be resampled onto "
    "the other before"
)


def laid_over(mask: Any, view: ImageView) -> Any:
    """A mask that knows its space (`TissueMask`) turned as a view is; any other as it is.

    GeometryError: it lies elsewhere in the patient.
    """
    if getattr(mask, "space", None) is None or view.space is None:
        return mask
    turned = mask.turned(view.space)
    check_spaces("the mask", turned.space, f"image {view.name}", view.space, view.space.spacing)
    return turned


def check_spaces(
    name: str,
    space: Space,
    other_name: str,
    other: Space,
    steps: Sequence[float] | None = None,
) -> None:
    """The same of spaces, of which the first is looked at with voxels of `steps` millimeters."""
    expected = space if steps is None else space.resample(steps)
    # extents are rounded to whole voxels then, and have been compared
    expected = Space(expected.affine, other.shape)
    apart = expected.distance(other)
    if apart <= TOLERANCE:
        return
    turned = _turned(expected, other)
    raise GeometryError(
        f"{name} and {other_name} do not lie at the same places in the patient, up to "
        f"{apart:.4g} voxels apart{turned}; {name}: {space}, affine {_plain(space)}; {other_name}: "
        f"{other}, affine {_plain(other)}; {REMEDY}"
    )


def _turned(space: Space, other: Space) -> str:
    """What kind of difference it is, where that can be said."""
    if space.axcodes != other.axcodes:
        return f" (axes to {space.axcodes} and to {other.axcodes})"
    if not np.allclose(space.spacing, other.spacing, rtol=1e-3):
        return " (voxels of other sizes)"
    return ""


def _plain(space: Space) -> list[list[float]]:
    return [[float(f"{v:.6g}") for v in row] for row in space.affine[:3]]


def _at(view: ImageView, other: ImageView) -> str:
    """Where they lie, when both say so."""
    if view.space is None or other.space is None:
        return ""
    return f" ({view.space}; {other.space})"


def _check_spacing(
    name: str,
    steps: Sequence[float],
    other_name: str,
    other: Sequence[float],
    ratio: Sequence[int],
) -> None:
    """Where only the size of voxels is said by both; people round it."""
    pairs = zip(steps, other, ratio or (1,) * len(steps), strict=True)
    if all(math.isclose(a * r, b, rel_tol=_SAME_SPACING) for a, b, r in pairs):
        return
    raise GeometryError(
        f"{name} has voxels of {tuple(steps)} mm (array order) and {other_name} of {tuple(other)} "
        "mm: they do not lie on the same grid; give spacing= to bring both to one size of voxels, "
        "or mend what a record says with Record(..., spacing=)"
    )


__all__ = ["REMEDY", "TOLERANCE", "check_alike", "check_spaces", "laid_over"]
