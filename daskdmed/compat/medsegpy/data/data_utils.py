"""Patches of an image, and masks as a network is trained on them.

`compute_patches` is the window grid of daskdmed, `collect_mask` its `Categories`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.annotations.categories import Categories
from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.tiling.grid import PerAxis, WindowGrid, per_axis

logger = logging.getLogger("daskdmed.compat")

#: voxels outside of the image, before and behind each axis
Pad: TypeAlias = tuple[tuple[int, int], ...]
#: where a patch lies in the image, and what of it lies outside
Patch: TypeAlias = tuple[tuple[slice, ...], Pad | None]


@dataclass(frozen=True)
class PatchGrid:
    """Patches of an image that is padded: every voxel lies in one at least, unless the stride is
    larger than the patch.

    `before`: voxels added before the first along each axis; `grid` counts from these.
    """

    grid: WindowGrid
    shape: tuple[int, ...]
    before: tuple[int, ...]

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        patch_size: PerAxis | None,
        pad_size: PerAxis | None,
        strides: PerAxis | None,
    ) -> PatchGrid:
        """From what users write; see `compute_patches`."""
        shape = tuple(int(n) for n in shape)
        axes = len(shape)
        given = (-1,) * axes if patch_size is None else per_axis(patch_size, axes, "patch_size")
        patch = tuple(n if p == -1 else p for n, p in zip(shape, given, strict=True))
        if pad_size is None or (isinstance(pad_size, Sequence) and not len(pad_size)):
            pad_size = 0
        pad = per_axis(pad_size, axes, "pad_size")
        if any(p < 0 or p >= k for p, k in zip(pad, patch, strict=True)):
            raise GeometryError(
                f"pad_size={pad} must be at least 0 and smaller than the patch {patch}: a patch "
                "would lie outside of the image altogether"
            )
        # an image smaller than a patch lies in its middle
        lack = [max(k - n - 2 * p, 0) for k, n, p in zip(patch, shape, pad, strict=True)]
        before = tuple(p + m // 2 for p, m in zip(pad, lack, strict=True))
        padded = tuple(n + 2 * p + m for n, p, m in zip(shape, pad, lack, strict=True))
        step = None if strides is None or np.size(strides) == 0 else strides
        grid = WindowGrid.of(padded, patch, stride=step, edge="shift")
        if any(s > k for s, k in zip(grid.stride, patch, strict=True)):
            logger.warning(
                "patches of %s every %s leave voxels out: take a stride of at most the patch",
                patch,
                grid.stride,
            )
        return cls(grid, shape, before)

    @property
    def overlapping(self) -> bool:
        """Whether a voxel lies in more than one patch."""
        grid = self.grid
        each = zip(grid.shape, grid.kernel_size, grid.stride, strict=True)
        return any(n > k and (s < k or (n - k) % s) for n, k, s in each)

    @property
    def around(self) -> Pad:
        """Voxels added before and behind each axis."""
        return tuple(
            (b, p - n - b) for b, p, n in zip(self.before, self.grid.shape, self.shape, strict=True)
        )

    def __len__(self) -> int:
        return len(self.grid)

    def region(self, number: int) -> Region:
        """Where a patch lies in the image; it may reach outside."""
        index = np.unravel_index(number, self.grid.counts)
        origin = self.grid.origin([int(i) for i in index])
        moved = tuple(o - b for o, b in zip(origin, self.before, strict=True))
        return Region(moved, self.grid.kernel_size)


def outside(region: Region, shape: Sequence[int]) -> Pad | None:
    """What of a region lies outside of an image, before and behind each axis; None when nothing."""
    pad = tuple(
        (max(-a, 0), max(b - n, 0))
        for a, b, n in zip(region.origin, region.stop, shape, strict=True)
    )
    return pad if any(any(ends) for ends in pad) else None


def compute_patches(
    img_size: Sequence[int],
    patch_size: PerAxis | None = None,
    pad_size: PerAxis | None = None,
    strides: PerAxis | None = None,
) -> tuple[Patch, ...]:
    """Where the patches of an image lie, first axis slowest.

    Every voxel, and every one that is added by `pad_size`, lies in a patch: the last patch of an
    axis is moved inside. An image smaller than a patch is padded on both sides.

    Parameters
    ----------
    img_size : sequence of int
        Of the image, along each axis.
    patch_size : int or sequence of int, optional
        Of a patch; -1 along an axis, and None, is the whole of it.
    pad_size : int or sequence of int, optional
        Voxels added before and behind each axis.
    strides : int or sequence of int, optional
        Distance of patches, by default the patch; a larger one leaves voxels out.

    Returns
    -------
    tuple of (tuple of slice, pad or None)
        The part that lies in the image, and how much lies outside: ``((before, behind), ...)``.

    Raises
    ------
    GeometryError
        Sizes that fit no image, or a pad as large as a patch.

    Examples
    --------
    >>> [part[0].start for part, _ in compute_patches((10,), 4)]
    [0, 4, 6]
    """
    found = PatchGrid.of(img_size, patch_size, pad_size, strides)
    patches = []
    for number in range(len(found)):
        region = found.region(number)
        patches.append((region.clip(found.shape).slices, outside(region, found.shape)))
    return tuple(patches)


def categories_of(index: Sequence[Any], background: bool = False) -> Categories | None:
    """Classes of positions of masks; None for no positions, which are all."""
    if not len(index):
        return None
    given = [i if np.ndim(i) == 0 else tuple(i) for i in index]
    return Categories(given, background="first" if background else None)


def collect_mask(mask: npt.ArrayLike, index: Sequence[Any]) -> Array:
    """Masks of the classes, as uint8 of zeros and ones.

    Parameters
    ----------
    mask : array-like
        (..., masks).
    index : sequence
        Position of the mask of each class, or several of which it consists: ``(0, (1, 2), 3)``.
        A voxel of several of these is 1, once.

    Raises
    ------
    GeometryError
        There is no mask at a position.
    """
    found = categories_of(index)
    if found is None:
        every: Array = (np.asarray(mask) != 0).astype(np.uint8)
        return every
    return found.collate_channels(mask)


def add_background_labels(mask: npt.ArrayLike, background_last: bool = False) -> Array:
    """Masks with another one that is 1 where none of them is: before them, or behind."""
    masks = np.asarray(mask)
    own = ~(masks != 0).any(axis=-1, keepdims=True)
    parts = [masks, own.astype(masks.dtype)]
    return np.concatenate(parts if background_last else parts[::-1], axis=-1)


__all__ = ["add_background_labels", "collect_mask", "compute_patches"]
