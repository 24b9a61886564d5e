"""Exact dense mode: a fully convolutional model run over large pieces instead of windows.

Two kinds of models can be run piece by piece with the result of one run over the whole image:

*padded* networks (U-Nets...), whose map has the extent of their input, or a whole fraction of
it: pieces overlap by a halo that covers the receptive field, and of each piece only the part
is kept that its own borders cannot have touched; at the image's border the network pads as
it always does. The result equals the model run once over the image (filled up with
background at the far sides to whole output strides).

*valid* networks (convolutions without padding), whose map has
``(n - receptive_field) // output_stride + 1`` cells: the result equals that of windows of
``receptive_field`` pixels at stride ``output_stride``, as `heatmap` places them, at up to
``(receptive_field / output_stride) ** 2`` times less work.

What the user declares is tried on a patch of noise first.

Not covered: models whose output depends on everything they see (global pooling, attention,
normalisation over the input): the trial refuses them; run them window by window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import DaskdmedError, GeometryError, UsageError
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.inference.dense.mosaic import AxisWindows
from daskdmed.inference.models.values import Cells
from daskdmed.inference.models.window import WindowModel
from daskdmed.tiling.grid import axis_count

#: pixels beyond the declared reach in which the trial looks for influence
_MARGIN = (16, 128)
#: differences relative to the largest output that count as rounding
_ROUNDING = 1e-5
_SHIFT_ROUNDING = 1e-4


@dataclass(frozen=True)
class Field:
    """What the user declares, and how the model turned out to treat its borders."""

    receptive_field: tuple[int, ...]  # pixels along each axis on which one output depends, at most
    #: the model commutes with shifts by multiples of it: the product of all its strides and
    #: poolings, also of those that it takes back later
    output_stride: tuple[int, ...]
    unit: tuple[int, ...]  # pixels per output cell
    padded: bool  # whether the map is as large as the input

    @property
    def halo(self) -> tuple[int, ...]:
        """Pixels at each side of a piece that its border may have touched."""
        return halo_of(self.receptive_field, self.output_stride)


def halo_of(receptive_field: Sequence[int], output_stride: Sequence[int]) -> tuple[int, ...]:
    """Half the receptive field and, where there are strides, its possible shift against the
    cell; in whole strides."""
    halo = []
    for field, stride in zip(receptive_field, output_stride, strict=True):
        reach = math.ceil((field - 1) / 2) + stride - 1
        halo.append(-(-reach // stride) * stride)
    return tuple(halo)


def padded_axis(size: int, kernel: int, stride: int, halo: int, unit: int) -> AxisWindows:
    """Pieces of a padded network along one axis."""
    frame = -(-size // stride) * stride
    kernel = min(kernel // stride * stride, frame)
    cells = -(-size // unit)
    if kernel >= frame:
        return AxisWindows(size, cells, frame, unit, (0,), (0,), (cells,), (0,), unit / 2)
    pitch = kernel - 2 * halo
    if pitch < stride:
        raise GeometryError(
            f"kernel_size={kernel} pixels leaves nothing between halos of {halo} pixels on both "
            f"sides; give at least {2 * halo + stride}, better several times that"
        )
    origins = [min(i * pitch, frame - kernel) for i in range(-(-(frame - kernel) // pitch) + 1)]
    stops = [min((o + kernel - halo) // unit, cells) for o in origins[:-1]] + [cells]
    starts = [0, *stops[:-1]]
    offsets = [a - o // unit for a, o in zip(starts, origins, strict=True)]
    places = tuple(origins), tuple(starts), tuple(stops), tuple(offsets)
    return AxisWindows(size, cells, kernel, unit, *places, unit / 2)


def valid_axis(size: int, kernel: int, stride: int, field: int) -> AxisWindows:
    """Pieces of a network without padding along one axis."""
    if kernel < field:
        raise GeometryError(
            f"kernel_size={kernel} is smaller than the receptive field of {field} pixels; the "
            "network is run over pieces of kernel_size, give several times the receptive field"
        )
    cells = axis_count(size, field, stride, "pad")
    each = min((kernel - field) // stride + 1, cells)
    firsts = [min(i * each, cells - each) for i in range(-(-cells // each))]
    stops = [f + each for f in firsts]
    starts = [0, *stops[:-1]]
    origins = [f * stride for f in firsts]
    offsets = [a - f for a, f in zip(starts, firsts, strict=True)]
    places = tuple(origins), tuple(starts), tuple(stops), tuple(offsets)
    return AxisWindows(size, cells, (each - 1) * stride + field, stride, *places, field / 2)


def dense_axes(
    shape: Sequence[int], kernel: Sequence[int], field: Field
) -> tuple[AxisWindows, ...]:
    """Pieces of an image."""
    rows = zip(shape, kernel, field.output_stride, strict=True)
    if field.padded:
        return tuple(
            padded_axis(*row, halo, unit)
            for row, halo, unit in zip(rows, field.halo, field.unit, strict=True)
        )
    return tuple(
        valid_axis(*row, reach) for row, reach in zip(rows, field.receptive_field, strict=True)
    )


def find_field(
    model: WindowModel,
    view: ImageView,
    receptive_field: tuple[int, ...],
    output_stride: tuple[int, ...],
) -> Field:
    """Try the declaration on a patch of noise.

    A trial, no proof: influence below 1e-5 of the largest output counts as rounding, and a
    network may react to noise less than to an image.
    """
    if min(receptive_field) < 1 or min(output_stride) < 1:
        raise GeometryError(
            f"receptive_field and output_stride must be at least 1 along every axis, got "
            f"{receptive_field} and {output_stride}"
        )
    trial = _Trial(model, view, receptive_field, output_stride)
    trial.check_reach()
    trial.check_shift()
    return trial.field


class _Trial:
    """A patch of noise, and what the model makes of it."""

    def __init__(
        self, model: WindowModel, view: ImageView, reach: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        self.model, self.ndim = model, len(reach)
        self.reach, self.stride = reach, stride
        self.halo = halo_of(reach, stride)
        low, high = _MARGIN
        margin = [
            -(-min(max(h, low), high) // s) * s for h, s in zip(self.halo, stride, strict=True)
        ]
        self.extent = tuple(
            2 * m + 2 * h + 3 * s for m, h, s in zip(margin, self.halo, stride, strict=True)
        )
        # the middle of the patch, on whole strides; later shifted by one
        self.core = tuple(m + h + s for m, h, s in zip(margin, self.halo, stride, strict=True))
        self._rng = np.random.default_rng(0)
        channels = tuple(view.channel_shape)
        larger = [n + s for n, s in zip(self.extent, stride, strict=True)]
        self.patch = self._noise((*larger, *channels), view.dtype)
        self.first = self.patch[tuple(slice(0, n) for n in self.extent)]
        wanted = (
            f"{self.extent} pixels divided by a divisor of output_stride={stride} (padded "
            f"network), or of {self._valid_cells} cells (network without padding and with "
            f"receptive_field={reach}, output_stride={stride})"
        )
        try:
            self.layout, self.values = model.layout_of_maps(
                self.first, self.ndim, self._fits, wanted
            )
        except DaskdmedError:
            raise
        except Exception as error:
            raise UsageError(
                f"the model cannot be run on a patch of {self.extent} pixels, whole multiples of "
                f"output_stride={stride} ({type(error).__name__}: {error}); declare the product "
                "of all strides and poolings in the network (16 for a U-Net with four poolings)"
            ) from error
        cells = self.values.shape[1:]
        self.valid = cells == self._valid_cells
        unit = stride if self.valid else self._unit(cells)
        assert unit is not None
        self.field = Field(reach, stride, unit, not self.valid)

    def _noise(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if dtype == np.bool_:
            return self._rng.random(shape) < 0.5
        if dtype.kind in "ui":
            top = min(int(np.iinfo(dtype).max), 65535)
            return self._rng.integers(0, top, shape, endpoint=True).astype(dtype)
        return self._rng.standard_normal(shape).astype(dtype)

    @property
    def _valid_cells(self) -> Cells:
        return tuple(
            (n - r) // s + 1 for n, r, s in zip(self.extent, self.reach, self.stride, strict=True)
        )

    def _unit(self, cells: Cells) -> tuple[int, ...] | None:
        if any(c < 1 or n % c for n, c in zip(self.extent, cells, strict=True)):
            return None
        unit = tuple(n // c for n, c in zip(self.extent, cells, strict=True))
        return unit if all(s % u == 0 for s, u in zip(self.stride, unit, strict=True)) else None

    def _fits(self, cells: Cells) -> bool:
        return cells == self._valid_cells or self._unit(cells) is not None

    def _core_cells(self, values: Array, begin: Sequence[int]) -> Array:
        """Outputs of one output stride whose first pixel is `begin`."""
        cut = [
            slice(b // u, b // u + max(s // u, 1))
            for b, s, u in zip(begin, self.stride, self.field.unit, strict=True)
        ]
        return values[(slice(None), *cut)]

    def _around(self, distance: Sequence[int]) -> tuple[slice, ...]:
        """Pixels on which the core may depend, when it reaches `distance` to each side."""
        if self.valid:  # the field of one cell begins at its first pixel
            grown = zip(self.core, self.reach, distance, strict=True)
            return tuple(slice(max(c - d, 0), c + r + d) for c, r, d in grown)
        grown = zip(self.core, self.stride, distance, strict=True)
        return tuple(slice(max(c - d, 0), c + s + d) for c, s, d in grown)

    def _influence(self, distance: Sequence[int]) -> float:
        """Largest change of the core when everything farther away changes."""
        changed = self._noise(self.first.shape, self.first.dtype)
        kept = self._around(distance)
        changed[kept] = self.first[kept]
        values = self._maps(changed)
        found = self._core_cells(values, self.core) - self._core_cells(self.values, self.core)
        return float(np.abs(found).max())

    def _maps(self, patch: Array) -> Array:
        maps = self.model.maps([patch], self.layout, lambda i: "a patch of noise")
        return np.asarray(maps[0])

    @property
    def _scale(self) -> float:
        return float(np.abs(self.values).max())

    def check_reach(self) -> None:
        """Pixels outside the declared field must not matter."""
        allowed = (0,) * self.ndim if self.valid else self.halo
        change = self._influence(allowed)
        if change <= _ROUNDING * self._scale:
            return
        # how far it does reach, as far as the patch shows it
        low, high = 0, min(self.core)
        while low < high:
            middle = (low + high) // 2
            grown = [a + middle for a in allowed]
            if self._influence(grown) > _ROUNDING * self._scale:
                low = middle + 1
            else:
                high = middle
        more = f"at least {low}" if low == min(self.core) else f"{low}"
        raise UsageError(
            f"receptive_field={self.reach} is too small: changing pixels outside of it changed "
            f"the output by {change:.3g} (largest output {self._scale:.3g}); influence was seen "
            f"{more} pixels farther to a side, declare about "
            f"{tuple(r + 2 * low for r in self.reach)}. A model whose outputs depend on all of "
            "its input (global pooling, attention, instance or group normalisation) has no "
            "exact dense mode: leave receptive_field away"
        )

    def check_shift(self) -> None:
        """The same pixels one output stride further must give the same outputs."""
        shifted = self.patch[
            tuple(slice(s, s + n) for s, n in zip(self.stride, self.extent, strict=True))
        ]
        values = self._maps(shifted)
        moved = [c - s for c, s in zip(self.core, self.stride, strict=True)]
        difference = self._core_cells(values, moved) - self._core_cells(self.values, self.core)
        change = float(np.abs(difference).max())
        if change > _SHIFT_ROUNDING * self._scale:
            raise UsageError(
                f"output_stride={self.stride} is wrong: the same pixels shifted by it gave "
                f"outputs that differ by {change:.3g} (largest output {self._scale:.3g}); declare "
                "the product of all strides and poolings in the network, also of those that "
                "it takes back later (16 for a U-Net with four poolings)"
            )
