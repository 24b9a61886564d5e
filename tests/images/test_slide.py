"""`Slide`: OpenSlide's names and meanings, values without handles."""

from __future__ import annotations

import os
import pickle
import threading

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.cohort.record import Record
from daskdmed.core.region import Region
from daskdmed.errors import GeometryError, ImageError, ResolutionError, UsageError
from daskdmed.images.filecache import cache
from daskdmed.images.opening import open_slide, open_slides
from daskdmed.images.tiff import count_tiles


@pytest.fixture(scope="module")
def levels(make, tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "pyramid.tif"
    images = make.write_pyramid(
        path, compression="deflate", resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    return path, images


def padded(image, x, y, w, h):
    """What read_region shall give, the slow way."""
    out = np.full((h, w, image.shape[2]), 255, image.dtype)
    for row in range(max(0, y), min(image.shape[0], y + h)):
        x0, x1 = max(0, x), min(image.shape[1], x + w)
        if x0 < x1:
            out[row - y, x0 - x : x1 - x] = image[row, x0:x1]
    return out


def test_names_of_openslide(levels):
    path, _ = levels
    slide = open_slide(str(path), backend="tiff")
    assert slide.dimensions == (1536, 1024)
    assert slide.level_count == 3
    assert slide.level_dimensions == ((1536, 1024), (768, 512), (384, 256))
    assert slide.level_downsamples == (1.0, 2.0, 4.0)
    assert slide.mpp == (0.5, 0.5)
    assert slide.power is None
    assert slide.background == (255, 255, 255)
    assert [slide.get_best_level_for_downsample(d) for d in (0.5, 1, 1.9, 2, 3.99, 4, 99)] == [
        0, 0, 0, 1, 1, 2, 2,
    ]  # fmt: skip
    assert slide.properties["openslide.vendor"] == "generic-tiff"
    with pytest.raises(TypeError):
        slide.properties["a"] = "b"
    assert dict(slide.associated_images) == {}


@settings(max_examples=80)
@given(
    x=st.integers(-500, 2000),
    y=st.integers(-500, 1500),
    w=st.integers(0, 300),
    h=st.integers(0, 300),
    level=st.integers(0, 2),
)
def test_read_region(levels, x, y, w, h, level):
    path, images = levels
    slide = open_slide(path, backend="tiff")
    got = slide.read_region((x, y), level, (w, h))
    ratio = 2**level
    at_x, at_y = (int(np.floor(v / ratio + 0.5)) for v in (x, y))
    assert np.array_equal(got, padded(images[level], at_x, at_y, w, h))


def test_locations_of_level_pixels_come_back(make, tmp_path):
    """Whatever the ratio of the levels, a pixel's own level-0 location finds it again."""
    path = tmp_path / "odd.tif"
    make.write_pyramid(path, (1003, 1537), compression="deflate")
    slide = open_slide(path)
    for level, info in enumerate(slide.levels):
        whole = slide.read_region((0, 0), level, slide.level_dimensions[level])
        for row, column in ((0, 0), (100, 77), (info.shape[0] - 1, info.shape[1] - 1)):
            location = (round(column * info.downsample[1]), round(row * info.downsample[0]))
            assert np.array_equal(
                slide.read_region(location, level, (1, 1))[0, 0], whole[row, column]
            )


def test_read_region_refuses_nonsense(levels):
    slide = open_slide(levels[0])
    for size in ((-1, 5), (5, -1), (2**31, 2**31), (1.5, 2), (5,), "ab", None):
        with pytest.raises(GeometryError):
            slide.read_region((0, 0), 0, size)
    with pytest.raises(GeometryError, match="location"):
        slide.read_region((0.5, 0), 0, (5, 5))
    with pytest.raises(ResolutionError, match="levels 0 to 2"):
        slide.read_region((0, 0), 3, (5, 5))
    with pytest.raises(ValueError, match="level"):
        slide.read_region((0, 0), -1, (5, 5))
    assert slide.read_region((0, 0), 0, (0, 7)).shape == (7, 0, 3)
    far = slide.read_region((10**9, -(10**9)), 0, (3, 2))
    assert far.shape == (2, 3, 3)
    assert (far == 255).all()


def test_a_slide_is_a_value(levels):
    path, images = levels
    slide = open_slide(path)
    data = pickle.dumps(slide)
    assert len(data) < 5000
    copy = pickle.loads(data)
    assert copy == slide
    assert hash(copy) == hash(slide)
    assert copy.token == slide.token
    cache.clear()
    assert np.array_equal(copy.read_region((0, 0), 2, (384, 256)), images[2])
    with slide:
        pass
    assert len(cache) == 0
    assert np.array_equal(slide.read_region((0, 0), 2, (384, 256)), images[2])
    other = slide.with_mpp(0.25)
    assert other != slide
    assert other.token != slide.token
    assert other.mpp == (0.25, 0.25)
    assert slide.mpp == (0.5, 0.5)
    view = pickle.loads(pickle.dumps(slide.view(mpp=0.7)))
    assert view == slide.view(mpp=0.7)
    assert len(pickle.dumps(view)) < 1500


def test_ways_to_name_a_file(levels, monkeypatch):
    path, _ = levels
    slide = open_slide(str(path))
    assert open_slide(path) == slide
    assert open_slide(f"file://{path}") == slide
    monkeypatch.setenv("HOME", str(path.parent))
    assert open_slide("~/pyramid.tif") == slide
    monkeypatch.chdir(path.parent)
    assert open_slide("pyramid.tif") == slide


def test_remote(levels):
    path, images = levels
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/slides/p.tif", path.read_bytes())
    slide = open_slide("memory://slides/p.tif")
    assert slide.backend == "tiff"
    assert np.array_equal(slide.read_region((0, 0), 1, (768, 512)), images[1])
    assert np.array_equal(slide.to_dask(chunks=500).compute(), images[0])
    with pytest.raises(FileNotFoundError, match=r"memory://slides/gone\.tif"):
        open_slide("memory://slides/gone.tif")
    fs.rm("/slides", recursive=True)


def test_a_changed_file_is_noticed(make, tmp_path):
    path = tmp_path / "a.tif"
    make.write_format(path, "lzw")
    slide = open_slide(path)
    cache.clear()
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageError, match=r"a\.tif.*changed since"):
        slide.read_region((0, 0), 0, (5, 5))
    assert open_slide(path) != slide


def test_thumbnail(levels, cmu):
    slide = open_slide(levels[0])
    with count_tiles() as count:
        small = slide.get_thumbnail((200, 200))
    assert small.shape == (133, 200, 3)
    assert set(count.by_level) == {2}
    mean = levels[1][0].reshape(128, 8, 192, 8, 3).mean(axis=(1, 3))
    exact = slide.get_thumbnail((192, 128))
    assert np.abs(exact - levels[1][2].reshape(128, 2, 192, 2, 3).mean(axis=(1, 3))).max() <= 0.5
    assert mean.shape == exact.shape
    assert slide.get_thumbnail((5000, 5000)).shape == (1024, 1536, 3)
    real = open_slide(cmu)
    assert real.get_thumbnail((300, 100)).shape == (100, 75, 3)
    assert real.get_thumbnail((1, 1)).shape == (1, 1, 3)
    with pytest.raises(GeometryError, match="positive"):
        slide.get_thumbnail((0, 5))


def test_repr(levels, qptiff):
    for slide in (open_slide(levels[0]), open_slide(qptiff)):
        assert f"{slide.dimensions[0]} x {slide.dimensions[1]}" in repr(slide)
        html = slide._repr_html_()
        assert html.count("<tr>") == 1 + slide.level_count
        assert "data:image/png;base64," in html
        assert slide.uri.rsplit("/", 1)[-1] in html


def test_repr_escapes(make, tmp_path):
    path = tmp_path / "<b>.tif"
    make.write_format(path, "lzw")
    assert "<b>.tif" not in open_slide(path)._repr_html_()


def test_repr_survives_a_broken_tile(make, tmp_path):
    path = tmp_path / "bad.tif"
    make.write_format(path, "jpeg-420")
    offsets, counts = make.page_facts(path)
    make.damage(path, offsets[0], bytes(counts[0]))
    assert "<table>" in open_slide(path)._repr_html_()


def test_resolutions(levels, make, tmp_path):
    path, images = levels
    slide = open_slide(path)
    assert slide.view(mpp=1.0) == slide.view(level=1)
    assert slide.view(mpp=1.0009).level == 1
    assert slide.view(mpp=1.0009).scale is None
    assert slide.view(mpp=1.002).scale is not None
    view = slide.view(mpp=1.5)
    assert (view.level, view.shape, view.downsample) == (1, (341, 512, 3), (3.0, 3.0))
    assert view.scale == (1.5, 1.5)
    assert view.mpp == (1.5, 1.5)
    assert view.tile_shape == (85, 107)
    assert slide.view(mpp=(1.0, 2.0)).shape == (256, 768, 3)
    assert slide.view(mpp=0.25).shape == (2048, 3072, 3)
    assert slide.with_mpp(0.25).view(mpp=1.0) == slide.with_mpp(0.25).view(level=2)
    two = slide.view(mpp=4.0)
    mean = images[2].reshape(128, 2, 192, 2, 3).mean(axis=(1, 3))
    assert np.array_equal(two.read(Region((0, 0), (128, 192))), np.rint(mean))
    with pytest.raises(ResolutionError, match="objective power"):
        slide.view(power=10)
    with pytest.raises(ResolutionError, match="exclude each other"):
        slide.view(level=1, mpp=1.0)
    with pytest.raises(UsageError, match="tile_error"):
        slide.view(tile_error="ignore")
    make.write_format(tmp_path / "plain.tif", "lzw")
    with pytest.raises(ResolutionError, match=r"plain\.tif.*with_mpp.*Record\(uri, mpp="):
        open_slide(tmp_path / "plain.tif").view(mpp=1.0)
    with pytest.raises(GeometryError, match="outside the view"):
        view.read(Region((0, 0), (342, 10)))
    with pytest.raises(GeometryError, match="out has shape"):
        view.read(Region((0, 0), (3, 3)), np.empty((3, 4, 3), np.uint8))


def test_power(cmu):
    slide = open_slide(cmu)
    view = slide.view(power=5)
    assert view.downsample == (4.0, 4.0)
    assert view.mpp == pytest.approx((1.996, 1.996))
    assert view.shape == (742, 555, 3)
    assert slide.view(power=20) == slide.view(level=0)


def test_many_slides_with_few_handles(make, tmp_path, monkeypatch):
    import dask

    make.write_format(tmp_path / "0.tif", "jpeg-420", 256, 256)
    data = (tmp_path / "0.tif").read_bytes()
    paths = [tmp_path / f"{i}.tif" for i in range(60)]
    for path in paths:
        path.write_bytes(data)
    handles = len(os.listdir("/proc/self/fd"))
    with dask.config.set({"daskdmed.images.open-files": 10}):
        slides = open_slides(paths)
        assert [s.uri for s in slides] == [str(p) for p in paths]
        assert len(cache) <= 10
        assert len(os.listdir("/proc/self/fd")) <= handles + 10
        first = slides[0].read_region((0, 0), 0, (256, 256))
        for slide in slides:
            assert np.array_equal(slide.read_region((0, 0), 0, (256, 256)), first)
        assert len(cache) <= 10


@pytest.mark.parametrize(
    ("origin", "shape", "kept"),
    [
        ((256, 0), (500, 511), ((256, 0), (512, 512))),  # whole tiles spare the copy
        ((256, 0), (300, 300), ((256, 0), (300, 300))),  # would be half as much again
        ((-5, 0), (500, 500), ((-5, 0), (500, 500))),  # background all around
    ],
)
def test_whole_tiles_are_kept_where_they_are_little_more(make, tmp_path, origin, shape, kept):
    path = tmp_path / "slide.tif"
    image = make.write_pyramid(path, tile=(256, 256), compression="deflate")[0]
    view = Record(path).view()
    region = Region(origin, shape)
    assert view.kept(region) == Region(*kept)
    whole = view.kept(region)
    got = view.read_padded(whole)[region.local_to(whole).slices]
    assert np.array_equal(got, padded(image, origin[1], origin[0], shape[1], shape[0]))


def test_threads(levels):
    path, images = levels
    slide = open_slide(path)
    errors = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            y, x = int(rng.integers(0, 800)), int(rng.integers(0, 1300))
            got = slide.read_region((x, y), 0, (200, 200))
            if not np.array_equal(got, images[0][y : y + 200, x : x + 200]):
                errors.append((seed, y, x))
            if rng.random() < 0.3:
                slide.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
