"""Which windows a mask lets through.

A mask is an array of any resolution that lies over the whole image: False or 0 is left
out, True or 1 counts, numbers between count in part. The covered share of a window is the
exact area-weighted mean of the mask under it.

Not covered: making masks (tissue detection, annotations).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from daskdmed.core.coverage import check_aspect, covered
from daskdmed.core.errors import GeometryError
from daskdmed.core.types import Array
from daskdmed.tiling.grid import WindowGrid


def placed(
    mask: Any, shape: Sequence[int], downsample: Sequence[float]
) -> tuple[Any, tuple[float, ...]]:
    """What users give as the mask of an image, as values and the pixels that they span.

    Parameters
    ----------
    mask : array-like or TissueMask
        An array lies over the whole image; an object with `data` and `scale` (level-0 pixels
        per mask pixel and axis) lies where that says; one that knows the `shape0` (level-0
        extent) of its image must be of this image.
    shape : sequence of int
        Extent of the image along its spatial axes, in pixels.
    downsample : sequence of float
        Level-0 pixels per pixel of it.

    Returns
    -------
    values : array-like
        One axis per axis of space.
    spans : tuple of float
        Pixels of the image that they span from its first pixel.

    Raises
    ------
    GeometryError
        The mask does not fit, has another aspect ratio, or is of another image.
    """
    extent0: Any = getattr(mask, "shape0", None)
    scale: Any = getattr(mask, "scale", None)
    known = extent0 is not None or scale is not None
    values = mask.data if known else mask
    size = np.shape(values)
    if len(size) != len(shape) or 0 in size or (known and len(scale) != len(shape)):
        told = f" with scale {tuple(scale)}" if known else ""
        raise GeometryError(
            f"a mask of shape {size}{told} does not lie over an image of {tuple(shape)} pixels: "
            f"it needs {len(shape)} axes (array order) and may have any resolution"
        )
    if not known:
        check_aspect(size, shape, f"an image of {tuple(shape)} pixels")
        return values, tuple(shape)
    if extent0 is None:
        return values, tuple(
            n * float(s) / d for n, s, d in zip(size, scale, downsample, strict=True)
        )
    # of coarse levels the extent is rounded to whole pixels
    whole = [n * d for n, d in zip(shape, downsample, strict=True)]
    limits = [max(s, d) for s, d in zip(scale, downsample, strict=True)]
    if any(abs(a - b) > most for a, b, most in zip(extent0, whole, limits, strict=True)):
        raise GeometryError(
            f"the mask is of an image of {tuple(extent0)} pixels at level 0, this one has about "
            f"{tuple(round(n) for n in whole)}; make the mask from the same image"
        )
    return values, tuple(e / d for e, d in zip(extent0, downsample, strict=True))


def coverage(mask: ArrayLike, grid: WindowGrid, extent: Sequence[float] | None = None) -> Array:
    """Covered share of each window.

    Parameters
    ----------
    mask : array-like
        As many axes as the grid, over the whole image at any resolution; bool or numbers
        between 0 and 1. Dask arrays are computed.
    grid : WindowGrid
        The windows.
    extent : sequence of float, optional
        Pixels of the grid's image that the mask spans along each axis, from its first
        pixel: what a mask with a scale of its own covers, which is seldom the image to the
        pixel. Default: the image. Beyond the mask nothing is covered.

    Returns
    -------
    ndarray of float64
        One value per window, in [0, 1]: the share of the part of the window that lies
        inside the image.

    Raises
    ------
    GeometryError
        The mask has another number of axes or another aspect ratio, is empty, or holds values
        outside [0, 1]; or `extent` is not one positive number per axis.
    """
    share = np.asarray(mask)
    if share.ndim != grid.ndim or 0 in share.shape:
        raise GeometryError(
            f"a mask of shape {share.shape} does not lie over an image of shape {grid.shape}: "
            f"it needs {grid.ndim} axes (array order) and may have any resolution"
        )
    if share.dtype.kind not in "biuf":
        raise GeometryError(f"a mask is made of bool or numbers, got {share.dtype}")
    if share.dtype != np.bool_ and not (share.min() >= 0 and share.max() <= 1):
        raise GeometryError(
            f"mask values must lie in [0, 1], got {share.min()} to {share.max()}; "
            "for a label image compare first, for example mask=labels > 0"
        )
    if extent is None:
        check_aspect(share.shape, grid.shape, f"an image of {grid.shape} pixels")
    spans = tuple(grid.shape if extent is None else extent)
    if len(spans) != grid.ndim or not all(np.isfinite(s) and s > 0 for s in spans):
        raise GeometryError(
            f"a mask spans a positive number of pixels along each of {grid.ndim} axes, got {spans}"
        )
    clipped: Array = np.clip(covered(share, _windows(grid), spans), 0.0, 1.0)
    return clipped


def _windows(grid: WindowGrid) -> list[list[tuple[int, int]]]:
    """Per axis first and last pixel of each window, as far as it lies inside the image."""
    boxes = []
    for axis, (size, kernel) in enumerate(zip(grid.shape, grid.kernel_size, strict=True)):
        begins = (grid.axis_origin(axis, i) for i in range(grid.counts[axis]))
        boxes.append([(begin, min(begin + kernel, size)) for begin in begins])
    return boxes


def kept_windows(
    mask: ArrayLike,
    grid: WindowGrid,
    minimum: float = 0.0,
    extent: Sequence[float] | None = None,
) -> Array:
    """Which windows are computed: those with some cover, and at least `minimum`.

    Parameters
    ----------
    mask, grid, extent
        As in `coverage`.
    minimum : float
        Least covered share, in [0, 1].

    Returns
    -------
    ndarray of bool
        One value per window.
    """
    if not 0 <= minimum <= 1:
        raise GeometryError(f"the least covered share must lie in [0, 1], got {minimum}")
    share = coverage(mask, grid, extent)
    # sums of products of floats: what equals the minimum must not fall below it
    return (share > 1e-12) & (share >= minimum - 1e-12)
