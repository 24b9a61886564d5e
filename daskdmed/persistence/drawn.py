"""Which storage tiles of a big chunk are read: those that its draws touch, or any could.

Not covered: where draws lie (`daskdmed.loading.foreseen`), and how parts of a region are read
(`daskdmed.images.parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daskdmed.core.region import Region
from daskdmed.core.view import ImageView
from daskdmed.images.parts import Boxes, Parts, parts_of

#: from this part on of what there is, all is read: little is spared by leaving tiles out, and big
#: chunks of which all is read are shared with whoever reads them
NEAR = 0.9


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is cropped in one visit, in pixels of the image.

    `draws`: the small chunks, None where others may come of the same big chunk before it leaves
    memory, so that it is worth to hold what any of them could need; `reach`: all places where small
    chunks may lie, None for everywhere.
    """

    draws: Boxes | None
    reach: Boxes | None = None

    def padded(self, around: Sequence[int]) -> Drawn:
        """With so many pixels around each small chunk."""
        return self._each(lambda boxes: boxes.padded(around)) if any(around) else self

    def cells(self, ratio: Sequence[int]) -> Drawn:
        """In pixels of a target, which are so many of the image."""
        return self._each(lambda boxes: boxes.cells(ratio))

    def _each(self, change: Callable[[Boxes], Boxes]) -> Drawn:
        draws, reach = (None if b is None else change(b) for b in (self.draws, self.reach))
        return Drawn(draws, reach)


def parts_drawn(view: ImageView, region: Region, drawn: Drawn) -> Parts | None:
    """What is read of a region; None for all of it."""
    if not view.cheap_in_parts or view.remote is not None:
        return None
    reach = None if drawn.reach is None else parts_of(view, region, drawn.reach)
    draws = None if drawn.draws is None else parts_of(view, region, drawn.draws)
    found = draws or reach
    if draws is not None and reach is not None and draws.count >= NEAR * reach.count:
        found = reach
    return None if found is None or found.share >= NEAR else found
