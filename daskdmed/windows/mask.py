"""Which windows a mask lets through.

A mask is an array of any resolution that lies over the whole image: False or 0 is left
out, True or 1 counts, numbers between count in part. The covered share of a window is the
exact area-weighted mean of the mask under it.

Not covered: making masks (tissue detection, annotations).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from daskdmed.errors import GeometryError
from daskdmed.types import Array
from daskdmed.windows.grid import WindowGrid


def coverage(mask: ArrayLike, grid: WindowGrid) -> Array:
    """Covered share of each window.

    Parameters
    ----------
    mask : array-like
        As many axes as the grid, over the whole image at any resolution; bool or numbers
        between 0 and 1. Dask arrays are computed.
    grid : WindowGrid
        The windows.

    Returns
    -------
    ndarray of float64
        One value per window, in [0, 1]: the share of the part of the window that lies
        inside the image.

    Raises
    ------
    GeometryError
        The mask has another number of axes, is empty, or holds values outside [0, 1].
    """
    share = np.asarray(mask)
    if share.ndim != grid.ndim or 0 in share.shape:
        raise GeometryError(
            f"a mask of shape {share.shape} does not lie over an image of shape {grid.shape}: "
            f"it needs {grid.ndim} axes (array order) and may have any resolution"
        )
    if share.dtype != np.bool_ and not (share.min() >= 0 and share.max() <= 1):
        raise GeometryError(
            f"mask values must lie in [0, 1], got {share.min()} to {share.max()}; "
            "for a label image compare first, for example mask=labels > 0"
        )
    for axis in range(grid.ndim):
        # each pass consumes the mask's leading axis and appends the windows of that axis
        share = np.moveaxis(_axis_means(share, grid, axis), 0, -1)
    clipped: Array = np.clip(share, 0.0, 1.0)
    return clipped


def _axis_means(values: Array, grid: WindowGrid, axis: int) -> Array:
    """Mean of the leading axis under each window of `axis`, (windows, *rest)."""
    size, kernel = grid.shape[axis], grid.kernel_size[axis]
    cells = values.shape[0]
    out = np.empty((grid.counts[axis], *values.shape[1:]))
    for i in range(len(out)):
        begin = grid.axis_origin(axis, i)
        stop = min(begin + kernel, size)
        # in mask cells, kept as integer numerators over `size` so that edges are exact
        first, last = begin * cells // size, -(-stop * cells // size)
        edges = np.arange(first, last + 1) * size
        weights = np.diff(np.clip(edges, begin * cells, stop * cells)).astype(np.float64)
        out[i] = np.tensordot(weights / weights.sum(), values[first:last], axes=(0, 0))
    return out


def kept_windows(mask: ArrayLike, grid: WindowGrid, minimum: float = 0.0) -> Array:
    """Which windows are computed: those with some cover, and at least `minimum`.

    Parameters
    ----------
    mask, grid
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
    share = coverage(mask, grid)
    # sums of products of floats: what equals the minimum must not fall below it
    return (share > 1e-12) & (share >= minimum - 1e-12)
