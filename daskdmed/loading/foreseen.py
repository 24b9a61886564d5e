"""What will be drawn of a visit, before it is read: its positions, and what is read for them.

Without a collector of the user's, nothing but the plan decides where small chunks lie; so a visit
is read no further than its draws need (`daskdmed.persistence.drawn`). All draws of the visit are
meant, whoever of the ranks takes them and wherever a resumed loader begins, so that all of these
hold the same pixels under the same key.

Not covered: what a position is a function of (`daskdmed.loading.positions`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskdmed.core.errors import DaskdmedError
from daskdmed.core.randomness import Purpose, generator
from daskdmed.core.region import Region
from daskdmed.images.parts import Boxes
from daskdmed.loading.positions import Positions
from daskdmed.persistence.areas import Area, Chosen
from daskdmed.persistence.catalogue import Catalogue, Entry
from daskdmed.persistence.drawn import Drawn, most_held, reads_parts, touches_all, worth_apart
from daskdmed.persistence.plan import Visit
from daskdmed.persistence.reading import ReadFailure

if TYPE_CHECKING:
    from daskdmed.loading.engine import Sampling

#: what is kept of a region and its target may be so much more than their pixels: up to whole tiles
_ROUNDED = 1.5


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Of one visit: where small chunks may lie or do (None: anywhere; or why nobody knows), and the
    positions that follow; of how many draws all pixels are held (None: any), and what of the big
    chunk is read (None: all).
    """

    area: Area | Chosen | ReadFailure | None
    positions: Positions | None = None
    held: int | None = None
    drawn: Drawn | None = None

    @property
    def apart(self) -> bool:
        """Whether small chunks are kept one by one."""
        return self.drawn is not None and self.drawn.apart


class Foresight:
    """Looks ahead at the draws of visits, each once; for the thread that makes batches.

    `stays`: every big chunk stays in memory, visit after visit, so that it is read once for all of
    them. `fails`: visits may end before their last draw; where batches hold shares others then give
    more than theirs.
    """

    def __init__(
        self, catalogue: Catalogue, sampling: Sampling, *, stays: bool, fails: bool
    ) -> None:
        self._catalogue, self._sampling = catalogue, sampling
        s = sampling
        self._blind = s.collect is not None or s.adaptive or s.free_regions
        self._stays = stays
        self._most = s.draws_per_visit * (1 + (s.composed and fails))
        self._known: dict[int, Foreseen] = {}

    @property
    def most_bytes(self) -> int:
        """What is kept of a big chunk at most."""
        return max(map(self._most_bytes, self._catalogue.entries))

    def _most_bytes(self, entry: Entry) -> int:
        s = self._sampling
        if self._blind or self._stays or s.lattice is not None or s.crop.around is not None:
            return entry.block_bytes
        pixels = most_held(entry.view, s.crop.size, self._most)
        if entry.target is not None and not reads_parts(entry.target):
            return entry.block_bytes
        share = min(1.0, _ROUNDED * pixels / math.prod(entry.grid.largest))
        return math.ceil(share * entry.block_bytes)

    def of(self, visit: Visit) -> Foreseen:
        """What is known of a visit."""
        found = self._known.get(visit.number)
        if found is None:
            found = self._known[visit.number] = self._look(visit)
        return found

    def drawn(self, visit: Visit) -> Drawn | None:
        """What of a visit's big chunk is read; None for all of it."""
        return self.of(visit).drawn

    def forget(self, visit: Visit) -> None:
        """Be done with a visit."""
        self._known.pop(visit.number, None)

    def _look(self, visit: Visit) -> Foreseen:
        entry = self._catalogue.entries[visit.record]
        region = entry.grid.region(visit.block)
        try:
            area = self._area(visit, region)
        except (DaskdmedError, OSError) as error:  # of a label map that was read before
            return Foreseen(ReadFailure(error, region))
        if self._blind:
            return Foreseen(area)
        s, size = self._sampling, self._sampling.crop.size
        where = (area, s.key, visit.number, s.draws_per_visit)
        positions = Positions([region], size, s.crop.ratio, *where)
        if self._stays:
            reach = _reach(area, region, size)
            return Foreseen(area, positions, None, None if reach is None else Drawn(reach))
        most = self._most
        if s.lattice is not None and isinstance(area, Chosen):
            most = len(area.places)
        if area is None and touches_all(entry.view, region, size, most):
            return Foreseen(area, positions)
        boxes = Boxes.at(positions.first(most), size)
        apart = s.crop.around is None and worth_apart(entry.view, region, size, len(boxes))
        apart = apart and (entry.target is None or reads_parts(entry.target))
        return Foreseen(area, positions, most, Drawn(boxes, apart))

    def _area(self, visit: Visit, region: Region) -> Area | Chosen | None:
        s = self._sampling
        rng = generator(s.key, Purpose.LOCATE, visit.number)
        if s.lattice is not None:
            return s.lattice.chosen(visit.record, visit.block, rng)
        if s.areas is None:
            return None
        classes, maps = s.classes[visit.stratum], s.areas.maps
        if s.free_regions:
            return s.areas.area(visit.record, classes)
        if maps.meant(classes):
            # those of a visit, and of draws that stand in for others
            return maps.chosen(visit.record, classes, visit.block, 2 * s.draws_per_visit, rng)
        return s.areas.local(visit.record, classes, region)


def _reach(area: Area | Chosen | None, region: Region, size: tuple[int, ...]) -> Boxes | None:
    """What any small chunk can need of a big chunk, whichever of its places; None for all."""
    if not isinstance(area, Area):
        return None
    first, last = area.cover(region, size)
    return _in_runs(Boxes(first, Boxes.at(last, size).stop))


def _in_runs(boxes: Boxes) -> Boxes:
    """The same pixels in fewer boxes: those that meet along the last axis become one. `Area.cover`
    gives a box for each pixel of its mask, which of outlines may be a million, row by row.
    """
    first, stop = boxes.first, boxes.stop
    others = [(end[1:, :-1] == end[:-1, :-1]).all(axis=1) for end in (first, stop)]
    meets = others[0] & others[1] & (first[1:, -1] <= stop[:-1, -1])
    begins = np.flatnonzero(np.append(True, ~meets)[: len(first)])
    return Boxes(first[begins], stop[np.append(begins[1:], len(first))[: len(begins)] - 1])
