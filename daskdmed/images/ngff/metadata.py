"""OME-Zarr metadata as typed values: read from the attributes of a group, and written as such.

Versions 0.1 to 0.5 are read, 0.4 and 0.5 written; the versions of the format live in this
module only. Any number of axes of time, channel and space. Pure: no arrays, no stores.

Not covered: plates and wells, the list of label images, transformations other than scale
and translation (a level that has one does not say where it lies).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from daskdmed.core.errors import UsageError
from daskdmed.core.resolution import micrometers_per
from daskdmed.images.protocols import ChannelInfo

Version = Literal["0.4", "0.5"]
OME_VERSION: Version = "0.5"
#: version of OME-Zarr -> format of Zarr underneath
ZARR_FORMATS: dict[str, Literal[2, 3]] = {"0.4": 2, "0.5": 3}
#: of channels and labels whose colours are not given
PALETTE = ("00B4D8", "FF5D5D", "FFD166", "06D6A0", "B388EB", "F4A261", "8ECAE6", "E5E5E5")
#: what parsing malformed metadata raises
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)
_TYPES = {"c": "channel", "t": "time"}
#: RFC-4: what an axis that grows towards one of nibabel's letters is called
ANATOMICAL = {
    "R": "left-to-right",
    "L": "right-to-left",
    "A": "posterior-to-anterior",
    "P": "anterior-to-posterior",
    "S": "inferior-to-superior",
    "I": "superior-to-inferior",
}
#: versions 0.1 and 0.2 name no axes, they have these
_OLD_AXES = "tczyx"
_SPACE = ("z", "y", "x")


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an image: "t", "c", "z", "y", "x" or another; of type "time", "channel" or
    "space".

    `orientation` is where it grows to in the patient, as RFC-4 writes it: "left-to-right"...
    """

    name: str
    type: str
    unit: str | None = None
    orientation: str | None = None

    @classmethod
    def named(cls, name: str, unit: str | None = None, letter: str | None = None) -> Axis:
        """An axis of the type that its name says: c, t, else space; one that grows towards the
        `letter` R, A, S, L, P or I has an orientation."""
        return cls(name, _TYPES.get(name, "space"), unit, letter and ANATOMICAL[letter])

    @classmethod
    def parse(cls, value: str | Mapping[str, Any]) -> Axis:
        """From ``multiscales.axes``: a name in version 0.3, a mapping since then."""
        if isinstance(value, str):
            return cls.named(value)
        named, unit = cls.named(str(value["name"])), value.get("unit")
        kind = str(value.get("type") or named.type)
        told = value.get("orientation")
        found = told.get("value") if isinstance(told, Mapping) else None
        known = str(found) if found in ANATOMICAL.values() else None
        return cls(named.name, kind, None if unit is None else str(unit), known)

    @property
    def micrometers(self) -> float | None:
        """Micrometers per unit, None where the unit is not given or is no length."""
        return micrometers_per(self.unit)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "type": self.type}
        if self.unit is not None:
            found["unit"] = self.unit
        if self.orientation is not None:
            found["orientation"] = {"type": "anatomical", "value": self.orientation}
        return found

    @property
    def letter(self) -> str | None:
        """Where it grows to as nibabel says it: one of R, A, S, L, P, I; None when unknown."""
        return next((k for k, v in ANATOMICAL.items() if v == self.orientation), None)


@dataclass(frozen=True, slots=True)
class LevelPlace:
    """One level of a multiscale image: the array at `path` within the group.

    `scale` and `translation`, one number per axis in the axes' units, are the extent of a pixel and
    the centre of the first one; empty when the metadata do not say.
    """

    path: str
    scale: tuple[float, ...] = ()
    translation: tuple[float, ...] = ()

    @classmethod
    def parse(cls, dataset: Mapping[str, Any], shared: Sequence[Any], ndim: int) -> LevelPlace:
        """From ``multiscales.datasets`` and the transformations that all levels share, which come
        upon those of the level."""
        path = str(dataset["path"])
        scale, translation = (1.0,) * ndim, (0.0,) * ndim
        is_known = False
        for step in (*(dataset.get("coordinateTransformations") or ()), *shared):
            kind = step.get("type")
            if kind == "identity":
                continue
            if kind not in ("scale", "translation") or kind not in step:
                return cls(path)
            values = [float(v) for v in step[kind]]
            if kind == "translation":
                translation = tuple(t + v for t, v in zip(translation, values, strict=True))
            else:
                is_known = True
                scale = tuple(s * v for s, v in zip(scale, values, strict=True))
                translation = tuple(t * v for t, v in zip(translation, values, strict=True))
        return cls(path, scale, translation) if is_known else cls(path)

    def coarser(self, path: str, factors: Sequence[int]) -> LevelPlace:
        """The level whose pixels cover `factors` pixels of this one, per axis."""
        axes = list(zip(self.scale, self.translation, factors, strict=True))
        centres = tuple(t + (f - 1) / 2 * s for s, t, f in axes)
        return LevelPlace(path, tuple(s * f for s, _, f in axes), centres)

    def to_json(self) -> dict[str, Any]:
        transforms = [
            {"type": "scale", "scale": [float(s) for s in self.scale]},
            {"type": "translation", "translation": [float(t) for t in self.translation]},
        ]
        return {"path": self.path, "coordinateTransformations": transforms}


