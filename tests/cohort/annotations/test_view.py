"""The table, and annotations as targets on the grids of images."""

from __future__ import annotations

import base64
import pickle
import re
import subprocess
import sys
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import shapely
from distributed import Client

from daskdmed import Annotations, Categories, Dataset, Patient, Record, open_slide
from daskdmed.cohort.annotations import Annotation, AnnotationView, CollatedView, target_view
from daskdmed.core.region import Region
from daskdmed.core.view import ImageView
from daskdmed.errors import AnnotationError, DatasetError, GeometryError, UsageError
from daskdmed.samples import CLASS_NAMES, MadeSlide, make_slide

CLASSES = {"benign": 1, "tumour": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeSlide:
    path = tmp_path_factory.mktemp("slides") / "a.tif"
    return make_slide(path, (3000, 2100), tile=256, levels=3, downsample=2)


@pytest.fixture(scope="module")
def truth(made: MadeSlide) -> Annotations:
    """Outlines of the ground truth, which nothing of this package has drawn."""
    names = {1: CLASS_NAMES[1], 2: CLASS_NAMES[2]}
    return Annotations.from_mask(made.class_map, made.cell, names)


def boxes(*labels: str | None) -> Annotations:
    return Annotations(
        Annotation(shapely.box(10 * k, 0, 10 * k + 5, 5), label) for k, label in enumerate(labels)
    )


# ----------------------------------------------------------------------------- the table
def test_the_table_is_a_value() -> None:
    table = boxes("a", "b", "a", None)
    assert len(table) == 4
    assert table.labels == ("a", "b")
    assert table.counts == {"a": 2, "b": 1, None: 1}
    assert table.areas.tolist() == [25] * 4
    assert table.area == 100
    assert table.bounds == (0, 0, 35, 5)
    assert table[1].label == "b"
    assert table[1:3].labels == ("b", "a")
    assert [a.label for a in table] == ["a", "b", "a", None]
    assert (table[:2] + table[2:]) == table
    assert repr(table) == "Annotations(4; a: 2, b: 1, None: 1)"
    twin = pickle.loads(pickle.dumps(table))
    assert twin == table
    assert hash(twin) == hash(table)
    assert table != table[::-1]
    assert table != boxes("a", "b", "b", None)
    assert Annotations().bounds is None
    assert Annotations() == Annotations([])
    with pytest.raises(AttributeError):
        table[0].label = "c"
    moved = table.translate(100, -1)
    assert moved.bounds == (100, -1, 135, 4)
    assert table.relabel({"a": "x", None: "y"}).labels == ("x", "b", "y")


def test_selecting() -> None:
    table = boxes("a", "b", "a", None) + Annotations(
        [Annotation(shapely.Polygon([(0, 20), (20, 20), (0, 40)]), "a", kind="detection")]
    )
    assert len(table.select("a")) == 3
    assert len(table.select(["a", None])) == 4
    assert len(table.select(None)) == 1
    assert len(table.select(["x"])) == 0
    assert len(table.select()) == 5
    assert len(table.select(lambda a: a.geometry.area > 30)) == 1
    assert len(table.select("a", kinds=["detection"])) == 1
    assert len(table.select(bounds=(12, 1, 22, 2))) == 2
    # its bounds touch, the triangle itself does not
    assert len(table.select(bounds=(15, 35, 20, 40))) == 0
    assert table.select("a")[0] is table[0]


def test_wrong_annotations() -> None:
    with pytest.raises(AnnotationError, match="shapely's, got list"):
        Annotation([(0, 0), (1, 1)])
    with pytest.raises(AnnotationError, match="label"):
        Annotation(shapely.Point(0, 0), 3)
    with pytest.raises(AnnotationError, match="colour"):
        Annotation(shapely.Point(0, 0), colour=(0, 0, 300))
    with pytest.raises(AnnotationError, match="item 0 is a Point"):
        Annotations([shapely.Point(0, 0)])
    for bad in (float("nan"), float("inf"), 1e300):
        with pytest.raises(AnnotationError, match="annotation 1 has the coordinate"):
            Annotations([Annotation(shapely.Point(0, 0)), Annotation(shapely.Point(bad, 0))])


def test_tokens_are_the_same_in_another_process() -> None:
    code = (
        "import shapely; from daskdmed.cohort.annotations import Annotation, Annotations;"
        "box = shapely.box(0.1, 0, 1, 1);"
        "print(Annotations([Annotation(box, 'a', properties={'x': [1]})]).token)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = Annotations([Annotation(shapely.box(0.1, 0, 1, 1), "a", properties={"x": [1]})])
    assert out.stdout.strip() == here.token


def test_html() -> None:
    import imagecodecs

    page = (
        boxes("a", "<b>") + Annotations([Annotation(shapely.Point(3, 3), colour=(1, 2, 3))])
    )._repr_html_()
    assert "&lt;b&gt;" in page
    assert "3 annotations<" in page
    assert "rgb(1,2,3)" in page
    code = re.search(r"base64,([^\"]+)", page)
    assert code is not None
    picture = imagecodecs.png_decode(base64.b64decode(code[1]))
    assert max(picture.shape) == 256
    assert (picture == 255).all(axis=-1).any()
    assert not (picture == 255).all()
    many = Annotations(Annotation(shapely.box(0, 0, 1, 1), f"label {k}") for k in range(40))
    assert "28 more labels" in many._repr_html_()
    assert "0 annotations" in Annotations()._repr_html_()


def test_importing_names_needs_no_extra() -> None:
    code = (
        "import sys; import daskdmed as d;"
        "import daskdmed.cohort.annotations as a;"
        "d.Annotations, d.read_annotations, a.target_view, a.PatchCoordinates;"
        "d.Record('a.geojson');"
        "print({'shapely', 'h5py', 'defusedxml', 'torch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("shapely", "annotations", "d.read_annotations('[]')"),
        ("defusedxml", "annotations", "d.read_annotations('<a/>')"),
        ("h5py", "hdf5", "annotations.PatchCoordinates.read('a.h5')"),
    ],
)
def test_a_missing_extra_is_named(module, extra, use) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; import daskdmed as d\n"
        "from daskdmed.cohort import annotations\n"
        f"try: {use}\nexcept d.DaskdmedError as e: print(type(e).__name__, e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith("MissingExtraError")
    assert f"daskdmed[{extra}]" in out.stdout


# --------------------------------------------------------------------------------- views
@pytest.mark.parametrize("level", [0, 1, 2])
def test_targets_lie_on_the_slide_at_every_level(made, truth, level) -> None:
    view = open_slide(made.path).view(level=level)
    target = truth.view(view, classes=CLASSES)
    assert isinstance(target, ImageView)
    assert target.shape == view.shape[:2]
    assert target.downsample == view.downsample
    assert target.tile_shape == view.tile_shape
    expected = made.mask(view.downsample[0])[: target.shape[0], : target.shape[1]]
    np.testing.assert_array_equal(target.read(Region((0, 0), target.shape)), expected)
    region = Region((123, 456), (100, 80))
    np.testing.assert_array_equal(target.read(region), expected[region.slices])
    # crops of the array are crops of the view
    lazy = truth.to_dask(view, 512, classes=CLASSES)
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), expected)


