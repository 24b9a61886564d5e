"""Pixels of small chunks and of their targets as pictures for people, (h, w, 3) uint8.

Not covered: the page that they stand on (`daskdmed.loading.html`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.types import Array
from daskdmed.images.composite import display
from daskdmed.images.ngff.metadata import PALETTE, rgb
from daskdmed.images.shown import flat, shrunk

if TYPE_CHECKING:
    from daskdmed.images.protocols import SlideInfo

#: how much of the colour of a target covers the picture
_COVER = 0.4


def pictures(
    data: Sequence[Array], axes: int, side: int, infos: Sequence[SlideInfo | None]
) -> list[Array]:
    """Pixels ``(*space[, c])`` with so many `axes` of space as pictures, brightened alike; `infos`
    are what is known of the image of each."""
    small = [shrunk(flat(values, axes), side) for values in data]
    if not small:
        return []
    info = _common(infos, small[0])
    if info is not None and info.is_rgb and small[0].shape[2] > 3:  # what lies around it, behind
        small = [picture[..., :3] for picture in small]
    heights = np.cumsum([0, *(picture.shape[0] for picture in small)])
    sheet = display(np.concatenate(small), info)
    return [sheet[a:b] for a, b in itertools.pairwise(heights)]


def _common(infos: Sequence[SlideInfo | None], picture: Array) -> SlideInfo | None:
    """What the images say of their channels, where it is that of all."""
    first = infos[0]
    if first is None or any(i is None or i.channels != first.channels for i in infos):
        return None
    count = first.levels[0].shape[-1]
    fits = count == picture.shape[2] or (first.is_rgb and picture.shape[2] % 3 == 0)
    return first if fits and first.numpy_dtype == picture.dtype else None


def mask_of(target: Any, axes: int) -> Array | None:
    """The classes (h, w) that a target paints, 0 where none; None where it is no mask."""
    values = values_of(target, axes)
    if values.ndim == axes + 1:
        if values.shape[-1] > 1:
            if not np.isin(np.unique(values), (0, 1)).all():
                return None
            chosen = values.argmax(axis=-1) + 1
            values = np.where(values.any(axis=-1), chosen, 0)
        else:
            values = values[..., 0]
    if values.ndim != axes or values.dtype.kind not in "biuf" or not values.size:
        return None
    plane = flat(values, axes)[..., 0]
    if plane.dtype.kind == "f":
        whole = np.nan_to_num(plane)
        if not (whole == np.rint(whole)).all():
            return None
        plane = whole
    classes: Array = plane.astype(np.int64)
    return classes


def overlaid(picture: Array, mask: Array) -> Array:
    """A picture with the classes of a mask of any size over it, each in its colour, the borders
    between them solid."""
    height, width = picture.shape[:2]
    rows = (np.arange(height) + 0.5) * mask.shape[0] / height
    columns = (np.arange(width) + 0.5) * mask.shape[1] / width
    classes = mask[np.ix_(rows.astype(np.intp), columns.astype(np.intp))]
    palette = np.array([rgb(digits) for digits in PALETTE], np.float64)
    colours = palette[(classes - 1) % len(palette)]
    near = np.pad(classes, 1, mode="edge")
    same = np.ones(classes.shape, bool)
    for other in (near[:-2, 1:-1], near[2:, 1:-1], near[1:-1, :-2], near[1:-1, 2:]):
        same &= other == classes
    share = np.where(same, _COVER, 1.0)[..., None] * (classes != 0)[..., None]
    blended: Array = np.rint(picture * (1 - share) + colours * share).astype(np.uint8)
    return blended


def values_of(target: Any, axes: int) -> Array:
    """A target as an array ``(*space[, c])``; tensors have their channels first."""
    if not hasattr(target, "detach"):
        return np.asarray(target)
    values: Array = target.detach().cpu().numpy()
    return np.moveaxis(values, 0, -1) if values.ndim == axes + 1 else values


def target_picture(target: Any, axes: int, side: int) -> Array | None:
    """A target alone: classes on grey, values as an image; None for what is neither."""
    mask = mask_of(target, axes)
    if mask is not None:
        thin = shrunk(mask[..., None], side, labels=True)[..., 0]
        return overlaid(np.full((*thin.shape, 3), 128, np.uint8), thin)
    values = values_of(target, axes)
    if values.ndim not in (axes, axes + 1) or values.dtype.kind not in "biuf":
        return None
    return display(shrunk(flat(values, axes), side))
