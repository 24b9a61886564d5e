"""Results for other programs: TIFF pyramids, contours, tiles; each lies where it should."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import daskdmed
from daskdmed import heatmap
from daskdmed.cohort.record import Record
from daskdmed.errors import BudgetError, GeometryError, StoreError, UsageError
from daskdmed.samples import make_slide
from daskdmed.store.export import geojson, tiff
from daskdmed.store.export.geojson import export_contours, export_tiles, heatmap_contours
from daskdmed.store.export.polygons import isolines
from daskdmed.store.export.tiff import export_tiff
from daskdmed.store.ngff.pyramid import add_pyramid
from daskdmed.store.ngff.reduction import reduce_block
from daskdmed.store.results.finished import Heatmap, open_heatmap
from daskdmed.store.results.georeference import Georeference

shapely = pytest.importorskip("shapely")


def corner(windows):
    return windows[:, 0, 0].astype(np.float32)


def pair(windows):
    return np.stack([corner(windows), -corner(windows)], 1)


IMAGE = (np.mgrid[:600, :900][0] * 1000 + np.mgrid[:600, :900][1]).astype(np.float32)


@pytest.fixture
def stored(tmp_path):
    """A hole of windows that were not computed, an image that ends amid a window."""
    out = tmp_path / "a.zarr"
    mask = np.ones((60, 90))
    mask[20:31, 40:55] = 0
    heatmap(Record(array=IMAGE[:595, :893], mpp=(0.5, 0.25)), corner, kernel_size=10, out=out,
            mask=mask, block_windows=16)  # fmt: skip
    return out


@pytest.fixture
def vectors(tmp_path):
    out = tmp_path / "v.zarr"
    heatmap(Record(array=IMAGE, mpp=0.5), pair, kernel_size=20, stride=10, out=out)
    add_pyramid(out, channels=["up", "down"])
    return out


def large():
    """Big enough for several tiles and levels."""
    rng = np.random.default_rng(1)
    values = rng.random((700, 1100)).astype(np.float32)
    values[300:380, 500:700] = np.nan
    place = Georeference((4, 4), (2, 2), (1.0, 1.0), (0.5, 0.5))
    return values, place


def quantised(values, low, high):
    scaled = np.clip(1 + np.rint((values.astype(float) - low) / (high - low) * 254), 1, 255)
    return np.where(np.isnan(values), 0, scaled).astype(np.uint8)


# ------------------------------------------------------------------------------- TIFF
def test_a_plain_pyramid_opens_in_openslide(tmp_path):
    openslide = pytest.importorskip("openslide")
    values, place = large()
    path = tmp_path / "a.tif"
    export_tiff(values, path, georeference=place, vmin=0, vmax=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((1100, 700), (550, 350), (275, 175))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1.0, rel=1e-6)
        expected = values
        for level, (width, height) in enumerate(slide.level_dimensions):
            found = np.asarray(slide.read_region((0, 0), level, (width, height)))[..., 0]
            np.testing.assert_array_equal(found, quantised(expected, 0, 1))
            expected = reduce_block(expected, (2, 2), "mean")
    own = daskdmed.open_slide(path)
    assert own.level_count == 3
    assert own.mpp == pytest.approx((1.0, 1.0), rel=1e-6)


def test_where_a_tiff_lies(stored, tmp_path):
    path = tmp_path / "a.tif"
    export_tiff(stored, path, dtype="float32")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        np.testing.assert_array_equal(page.asarray(), open_heatmap(stored).read(_all(stored))[0])
        # pixels per centimetre: a pixel is ten pixels of (x, y) = (0.5, 0.25) micrometers
        assert np.divide(*page.tags["XResolution"].value) == pytest.approx(2000)
        assert np.divide(*page.tags["YResolution"].value) == pytest.approx(4000)
        assert page.tags["ResolutionUnit"].value == 3
        facts = json.loads(page.description)
        assert facts["level0_extent"] == {"y": [0, 600], "x": [0, 900]}
    place = Georeference((20, 30), (10, 10), (4.0, 4.0), (0.5, 0.5))
    export_tiff(np.ones((3, 3)), path, georeference=place, overwrite=True)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        # the first cell begins half of (kernel - stride) from the corner: 5 and 2.5 micrometers
        assert np.divide(*page.tags["XPosition"].value) * 1e4 == pytest.approx(5)
        assert np.divide(*page.tags["YPosition"].value) * 1e4 == pytest.approx(2.5)
        assert json.loads(page.description)["level0_extent"]["x"] == [40, 160]
    bare = Georeference((4, 4), (8, 8), (1.0, 1.0))
    export_tiff(np.ones((3, 3)), path, georeference=bare, overwrite=True)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].tags["ResolutionUnit"].value == 1
        assert "XPosition" not in file.pages[0].tags


def _all(store):
    from daskdmed.core.region import Region

    return Region((0, 0), open_heatmap(store).counts)


def test_several_channels_become_an_ome_tiff(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(tiff, "_SMALLEST", 16)
    path = tmp_path / "v.ome.tif"
    export_tiff(vectors, path, dtype="float32")
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        series = file.series[0]
        assert series.axes == "CYX"
        values = zarr.open_group(vectors)["0"][...]
        assert len(series.levels) == 4
        for level in series.levels:
            np.testing.assert_allclose(level.asarray(), values, rtol=1e-6)
            values = reduce_block(values, (1, 2, 2), "mean")
        text = file.ome_metadata
        for part in ('Name="up"', 'Name="down"', 'PhysicalSizeX="5.0"', 'PositionX="4.75"'):
            assert part in text
    export_tiff(vectors, tmp_path / "one.tif", channel=1, vmin=-600_000, vmax=0)
    one = tifffile.imread(tmp_path / "one.tif")
    expected = quantised(zarr.open_group(vectors)["0"][1], -600_000, 0)
    np.testing.assert_array_equal(one, expected)


def test_colours(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import colormaps

    values, place = large()
    path = tmp_path / "a.tif"
    export_tiff(values, path, georeference=place, cmap="magma")
    found = tifffile.imread(path)
    assert found.shape == (700, 1100, 3)
    assert (found[300:380, 500:700] == 255).all()
    low, high = np.nanmin(values), np.nanmax(values)
    expected = np.asarray(colormaps["magma"]((values - low) / (high - low)))[..., :3] * 255
    known = ~np.isnan(values)
    assert np.abs(found[known] - expected[known]).max() < 4
    if pytest.importorskip("openslide"):
        import openslide

        with openslide.OpenSlide(path) as slide:
            assert slide.level_count == 3


def test_a_file_that_cannot_be_written_leaves_what_was_there(stored, tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    export_tiff(stored, path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="overwrite=True"):
        export_tiff(stored, path)

    def full(*args, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tifffile.TiffWriter, "write", full)
        with pytest.raises(StoreError, match="disk is full"):
            export_tiff(stored, path, overwrite=True)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "a.zarr"]


def test_wrong_arguments_of_tiffs(stored, vectors, tmp_path):
    path = tmp_path / "x.tif"
    volume = Georeference((1, 1, 1), (1, 1, 1), (1.0, 1.0, 1.0))
    for what, arguments, error, match in (
        (stored, {"dtype": "int8"}, UsageError, "dtype must be"),
        (stored, {"channel": 2}, UsageError, "has one value"),
        (vectors, {"channel": 2}, UsageError, "has 2 value"),
        (vectors, {"cmap": "magma"}, UsageError, "one channel"),
        (stored, {"cmap": "no such"}, UsageError, "no colour map"),
        (stored, {"vmin": 5, "vmax": 1}, UsageError, "rising"),
        (np.ones((3, 3)), {}, UsageError, "nobody knows"),
        (np.ones(3), {"georeference": volume}, UsageError, "no result over 3 axes"),
        (np.ones((3, 3, 3)), {"georeference": volume}, GeometryError, "choose a plane"),
        (3, {}, UsageError, "must be a path"),
        (tmp_path / "nothing.zarr", {}, StoreError, "cannot open"),
    ):
        with pytest.raises(error, match=match):
            export_tiff(what, path, **arguments)
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="no result of this library"):
        export_tiff(tmp_path / "foreign.zarr", path)
    assert not path.exists()


# -------------------------------------------------------------------------- contours
def painted(polygons, shape, fine=1):
    """Which points lie in a polygon: the centres of a grid `fine` times as fine as cells."""
    y, x = ((np.arange(n * fine) + 0.5) / fine for n in shape)
    grid = np.meshgrid(y, x, indexing="ij")
    union = shapely.union_all(polygons) if polygons else shapely.Polygon()
    return shapely.contains_xy(union, grid[0].ravel(), grid[1].ravel()).reshape(grid[0].shape)


@settings(max_examples=150)
@given(st.data())
def test_isolines_hold_the_centres_above_the_level(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))
    choices = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nan])
    values = data.draw(hnp.arrays(np.float32, shape, elements=choices))
    level = data.draw(st.sampled_from([0.25, 0.4, 0.5, 1.0]))
    polygons = isolines(values, level)
    assert all(p.is_valid for p in polygons)
    union = shapely.union_all(polygons) if polygons else shapely.Polygon()
    # they do not overlap
    assert sum(p.area for p in polygons) == pytest.approx(union.area, abs=1e-9)
    for index in np.ndindex(*shape):
        centre = shapely.Point(index[0] + 0.5, index[1] + 0.5)
        value = values[index]
        if np.isnan(value) or value < level:
            assert not union.contains(centre) or union.boundary.distance(centre) < 1e-6
        elif value > level:
            assert union.contains(centre)
    height, width = shape
    assert union.is_empty or shapely.box(-1e-9, -1e-9, height + 1e-9, width + 1e-9).contains(union)


def test_isolines_run_where_interpolation_says():
    values = np.tile(np.arange(6.0), (4, 1))
    (polygon,) = isolines(values, 2.25)
    # centres are at 0.5, so that 2.25 is at 2.75; the far side ends at the cells' border
    assert polygon.bounds == pytest.approx((0, 2.75, 4, 6), abs=1e-6)
    ring = np.zeros((7, 7))
    ring[1:6, 1:6] = 1
    ring[3, 3] = 0
    (polygon,) = isolines(ring, 0.5)
    assert len(polygon.interiors) == 1
    assert isolines(np.zeros((3, 3)), 0.5) == []
    assert isolines(np.full((3, 3), np.nan), 0.5) == []
    everything = shapely.union_all(isolines(np.ones((3, 4)), 0.5))
    assert everything.area == pytest.approx(12, rel=0.05)
    assert isolines(np.array([[np.inf, 0.0]]), 0.5)


@pytest.mark.parametrize("smooth", [True, False])
def test_contours_lie_on_the_slide(tmp_path, smooth):
    """The contour of a model that finds a square finds the square."""
    image = np.zeros((640, 960), np.float32)
    image[160:320, 400:720] = 1
    out = tmp_path / "a.zarr"
    heatmap(Record(array=image), lambda w: w.mean(axis=(1, 2)), kernel_size=32, stride=16, out=out)
    shapes = heatmap_contours(out, 0.5, smooth=smooth)
    (shape,) = shapes
    assert shape.label == "heatmap"
    assert shape.geometry.bounds == pytest.approx((400, 160, 720, 320), abs=9)
    square = shapely.box(400, 160, 720, 320)
    assert shape.geometry.intersection(square).area > 0.97 * square.area
    path = tmp_path / "a.geojson"
    assert export_contours(out, path, [0.2, 0.5, 0.8], smooth=smooth, colors=["FF0000"]) == 3
    features = json.loads(path.read_text())["features"]
    assert [f["properties"]["measurements"]["threshold"] for f in features] == [0.2, 0.5, 0.8]
    assert features[0]["properties"]["classification"] == {
        "name": "heatmap >= 0.2",
        "color": [255, 0, 0],
    }
    read = daskdmed.cohort.annotations.read_annotations(path)
    assert len(read) == 3
    outer, middle, inner = (s.geometry.buffer(1e-6) for s in read)
    assert outer.contains(middle)
    assert middle.contains(inner)
    assert len(heatmap_contours(out, 0.5, min_area=1e6)) == 0


def test_contours_are_clipped_and_holes_stay_holes(stored):
    shapes = heatmap_contours(stored, -1)
    union = shapely.union_all([s.geometry for s in shapes])
    assert union.bounds == pytest.approx((0, 0, 893, 595), abs=1e-6)
    hole = shapely.box(400 + 15, 200 + 15, 550 - 15, 310 - 15)
    assert not union.intersects(hole)
    exact = shapely.union_all([s.geometry for s in heatmap_contours(stored, -1, smooth=False)])
    known = np.argwhere(np.isfinite(zarr.open_group(stored)["0"][...]))
    boxes = [shapely.box(10 * x, 10 * y, 10 * x + 10, 10 * y + 10) for y, x in known]
    cells = shapely.union_all(boxes)
    expected = cells & shapely.box(0, 0, 893, 595)
    assert exact.symmetric_difference(expected).area == pytest.approx(0, abs=1e-6)


def test_contours_of_channels(vectors):
    shapes = heatmap_contours(vectors, 1000.0)
    assert shapes.labels == ("up",)
    shapes = heatmap_contours(vectors, -1e9, channel=-1)
    assert shapes.labels == ("down",)
    lazy = daskdmed.store.results.finished.open_heatmap(vectors).lazy()
    assert len(heatmap_contours(lazy, 1000.0)) == 1  # the array knows its place


def test_wrong_contours(stored, monkeypatch, tmp_path):
    for arguments, match in (
        ({"thresholds": []}, "thresholds must be"),
        ({"thresholds": [np.nan]}, "thresholds must be"),
        ({"thresholds": "high"}, "thresholds must be"),
        ({"channel": []}, "at least one"),
        ({"channel": 3}, "has one value"),
        ({"colors": ["FF0000", "00FF00"]}, "one entry per channel"),
    ):
        with pytest.raises(UsageError, match=match):
            heatmap_contours(stored, **arguments)
    monkeypatch.setattr(geojson, "_MOST_CELLS", 100)
    with pytest.raises(BudgetError, match="coarser"):
        heatmap_contours(stored)
    with pytest.raises(BudgetError):
        export_contours(stored, tmp_path / "a.geojson")
    assert not (tmp_path / "a.geojson").exists()


# ----------------------------------------------------------------------------- tiles
@pytest.mark.parametrize("edge", ["pad", "shift", "drop"])
@pytest.mark.parametrize("extent", ["window", "cell"])
def test_one_tile_per_window(tmp_path, edge, extent):
    made = make_slide(tmp_path / "s.tif", (700, 500), tile=128, levels=2)
    out = tmp_path / "a.zarr"
    kernel, stride = (24, 32), (16, 24)
    values = heatmap(
        made.path, lambda w: w[:, 0, 0, 0], kernel_size=kernel, stride=stride, level=1,
        edge=edge, out=out,
    ).compute()  # fmt: skip
    path = tmp_path / "a.geojson"
    assert export_tiles(out, path, extent=extent) == values.size
    slide = daskdmed.open_slide(made.path)
    picture = slide.read_region((0, 0), 1, slide.level_dimensions[1])
    down = slide.levels[1].downsample
    for number, feature in enumerate(json.loads(path.read_text())["features"]):
        row, column = divmod(number, values.shape[1])
        ring = np.array(feature["geometry"]["coordinates"][0])
        (left, top), (right, bottom) = ring.min(0), ring.max(0)
        assert feature["properties"]["objectType"] == "tile"
        value = feature["properties"]["measurements"]["value"]
        assert value == values[row, column]
        assert 0 <= left < right <= 700
        assert 0 <= top < bottom <= 500
        if extent == "window":
            # the tile begins at the pixel that the model answered with
            assert picture[round(top / down[0]), round(left / down[1]), 0] == value
            if edge != "pad":
                assert right - left == pytest.approx(kernel[1] * down[1])
    read = daskdmed.cohort.annotations.read_annotations(path)
    assert len(read) == values.size


def test_tiles_of_what_was_computed(stored, vectors, tmp_path):
    values = zarr.open_group(stored)["0"][...]
    assert export_tiles(stored, tmp_path / "a.geojson") == np.isfinite(values).sum()
    high = float(np.nanquantile(values, 0.9))
    kept = export_tiles(stored, tmp_path / "b.geojson", above=high)
    assert kept == (values >= high).sum()
    empty = export_tiles(stored, tmp_path / "c.geojson", above=1e9)
    assert empty == 0
    assert json.loads((tmp_path / "c.geojson").read_text())["features"] == []
    export_tiles(vectors, tmp_path / "d.geojson")
    first = json.loads((tmp_path / "d.geojson").read_text())["features"][0]
    assert first["properties"]["measurements"] == {"up": 0.0, "down": 0.0}
    with pytest.raises(StoreError, match="overwrite=True"):
        export_tiles(vectors, tmp_path / "d.geojson")
    with pytest.raises(UsageError, match="extent must be"):
        export_tiles(vectors, tmp_path / "e.geojson", extent="slide")


def test_opened_results(stored, vectors):
    found = open_heatmap(stored)
    assert (found.channels, found.counts, found.shape0) == (1, (60, 90), (595, 893))
    assert found.lazy().shape == (60, 90)
    assert isinstance(open_heatmap(found), Heatmap)
    assert open_heatmap(zarr.open_group(vectors)).channel_names == ("up", "down")
    with pytest.raises(UsageError, match="say which"):
        open_heatmap(vectors).pick(None)
    place = found.georeference
    array = da.ones((4, 5))
    assert open_heatmap(array, place).read(_region()).shape == (1, 2, 2)
    assert open_heatmap(np.ones((4, 5)), place).lazy().shape == (4, 5)


def _region():
    from daskdmed.core.region import Region

    return Region((1, 1), (2, 2))
