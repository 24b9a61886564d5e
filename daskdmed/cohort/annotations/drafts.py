"""From what a file says to annotations that can be trusted: checking and repairing shapes.

A reader of a format gives its objects and how one of them becomes a `Draft`; here each becomes
an `Annotation`, is repaired, is left out with a note, or is an error, as the user asked. Shapes
that a reader has made all at once are checked all at once, and only those in which something
is wrong one by one. Not covered: the formats (`daskdmed.cohort.annotations.reading`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.annotations.annotation import LARGEST_COORDINATE, Annotation
from daskdmed.cohort.annotations.shapes import Floats, require_shapely
from daskdmed.core.errors import AnnotationError, UsageError

logger = logging.getLogger("daskdmed.cohort.annotations")

OnInvalid: TypeAlias = Literal["repair", "raise", "skip"]
#: notes kept of one file; further ones are counted
_NOTES = 100


class DraftError(ValueError):
    """An object of a file makes no sense. Never leaves this package."""


@dataclass(slots=True)
class Draft:
    """One object of a file: its shape, and the other arguments of `Annotation`.

    `flaws` were put right already (an open ring...); `holes` is still to be cut out;
    `left_out` says why there is no shape; "" where other objects have it as a hole.
    """

    geometry: Any
    facts: dict[str, Any] = field(default_factory=dict)
    flaws: list[str] = field(default_factory=list)
    holes: Any = None
    left_out: str = "it has no geometry"


@dataclass(slots=True)
class Parsed:
    """The objects of a document, in order.

    `draft` makes that of one object, of the shape that is ready or of what the object says; it
    raises `DraftError`. `shapes` are those of the objects that can be read as they are, None for
    the others; None: of no object.
    """

    objects: Sequence[Any]
    draft: Callable[[Any, Any], Draft]
    shapes: npt.NDArray[np.object_] | None = None


@dataclass
class Checker:
    """Turns drafts into annotations; parameters as of `daskdmed.read_annotations`."""

    uri: str
    on_invalid: OnInvalid
    offset: tuple[float, float]
    extent: tuple[float, float] | None
    label_map: Mapping[str | None, str | None]
    notes: list[str] = field(default_factory=list)
    noted: int = 0

    def collect(self, parsed: Parsed) -> list[Annotation]:
        """All annotations of a file; `notes` then says what was repaired or left out."""
        items = []
        ready = self._ready(parsed)
        for index, (given, shape) in enumerate(zip(parsed.objects, ready, strict=True)):
            try:
                item = self._annotation(index, parsed.draft(given, shape), shape is not None)
            except DraftError as error:
                if self.on_invalid != "skip":
                    raise self._error(index, str(error)) from error
                self._note(f"object {index} is left out: {error}")
                continue
            if item is not None:
                items.append(item)
        if self.noted:
            logger.warning("%s: %d objects repaired or left out; first: %s",
                           self.uri or "annotations", self.noted, self.notes[0])  # fmt: skip
        if self.noted > len(self.notes):
            self.notes.append(f"and {self.noted - len(self.notes)} more")
        return items

    def _ready(self, parsed: Parsed) -> Sequence[Any]:
        """The shapes in which nothing is wrong, moved; None where it has to be looked at."""
        shapes, shapely = parsed.shapes, require_shapely()
        if shapes is None:
            return [None] * len(parsed.objects)
        moved = self._moved(shapes)
        sound = shapely.is_valid(moved) & ~shapely.is_empty(moved)
        sound &= (shapely.get_dimensions(moved) < 2) | (shapely.area(moved) > 0)
        if self.extent is not None:
            sound &= self._on_slide(shapely.bounds(moved))
        moved[~sound] = None
        ready: list[Any] = moved.tolist()
        return ready

    def _moved(self, shapes: Any) -> Any:
        if not any(self.offset):
            return shapes
        return require_shapely().transform(shapes, lambda xy: xy + np.asarray(self.offset))

    def _on_slide(self, bounds: Any) -> Any:
        return (bounds[..., :2] >= 0).all(axis=-1) & (bounds[..., 2:] <= self.extent).all(axis=-1)

    def _annotation(self, index: int, draft: Draft, sound: bool) -> Annotation | None:
        label = draft.facts["label"]
        if label in self.label_map:
            label = self.label_map[label]
            if label is None:
                return None
            draft.facts["label"] = label
        shape = draft.geometry
        if shape is None and draft.left_out:
            self._note(f"object {index} is left out: {draft.left_out}")
            return None
        if shape is not None and not sound:
            shape = self._valid(index, draft)
            shape = None if shape is None else self._inside(index, shape, draft)
            if shape is None:
                return None
        if draft.flaws:
            self._check_repair(draft)
            for flaw in draft.flaws:
                self._note(f"object {index} was repaired: {flaw}")
        return None if shape is None else Annotation.of_checked(shape, draft.facts)

    def _check_repair(self, draft: Draft) -> None:
        if draft.flaws and self.on_invalid != "repair":
            raise DraftError(draft.flaws[0])

    def _valid(self, index: int, draft: Draft) -> Any:
        """The shape, made valid and moved; None when nothing is left of it."""
        shapely = require_shapely()
        shape, drawn = draft.geometry, shapely.get_dimensions(draft.geometry)
        if not shape.is_empty and not shapely.is_valid(shape):
            draft.flaws.append(shapely.is_valid_reason(shape))
            shape = mended(shape)
        self._check_repair(draft)
        if draft.holes is not None and drawn == 2:
            shape = of_dimension(shapely.difference(shape, draft.holes), 2)
        if shape.is_empty or (drawn == 2 and shape.area == 0):
            if self.on_invalid == "raise":
                raise DraftError("the shape is empty")
            self._note(f"object {index} is left out: the shape is empty or has no area")
            return None
        return self._moved(shape)

    def _inside(self, index: int, shape: Any, draft: Draft) -> Any:
        """The part of the shape on the slide; None when there is none."""
        if self.extent is None or self._on_slide(np.array(shape.bounds)):
            return shape
        width, height = self.extent
        flaw = (
            f"its bounds {shape.bounds} reach beyond the slide of {width:g} x {height:g} "
            "level-0 pixels; is an offset missing?"
        )
        if self.on_invalid != "repair":
            raise DraftError(flaw)
        shapely = require_shapely()
        cut = shapely.intersection(shape, shapely.box(0, 0, width, height))
        cut = of_dimension(cut, shapely.get_dimensions(shape))
        if cut.is_empty:
            self._note(f"object {index} is left out: {flaw}")
            return None
        draft.flaws.append(f"cut at the border, {flaw}")
        return cut

    def _note(self, note: str) -> None:
        self.noted += 1
        if len(self.notes) < _NOTES:
            self.notes.append(note)

    def _error(self, index: int, cause: str) -> AnnotationError:
        remedy = (
            'on_invalid="repair" mends what can be mended, "skip" leaves such objects out'
            if self.on_invalid == "raise"
            else 'correct the file, or read it with on_invalid="skip"'
        )
        return AnnotationError(
            f"{self.uri or 'annotations'}: object {index}: {cause}; {remedy}",
            uri=self.uri,
            index=index,
        )


# ------------------------------------------------------------------------------- shapes
def mended(shape: Any) -> Any:
    """A valid shape of the same dimension.

    "structure" joins what overlaps, as a hand-drawn stroke that crosses itself means.
    """
    shapely = require_shapely()
    valid = shapely.make_valid(shape, method="structure", keep_collapsed=False)
    return of_dimension(valid, shapely.get_dimensions(shape))


def of_dimension(shape: Any, dimension: int) -> Any:
    """The parts of a shape of one dimension: 2 for areas, 1 for lines, 0 for points."""
    shapely = require_shapely()
    if shape.geom_type != "GeometryCollection":
        keep = shapely.get_dimensions(shape) == dimension
        return shape if keep else shapely.GeometryCollection()
    parts = shapely.get_parts(shapely.get_parts(shape))
    kept = parts[shapely.get_dimensions(parts) == dimension]
    return kept[0] if len(kept) == 1 else shapely.union_all(kept)


def positions(value: Any, what: str, least: int) -> Floats:
    """Coordinates as (n, 2): numbers that can lie on a slide, at least so many or none."""
    try:
        xy = np.asarray(value)
    except ValueError:
        raise DraftError(f"the coordinates of a {what} are not pairs of numbers") from None
    if xy.shape == (0,):
        xy = np.empty((0, 2))
    if xy.dtype.kind not in "iuf" or xy.ndim != 2 or not 2 <= xy.shape[1] <= 4:
        raise DraftError(f"the coordinates of a {what} are not pairs of numbers")
    xy = xy[:, :2].astype(np.float64)
    wrong = ~(np.abs(xy) <= LARGEST_COORDINATE).all(axis=1)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise DraftError(
            f"position {place} of a {what} is {tuple(xy[place].tolist())}, which cannot lie on a "
            "slide"
        )
    if 0 < len(xy) < least:
        raise DraftError(f"a {what} has {least} positions or more, got {len(xy)}")
    return xy


def ring(value: Any, flaws: list[str], *, closed: bool = True) -> Floats:
    """One ring of a polygon, closed; `closed`: the format repeats the first position."""
    xy = positions(value, "ring", 0)
    if len(xy) and (xy[0] != xy[-1]).any():
        if closed:
            flaws.append("a ring was not closed")
        xy = np.vstack([xy, xy[:1]])
    if 0 < len(xy) < 4:
        # a line drawn to and fro: valid to shapely's constructor, without area
        flaws.append(f"a ring has {max(1, len(xy) - 1)} different positions, an area needs three")
        xy = np.vstack([xy, *[xy[-1:]] * (4 - len(xy))])
    return xy


def shape_of(xy: Any, kind: Literal["points", "line", "box", "ellipse", "area"], flaws: list[str],
             what: str) -> Any:  # fmt: skip
    """A shape of the positions that formats in XML give; `what` they call it."""
    shapely = require_shapely()
    xy = positions(xy, what, 2 if kind in ("line", "ellipse") else 1)
    if len(xy) == 0:
        return shapely.Polygon()
    low, high = xy.min(axis=0), xy.max(axis=0)
    if kind == "points":
        return shapely.points(xy[0]) if len(xy) == 1 else shapely.multipoints(shapely.points(xy))
    if kind == "line":
        return shapely.linestrings(xy)
    if kind == "box" and len(xy) == 2:
        return shapely.box(*low, *high)
    if kind == "ellipse":
        circle = shapely.get_coordinates(shapely.Point(0, 0).buffer(1, quad_segs=32))
        return shapely.polygons((low + high) / 2 + circle * (high - low) / 2)
    return shapely.Polygon(ring(xy, flaws, closed=False))


# ------------------------------------------------------------------------------- classes
def property_at(properties: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted path (``properties.`` before it or not); None where there is none."""
    name = path.removeprefix("properties.")
    if name in properties:
        return properties[name]
    head, _, rest = name.partition(".")
    inner = properties.get(head)
    return property_at(inner, rest) if rest and isinstance(inner, Mapping) else None


