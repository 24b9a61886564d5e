"""Where in an image small chunks may lie: exact drawing from a low-resolution mask.

A small chunk is allowed when the mask covers at least a fraction of it (tissue), or when
its centre lies in the mask (a class of annotations). Instead of trying places until one
fits, all allowed first pixels on a lattice are found at once from the mask's summed-area
table, and drawn without repetition. The mask is constant within its pixels, so the table
interpolated linearly gives the covered fraction exactly, at any place.

Pure geometry for any number of axes. Not covered: where masks come from
(`daskdmed.persistence.sources`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from daskdmed.core.coverage import SummedArea
from daskdmed.core.errors import UsageError
from daskdmed.core.randomness import Purpose, generator
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.persistence.blockgrid import BlockGrid

#: covered fractions are sums of rounded products; a chunk that is short by less passes
_TOLERANCE = 1e-6
#: big chunks are weighed on every so many lattice points along each axis
_THIN = 4


@dataclass(frozen=True, eq=False)
class Area:
    """Where small chunks of a record may lie.

    Parameters
    ----------
    mask : ndarray of bool
        One axis per spatial axis.
    scale : tuple of float
        Pixels of the view per mask pixel along each axis.
    least : float or None
        Fraction of a small chunk that the mask must cover, in (0, 1]; None when instead its
        centre must lie in the mask.
    origin : tuple of int
        Mask pixel of the whole image at which `mask` begins.
    multiple : tuple of int
        First pixels of small chunks are multiples of this, per axis.
    step : tuple of int, optional
        Pixels between lattice points, a mask pixel by default.
    """

    mask: npt.NDArray[np.bool_]
    scale: tuple[float, ...]
    least: float | None
    origin: tuple[int, ...]
    multiple: tuple[int, ...]
    step: tuple[int, ...] | None = None

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

    # -- lattice --------------------------------------------------------------------

    @property
    def steps(self) -> tuple[int, ...]:
        """Pixels between lattice points: whole multiples of `multiple`."""
        wanted = self.step or self.scale
        return tuple(max(m, int(s) // m * m) for s, m in zip(wanted, self.multiple, strict=True))

    def shifts(self) -> int:
        """How many shifted lattices there are; together they hold every first pixel."""
        per_axis = [s // m for s, m in zip(self.steps, self.multiple, strict=True)]
        return int(np.prod(per_axis))

    def shift(self, number: int, key: int, *place: int) -> tuple[int, ...]:
        """One of the shifted lattices: number 0 to `shifts` - 1 are all different."""
        per_axis = [s // m for s, m in zip(self.steps, self.multiple, strict=True)]
        count = self.shifts()
        start = int(generator(key, Purpose.SHIFT, *place).integers(count))
        # a stride prime to the count visits every shift before any repeats
        flat = (start + number * _coprime(count)) % count
        shift = []
        for n, m in zip(reversed(per_axis), reversed(self.multiple), strict=True):
            flat, at = divmod(flat, n)
            shift.append(at * m)
        return tuple(reversed(shift))

    def candidates(
        self, region: Region, size: tuple[int, ...], shift: tuple[int, ...]
    ) -> npt.NDArray[np.int64]:
        """Allowed first pixels of small chunks that lie inside a region.

        Parameters
        ----------
        region : Region
            In pixels of the view.
        size : tuple of int
            Extent of a small chunk.
        shift : tuple of int
            Of the lattice, from `shift`.

        Returns
        -------
        ndarray of int64, shape (n, axes)
            In the frame of the view, in order. Empty when there are none on this lattice.
        """
        axes = []
        for o, e, s, step, at in zip(
            region.origin, region.shape, size, self.steps, shift, strict=True
        ):
            first = o + (at - o) % step
            axes.append(np.arange(first, o + e - s + 1, step, dtype=np.int64))
        if any(a.size == 0 for a in axes):
            return np.zeros((0, len(size)), np.int64)
        allowed = self._allowed(axes, size)
        found = np.argwhere(allowed)
        return np.stack([a[found[:, i]] for i, a in enumerate(axes)], axis=1)

    def _allowed(self, axes: list[npt.NDArray[np.int64]], size: tuple[int, ...]) -> Array:
        if self.least is None:
            inside: Array = self.mask
            for axis, (a, s) in enumerate(zip(axes, size, strict=True)):
                at = ((a + s / 2) / self.scale[axis]).astype(np.int64) - self.origin[axis]
                inside = inside.take(np.clip(at, 0, self.mask.shape[axis] - 1), axis=axis)
            return inside
        return self.covered(axes, size) >= self.least - _TOLERANCE

    def covered(self, axes: list[npt.NDArray[np.int64]], size: tuple[int, ...]) -> Array:
        """Covered fraction of the small chunks at every combination of first pixels.

        Parameters
        ----------
        axes : list of ndarray of int64
            First pixels along each axis, in the frame of the view.
        size : tuple of int
            Extent of a small chunk.

        Returns
        -------
        ndarray of float64, shape (len(axes[0]), len(axes[1]), ...)
        """
        ends = [
            (a / scale - first, (a + s) / scale - first)
            for a, s, scale, first in zip(axes, size, self.scale, self.origin, strict=True)
        ]
        sizes = [s / scale for s, scale in zip(size, self.scale, strict=True)]
        return self._summed.means(ends, sizes)

    @cached_property
    def _summed(self) -> SummedArea:
        return SummedArea(self.mask)

    # -- blocks ---------------------------------------------------------------------

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
        return Area(mask, self.scale, self.least, origin, self.multiple, self.step)

    def weights(self, grid: BlockGrid, size: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """About how many small chunks each big chunk can give, on the unshifted lattice.

        Returns
        -------
        ndarray of float64, shape (len(grid),)
            0 where a big chunk holds nothing that is allowed.
        """
        found = np.zeros(len(grid))
        for number in range(len(grid)):
            region = grid.region(number)
            part = self.cut(region)
            if part.mask.any():
                found[number] = part._places(region, size)
        return found

    def _places(self, region: Region, size: tuple[int, ...]) -> float:
        """About how many lattice points are allowed; 0 only where there are none."""
        rooms = zip(region.shape, size, self.steps, strict=True)
        everywhere = float(np.prod([(e - s) // step + 1 for e, s, step in rooms]))
        if self.mask.all():
            return everywhere
        zero = (0,) * len(size)
        steps = tuple(s * _THIN for s in self.steps)
        thin = replace(self, step=steps).candidates(region, size, zero)
        if len(thin):
            return len(thin) * float(_THIN ** len(size))
        return float(len(self.candidates(region, size, zero)))

    def __getstate__(self) -> tuple[object, ...]:
        packed = np.packbits(self.mask)
        rest = (self.scale, self.least, self.origin, self.multiple, self.step)
        return packed, self.mask.shape, *rest

    def __setstate__(self, state: tuple[object, ...]) -> None:
        packed, shape, *rest = state
        count = int(np.prod(shape))  # type: ignore[call-overload]
        mask = np.unpackbits(packed, count=count).astype(bool).reshape(shape)  # type: ignore[call-overload]
        names = ("mask", "scale", "least", "origin", "multiple", "step")
        for name, value in zip(names, (mask, *rest), strict=True):
            object.__setattr__(self, name, value)


def _coprime(count: int) -> int:
    """A stride that visits 0 to count - 1 in a spread order, each once."""
    stride = max(1, round(count * 0.6180339887498949))
    while np.gcd(stride, count) != 1:
        stride += 1
    return stride


def spread(weights: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """One lap over weighted things: how often each is visited is its share, rounded.

    Systematic sampling (Madow 1949): things of equal weight come exactly once each; in the
    mean over laps every thing comes in proportion to its weight.

    Parameters
    ----------
    weights : ndarray, shape (things,)
        Not negative, not all zero.
    rng : numpy.random.Generator
        Source of the order and of the rounding.

    Returns
    -------
    ndarray of int64, shape (number of things with a positive weight,)
        Numbers of things, in random order.
    """
    count = int(np.count_nonzero(weights))
    ends = np.cumsum(weights)
    marks = (np.arange(count) + rng.random()) * (ends[-1] / count)
    # a mark at the very end would fall behind the last thing by rounding
    picked = np.minimum(np.searchsorted(ends, marks, side="right"), np.flatnonzero(weights)[-1])
    lap: npt.NDArray[np.int64] = rng.permutation(picked).astype(np.int64)
    return lap
