"""What a model gives back: one value per window, k values, or maps of values.

Not covered: where values go (`daskdmed.inference.run`), overlapping maps
(`daskdmed.inference.dense.predict`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array


@dataclass(frozen=True)
class Layout:
    """Shape of a model's values for one window.

    Parameters
    ----------
    outputs : int
        k, or 0 for one plain value (or map) without a channel axis.
    cells : tuple of int
        Extent of the map of one window along each spatial axis; empty for no map.
    """

    outputs: int = 0
    cells: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values of one window."""
        return (*((self.outputs,) if self.outputs else ()), *self.cells)

    @classmethod
    def of(cls, values: Array, spatial_ndim: int) -> Layout:
        """From values as `as_window_values` gives them."""
        shape = values.shape[1:]
        if len(shape) < spatial_ndim or (spatial_ndim == 1 and len(shape) == 1):
            return cls(shape[0] if shape else 0)
        cells = shape[len(shape) - spatial_ndim :]
        return cls(shape[0] if len(shape) > spatial_ndim else 0, cells)

    def __str__(self) -> str:
        per_window = f"{self.outputs or 'one plain'} value(s)"
        if self.cells:
            return f"{per_window} in maps of {' x '.join(map(str, self.cells))} per window"
        return f"{per_window} per window"


def as_window_values(result: Any, n: int, spatial_ndim: int) -> Array:
    """A model's output as float32 (n,), (n, k), (n, *map) or (n, k, *map).

    Axes of length 1 that networks leave are dropped: (n, 1) is one value per window,
    (n, k, 1, 1) are k values, (n, 1, h, w) is one map.

    Parameters
    ----------
    result : array, tensor or sequence
        What the model returned.
    n : int
        Windows that it was given.
    spatial_ndim : int
        Axes of a window, and of a map. With 1, a second axis counts as k values.

    Raises
    ------
    UsageError
        Another shape, not numeric, or complex.
    """
    values = _numeric(result, n)
    shape = values.shape
    if values.ndim > 1 and all(s == 1 for s in shape[2:]):
        values = values.reshape(shape[:2])
    while values.ndim in (2, 3) and values.ndim <= spatial_ndim and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim in (2, spatial_ndim + 2) and values.shape[1:2] == (1,):
        values = values[:, 0]
    allowed = {1, 2, spatial_ndim + 1, spatial_ndim + 2}
    if values.ndim not in allowed or values.shape[0] != n or 0 in values.shape:
        axes = ", ".join("zyx"[-spatial_ndim:]) if spatial_ndim <= 3 else "*space"
        raise UsageError(
            f"the model returned shape {shape} for {n} windows; a heatmap takes ({n},), "
            f"({n}, k), or maps ({n}, {axes}) or ({n}, k, {axes}): keep the batch axis"
        )
    return values.astype(np.float32, copy=False)


def as_values(result: Any, n: int) -> Array:
    """A model's output as float32 (n,) or (n, k).

    (n, 1) is one value per window; trailing axes of length 1, which networks without a
    flatten leave, are dropped.

    Raises
    ------
    UsageError
        Another shape, not numeric, or complex.
    """
    values = _numeric(result, n)
    shape = values.shape
    while values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (1, 2) or values.shape[0] != n:
        raise UsageError(
            f"the model returned shape {shape} for {n} windows; here it has to be ({n},) or "
            f"({n}, k): average maps over their pixels, or keep the batch axis"
        )
    return values.astype(np.float32, copy=False)


def _numeric(result: Any, n: int) -> Array:
    if hasattr(result, "detach"):
        result = result.detach()
        if not result.is_floating_point() or result.element_size() < 4:
            result = result.float()
        result = result.cpu()
    if isinstance(result, dict) or (isinstance(result, tuple) and len(result) != n):
        raise UsageError(
            f"the model returned a {type(result).__name__} of {len(result)}; a heatmap takes one "
            "array: wrap the model in a function that picks the output"
        )
    values = np.asarray(result)
    if values.dtype.kind not in "fiub":
        raise UsageError(
            f"the model returned {type(result).__name__} of dtype {values.dtype}; a heatmap "
            "takes real numbers"
        )
    return values
