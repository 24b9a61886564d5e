"""Overlays lie where the windows lie, and outlines where they were drawn."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from daskdmed import Annotations, heatmap, open_slide
from daskdmed.cohort.annotations import Annotation
from daskdmed.errors import GeometryError, MissingExtraError, UsageError
from daskdmed.plot import outlines, overlay
from daskdmed.samples import make_slide

pytest.importorskip("matplotlib")


def mean(windows):
    return windows.mean(axis=(1, 2, 3))


def two(windows):
    return np.stack([mean(windows), 255 - mean(windows)], 1)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "made.tif"
    return open_slide(make_slide(path, (1800, 1200), levels=2, mpp=0.5).path)


def drawn(figure):
    """The heatmap's image: the second of the first axes."""
    return figure.axes[0].images[1]


@pytest.mark.parametrize("keywords", [{}, {"level": 1}, {"mpp": 1.1}])
def test_stores_and_returned_arrays_know_their_place(slide, tmp_path, keywords):
    out = tmp_path / "a.zarr"
    found = heatmap(slide, mean, kernel_size=64, stride=32, out=out, **keywords)
    down = slide.view(**keywords).downsample
    rows, columns = found.shape
    left, top = 16 * down[1], 16 * down[0]
    extent = (left, left + columns * 32 * down[1], top + rows * 32 * down[0], top)
    for source in (out, str(out), found):
        image = drawn(overlay(slide, source))
        np.testing.assert_allclose(image.get_extent(), extent)
        np.testing.assert_allclose(image.get_array(), found.compute())


def test_results_in_memory_know_their_place_and_parts_of_them_do_not_lie(slide):
    found = heatmap(slide, two, kernel_size=100, stride=200)
    image = drawn(overlay(slide, found, channel=1))
    np.testing.assert_allclose(image.get_extent(), (-50, 1750, 1150, -50))
    np.testing.assert_allclose(image.get_array(), found[1].compute())
    np.testing.assert_allclose(drawn(overlay(slide, found[1])).get_extent(), (-50, 1750, 1150, -50))
    with pytest.raises(UsageError, match="channel="):
        overlay(slide, found)
    with pytest.raises(UsageError, match="2 values"):
        overlay(slide, found, channel=2)


def test_other_arrays(slide):
    values = np.random.default_rng(0).random((6, 9))
    assert drawn(overlay(slide, values)).get_extent() == [0, 1800, 1200, 0]
    placed = drawn(overlay(slide, values, kernel_size=100, downsample=2.0))
    assert tuple(placed.get_extent()) == (0, 1800, 1200, 0)
    with pytest.raises(GeometryError, match="rows, columns"):
        overlay(slide, np.zeros(3))
    with pytest.raises(UsageError, match="one value"):
        overlay(slide, values, channel=1)


