"""Painting, against shapely asked pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Annotations, Categories
from daskdmed.cohort.annotations import Annotation, raster
from daskdmed.errors import GeometryError, UsageError

numbers = st.floats(-3, 23, allow_nan=False).map(lambda v: round(v, 3))
downsamples = st.tuples(*[st.floats(0.3, 3.7)] * 2)


@st.composite
def areas(draw):
    """Polygons and multipolygons, with holes, of any shape."""
    shape = shapely.Polygon()
    for _ in range(draw(st.integers(1, 4))):
        x, y, r = draw(numbers), draw(numbers), draw(st.floats(0.4, 9))
        corners = draw(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=7))
        piece = draw(
            st.sampled_from(
                [
                    shapely.Point(x, y).buffer(r, quad_segs=3),
                    shapely.box(x, y, x + r, y + r / 2),
                    shapely.make_valid(shapely.Polygon(corners), method="structure"),
                ]
            )
        )
        piece = shapely.union_all([p for p in shapely.get_parts(piece) if p.area > 0])
        shape = shape.difference(piece) if draw(st.booleans()) and shape.area else shape | piece
    parts = [p for p in shapely.get_parts(shape) if p.geom_type == "Polygon"]
    return shapely.multipolygons(parts) if len(parts) != 1 else parts[0]


def brute(shape, origin, size, downsample):
    """By centres, and which pixels are too close to an edge to tell."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    y = (origin[0] + rows + 0.5) * downsample[0]
    x = (origin[1] + columns + 0.5) * downsample[1]
    inside = shapely.contains_xy(shape, x, y)
    unsure = shapely.distance(shapely.boundary(shape), shapely.points(x, y)) < 1e-9
    return inside, unsure


@settings(max_examples=150)
@given(areas(), downsamples, st.tuples(st.integers(-3, 5), st.integers(-3, 5)))
def test_a_pixel_is_painted_when_its_centre_is_inside(shape, downsample, origin):
    got = Annotations([Annotation(shape, "a")]).rasterize(
        origin, (19, 23), downsample, classes={"a": 7}
    )
    inside, unsure = brute(shape, origin, (19, 23), downsample)
    assert got.dtype == np.uint8
    assert set(np.unique(got)) <= {0, 7}
    np.testing.assert_array_equal((got == 7)[~unsure], inside[~unsure])


@settings(max_examples=80)
@given(areas(), downsamples)
def test_all_touched_is_every_pixel_covered_in_part(shape, downsample):
    size = (17, 19)
    got = Annotations([Annotation(shape, "a")]).rasterize(
        (0, 0), size, downsample, classes=["a"], all_touched=True
    )
    rows, columns = np.mgrid[: size[0], : size[1]]
    (dy, dx) = downsample
    boxes = shapely.box(columns * dx, rows * dy, (columns + 1) * dx, (rows + 1) * dy)
    covered = shapely.area(shapely.intersection(shape, boxes))
    touching = shapely.intersects(shape, boxes)
    assert got[covered > 1e-9].all()
    assert not got[~touching].any()


@settings(max_examples=60)
@given(st.lists(areas(), min_size=1, max_size=5), downsamples, st.data())
def test_later_shapes_paint_over_and_regions_are_parts_of_the_whole(shapes, downsample, data):
    table = Annotations(Annotation(s, f"c{k % 3}") for k, s in enumerate(shapes))
    classes = {"c0": 1, "c1": 2, "c2": 3}
    whole = table.rasterize((-2, -1), (24, 22), downsample, classes=classes)
    expected = np.zeros_like(whole)
    unsure = np.zeros(whole.shape, bool)
    for item in table:
        inside, edge = brute(item.geometry, (-2, -1), whole.shape, downsample)
        expected[inside] = classes[item.label]
        unsure |= edge
    np.testing.assert_array_equal(whole[~unsure], expected[~unsure])

    y, x = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
    h, w = data.draw(st.integers(0, 24 - y)), data.draw(st.integers(0, 22 - x))
    part = table.rasterize((y - 2, x - 1), (h, w), downsample, classes=classes)
    np.testing.assert_array_equal(part, whole[y : y + h, x : x + w])
    # and the bands in which it works do not show
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "_EVENTS", 3)
        banded = table.rasterize((-2, -1), (24, 22), downsample, classes=classes)
    np.testing.assert_array_equal(banded, whole)
    # nor which of the two ways of filling runs is taken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "_SHORT", 0)
        by_rows = table.rasterize((-2, -1), (24, 22), downsample, classes=classes)
    np.testing.assert_array_equal(by_rows, whole)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=12))
def test_neighbours_that_share_edges_never_share_or_leave_out_a_pixel(corners):
    # integer corners at downsample 2: many centres lie exactly on edges and corners
    triangles = shapely.delaunay_triangles(shapely.MultiPoint(corners))
    parts = [t for t in triangles.geoms if t.area > 0]
    times = np.zeros((7, 7), int)
    for part in parts:
        times += Annotations([Annotation(part, "a")]).rasterize((0, 0), (7, 7), 2, classes=["a"])
    assert times.max(initial=0) <= 1
    hull = shapely.union_all(parts)
    inside, unsure = brute(hull, (0, 0), (7, 7), (2, 2))
    on_seam = ~shapely.contains_xy(hull, *np.mgrid[1:14:2, 1:14:2][::-1]) & unsure
    assert (times[inside & ~on_seam] == 1).all()


