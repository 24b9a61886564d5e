"""What a CZI says of itself in its XML: scenes, channels, micrometers, and all of it by name.

Not covered: where its parts lie (`daskdmed.images.czi.layout`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from daskdmed.images.protocols import ChannelInfo
from daskdmed.images.tiff.metadata import Mpp, as_float, plausible
from daskdmed.images.tiff.vendors import xml_root

#: parts of the XML that become properties; planes and tiles of large files are more
_MOST = 4000
_LONG = 2**12


class Facts:
    """The XML of a file; whatever is wrong with it is as if it were not there."""

    def __init__(self, text: str) -> None:
        self._root: Any = xml_root(text or "")

    def _all(self, path: str) -> list[Any]:
        return [] if self._root is None else self._root.findall(path)

    @property
    def mpp(self) -> Mpp | None:
        """(x, y) micrometers per pixel."""
        meters = {one.get("Id"): as_float(one.findtext("Value")) for one in self._all(_DISTANCE)}
        x, y = meters.get("X"), meters.get("Y")
        return plausible(x and x * 1e6, y and y * 1e6)

    @property
    def power(self) -> float | None:
        """Of the objective of the image, or the only one."""
        given = {one.get("Id"): one for one in self._all(_OBJECTIVE)}
        named = [one.get("Id") for one in self._all(_USED)]
        used = [given[name] for name in named if name in given] or list(given.values())
        powers = {as_float(one.findtext("NominalMagnification")) for one in used}
        return powers.pop() if len(powers) == 1 else None

    def scenes(self, numbers: Sequence[int]) -> list[str]:
        """Names of scenes; a number where there is none, or several have it."""
        said = {one.get("Index"): (one.get("Name") or "").strip() for one in self._all(_SCENE)}
        names = [said.get(str(number)) or f"scene {number}" for number in numbers]
        return [
            name if names.count(name) == 1 else f"scene {number}"
            for number, name in zip(numbers, names, strict=True)
        ]

    def channels(self, count: int) -> tuple[ChannelInfo, ...]:
        """Of a file of so many channels; () where it says nothing of them."""
        found = self._all(_CHANNEL)
        shown = {one.get("Id"): one for one in self._all(_SHOWN)}
        if len(found) != count:
            return ()
        channels = tuple(
            ChannelInfo(
                one.get("Name") or one.findtext("Fluor") or "",
                _digits(one.findtext("Color"), _text(shown.get(one.get("Id")), "Color")),
                as_float(one.findtext("EmissionWavelength")),
                as_float(one.findtext("ExcitationWavelength")),
            )
            for one in found
        )
        return channels if any(any(channel.facts) for channel in channels) else ()

    def properties(self) -> dict[str, str]:
        """All values, by OpenSlide's names."""
        found: dict[str, str] = {}
        for top in self._all("Metadata/*"):
            for name, value in _flat(top, f"zeiss.{top.tag}"):
                if len(found) >= _MOST:
                    return found
                if 0 < len(value) <= _LONG:
                    found[name] = value
        return found


_IMAGE = "Metadata/Information/Image"
_DISTANCE = "Metadata/Scaling/Items/Distance"
_OBJECTIVE = "Metadata/Information/Instrument/Objectives/Objective"
_USED = f"{_IMAGE}/ObjectiveSettings/ObjectiveRef"
_SCENE = f"{_IMAGE}/Dimensions/S/Scenes/Scene"
_CHANNEL = f"{_IMAGE}/Dimensions/Channels/Channel"
_SHOWN = "Metadata/DisplaySetting/Channels/Channel"


def _text(one: Any, name: str) -> str:
    return "" if one is None else one.findtext(name) or ""


def _digits(*texts: str | None) -> str:
    """Six hexadecimal digits of "#FF00B4D8" or "#00B4D8"."""
    for text in texts:
        found = re.fullmatch(r"#(?:[0-9A-Fa-f]{2})?([0-9A-Fa-f]{6})", (text or "").strip())
        if found:
            return found[1].upper()
    return ""


def _flat(one: Any, name: str) -> Iterator[tuple[str, str]]:
    for key, value in one.attrib.items():
        yield f"{name}.{key}", value
    text = (one.text or "").strip()
    if text:
        yield name, text
    for child in one:
        own = child.get("Id") or child.get("Name") or child.tag
        yield from _flat(child, f"{name}.{own}")
