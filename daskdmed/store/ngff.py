"""OME-Zarr 0.5 metadata, and where a result lies on its slide.

The version of the format lives in this module only. Metadata are plain dictionaries, so
that no OME library is needed to write them.

Not covered: pyramids and labels, and how far a run has come (`daskdmed.store.manifest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.abc.store import Store

from daskdmed.errors import UsageError
from daskdmed.types import Array

OME_VERSION = "0.5"
_SPACE = ("z", "y", "x")


@dataclass(frozen=True, slots=True)
class Georeference:
    """Where the cells of a window result lie on the image.

    Parameters
    ----------
    kernel_size, stride : tuple of int
        Of the windows, in pixels at the result's resolution, array order.
    downsample : tuple of float
        Level-0 pixels per pixel at that resolution, per axis.
    mpp : (float, float), optional
        (x, y) micrometers per pixel at that resolution.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    downsample: tuple[float, ...]
    mpp: tuple[float, float] | None = None

    @property
    def scale(self) -> tuple[float, ...]:
        """Distance between cells per axis: micrometers with mpp, else level-0 pixels."""
        return tuple(s * u for s, u in zip(self.stride, self._pixel, strict=True))

    @property
    def translation(self) -> tuple[float, ...]:
        """Centre of the first window, in the units of `scale`."""
        return tuple((k - 1) / 2 * u for k, u in zip(self.kernel_size, self._pixel, strict=True))

    @property
    def units(self) -> tuple[str | None, ...]:
        """Unit per axis; a third axis has none, because mpp speaks of (x, y)."""
        ndim = len(self.stride)
        if self.mpp is None:
            return (None,) * ndim
        return (None,) * (ndim - 2) + ("micrometer",) * min(ndim, 2)

    def extent(self, counts: Sequence[int]) -> tuple[tuple[float, float], ...]:
        """(begin, end) per axis in level-0 pixels of `counts` cells, each one stride wide.

        Cells are centred on their windows.
        """
        edges = []
        for k, s, d, n in zip(self.kernel_size, self.stride, self.downsample, counts, strict=True):
            begin = (k - s) / 2 * d
            edges.append((begin, begin + n * s * d))
        return tuple(edges)

    def to_json(self) -> dict[str, Any]:
        """As kept in the attributes of a group."""
        return {
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "downsample": list(self.downsample),
            "mpp": None if self.mpp is None else list(self.mpp),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Georeference:
        """The reverse of `to_json`."""
        return cls(
            tuple(value["kernel_size"]),
            tuple(value["stride"]),
            tuple(value["downsample"]),
            None if value["mpp"] is None else (value["mpp"][0], value["mpp"][1]),
        )

    @property
    def _pixel(self) -> tuple[float, ...]:
        if self.mpp is None:
            return self.downsample
        x, y = self.mpp
        return ((1.0,) * (len(self.stride) - 2) + (y, x))[-len(self.stride) :]


def axis_names(spatial_ndim: int, channels: bool) -> tuple[str, ...]:
    """Names in OME order: the channel before space."""
    if spatial_ndim > len(_SPACE):
        names: tuple[str, ...] = tuple(f"axis{i}" for i in range(spatial_ndim))
    else:
        names = _SPACE[-spatial_ndim:]
    return ("c", *names) if channels else names


def image_metadata(
    axes: Sequence[str],
    scale: Sequence[float],
    translation: Sequence[float],
    *,
    units: Sequence[str | None] = (),
    name: str = "",
    path: str = "0",
    windows: Sequence[tuple[float, float]] = (),
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """The ``ome`` attribute of an image group with one level.

    Parameters
    ----------
    axes : sequence of str
        Names, channel first: ("y", "x") or ("c", "z", "y", "x").
    scale, translation : sequence of float
        One per axis, 1 and 0 for the channel.
    units : sequence of str or None, optional
        One per axis, for example "micrometer".
    name : str
        Shown by viewers.
    path : str
        Of the array within the group.
    windows : sequence of (float, float), optional
        Display range per channel.
    labels : sequence of str, optional
        Channel names.

    Returns
    -------
    dict
        To be stored under ``attributes["ome"]``.

    Raises
    ------
    UsageError
        The lengths differ.
    """
    units = tuple(units) or (None,) * len(axes)
    if not len(axes) == len(scale) == len(translation) == len(units):
        raise UsageError(
            f"axes={tuple(axes)}, scale={tuple(scale)}, translation={tuple(translation)} and "
            f"units={units} must have the same length"
        )
    described = []
    for axis, unit in zip(axes, units, strict=True):
        entry = {"name": axis, "type": {"c": "channel", "t": "time"}.get(axis, "space")}
        if unit is not None:
            entry["unit"] = unit
        described.append(entry)
    transforms = [
        {"type": "scale", "scale": [float(s) for s in scale]},
        {"type": "translation", "translation": [float(t) for t in translation]},
    ]
    multiscale: dict[str, Any] = {
        "axes": described,
        "datasets": [{"path": path, "coordinateTransformations": transforms}],
    }
    if name:
        multiscale["name"] = name
    ome: dict[str, Any] = {"version": OME_VERSION, "multiscales": [multiscale]}
    if windows:
        ome["omero"] = {
            "channels": [
                {
                    "label": labels[i] if i < len(labels) else str(i),
                    "color": "FFFFFF",
                    "active": i == 0,
                    "window": {"min": low, "max": high, "start": low, "end": high},
                }
                for i, (low, high) in enumerate(windows)
            ]
        }
    return ome


def create_image_group(
    store: str | Store,
    ome: dict[str, Any] | None,
    attributes: dict[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> zarr.Group:
    """Create a Zarr v3 group whose metadata are written in one piece.

    Parameters
    ----------
    store : str or zarr store
        Where.
    ome : dict or None
        From `image_metadata`; None for results that OME-Zarr cannot describe (one axis, or
        more than three axes of space).
    attributes : dict, optional
        Further attributes beside ``ome``.
    overwrite : bool
        Delete what is there first; otherwise a group there is an error.
    """
    content = dict(attributes or {})
    if ome is not None:
        content = {"ome": ome, **content}
    return zarr.create_group(store, zarr_format=3, attributes=content, overwrite=overwrite)


def create_level(
    group: zarr.Group,
    path: str,
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: str,
    fill_value: float,
    axes: Sequence[str],
) -> zarr.Array[Any]:
    """The array of one level, its dimension names equal to the axes."""
    return group.create_array(
        path,
        shape=tuple(shape),
        chunks=tuple(chunks),
        dtype=dtype,
        fill_value=fill_value,
        dimension_names=tuple(axes),
    )


def read_result(store: Any) -> tuple[Array, Georeference | None]:
    """Values and place of a stored result.

    Parameters
    ----------
    store : path, URL, zarr store or group
        A group written by `daskdmed.heatmap`, or any OME-Zarr image (its first level).

    Returns
    -------
    values : ndarray
        The whole array.
    georeference : Georeference or None
        None when the group was not written by this library.
    """
    group = store if isinstance(store, zarr.Group) else zarr.open_group(store, mode="r")
    own: Any = group.attrs.get("daskdmed")
    if isinstance(own, dict) and "georeference" in own:
        values = group[str(own["path"])]
        return values[...], Georeference.from_json(own["georeference"])
    ome: Any = group.attrs.get("ome") or group.attrs
    path = ome["multiscales"][0]["datasets"][0]["path"]
    return group[path][...], None
