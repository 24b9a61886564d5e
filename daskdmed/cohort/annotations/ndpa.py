"""Hamamatsu's NDPA, the annotations of NDP.view: XML in lengths from the centre of the glass.

Types freehand (an area, or a line when it is not closed), circle, pin, pointer, linearmeasure
(lines). The label is the title, as the program shows it. Where the glass' centre lies on the
image is said by the slide (``hamamatsu.XOffsetFromSlideCentre`` and ``-Y-``, nanometres), so
that the slide is needed: as ``offset=``, or beside the file, under its name without ``.ndpa``.
Not covered: reading files, checking and repairing (`daskdmed.cohort.annotations.reading`,
`.drafts`).
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np

from daskdmed.cohort.annotations.drafts import (
    Draft,
    DraftError,
    Parsed,
    check_class_property,
    label_at,
    offset_of,
    shape_of,
)
from daskdmed.cohort.annotations.markup import hex_colour, number, walk
from daskdmed.core.errors import AnnotationError
from daskdmed.core.resolution import Resolution

_Pair: TypeAlias = tuple[float, float]
#: nanometres per unit of ``coordformat``
_UNITS = {"nanometers": 1.0, "micrometers": 1e3, "millimeters": 1e6}
_CENTRE = ("hamamatsu.XOffsetFromSlideCentre", "hamamatsu.YOffsetFromSlideCentre")
_REMEDY = (
    "give the slide, read_annotations(path, offset=daskdmed.open_slide(...)), or where the "
    "centre of the glass lies, offset=(x, y) in level-0 pixels, with mpp="
)


def frame_of(uri: str, offset: Any, mpp: Any) -> tuple[_Pair, _Pair, Any]:
    """Nanometres per level-0 pixel, where the glass' centre lies in these, and the slide."""
    where = uri or "annotations"
    beside = os.path.splitext(uri)[0]
    if offset is None and uri.lower().endswith(".ndpa") and os.path.isfile(beside):
        from daskdmed.images.opening import open_slide

        offset = open_slide(beside)
    if offset is None:
        raise AnnotationError(
            f"{where}: Hamamatsu's coordinates are lengths from the centre of the glass, and "
            f"there is no slide that says where that lies; {_REMEDY}",
            uri=uri,
        )
    is_slide = hasattr(offset, "properties")
    facts = offset.properties if is_slide else {}
    if mpp is None and is_slide:
        mpp = getattr(offset, "mpp", None)
        if mpp is None and "openslide.mpp-x" in facts:
            mpp = tuple(float(facts[f"openslide.mpp-{axis}"]) for axis in "xy")
    missing = [name for name in _CENTRE if is_slide and name not in facts]
    missing += [] if mpp is not None else ["mpp"]
    if missing:
        whose = getattr(offset, "uri", "the slide") if is_slide else "the offset given"
        raise AnnotationError(
            f"{where}: Hamamatsu's coordinates are lengths from the centre of the glass, and "
            f"{whose} comes without {', '.join(missing)}; {_REMEDY}",
            uri=uri,
        )
    pair = Resolution.of(mpp=mpp).mpp
    assert pair is not None
    scale = pair[0] * 1e3, pair[1] * 1e3
    if not is_slide:
        return scale, offset_of(offset), None
    width, height = offset.dimensions
    x, y = (float(facts[name]) for name in _CENTRE)
    return scale, (width / 2 - x / scale[0], height / 2 - y / scale[1]), offset


def parse_ndpa(content: bytes, uri: str, class_property: str | None, scale: _Pair) -> Parsed:
    """Annotations of an NDPA document, in pixels from the glass' centre; errors as of `walk`."""
    objects = [
        (_texts(element), _drawn(element))
        for event, element in walk(content, uri, {"ndpviewstate"})
        if event == "end"
    ]
    if class_property is not None:
        check_class_property(class_property, ({**t, **d[0]} for t, d in objects), uri)
    return Parsed(objects, lambda given, _: _draft(given[0], given[1], class_property, scale))


_Drawn: TypeAlias = "tuple[dict[str, str], dict[str, str], list[dict[str, str]]]"


def _texts(element: Any) -> dict[str, str]:
    """What an element says in elements that hold a text only."""
    return {child.tag: (child.text or "").strip() for child in element if len(child) == 0}


def _drawn(state: Any) -> _Drawn:
    """Attributes, texts and positions of what was drawn."""
    annotation = state.find("annotation")
    if annotation is None:
        return {}, {}, []
    points = [_texts(point) for point in annotation.iter("point")]
    return dict(annotation.attrib), _texts(annotation), points


def _draft(state: dict[str, str], drawn: _Drawn, class_property: str | None, scale: _Pair) -> Draft:
    attributes, texts, points = drawn
    draft = Draft(None)
    kind = attributes.get("type", "")
    if attributes:
        unit = _UNITS.get(state.get("coordformat", "nanometers").lower())
        if unit is None:
            raise DraftError(f"coordformat {state['coordformat']!r} is none of {sorted(_UNITS)}")
        draft.geometry = _shape(kind.lower(), texts, points, np.array(scale) / unit, draft.flaws)
    label = state.get("title") or None
    known = {**state, **attributes}
    if class_property is not None:
        label = label_at(known, class_property)
    view = ("title", "coordformat", "lens", "x", "y", "z", "color", "type")
    draft.facts = {
        "label": label,
        "name": state.get("title", ""),
        "colour": hex_colour(attributes.get("color", ""), draft.flaws),
        "properties": {
            "type": kind,
            **{k: v for k, v in known.items() if v and k not in view and not k.startswith("show")},
        },
    }
    return draft


def _shape(
    kind: str, texts: dict[str, str], points: list[dict[str, str]], scale: Any, flaws: list[str]
) -> Any:
    def place(said: dict[str, str], x: str = "x", y: str = "y") -> list[float]:
        missing = [name for name in (x, y) if not said.get(name)]
        if missing:
            raise DraftError(f"a {kind} lacks {', '.join(missing)}")
        return [number(said[x]), number(said[y])]

    if kind in ("freehand", "freehandline", "rectangle", "polygon"):
        is_open = kind == "freehandline" or texts.get("closed", "1") in ("0", "false")
        xy = [place(point) for point in points]
        return shape_of(np.reshape(xy, (-1, 2)) / scale, "line" if is_open else "area", flaws, kind)
    if kind in ("pin", "point"):
        return shape_of([place(texts)] / scale, "points", flaws, kind)
    if kind in ("pointer", "linearmeasure", "ruler", "arrow"):
        ends = [place(texts, f"x{n}", f"y{n}") for n in (1, 2)]
        return shape_of(ends / scale, "line", flaws, kind)
    if kind in ("circle", "ellipse"):
        centre, radius = np.array(place(texts)), number(texts.get("radius"))
        return shape_of(
            [(centre - radius) / scale, (centre + radius) / scale], "ellipse", flaws, kind
        )
    raise DraftError(
        f"the annotation type {kind!r} is not one of freehand, circle, pin, pointer, linearmeasure"
    )
