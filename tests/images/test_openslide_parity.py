"""Pixels and properties are those of OpenSlide, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from daskdmed.images.opening import open_slide

openslide = pytest.importorskip("openslide")

NAMES = [
    "jpeg-444", "jpeg-422", "jpeg-420", "jpeg-rgb", "jpeg-grey", "jpeg-planar", "lzw",
    "lzw-predictor", "deflate", "zstd", "packbits", "none", "planar", "grey", "bigtiff",
]  # fmt: skip


def on_white(image) -> np.ndarray:
    """OpenSlide's RGBA as RGB on white."""
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return np.asarray(white)


def assert_same_everywhere(path, count=25, seed=0):
    """Random places at every level, the edges and the outside included."""
    slide, other = open_slide(path, backend="tiff"), openslide.OpenSlide(str(path))
    rng = np.random.default_rng(seed)
    assert slide.level_dimensions == other.level_dimensions
    assert slide.level_downsamples == pytest.approx(other.level_downsamples)
    for level, (width, height) in enumerate(other.level_dimensions):
        step = round(slide.level_downsamples[level])
        boxes = [(0, 0, width, height), (width - 30, height - 30, 60, 60), (-20, -30, 50, 70)]
        for _ in range(count):
            x, y = int(rng.integers(-200, width + 50)), int(rng.integers(-200, height + 50))
            boxes.append((x, y, int(rng.integers(1, 400)), int(rng.integers(1, 400))))
        for x, y, w, h in boxes:
            got = slide.read_region((x * step, y * step), level, (w, h))
            expected = on_white(other.read_region((x * step, y * step), level, (w, h)))
            if got.shape[2] == 1:
                ys, xs = np.mgrid[y : y + h, x : x + w]
                mask = (ys >= 0) & (xs >= 0) & (ys < height) & (xs < width)
                assert np.array_equal(got[mask], expected[mask][:, :1])
                assert (got[~mask] == 0).all()
            else:
                assert np.array_equal(got, expected), (level, x, y, w, h)
    other.close()


def test_real_slide(cmu):
    assert_same_everywhere(cmu, count=60)


def test_real_slide_as_an_array(cmu):
    slide = open_slide(cmu)
    other = openslide.OpenSlide(cmu)
    expected = on_white(other.read_region((0, 0), 0, other.dimensions))
    assert np.array_equal(slide.to_dask(chunks=700).compute(), expected)
    for name, image in other.associated_images.items():
        assert np.array_equal(slide.associated_images[name], on_white(image))
    assert set(slide.associated_images) == set(other.associated_images)


@pytest.mark.parametrize("name", NAMES)
def test_formats(make, tmp_path, name):
    assert set(NAMES) == set(make.WITH_OPENSLIDE)
    make.write_format(tmp_path / "image.tif", name)
    assert_same_everywhere(tmp_path / "image.tif", count=8)


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
def test_pyramid(make, tmp_path, compression):
    make.write_pyramid(tmp_path / "image.tif", compression=compression)
    assert_same_everywhere(tmp_path / "image.tif")


@pytest.mark.parametrize(("code", "subsampled"), [(33003, False), (33003, True), (33005, False)])
def test_aperio_jpeg_2000(make, tmp_path, code, subsampled):
    path = tmp_path / "image.svs"
    image = make.picture(500, 700)
    encode = make.jpeg2000_422 if subsampled else make.jpeg2000
    make.write_tiles(
        path, image, encode, code, compression=34712, photometric="rgb", description=make.APERIO
    )
    slide, other = open_slide(path, backend="tiff"), openslide.OpenSlide(str(path))
    assert slide.info.vendor == "aperio"
    assert (slide.mpp, slide.power) == ((0.2525, 0.2525), 40.0)
    got = slide.read_region((0, 0), 0, slide.dimensions).astype(int)
    expected = on_white(other.read_region((0, 0), 0, other.dimensions))
    # subsampled colours are converted by OpenJPEG, which rounds otherwise
    assert np.abs(got - expected).max() <= (1 if subsampled else 0)
    if code == 33005:
        assert np.array_equal(got, image)


def test_jfif_marker_does_not_decide_the_colours(make, tmp_path):
    import imagecodecs

    path = tmp_path / "image.tif"
    make.write_tiles(
        path,
        make.picture(500, 700),
        lambda t: imagecodecs.jpeg8_encode(t, level=90),
        compression="jpeg",
        photometric="rgb",
    )
    assert_same_everywhere(path, count=3)


def differences(slide, other):
    ours, theirs = dict(slide.properties), dict(other.properties)
    theirs.pop("openslide.quickhash-1", None)
    return {
        k: (ours.get(k), theirs.get(k)) for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)
    }


def test_properties_of_a_real_slide(cmu):
    assert differences(open_slide(cmu), openslide.OpenSlide(cmu)) == {}


@pytest.mark.parametrize(
    ("resolution", "unit"),
    [((40000, 40000), "CENTIMETER"), ((50800.5, 50000), "INCH"), ((3, 3), "NONE"), (None, None)],
)
def test_properties_of_made_slides(make, tmp_path, resolution, unit):
    options = {} if unit is None else {"resolution": resolution, "resolutionunit": unit}
    path = tmp_path / "image.tif"
    make.write_pyramid(
        path,
        (512, 768),
        description="a slide",
        datetime="2020:01:02 03:04:05",
        software="the maker",
        **options,
    )
    assert differences(open_slide(path, backend="tiff"), openslide.OpenSlide(str(path))) == {}


def test_print_resolution_is_no_microscope(make, tmp_path):
    path = tmp_path / "image.tif"
    make.write_pyramid(path, (256, 320), levels=1, resolution=(72, 72), resolutionunit="INCH")
    assert open_slide(path, backend="tiff").mpp is None
