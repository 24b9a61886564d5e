"""OME-Zarr metadata (0.5, and 0.4 on request), and where a result lies on its slide.

The versions of the format live in this module only. Metadata are plain dictionaries, so
that no OME library is needed to write them.

Not covered: the pixels of pyramids (`daskdmed.store.ngff.pyramid`) and of labels
(`daskdmed.store.ngff.labels`), and how far a run has come (`daskdmed.store.results.resumable`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zarr
from zarr.abc.store import Store

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

Version = Literal["0.4", "0.5"]
OME_VERSION: Version = "0.5"
#: version of OME-Zarr -> format of Zarr underneath
ZARR_FORMATS: dict[str, Literal[2, 3]] = {"0.4": 2, "0.5": 3}
_SPACE = ("z", "y", "x")
#: of channels whose colours are not given: one channel is shown in grey
PALETTE = ("00B4D8", "FF5D5D", "FFD166", "06D6A0", "B388EB", "F4A261", "8ECAE6", "E5E5E5")


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


@dataclass(frozen=True, slots=True)
class LevelPlace:
    """One level of a multiscale image.

    Parameters
    ----------
    path : str
        Of the array within the group.
    scale, translation : tuple of float
        One per axis: extent of a pixel, and centre of the first one, in the axes' units.
    """

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Channel:
    """How viewers show a channel.

    Parameters
    ----------
    label : str
        Its name.
    color : str
        Six hexadecimal digits, of the highest value.
    window : (float, float)
        Values shown darkest and brightest.
    limits : (float, float), optional
        Values that occur at most, default `window`.
    active : bool
        Whether it is shown at first.
    """

    label: str
    color: str
    window: tuple[float, float]
    limits: tuple[float, float] | None = None
    active: bool = True

    def to_json(self) -> dict[str, Any]:
        """As in ``omero.channels``."""
        low, high = self.window
        least, most = self.limits or self.window
        return {
            "label": self.label,
            "color": self.color,
            "active": self.active,
            "window": {"min": least, "max": most, "start": low, "end": high},
        }


def hex_color(value: str) -> str:
    """Six upper-case hexadecimal digits from "#ff8000" or "FF8000".

    Raises
    ------
    UsageError
        It is neither.
    """
    digits = str(value).removeprefix("#").upper()
    if len(digits) != 6 or any(c not in "0123456789ABCDEF" for c in digits):
        raise UsageError(f"a colour is six hexadecimal digits like 'FF8000', got {value!r}")
    return digits


def check_version(version: str) -> Version:
    """A version of OME-Zarr that can be written.

    Raises
    ------
    UsageError
        It is none.
    """
    if version not in ZARR_FORMATS:
        raise UsageError(f"version must be one of {sorted(ZARR_FORMATS)}, got {version!r}")
    return version  # type: ignore[return-value]


def multiscale_metadata(
    axes: Sequence[str],
    levels: Sequence[LevelPlace],
    *,
    units: Sequence[str | None] = (),
    name: str = "",
    method: str = "",
    channels: Sequence[Channel] = (),
    image_label: Mapping[str, Any] | None = None,
    version: str = OME_VERSION,
) -> dict[str, Any]:
    """What OME-Zarr says about an image with any number of levels.

    Parameters
    ----------
    axes : sequence of str
        Names, channel first: ("y", "x") or ("c", "z", "y", "x").
    levels : sequence of LevelPlace
        Largest first.
    units : sequence of str or None, optional
        One per axis, for example "micrometer".
    name : str
        Shown by viewers.
    method : str
        How coarser levels are made: "mean", "mode", "nearest".
    channels : sequence of Channel, optional
        How they are shown.
    image_label : mapping, optional
        For label images, from `label_metadata`.
    version : {"0.5", "0.4"}
        Of the format.

    Returns
    -------
    dict
        For `ome_attributes`.

    Raises
    ------
    UsageError
        The lengths differ, or the version is unknown.
    """
    version = check_version(version)
    units = tuple(units) or (None,) * len(axes)
    if not levels:
        raise UsageError("an image has at least one level")
    for level in levels:
        if not len(axes) == len(level.scale) == len(level.translation) == len(units):
            raise UsageError(
                f"axes={tuple(axes)}, scale={level.scale}, translation={level.translation} and "
                f"units={units} must have the same length"
            )
    described = []
    for axis, unit in zip(axes, units, strict=True):
        entry = {"name": axis, "type": {"c": "channel", "t": "time"}.get(axis, "space")}
        if unit is not None:
            entry["unit"] = unit
        described.append(entry)
    multiscale: dict[str, Any] = {"axes": described, "datasets": [_dataset(v) for v in levels]}
    if name:
        multiscale["name"] = name
    if method:
        multiscale["type"] = method
    ome: dict[str, Any] = {"multiscales": [multiscale]}
    if version == "0.4":
        multiscale["version"] = version
    else:
        ome["version"] = version
    if channels:
        model = "color" if len(channels) > 1 else "greyscale"
        ome["omero"] = {
            "channels": [channel.to_json() for channel in channels],
            "rdefs": {"model": model},
        }
    if image_label is not None:
        extra = {"version": version} if version == "0.4" else {}
        ome["image-label"] = {**extra, **image_label}
    return ome


def _dataset(level: LevelPlace) -> dict[str, Any]:
    transforms = [
        {"type": "scale", "scale": [float(s) for s in level.scale]},
        {"type": "translation", "translation": [float(t) for t in level.translation]},
    ]
    return {"path": level.path, "coordinateTransformations": transforms}


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
    """What OME-Zarr 0.5 says about an image with one level, see `multiscale_metadata`.

    Parameters
    ----------
    axes, units, name
        As there.
    scale, translation : sequence of float
        One per axis, 1 and 0 for the channel.
    path : str
        Of the array within the group.
    windows : sequence of (float, float), optional
        Display range per channel.
    labels : sequence of str, optional
        Channel names.
    """
    channels = [
        Channel(labels[i] if i < len(labels) else str(i), "FFFFFF", window, active=i == 0)
        for i, window in enumerate(windows)
    ]
    level = LevelPlace(path, tuple(scale), tuple(translation))
    return multiscale_metadata(axes, [level], units=units, name=name, channels=channels)


def label_metadata(
    colors: Mapping[int, Sequence[int]], names: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """The ``image-label`` of a label image: colours and properties of its values.

    Parameters
    ----------
    colors : mapping of int to (int, int, int, int)
        Red, green, blue and opacity, 0 to 255, per label value.
    names : mapping of int to str, optional
        What values mean, of those with a colour.
    """
    found: dict[str, Any] = {
        "colors": [
            {"label-value": int(value), "rgba": [int(c) for c in rgba]}
            for value, rgba in sorted(colors.items())
        ],
        "source": {"image": "../../"},
    }
    if names:
        # the same values as in colors, as validators want it
        called = {**{value: str(value) for value in colors}, 0: "background", **names}
        found["properties"] = [
            {"label-value": int(value), "class": called[value]} for value in sorted(colors)
        ]
    return found


def ome_of(group: zarr.Group) -> dict[str, Any]:
    """The OME metadata of a group of any version, empty when there are none."""
    attributes: Any = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    return dict(ome) if isinstance(ome, dict) else {}


def ome_attributes(ome: Mapping[str, Any], version: str) -> dict[str, Any]:
    """OME metadata as attributes of a group: 0.5 has them under one key, 0.4 has not."""
    return dict(ome) if version == "0.4" else {"ome": dict(ome)}


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
    shards: Sequence[int] | None = None,
    compressors: Any = "auto",
    overwrite: bool = False,
) -> zarr.Array[Any]:
    """The array of one level.

    In Zarr v3 its dimension names are the axes; in v2 its chunks are named as OME-Zarr 0.4
    wants it.
    """
    optional: dict[str, Any] = {}
    if group.metadata.zarr_format == 2:
        optional["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    else:
        optional["dimension_names"] = tuple(axes)
    if shards is not None:
        optional["shards"] = tuple(shards)
    return group.create_array(
        path,
        shape=tuple(shape),
        chunks=tuple(chunks),
        dtype=dtype,
        fill_value=fill_value,
        compressors=compressors,
        overwrite=overwrite,
        **optional,
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
