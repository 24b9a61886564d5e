"""Which storage tiles of a big chunk are read: those that its draws touch.

Not covered: where draws lie (`daskdmed.loading.foreseen`), and how parts of a region are read
(`daskdmed.images.parts`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskdmed.core.region import Region
from daskdmed.core.view import ImageView
from daskdmed.images.parts import Boxes, Parts, parts_of

#: from this part of its storage tiles on all of a big chunk is read: little is spared by leaving
#: tiles out, and a whole big chunk is shared with whoever reads it whole
NEAR = 0.95
#: part of the pixels of a big chunk up to which its small chunks are kept one by one: they would
#: be read into memory of which little is looked at, and each page of it touched
APART = 0.5
#: draws that touch each tile so many times in the mean leave hardly any out
_MANY = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What of a big chunk is drawn: `boxes`, one for each draw in order. `apart`: these are kept,
    one behind the other, in the place of the big chunk."""

    boxes: Boxes
    apart: bool = False


def reads_parts(view: ImageView) -> bool:
    """Whether a part of a big chunk costs less than all of it."""
    return view.cheap_in_parts and view.remote is None


def worth_apart(view: ImageView, region: Region, size: Sequence[int], draws: int) -> bool:
    """Whether so many small chunks of a size are kept one by one rather than a region that holds
    them."""
    return reads_parts(view) and 0 < draws * math.prod(size) <= APART * region.size


def most_held(view: ImageView, size: Sequence[int], draws: int) -> float:
    """Pixels that a big chunk takes at most of which no more is read than so many draws need."""
    if not reads_parts(view) or not APART:
        return math.inf
    # kept whole it is where small chunks would take more than a part of it, or touch all tiles
    touched = math.prod(s - 1 + tile for s, tile in zip(size, view.tile_shape, strict=True))
    return draws * max(math.prod(size) / APART, touched / _MANY)


def parts_drawn(view: ImageView, region: Region, drawn: Boxes) -> Parts | None:
    """What is read of a region of which some boxes are drawn; None for all of it."""
    if not reads_parts(view):
        return None
    found = parts_of(view, region, drawn)
    return None if found.share >= NEAR else found


def touches_all(view: ImageView, region: Region, size: Sequence[int], draws: int) -> bool:
    """Whether so many small chunks of a size, wherever they lie in a region, leave next to no
    storage tile out; then there is no need to look."""
    tiles = touched = 1.0
    for extent, s, tile in zip(region.shape, size, view.tile_shape, strict=True):
        tiles *= max(1.0, extent / tile)
        touched *= min(1 + (s - 1) / tile, max(1.0, extent / tile))
    return draws * touched >= _MANY * tiles


def expected_share(
    extent: Sequence[int], size: Sequence[int], tile: Sequence[int], draws: int
) -> float:
    """Part of the storage tiles of a big chunk that so many small chunks touch in the mean, 1 where
    all would be read."""
    touched = np.ones(())
    for whole, s, t in zip(extent, size, tile, strict=True):
        room = max(whole - s + 1, 1)
        first = np.arange(0, whole, max(1, min(t, whole)))
        reach = np.minimum(first + t, room) - np.maximum(first - s + 1, 0)
        touched = np.multiply.outer(touched, np.clip(reach / room, 0, 1))
    share = float(1 - ((1 - touched) ** draws).mean())
    return 1.0 if share >= NEAR else share
