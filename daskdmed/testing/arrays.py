"""Arrays whose pixels tell where they come from, and a comparison that says what differs.

Plain NumPy, any number of dimensions. Not covered: image files (see
`daskdmed.testing.conformance` and `daskdmed.samples`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import GeometryError
from daskdmed.core.types import Array


def coordinate_image(shape: Sequence[int], dtype: npt.DTypeLike = "int32") -> Array:
    """An array in which every pixel encodes its own coordinates.

    Parameters
    ----------
    shape : sequence of int
        Extent along each spatial axis, (y, x) or (z, y, x).
    dtype : dtype
        "uint8" gives a last axis of 3 channels that hold the number of the pixel in base
        256, highest digit first. Any other type gives that number itself, without a
        channel axis.

    Returns
    -------
    ndarray
        Of shape ``(*shape, 3)`` for uint8, else `shape`. Pixels are numbered in C order; an error
        where the type cannot number so many. `coordinates_of` is the inverse.

    Examples
    --------
    >>> image = coordinate_image((2, 300), "uint8")
    >>> image[1, 2]
    array([0, 1, 46], dtype=uint8)
    >>> coordinates_of(image[1, 2], (2, 300))
    array([1, 2])
    """
    kind = np.dtype(dtype)
    count = math.prod(shape)
    limit = 2**24 if kind == np.uint8 else _largest(kind) + 1
    if count > limit:
        raise GeometryError(
            f"an image of shape {tuple(shape)} has {count} pixels, {kind} can number {limit}; "
            f"take a wider type or a smaller image"
        )
    index = np.arange(count, dtype=np.int64).reshape(tuple(shape))
    if kind != np.uint8:
        return index.astype(kind)
    return np.stack([index >> 16, (index >> 8) & 255, index & 255], axis=-1).astype(np.uint8)


def coordinates_of(pixels: Array, shape: Sequence[int]) -> Array:
    """Where pixels of a `coordinate_image` of a spatial shape come from.

    They may be any part of it, in any arrangement, uint8 with 3 channels last; the coordinates,
    int64, lie along a new last axis, in array order.
    """
    index = pixels.astype(np.int64)
    if pixels.dtype == np.uint8:
        index = (index[..., 0] << 16) | (index[..., 1] << 8) | index[..., 2]
    return np.stack(np.unravel_index(index, tuple(shape)), axis=-1)


def assert_same_pixels(actual: Array, expected: Array, *, atol: float = 0, what: str = "") -> None:
    """Assert that two arrays agree in shape, dtype and every value, up to `atol`.

    The message, behind `what`, says how many values differ, how much, and where first.
    """
    prefix = f"{what}: " if what else ""
    if actual.shape != expected.shape:
        raise AssertionError(f"{prefix}shape {actual.shape}, expected {expected.shape}")
    if actual.dtype != expected.dtype:
        raise AssertionError(f"{prefix}dtype {actual.dtype}, expected {expected.dtype}")
    if atol == 0 and np.array_equal(actual, expected):
        return
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    wrong = ~(difference <= atol) & ~((actual != actual) & (expected != expected))
    if not wrong.any():
        return
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise AssertionError(
        f"{prefix}{int(wrong.sum())} of {wrong.size} values differ by more than {atol}, at most "
        f"by {difference[wrong].max()}; first at {first}: {actual[first]}, expected "
        f"{expected[first]}"
    )


def _largest(kind: np.dtype[Any]) -> int:
    if kind.kind in "iu":
        return int(np.iinfo(kind).max)
    return int(2 ** (np.finfo(kind).nmant + 1)) if kind.kind == "f" else 0
