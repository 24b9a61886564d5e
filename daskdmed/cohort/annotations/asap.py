"""ASAP's XML: what it says about each annotation.

Types Dot, PointSet, Polygon, Spline, Rectangle, Measurement, and the Polyline and Line of
programs that write the same format. A spline is the polygon of its control points, which is
how ASAP itself makes masks of it. The label of an annotation is the name of its group
(``PartOfGroup``), "None" being none; `Annotation.group` is the chain of groups that hold it,
outermost first, and its colour is the group's. Not covered: reading files, checking and
repairing (`daskdmed.cohort.annotations.reading`, `.drafts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from daskdmed.cohort.annotations.drafts import (
    Draft,
    DraftError,
    Parsed,
    check_class_property,
    label_at,
    shape_of,
)
from daskdmed.cohort.annotations.markup import attribute, hex_colour, number, walk
from daskdmed.core.errors import AnnotationError

_Groups: TypeAlias = "Mapping[str, tuple[str, str]]"
_KINDS: dict[str, Literal["points", "line", "box", "area"]] = {
    **dict.fromkeys(("polygon", "spline"), "area"),
    **dict.fromkeys(("measurement", "polyline", "line"), "line"),
    **dict.fromkeys(("dot", "pointset"), "points"),
    "rectangle": "box",
}


def parse_asap(content: bytes, uri: str, class_property: str | None) -> Parsed:
    """Annotations of an ASAP document."""
    objects: list[tuple[dict[str, str], list[Any]]] = []
    groups: dict[str, tuple[str, str]] = {}
    for event, element in walk(content, uri, {"Annotation", "Group"}):
        if event == "start":
            continue
        if element.tag == "Annotation":
            coordinates = [c.attrib for c in element.iter("Coordinate")]
            objects.append((dict(element.attrib), coordinates))
        else:
            parent = element.get("PartOfGroup", "None")
            groups[element.get("Name", "")] = (parent, element.get("Color", ""))
    chains = {name: _chain(name, groups, uri) for name in groups}
    if class_property is not None:
        check_class_property(class_property, (facts for facts, _ in objects), uri)

    def draft(given: tuple[dict[str, str], list[Any]], _: Any) -> Draft:
        attributes, coordinates = given
        group = attributes.get("PartOfGroup", "None")
        chain = () if group in ("", "None") else chains.get(group, (group,))
        label = chain[-1] if chain else None
        if class_property is not None:
            label = label_at(attributes, class_property)
        colour = groups[group][1] if group in groups else attributes.get("Color", "")
        kind, made = attributes.get("Type", "").strip(), Draft(None)
        made.geometry = _shape(kind, coordinates, made.flaws)
        made.facts = {
            "label": label,
            "name": attributes.get("Name", ""),
            "group": chain,
            "colour": hex_colour(colour, made.flaws),
            "properties": {"type": kind},
        }
        return made

    return Parsed(objects, draft)


def _chain(name: str, groups: _Groups, uri: str) -> tuple[str, ...]:
    """The group and those that hold it, outermost first."""
    chain = [name]
    while (parent := groups.get(chain[-1], ("None", ""))[0]) not in ("", "None"):
        if parent in chain:
            raise AnnotationError(
                f"{uri or 'annotations'}: the groups {[*chain, parent]} hold each other in a "
                "circle; correct PartOfGroup",
                uri=uri,
            )
        chain.append(parent)
    return tuple(reversed(chain))


def _shape(kind: str, coordinates: list[Any], flaws: list[str]) -> Any:
    if kind.lower() not in _KINDS:
        known = "Dot, PointSet, Polygon, Spline, Rectangle, Measurement, Polyline"
        raise DraftError(f"the annotation type {kind!r} is not one of {known}")
    # in the order that the file says, not that in which it lists them
    order = [number(c.get("Order", place)) for place, c in enumerate(coordinates)]
    xy = [[attribute(c, "X"), attribute(c, "Y")] for c in coordinates]
    ordered = np.asarray(xy, float).reshape(-1, 2)[np.argsort(order, kind="stable")]
    return shape_of(ordered, _KINDS[kind.lower()], flaws, kind)
