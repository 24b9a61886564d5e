"""Where the draws of one visit lie: a function of seed, visit and draw, and of no pixel.

So it is known before anything is read, see `daskdmed.loading.foreseen`, and the same wherever it
is asked. Not covered: users' collectors, who look at pixels first (`daskdmed.loading.sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from daskdmed.core.randomness import Purpose, generator
from daskdmed.core.region import Region
from daskdmed.persistence.areas import Area, Chosen, Draws, Places

#: number of a piece, first pixel in it, and the same in the frame of the view
Position = tuple[int, tuple[int, ...], tuple[int, ...]]


class Positions:
    """Positions of small chunks of a `size` in the pieces of a visit, which are `regions`.

    On whole pixels of a target that has one per `ratio`. `key` is the loader's, `number` that of
    the visit; `expected`: draws whose positions are made at first, more when they are asked for.
    `area`: where small chunks may lie, or do; None for anywhere.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        size: tuple[int, ...],
        ratio: tuple[int, ...],
        area: Area | Chosen | None,
        key: int,
        number: int,
        expected: int,
    ) -> None:
        self._regions, self._size, self._ratio = regions, size, ratio
        self._area, self._key, self._number = area, key, number
        self._expected = expected
        #: numbers of pieces and first pixels in them, as far as they are known; and both as rows
        self._pieces: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._starts: npt.NDArray[np.int64] = np.zeros((0, len(size)), np.int64)
        self._rows: list[Position] = []
        self._draws: Draws | None = None

    def of(self, draw: int) -> Position | None:
        """Of a draw, by its number; None where there is no place at all."""
        if draw >= len(self._rows):
            if not self._locate(draw):
                return None
            starts = self._starts
            origins = starts + np.array([r.origin for r in self._regions])[self._pieces]
            both = (map(tuple, places.tolist()) for places in (starts, origins))
            self._rows = list(zip(self._pieces.tolist(), *both, strict=True))
        return self._rows[draw]

    def known(self) -> list[Position]:
        """Of the first draws, as many as have been made."""
        self.of(0)
        return self._rows

    def first(self, count: int) -> npt.NDArray[np.int64]:
        """Of the first draws in the only piece, (count, axes) in the frame of the view; (0, axes)
        where there is no place at all."""
        there = count if count and self._locate(count - 1) else 0
        found: npt.NDArray[np.int64] = self._starts[:there] + np.array(self._regions[0].origin)
        return found

    @property
    def rooms(self) -> npt.NDArray[np.int64]:
        """Number of valid first pixels in each piece, (pieces, axes)."""
        extents = np.array([r.shape for r in self._regions], np.int64)
        room = extents - np.array(self._size) - self._firsts()
        rooms: npt.NDArray[np.int64] = np.maximum(room // np.array(self._ratio) + 1, 0)
        return rooms

    def _firsts(self) -> npt.NDArray[np.int64]:
        """First valid position in each piece, (pieces, axes): on whole target pixels."""
        origins = np.array([r.origin for r in self._regions], np.int64)
        firsts: npt.NDArray[np.int64] = -origins % np.array(self._ratio)
        return firsts

    def _locate(self, draw: int) -> bool:
        """Positions of all draws up to a number; False when there is no place at all."""
        if draw < len(self._pieces):
            return True
        if self._area is None:
            self._locate_anywhere(draw)
            return True
        if isinstance(self._area, Chosen):
            return self._locate_chosen(self._area, draw)
        return self._locate_in(self._area, draw)

    def _locate_chosen(self, chosen: Chosen, draw: int) -> bool:
        """The places that were drawn beforehand, and again when each has been taken."""
        if not len(chosen.places):
            return False
        times = draw // len(chosen.places) + 1
        self._starts = np.tile(chosen.places - np.array(self._regions[0].origin), (times, 1))
        self._pieces = np.zeros(len(self._starts), np.int64)
        return True

    def _locate_anywhere(self, draw: int) -> None:
        """Uniform positions.

        Uniform floats are prefix-stable: draw 7 is at the same place however many are made.
        """
        rooms, axes = self.rooms, len(self._size)
        count = max(self._expected, 2 * len(self._pieces), draw + 1)
        u = generator(self._key, Purpose.LOCATE, self._number).random((count, axes + 1))
        if len(self._regions) == 1:
            at = np.zeros(count, np.int64)
        else:
            shares = np.cumsum(rooms.prod(axis=1))
            at = np.searchsorted(shares, u[:, 0] * shares[-1], side="right")
        self._starts = self._firsts()[at] + (u[:, 1:] * rooms[at]).astype(np.int64) * self._ratio
        self._pieces = at

    def _locate_in(self, area: Area, draw: int) -> bool:
        """All allowed positions in random order, and again when each has been taken."""
        if self._draws is None:
            self._draws = Draws(
                Places(area, self._regions, self._size),
                self._expected,
                lambda part: generator(self._key, Purpose.LOCATE, self._number, part),
            )
        origins = np.array([r.origin for r in self._regions], np.int64)
        while len(self._pieces) <= draw:
            found = np.array(self._draws.more(), np.int64).reshape(-1, 1 + len(self._size))
            if not len(found):
                return False
            at = found[:, 0]
            self._pieces = np.concatenate([self._pieces, at])
            self._starts = np.concatenate([self._starts, found[:, 1:] - origins[at]])
        return True