def test_the_left_and_the_upper_edge_belong_to_a_box():
    box = Annotations([Annotation(shapely.box(0.5, 1.5, 2.5, 3.5), "a")])
    got = box.rasterize((0, 0), (5, 4), classes=["a"])
    assert np.argwhere(got).tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    # drawn along pixel borders, nothing outside is touched
    aligned = Annotations([Annotation(shapely.box(4, 8, 12, 16), "a")])
    for touched in (False, True):
        got = aligned.rasterize((0, 0), (6, 6), 4, classes=["a"], all_touched=touched)
        assert np.argwhere(got).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2]]


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 70 / 3, 1.7])
def test_boxes_of_whole_pixels_touch_no_other_pixel_at_any_scale(scale):
    for first in range(0, 90, 7):
        box = shapely.box(first * scale, 3 * scale, (first + 4) * scale, 9 * scale)
        table = Annotations([Annotation(box, "a")])
        got = table.rasterize((0, first - 1), (11, 6), scale, classes=["a"], all_touched=True)
        expected = np.zeros_like(got)
        expected[3:9, 1:5] = 1
        np.testing.assert_array_equal(got, expected)


def test_points_and_lines():
    shapes = [
        (shapely.MultiPoint([(2.9, 1.0), (-0.1, 0)]), "p"),
        (shapely.LineString([(0.5, 3.5), (3.5, 3.5), (3.5, 5.2)]), "l"),
        (shapely.GeometryCollection([shapely.Point(0, 5), shapely.box(0, 0, 1, 1)]), "c"),
    ]
    table = Annotations(Annotation(g, label) for g, label in shapes)
    got = table.rasterize((0, 0), (6, 5), classes=["p", "l", "c"])
    assert np.argwhere(got == 1).tolist() == [[1, 2]]
    assert np.argwhere(got == 2).tolist() == [[3, 0], [3, 1], [3, 2], [3, 3], [4, 3], [5, 3]]
    assert np.argwhere(got == 3).tolist() == [[0, 0], [5, 0]]


@pytest.mark.parametrize("touched", [False, True])
def test_the_order_holds_between_points_lines_and_areas(touched):
    shapes = [
        shapely.Point(3.5, 3.5),
        shapely.LineString([(0.5, 3.5), (6.5, 3.5)]),
        shapely.box(2.2, 2.2, 5.8, 5.8),
        shapely.Point(4.5, 4.5),
        shapely.box(4.2, 2.2, 7.8, 3.8),
        shapely.LineString([(4.5, 0.5), (4.5, 3.2)]),
    ]
    for turn in (1, -1):
        table = Annotations(Annotation(g, f"c{k}") for k, g in enumerate(shapes[::turn]))
        got = table.rasterize((0, 0), (9, 9), classes=list(table.labels), all_touched=touched)
        expected = np.zeros_like(got)
        for k, item in enumerate(table, start=1):
            alone = Annotations([item]).rasterize(
                (0, 0), (9, 9), classes=[item.label], all_touched=touched
            )
            expected[alone > 0] = k
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=60)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=5, unique=True), downsamples)
def test_a_line_paints_what_it_passes_through(points, downsample):
    line = shapely.LineString(points)
    got = Annotations([Annotation(line, "a")]).rasterize(
        (0, 0), (20, 20), downsample, classes=["a"]
    )
    rows, columns = np.mgrid[:20, :20]
    dy, dx = downsample
    boxes = shapely.box(columns * dx, rows * dy, (columns + 1) * dx, (rows + 1) * dy)
    through = shapely.length(shapely.intersection(line, shapely.buffer(boxes, -1e-7)))
    assert got[through > 1e-6].all()
    assert not got[shapely.distance(line, boxes) > 1e-7].any()


def test_channels_classes_and_erasing():
    big, small = shapely.box(0, 0, 10, 10), shapely.box(2, 2, 6, 6)
    hole, lone = shapely.box(4, 4, 8, 8), shapely.box(8, 0, 10, 2)
    table = Annotations(
        [
            Annotation(big, "tissue"),
            Annotation(small, "tumour"),
            Annotation(hole, "exclude"),
            Annotation(lone),
        ]
    )
    one = table.rasterize((0, 0), (10, 10), classes={"tissue": 1, "tumour": 2, "exclude": 0})
    assert [one[1, 1], one[3, 3], one[5, 5], one[9, 9], one[1, 9]] == [1, 2, 0, 1, 1]
    assert table.rasterize((0, 0), (10, 10), classes={None: 3}).sum() == 3 * 4

    many = table.rasterize(
        (0, 0), (10, 10), classes={"tissue": 1, "tumour": 2, "exclude": 0}, multichannel=True
    )
    assert many.shape == (10, 10, 2)
    assert many[3, 3].tolist() == [1, 1]
    assert many[5, 5].tolist() == [0, 0]

    classes = Categories(
        {"any": ["tissue", "tumour"], "tumour": "tumour"}, background="first", erase=["exclude"]
    )
    many = table.rasterize((0, 0), (10, 10), classes=classes, multichannel=True, dtype=np.float32)
    assert many.dtype == np.float32
    assert many[3, 3].tolist() == [0, 1, 1]
    assert many[1, 1].tolist() == [0, 1, 0]
    assert many[5, 5].tolist() == [1, 0, 0]
    last = Categories(["tumour"], background="last")
    many = table.rasterize((0, 0), (10, 10), classes=last, multichannel=True)
    np.testing.assert_array_equal(many.sum(axis=-1), 1)


