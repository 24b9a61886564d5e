"""Where the draws of visits lie, looked up for all rows of a batch at once.

To ask visit by visit and draw by draw takes longer than a device takes to gather the pixels.
Pure. Not covered: what is at these places (`daskdmed.loading.arena`), and visits of several
pieces, which are asked for each draw.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

#: draws of a visit that are looked up, at most; those after them are asked for one by one
MOST_DRAWS = 4096


class Found(NamedTuple):
    """Of each row: what was noted of its visit (rows, facts); first pixel in the arrays of the
    visit, and in the frame of the view (rows, axes)."""

    facts: Numbers
    starts: Numbers
    origins: Numbers


class DrawTable:
    """The first draws of so many visits of one piece, and `facts` numbers about each visit."""

    def __init__(self, slots: int, draws: int, axes: int, facts: int) -> None:
        self.draws = min(draws, MOST_DRAWS)
        #: number of the visit in each slot
        self._visits = np.full(slots, -1, np.int64)
        self._facts = np.zeros((slots, facts), np.int64)
        #: draws that are known, and where they are: first pixel in the arrays, and in the view
        self._known = np.zeros(slots, np.int64)
        self._places = np.zeros((slots, self.draws, 2 * axes), np.int64)
        self._order = np.arange(slots)
        self._axes = axes

    def note(
        self, slot: int, visit: int, facts: tuple[int, ...], starts: Numbers, origins: Numbers
    ) -> None:
        """Note a visit, and where its first draws are, (draws, axes)."""
        known = min(len(starts), self.draws)
        self._places[slot, :known, : self._axes] = starts[:known]
        self._places[slot, :known, self._axes :] = origins[:known]
        self._facts[slot], self._known[slot] = facts, known
        self._set(slot, visit)

    def forget(self, slot: int) -> None:
        self._set(slot, -1)

    def _set(self, slot: int, visit: int) -> None:
        self._visits[slot] = visit
        self._order = np.argsort(self._visits)

    def find(self, visits: Numbers, draws: Numbers) -> Found | None:
        """Of some draws, by the numbers of their visits and theirs; None where one is unknown."""
        at = np.searchsorted(self._visits, visits, sorter=self._order)
        slots = self._order[np.minimum(at, len(self._order) - 1)]
        if (self._visits[slots] != visits).any() or (draws >= self._known[slots]).any():
            return None
        places = self._places[slots, draws]
        return Found(self._facts[slots], places[:, : self._axes], places[:, self._axes :])