def class_name(value: Any, what: str = "classification") -> str | None:
    """The name of a class as files say it: a text, a number, QuPath's object."""
    if isinstance(value, dict):
        names = value.get("names")
        value = value.get("name")
        if value is None and isinstance(names, list):
            value = ": ".join(str(n) for n in names)
        if not isinstance(value, str | None):
            raise DraftError(f"the name of a {what} is a text, got {value!r}")
    elif not isinstance(value, str | None):
        raise DraftError(f"a {what} is a text or an object, got {type(value).__name__}")
    return value or None


def label_at(properties: Mapping[str, Any], path: str) -> str | None:
    """The class that a property names; numbers, as other programs write them, become texts."""
    value = property_at(properties, path)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.15g}"
    return class_name(value, f"class_property {path!r}")


def check_class_property(path: str, found: Iterable[Mapping[str, Any]], uri: str) -> None:
    """Make sure that some object has the property that names the class."""
    objects = list(found)
    if objects and all(property_at(properties, path) is None for properties in objects):
        names = {name for properties in objects for name in properties}
        raise AnnotationError(
            f"{uri or 'annotations'}: none of {len(objects)} objects has the class_property "
            f"{path!r}; their properties are {sorted(names)[:20]}",
            uri=uri,
        )


# ------------------------------------------------------------------------------- arguments
def offset_of(offset: Any) -> tuple[float, float]:
    """(x, y) of an offset, or of the bounds of a slide; a `UsageError` when it is neither."""
    if offset is None:
        return 0.0, 0.0
    if hasattr(offset, "properties"):
        facts = offset.properties
        names = ("openslide.bounds-x", "openslide.bounds-y")
        offset = tuple(facts.get(name, 0) for name in names)
    return _two(offset, "offset= is (x, y) in level-0 pixels, or a slide")


def extent_of(extent: Any) -> tuple[float, float] | None:
    """(width, height) of an extent, or of a slide; a `UsageError` when it is neither."""
    if extent is None:
        return None
    pair = _two(
        getattr(extent, "dimensions", extent), "extent= is (width, height) at level 0, or a slide"
    )
    if min(pair) <= 0:
        raise UsageError(f"extent= has no pixels: {pair}")
    return pair


def _two(value: Any, what: str) -> tuple[float, float]:
    try:
        x, y = (float(v) for v in value)
    except (TypeError, ValueError):
        raise UsageError(f"{what}, got {value!r}") from None
    if not (abs(x) < float("inf") and abs(y) < float("inf")):
        raise UsageError(f"{what}, got {value!r}")
    return x, y
