"""Every place of every image is drawn alike: no seams along the edges of big chunks.

A *place* is the first pixel of a small chunk. The plan and the samplers of a loader are asked
for tens of thousands of draws, without reading a pixel.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import dask.array as da
import numpy as np
import pytest
from scipy.stats import chi2

from daskdmed import Dataset, LightDL, Patient, Quota, Record, Region
from daskdmed.loading.sampling import CropSpec, VisitFacts, VisitSampler
from daskdmed.persistence.areas import Area, Places
from daskdmed.persistence.labelmaps import Classes
from daskdmed.persistence.policy import OnePass

SIZE = 6
#: extents that no big chunk divides; with one axis along which a small chunk can move, two, three
SHAPES = {1: (1100, SIZE), 2: (41, 53), 3: (16, 18, 20)}
BIG = {1: 90, 2: 17, 3: 10}
#: draws a visit
DRAWS = 12


def image(axes, tile=None):
    shape = SHAPES[axes]
    array = da.zeros(shape, chunks=tile or shape, dtype="u1")
    return Dataset("one", [Patient("p", {"x": Record(array=array)})])


def options(axes, **more):
    return {
        "smallchunk_size": (SIZE,) * len(SHAPES[axes]),
        "bigchunk_size": BIG[axes],
        "batch_size": 16,
        "resident": "12 KiB",
        "smallchunks_per_bigchunk": DRAWS,
        **more,
    }


def drawn(dataset, draws, **options):
    """How often each place of a one-patient dataset is drawn, by stratum."""
    loader = LightDL(dataset, **options)
    planning, (entry,) = loader._assembly.planning, loader._catalogue.entries
    plan, classes = planning.plan()
    crop = CropSpec(entry.grid.smallest, (), np.dtype("u1"))
    known, found, n = {}, defaultdict(Counter), 0
    for turn in plan:
        table = {v.number: v for v in turn.resident}
        for number, draw in zip(turn.visits.tolist(), turn.draws.tolist(), strict=True):
            visit = table[number]
            if number not in known:
                region = entry.grid.region(visit.block)
                area = planning.areas.local(0, classes[visit.stratum], region)
                facts = VisitFacts(
                    number, visit.nth, 7, "p", "x", {}, region, (1.0,), 0, None, area=area
                )
                pixels = np.broadcast_to(np.uint8(0), region.shape)
                known[number] = VisitSampler(pixels, facts, crop, None, DRAWS)
            out = np.empty(crop.shape, "u1")
            found[visit.stratum][known[number].take(draw, out, None)[1]] += 1
        for visit in turn.leaving:
            known.pop(visit.number, None)
        n += len(turn)
        if n >= draws:
            return found
    return found


def assert_alike(counts, places):
    """Every place as often as chance allows, and no other."""
    assert set(counts) <= set(places)
    observed = np.array([counts[p] for p in places])
    expected = observed.sum() / len(places)
    assert expected >= 5, "too few draws to tell"
    statistic = ((observed - expected) ** 2 / expected).sum()
    # visits spread draws more evenly than independent ones would be
    assert statistic < chi2.ppf(0.999, len(places) - 1)


def everywhere(axes):
    return list(np.ndindex(*(n - SIZE + 1 for n in SHAPES[axes])))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("tile", [None, 5])
def test_every_place_is_drawn_alike(axes, tile):
    places = everywhere(axes)
    found = drawn(image(axes, tile), 6 * len(places), **options(axes))
    assert_alike(found[0], places)


def whole(area, axes):
    """Allowed places of the whole image, which is one region here."""
    shape = SHAPES[axes]
    places = Places(area, [Region((0,) * len(shape), shape)], (SIZE,) * len(shape))
    return [tuple(row[1:]) for row in places.all().tolist()]


@pytest.mark.parametrize(("axes", "least"), [(1, 0.3), (2, 0.5), (2, 1.0), (3, 0.5)])
def test_every_place_with_tissue_is_drawn_alike(axes, least):
    shape = tuple(-(-n // 3) for n in SHAPES[axes])
    waves = [np.sin(w / (3.5 + i)) for i, w in enumerate(np.indices(shape))]
    mask = np.sum(waves, axis=0) > (0.0, 0.3, 0.6, 1.5)[axes]
    places = whole(Area.of(mask, SHAPES[axes], least), axes)
    assert 50 < len(places) < 0.8 * len(everywhere(axes))
    asked = options(axes, tissue={"p": mask}, min_tissue=least)
    assert_alike(drawn(image(axes), 6 * len(places), **asked)[0], places)


@pytest.fixture
def annotated(tmp_path):
    """Three shapes of two classes, one of them over the edges of big chunks."""

    def shape(label, *ring):
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            "properties": {"classification": {"name": label}},
        }

    shapes = [
        shape("a", [6, 8], [30, 14], [20, 34]),
        shape("a", [42, 20], [44, 20], [44, 23], [42, 23]),
        shape("b", [12, 20], [48, 20], [48, 37], [12, 37]),
    ]
    path = tmp_path / "shapes.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
    (patient,) = image(2)
    return Dataset("annotated", [Patient("p", {**patient.records, "shapes": Record(path)})])


def of_classes(loader, classes):
    """Places whose centres lie in classes, from outlines painted at once over all."""
    whole_image = Region((0, 0), SHAPES[2])
    return whole(loader._assembly.planning.areas.local(0, Classes(classes), whole_image), 2)


def test_every_place_of_a_class_is_drawn_alike(annotated):
    asked = options(2, record="x", labels="a")
    places = of_classes(LightDL(annotated, **asked), ("a",))
    assert_alike(drawn(annotated, 30 * len(places), **asked)[0], places)


def test_every_place_of_a_quota_is_drawn_alike(annotated):
    asked = options(2, record="x", quotas=[Quota(4, labels="a"), Quota(6, labels="b")])
    asked["resident"] = "64 KiB"
    loader = LightDL(annotated, **asked)
    places = [of_classes(loader, (name,)) for name in "ab"]
    # a quarter and three eighths of all draws
    draws = 6 * max(len(places[0]) * 4, len(places[1]) * 8 // 3)
    found = drawn(annotated, draws, **asked)
    for stratum in (0, 1):
        assert_alike(found[stratum], places[stratum])


# -- what stays -----------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_pass_still_has_each_pixel_in_one_big_chunk(axes):
    loader = LightDL(image(axes), **options(axes), policy=OnePass())
    seen = np.zeros(SHAPES[axes], int)
    grid = loader._catalogue.entries[0].grid
    for number in range(len(grid)):
        seen[grid.region(number).slices] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_image_of_one_big_chunk_stays_one_and_is_not_weighted(axes):
    for size in (max(SHAPES[axes]), 2 * max(SHAPES[axes])):
        loader = LightDL(image(axes), **options(axes, bigchunk_size=size, resident="1 MiB"))
        (entry,) = loader._catalogue.entries
        assert [entry.grid.region(i) for i in range(len(entry.grid))] == [
            Region((0,) * len(SHAPES[axes]), SHAPES[axes])
        ]
        assert loader._assembly.planning.areas.weights(0) is None