@dataclass(frozen=True, slots=True)
class Channel:
    """How viewers show a channel: six hexadecimal digits for its highest value, the `window` of
    values shown darkest and brightest, the `limits` that occur at most."""

    label: str = ""
    color: str = ""
    window: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None
    active: bool | None = True
    #: nanometers, as OMERO writes them
    emission: float | None = None
    excitation: float | None = None

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Channel:
        """From ``omero.channels``; what is not there is empty or None."""
        window = value.get("window") or {}
        return cls(
            label=str(value.get("label", "")),
            color=str(value.get("color", "")),
            window=_numbers(window.get("start"), window.get("end")),
            limits=_numbers(window.get("min"), window.get("max")),
            active=value.get("active"),
            emission=_positive(value.get("emissionWave")),
            excitation=_positive(value.get("excitationWave")),
        )

    @property
    def digits(self) -> str:
        """The colour as six upper-case digits, "" when it is none."""
        return _hex_digits(self.color) or ""

    @property
    def info(self) -> ChannelInfo:
        """As slides and volumes say it."""
        return ChannelInfo(self.label, self.digits, self.emission, self.excitation, self.window)

    def to_json(self) -> dict[str, Any]:
        window = dict(zip(("min", "max"), self.limits or (), strict=False))
        window |= zip(("start", "end"), self.window or (), strict=False)
        facts: dict[str, Any] = {"label": self.label, "color": self.color, "active": self.active}
        facts |= {"window": window}
        facts |= {"emissionWave": self.emission, "excitationWave": self.excitation}
        return {key: value for key, value in facts.items() if value or value is False}


@dataclass(frozen=True, slots=True)
class ImageLabel:
    """Colours (red, green, blue, opacity, 0 to 255) and names of the values of a label image."""

    colors: Mapping[int, tuple[int, int, int, int]]
    names: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "colors": [
                {"label-value": int(value), "rgba": [int(c) for c in rgba]}
                for value, rgba in sorted(self.colors.items())
            ],
            "source": {"image": "../../"},
        }
        if self.names:
            # the same values as in colors, as validators want it
            called = {**{value: str(value) for value in self.colors}, 0: "background", **self.names}
            found["properties"] = [
                {"label-value": int(value), "class": called[value]} for value in sorted(self.colors)
            ]
        return found


