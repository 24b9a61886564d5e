"""Where in an image small chunks may lie: exact drawing from a low-resolution mask.

A small chunk is allowed when the mask covers at least a fraction of it (tissue), or when
its centre lies in the mask (a class of annotations). The mask is constant within its
pixels, so its summed-area table, interpolated linearly, gives the covered fraction exactly,
at any place.

A *place* is the first pixel of a small chunk. `Places` covers the allowed places of a region
with boxes, from a bound on what any small chunk of a box can hold. A place drawn uniformly
from the boxes and kept when it is allowed is uniform among the allowed ones; where few are
kept, the boxes are halved until they are the allowed places themselves.

Pure geometry for any number of axes. Not covered: where masks come from
(`daskdmed.persistence.where`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from daskdmed.core.coverage import SummedArea
from daskdmed.core.errors import UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.persistence.blockgrid import Span

#: covered fractions are sums of rounded products; a chunk that is short by less passes
_TOLERANCE = 1e-6
#: places that are listed at once instead of tried at random
_FEW = 4096
#: the part of tries that must give a new place; with less they are listed
_WORTH = 1 / 8
#: tries at a time, at least: fewer say little about which part of them is allowed
_TRIES = 64

_Ints = npt.NDArray[np.int64]


def places_along(region: Region, size: tuple[int, ...], multiple: tuple[int, ...]) -> list[_Ints]:
    """Along each axis, the places of a region: multiples of `multiple` inside it."""
    axes = zip(region.origin, region.shape, size, multiple, strict=True)
    return [np.arange(-(-o // m) * m, o + e - s + 1, m, dtype=np.int64) for o, e, s, m in axes]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Places of one visit that were drawn beforehand, (n, axes) in the frame of the view: first,
    second..., and again when all were given. Small, to travel."""

    places: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Area:
    """Where small chunks of a record may lie.

    `mask` has pixels of `scale` pixels of the view, and begins at mask pixel `origin` of the whole
    image. `least`: the fraction of a small chunk that the mask must cover, in (0, 1]; None when
    instead its centre must lie in the mask. First pixels of small chunks are multiples of
    `multiple`.
    """

    mask: npt.NDArray[np.bool_]
    scale: tuple[float, ...]
    least: float | None
    origin: tuple[int, ...]
    multiple: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.least is not None and not 0 < self.least <= 1:
            raise UsageError(
                f"the fraction of a small chunk that must be covered is {self.least}, but lies "
                "in (0, 1]"
            )

    @classmethod
    def of(
        cls,
        mask: npt.NDArray[np.bool_],
        shape: tuple[int, ...],
        least: float | None,
        multiple: tuple[int, ...] | None = None,
    ) -> Area:
        """From a mask that covers a whole image of a spatial shape."""
        scale = tuple(s / m for s, m in zip(shape, mask.shape, strict=True))
        axes = len(shape)
        return cls(mask, scale, least, (0,) * axes, multiple or (1,) * axes)

    # -- places ---------------------------------------------------------------------

    def allowed(self, places: _Ints, size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Whether small chunks of a size may lie at some places, (n, axes) in the frame of the
        view.
        """
        return self._possible(places, places, size)

    def _possible(self, first: _Ints, last: _Ints, size: tuple[int, ...]) -> Array:
        """Whether a small chunk between two places may be allowed; exact where these agree."""
        low, high = np.empty(first.shape), np.empty(first.shape)
        for axis in range(len(size)):
            low[:, axis], high[:, axis] = self._reach(axis, first[:, axis], last[:, axis], size)
        end = np.array(self.mask.shape)
        held = self._summed.sums(np.clip(low, 0, end), np.clip(high, 0, end))
        return held >= self._needed(size)

    def cover(self, region: Region, size: tuple[int, ...]) -> tuple[_Ints, _Ints]:
        """Boxes that hold all allowed places of a region: first and last place of each, (boxes,
        axes).
        """
        firsts, lasts, ends = [], [], []
        for axis, places in enumerate(places_along(region, size, self.multiple)):
            if not places.size:
                return np.zeros((0, len(size)), np.int64), np.zeros((0, len(size)), np.int64)
            starts = self._starts(axis, places, size)
            firsts.append(places[starts])
            lasts.append(places[np.append(starts[1:], places.size) - 1])
            ends.append(self._reach(axis, firsts[-1], lasts[-1], size))
        held = self._summed.means(ends, (1,) * len(size))
        found = np.argwhere(held >= self._needed(size))
        first = np.stack([a[found[:, i]] for i, a in enumerate(firsts)], axis=1)
        last = np.stack([a[found[:, i]] for i, a in enumerate(lasts)], axis=1)
        return first, last

    def _starts(self, axis: int, places: _Ints, size: tuple[int, ...]) -> _Ints:
        """Where the boxes of a cover begin along one axis: about one a mask pixel."""
        if self.least is None:  # exactly one: their centres are all in or all out
            pixel, _ = self._reach(axis, places, places, size)
            return np.flatnonzero(np.append(True, np.diff(pixel) > 0))
        wanted = -(-places.size * self.multiple[axis] // max(1, int(self.scale[axis])))
        count = min(wanted, places.size)
        return np.arange(count, dtype=np.int64) * places.size // count

    def _reach(
        self, axis: int, first: _Ints, last: _Ints, size: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """What decides about small chunks between two places, in pixels of `mask`."""
        s, scale, origin = size[axis], self.scale[axis], self.origin[axis]
        if self.least is not None:
            return first / scale - origin, (last + s) / scale - origin
        end = self.mask.shape[axis] - 1
        low = np.clip(np.floor((first + s / 2) / scale) - origin, 0, end)
        return low, np.clip(np.floor((last + s / 2) / scale) - origin, 0, end) + 1

    def centres(
        self, axis: int, spans: Sequence[Span], size: tuple[int, ...]
    ) -> list[tuple[int, int]]:
        """Along an axis, which pixels of the whole mask hold the centre of a small chunk.

        First and one past the last, for each of the spans that small chunks lie in, in order;
        one for those that meet.
        """
        s, m, scale = size[axis], self.multiple[axis], self.scale[axis]
        found: list[tuple[int, int]] = []
        for span in spans:
            first, last = -(-span.start // m) * m, (span.start + span.length - s) // m * m
            low, high = int((first + s / 2) // scale), int((last + s / 2) // scale) + 1
            if found and low <= found[-1][1]:
                low = found.pop()[0]
            found.append((low, high))
        return found

    def _needed(self, size: tuple[int, ...]) -> float:
        """Mask pixels that a small chunk must hold."""
        if self.least is None:
            return 0.5
        volume = np.prod([s / scale for s, scale in zip(size, self.scale, strict=True)])
        return float((self.least - _TOLERANCE) * volume)

    @cached_property
    def _summed(self) -> SummedArea:
        return SummedArea(self.mask)

    def cut(self, region: Region) -> Area:
        """The part that decides about small chunks inside a region. Small, to travel."""
        begin, end = [], []
        for o, e, s, first, n in zip(
            region.origin, region.shape, self.scale, self.origin, self.mask.shape, strict=True
        ):
            low = min(max(int(o / s) - first, 0), n - 1)
            begin.append(low)
            end.append(min(max(int(np.ceil((o + e) / s)) - first, low + 1), n))
        mask = self.mask[tuple(map(slice, begin, end))].copy()
        origin = tuple(f + b for f, b in zip(self.origin, begin, strict=True))
        return Area(mask, self.scale, self.least, origin, self.multiple)

    def tight(self) -> Area:
        """The part around what the mask covers; its border covers nothing."""
        where = np.nonzero(self.mask)
        if not where[0].size:
            return self
        low = [int(w.min()) for w in where]
        box = tuple(slice(a, int(w.max()) + 1) for a, w in zip(low, where, strict=True))
        origin = tuple(o + a - 1 for o, a in zip(self.origin, low, strict=True))
        return Area(np.pad(self.mask[box], 1), self.scale, self.least, origin, self.multiple)

    def __getstate__(self) -> tuple[object, ...]:
        packed = np.packbits(self.mask)
        return packed, self.mask.shape, self.scale, self.least, self.origin, self.multiple

    def __setstate__(self, state: tuple[object, ...]) -> None:
        packed, shape, *rest = state
        count = int(np.prod(shape))  # type: ignore[call-overload]
        mask = np.unpackbits(packed, count=count).astype(bool).reshape(shape)  # type: ignore[call-overload]
        names = ("mask", "scale", "least", "origin", "multiple")
        for name, value in zip(names, (mask, *rest), strict=True):
            object.__setattr__(self, name, value)


class Places:
    """The allowed places of some regions. A *row*: the number of a region and a place in it, 1 +
    axes integers.
    """

    def __init__(self, area: Area, regions: Sequence[Region], size: tuple[int, ...]) -> None:
        self._area = area
        self._size = size
        covers = [area.cover(region, size) for region in regions]
        self._owner = np.repeat(np.arange(len(covers)), [len(first) for first, _ in covers])
        self._first = np.concatenate([first for first, _ in covers])
        self._last = np.concatenate([last for _, last in covers])
        self._steps = np.array(area.multiple, np.int64)
        self._width = np.zeros(len(size), np.int64)
        if len(self._first):
            self._width = (self._last - self._first).max(axis=0) // self._steps + 1

    @property
    def bound(self) -> int:
        """There are no more than so many."""
        return len(self._first) * int(self._width.prod())

    def tried(self, rng: np.random.Generator, count: int) -> _Ints:
        """Try some of `bound` at random: the rows among them that are allowed, in order."""
        if not self.bound:
            return np.zeros((0, 1 + len(self._size)), np.int64)
        u = rng.random((count, 1 + len(self._size)))
        box = (u[:, 0] * len(self._first)).astype(np.int64)
        at = self._first[box] + (u[:, 1:] * self._width).astype(np.int64) * self._steps
        inside = np.flatnonzero((at <= self._last[box]).all(axis=1))  # boxes differ in extent
        kept = inside[self._area.allowed(at[inside], self._size)]
        return np.column_stack([self._owner[box[kept]], at[kept]])

    def all(self) -> _Ints:
        """Every row, found by halving boxes."""
        owner, first, last = self._owner, self._first, self._last
        while len(first) and (last > first).any():
            for axis, step in enumerate(self._steps.tolist()):
                wide = last[:, axis] > first[:, axis]
                middle = (first[:, axis] + last[:, axis]) // (2 * step) * step
                rest = first[wide].copy()
                rest[:, axis] = middle[wide] + step
                owner = np.concatenate([owner, owner[wide]])
                first, last = np.concatenate([first, rest]), np.concatenate([last, last[wide]])
                last[: len(wide)][wide, axis] = middle[wide]
            kept = self._area._possible(first, last, self._size)
            owner, first, last = owner[kept], first[kept], last[kept]
        rows = np.column_stack([owner, first])
        rows = rows[self._area.allowed(first, self._size)]
        return rows[np.lexsort(rows.T[::-1])]

    def any(self) -> bool:
        """Whether there is one at all."""
        found = self.tried(np.random.default_rng(0), _TRIES)
        return len(found) > 0 or len(self.all()) > 0


class Draws:
    """Allowed places in random order, none twice before all have been given, about `portion` at a
    time.

    Each is uniform among those not given yet. `random` gives the generator of a portion, from 1.
    """

    def __init__(
        self, places: Places, portion: int, random: Callable[[int], np.random.Generator]
    ) -> None:
        self._places = places
        self._portion = max(portion, _TRIES)
        self._random = random
        self._number = 0
        self._given: set[tuple[int, ...]] = set()
        self._supply: _Ints | None = None
        self._listed: _Ints | None = places.all() if places.bound <= _FEW else None

    def more(self) -> list[tuple[int, ...]]:
        """The next rows; none only when there is no place."""
        if self._listed is None:
            fresh = self._tried()
            if fresh:
                return fresh
        if self._supply is None or not len(self._supply):
            self._supply = self._shuffled()
        # few of many places are ever used: only these become Python numbers
        part, self._supply = np.split(self._supply, [self._portion])
        return [tuple(row) for row in part.tolist()]

    def _tried(self) -> list[tuple[int, ...]]:
        found = self._places.tried(self._next_random(), self._portion)
        rows = dict.fromkeys(tuple(row) for row in found.tolist())
        fresh = [row for row in rows if row not in self._given]
        self._given.update(fresh)
        if len(fresh) < _WORTH * self._portion:
            self._listed = self._places.all()
        return fresh

    def _shuffled(self) -> _Ints:
        """All that have not been given, or all anew, in random order."""
        listed = self._listed
        assert listed is not None
        if self._given:
            given = np.array(sorted(self._given), np.int64)
            self._given.clear()
            known = np.concatenate([listed, given])
            _, counts = np.unique(known, axis=0, return_counts=True)
            if (counts == 1).any():
                listed = listed[counts == 1]
        shuffled: _Ints = listed[self._next_random().permutation(len(listed))]
        return shuffled

    def _next_random(self) -> np.random.Generator:
        self._number += 1
        return self._random(self._number)


#: multiples of it modulo one are spread evenly, however many there are
GOLDEN = 0.6180339887498949


def spread(
    weights: npt.NDArray[np.float64], start: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """One lap over weighted things, in random order: how often each is visited is its share,
    rounded.

    Systematic sampling (Madow 1949): things of equal weight come exactly once each; in the mean
    over laps every thing comes in proportion to its weight, when `start` is spread evenly over [0,
    1), as multiples of `GOLDEN` are: it decides what is rounded up.
    """
    count = int(np.count_nonzero(weights))
    ends = np.cumsum(weights)
    marks = (np.arange(count) + start) * (ends[-1] / count)
    # a mark at the very end would fall behind the last thing by rounding
    picked = np.minimum(np.searchsorted(ends, marks, side="right"), np.flatnonzero(weights)[-1])
    lap: npt.NDArray[np.int64] = rng.permutation(picked).astype(np.int64)
    return lap
