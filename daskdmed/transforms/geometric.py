"""Flips and quarter turns of images and volumes, together with their targets.

Each small chunk gets a *turn*: a permutation of its spatial axes and a set of axes to
reverse. Turns compose, so any number of transforms in a row (see
`daskdmed.transforms.compose`) is one pass over the pixels: small chunks with the same turn
are moved together, at most 8 groups for images. Pixels are moved, never interpolated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Params, Tensor, Transform, check_probability
from daskdmed.transforms.keyed import Samples

#: torch moves few of its unsigned types about; the signed one of the same size is as good
_SIGNED = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """A turn for each small chunk: arrays (batch, spatial axes) of int64 and bool.

    Axis j of the result is axis ``axes[:, j]`` of the source, reversed where ``flips[:, j]``.
    """

    axes: Array
    flips: Array

    def then(self, other: Turns) -> Turns:
        """This turn and after it another one, as one."""
        axes = np.take_along_axis(self.axes, other.axes, axis=1)
        flips = np.take_along_axis(self.flips, other.axes, axis=1) ^ other.flips
        return Turns(axes, flips)

    def groups(self) -> list[tuple[tuple[int, ...], tuple[int, ...], Array]]:
        """(axes, axes of the result to reverse, rows) of each distinct turn."""
        ndim = self.axes.shape[1]
        code = np.concatenate([self.axes, self.flips], axis=1) @ (ndim + 2) ** np.arange(2 * ndim)
        _, first, member = np.unique(code, return_index=True, return_inverse=True)
        return [
            (
                tuple(self.axes[at].tolist()),
                tuple(np.flatnonzero(self.flips[at]).tolist()),
                np.flatnonzero(member == group),
            )
            for group, at in enumerate(first.tolist())
        ]


def turn(x: Tensor, turns: Turns, axes: Sequence[int]) -> Tensor:
    """Move the pixels of each small chunk; gives `x` itself when nothing moves."""
    if x.dtype in _SIGNED:
        return turn(x.view(_SIGNED[x.dtype]), turns, axes).view(x.dtype)
    if axes[0] == 2 and x.movedim(1, -1).is_contiguous():
        # channels last in memory: whole pixels are moved
        return turn(x.movedim(1, -1), turns, [a - 1 for a in axes]).movedim(-1, 1)
    groups = turns.groups()
    if not any(_moves(source, flips) for source, flips, _ in groups):
        return x
    for source, _, _ in groups:
        _check_extent(x, source, axes)
    if len(groups) == 1:
        return torch.empty_like(x).copy_(_turn_all(x, *groups[0][:2], axes))
    # those of a group side by side, and back: gathering is far faster than scattering
    order = np.concatenate([rows for _, _, rows in groups])
    together = x.index_select(0, torch.from_numpy(order).to(x.device))
    turned = torch.empty_like(together)
    start = 0
    for source, flips, rows in groups:
        part = slice(start, start + len(rows))
        turned[part].copy_(_turn_all(together[part], source, flips, axes))
        start = part.stop
    return turned.index_select(0, torch.from_numpy(np.argsort(order)).to(x.device))


def _turn_all(
    x: Tensor, source: Sequence[int], flips: Sequence[int], axes: Sequence[int]
) -> Tensor:
    """The same turn for a whole batch; a view where nothing is reversed."""
    order = list(range(x.ndim))
    for axis, origin in zip(axes, source, strict=True):
        order[axis] = axes[origin]
    turned = x.permute(order)
    return turned.flip([axes[j] for j in flips]) if flips else turned


def _moves(source: Sequence[int], flips: Sequence[int]) -> bool:
    return bool(flips) or list(source) != sorted(source)


def _check_extent(x: Tensor, source: Sequence[int], axes: Sequence[int]) -> None:
    extent = [x.shape[a] for a in axes]
    if [extent[s] for s in source] != extent:
        raise UsageError(
            f"a quarter turn exchanges axes of differing extent {tuple(extent)}, which makes "
            "no batch of one shape: turn in another plane, crop to squares, or use "
            "RandomFlip, which needs none"
        )


class Geometric(Transform):
    """A transform that moves whole pixels, and those of targets along."""

    @abstractmethod
    def turns(self, params: Params, spatial_ndim: int) -> Turns:
        """The turn of each small chunk with so many spatial axes."""

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        return turn(x, self.turns(params, x.ndim - 2), range(2, x.ndim))

    def on_target(self, target: Tensor, params: Params, axes: tuple[int, ...]) -> Tensor:
        """Turn targets by as much; their values stay as they are."""
        return turn(target, self.turns(params, len(axes)), axes)


class RandomFlip(Geometric):
    """Reverse each declared axis with a probability, each independently.

    Parameters
    ----------
    axes : sequence of int, default (-2, -1)
        Spatial axes in array order, negative from the last: (-2, -1) is (y, x) of an image
        and of a (z, y, x) volume; add -3 to reverse volumes along z too.
    p : float, default 0.5
        Probability for each axis.
    seed : int, default 0
        See `Transform`.

    Notes
    -----
    Parameters: ``flip``, bool [batch, axes].
    """

    def __init__(self, axes: Sequence[int] = (-2, -1), *, p: float = 0.5, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.axes = tuple(int(a) for a in axes)
        self.p = check_probability("p", p)
        if not self.axes:
            raise UsageError("RandomFlip needs at least one axis")

    def parameters(self, samples: Samples) -> Params:
        return {"flip": samples.uniform(len(self.axes)) < self.p}

    def turns(self, params: Params, spatial_ndim: int) -> Turns:
        flip = params["flip"]
        flips = np.zeros((len(flip), spatial_ndim), bool)
        for column, axis in enumerate(self.axes):
            flips[:, spatial_axis(axis, spatial_ndim)] ^= flip[:, column]
        return Turns(np.tile(np.arange(spatial_ndim), (len(flip), 1)), flips)


class RandomRotate90(Geometric):
    """Turn by 0, 90, 180 or 270 degrees with equal probability.

    Parameters
    ----------
    planes : sequence of (int, int), default ((-2, -1),)
        Planes to turn in, as pairs of spatial axes in array order; of several, one is
        chosen for each small chunk. One quarter turn takes the second axis to the first, as
        `numpy.rot90` does: in (-2, -1), (y, x), counterclockwise as displayed.
    p : float, default 1.0
        Probability of drawing a turn at all (0 degrees being one of the four).
    seed : int, default 0
        See `Transform`.

    Notes
    -----
    Parameters: ``quarters``, int64 [batch] in 0..3, and ``plane``, int64 [batch].
    With `RandomFlip` in both axes all eight symmetries of the square are equally likely.
    """

    def __init__(
        self,
        planes: Sequence[tuple[int, int]] = ((-2, -1),),
        *,
        p: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.planes = tuple((int(a), int(b)) for a, b in planes)
        self.p = check_probability("p", p)
        if not self.planes or any(a == b for a, b in self.planes):
            raise UsageError(f"planes must be pairs of two different axes, got {planes!r}")

    def parameters(self, samples: Samples) -> Params:
        u = samples.uniform(3)
        quarters = (u[:, 0] * 4).astype(np.int64)
        return {
            "quarters": np.where(u[:, 1] < self.p, quarters, 0),
            "plane": (u[:, 2] * len(self.planes)).astype(np.int64),
        }

    def turns(self, params: Params, spatial_ndim: int) -> Turns:
        """One quarter: exchange the axes of the plane and reverse the first."""
        quarters, plane = params["quarters"], params["plane"]
        axes = np.tile(np.arange(spatial_ndim), (len(quarters), 1))
        flips = np.zeros(axes.shape, bool)
        for number, (a, b) in enumerate(self.planes):
            i, j = spatial_axis(a, spatial_ndim), spatial_axis(b, spatial_ndim)
            if i == j:
                raise UsageError(f"plane {(a, b)} is one axis twice with {spatial_ndim} axes")
            odd = (plane == number) & (quarters % 2 == 1)
            axes[odd, i], axes[odd, j] = j, i
            flips[:, i] |= (plane == number) & ((quarters == 1) | (quarters == 2))
            flips[:, j] |= (plane == number) & ((quarters == 3) | (quarters == 2))
        return Turns(axes, flips)


def spatial_axis(axis: int, spatial_ndim: int) -> int:
    """An axis counted from either end, from the start."""
    if not -spatial_ndim <= axis < spatial_ndim:
        raise UsageError(
            f"there is no spatial axis {axis}: the images have {spatial_ndim} spatial axes"
        )
    return axis % spatial_ndim