@dataclass(frozen=True, slots=True)
class Multiscale:
    """An image with any number of levels, finest first, at least one.

    `method` is how coarser levels were made ("mean", "mode", "nearest"). `label` is written only.
    `version` is that of OME-Zarr, "" when the metadata do not say.
    """

    axes: tuple[Axis, ...]
    levels: tuple[LevelPlace, ...]
    name: str = ""
    method: str = ""
    channels: tuple[Channel, ...] = ()
    label: ImageLabel | None = None
    version: str = OME_VERSION
    #: whether the metadata say that values are labels
    is_labels: bool = False

    def __post_init__(self) -> None:
        if not self.levels:
            raise UsageError("the multiscale image has no levels")
        for level in self.levels:
            if {len(level.scale), len(level.translation)} - {len(self.axes)} - {0}:
                raise UsageError(
                    f"level {level.path!r} with scale={level.scale} and "
                    f"translation={level.translation} must have one of each per axis "
                    f"({', '.join(a.name for a in self.axes)})"
                )

    @classmethod
    def parse(cls, attributes: Mapping[str, Any]) -> Multiscale | None:
        """The first image that a group's attributes describe, or None; raises `MALFORMED`."""
        ome = ome_of(attributes)
        if "multiscales" not in ome:
            return None
        value = ome["multiscales"][0]
        given = value.get("axes")
        axes = tuple(Axis.parse(axis) for axis in (_OLD_AXES if given is None else given))
        channels = (ome.get("omero") or {}).get("channels") or ()
        shared = value.get("coordinateTransformations") or ()
        return cls(
            axes=axes,
            levels=tuple(LevelPlace.parse(d, shared, len(axes)) for d in value["datasets"]),
            name=str(value.get("name") or ""),
            method=str(value.get("type") or ""),
            channels=tuple(Channel.parse(channel) for channel in channels),
            version=str(ome.get("version") or value.get("version") or ""),
            is_labels="image-label" in ome,
        )

    def infos(self, count: int) -> tuple[ChannelInfo, ...]:
        """What is said of `count` channels; () where nothing, or of another number of them."""
        found = tuple(channel.info for channel in self.channels)
        return found if len(found) == count and any(any(c.facts) for c in found) else ()

    @property
    def channel(self) -> int | None:
        """Position of the channel axis."""
        return next((i for i, axis in enumerate(self.axes) if axis.type == "channel"), None)

    def spacing(self, path: str | None = None) -> tuple[float | None, ...]:
        """Micrometers per pixel of a level, else the first, per axis; None where not known."""
        level = next(lv for lv in self.levels if path in (None, lv.path))
        scale = level.scale or (math.nan,) * len(self.axes)
        return tuple(
            s * axis.micrometers if axis.micrometers and math.isfinite(s) and s > 0 else None
            for s, axis in zip(scale, self.axes, strict=True)
        )

    def attributes(self, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As attributes of the group. What OME-Zarr or another writer says in those that were there
        `before`, beside this image and of it, is kept."""
        version = check_version(self.version)
        old = ome_of(before or {})
        first, *others = old.get("multiscales") or [{}]
        theirs = first.get("axes") or [{}] * len(self.axes)
        inside = {"version": version} if version == "0.4" else {}
        outside = {} if inside else {"version": version}
        described: dict[str, Any] = {
            "axes": [_with_rest(a.to_json(), b) for a, b in zip(self.axes, theirs, strict=True)],
            "datasets": [level.to_json() for level in self.levels],
            **({"name": self.name} if self.name else {}),
            **({"type": self.method} if self.method else {}),
            **inside,
        }
        described = _with_rest(described, first)
        described.pop("coordinateTransformations", None)  # they are in those of each level
        ome: dict[str, Any] = {"multiscales": [described, *others], **outside}
        if self.channels:
            model = "color" if len(self.channels) > 1 else "greyscale"
            ome["omero"] = {
                **(old.get("omero") or {}),
                "channels": [channel.to_json() for channel in self.channels],
                "rdefs": {"model": model},
            }
        if self.label is not None:
            ome["image-label"] = {**inside, **self.label.to_json()}
        elif self.is_labels:
            ome["image-label"] = {**(old.get("image-label") or {}), **inside}
        return ome_attributes({**old, **ome}, version)


def holds_classes(own: Mapping[str, Any] | None) -> bool:
    """Whether what this library wrote beside the metadata says that values are classes."""
    parameters = (own or {}).get("parameters")
    post = parameters.get("post") if isinstance(parameters, Mapping) else None
    return bool(post and post[0] in ("argmax", "threshold"))


def ome_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What OME-Zarr says among the attributes of a group, of any version."""
    ome = attributes.get("ome", attributes)
    return dict(ome) if isinstance(ome, Mapping) else {}


def is_spatialdata(attributes: Mapping[str, Any]) -> bool:
    """Whether a group is the root of a SpatialData object."""
    return "spatialdata_attrs" in attributes and "multiscales" not in ome_of(attributes)


def ome_attributes(ome: Mapping[str, Any], version: str) -> dict[str, Any]:
    """OME metadata as attributes of a group: 0.5 has them under one key, 0.4 has not."""
    return dict(ome) if version == "0.4" else {"ome": dict(ome)}


def axis_names(spatial_ndim: int, channels: bool) -> tuple[str, ...]:
    """Names in OME order: the channel before space."""
    if spatial_ndim > len(_SPACE):
        names: tuple[str, ...] = tuple(f"axis{i}" for i in range(spatial_ndim))
    else:
        names = _SPACE[-spatial_ndim:]
    return ("c", *names) if channels else names


def check_version(version: str) -> Version:
    """A version of OME-Zarr that can be written."""
    if version not in ZARR_FORMATS:
        raise UsageError(f"version must be one of {sorted(ZARR_FORMATS)}, got {version!r}")
    return version  # type: ignore[return-value]


def version_of(group: Any) -> Version:
    """The version of OME-Zarr that is written into a Zarr group, as its format has it."""
    return "0.4" if group.metadata.zarr_format == 2 else "0.5"


def hex_color(value: str) -> str:
    """Six upper-case hexadecimal digits from "#ff8000" or "FF8000"."""
    digits = _hex_digits(value)
    if digits is None:
        raise UsageError(f"a colour is six hexadecimal digits like 'FF8000', got {value!r}")
    return digits


def rgb(digits: str) -> tuple[int, int, int]:
    """Red, green and blue of six hexadecimal digits."""
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def _hex_digits(value: str) -> str | None:
    digits = str(value).removeprefix("#").upper()
    return None if len(digits) != 6 or set(digits) - set("0123456789ABCDEF") else digits


def _with_rest(mine: dict[str, Any], theirs: Any) -> dict[str, Any]:
    """Entries, and those of another writer that they do not replace."""
    rest = theirs if isinstance(theirs, Mapping) else {}
    return {**mine, **{key: value for key, value in rest.items() if key not in mine}}


def _positive(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
    return float(value) if known else None


def _numbers(low: Any, high: Any) -> tuple[float, float] | None:
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return low, high
    return None
