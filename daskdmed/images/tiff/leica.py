"""Where the scanned areas of a Leica slide lie.

A Leica file holds a macro image of the whole slide and one or more areas scanned at high
power. Level 0 is the whole slide at the resolution of the areas, as in OpenSlide.

Not covered: pixels (`daskdmed.images.tiff.decode`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError
from daskdmed.images.tiff.series import arranged
from daskdmed.images.tiff.vendors import xml_root

_MAX_SIDE = 2**31
#: areas scanned at one power agree in the size of a pixel to this fraction
_SAME_POWER = 0.01


@dataclass(frozen=True, slots=True)
class Area:
    """One scanned area; `x` and `y` in pixels of level 0."""

    series: Any
    x: float
    y: float

    def origin_at(self, scale: tuple[float, float]) -> tuple[int, int]:
        """Nearest pixel (y, x) at a level; `scale` is its (x, y) downsample."""
        return round(self.y / scale[1]), round(self.x / scale[0])


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole slide in pixels of level 0, and its areas."""

    width: float
    height: float
    areas: tuple[Area, ...]
    properties: dict[str, str]

    def size_at(self, scale: tuple[float, float]) -> tuple[int, int]:
        """(height, width) at a level."""
        return math.ceil(self.height / scale[1] - 1e-6), math.ceil(self.width / scale[0] - 1e-6)


def slide_layout(tif: Any, main: Any, uri: str) -> Layout:
    """Read the layout from the file's XML; `main` is the series of the largest area."""
    root = xml_root(tif.pages.first.description)
    series = [s for s in arranged(tif) if s.kind == "scn"]
    images = [] if root is None else list(_images(root))
    if len(images) != len(series):
        raise CorruptImageError.of(
            uri,
            f"the Leica XML names {len(images)} images, the file has {len(series)}; fetch it again",
        )
    chosen, collection = images[series.index(main)]
    step_x = chosen["sizeX"] / main.keyframe.imagewidth
    step_y = chosen["sizeY"] / main.keyframe.imagelength
    areas: list[Area] = []
    properties: dict[str, str] = {}
    for one, (view, where) in zip(series, images, strict=True):
        key = one.keyframe
        if (
            where is not collection
            or abs(view["sizeX"] / key.imagewidth / step_x - 1) >= _SAME_POWER
        ):
            continue
        if len(one.levels) != len(main.levels):
            raise UnsupportedImageError.of(
                uri,
                "the scanned areas of this Leica slide have different levels, which the "
                "tiff backend does not compose",
            )
        area = Area(one, view["offsetX"] / step_x, view["offsetY"] / step_y)
        properties |= _box(
            f"openslide.region[{len(areas)}].", area.x, area.y, key.imagewidth, key.imagelength
        )
        areas.append(area)
    left, top = min(a.x for a in areas), min(a.y for a in areas)
    right = max(a.x + a.series.keyframe.imagewidth for a in areas)
    bottom = max(a.y + a.series.keyframe.imagelength for a in areas)
    properties |= _box("openslide.bounds-", left, top, right - left, bottom - top)
    width = _number(collection.attrib.get("sizeX")) / step_x
    height = _number(collection.attrib.get("sizeY")) / step_y
    if not (0 < width < _MAX_SIDE and 0 < height < _MAX_SIDE):
        raise CorruptImageError.of(
            uri,
            f"the Leica XML claims a slide of {width:.0f} x {height:.0f} pixels; fetch "
            "the file again",
        )
    return Layout(width, height, tuple(areas), properties)


def _box(prefix: str, x: float, y: float, width: float, height: float) -> dict[str, str]:
    facts = {"x": x, "y": y, "width": width, "height": height}
    return {prefix + name: str(round(value)) for name, value in facts.items()}


def _images(root: Any) -> Iterator[tuple[dict[str, float], Any]]:
    """View and collection of every image that has pixels, in the order of the file."""
    for collection in root.findall("{*}collection"):
        for image in collection.findall("{*}image"):
            view = image.find("{*}view")
            for pixels in image.findall("{*}pixels"):
                if view is not None and pixels.find("{*}dimension") is not None:
                    names = ("sizeX", "sizeY", "offsetX", "offsetY")
                    yield {n: _number(view.attrib.get(n)) for n in names}, collection


def _number(text: str | None) -> float:
    value = float(text or 0)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no extent")
    return value
