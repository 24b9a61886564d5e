"""Which shapes no small chunk can be centred in, against trying every centre."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from daskdmed import Annotations, Dataset, Patient, Record, infer
from daskdmed.cohort.annotations import Annotation
from daskdmed.cohort.annotations.undrawn import stand_in, undrawn


@pytest.mark.parametrize("spans", [[(4, 16)], [(2, 7), (11, 16)]])
def test_shapes_are_reached_as_their_pixels_are(spans):
    """On a grid of unit pixels: a shape is reached when it touches a pixel that holds a centre."""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-6, 24, (300, 2)), rng.choice([0.0, 0.01, 0.7, 3.0], (300, 2))
    low, high = corner.round(1), (corner + size).round(2)
    shapes = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    flat = (high == low).any(axis=1)
    shapes[flat] = shapely.points(low[flat])
    table = Annotations(Annotation(s, "ab"[k % 2]) for k, s in enumerate(shapes))
    lost = set()
    for label in "ab":
        number, notes = undrawn(table, label, [spans, spans], (20.0, 20.0), (4.0, 4.0))
        assert number == 150
        lost |= {int(note.split()[1]) for note in notes}
        for note in notes:
            shape = shapes[int(note.split()[1])]
            outside = shape.distance(shapely.box(0, 0, 20, 20)) > 0
            assert ("outside the edge of the slide" in note) == outside
    on = np.zeros(20, bool)
    for a, b in spans:
        on[a:b] = True
    held = on[:, None] & on
    for k, item in enumerate(table):
        painted = Annotations([item]).rasterize(
            (0, 0), (20, 20), classes={item.label: 1}, all_touched=True
        )
        assert (k in lost) == (not (painted.astype(bool) & held).any()), item.geometry
    assert 50 < len(lost) < 250
    assert undrawn(table, "c", [spans, spans], (20.0, 20.0), (4.0, 4.0)) == (0, [])


def half_drawn():
    image = Record(array=np.zeros((64, 64, 3), "u1"))
    drawn = Record(annotations=Annotations([Annotation(shapely.box(0, 0, 32, 64), "T")]))
    return Dataset("x", [Patient("p", {"wsi": image, "d": drawn}), Patient("q", {"wsi": image})])


def test_what_stands_for_a_record_that_some_lack():
    data = half_drawn()
    assert len(stand_in(data, "d").annotations()) == 0
    assert stand_in(data, "wsi") is None
    assert stand_in(data, "other") is None


def test_infer_takes_slides_without_the_target_as_background():
    def nothing(x):
        return np.zeros((*x.shape[:3], 2), np.float32)

    classes = {"tumour": ["T"]}
    scans = infer(half_drawn(), nothing, kernel_size=64, target="d", target_classes=classes)
    shares = {i["patient_id"]: np.asarray(o["y_true"]).mean() for i, o in scans}
    assert shares == {"p": 0.5, "q": 0.0}