@pytest.mark.parametrize("mpp", [0.61, 1.3])
def test_targets_between_levels(made, truth, mpp) -> None:
    view = open_slide(made.path).view(mpp=mpp)
    assert view.downsample[0] not in (1, 2, 4)
    target = truth.view(view, classes=["benign", "tumour"])
    at = [(np.arange(n) + 0.5) * d for n, d in zip(target.shape, target.downsample)]
    rows, columns = ((a // made.cell).astype(int) for a in at)
    limits = np.array(made.class_map.shape) - 1
    expected = made.class_map[np.ix_(np.minimum(rows, limits[0]), np.minimum(columns, limits[1]))]
    np.testing.assert_array_equal(target.read(Region((0, 0), target.shape)), expected)


def test_a_view_is_a_value(made, truth) -> None:
    view = open_slide(made.path).view(level=1)
    target = truth.view(view, classes=CLASSES)
    twin = pickle.loads(pickle.dumps(target))
    assert twin == target
    assert twin.token == target.token
    region = Region((10, 20), (300, 200))
    np.testing.assert_array_equal(twin.read(region), target.read(region))
    out = np.full(region.shape, 99, np.uint8)
    assert target.read(region, out) is out
    np.testing.assert_array_equal(out, target.read(region))
    others = [
        truth.view(view, classes={"benign": 2, "tumour": 1}),
        truth.view(view, classes=CLASSES, multichannel=True),
        truth.view(view, classes=CLASSES, all_touched=True),
        truth.view(view, classes=CLASSES, dtype=np.int16),
        truth[1:].view(view, classes=CLASSES),
        truth.view(open_slide(made.path).view(level=2), classes=CLASSES),
    ]
    assert len({target.token, *(v.token for v in others)}) == 7
    near = target.narrowed(region)
    assert near.token == target.token
    assert len(near.annotations) < len(truth)
    assert len(pickle.dumps(near)) < len(pickle.dumps(target))
    np.testing.assert_array_equal(near.read(region), target.read(region))
    for outside in (Region((-1, 0), (5, 5)), Region((0, 1498), (5, 5)), Region((0,), (5,))):
        with pytest.raises(GeometryError, match="outside"):
            target.read(outside)
    with pytest.raises(GeometryError, match="out has shape"):
        target.read(region, np.zeros((5, 5), np.uint8))


def test_channels_and_what_lies_outside(made, truth) -> None:
    view = open_slide(made.path).view(level=2)
    classes = Categories({"tissue": ["benign", "tumour"], "tumour": "tumour"}, background="first")
    target = truth.view(view, classes=classes, multichannel=True)
    assert target.shape == (*view.shape[:2], 3)
    assert target.background.tolist() == [1, 0, 0]
    pixels = target.read(Region((0, 0), target.shape[:2]))
    expected = made.mask(view.downsample[0])[: target.shape[0], : target.shape[1]]
    np.testing.assert_array_equal(pixels[..., 0], expected == 0)
    np.testing.assert_array_equal(pixels[..., 1], expected > 0)
    np.testing.assert_array_equal(pixels[..., 2], expected == 2)
    assert truth.view(view, classes=CLASSES).background.shape == ()
    lazy = truth.to_dask(view, 128, classes=classes, multichannel=True)
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), pixels)


