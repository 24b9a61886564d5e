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
from typing import Any, TypeAlias

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

Cells: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Shape of a model's values for one window.

    Parameters
    ----------
    outputs : int
        k, or 0 for one plain value (or map) without a channel axis.
    cells : tuple of int
        Extent of the map of one window along each spatial axis; empty for no map.
    channels_last : bool
        Whether the model itself gives the k values behind the map and not before it.
    """

    outputs: int = 0
    cells: Cells = ()
    channels_last: bool = False

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
        """What the axes of maps are.

        A callable's channels may be last, as in its input, or first; where both would do,
        the larger map decides, and then "last".

        Parameters
        ----------
        shape : tuple of int
            Of what the model gave for `n` windows.
        n, spatial_ndim : int
            Windows, and axes that are space.
        fits : callable
            Which extents of a map are acceptable.
        channels_first : bool
            Whether channels can only be first.
        wanted : str
            Which extents these are in words, for the error.

        Raises
        ------
        UsageError
            Nothing fits.
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

    def arrange(self, values: Array, n: int) -> Array:
        """Maps of `n` windows as float32 (n, max(k, 1), *cells), all of them finite.

        Raises
        ------
        UsageError
            Another shape than in the trial, or values that are NaN or infinite.
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
        _check_finite(values)
        return values

    def __str__(self) -> str:
        per_window = f"{self.outputs or 'one plain'} value(s)"
        if self.cells:
            return f"{per_window} in maps of {' x '.join(map(str, self.cells))} per window"
        return f"{per_window} per window"


def as_window_values(values: Array, n: int, spatial_ndim: int) -> Array:
    """A model's output as float32 (n,), (n, k), (n, *map) or (n, k, *map).

    Axes of length 1 that networks leave are dropped: (n, 1) is one value per window,
    (n, k, 1, 1) are k values, (n, 1, h, w) is one map.

    Parameters
    ----------
    values : ndarray
        From `as_numbers`.
    n : int
        Windows that the model was given.
    spatial_ndim : int
        Axes of a window, and of a map. With 1, a second axis counts as k values.

    Raises
    ------
    UsageError
        Another shape.
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


def as_numbers(result: Any, n: int, *, module: bool) -> Array:
    """A model's output as one array of real numbers on the CPU, at least 32 bits wide.

    Parameters
    ----------
    result : array, tensor or sequence
        What the model returned; of a callable also a list with one element per window.
    n : int
        Windows that it was given.
    module : bool
        Whether the model is a module, whose lists are several outputs.

    Raises
    ------
    UsageError
        Several outputs, or no real numbers.
    """
    several = isinstance(result, (tuple, list)) and (module or len(result) != n)
    if several or isinstance(result, dict):
        raise UsageError(
            f"the model returned a {type(result).__name__} of {len(result)}, where one array is "
            "needed: wrap the model in a function (or module) that picks the output"
        )
    if hasattr(result, "detach"):
        result = result.detach()
        if not result.is_floating_point() or result.element_size() < 4:
            result = result.float()
        result = result.cpu()
    values = np.asarray(result)
    if values.dtype.kind not in "fiub":
        raise UsageError(
            f"the model returned {type(result).__name__} of dtype {values.dtype}, where real "
            "numbers are needed"
        )
    return values


def _check_finite(values: Array) -> None:
    # a sum is finite only when every part is, short of an overflow; then look closely
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(values.sum(dtype=np.float64))
    if suspicious and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise UsageError(
            f"the model returned {bad} of {values.size} values that are NaN or infinite; blending "
            "would spread them over their neighbours, and NaN means 'not computed' in a result: "
            "use float32 instead of half precision, or replace them within the model"
        )
