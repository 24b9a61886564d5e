"""From what users give a sliding-window loader to images with their windows.

Every image is opened at its resolution, its grid laid, its mask applied, its blocks chosen.
No pixels are read, except by masks that are functions of the patient and look at them.

Not covered: what users may give (`daskdmed.cohort.sources`), and the order of work
(`daskdmed.loading.sliding.plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from daskdmed.cohort.patient import Patient
from daskdmed.cohort.sources import Image, Images, open_all
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array, OnError
from daskdmed.core.view import ImageView
from daskdmed.images.context import ContextEdge, ContextLike, with_context
from daskdmed.inference.inputs import windows_inside
from daskdmed.loading.sliding.plan import ImageWindows, fit_block, pixel_bytes
from daskdmed.loading.sliding.read import WindowFailure
from daskdmed.tiling.grid import Edge, OverlapLike, PerAxis, WindowGrid, per_axis

#: an array over the whole image, or an object with `data` and `scale` (level-0 pixels per
#: mask pixel along each axis); None delivers every window
MaskLike: TypeAlias = Any
#: the mask of one image, masks by patient id, or a function of the patient
MasksLike: TypeAlias = "MaskLike | Mapping[Any, MaskLike] | Callable[[Patient], MaskLike]"


@dataclass(frozen=True)
class Layout:
    """How windows are laid over every image; two blocks must fit into `budget` bytes."""

    kernel_size: PerAxis
    stride: PerAxis | None
    overlap: OverlapLike | None
    edge: Edge
    min_mask: float
    block_windows: PerAxis | None
    budget: int
    context: ContextLike | None = None
    context_edge: ContextEdge = "reflect"

    def over(self, image: Image, mask: MaskLike) -> ImageWindows:
        """Open one image and lay its windows."""
        view = with_context(image.view(), self.context, self.context_edge)
        grid = WindowGrid.of(
            view.spatial_shape,
            self.kernel_size,
            stride=self.stride,
            overlap=self.overlap,
            edge=self.edge,
        )
        keep = self._keep(mask, view, grid)
        blocks = self._blocks(view, grid)
        level = image.resolution.level
        return ImageWindows(image.patient, image.record_name, view, grid, blocks, keep, level)

    def _blocks(self, view: ImageView, grid: WindowGrid) -> tuple[int, ...]:
        if not len(grid):
            return (1,) * grid.ndim
        if self.block_windows is None:
            return fit_block(grid, view.tile_shape, pixel_bytes(view), self.budget)
        wanted = per_axis(self.block_windows, grid.ndim, "block_windows")
        if min(wanted) < 1:
            raise GeometryError(f"block_windows must be at least 1, got {wanted}")
        return tuple(min(n, c) for n, c in zip(wanted, grid.counts, strict=True))

    def _keep(self, mask: MaskLike, view: ImageView, grid: WindowGrid) -> Array | None:
        if mask is None:
            return None
        if not len(grid):
            return np.ones(grid.counts, bool)
        return windows_inside(mask, view, grid, self.min_mask)


def open_images(
    images: Images, layout: Layout, mask: MasksLike, on_error: OnError
) -> tuple[list[ImageWindows], list[WindowFailure]]:
    """Open everything, in parallel: what can be used, in order, and what cannot."""
    mask_of = images.each(mask, "mask")
    opened, failures = open_all(images, lambda i: layout.over(i, mask_of(i)), on_error)
    _check(opened)
    unknown = np.empty((0, opened[0].grid.ndim), np.int64)
    return opened, [
        WindowFailure(f.patient, f.record, f.where, f.message, unknown) for f in failures
    ]


def _check(images: list[ImageWindows]) -> None:
    first = images[0]
    if not any(len(image.grid) for image in images):
        raise GeometryError(
            f"no window of {first.grid.kernel_size} pixels lies inside any of {len(images)} "
            f"images (the first has {first.grid.shape}); edge='pad' or 'shift' keeps windows "
            "over the border, or use a finer level"
        )
    for image in images[1:]:
        a, b = first.view, image.view
        if (a.dtype, a.channel_shape) != (b.dtype, b.channel_shape):
            raise UsageError(
                f"images must agree in channels and sample type: patient {first.patient.id!r} "
                f"has {a.channel_shape} {a.dtype}, patient {image.patient.id!r} has "
                f"{b.channel_shape} {b.dtype}; filter the dataset or convert the images"
            )
