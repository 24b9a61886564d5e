"""ASAP's XML: what it says about each annotation.

Types Dot, PointSet, Polygon, Spline, Rectangle, Measurement, and the Polyline and Line of
programs that write the same format. A spline is the polygon of its control points, which is
how ASAP itself makes masks of it. The label of an annotation is the name of its group
(``PartOfGroup``), "None" being none; `Annotation.group` is the chain of groups that hold it,
outermost first, and its colour is the group's. Not covered: reading files, checking and
repairing (`daskdmed.cohort.annotations.reading`, `.drafts`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskdmed.cohort.annotations.drafts import Draft, DraftError, positions, ring
from daskdmed.cohort.annotations.shapes import Floats, require_shapely
from daskdmed.core.errors import AnnotationError, MissingExtraError

#: elements inside elements; the format has five
_DEPTH = 32
_AREAS = frozenset({"polygon", "spline", "rectangle"})
_LINES = frozenset({"measurement", "polyline", "line"})
_POINTS = frozenset({"dot", "pointset"})


@dataclass
class _Found:
    """What is collected while the document is read, element by element."""

    root: str = ""
    annotations: list[tuple[dict[str, str], list[dict[str, str]]]] = field(default_factory=list)
    groups: dict[str, tuple[str, str]] = field(default_factory=dict)


def parse_asap(content: bytes, uri: str) -> Iterator[tuple[int, Callable[[], Draft]]]:
    """Annotations of an ASAP document, for `Checker.collect`.

    Document type declarations are refused, and with them entities that expand to gigabytes
    or name other files.

    Raises
    ------
    AnnotationError
        It is not complete XML, holds a document type or entities, is nested too deep, is
        not ASAP's, or its groups hold each other in a circle.
    """
    found = _read(content, uri)
    where = uri or "annotations"
    if not found.annotations and not found.groups and found.root != "ASAP_Annotations":
        raise AnnotationError(
            f"{where}: is XML but not ASAP's: the root is <{found.root}>; expected "
            "<ASAP_Annotations>",
            uri=uri,
        )
    chains = {name: _chain(name, found.groups, where, uri) for name in found.groups}
    for index, (attributes, coordinates) in enumerate(found.annotations):
        group = attributes.get("PartOfGroup", "None")
        chain = () if group in ("", "None") else chains.get(group, (group,))
        colour = found.groups[group][1] if group in found.groups else attributes.get("Color", "")

        def build(
            index: int = index,
            attributes: dict[str, str] = attributes,
            coordinates: list[dict[str, str]] = coordinates,
            chain: tuple[str, ...] = chain,
            colour: str = colour,
        ) -> Draft:
            return _draft(index, attributes, coordinates, chain, colour)

        yield index, build


def _read(content: bytes, uri: str) -> _Found:
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import ParseError, iterparse
    except ImportError as error:
        raise MissingExtraError(
            "ASAP's XML needs defusedxml; install it with: pip install 'daskdmed[annotations]'"
        ) from error
    found, depth = _Found(), 0
    coordinates: list[dict[str, str]] = []
    try:
        for event, element in iterparse(
            io.BytesIO(content), events=("start", "end"), forbid_dtd=True
        ):
            depth += 1 if event == "start" else -1
            if depth > _DEPTH:
                raise AnnotationError(
                    f"{uri or 'annotations'}: the XML is nested more than {_DEPTH} deep, which "
                    "ASAP's never is",
                    uri=uri,
                )
            if event == "start":
                found.root = found.root or element.tag
                continue
            if element.tag == "Coordinate":
                coordinates.append(dict(element.attrib))
            elif element.tag == "Annotation":
                found.annotations.append((dict(element.attrib), coordinates))
                coordinates = []
            elif element.tag == "Group":
                name = element.get("Name", "")
                parent = element.get("PartOfGroup", "None")
                found.groups[name] = (parent, element.get("Color", ""))
            # what was read is dropped, so that memory does not grow with the document twice
            element.clear()
    except DefusedXmlException as error:
        raise AnnotationError(
            f"{uri or 'annotations'}: the XML holds a document type or entities "
            f"({type(error).__name__}), which annotations never need and attacks do; remove them",
            uri=uri,
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"{uri or 'annotations'}: is not complete XML: {error}; export it again", uri=uri
        ) from error
    return found


def _chain(name: str, groups: Any, where: str, uri: str) -> tuple[str, ...]:
    """The group and those that hold it, outermost first."""
    chain = [name]
    while (parent := groups.get(chain[-1], ("None",))[0]) not in ("", "None"):
        if parent in chain:
            raise AnnotationError(
                f"{where}: the groups {[*chain, parent]} hold each other in a circle; correct "
                "PartOfGroup",
                uri=uri,
            )
        chain.append(parent)
    return tuple(reversed(chain))


def _draft(
    index: int,
    attributes: dict[str, str],
    coordinates: list[dict[str, str]],
    chain: tuple[str, ...],
    colour: str,
) -> Draft:
    draft = Draft(index, None)
    kind = attributes.get("Type", "").strip()
    xy = _positions(coordinates)
    draft.geometry = _shape(kind, xy, draft.flaws)
    draft.facts = {
        "label": chain[-1] if chain else None,
        "name": attributes.get("Name", ""),
        "group": chain,
        "colour": _colour(colour, draft.flaws),
        "properties": {"type": kind},
    }
    return draft


def _positions(coordinates: list[dict[str, str]]) -> Floats:
    """Positions in the order that the file gives them in ``Order``."""
    try:
        order = [float(c.get("Order", place)) for place, c in enumerate(coordinates)]
        pairs = [[_number(c["X"]), _number(c["Y"])] for c in coordinates]
    except KeyError as error:
        raise DraftError(f"a coordinate lacks the attribute {error}") from None
    except ValueError as error:
        raise DraftError(f"a coordinate is not a number: {error}") from None
    xy = np.asarray(pairs, float).reshape(-1, 2)
    return np.asarray(xy[np.argsort(order, kind="stable")])


def _number(text: str) -> float:
    """Of either decimal sign: programs on a German or Dutch system write commas."""
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)


def _shape(kind: str, xy: Floats, flaws: list[str]) -> Any:
    shapely = require_shapely()
    lower = kind.lower()
    if lower not in _AREAS | _LINES | _POINTS:
        known = "Dot, PointSet, Polygon, Spline, Rectangle, Measurement, Polyline"
        raise DraftError(f"the annotation type {kind!r} is not one of {known}")
    xy = positions(xy, kind, 1)
    if len(xy) == 0:
        return shapely.Polygon()
    if lower in _POINTS:
        return shapely.points(xy[0]) if len(xy) == 1 else shapely.multipoints(shapely.points(xy))
    if lower in _LINES:
        return shapely.linestrings(positions(xy, kind, 2))
    if lower == "rectangle" and len(xy) == 2:
        return shapely.box(*xy.min(axis=0), *xy.max(axis=0))
    return shapely.Polygon(ring(xy, flaws, closed=False))


def _colour(text: str, flaws: list[str]) -> tuple[int, int, int] | None:
    if not text:
        return None
    digits = text.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        flaws.append(f"the colour {text[:40]!r} is not #RRGGBB")
        return None
    return red, green, blue
