"""Colours by the profile of a file, exactly those of Pillow's ImageCms."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from daskdmed.cohort.record import Record
from daskdmed.core.region import Region
from daskdmed.errors import MissingExtraError, UnsupportedImageError, UsageError
from daskdmed.images import srgb
from daskdmed.images.filecache import cache
from daskdmed.images.opening import open_slide


@pytest.fixture(scope="module")
def profile(make):
    return make.scanner_profile()


@pytest.fixture(scope="module")
def scan(make, tmp_path_factory, profile):
    path = tmp_path_factory.mktemp("srgb") / "a.tif"
    levels = make.write_pyramid(
        path, (192, 256), 2, tile=(64, 64), compression="deflate", iccprofile=profile,
        resolution=(20000, 20000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path, levels


def by_pillow(values, profile):
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    done = ImageCms.profileToProfile(
        Image.fromarray(values), source, ImageCms.createProfile("sRGB"),
        ImageCms.getDefaultIntent(source), "RGB",
    )  # fmt: skip
    return np.asarray(done)


def test_pixels_are_those_of_pillow(scan, profile):
    path, levels = scan
    slide = open_slide(path, backend="tiff").to_srgb()
    for level, image in enumerate(levels):
        want = by_pillow(image, profile)
        assert np.abs(want.astype(int) - image).max() > 9  # it is another colour space
        size = slide.level_dimensions[level]
        assert np.array_equal(slide.read_region((0, 0), level, size), want)
        assert np.array_equal(slide.to_dask(level, chunks=64).compute(), want)
        out = np.zeros((*image.shape[:2], 6), np.uint8)[..., ::2]
        view = slide.view(level=level)
        assert view.read(Region.of(image.shape[:2]), out) is out
        assert np.array_equal(out, want)


def test_what_is_resampled_is_converted_behind(scan, profile):
    plain = open_slide(scan[0], backend="tiff")
    for arguments in ({"mpp": 0.7}, {"mpp": 2.0}):
        view = plain.view(**arguments)
        region = Region((3, 5), (30, 40))
        got = plain.to_srgb().view(**arguments).read(region)
        assert np.array_equal(got, by_pillow(view.read(region), profile))
    got = plain.to_srgb().get_thumbnail((50, 50))
    assert np.array_equal(got, by_pillow(plain.get_thumbnail((50, 50)), profile))


def test_the_background_is_converted_too(scan, profile):
    slide = open_slide(scan[0], backend="tiff").to_srgb()
    white = by_pillow(np.full((1, 1, 3), 255, np.uint8), profile)[0, 0].tolist()
    assert slide.read_region((-5, -5), 0, (3, 3))[0, 0].tolist() == white
    assert list(slide.background) == white


def test_long_blocks_are_converted_strip_by_strip(scan, profile, monkeypatch):
    monkeypatch.setattr(srgb, "_STRIP", 700)
    slide = open_slide(scan[0], backend="tiff").to_srgb()
    got = slide.read_region((0, 0), 0, slide.dimensions)
    assert np.array_equal(got, by_pillow(scan[1][0], profile))


def test_threads_share_a_transform(scan, profile):
    slide = open_slide(scan[0], backend="tiff").to_srgb()
    want = by_pillow(scan[1][0], profile)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: slide.read_region((0, 0), 0, slide.dimensions), range(12)))
    assert all(np.array_equal(one, want) for one in found)


def test_it_is_part_of_the_name_and_travels(scan, profile):
    plain = open_slide(scan[0], backend="tiff")
    slide = plain.to_srgb()
    assert slide != plain
    assert slide.token != plain.token
    assert slide.view().token != plain.view().token
    assert slide.to_dask().name != plain.to_dask().name
    assert slide.to_srgb() is slide
    assert slide.with_mpp(0.3).view(mpp=0.3).srgb
    twin = pickle.loads(pickle.dumps(slide))
    cache.clear()  # opened again, as a worker does
    assert (twin == slide, twin.background) == (True, slide.background)
    want = by_pillow(scan[1][1], profile)
    assert np.array_equal(twin.read_region((0, 0), 1, twin.level_dimensions[1]), want)


def test_a_record_asks_for_it(scan, profile):
    record = Record(scan[0], backend="tiff", color="srgb")
    assert record.open() == open_slide(scan[0], backend="tiff").to_srgb()
    assert record != Record(scan[0], backend="tiff")
    got = record.view(level=1).read(Region.of((96, 128)))
    assert np.array_equal(got, by_pillow(scan[1][1], profile))


def test_openslide_knows_the_profile(scan, profile):
    slide = open_slide(scan[0], backend="openslide").to_srgb()
    got = slide.read_region((0, 0), 0, slide.dimensions)
    assert np.array_equal(got, by_pillow(scan[1][0], profile))


def test_what_has_no_colours_is_refused(make, tmp_path, scan, profile):
    make.write_pyramid(tmp_path / "a.tif", (64, 64), 1, compression="deflate")
    with pytest.raises(UnsupportedImageError, match="holds no colour profile"):
        open_slide(tmp_path / "a.tif", backend="tiff").to_srgb()
    make.write_format(tmp_path / "grey.tif", "grey", 64, 64)
    with pytest.raises(UsageError, match="1 channels of uint8"):
        open_slide(tmp_path / "grey.tif").to_srgb()
    slide = open_slide(scan[0], backend="tiff")
    with pytest.raises(UsageError, match="all channels are needed"):
        slide.to_srgb().with_channels(0)
    with pytest.raises(UsageError, match="1 channels of uint8"):
        slide.with_channels(0).to_srgb()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    make.write_pyramid(tmp_path / "b.tif", (64, 64), 1, compression="deflate", iccprofile=lab)
    with pytest.raises(UnsupportedImageError, match="of no use for RGB"):
        open_slide(tmp_path / "b.tif", backend="tiff").to_srgb()


def test_without_pillow_the_extra_is_named(scan, monkeypatch):
    srgb._transform.cache_clear()
    srgb._known.clear()
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    monkeypatch.setitem(__import__("sys").modules, "PIL.ImageCms", None)
    with pytest.raises(MissingExtraError, match=r"daskdmed\[color\]"):
        open_slide(scan[0], backend="tiff").to_srgb()
