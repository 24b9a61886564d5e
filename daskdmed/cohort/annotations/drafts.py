"""From what a file says to annotations that can be trusted: checking and repairing shapes.

A reader of a format yields `Draft`s, one per object of the file; here each becomes an
`Annotation`, is repaired, is left out with a note, or is an error, as the user asked. Not
covered: the formats (`daskdmed.cohort.annotations.geojson`, `.asap`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from daskdmed.cohort.annotations.annotation import LARGEST_COORDINATE, Annotation
from daskdmed.cohort.annotations.shapes import Floats, require_shapely
from daskdmed.core.errors import AnnotationError, UsageError

logger = logging.getLogger("daskdmed.cohort.annotations")

OnInvalid: TypeAlias = Literal["repair", "raise", "skip"]
#: notes kept of one file; further ones are counted
_NOTES = 100


class DraftError(ValueError):
    """An object of a file makes no sense. Never leaves this package."""


@dataclass
class Draft:
    """One object of a file.

    Parameters
    ----------
    index : int
        Position in the file.
    geometry : shapely.Geometry or None
        As the file says; None when it says that there is none.
    facts : dict
        Other arguments of `Annotation`.
    flaws : list of str
        What was wrong and has been put right already (an open ring...).
    """

    index: int
    geometry: Any
    facts: dict[str, Any] = field(default_factory=dict)
    flaws: list[str] = field(default_factory=list)


@dataclass
class Checker:
    """Turns drafts into annotations.

    Parameters
    ----------
    uri : str
        The file, for messages.
    on_invalid : {"repair", "raise", "skip"}
        See `daskdmed.read_annotations`.
    offset : (float, float)
        Added to every coordinate.
    extent : (float, float) or None
        (width, height) of the slide at level 0.
    label_map : mapping
        New labels; None leaves an object out.
    """

    uri: str
    on_invalid: OnInvalid
    offset: tuple[float, float]
    extent: tuple[float, float] | None
    label_map: Mapping[str | None, str | None]
    notes: list[str] = field(default_factory=list)
    noted: int = 0

    def collect(self, builders: Iterable[tuple[int, Callable[[], Draft]]]) -> list[Annotation]:
        """All annotations of a file; `notes` then says what was repaired or left out.

        Parameters
        ----------
        builders : iterable of (int, callable)
            Position, and what makes the draft of that object or raises `DraftError`.

        Raises
        ------
        AnnotationError
            Names the file, the object's position, the cause and the remedy.
        """
        items = []
        for index, build in builders:
            try:
                item = self._annotation(build())
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

    def _annotation(self, draft: Draft) -> Annotation | None:
        label = draft.facts.get("label")
        if label in self.label_map:
            label = self.label_map[label]
            if label is None:
                return None
            draft.facts["label"] = label
        if draft.geometry is None:
            self._note(f"object {draft.index} is left out: it has no geometry")
            return None
        shape = self._valid(draft)
        shape = None if shape is None else self._inside(shape, draft)
        if shape is None:
            return None
        for flaw in draft.flaws:
            self._note(f"object {draft.index} was repaired: {flaw}")
        return Annotation(shape, **draft.facts)

    def _valid(self, draft: Draft) -> Any:
        """The shape, made valid and moved; None when nothing is left of it."""
        shapely = require_shapely()
        shape, drawn = draft.geometry, shapely.get_dimensions(draft.geometry)
        if not shape.is_empty and not shapely.is_valid(shape):
            draft.flaws.append(shapely.is_valid_reason(shape))
            # "structure" joins what overlaps, as a hand-drawn stroke that crosses itself means
            shape = shapely.make_valid(shape, method="structure", keep_collapsed=False)
            shape = of_dimension(shape, drawn)
        if draft.flaws and self.on_invalid != "repair":
            raise DraftError(draft.flaws[0])
        if shape.is_empty or (drawn == 2 and shape.area == 0):
            if self.on_invalid == "raise":
                raise DraftError("the shape is empty")
            self._note(f"object {draft.index} is left out: the shape is empty or has no area")
            return None
        if not any(self.offset):
            return shape
        return shapely.transform(shape, lambda xy: xy + np.asarray(self.offset))

    def _inside(self, shape: Any, draft: Draft) -> Any:
        """The part of the shape on the slide; None when there is none."""
        if self.extent is None:
            return shape
        x0, y0, x1, y1 = shape.bounds
        width, height = self.extent
        if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
            return shape
        flaw = (
            f"its bounds {(x0, y0, x1, y1)} reach beyond the slide of {width:g} x {height:g} "
            "level-0 pixels; is an offset missing?"
        )
        if self.on_invalid != "repair":
            raise DraftError(flaw)
        shapely = require_shapely()
        cut = shapely.intersection(shape, shapely.box(0, 0, width, height))
        cut = of_dimension(cut, shapely.get_dimensions(shape))
        if cut.is_empty:
            self._note(f"object {draft.index} is left out: {flaw}")
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
    """Coordinates as (n, 2), checked.

    Raises
    ------
    DraftError
        Not numbers in pairs, not finite, absurdly large, or fewer than `least`.
    """
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
    """One ring of a polygon, closed.

    Parameters
    ----------
    value : list or ndarray
        Positions.
    flaws : list of str
        Told when the ring was open though the format says `closed`.
    closed : bool
        Whether the format repeats the first position at the end.
    """
    xy = positions(value, "ring", 0)
    if len(xy) and closed and (xy[0] != xy[-1]).any():
        flaws.append("a ring was not closed")
    if len(xy) and (xy[0] != xy[-1]).any():
        xy = np.vstack([xy, xy[:1]])
    if 0 < len(xy) < 4:
        # a line drawn to and fro: valid to shapely's constructor, without area
        flaws.append(f"a ring has {max(1, len(xy) - 1)} different positions, an area needs three")
        xy = np.vstack([xy, *[xy[-1:]] * (4 - len(xy))])
    return xy


def offset_of(offset: Any) -> tuple[float, float]:
    """(x, y) of an offset, or of the bounds of a slide.

    Raises
    ------
    UsageError
        Neither two finite numbers nor a slide.
    """
    if offset is None:
        return 0.0, 0.0
    if hasattr(offset, "properties"):
        facts = offset.properties
        names = ("openslide.bounds-x", "openslide.bounds-y")
        offset = tuple(facts.get(name, 0) for name in names)
    return _two(offset, "offset= is (x, y) in level-0 pixels, or a slide")


def extent_of(extent: Any) -> tuple[float, float] | None:
    """(width, height) of an extent, or of a slide.

    Raises
    ------
    UsageError
        Neither two positive numbers nor a slide.
    """
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
