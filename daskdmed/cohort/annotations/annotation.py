"""`Annotation`: one drawn shape and what is known of it.

Not covered: tables of them (`daskdmed.cohort.annotations.table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from daskdmed.cohort.annotations.shapes import require_shapely
from daskdmed.core.errors import AnnotationError
from daskdmed.core.frozen import FrozenMapping

#: a coordinate beyond this is a mistake: no slide has 2**40 pixels along an axis
LARGEST_COORDINATE = float(2**40)


@dataclass(frozen=True)
class Annotation:
    """One drawn shape.

    Parameters
    ----------
    geometry : shapely.Geometry
        In the level-0 frame, (x, y). A third coordinate is dropped.
    label : str, optional
        Its class; None when it was given none.
    name : str
        What the user called it.
    group : tuple of str
        Names of the groups it is in, outermost first (ASAP).
    colour : (int, int, int), optional
        RGB, 0 to 255.
    kind : str
        "annotation", "detection", "cell", "tile"... (QuPath's object type).
    id : str
        The file's own name of the object, empty when it has none.
    properties : mapping
        Anything else, of values that JSON knows (measurements, metadata...).

    Raises
    ------
    AnnotationError
        The geometry is not shapely's or has coordinates that are not finite, or the colour
        is not three integers.
    """

    geometry: Any
    label: str | None = None
    name: str = ""
    group: tuple[str, ...] = ()
    colour: tuple[int, int, int] | None = None
    kind: str = "annotation"
    id: str = ""
    properties: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        shapely = require_shapely()
        if not isinstance(self.geometry, shapely.Geometry):
            raise AnnotationError(
                f"the geometry of an annotation is shapely's, got {type(self.geometry).__name__}; "
                "write Annotation(shapely.Polygon([(x, y), ...]), 'tumour')"
            )
        if self.geometry.has_z:
            object.__setattr__(self, "geometry", shapely.force_2d(self.geometry))
        if self.label is not None and not isinstance(self.label, str):
            raise AnnotationError(f"the label of an annotation is a text or None: {self.label!r}")
        if self.colour is not None:
            colour = tuple(int(c) for c in self.colour)
            if len(colour) != 3 or not all(0 <= c <= 255 for c in colour):
                raise AnnotationError(f"a colour is (red, green, blue), 0 to 255: {self.colour!r}")
            object.__setattr__(self, "colour", colour)
        object.__setattr__(self, "group", tuple(self.group))
        object.__setattr__(self, "properties", FrozenMapping(self.properties))

    @classmethod
    def of_checked(cls, geometry: Any, facts: Mapping[str, Any]) -> Annotation:
        """Of a shape in two dimensions and facts that are known to be right: files have many."""
        new = cls.__new__(cls)
        properties = FrozenMapping(facts.get("properties", ()))
        new.__dict__.update(_NOTHING, geometry=geometry)
        new.__dict__.update(facts, properties=properties)
        return new

    def __hash__(self) -> int:
        return hash((self.geometry, self.label, self.name))

    @property
    def facts(self) -> tuple[Any, ...]:
        """Everything but the geometry, in the order of the parameters."""
        own = (self.label, self.name, self.group, self.colour, self.kind, self.id)
        return (*own, dict(self.properties))


_NOTHING = {f.name: f.default for f in fields(Annotation) if f.default is not MISSING}
