"""Layers for napari: its documented form, and every thing where it lies. napari not needed."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import shapely
import tifffile

from daskdmed import Annotations, heatmap, napari, open_slide, samples
from daskdmed.cohort.annotations import Annotation
from daskdmed.errors import GeometryError, UsageError
from daskdmed.store import add_pyramid, argmax_labels, write_labels

SIZE = 512


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("napari") / "slide.tif"
    return open_slide(samples.make_slide(path, SIZE, downsample=2, levels=3).path)


@pytest.fixture(scope="module")
def store(slide, tmp_path_factory):
    """Two values of windows of 48 pixels, 32 apart, of level 1."""
    out = tmp_path_factory.mktemp("napari") / "scores.zarr"

    def mean(windows):
        red = windows[..., 0].mean(axis=(1, 2)) / 255
        return np.stack([red, 1 - red], 1).astype(np.float32)

    heatmap(slide, mean, kernel_size=48, stride=32, level=1, out=out)
    add_pyramid(out, smallest=2, channels=["red", "other"])
    write_labels(out, argmax_labels(out), classes=["red", "other"])
    return out


def world(options, *index):
    """Where the centre of a cell lies."""
    return np.asarray(options["translate"]) + np.asarray(options["scale"]) * index


def test_a_slide_is_one_layer_with_its_levels(slide):
    ((data, options, kind),) = napari.layers(slide)
    assert kind == "image"
    assert options["name"] == "slide.tif"
    assert options["rgb"] is options["multiscale"] is True
    assert [level.shape for level in data] == [(*s[::-1], 3) for s in slide.level_dimensions]
    # nothing is computed, and blocks are what a viewer asks for
    assert all(dask.is_dask_collection(level) for level in data)
    np.testing.assert_array_equal(data[2].compute(), slide.to_dask(level=2).compute())
    # the middle of the first pixel is the origin, and lengths are in micrometers
    assert options["units"] == ("um", "um")
    np.testing.assert_allclose(world(options, 0, 0), 0)
    x, y = slide.mpp
    np.testing.assert_allclose(world(options, 100, 10), (100 * y, 10 * x))
    (again,) = napari.layers(slide.view(level=0))
    assert again[1]["multiscale"] is False
    assert again[0].shape == data[0].shape


def test_a_coarse_view_lies_where_the_slide_does(slide):
    """The middle of its first pixel is the middle of the pixels that it stands for."""
    ((data, options, _),) = napari.layers(slide.view(level=2))
    down = slide.level_downsamples[2]
    assert data.shape[:2] == tuple(round(SIZE / down) for _ in range(2))
    np.testing.assert_allclose(world(options, 0, 0), (down - 1) / 2 * slide.mpp[0])
    np.testing.assert_allclose(options["scale"], down * slide.mpp[0])


def test_a_heatmap_lies_where_its_windows_were(slide, store):
    image, red, other = napari.layers(slide, heatmap=store, limits=(0.2, 0.9), colormap="viridis")
    assert [layer[1]["name"] for layer in (red, other)] == ["red", "other"]
    down, mpp = slide.level_downsamples[1], slide.mpp[0]
    for number, (data, options, kind) in enumerate((red, other)):
        assert kind == "image"
        assert options["colormap"] == "viridis"
        assert options["contrast_limits"] == (0.2, 0.9)
        # window (2, 3) begins at (64, 96) of level 1 and is 48 wide
        middle = (np.array([64, 96]) + 24) * down - 0.5
        np.testing.assert_allclose(world(options, 2, 3), middle * mpp)
        assert options["multiscale"]
        assert data[1].shape == tuple(-(-n // 2) for n in data[0].shape)
        view = slide.view(level=1).read(napari_region((64, 96), (48, 48)))
        value = view[..., 0].mean() / 255
        assert float(data[0][2, 3].compute()) == pytest.approx([value, 1 - value][number], abs=1e-5)
    assert image[2] == "image"


def napari_region(origin, shape):
    from daskdmed import Region

    return Region(origin, shape)


def test_labels_lie_where_the_result_does(slide, store):
    """However they are given: what made them, or what is stored beside the result."""
    stored, made = (
        napari.layers(slide, labels=labels)[1]
        for labels in (f"{store}/labels/classes", argmax_labels(store))
    )
    wanted = napari.layers(slide, heatmap=store)[1][1]
    for data, options, kind in (stored, made):
        assert kind == "labels"
        finest = data[0] if options["multiscale"] else data
        assert finest.dtype.kind == "u"
        assert finest.shape == (8, 8)
        for name in ("scale", "translate", "units"):
            assert options[name] == wanted[name]
    with pytest.raises(UsageError, match="whole numbers, got float32"):
        napari.layers(slide, labels=store)


def test_any_other_array_lies_over_the_whole_slide(slide):
    mask = np.zeros((16, 8), bool)
    _, (data, options, kind) = napari.layers(slide, labels=mask)
    assert (kind, data.dtype) == ("labels", np.uint8)
    mpp = slide.mpp[0]
    np.testing.assert_allclose(options["scale"], (SIZE / 16 * mpp, SIZE / 8 * mpp))
    # its outer corners are the slide's
    np.testing.assert_allclose(world(options, -0.5, -0.5), -0.5 * mpp)
    np.testing.assert_allclose(world(options, 15.5, 7.5), (SIZE - 0.5) * mpp)


def test_without_an_mpp_the_world_is_in_pixels():
    ((data, options, _),) = napari.layers(np.zeros((30, 40, 3), np.uint8))
    assert "units" not in options
    assert options["scale"] == (1.0, 1.0)
    assert data.shape == (30, 40, 3)
    # grey, and channels that are no colours
    ((grey, options, _),) = napari.layers(np.zeros((30, 40), np.uint16))
    assert "rgb" not in options
    assert grey.shape == (30, 40)
    two = napari.layers(np.zeros((30, 40, 2), np.uint16))
    assert [layer[1]["name"] for layer in two] == ["image: 0", "image: 1"]
    assert {layer[1]["blending"] for layer in two} == {"additive"}


def test_channels_in_their_colours(tmp_path):
    path = tmp_path / "fluorescence.ome.tif"
    stored = np.random.default_rng(0).integers(0, 4000, (2, 256, 256), np.uint16)
    channels = {"Name": ["DAPI", "CD3"], "Color": [0x0050FFFF, -16776961]}  # RGBA, signed
    tifffile.imwrite(
        path, stored, tile=(64, 64), photometric="minisblack",
        metadata={"axes": "CYX", "Channel": channels},
    )  # fmt: skip
    slide = open_slide(path)
    found = napari.layers(slide)
    assert [o["name"].split(": ")[1] for _, o, _ in found] == list(slide.channels)
    for number, (data, options, _) in enumerate(found):
        wanted = [(0, 0x50 / 255, 1), (1, 0, 0)][number]
        assert options["colormap"]["colors"] == [[0, 0, 0], list(wanted)]
        first = data[0] if options["multiscale"] else data
        np.testing.assert_array_equal(first.compute(), slide.to_dask()[..., number].compute())


def test_annotations_become_shapes_and_points(slide, tmp_path):
    ring = shapely.box(10, 20, 110, 80).difference(shapely.box(30, 30, 60, 60))
    two = shapely.MultiPolygon([shapely.box(0, 0, 5, 5), shapely.box(9, 0, 12, 5)])
    drawn = Annotations(
        [
            Annotation(ring, "Tumor", name="one", colour=(200, 0, 0)),
            Annotation(two, "Stroma"),
            Annotation(shapely.LineString([(1, 2), (3, 4), (5, 9)])),
            Annotation(shapely.Point(7, 9), "Cell", kind="detection"),
        ]
    )
    drawn.to_geojson(tmp_path / "drawn.geojson")
    for given in (drawn, tmp_path / "drawn.geojson"):
        _, shapes, points = napari.layers(slide, annotations=given)
        data, options, kind = shapes
        assert kind == "shapes"
        assert options["shape_type"] == ["polygon", "polygon", "polygon", "path"]
        assert options["features"]["label"] == ["Tumor", "Stroma", "Stroma", ""]
        assert options["features"]["name"] == ["one", "", "", ""]
        assert options["edge_color"][0] == "#c80000"
        assert options["edge_color"][1] == options["edge_color"][2] != options["edge_color"][0]
        # the hole is cut out: its ring runs the other way round, and is reached by one way
        around = shapely.Polygon(data[0])
        assert around.buffer(0).area == pytest.approx(ring.area)
        assert abs(signed_area(data[0])) == pytest.approx(ring.area)
        assert data[3].tolist() == [[2, 1], [4, 3], [9, 5]]
        # places count from the corner of the first pixel, the world from its middle
        np.testing.assert_allclose(world(options, 0, 0), -0.5 * slide.mpp[0])
        data, options, kind = points
        assert kind == "points"
        assert data.tolist() == [[9, 7]]
        assert options["features"]["kind"] == ["detection"]
    assert len(napari.layers(slide, annotations=Annotations([]))) == 1


def signed_area(yx):
    y, x = np.append(yx, yx[:1], 0).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def test_a_viewer_gets_them(slide, store):
    class Viewer:
        def __init__(self):
            self.added = []

        def __getattr__(self, name):
            return lambda data, **options: self.added.append((name, data, options))

    viewer = Viewer()
    points = Annotations([Annotation(shapely.Point(1, 1))])
    again = napari.show(slide, viewer=viewer, heatmap=store, labels=argmax_labels(store),
                        annotations=points)  # fmt: skip
    assert again is viewer
    names = ["add_image"] * 3 + ["add_labels", "add_points"]
    assert [name for name, _, _ in viewer.added] == names
    assert viewer.added[1][2]["name"] == "red"


def test_without_napari_a_window_is_refused(slide, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "napari", None)
    with pytest.raises(UsageError, match="a window needs napari.*pip install"):
        napari.show(slide)


def test_what_is_no_plane():
    with pytest.raises((GeometryError, UsageError), match="axes"):
        napari.layers(np.zeros((3, 4, 5, 6), np.uint8))
