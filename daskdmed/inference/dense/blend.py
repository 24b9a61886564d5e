"""Weights with which overlapping windows are blended, and what they add up to.

Pure arithmetic for any number of axes. The prediction at a cell is the weighted mean of all
windows over it; what the weights add up to there follows from where the windows lie, so that
no array of counts is kept while windows are computed.

The Gaussian is that of MONAI's sliding-window inference: sigma is a fraction of the window,
the product over the axes is cut off below at 0.001. The Hann weights are taken at cell
centres, sin^2(pi (i + 1/2) / n), so that none is zero and half-overlapping windows add up
to exactly one.

Not covered: where windows lie (`daskdmed.inference.dense.mosaic`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array

BlendMode: TypeAlias = Literal["gaussian", "constant", "hann"]
#: MONAI's lower bound of Gaussian weights
_FLOOR = 1e-3


@dataclass(frozen=True)
class Blend:
    """How much each cell of a window counts.

    Examples
    --------
    >>> Blend.of("hann", (4, 4)).profiles[0].round(3).tolist()
    [0.146, 0.854, 0.854, 0.146]
    """

    mode: BlendMode  # kind of weights
    kernel_size: tuple[int, ...]  # extent of a window, in pixels
    #: pixels per output cell along each axis; divides `kernel_size`. The weight of a cell is the
    #: one of the pixel in its middle (the later one of the two for even numbers)
    reduction: tuple[int, ...]
    #: standard deviation of the Gaussian as a fraction of the window, per axis
    sigma_scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.mode not in get_args(BlendMode):
            raise UsageError(f"blend must be one of {get_args(BlendMode)}, got {self.mode!r}")
        if len(self.sigma_scale) != len(self.kernel_size):
            raise UsageError(
                f"sigma_scale={self.sigma_scale} has {len(self.sigma_scale)} values for "
                f"{len(self.kernel_size)} axes; give one number, or one per axis"
            )
        if not all(np.isfinite(s) and s > 0 for s in self.sigma_scale):
            raise UsageError(f"sigma_scale must be positive, got {self.sigma_scale}")
        if any(k % r for k, r in zip(self.kernel_size, self.reduction, strict=True)):
            raise GeometryError(
                f"reduction={self.reduction} does not divide kernel_size={self.kernel_size}"
            )

    @classmethod
    def of(
        cls,
        mode: BlendMode,
        kernel_size: Sequence[int],
        *,
        reduction: Sequence[int] | None = None,
        sigma_scale: float | Sequence[float] = 0.125,
    ) -> Blend:
        """Make it from what users write: one `sigma_scale` for all axes, or one per axis."""
        kernel = tuple(int(k) for k in kernel_size)
        if isinstance(sigma_scale, (int, float)):
            scales: tuple[float, ...] = (float(sigma_scale),) * len(kernel)
        else:
            scales = tuple(float(s) for s in sigma_scale)
        factors = (1,) * len(kernel) if reduction is None else tuple(int(r) for r in reduction)
        return cls(mode, kernel, factors, scales)

    @functools.cached_property
    def _pixel_profiles(self) -> tuple[Array, ...]:
        return tuple(
            _profile(self.mode, k, s)
            for k, s in zip(self.kernel_size, self.sigma_scale, strict=True)
        )

    @functools.cached_property
    def profiles(self) -> tuple[Array, ...]:
        """Weights along each axis at the cells, float64. Their product, where `floor` is
        None, is the weight of a cell."""
        return tuple(
            p[r // 2 :: r] for p, r in zip(self._pixel_profiles, self.reduction, strict=True)
        )

    @functools.cached_property
    def floor(self) -> float | None:
        """Lower bound of the weights, or None where no weight lies below it.

        With it the weights are no product over the axes any more.
        """
        if self.mode != "gaussian":
            return None
        least = float(np.prod([p.min() for p in self._pixel_profiles]))
        return None if least >= _FLOOR else _FLOOR

    @functools.cached_property
    def weights(self) -> Array:
        """Weight of each cell of a window, float32, shape ``kernel_size / reduction``."""
        return self._map(self.profiles)

    def _map(self, profiles: Sequence[Array]) -> Array:
        product = functools.reduce(np.multiply.outer, profiles)
        if self.floor is not None:
            product = np.maximum(product, self.floor)
        return np.asarray(product, np.float32)

    def total(self, spans: Sequence[Sequence[tuple[int, int, int]]], shape: Sequence[int]) -> Array:
        """Sum of the weights of windows over each cell of a box, float32.

        `spans` have (start, stop, offset) of each window along each axis: which cells of the
        box it covers, and its own cell that lies on the first of these; the windows are all
        combinations over the axes.
        """
        parts = [
            [(a, self.profiles[axis][o : o + b - a], b) for a, b, o in axis_spans]
            for axis, axis_spans in enumerate(spans)
        ]
        if self.floor is None:
            sums = []
            for n, axis_parts in zip(shape, parts, strict=True):
                line = np.zeros(n)
                for a, profile, b in axis_parts:
                    line[a:b] += profile
                sums.append(line)
            return np.asarray(functools.reduce(np.multiply.outer, sums), np.float32)
        total = np.zeros(tuple(shape), np.float32)
        for window in itertools.product(*parts):
            places = tuple(slice(a, b) for a, _, b in window)
            total[places] += self._map([profile for _, profile, _ in window])
        return total


def _profile(mode: BlendMode, n: int, sigma_scale: float) -> Array:
    """Weights along one axis of `n` pixels, float64."""
    if mode == "constant":
        return np.ones(n)
    if mode == "hann":
        return np.asarray(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2)
    distance = np.arange(n) - (n - 1) / 2
    return np.asarray(np.exp(-0.5 * (distance / (sigma_scale * n)) ** 2))