def test_masks_for_sampling():
    table = Annotations(
        [Annotation(shapely.box(0, 0, 33, 10), "a"), Annotation(shapely.Point(99, 69))]
    )
    mask = table.mask(extent0=(70, 100), scale=16)
    assert mask.dtype == bool
    assert mask.shape == (5, 7)
    assert np.argwhere(mask).tolist() == [[0, 0], [0, 1], [0, 2], [4, 6]]
    assert np.argwhere(
        table.mask("a", extent0=(70, 100), scale=(16, 16), all_touched=False)
    ).tolist() == [[0, 0], [0, 1]]
    assert not table.mask(["other"], extent0=(70, 100), scale=16).any()
    # extents that the scale divides but for rounding give no extra row
    assert table.mask(extent0=(70, 100), scale=(70 / 3, 100 / 7)).shape == (3, 7)
    with pytest.raises(UsageError, match="no label"):
        table.mask([], extent0=(70, 100), scale=16)


def test_wrong_grids_and_classes():
    table = Annotations([Annotation(shapely.box(0, 0, 4, 4), "a")])
    paint = table.rasterize
    for wrong in (0, -1, float("nan"), (1, 2, 3), "x", (1, 0)):
        with pytest.raises(GeometryError, match="downsample"):
            paint((0, 0), (4, 4), wrong, classes=["a"])
    for origin, shape in [((0, 0), (-1, 4)), ((0,), (4, 4)), ((0.5, 0), (4, 4)), ((0, 0), 4)]:
        with pytest.raises(GeometryError, match="region"):
            paint(origin, shape, classes=["a"])
    for classes in (None, "a", 3, {"a": -1}, {"a": 1.5}, {"a": True}, {3: 1}, {}, {"a": 0}, []):
        with pytest.raises(UsageError):
            paint((0, 0), (4, 4), classes=classes)
    with pytest.raises(UsageError, match="300 do not fit into uint8"):
        paint((0, 0), (4, 4), classes={"a": 300})
    assert paint((0, 0), (4, 4), classes={"a": 300}, dtype=np.uint16).max() == 300
    assert paint((0, 0), (0, 4), classes=["a"]).shape == (0, 4)
    assert not paint((100, 100), (4, 4), classes=["a"]).any()
    assert not Annotations().rasterize((0, 0), (4, 4), classes=["a"]).any()


@settings(max_examples=120)
@given(
    st.integers(1, 9).flatmap(
        lambda w: st.lists(
            st.lists(st.integers(0, 3), min_size=w, max_size=w), min_size=1, max_size=9
        )
    ),
    downsamples,
)
def test_outlines_are_valid_and_paint_the_mask_back(rows, scale):
    mask = np.array(rows)
    scale = tuple(round(s * 64) / 64 for s in scale)  # exact in floating point
    table = Annotations.from_mask(mask, scale, {1: "a", 3: "c"})
    assert shapely.is_valid(table.geometries).all()
    back = table.rasterize((0, 0), mask.shape, scale, classes={"a": 1, "c": 3})
    np.testing.assert_array_equal(back, np.where(mask == 2, 0, mask))
    area = scale[0] * scale[1] * np.count_nonzero(back)
    assert table.area == pytest.approx(area)


def test_outlines_of_masks():
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    table = Annotations.from_mask(ring, 10, origin=(100, 200))
    assert len(table) == 1
    assert len(table[0].geometry.interiors) == 1
    assert table[0].label == "tissue"
    assert table.bounds == (100, 200, 150, 250)
    # regions that touch at a corner only are two
    assert len(Annotations.from_mask(np.eye(2, dtype=bool))) == 2
    assert len(Annotations.from_mask(np.zeros((3, 3), bool))) == 0
    named = Annotations.from_mask(np.array([[1, 2]]), labels=["a", "b"])
    assert [a.label for a in named] == ["a", "b"]
    with pytest.raises(GeometryError, match="rows, columns"):
        Annotations.from_mask(np.zeros((2, 2, 2), bool))
    with pytest.raises(GeometryError, match="scale"):
        Annotations.from_mask(ring, 0)
    with pytest.raises(UsageError, match=r"float64"):
        Annotations.from_mask(ring * 0.5)
    with pytest.raises(UsageError, match="values up to 2"):
        Annotations.from_mask(np.array([[1, 2]]), labels="a")
    with pytest.raises(UsageError, match="background"):
        Annotations.from_mask(ring, labels={0: "a"})
