"""XML of ImageScope, HALO and Hamamatsu, and whose a document is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import shapely

from daskdmed import Dataset, Patient, Record, Region, read_annotations
from daskdmed.cohort.annotations import target_view
from daskdmed.errors import AnnotationError, UsageError

SQUARE = [(0, 0), (40, 0), (40, 40), (0, 40)]


def region(kind, points, tag="Vertex", **attributes):
    told = "".join(f' {k}="{v}"' for k, v in attributes.items())
    inner = "".join(f'<{tag} X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return f'<Region Id="1" Type="{kind}"{told}><Vertices>{inner}</Vertices></Region>'


def layer(*regions, attributes="", **named):
    told = "".join(f' {k}="{v}"' for k, v in named.items())
    return (
        f'<Annotation Id="1"{told}><Attributes>{attributes}</Attributes>'
        f"<Regions>{''.join(regions)}</Regions><Plots/></Annotation>"
    )


def scope(*layers):
    return f'<Annotations MicronsPerPixel="0.25">{"".join(layers)}</Annotations>'


def test_imagescope_types_layers_and_colours():
    kinds = [
        region(0, SQUARE, Text="lower left"),
        region(1, [(0, 0), (6, 4)]),
        region(2, [(0, 0), (20, 10)]),
        region(3, [(1, 1), (9, 9)]),
        region(4, [(1, 1), (9, 1)]),
        region(5, [(3, 4)]),
    ]
    second = layer(region("Polygon", SQUARE, tag="V", NegativeROA="0"), LineColor="65280")
    table = read_annotations(scope(layer(*kinds, Name="Tumor", LineColor="255"), second))
    assert [a.geometry.geom_type for a in table] == [
        *["Polygon"] * 3, "LineString", "LineString", "Point", "Polygon",
    ]  # fmt: skip
    assert table.areas[[0, 1, 6]].tolist() == [1600, 24, 1600]
    assert table.areas[2] == pytest.approx(np.pi * 10 * 5, rel=2e-3)
    assert table[2].geometry.bounds == pytest.approx((0, 0, 20, 10))
    assert [a.label for a in table] == ["Tumor"] * 6 + [None]
    assert [table[k].colour for k in (0, 6)] == [(255, 0, 0), (0, 255, 0)]
    assert (table[0].name, table[0].group) == ("lower left", ("Tumor",))
    assert table.notes == ()


def test_negative_regions_are_holes_of_the_areas_of_their_layer():
    hole = region(0, [(10, 10), (20, 10), (20, 20), (10, 20)], NegativeROA="1")
    table = read_annotations(
        scope(layer(hole, region(0, SQUARE), Name="a"), layer(region(0, SQUARE), Name="b"))
    )
    assert table.areas.tolist() == [1500, 1600]
    assert not table[0].geometry.contains(shapely.Point(15, 15))
    alone = read_annotations(scope(layer(hole, Name="a")))
    assert len(alone) == 0
    assert "negative" in alone.notes[0]
    # one that covers its layer leaves nothing, and that is said
    gone = read_annotations(scope(layer(region(0, SQUARE), region(0, SQUARE, NegativeROA="1"))))
    assert len(gone) == 0
    assert "no area" in gone.notes[0]


def test_what_is_wrong_with_a_negative_region_is_told():
    bow_tie = region(0, [(10, 10), (20, 20), (20, 10), (10, 20)], NegativeROA="1")
    document = scope(layer(region(0, SQUARE), bow_tie))
    table = read_annotations(document)
    assert table.areas.tolist() == [1550]
    assert [note[:32] for note in table.notes] == ["object 1 was repaired: Self-inte"]
    with pytest.raises(AnnotationError, match="object 1: Self-intersection"):
        read_annotations(document, on_invalid="raise")


def test_the_class_of_a_region():
    described = '<Attribute Name="Description" Id="0" Value="stroma"/>'
    text = region(0, SQUARE, Text="G3")
    named, unnamed = layer(text, Name="Tumor"), layer(text, attributes=described)
    bare = layer(region(0, SQUARE), attributes=described)
    document = scope(named, unnamed, bare)
    assert [a.label for a in read_annotations(document)] == ["Tumor", "G3", "stroma"]
    by_text = read_annotations(document, class_property="Text")
    assert [a.label for a in by_text] == ["G3", "G3", None]
    own = read_annotations(document, class_property="Description")
    assert [a.label for a in own] == [None, "stroma", "stroma"]
    with pytest.raises(AnnotationError, match=r"none of 3 objects has .*'Grade'.*Text"):
        read_annotations(document, class_property="Grade")


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (region(7, SQUARE), "region type '7' is none of"),
        (region(0, [(0, 0), ("x", 1), (2, 2)]), "not a number"),
        (region(3, [(0, 0)]), "2 positions or more"),
        (region(0, [(0, 0), ("x", 1)], NegativeROA="1"), "not a number"),
        ('<Region Type="0"><Vertices><Vertex X="1"/></Vertices></Region>', "'Y'"),
    ],
)
def test_regions_that_make_no_sense(wrong, cause):
    document = scope(layer(region(0, SQUARE), wrong, Name="a"))
    with pytest.raises(AnnotationError, match=f"object 1: .*{cause}"):
        read_annotations(document)
    assert len(read_annotations(document, on_invalid="skip")) == 1


def test_flaws_of_regions_are_mended():
    bow_tie = [(0, 0), (10, 10), (10, 0), (0, 10)]
    table = read_annotations(scope(layer(region(0, bow_tie), Name="a", LineColor="red")))
    assert table.areas.tolist() == [50]
    assert len(table.notes) == 2


# ------------------------------------------------------------------------------ Hamamatsu
def state(kind, inner, title="tumour", unit="nanometers"):
    return (
        f"<ndpviewstate id='1'><title>{title}</title><details>G3</details>"
        f"<coordformat>{unit}</coordformat><lens>20</lens><x>0</x><y>0</y><z>0</z>"
        f"<annotation type='{kind}' displayname='Annotate' color='#00ff00'>{inner}</annotation>"
        "</ndpviewstate>"
    )


def points(*pairs, closed=1):
    inner = "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x, y in pairs)
    return f"<closed>{closed}</closed><pointlist>{inner}</pointlist>"


def ndpa(*states):
    return f'<?xml version="1.0" encoding="utf-8"?><annotations>{"".join(states)}</annotations>'


#: 1000 x 800 pixels of 0.5 um, whose centre lies 10 um right of and 20 um above the glass'
SLIDE = SimpleNamespace(
    properties={
        "hamamatsu.XOffsetFromSlideCentre": "10000",
        "hamamatsu.YOffsetFromSlideCentre": "-20000",
    },
    dimensions=(1000, 800),
    mpp=(0.5, 0.5),
)


def test_ndpa_lengths_become_pixels():
    # the middle of the image, and 100 pixels to the right and below
    corners = [(10_000, -20_000), (60_000, -20_000), (60_000, 30_000), (10_000, 30_000)]
    document = ndpa(
        state("freehand", points(*corners)),
        state("freehand", points(*corners, closed=0)),
        state("circle", "<x>10000</x><y>-20000</y><radius>5000</radius>"),
        state("pin", "<x>10000</x><y>-20000</y>", title=""),
        state("linearmeasure", "<x1>10000</x1><y1>-20000</y1><x2>60000</x2><y2>-20000</y2>"),
        state("pin", "<x>10</x><y>-20</y>", unit="micrometers"),
    )
    table = read_annotations(document, offset=SLIDE)
    assert [a.geometry.geom_type for a in table] == [
        "Polygon", "LineString", "Polygon", "Point", "LineString", "Point",
    ]  # fmt: skip
    assert table[0].geometry.bounds == (500, 400, 600, 500)
    assert table[2].geometry.bounds == pytest.approx((490, 390, 510, 410))
    assert [tuple(table[k].geometry.coords[0]) for k in (3, 5)] == [(500, 400)] * 2
    assert (table[0].label, table[3].label, table[0].colour) == ("tumour", None, (0, 255, 0))
    assert table[0].properties["details"] == "G3"
    given = read_annotations(document, offset=(480, 440), mpp=0.5)
    assert [a.geometry for a in given] == [a.geometry for a in table]
    assert read_annotations(document, offset=SLIDE, class_property="details").labels == ("G3",)


def test_ndpa_needs_to_know_where_the_slide_lies(tmp_path):
    document = ndpa(state("pin", "<x>0</x><y>0</y>"))
    path = tmp_path / "a.ndpi.ndpa"
    path.write_text(document)
    for source in (document, path):
        with pytest.raises(AnnotationError, match=r"centre of the glass.*offset=.*mpp="):
            read_annotations(source)
    with pytest.raises(AnnotationError, match="comes without mpp"):
        read_annotations(document, offset=(1, 2))
    other = SimpleNamespace(properties={}, dimensions=(10, 10), mpp=(0.5, 0.5), uri="b.svs")
    with pytest.raises(AnnotationError, match=r"b\.svs comes without hamamatsu\.XOffset"):
        read_annotations(document, offset=other)
    with pytest.raises(UsageError, match="mpp= is for NDPA"):
        read_annotations("[]", mpp=0.5)
    assert Record(path).is_annotations


def test_ndpa_beside_its_slide(tmp_path, monkeypatch):
    opened = []

    def open_slide(path):
        opened.append(path)
        return SLIDE

    monkeypatch.setattr("daskdmed.images.opening.open_slide", open_slide)
    (tmp_path / "a.ndpi").write_bytes(b"")
    path = tmp_path / "a.ndpi.ndpa"
    path.write_text(ndpa(state("pin", "<x>10000</x><y>-20000</y>")))
    patient = Patient("p", {"wsi": Record(array=np.zeros((800, 1000, 3), "u1")), "d": Record(path)})
    target = target_view(patient.records["d"], patient.record().view(), {"tumour": 1})
    ys, xs = np.nonzero(target.read(Region((0, 0), (800, 1000))))
    assert (ys.tolist(), xs.tolist()) == ([400], [500])
    assert opened == [str(tmp_path / "a.ndpi")]


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (state("star", points((0, 0))), "'star' is not one of freehand"),
        (state("pin", "<x>0</x>"), "a pin lacks y"),
        (state("circle", "<x>0</x><y>0</y>"), "not a number"),
        (state("pin", "<x>0</x><y>0</y>", unit="feet"), "coordformat 'feet'"),
        (state("freehand", points((0, "a"), (1, 1), (2, 0))), "not a number"),
    ],
)
def test_wrong_ndpa(wrong, cause):
    document = ndpa(state("pin", "<x>0</x><y>0</y>"), wrong)
    with pytest.raises(AnnotationError, match=f"object 1: .*{cause}"):
        read_annotations(document, offset=SLIDE)
    assert len(read_annotations(document, offset=SLIDE, on_invalid="skip")) == 1


# ------------------------------------------------------------------------------ whose it is
@pytest.mark.parametrize("root", ["Overlays", "html", "svg"])
def test_unknown_xml_names_what_is_read(root):
    with pytest.raises(
        AnnotationError, match=rf"root is <{root}>; read are .*ASAP.*ImageScope.*NDPA"
    ):
        read_annotations(f"<{root}><Annotation/></{root}>")


def test_asap_elements_under_another_programs_root():
    inner = '<Coordinates><Coordinate Order="0" X="1" Y="2"/></Coordinates>'
    (one,) = read_annotations(
        f'<Annotations><Annotation Type="Dot" PartOfGroup="a">{inner}</Annotation></Annotations>'
    )
    assert (one.label, one.geometry.coords[0]) == ("a", (1, 2))
    named = (
        f'<ASAP_Annotations><Annotation Type="Dot" Name="b">{inner}</Annotation></ASAP_Annotations>'
    )
    assert read_annotations(named, class_property="Name").labels == ("b",)


def test_a_dataset_of_imagescope_files(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(scope(layer(region(0, SQUARE), Name="Tumor")))
    image = Record(array=np.zeros((64, 64, 3), "u1"))
    data = Dataset("x", [Patient("p", {"wsi": image, "drawn": Record(path)})])
    assert data["p"].record("drawn").annotations().labels == ("Tumor",)
