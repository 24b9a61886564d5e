"""Vendors' arrangements and metadata, against OpenSlide where it reads the made file."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from daskdmed.errors import CorruptImageError, UnsupportedImageError
from daskdmed.images.opening import open_slide

openslide = pytest.importorskip("openslide")
pytestmark = pytest.mark.filterwarnings("ignore:.*not stitched")


def same_pixels(slide, other, levels):
    for level in range(levels):
        assert slide.level_dimensions[level] == other.level_dimensions[level]
        size = slide.level_dimensions[level]
        expected = np.asarray(other.read_region((0, 0), level, size))[..., :3]
        assert np.array_equal(slide.read_region((0, 0), level, size), expected)


def same_properties(slide, other, prefixes):
    def select(properties):
        return {k: v for k, v in dict(properties).items() if k.startswith(prefixes)}

    assert select(slide.properties) == select(other.properties)


@pytest.mark.parametrize("offsets", [(-1000, 0, 1000), (0, 800), (-900, -300, 400)])
def test_of_hamamatsus_focal_planes_the_one_in_focus_is_read(
    make, vendors, tmp_path, offsets, caplog
):
    path = tmp_path / "stack.ndpi"
    planes = {z: make.picture(256, 512, seed=i) for i, z in enumerate(offsets)}
    pages = [(image, 20.0, None, z) for z, image in planes.items()]
    vendors.write_ndpi(path, [*pages, (make.picture(100, 200, seed=9), -1.0, None)])
    slide = open_slide(path, backend="tiff")
    got = slide.read_region((0, 0), 0, (512, 256)).astype(int)
    errors = {z: np.abs(got - image).mean() for z, image in planes.items()}
    assert min(errors, key=errors.get) == min(offsets, key=abs)
    if 0 in offsets:  # else OpenSlide has no level at all
        same_pixels(slide, openslide.OpenSlide(str(path)), 1)
    assert f"reads the plane {slide.plane!r}" in caplog.text


def test_an_overview_with_more_pixels_than_the_scan_is_not_the_slide(make, tmp_path):
    path = tmp_path / "a.ome.tif"
    scan = make.picture(300, 400)

    def size(micrometres):
        return {f"PhysicalSize{a}": micrometres for a in "XY"}

    with tifffile.TiffWriter(path, ome=True) as tif:
        options = {"photometric": "rgb", "tile": (128, 128)}
        overview = make.picture(450, 500, seed=1)
        tif.write(overview, metadata={"Name": "first", **size(20.0)}, **options)
        tif.write(scan, metadata={"Name": "second", **size(0.25)}, **options)
    slide = open_slide(path, backend="tiff")
    assert np.array_equal(slide.read_region((0, 0), 0, (400, 300)), scan)
    assert slide.mpp == (0.25, 0.25)


def test_hamamatsu(make, vendors, tmp_path):
    path = tmp_path / "slide.ndpi"
    pages = [
        (make.picture(512, 1024), 20.0, 16),
        (make.picture(256, 512, seed=1), 10.0, 8),
        (make.picture(128, 256, seed=2), 5.0, None),
        (make.picture(100, 200, seed=3), -1.0, None),
    ]
    vendors.write_ndpi(path, pages)
    slide, other = open_slide(path, backend="tiff"), openslide.OpenSlide(str(path))
    same_pixels(slide, other, 3)
    same_properties(
        slide, other, ("hamamatsu.", "tiff.", "openslide.vendor", "openslide.mpp", "openslide.obj")
    )
    assert slide.info.vendor == "hamamatsu"
    assert (slide.mpp, slide.power) == ((0.25, 0.5), 20.0)
    assert slide.levels[0].tile_shape == (8, 128)
    macro = np.asarray(other.associated_images["macro"].convert("RGB"))
    assert np.array_equal(slide.associated_images["macro"], macro)
    part = slide.read_region((123, 77), 0, (300, 200))
    assert np.array_equal(part, slide.read_region((0, 0), 0, (1024, 512))[77:277, 123:423])


def test_philips(make, vendors, tmp_path):
    path = tmp_path / "slide.tiff"
    images = [make.picture(768, 1024), make.picture(512, 512, seed=1), make.picture(256, 256)]
    vendors.write_philips(path, images, make.picture(100, 200), make.picture(100, 120))
    slide, other = open_slide(path, backend="tiff"), openslide.OpenSlide(str(path))
    assert slide.level_dimensions == ((1024, 768), (512, 384), (256, 192))
    same_pixels(slide, other, 3)
    same_properties(slide, other, ("philips.", "tiff.", "openslide.vendor", "openslide.comment"))
    assert slide.info.vendor == "philips"
    assert slide.mpp == pytest.approx((0.227, 0.226))
    for name, image in other.associated_images.items():
        expected = np.asarray(image.convert("RGB"))
        assert np.array_equal(slide.associated_images[name], expected)


def test_ventana(make, vendors, tmp_path):
    images = [make.picture(768, 1024), make.picture(384, 512, seed=1)]
    vendors.write_ventana(tmp_path / "flat.bif", images, make.picture(200, 100), 0)
    slide = open_slide(tmp_path / "flat.bif", backend="tiff")
    assert slide.info.vendor == "ventana"
    assert slide.level_dimensions == ((1024, 768), (512, 384))
    assert (slide.mpp, slide.power) == ((0.2325, 0.2325), 40.0)
    got = slide.read_region((0, 0), 0, (1024, 768)).astype(int)
    assert np.abs(got - images[0]).mean() < 4
    vendors.write_ventana(tmp_path / "joined.bif", images, make.picture(200, 100), 12)
    with pytest.raises(UnsupportedImageError, match=r"joined\.bif.*overlap.*stitched"):
        open_slide(tmp_path / "joined.bif", backend="tiff")


def test_areas_of_a_ventana_slide_go_to_openslide(make, vendors, tmp_path):
    """They belong where the scanner says, not where the TIFF grid has their tiles."""
    images = [make.picture(768, 1024), make.picture(384, 512, seed=1)]
    path = tmp_path / "areas.bif"
    vendors.write_ventana(path, images, make.picture(200, 100), 0, areas=2)
    with pytest.raises(UnsupportedImageError, match="2 areas with places of their own"):
        open_slide(path, backend="tiff")


@pytest.mark.parametrize("overlap", ["32 24", "0 0"])
def test_overlapping_tiles_of_trestle_go_to_openslide(make, tmp_path, overlap):
    path = tmp_path / "slide.tif"
    text = f"Objective Power=20.00;OverlapsXY= {overlap};Image Version=1"
    tifffile.imwrite(
        path,
        make.picture(512, 768),
        tile=(256, 256),
        compression="jpeg",
        photometric="rgb",
        software="MedScan",
        description=text,
        metadata=None,
        resolution=(0.5, 0.5),
        resolutionunit="NONE",
    )
    if overlap == "0 0":
        assert open_slide(path, backend="tiff").dimensions == (768, 512)
        return
    with pytest.raises(UnsupportedImageError, match="Trestle slide overlap"):
        open_slide(path, backend="tiff")
    slide, other = open_slide(path), openslide.OpenSlide(str(path))
    assert slide.dimensions == other.dimensions != (768, 512)
    same_pixels(slide, other, 1)


def test_leica(make, vendors, tmp_path):
    path = tmp_path / "slide.scn"
    images = [make.picture(512, 768), make.picture(128, 192, seed=1)]
    vendors.write_leica(path, make.picture(64, 96), images)
    slide = open_slide(path, backend="tiff")
    assert slide.info.vendor == "leica"
    assert slide.level_dimensions == ((768, 512), (192, 128))
    assert (slide.mpp, slide.power) == ((0.25, 0.25), 40.0)
    assert slide.properties["leica.illumination-source"] == "brightfield"
    assert slide.associated_images["macro"].shape == (64, 96, 3)
    got = slide.read_region((0, 0), 0, (768, 512)).astype(int)
    assert np.abs(got - images[0]).mean() < 4


@pytest.mark.parametrize("offset", [(64, 32), (0, 0)])
def test_leica_area_lies_in_the_frame_of_the_slide(make, vendors, tmp_path, offset):
    path = tmp_path / "slide.scn"
    images = [make.picture(512, 768), make.picture(128, 192, seed=1)]
    vendors.write_leica(path, make.picture(64, 96), images, offset=offset, canvas=(1024, 640))
    slide, other = open_slide(path, backend="tiff"), openslide.OpenSlide(str(path))
    assert slide.level_dimensions == ((1024, 640), (256, 160))
    for level, size in enumerate(other.level_dimensions):
        rgba = np.asarray(other.read_region((0, 0), level, size))
        expected = np.where(rgba[..., 3:] > 0, rgba[..., :3], 255)
        assert np.array_equal(slide.read_region((0, 0), level, size), expected)
    same_properties(
        slide, other, ("tiff.", "openslide.bounds", "openslide.region", "openslide.comment")
    )
    macro = np.asarray(other.associated_images["macro"].convert("RGB"))
    assert np.array_equal(slide.associated_images["macro"], macro)
    whole = slide.to_dask(chunks=200).compute()
    assert np.array_equal(whole, slide.read_region((0, 0), 0, (1024, 640)))


def test_leica_with_two_areas(make, vendors, tmp_path):
    path = tmp_path / "slide.scn"
    images = [make.picture(512, 768), make.picture(128, 192, seed=1)]
    vendors.write_leica(path, make.picture(64, 96), images, canvas=(1024, 1024), areas=2)
    slide = open_slide(path, backend="tiff")
    got = slide.read_region((0, 0), 0, (1024, 1024))
    assert slide.properties["openslide.region[1].y"] == "512"
    assert np.array_equal(got[:512], got[512:])
    assert (got[:, 768:] == 255).all()
    assert np.abs(got[:512, :768].astype(int) - images[0]).mean() < 4


def test_leica_of_absurd_size(make, vendors, tmp_path):
    path = tmp_path / "slide.scn"
    images = [make.picture(256, 256), make.picture(64, 64)]
    vendors.write_leica(path, make.picture(64, 96), images, canvas=(2**40, 1024))
    with pytest.raises(CorruptImageError, match=r"slide\.scn.*claims a slide"):
        open_slide(path)
