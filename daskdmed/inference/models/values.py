"""What a model gives back: one value per window, k values, or maps of values.

Heatmaps take any of these and drop axes of length 1; dense prediction takes maps only, with
the channels where the model has them. The shape is learnt from a trial (`Layout`) and then
required of every batch.

Not covered: calling the model (`daskdmed.inference.models.window`), where values go
(`daskdmed.inference.blocks`, `daskdmed.inference.dense.sweep`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array
from daskdmed.inference.models.outputs import check_finite

Cells: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Shape of a model's values for one window."""

    outputs: int = 0  # k, or 0 for one plain value (or map) without a channel axis
    cells: Cells = ()  # extent of the map of a window along each spatial axis; () for no map
    channels_last: bool = False  # the model itself gives the k values behind the map

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values of one window, channels first."""
        return (*((self.outputs,) if self.outputs else ()), *self.cells)

    @classmethod
    def of(cls, values: Array, spatial_ndim: int) -> Layout:
        """From values as `as_window_values` gives them."""
        shape = values.shape[1:]
        if len(shape) < spatial_ndim or (spatial_ndim == 1 and len(shape) == 1):
            return cls(shape[0] if shape else 0)
        cells = shape[len(shape) - spatial_ndim :]
        return cls(shape[0] if len(shape) > spatial_ndim else 0, cells)

    @classmethod
    def of_maps(
        cls,
        shape: tuple[int, ...],
        n: int,
        spatial_ndim: int,
        fits: Callable[[Cells], bool],
        *,
        channels_first: bool,
        wanted: str,
    ) -> Layout:
        """What the axes are of maps that a model gave for `n` windows.

        `fits` says which extents of a map are acceptable, `wanted` the same in words. A
        callable's channels may be last, as in its input, or first; where both would do, the
        larger map decides, and then "last". Raises UsageError where nothing fits.
        """
        found: list[Layout] = []
        if shape[:1] == (n,) and 0 not in shape:
            if len(shape) == spatial_ndim + 1 and fits(shape[1:]):
                found.append(cls(0, shape[1:]))
            elif len(shape) == spatial_ndim + 2:
                if not channels_first and fits(shape[1:-1]):
                    found.append(cls(shape[-1], shape[1:-1], channels_last=True))
                if fits(shape[2:]):
                    found.append(cls(shape[1], shape[2:]))
        if not found:
            raise UsageError(
                f"the model returned shape {shape} for {n} window(s); dense prediction takes "
                f"(n, *map) or a channel axis beside it (first for a module), with a map of "
                f"{wanted}; for one value per window use heatmap"
            )
        # (n, 64, 64, 2) is two values per pixel and not 64 of (64, 2) cells
        layout = max(found, key=lambda f: math.prod(f.cells))
        return layout if layout.outputs != 1 else cls(0, layout.cells)

    def arrange(self, values: Array, n: int, where: Callable[[int], str]) -> Array:
        """Maps of `n` windows as float32 (n, max(k, 1), *cells), all of them finite.

        `where` names a window of the batch for errors. Raises UsageError where the shape is
        another than in the trial, or values are NaN or infinite.
        """
        lead, last = (n, self.outputs), (n, *self.cells, self.outputs)
        wanted = (n, *self.cells) if not self.outputs else (*lead, *self.cells)
        wanted = last if self.channels_last else wanted
        plain = (n, 1, *self.cells), (n, *self.cells, 1)
        if values.shape != wanted and (self.outputs or values.shape not in plain):
            raise UsageError(
                f"the model returned shape {values.shape} for {n} windows, where {wanted} "
                "follows from its first output; it must give the same for all batches"
            )
        if self.channels_last:
            values = np.moveaxis(values, -1, 1)
        elif not self.outputs:
            values = values.reshape(n, 1, *self.cells)
        values = values.astype(np.float32, copy=False)
        check_finite(values, where)
        return values

    def __str__(self) -> str:
        per_window = f"{self.outputs or 'one plain'} value(s)"
        if self.cells:
            return f"{per_window} in maps of {' x '.join(map(str, self.cells))} per window"
        return f"{per_window} per window"


def as_window_values(values: Array, n: int, spatial_ndim: int) -> Array:
    """A model's output for `n` windows as float32 (n,), (n, k), (n, *map) or (n, k, *map).

    Axes of length 1 that networks leave are dropped: (n, 1) is one value per window,
    (n, k, 1, 1) are k values, (n, 1, h, w) is one map. With one spatial axis a second axis
    counts as k values. Raises UsageError for another shape.
    """
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
