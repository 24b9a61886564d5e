"""Aperio ImageScope's XML, and that of HALO, which is made like it: layers of regions.

Types of a region: 0 or Polygon (drawn by hand), 1 Rectangle, 2 Ellipse (its vertices span its
box), 3 Arrow and 4 Ruler (lines), 5 or Pin (points). A region with ``NegativeROA="1"`` is cut
out of the areas of its layer. The label is the name of the layer, or where it has none the text
of the region, or the description of the layer; ``class_property="Text"`` takes the text. Not
covered: reading files, checking and repairing (`daskdmed.cohort.annotations.reading`, `.drafts`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from daskdmed.cohort.annotations.drafts import (
    Draft,
    DraftError,
    Parsed,
    check_class_property,
    label_at,
    mended,
    shape_of,
)
from daskdmed.cohort.annotations.markup import attribute, walk
from daskdmed.cohort.annotations.shapes import require_shapely

_KINDS: dict[str, Literal["points", "line", "box", "ellipse", "area"]] = {
    **dict.fromkeys(("0", "polygon", "freehand", ""), "area"),
    **dict.fromkeys(("1", "rectangle"), "box"),
    **dict.fromkeys(("2", "ellipse"), "ellipse"),
    **dict.fromkeys(("3", "arrow", "4", "ruler"), "line"),
    **dict.fromkeys(("5", "pin"), "points"),
}


@dataclass(slots=True)
class _Layer:
    attributes: dict[str, str]
    properties: dict[str, str] = field(default_factory=dict)
    regions: list[_Region] = field(default_factory=list)
    holes: Any = None


@dataclass(slots=True)
class _Region:
    layer: _Layer
    properties: dict[str, str]
    vertices: list[dict[str, str]]

    @property
    def negative(self) -> bool:
        return self.properties.get("NegativeROA", "0").strip().lower() in ("1", "true")

    @property
    def kind(self) -> str:
        return self.properties.get("Type", "").strip().lower()

    def shape(self, flaws: list[str]) -> Any:
        if self.kind not in _KINDS:
            known = "0 Polygon, 1 Rectangle, 2 Ellipse, 3 Arrow, 4 Ruler, 5 Pin"
            raise DraftError(f"the region type {self.properties.get('Type')!r} is none of {known}")
        xy = [[attribute(v, "X"), attribute(v, "Y")] for v in self.vertices]
        return shape_of(xy, _KINDS[self.kind], flaws, "region")


def parse_imagescope(content: bytes, uri: str, class_property: str | None) -> Parsed:
    """Regions of an ImageScope document; errors as of `walk`."""
    layers = _layers(content, uri)
    for layer in layers:
        layer.holes = _holes(layer)
    objects = [region for layer in layers for region in layer.regions]
    if class_property is not None:
        known = ({**r.layer.properties, **r.layer.attributes, **r.properties} for r in objects)
        check_class_property(class_property, known, uri)
    return Parsed(objects, lambda region, _: _draft(region, class_property))


def _layers(content: bytes, uri: str) -> list[_Layer]:
    layers: list[_Layer] = []
    inside = False
    for event, element in walk(content, uri, {"Region"}):
        if event == "end":
            inside = False
            own = {a.get("Name", ""): a.get("Value", "") for a in element.iter("Attribute")}
            vertices = [dict(v.attrib) for v in element.iter() if v.tag in ("Vertex", "V")]
            layer = layers[-1] if layers else _Layer({})
            layers += [] if layers else [layer]
            layer.regions.append(_Region(layer, {**own, **element.attrib}, vertices))
        elif element.tag == "Annotation":
            layers.append(_Layer(dict(element.attrib)))
        elif element.tag == "Region":
            inside = True
        elif element.tag == "Attribute" and layers and not inside:
            layers[-1].properties[element.get("Name", "")] = element.get("Value", "")
    return layers


def _holes(layer: _Layer) -> Any:
    """What the negative regions of a layer cover; those that are wrong are told in their turn."""
    shapely = require_shapely()
    found = []
    for region in layer.regions:
        if region.negative:
            try:
                found.append(mended(region.shape([])))
            except DraftError:
                continue
    return shapely.union_all(found) if found else None


def _draft(region: _Region, class_property: str | None) -> Draft:
    draft, layer = Draft(None), region.layer
    draft.geometry = region.shape(draft.flaws)
    if region.negative:
        draft.left_out = "it is negative, and its layer has no areas"
        if any(not r.negative and _KINDS.get(r.kind) != "line" for r in layer.regions):
            draft.left_out = ""  # the areas of the layer have it as a hole
            shapely = require_shapely()
            if not shapely.is_valid(draft.geometry):
                draft.flaws.append(shapely.is_valid_reason(draft.geometry))
        draft.geometry = None
    draft.holes = layer.holes
    title, text = layer.attributes.get("Name", ""), region.properties.get("Text", "")
    label = title or text or layer.properties.get("Description") or None
    known = {**layer.properties, **region.properties}
    if class_property is not None:
        label = label_at({**layer.attributes, **known}, class_property)
    draft.facts = {
        "label": label,
        "name": text,
        "group": (title,) if title else (),
        "colour": _colour(layer.attributes.get("LineColor", ""), draft.flaws),
        "id": region.properties.get("Id", ""),
        "properties": {k: v for k, v in known.items() if k not in ("Id", "Text") and v != ""},
    }
    return draft


def _colour(text: str, flaws: list[str]) -> tuple[int, int, int] | None:
    """A number with red in its lowest byte."""
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        flaws.append(f"the colour {text[:40]!r} is not a number")
        return None
    return value & 255, (value >> 8) & 255, (value >> 16) & 255