def test_of_a_large_result_no_more_is_read_than_drawn(slide, tmp_path):
    import zarr

    out, big = tmp_path / "a.zarr", 5000
    heatmap(slide, mean, kernel_size=600, out=out)
    group = zarr.open_group(out, mode="r+")
    values = np.random.default_rng(0).random((big, 300), np.float32)
    values[7] = np.nan
    group.create_array("0", data=values, chunks=(500, 300), overwrite=True)
    image = drawn(overlay(slide, out, max_size=256))
    found = image.get_array()
    assert found.shape == (1000, 60)
    expected = np.nanmean(values.reshape(1000, 5, 60, 5).astype(np.float64), axis=(1, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert tuple(image.get_extent()) == (0, 600 * 300, 600 * big, 0)
    classes = drawn(overlay(slide, (values > 0.5).astype(np.uint8), max_size=256)).get_array()
    np.testing.assert_array_equal(classes, (values > 0.5)[::5, ::5])


def test_windows_that_were_not_computed_are_transparent(slide):
    values = np.full((4, 4), 0.5)
    values[1, 2] = np.nan
    image = drawn(overlay(slide, values, vmin=0, vmax=1))
    rgba = image.cmap(image.norm(image.get_array()))
    assert rgba[1, 2, 3] == 0
    assert rgba[0, 0, 3] == 1
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_the_figure_is_saved_and_drawn_on_given_axes(slide, tmp_path):
    from matplotlib.figure import Figure

    figure = overlay(slide, np.eye(4), title="a slide")
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert figure.axes[0].get_title() == "a slide"
    assert any("µm" in t.get_text() for t in figure.axes[0].texts)
    mine = Figure()
    ax = mine.add_subplot()
    assert overlay(slide.uri, np.eye(4), ax=ax) is mine


def test_a_notebook_that_has_drawn_nothing_before_shows_the_picture(slide):
    formatters = pytest.importorskip("IPython.core.formatters")
    found, _ = formatters.DisplayFormatter().format(overlay(slide, np.eye(4)))
    assert found["image/png"].startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(slide, monkeypatch):
    for module in ("matplotlib", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, module, None)
    for draw, what in ((overlay, np.eye(4)), (outlines, Annotations())):
        with pytest.raises(MissingExtraError, match=r"daskdmed\[plot\]"):
            draw(slide, what)


def pixels(figure):
    """What a figure looks like, (y, x, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def bare_axes(size):
    """Axes that fill their figure, one of its pixels for each of the slide's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size / 50, size / 50), dpi=50)
    return figure.add_axes((0, 0, 1, 1))


def test_outlines_lie_where_they_were_drawn_and_holes_stay_empty():
    shapely = pytest.importorskip("shapely")
    red, blue = (200, 0, 0), (0, 0, 200)
    outer = [(10, 10), (70, 20), (60, 80), (15, 70)]
    hole = [(30, 30), (50, 35), (45, 55), (28, 50)]
    parts = shapely.MultiPolygon([shapely.box(75, 5, 95, 25), shapely.box(70, 75, 95, 95)])
    # rings may turn either way in files
    for ring in (hole, hole[::-1]):
        holed = shapely.Polygon(outer, [ring])
        table = Annotations(
            [Annotation(holed, "a", colour=red), Annotation(parts, "b", colour=blue)]
        )
        ax = bare_axes(100)
        outlines(np.full((100, 100, 3), 255, np.uint8), table, fill=1, linewidth=0, ax=ax, title="")
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
        ax.get_legend().remove()
        ax.axis("off")
        found = pixels(ax.figure)
        columns, rows = np.meshgrid(np.arange(100) + 0.5, np.arange(100) + 0.5)
        expected = np.full((100, 100, 3), 255)
        edge = np.zeros((100, 100), bool)
        for shape, colour in ((holed, red), (parts, blue)):
            expected[shapely.contains_xy(shape, columns, rows)] = colour
            edge |= shapely.contains_xy(shape.boundary.buffer(1.5), columns, rows)
        np.testing.assert_array_equal(found[~edge], expected[~edge])


def test_outlines_of_lines_points_and_unknown_labels_over_what_axes_show(slide, tmp_path):
    shapely = pytest.importorskip("shapely")
    line, point = shapely.LineString([(0, 0), (900, 900)]), shapely.Point(1000, 300)
    table = Annotations([Annotation(line), Annotation(point, "cell")])
    table.to_geojson(tmp_path / "drawn.geojson")
    figure = overlay(slide, np.eye(4), title="a heatmap")
    (ax,) = figure.axes
    shown = len(ax.images)
    marks = len(ax.lines)
    assert outlines(None, tmp_path / "drawn.geojson", ax=ax) is figure
    assert (len(ax.images), ax.get_title()) == (shown, "a heatmap")
    np.testing.assert_array_equal(ax.patches[-1].get_path().vertices, [(0, 0), (900, 900)])
    np.testing.assert_array_equal(ax.lines[marks].get_xydata(), [(1000, 300)])
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"without a label", "cell"}
    assert outlines(slide, Annotations()).axes[0].get_legend() is None
    with pytest.raises(UsageError, match="give either"):
        outlines(None, table)