def test_the_array_is_aligned_block_for_block(made, truth) -> None:
    slide = open_slide(made.path)
    for level, chunks in [(0, 700), (1, (512, 300)), (2, -1)]:
        image = slide.to_dask(level=level, chunks=chunks)
        for how in (chunks, image.chunks):
            target = truth.to_dask(slide.view(level=level), how, classes=CLASSES)
            assert target.chunks == image.chunks[:2]
    again = truth.to_dask(slide.view(level=2), -1, classes=CLASSES)
    assert again.name == target.name
    assert again.name != truth.to_dask(slide.view(level=2), 256, classes=CLASSES).name
    image = slide.to_dask(level=2, chunks=256)
    target = truth.to_dask(slide.view(level=2), image.chunks, classes=CLASSES)
    tumour = da.where(target[..., None] == 2, image, 0)
    got = tumour.compute(scheduler="threads")
    mask = made.mask(slide.view(level=2).downsample[0])[: got.shape[0], : got.shape[1]]
    assert not got[mask != 2].any()
    assert got[mask == 2].any()
    view = slide.view(level=2)
    for wrong in (0, "x", (1, 2, 3), 1.5):
        with pytest.raises(UsageError, match="chunks"):
            truth.to_dask(view, wrong, classes=CLASSES)
    with pytest.raises(GeometryError, match="add up"):
        truth.to_dask(view, ((5, 5), (5, 5)), classes=CLASSES)


