"""GeoJSON of QuPath and XML of ASAP: every form of them, and what is wrong with files."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Annotations, read_annotations
from daskdmed.cohort.annotations import Annotation, geojson
from daskdmed.errors import (
    AnnotationError,
    AnnotationNotFoundError,
    DaskdmedError,
    StoreError,
    UsageError,
)

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
BOW_TIE = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings, **properties):
    return feature({"type": "Polygon", "coordinates": list(rings)}, **properties)


def read(*features, **options):
    return read_annotations(
        json.dumps({"type": "FeatureCollection", "features": features}), **options
    )


# ------------------------------------------------------------------------------ GeoJSON
def test_properties_that_are_nested_too_deep_to_be_written() -> None:
    deep: dict = {}
    for _ in range(2000):
        deep = {"a": deep}
    table = Annotations([Annotation(shapely.Point(1, 2), properties={"deep": deep})])
    with pytest.raises(AnnotationError, match="annotation 0.*nested too deep"):
        table.to_geojson()


@pytest.mark.parametrize("kind", [["Polygon"], {"a": 1}, None, 3])
def test_types_that_are_no_text(kind) -> None:
    wrong = [
        {"type": kind, "features": []},
        [{"type": kind, "geometry": None}],
        [{"type": "Feature", "geometry": {"type": kind, "coordinates": [1, 2]}}],
    ]
    for document in wrong:
        with pytest.raises(AnnotationError, match="type"):
            read_annotations(json.dumps(document))


def test_texts_that_are_none() -> None:
    """Half of a pair of surrogates could not be written again."""
    name = '{"type": "Feature", "geometry": null, "properties": {"name": "%s"}}'
    with pytest.raises(AnnotationError, match="surrogates"):
        read_annotations(name % "\\ud800")
    with pytest.raises(AnnotationError, match="surrogates"):
        read_annotations(name % "\ud800")
    assert read_annotations(name % "\\ud83d\\ude00 \\\\ud800") is not None


def test_what_qupath_writes(tmp_path: Path) -> None:
    entry = {
        "type": "Feature",
        "id": "2c1e5e9c-3b0e-4b8f-9d25-5fb0d3b3a1a4",
        "geometry": {
            "type": "Polygon",
            "coordinates": [SQUARE, HOLE],
            "plane": {"c": -1, "z": 3, "t": 0},
        },
        "properties": {
            "objectType": "annotation",
            "name": "Region 1",
            "classification": {"name": "Tumor", "color": [200, 0, 0]},
            "isLocked": True,
            "measurements": {"Area µm^2": 12.5},
        },
    }
    path = tmp_path / "slide.geojson"
    path.write_text(
        "\ufeff" + json.dumps({"type": "FeatureCollection", "features": [entry]}), "utf-8"
    )
    table = read_annotations(path)
    (one,) = table
    assert one.geometry.equals(shapely.Polygon(SQUARE, [HOLE]))
    assert (one.label, one.name, one.colour) == ("Tumor", "Region 1", (200, 0, 0))
    assert one.id == entry["id"]
    assert one.properties["measurements"] == {"Area µm^2": 12.5}
    assert one.properties["plane"]["z"] == 3
    assert table.source == str(path)
    assert table.notes == ()
    # gzip, and every container, say the same
    packed = tmp_path / "slide.geojson.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for other in (packed, json.dumps([entry]), json.dumps(entry), json.dumps(entry).encode()):
        assert read_annotations(other) == table


def test_classifications_of_every_version() -> None:
    given = [
        ("Tumor", "Tumor", None),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor", (200, 0, 0)),
        ({"name": "Stroma", "color": [1, 2, 3]}, "Stroma", (1, 2, 3)),
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive", (1, 2, 3)),
        (None, None, None),
        ("", None, None),
    ]
    table = read(*(polygon(SQUARE, classification=c) for c, _, _ in given))
    assert [(a.label, a.colour) for a in table] == [(n, c) for _, n, c in given]
    (own,) = read(polygon(SQUARE, color=[9, 8, 7]))
    assert own.colour == (9, 8, 7)


def test_every_geometry() -> None:
    shapes = {
        "Point": [1, 2],
        "MultiPoint": [[1, 2], [3, 4]],
        "LineString": [[0, 0, 1], [5, 5, 7]],
        "MultiLineString": [[[0, 0], [5, 5]], [[1, 0], [2, 0]]],
        "Polygon": [SQUARE, HOLE],
        "MultiPolygon": [[SQUARE, HOLE], [[[20, 20], [30, 20], [30, 30], [20, 20]]]],
    }
    geometries = [{"type": k, "coordinates": v} for k, v in shapes.items()]
    collection = {"type": "GeometryCollection", "geometries": geometries}
    table = read(*map(feature, [*geometries, collection]))
    assert [a.geometry.geom_type for a in table] == [*shapes, "GeometryCollection"]
    assert not any(a.geometry.has_z for a in table)
    assert table[5].geometry.area == 100 - 4 + 50
    assert len(table[6].geometry.geoms) == 6
    assert read_annotations(json.dumps(geometries[4]))[0].geometry.area == 96


def test_objects_inside_objects_come_after_and_roots_are_no_objects() -> None:
    cell = polygon(HOLE, classification="Cell", objectType="detection")
    cell["nucleusGeometry"] = {"type": "Point", "coordinates": [3, 3]}
    outer = polygon(SQUARE, classification="Tumor", childObjects=[cell])
    root = feature(None, objectType="root", childObjects=[outer, polygon(SQUARE)])
    table = read(root)
    assert [a.label for a in table] == ["Tumor", "Cell", None]
    assert [a.kind for a in table] == ["annotation", "detection", "annotation"]
    assert table.notes == ()
    assert table.rasterize((0, 0), (4, 4), classes=["Tumor", "Cell"])[3, 3] == 2


def test_offset_of_mrxs_and_labels() -> None:
    facts = {"openslide.bounds-x": "1000", "openslide.bounds-y": "500"}
    slide = SimpleNamespace(properties=facts, dimensions=(2000, 2000))
    square = polygon(SQUARE, classification="Tumor")
    for offset in (slide, (1000, 500)):
        table = read(square, polygon(SQUARE, classification="Ignore*"), offset=offset,
                     label_map={"Tumor": "tumour", "Ignore*": None})  # fmt: skip
        assert table.bounds == (1000, 500, 1010, 510)
        assert table.labels == ("tumour",)
    back = json.loads(table.to_geojson(offset=slide))
    assert back["features"][0]["geometry"]["coordinates"][0] == [
        list(map(float, p)) for p in SQUARE
    ]
    assert read(square, offset=SimpleNamespace(properties={}, dimensions=(20, 20))).bounds == (
        0,
        0,
        10,
        10,
    )
    for wrong in (3, (1, 2, 3), "xy", (1, None), (float("nan"), 0)):
        with pytest.raises(UsageError, match="offset"):
            read(square, offset=wrong)


numbers = st.floats(-1e6, 1e6, allow_nan=False)
pairs = st.tuples(numbers, numbers)
text = st.text(st.characters(codec="utf-8"), max_size=12)


@st.composite
def anything(draw):
    x, y = draw(pairs)
    shape = draw(
        st.sampled_from(
            [
                shapely.Point(x, y),
                shapely.LineString([(x, y), (x + 1.1, y - 3)]),
                shapely.Point(x, y).buffer(7.3).difference(shapely.Point(x, y).buffer(2.1)),
                shapely.MultiPolygon(
                    [shapely.box(x, y, x + 3, y + 2), shapely.box(x + 9, y, x + 11, y + 1)]
                ),
                shapely.GeometryCollection([shapely.Point(x, y), shapely.box(x, y, x + 1, y + 1)]),
            ]
        )
    )
    value = st.none() | st.booleans() | st.integers(-99, 99) | numbers | text
    return Annotation(
        shape,
        draw(st.none() | text.filter(bool)),
        name=draw(text),
        colour=draw(st.none() | st.tuples(*[st.integers(0, 255)] * 3)),
        kind=draw(st.sampled_from(["annotation", "detection", "tile"])),
        id=draw(text),
        properties=draw(
            st.dictionaries(text.map(lambda t: f"x{t}"), value | st.lists(value), max_size=3)
        ),
    )


@settings(max_examples=60)
@given(st.lists(anything(), max_size=4))
def test_geojson_round_trip_keeps_everything(items) -> None:
    table = Annotations(items)
    again = read_annotations(table.to_geojson(), on_invalid="raise")
    assert again.token == table.token
    assert again == table
    assert [a.geometry for a in again] == [a.geometry for a in table]
    assert pickle.loads(pickle.dumps(table)) == table


def test_writing(tmp_path: Path) -> None:
    table = Annotations(
        [
            Annotation(shapely.LinearRing([(0, 0), (4, 0), (4, 4)]), "a"),
            Annotation(
                shapely.Point(1, 1),
                properties={"measurements": {"x": np.float32(0.5), "n": float("nan")}},
            ),
        ]
    )
    for name in ("a.geojson", "a.geojson.gz"):
        table.to_geojson(tmp_path / name)
        again = read_annotations(tmp_path / name)
        assert again[0].geometry.geom_type == "LineString"
        assert dict(again[1].properties) == {"measurements": {"x": 0.5}}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.geojson", "a.geojson.gz"]
    with pytest.raises(StoreError, match="cannot be written"):
        table.to_geojson(tmp_path / "a.geojson" / "b.geojson")
    with pytest.raises(AnnotationError, match=r"annotation 0: the property .*object"):
        Annotations([Annotation(shapely.Point(1, 1), properties={"x": object()})]).to_geojson()
    with pytest.raises(AnnotationError, match="is empty"):
        Annotations([Annotation(shapely.Point())]).to_geojson()


# ------------------------------------------------------------------------------ classes
@pytest.mark.parametrize(
    ("path", "labels"),
    [
        (None, ["Tumor", "Stroma", None]),
        ("properties.type", ["t", "3", None]),
        ("type", ["t", "3", None]),
        ("measurements.grade", ["2", None, None]),
        ("properties.more.class", [None, "x", None]),
        ("a.b", [None, None, "dotted"]),
        ("classification", ["Tumor", "Stroma", None]),
        ("properties.classification.name", ["Tumor", None, None]),
    ],
)
def test_the_property_that_names_the_class(path, labels) -> None:
    table = read(
        polygon(SQUARE, classification={"name": "Tumor"}, type="t", measurements={"grade": 2.0}),
        polygon(SQUARE, classification="Stroma", type=3, more={"class": "x"}),
        polygon(SQUARE, **{"a.b": "dotted"}),
        class_property=path,
    )
    assert [a.label for a in table] == labels


def test_type_names_the_class_where_nothing_else_can() -> None:
    foreign = [polygon(SQUARE, type="Tumor"), polygon(SQUARE, type=2), polygon(SQUARE)]
    assert [a.label for a in read(*foreign)] == ["Tumor", "2", None]
    for ambiguous in (
        [polygon(SQUARE, type="Tumor", objectType="annotation")],
        [polygon(SQUARE, type="Tumor"), polygon(SQUARE, classification="a")],
        [polygon(SQUARE, type="Polygon")],
        [polygon(SQUARE, type=["Tumor"])],
    ):
        assert read(*ambiguous)[0].label is None
    # what this library writes stays as it was
    plain = Annotations([Annotation(shapely.Point(1, 1), properties={"type": "Dot"})])
    assert read_annotations(plain.to_geojson()) == plain


def test_a_property_that_no_object_has() -> None:
    with pytest.raises(AnnotationError, match=r"none of 2 objects has .*'typ'.*\['name', 'type'\]"):
        read(polygon(SQUARE, type="a"), polygon(SQUARE, name="b"), class_property="typ")
    with pytest.raises(AnnotationError, match="object 0: a class_property 'type' is a text"):
        read(polygon(SQUARE, type=[1]), class_property="type")
    assert len(read(class_property="type")) == 0


# ------------------------------------------------------------- all at once, one by one
@pytest.mark.parametrize("odd", [None, [["1", 1], [2, 2], [3, 1], ["1", 1]], SQUARE[:-1]])
def test_many_shapes_are_read_as_one_by_one(odd) -> None:
    """Those that are as they should be are made together, whatever lies between them."""
    features = [polygon(SQUARE, HOLE, name="a"), feature({"type": "Point", "coordinates": [3, 4]})]
    features += [polygon(BOW_TIE), polygon([[0, 0], [5, 5], [9, 9], [0, 0]]), polygon(SQUARE)]
    features += [feature(None), polygon([[7, 7, 1], [9, 7, 1], [9, 9, 1], [7, 7, 1]])]
    features += [polygon(odd)] * (odd is not None)
    options = {"on_invalid": "skip" if odd and odd[0][0] == "1" else "repair", "offset": (2, 3)}
    options["extent"] = (11, 12)
    table = read(*features, **options)
    single = [read(f, **options) for f in features]
    assert [a.geometry for a in table] == [a.geometry for t in single for a in t]
    assert [a.facts for a in table] == [a.facts for t in single for a in t]
    notes = [n.replace("object 0", f"object {k}") for k, t in enumerate(single) for n in t.notes]
    assert list(table.notes) == notes
    with pytest.raises(AnnotationError, match="object 2: Self-intersection"):
        read(*features, on_invalid="raise")


# --------------------------------------------------------------------------------- ASAP
def asap(*annotations: str, groups: str = "") -> str:
    body = "".join(annotations)
    return (
        '<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations>'
        f"{body}</Annotations><AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )


def drawn(kind: str, points, group: str = "None", name: str = "n", color: str = "#F4FA58") -> str:
    inner = "".join(
        f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in enumerate(points)
    )
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="{color}">'
        f"<Coordinates>{inner}</Coordinates></Annotation>"
    )


def test_asap_types_groups_and_colours(tmp_path: Path) -> None:
    corners = [(0, 0), (10, 0), (10, 10), (0, 10)]
    groups = (
        '<Group Name="tumour" PartOfGroup="None" Color="#ff0000"><Attributes /></Group>'
        '<Group Name="invasive" PartOfGroup="tumour" Color="#00ff00"><Attributes>'
        '<Attribute x="1"/></Attributes></Group>'
    )
    document = asap(
        drawn("Polygon", corners, "invasive", name="A"),
        drawn("Spline", corners, "tumour"),
        drawn("Rectangle", [(0, 0), (6, 4)]),
        drawn("Rectangle", corners, "undeclared"),
        drawn("Dot", [(3, 4)]),
        drawn("PointSet", [(3, 4), (5, 6)]),
        drawn("Measurement", [(0, 0), (3, 4)]),
        drawn("Polyline", [(0, 0), (3, 4), (9, 9)]),
        groups=groups,
    )
    path = tmp_path / "a.xml"
    path.write_text(document)
    table = read_annotations(path)
    assert [a.geometry.geom_type for a in table] == [
        *["Polygon"] * 4, "Point", "MultiPoint", "LineString", "LineString",
    ]  # fmt: skip
    assert table.areas[:4].tolist() == [100, 100, 24, 100]
    assert table[0].label == "invasive"
    assert table[0].group == ("tumour", "invasive")
    assert [a.colour for a in table][:3] == [(0, 255, 0), (255, 0, 0), (0xF4, 0xFA, 0x58)]
    assert [a.label for a in table][1:5] == ["tumour", None, "undeclared", None]
    assert table[0].name == "A"
    assert table.notes == ()


def test_asap_order_and_decimal_commas() -> None:
    coordinates = [("2", "10,5", "10"), ("0", "0", "0"), ("1", "10,5", "0,25"), ("3", "0", "1.0e1")]
    inner = "".join(f'<Coordinate Order="{o}" X="{x}" Y="{y}"/>' for o, x, y in coordinates)
    (one,) = read_annotations(
        asap(f'<Annotation Type="Polygon"><Coordinates>{inner}</Coordinates></Annotation>')
    )
    assert list(one.geometry.exterior.coords)[:4] == [(0, 0), (10.5, 0.25), (10.5, 10), (0, 10)]
    assert one.label is None


# ---------------------------------------------------------------------------- bad input
def test_self_intersections_are_repaired_as_documented() -> None:
    table = read(polygon(BOW_TIE, classification="a"), polygon(SQUARE))
    assert table[0].geometry.is_valid
    assert table.areas.tolist() == [50, 100]
    assert len(table.notes) == 1
    assert table.notes[0].startswith("object 0 was repaired: Self-intersection")
    # a stroke that crosses itself near its end stays filled
    loop = [[0, 0], [10, 0], [10, 10], [4, 10], [4, 4], [6, 4], [6, 12], [0, 12], [0, 0]]
    (one,) = read(polygon(loop))
    assert one.geometry.is_valid
    assert one.geometry.contains(shapely.Point(5, 7))
    with pytest.raises(AnnotationError, match=r"object 0: Self-intersection.*on_invalid") as caught:
        read(polygon(BOW_TIE), on_invalid="raise")
    assert caught.value.index == 0
    skipped = read(polygon(BOW_TIE), polygon(SQUARE), on_invalid="skip")
    assert len(skipped) == 1
    assert "left out" in skipped.notes[0]


@pytest.mark.parametrize(
    ("entry", "area", "note"),
    [
        (polygon(SQUARE[:-1]), 100, "not closed"),
        (polygon([[0, 0], [5, 5], [0, 0]]), None, "no area"),
        (polygon([[0, 0], [1, 1], [2, 2], [0, 0]]), None, "no area"),
        (polygon([]), None, "empty"),
        (feature({"type": "MultiPolygon", "coordinates": []}), None, "empty"),
        (feature({"type": "GeometryCollection", "geometries": []}), None, "empty"),
        (feature({"type": "Point", "coordinates": []}), None, "empty"),
        (polygon(SQUARE, classification={"name": "a", "color": "red"}), 100, "colour red"),
        (polygon(SQUARE, color=[1, float("nan"), 300]), 100, "colour"),
        (feature({"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE]]}), 100, "repaired"),
    ],
)
def test_what_is_mended_or_left_out(entry, area, note) -> None:
    table = read(entry)
    assert [a.geometry.area for a in table] == ([] if area is None else [area])
    assert note in table.notes[0]
    with pytest.raises(AnnotationError, match="object 0"):
        read(entry, on_invalid="raise")
    assert len(read(entry, on_invalid="skip")) == 0


def test_an_object_without_geometry_is_left_out_always() -> None:
    for option in ("repair", "raise", "skip"):
        table = read(feature(None), polygon(SQUARE), on_invalid=option)
        assert len(table) == 1
        assert "no geometry" in table.notes[0]


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        (polygon([[0, 0], [1, float("nan")], [2, 2], [0, 0]]), "position 1 .* nan"),
        (polygon([[0, 0], [1, float("inf")], [2, 2], [0, 0]]), "inf"),
        (polygon([[0, 0], [1, 1e300], [2, 2], [0, 0]]), "1e\\+300"),
        (polygon([[0, 0], [1, 10**400], [2, 2], [0, 0]]), "not pairs"),
        (polygon([[0, 0], ["1", 1], [2, 2], [0, 0]]), "not pairs"),
        (polygon([[0, 0], [None, 1], [2, 2], [0, 0]]), "not pairs"),
        (polygon([[0, 0], [True, False], [2], [0, 0]]), "not pairs"),
        (polygon([[0], [1], [2], [0]]), "not pairs"),
        (feature({"type": "Polygon", "coordinates": [0, 0]}), "list of rings"),
        (polygon([[SQUARE]]), "not pairs"),
        (feature({"type": "Polygon", "coordinates": "x"}), "no list of coordinates"),
        (feature({"type": "Polygon"}), "no list of coordinates"),
        (feature({"type": "Circle", "coordinates": []}), "'Circle' is not one of"),
        (feature({"type": "MultiPolygon", "coordinates": [1]}), "list of lists"),
        (feature({"type": "LineString", "coordinates": [[0, 0]]}), "2 positions or more"),
        (feature({"type": "GeometryCollection"}), "geometries"),
        (feature("Polygon"), "'str' is not one of"),
        (feature(7), "'int' is not one of"),
        (polygon(SQUARE, classification=7), "classification"),
        (polygon(SQUARE, classification={"name": 7}), "classification"),
        ({"type": "Feature", "geometry": None, "properties": [1]}, "properties"),
        ({"type": "Banana"}, "'Banana'"),
        (3, "a feature is a JSON object"),
    ],
)
def test_what_makes_no_sense_is_an_error_or_skipped(entry, cause) -> None:
    good = polygon(SQUARE, classification="a")
    for option in ("repair", "raise"):
        with pytest.raises(AnnotationError, match=f"object 1: .*{cause}") as caught:
            read(good, entry, on_invalid=option)
        assert caught.value.index == 1
        assert pickle.loads(pickle.dumps(caught.value)).index == 1
    table = read(good, entry, on_invalid="skip")
    assert len(table) == 1
    assert "object 1 is left out" in table.notes[0]


def test_shapes_beyond_the_slide() -> None:
    half, gone = [[p[0] + 95, p[1]] for p in SQUARE], [[p[0] + 500, p[1]] for p in SQUARE]
    table = read(polygon(SQUARE), polygon(half), polygon(gone), extent=(100, 80))
    assert table.areas.tolist() == [100, 50]
    assert table.bounds == (0, 0, 100, 10)
    assert "cut at the border" in table.notes[0]
    assert "object 2 is left out" in table.notes[1]
    with pytest.raises(AnnotationError, match="object 1: .*beyond the slide of 100 x 80"):
        read(polygon(SQUARE), polygon(half), extent=(100, 80), on_invalid="raise")
    assert len(read(polygon(SQUARE), polygon(half), extent=(100, 80), on_invalid="skip")) == 1
    slide = SimpleNamespace(properties={}, dimensions=(100, 80))
    assert len(read(polygon(gone), offset=slide)) == 0
    with pytest.raises(UsageError, match="extent"):
        read(polygon(SQUARE), extent=(0, 5))


def test_notes_are_bounded() -> None:
    table = read(*[feature(None)] * 500)
    assert len(table.notes) == 101
    assert table.notes[-1] == "and 400 more"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("", "is empty"),
        ("   \n", "is empty"),
        ("x,y\n1,2", "neither GeoJSON nor XML"),
        ('{"type": "FeatureCollection", "features": [{"type": "Fea', "not complete JSON"),
        ('{"type": "FeatureCollection"}', 'list "features"'),
        ('{"type": "Topology"}', "not GeoJSON"),
        ("{}", "not GeoJSON"),
        ("<ASAP_Annotations><Annotations>", "not complete XML"),
        ("<html><body/></html>", "root is <html>"),
        ("<", "not complete XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "not complete XML"),
        (b"\xff\xfe{\x00}\x00", "neither"),
        (b'{"type": "\xff"}', "not complete JSON"),
        (b"\x1f\x8b garbage", "gzip is damaged"),
        (
            gzip.compress(b'{"type": "FeatureCollection", "features": []}', mtime=0)[:-12],
            "truncated",
        ),
    ],
)
def test_documents_that_cannot_be_read(tmp_path: Path, content, cause) -> None:
    path = tmp_path / "bad.geojson"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError, match=cause) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert caught.value.uri == str(path)
    assert isinstance(caught.value, (DaskdmedError, ValueError))


def test_every_truncation_is_an_error() -> None:
    for document in (json.dumps([polygon(SQUARE)]), asap(drawn("Dot", [(1, 2)]))):
        for stop in range(1, len(document), 7):
            with pytest.raises(AnnotationError):
                read_annotations(document[:stop].encode())


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(AnnotationNotFoundError, match="no such file"):
        read_annotations(tmp_path / "a.geojson")
    with pytest.raises(FileNotFoundError):
        read_annotations("missing.xml")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_annotations(tmp_path)
    with pytest.raises(UsageError, match="path or a text"):
        read_annotations(3)
    with pytest.raises(UsageError, match="on_invalid"):
        read_annotations("[]", on_invalid="ignore")
    assert len(read_annotations("[]")) == 0
    assert len(read_annotations(asap())) == 0


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {c} "{f"&{p};" * 10}">' for p, c in zip("abcdefgh", "bcdefghi"))
    + "]><ASAP_Annotations>&i;</ASAP_Annotations>"
)


@pytest.mark.parametrize(
    "document",
    [
        LAUGHS,
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ASAP_Annotations>&x;</ASAP_Annotations>',
        f'<!DOCTYPE a [<!ENTITY x "{"y" * 10**6}">]><a>{"&x;" * 1000}</a>',
        '<!DOCTYPE a SYSTEM "http://example.invalid/a.dtd"><ASAP_Annotations/>',
    ],
    ids=["billion laughs", "external entity", "quadratic", "external dtd"],
)
def test_xml_entities_are_refused_in_bounded_memory(document) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(AnnotationError, match="document type or entities"):
            read_annotations(document)
        assert tracemalloc.get_traced_memory()[1] < len(document) * 4 + 2**22
    finally:
        tracemalloc.stop()


def test_nesting_is_bounded() -> None:
    deep = 200_000
    with pytest.raises(AnnotationError, match="nested more than 32 deep"):
        read_annotations("<a>" * deep + "</a>" * deep)
    with pytest.raises(AnnotationError, match="nested too deep"):
        read_annotations("[" * deep + "]" * deep)
    nested: dict = {"type": "Point", "coordinates": [0, 0]}
    for _ in range(40):
        nested = {"type": "GeometryCollection", "geometries": [nested]}
    with pytest.raises(AnnotationError, match="nested more than 16 deep"):
        read(feature(nested))
    child = polygon(SQUARE)
    for _ in range(200):
        child = polygon(SQUARE, childObjects=[child])
    assert len(read(child)) == 201


def test_large_documents_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.geojson.gz"
    bomb.write_bytes(gzip.compress(b"[" + b" " * 2**26 + b"]"))
    tracemalloc.start()
    try:
        with pytest.raises(AnnotationError, match="more than 1048576 bytes.*max_bytes"):
            read_annotations(bomb, max_bytes=2**20)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    with pytest.raises(AnnotationError, match="more than 3 bytes"):
        read_annotations("[    ]", max_bytes=3)


@pytest.mark.parametrize(
    ("annotation", "cause"),
    [
        (drawn("Banana", [(0, 0)]), "'Banana' is not one of"),
        (drawn("Polygon", [(0, "nan"), (1, 1), (2, 0)]), "nan"),
        (drawn("Polygon", [(0, "abc"), (1, 1), (2, 0)]), "'abc'"),
        (drawn("Polygon", [(0, "1,2,3"), (1, 1), (2, 0)]), "not a number"),
        (drawn("Measurement", [(0, 0)]), "2 positions or more"),
        (
            '<Annotation Type="Dot"><Coordinates><Coordinate X="1"/></Coordinates></Annotation>',
            "'Y'",
        ),
    ],
)
def test_wrong_asap_annotations(annotation, cause) -> None:
    document = asap(drawn("Dot", [(1, 1)]), annotation)
    with pytest.raises(AnnotationError, match=f"object 1: .*{cause}"):
        read_annotations(document)
    assert len(read_annotations(document, on_invalid="skip")) == 1


def test_asap_that_is_mended() -> None:
    table = read_annotations(
        asap(
            drawn("Polygon", [(0, 0), (1, 1)]),
            drawn("Polygon", []),
            drawn("Polygon", [(0, 0), (4, 4), (4, 0), (0, 4)], color="red"),
        )
    )
    assert table.areas.tolist() == [8]
    assert len(table.notes) == 4
    circle = '<Group Name="a" PartOfGroup="b"/><Group Name="b" PartOfGroup="a"/>'
    with pytest.raises(AnnotationError, match="in a circle"):
        read_annotations(asap(groups=circle))


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_json_is_read_by_orjson_and_alike_without(monkeypatch, prefix):
    pytest.importorskip("orjson")
    feature = {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [1e3, 2**59]},
        "properties": {"classification": {"name": "é\u2028"}, "measurements": [0.1, -0.0, 2**53]},
    }
    content = prefix + json.dumps([feature, {**feature, "id": "b"}]).encode()
    with monkeypatch.context() as without_json:
        without_json.delattr(json, "loads")
        fast = geojson._parsed(content)
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert geojson._parsed(content) == fast


@pytest.mark.parametrize("value", ["NaN", "18446744073709551616", "-9223372036854775809", "9" * 30])
def test_json_that_orjson_would_change_is_read_by_python(value):
    assert repr(geojson._parsed(f"[{value}]".encode())) == repr(json.loads(f"[{value}]"))
    point = f'{{"type": "Point", "coordinates": [1, 2]}}, "properties": {{"uid": {value}}}'
    (one,) = read_annotations(f'[{{"type": "Feature", "id": {value}, "geometry": {point}}}]')
    assert (one.id, str(one.properties["uid"])) == (value.replace("NaN", "nan"),) * 2
