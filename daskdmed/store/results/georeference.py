"""Where the cells of a window result lie on its image.

Pure arithmetic, any number of axes, array order. Not covered: what OME-Zarr makes of it
beyond scale and translation (`daskdmed.images.ngff.metadata`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskdmed.images.ngff.metadata import OME_VERSION, Axis, LevelPlace, Multiscale, axis_names

if TYPE_CHECKING:
    from daskdmed.core.view import ImageView


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where the cells of a window result lie on the image, in array order.

    `kernel_size` and `stride` of the windows are in pixels at the result's resolution, `downsample`
    are level-0 pixels per such pixel. `mpp` is (x, y) micrometers per pixel, of planes; `spacing`
    millimeters per pixel and axis, of volumes, not beside `mpp`.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    downsample: tuple[float, ...]
    mpp: tuple[float, float] | None = None
    spacing: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls, view: ImageView, kernel_size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Georeference:
        """Of windows of a view, whose extent of a pixel is known or not."""
        mpp, spacing = view.mpp, view.spacing
        if spacing is None or len(spacing) != len(stride) or (mpp is not None and len(stride) == 2):
            spacing = None  # planes say it by mpp
        return cls(kernel_size, stride, tuple(view.downsample), None if spacing else mpp, spacing)

    @property
    def scale(self) -> tuple[float, ...]:
        """Distance between cells per axis, in `units`; without a unit in level-0 pixels."""
        return tuple(s * u for s, u in zip(self.stride, self.pixel, strict=True))

    @property
    def translation(self) -> tuple[float, ...]:
        """Centre of the first window, in the units of `scale`."""
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
        return Multiscale(
            axes=tuple(Axis.named(n, unit) for n, unit in zip(names, units, strict=True)),
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
        return found if self.spacing is None else {**found, "spacing": list(self.spacing)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Georeference:
        spacing = value.get("spacing")
        return cls(
            tuple(value["kernel_size"]),
            tuple(value["stride"]),
            tuple(value["downsample"]),
            None if value["mpp"] is None else (value["mpp"][0], value["mpp"][1]),
            None if spacing is None else tuple(spacing),
        )

    @property
    def pixel(self) -> tuple[float, ...]:
        """Extent of a pixel at the resolution of the windows per axis, in `units`."""
        if self.spacing is not None:
            return self.spacing
        if self.mpp is None:
            return self.downsample
        x, y = self.mpp
        return ((1.0,) * (len(self.stride) - 2) + (y, x))[-len(self.stride) :]
