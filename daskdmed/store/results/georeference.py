"""Where the cells of a window result lie on its image.

Pure arithmetic, any number of axes, array order. OME-Zarr says scale, translation and the
anatomical orientation of axes (RFC-4); the exact affine, which may be oblique or sheared, is in
attributes of our own. Not covered: how OME-Zarr is written (`daskdmed.images.ngff.metadata`).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.space import Space
from daskdmed.core.types import Array
from daskdmed.images.ngff.metadata import OME_VERSION, Axis, LevelPlace, Multiscale, axis_names

if TYPE_CHECKING:
    from daskdmed.core.view import ImageView


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where the cells of a window result lie on the image, in array order.

    `kernel_size` and `stride` of the windows are in pixels at the result's resolution, `downsample`
    are level-0 pixels per such pixel. `mpp` is (x, y) micrometers per pixel, of planes; `spacing`
    millimeters per pixel and axis, of volumes, not beside `mpp`. `space` is where the cells lie in
    the patient, where that is known of a volume.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    downsample: tuple[float, ...]
    mpp: tuple[float, float] | None = None
    spacing: tuple[float, ...] | None = None
    space: Space | None = None

    @classmethod
    def of(
        cls,
        view: ImageView,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        counts: Sequence[int] | None = None,
    ) -> Georeference:
        """Of windows of a view, whose extent of a pixel is known or not; `counts` of them say how
        far their space reaches."""
        mpp, spacing = view.mpp, view.spacing
        if spacing is None or len(spacing) != len(stride) or (mpp is not None and len(stride) == 2):
            spacing = None  # planes say it by mpp
        space = None
        if counts is not None and view.space is not None:
            steps = _steps(stride, [(k - 1) / 2 for k in kernel_size])
            space = Space(view.space.affine @ steps, counts)
        down = tuple(view.downsample)
        return cls(kernel_size, stride, down, None if spacing else mpp, spacing, space)

    @property
    def scale(self) -> tuple[float, ...]:
        """Distance between cells per axis, in `units`; without a unit in level-0 pixels."""
        return tuple(s * u for s, u in zip(self.stride, self.pixel, strict=True))

    @property
    def translation(self) -> tuple[float, ...]:
        """Centre of the first window, in the units of `scale`: from that of the image's first
        pixel, or with a space along each axis in the patient, so that an axis to the left has
        the negative of what one to the right has."""
        if self.space is not None:
            origin = dict(zip("RAS", self.space.affine[:3, 3].tolist(), strict=True))
            opposite = dict(zip("LPI", "RAS", strict=True))
            return tuple(
                origin[to] if to in origin else -origin[opposite[to]] for to in self.space.axcodes
            )
        return tuple((k - 1) / 2 * u for k, u in zip(self.kernel_size, self.pixel, strict=True))

    @property
    def units(self) -> tuple[str | None, ...]:
        """Unit per axis; a third axis has none beside mpp, which speaks of (x, y)."""
        ndim = len(self.stride)
        if self.spacing is not None:
            return ("millimeter",) * ndim
        if self.mpp is None:
            return (None,) * ndim
        return (None,) * (ndim - 2) + ("micrometer",) * min(ndim, 2)

    @property
    def level0_affine(self) -> Array | None:
        """From index of the image's level 0 to RAS+ millimeters, along the axes of the result; None
        without a space."""
        if self.space is None:
            return None
        cells = _steps(self.stride, [(k - 1) / 2 for k in self.kernel_size])
        pixels = _steps(self.downsample, [(d - 1) / 2 for d in self.downsample])
        found: Array = self.space.affine @ np.linalg.inv(pixels @ cells)
        return found

    def extent(self, counts: Sequence[int]) -> tuple[tuple[float, float], ...]:
        """(begin, end) per axis in level-0 pixels of `counts` cells, one stride wide and centred on
        their windows."""
        edges = []
        for k, s, d, n in zip(self.kernel_size, self.stride, self.downsample, counts, strict=True):
            begin = (k - s) / 2 * d
            edges.append((begin, begin + n * s * d))
        return tuple(edges)

    def image(
        self, path: str, *, channels: bool, name: str, version: str = OME_VERSION
    ) -> Multiscale | None:
        """A result that lies here as an OME-Zarr image with one level, the channel first; None over
        one axis or more than three, which that format cannot describe."""
        ndim = len(self.stride)
        if not 2 <= ndim <= 3:
            return None
        extra = 1 if channels else 0
        units = (None,) * extra + self.units
        names = axis_names(ndim, channels)
        letters = (None,) * ndim if self.space is None else tuple(self.space.axcodes)
        axes = zip(names, units, (None,) * extra + letters, strict=True)
        return Multiscale(
            axes=tuple(Axis.named(*axis) for axis in axes),
            levels=(
                LevelPlace(path, (1.0,) * extra + self.scale, (0.0,) * extra + self.translation),
            ),
            name=name,
            version=version,
        )

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "downsample": list(self.downsample),
            "mpp": None if self.mpp is None else list(self.mpp),
        }
        if self.spacing is not None:
            found["spacing"] = list(self.spacing)
        if self.space is not None and self.level0_affine is not None:
            shape = list(self.space.shape)
            found["space"] = {"affine": self.space.affine.tolist(), "shape": shape}
            found["level0"] = {"affine": self.level0_affine.tolist()}
        return found

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Georeference:
        """The inverse of `to_json`; a ValueError, TypeError or KeyError of what makes no sense."""
        spacing, space, mpp = value.get("spacing"), value.get("space"), value["mpp"]
        found = cls(
            tuple(map(operator.index, value["kernel_size"])),
            tuple(map(operator.index, value["stride"])),
            tuple(map(float, value["downsample"])),
            None if mpp is None else (float(mpp[0]), float(mpp[1])),
            None if spacing is None else tuple(map(float, spacing)),
            None if space is None else Space(space["affine"], space["shape"]),
        )
        numbers = (found.kernel_size, found.stride, found.downsample, found.spacing or found.stride)
        if len({len(n) for n in numbers}) > 1 or not all(
            0 < v < np.inf for n in numbers for v in n
        ):
            raise ValueError(f"a place that cannot be: {value!r}")
        return found

    @property
    def pixel(self) -> tuple[float, ...]:
        """Extent of a pixel at the resolution of the windows per axis, in `units`."""
        if self.spacing is not None:
            return self.spacing
        if self.mpp is None:
            return self.downsample
        x, y = self.mpp
        return ((1.0,) * (len(self.stride) - 2) + (y, x))[-len(self.stride) :]


def _steps(steps: Sequence[float], first: Sequence[float]) -> Array:
    """Homogeneous: of positions that are `steps` apart, the first of which lies at `first`."""
    moved = np.diag([*map(float, steps), 1.0])
    moved[:-1, -1] = list(first)
    return moved