@pytest.mark.cluster
def test_on_a_cluster_the_table_travels_apart_from_the_blocks(made, truth) -> None:
    view = open_slide(made.path).view(level=0)
    lazy = truth.to_dask(view, 512, classes=CLASSES)
    with Client(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None):
        got = lazy.compute()
    np.testing.assert_array_equal(got, made.mask(1.0)[: got.shape[0], : got.shape[1]])


def test_only_planes_can_be_painted(truth) -> None:
    volume = Record(array=np.zeros((4, 30, 30), np.uint8), spatial_ndim=3).view()
    with pytest.raises(GeometryError, match="3 spatial axes"):
        truth.view(volume, classes=CLASSES)
    with pytest.raises(UsageError, match=r"slide\.view"):
        truth.view(np.zeros((3, 3)), classes=CLASSES)


# ------------------------------------------------------------------------------- records
def test_records_of_annotations(tmp_path: Path, made, truth) -> None:
    path = tmp_path / "a.geojson"
    truth.to_geojson(path)
    for record in (Record(path), Record(annotations=truth)):
        assert record.is_annotations
        assert record.annotations() == truth
        assert pickle.loads(pickle.dumps(record)) == record
        assert hash(record) == hash(pickle.loads(pickle.dumps(record)))
        for use in (record.open, record.view):
            with pytest.raises(DatasetError, match="target_view"):
                use()
        patient = Patient("p", {"wsi": Record(made.path), "drawn": record})
        assert patient.record("drawn").name == "drawn"
        assert patient.record("drawn").annotations() == truth
        view = patient.record().view(level=1)
        target = target_view(patient.record("drawn"), view, CLASSES)
        assert isinstance(target, AnnotationView)
        assert target == truth.view(view, classes=CLASSES)
        with pytest.raises(UsageError, match=r"needs classes=.*benign"):
            target_view(record, view)
        assert "Annotations" in repr(record) or "geojson" in repr(record)
        assert Dataset("d", [patient])._repr_html_()
    assert Record(annotations=truth) == Record(annotations=truth)
    assert Record(annotations=truth) != Record(annotations=truth[1:])
    assert Record(annotations=truth).key == Record(annotations=truth).key
    for name in ("a.json", "a.XML", "a.geojson.gz", "x/a.xml.gz"):
        assert Record(name).is_annotations
    for record in (Record("a.svs"), Record(array=np.zeros((9, 9))), Record("a.xml", backend="x")):
        assert not record.is_annotations
        with pytest.raises(DatasetError, match="is an image"):
            record.annotations()
    with pytest.raises(DatasetError, match="takes Annotations, got list"):
        Record(annotations=[1])
    with pytest.raises(DatasetError, match="uri and annotations"):
        Record("a.svs", annotations=truth)
    with pytest.raises(DatasetError, match="backend"):
        Record(annotations=truth, backend="tiff")


def test_the_image_of_a_patient_is_never_its_annotations(truth) -> None:
    drawn = Record(annotations=truth)
    patient = Patient("p", {"drawn": drawn, "slide": Record("a.svs"), "more": Record("b.xml")})
    assert patient.record().uri == "a.svs"
    assert Patient("p", {"drawn": drawn}).record().is_annotations
    several = Patient("p", {"a": Record("a.svs"), "b": Record("b.svs"), "drawn": drawn})
    with pytest.raises(DatasetError, match=r"2 records.*\['a', 'b'\]"):
        several.record()
    with pytest.raises(DatasetError, match=r"no record 'x'.*'drawn'"):
        several.record("x")


