"""What of a cohort's annotations small chunks can be centred in, and what stands for none.

A slide that nobody annotated, because it is normal, has none of the classes. A shape nearer
to the edge of a slide than half a small chunk, or outside, is never at the centre of one. Pure
geometry. Not covered: where places lie (`daskdmed.persistence.where`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from daskdmed.cohort.annotations.shapes import require_shapely
from daskdmed.cohort.annotations.table import Annotations
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.core.errors import UsageError, meant

#: [low, high) in level-0 pixels
Interval: TypeAlias = tuple[float, float]
#: borders that only touch do not cover each other
_TOUCH = 1e-6


def stand_in(patients: Iterable[Patient], name: str) -> Record | None:
    """What stands for a record that some patients lack: no annotations, where others have some."""
    held = [p.records[name] for p in patients if name in p.records]
    if held and all(record.is_annotations for record in held):
        return Record(annotations=Annotations(), name=name)
    return None


def drawn_on(patient: Patient, name: str | None) -> Annotations:
    """The annotations of a patient: of the record `name`, or the only ones; none is none."""
    held = [r for r in patient.records.values() if r.is_annotations and name in (None, r.name)]
    if name in patient.records and not held:
        raise UsageError(
            f"patient {patient.key!r}: record {name!r} holds no annotations; give a .geojson or "
            ".xml record, or Record(annotations=...)"
        )
    if len(held) > 1:
        raise UsageError(
            f"patient {patient.key!r} has {len(held)} records with annotations "
            f"({', '.join(r.name for r in held)}); name one with annotations="
        )
    return held[0].annotations() if held else Annotations()


def check_annotated(patients: Sequence[Patient], name: str | None) -> None:
    """Make sure that somebody has annotations: a name that nobody has is misspelt."""
    records = {r.name: r.is_annotations for p in patients for r in p.records.values()}
    if any(records.values()) if name is None else name in records:
        return
    if name is None:
        raise UsageError(
            f"the {len(patients)} patients have 0 records with annotations, which classes need "
            f"(the records are {sorted(records)}); give some: Patient(id, {{'wsi': ..., "
            "'drawn': Record('slide.geojson')})"
        )
    raise UsageError(
        f"none of {len(patients)} patients has the record {name!r} (annotations=); the records "
        f"are {sorted(records)}{meant(name, records)}"
    )


def undrawn(
    annotations: Annotations,
    label: str,
    centres: Sequence[Sequence[Interval]],
    extent: tuple[float, ...],
    half: tuple[float, ...],
) -> tuple[int, list[str]]:
    """How many shapes have a label, and where those lie that no small chunk is centred in.

    Parameters
    ----------
    annotations : Annotations
        Of one image.
    label : str
        The class.
    centres : sequence of sequence of interval
        For y and for x, where centres of small chunks are, or pixels of a mask that hold one.
    extent, half : (float, float)
        Of the image, and half of a small chunk, at level 0, (y, x).
    """
    shapely = require_shapely()
    numbers = np.flatnonzero([item.label == label for item in annotations])
    shapes = annotations.geometries[numbers]
    if not len(numbers):
        return 0, []
    rows, columns = (np.array(axis, float).reshape(-1, 2) for axis in centres)
    y0, y1 = (np.repeat(edge, len(columns)) for edge in rows.T)
    x0, x1 = (np.tile(edge, len(rows)) for edge in columns.T)
    areas = shapely.get_dimensions(shapes) == 2
    reached = np.zeros(len(shapes), bool)
    # an area has to cover some of a pixel, a point on its first border lies in it
    for which, inset in ((areas, _TOUCH), (~areas, 0.0)):
        boxes = shapely.box(x0 + inset, y0 + inset, x1 - _TOUCH, y1 - _TOUCH)
        hits = shapely.STRtree(boxes).query(shapes[which], predicate="intersects")[0]
        reached[np.flatnonzero(which)[hits]] = True
    lost = np.flatnonzero(~reached)
    slide = shapely.box(0, 0, extent[1], extent[0])
    inner = shapely.box(half[1], half[0], extent[1] - half[1], extent[0] - half[0])
    notes = []
    for number, shape in zip(numbers[lost].tolist(), shapes[lost], strict=True):
        beyond, near = shapely.distance(shape, slide), shapely.distance(shape, slide.exterior)
        where = f"{near:.4g} level-0 pixels from the edge of the slide"
        if beyond > 0:
            where = f"{beyond:.4g} level-0 pixels outside the edge of the slide"
        elif shapely.intersects(shape, inner):
            where = "at the edge between two big chunks, which passes over all of them do not cross"
        notes.append(f"annotation {number} lies {where}")
    return len(numbers), notes