def test_manifests_hold_files_of_annotations(tmp_path: Path, truth) -> None:
    truth.to_geojson(tmp_path / "a.geojson")
    records = {"wsi": Record(tmp_path / "a.svs"), "drawn": Record(tmp_path / "a.geojson")}
    Dataset("d", [Patient("p", records)]).to_manifest(tmp_path / "d.csv")
    again = Dataset.from_manifest(tmp_path / "d.csv")
    assert again.patients[0].record("drawn").annotations() == truth
    with pytest.raises(DatasetError, match="to_geojson"):
        Dataset("d", [Patient("p", {"drawn": Record(annotations=truth)})]).to_manifest(
            tmp_path / "e.json"
        )


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    boxes("a").to_geojson(path)
    record = Record(path)
    assert len(record.annotations()) == 1
    assert record.annotations() is record.annotations()
    boxes("a", "b").to_geojson(path)
    assert len(record.annotations()) == 2


# ---------------------------------------------------------------------------- label maps
def test_label_maps_as_targets(made) -> None:
    view = open_slide(made.path).view(level=2)
    labels = made.mask(view.downsample[0])[: view.shape[0], : view.shape[1]]
    record = Record(array=labels)
    assert target_view(record, view).shape == labels.shape
    classes = Categories({"tissue": [1, 2], "tumour": 2}, background="last")
    target = target_view(record, view, classes)
    assert isinstance(target, CollatedView)
    assert isinstance(target, ImageView)
    whole = Region((0, 0), labels.shape)
    np.testing.assert_array_equal(target.read(whole), labels)
    many = target_view(record, view, classes, multichannel=True)
    assert many.shape == (*labels.shape, 3)
    np.testing.assert_array_equal(many.read(whole), classes.collate(labels, multichannel=True))
    assert many.background.tolist() == [0, 0, 1]
    assert target.background.shape == ()
    assert len({target.token, many.token, target_view(record, view, [1]).token}) == 3
    twin = pickle.loads(pickle.dumps(many))
    assert twin == many
    part = Region((5, 6), (7, 8))
    np.testing.assert_array_equal(twin.narrowed(part).read(part), many.read(whole)[5:12, 6:14])
    # one channel counts as none, several are masks
    one = target_view(Record(array=labels[..., None]), view, [1, 2])
    np.testing.assert_array_equal(one.read(whole), labels)
    stack = np.stack([labels == k for k in range(3)], axis=-1)
    masks = target_view(Record(array=stack), view, [2, (0, 1)])
    np.testing.assert_array_equal(masks.read(whole)[..., 0], labels == 2)
    np.testing.assert_array_equal(masks.read(whole)[..., 1], labels < 2)


def test_label_maps_that_do_not_fit(made) -> None:
    view = open_slide(made.path).view(level=2)
    with pytest.raises(DatasetError, match=r"the extents \[\(5, 5\)\]"):
        target_view(Record(array=np.zeros((5, 5), np.uint8)), view)
    floats = Record(array=np.zeros(view.shape[:2], np.float32))
    with pytest.raises(UsageError, match="integers"):
        target_view(floats, view, [1])
    fits = Record(array=np.zeros(view.shape[:2], np.uint8))
    with pytest.raises(UsageError, match="needs classes"):
        target_view(fits, view, multichannel=True)
    with pytest.raises(UsageError, match="all_touched"):
        target_view(fits, view, [1], all_touched=True)
    with pytest.raises(UsageError, match="label map"):
        target_view(fits, view, {"a": "tumour"})
    same = target_view(fits, view, {"a": [1, 2], "b": 3})
    assert same.token == target_view(fits, view, Categories({"a": [1, 2], "b": 3})).token
    # a slide that is a label map: the level of the same extent is taken
    assert target_view(Record(made.path), view).shape[:2] == view.shape[:2]


def test_volumes_of_labels() -> None:
    volume = np.random.default_rng(0).integers(0, 4, (6, 8, 9)).astype(np.int16)
    image = Record(array=np.zeros((6, 8, 9), np.float32), spatial_ndim=3).view()
    target = target_view(Record(array=volume), image, [(1, 2), 3], multichannel=True)
    assert target.shape == (6, 8, 9, 2)
    got = target.read(Region((1, 2, 3), (2, 3, 4)))
    np.testing.assert_array_equal(got[..., 1], volume[1:3, 2:5, 3:7] == 3)
