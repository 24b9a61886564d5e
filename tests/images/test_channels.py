"""What is said of channels, labels and colour profiles, against tifffile, Pillow and OpenSlide."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image, ImageCms

from daskdmed.core.region import Region
from daskdmed.errors import UnsupportedImageError
from daskdmed.images.opening import open_slide

NAMES = ["DAPI", "CD3", "CD8", "PanCK"]


def noise(*shape, dtype="uint16"):
    return np.random.default_rng(0).integers(1, 250, shape).astype(dtype)


def whole(slide, level=0):
    return slide.read_region((0, 0), level, slide.level_dimensions[level])


def signed(digits):
    """Six digits as OME writes them, with full opacity."""
    return int.from_bytes(bytes.fromhex(f"{digits}FF"), "big", signed=True)


# ---------------------------------------------------------------------------- what files say
def test_channels_of_ome_tiff(tmp_path):
    path, data = tmp_path / "a.ome.tif", noise(4, 32, 48)
    colours = ["0000FF", "00FF00", "FF0000", "FFFFFF"]
    said = {
        "Name": NAMES,
        "Color": [signed(c) for c in colours],
        "EmissionWavelength": [461, 0.519, 565.5, 670],
        "EmissionWavelengthUnit": ["nm", "µm", "nm", "nm"],
        "ExcitationWavelength": [358, 488, 555, 640],
        "ExcitationWavelengthUnit": ["nm"] * 4,
    }
    tifffile.imwrite(
        path, data, tile=(16, 16), photometric="minisblack",
        metadata={"axes": "CYX", "Channel": said},
    )  # fmt: skip
    channels = open_slide(path).channels
    assert channels == tuple(NAMES)
    assert [c.color for c in channels] == colours
    assert [c.wavelength for c in channels] == [461, 519, 565.5, 670]
    assert [c.excitation for c in channels] == [358, 488, 555, 640]


def test_each_image_has_its_own_channels(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, channels in (("first", NAMES[:2]), ("second", NAMES[2:])):
            how = {"axes": "CYX", "Name": name, "Channel": {"Name": channels}}
            tif.write(noise(2, 32, 48), tile=(16, 16), photometric="minisblack", metadata=how)
    assert open_slide(path, image="first").channels == tuple(NAMES[:2])
    assert open_slide(path, image="second").channels == tuple(NAMES[2:])


@pytest.mark.parametrize("colour", [True, False])
def test_nothing_is_said_of_channels(tmp_path, colour):
    data = noise(32, 48, 3, dtype="uint8") if colour else noise(3, 32, 48)
    kind = {"photometric": "rgb"} if colour else {"photometric": "minisblack"}
    axes = {"axes": "YXS" if colour else "CYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, tile=(16, 16), metadata=axes, **kind)
    assert open_slide(tmp_path / "a.ome.tif").channels is None


def test_channels_of_vectra():
    path = Path(os.environ.get("DASKDMED_DATA_DIR", "."), "small_vectra.qptiff")
    if not path.exists():
        pytest.skip("the sample is not there")
    slide = open_slide(path)
    assert slide.channels == ("DAPI", "FITC", "Cy3")
    assert [c.color for c in slide.channels] == ["0000FF", "00FF00", "FFFF00"]
    # of the bands of the emission filters that the scan used
    assert [c.wavelength for c in slide.channels] == [450, 530, 570]


def test_stains_of_vectra_that_were_unmixed(tmp_path):
    """Components have biomarkers, and are none of the bands of the scan."""

    def about(name, colour, first):
        band = (
            "<ScanBands-i><ExcitedFilterPair><BandIndex>0</BandIndex><FilterPair><EmissionFilter>"
            "<Bands><Bands-i><HomeWavelength>520</HomeWavelength></Bands-i></Bands>"
            "</EmissionFilter></FilterPair></ExcitedFilterPair></ScanBands-i>"
        )
        return (
            '<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription>'
            "<ImageType>FullResolution</ImageType><IsUnmixedComponent>True</IsUnmixedComponent>"
            f"<Name>Opal 520</Name><Biomarker>{name}</Biomarker><Color>{colour}</Color>"
            f"<ScanBands>{band * 2 if first else ''}</ScanBands></PerkinElmer-QPI-ImageDescription>"
        )

    path, data = tmp_path / "a.qptiff", noise(2, 64, 96)
    with tifffile.TiffWriter(path) as tif:
        for number, (name, colour) in enumerate((("CD8", "255,0,16"), ("FoxP3", "no colour"))):
            tif.write(
                data[number], tile=(16, 16), photometric="minisblack", metadata=None,
                software="PerkinElmer-QPI", description=about(name, colour, number == 0),
            )  # fmt: skip
    slide = open_slide(path)
    assert slide.channels == ("CD8", "FoxP3")
    assert [c.color for c in slide.channels] == ["FF0010", ""]
    assert [c.wavelength for c in slide.channels] == [None, None]
    assert np.array_equal(whole(slide), np.moveaxis(data, 0, -1))


def test_channels_of_leica(tmp_path):
    data = noise(2, 64, 96, dtype="uint8")
    dimensions = "".join(
        f'<dimension sizeX="96" sizeY="64" r="0" c="{c}" ifd="{c}"/>' for c in range(2)
    )
    xml = (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        '<collection name="c" uuid="x" sizeX="24000" sizeY="16000"><image name="f" uuid="f">'
        f'<device model="Versa" version="1"/><pixels sizeX="96" sizeY="64">{dimensions}</pixels>'
        '<view sizeX="24000" sizeY="16000" offsetX="0" offsetY="0" spacingZ="0"/><scanSettings>'
        "<objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
        "<illuminationSource>fluorescence</illuminationSource></illuminationSettings>"
        '<channelSettings><channel name="Aqua" rgb="#00ffff"/><channel name="Spectrum Green"'
        ' rgb="#00FF00"/></channelSettings></scanSettings></image></collection></scn>'
    )
    path = tmp_path / "a.scn"
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for number, plane in enumerate(data):
            options = {"description": xml} if number == 0 else {}
            tif.write(
                plane, tile=(32, 32), photometric="minisblack", compression="zlib",
                metadata=None, **options,
            )  # fmt: skip
    slide = open_slide(path, backend="tiff")
    assert slide.channels == ("Aqua", "Spectrum Green")
    assert [c.color for c in slide.channels] == ["00FFFF", "00FF00"]
    assert np.array_equal(whole(slide), np.moveaxis(data, 0, -1))


def ome_zarr(path, data, **ome):
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array("0", shape=data.shape, dtype=data.dtype, chunks=(1, 16, 16))
    array[...] = data
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "yx")]
    steps = [{"type": "scale", "scale": [1, 0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs["ome"] = {
        "version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}], **ome,
    }  # fmt: skip
    return group


def test_channels_of_ome_zarr(tmp_path):
    window = {"start": 3, "end": 90, "min": 0, "max": 99}
    channels = [
        {"label": n, "color": c, "window": window, "active": True}
        for n, c in zip(NAMES, ("0000ff", "00FF00", "#FF0000", ""), strict=True)
    ]
    channels[0]["emissionWave"] = 461.0
    ome_zarr(tmp_path / "a.zarr", noise(4, 32, 48), omero={"channels": channels})
    found = open_slide(tmp_path / "a.zarr").channels
    assert found == tuple(NAMES)
    assert [c.color for c in found] == ["0000FF", "00FF00", "FF0000", ""]
    assert [c.wavelength for c in found] == [461, None, None, None]
    assert found[1].window == (3, 90)
    ome_zarr(tmp_path / "b.zarr", noise(3, 32, 48), omero={"channels": channels})
    assert open_slide(tmp_path / "b.zarr").channels is None  # they are of another image


# ---------------------------------------------------------------------------- labels
def test_values_of_palettes_and_of_one_bit_are_labels(tmp_path):
    labels = noise(40, 53, dtype="uint8") % 7
    colours = noise(3, 256)
    how = {"photometric": "palette", "colormap": colours, "tile": (16, 16), "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", labels, **how)
    slide = open_slide(tmp_path / "a.tif")
    assert slide.is_labels
    assert np.array_equal(whole(slide)[..., 0], labels)
    tifffile.imwrite(tmp_path / "b.tif", labels, tile=(16, 16), metadata=None)
    assert not open_slide(tmp_path / "b.tif").is_labels
    # a lookup table of Bio-Formats
    how = {**how, "metadata": {"axes": "YX"}}
    tifffile.imwrite(tmp_path / "c.ome.tif", labels, **how)
    assert not open_slide(tmp_path / "c.ome.tif").is_labels


@pytest.mark.parametrize("compression", [None, "packbits", "tiff_lzw", "tiff_adobe_deflate"])
def test_masks_of_one_bit_as_pillow_reads_them(tmp_path, compression):
    mask = noise(61, 83) > 120
    Image.fromarray(mask).save(tmp_path / "a.tif", compression=compression)
    slide = open_slide(tmp_path / "a.tif", backend="tiff")
    assert slide.is_labels
    assert slide.dtype == np.uint8
    assert np.array_equal(whole(slide)[..., 0], np.asarray(Image.open(tmp_path / "a.tif")))
    assert np.array_equal(slide.read_region((7, 50), 0, (20, 5))[..., 0], mask[50:55, 7:27])


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_tiled_masks_of_one_bit(tmp_path, photometric):
    mask = noise(40, 50) > 120
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, mask, tile=(16, 16), photometric=photometric, compression="packbits", metadata=None
    )
    stored = tifffile.imread(path)
    want = stored if photometric == "minisblack" else ~stored  # 0 is white
    assert np.array_equal(whole(open_slide(path))[..., 0], want)


def test_codes_of_fax_machines_are_not_supported(tmp_path):
    Image.fromarray(noise(40, 50) > 120).save(tmp_path / "a.tif", compression="group4")
    with pytest.raises(UnsupportedImageError, match="1-bit"):
        open_slide(tmp_path / "a.tif")


def test_ome_zarr_says_that_values_are_labels(tmp_path):
    label = {"colors": [{"label-value": 1, "rgba": [1, 2, 3, 255]}]}
    ome_zarr(tmp_path / "a.zarr", noise(1, 32, 48), **{"image-label": label})
    assert open_slide(tmp_path / "a.zarr").is_labels


@pytest.fixture(scope="module")
def map_of_labels(tmp_path_factory):
    """A palette of two levels; labels far apart, so that a mean would be another one."""
    path = tmp_path_factory.mktemp("labels") / "a.tif"
    labels = np.random.default_rng(1).choice(np.array([0, 7, 200], np.uint8), (96, 120))
    how = {
        "photometric": "palette", "colormap": noise(3, 256), "tile": (16, 16), "metadata": None,
        "resolution": (20000, 20000), "resolutionunit": "CENTIMETER",
    }  # fmt: skip
    with tifffile.TiffWriter(path) as tif:
        tif.write(labels, **how)
        tif.write(labels[::2, ::2], subfiletype=1, **how)
    return path, labels


@pytest.mark.parametrize("mpp", [0.3, 0.75, 1.0, 1.7, 5.0])
def test_labels_take_the_nearest_as_pillow_does(map_of_labels, mpp):
    path, labels = map_of_labels
    view = open_slide(path).view(mpp=mpp)
    stored = labels[:: 2**view.level, :: 2**view.level]
    height, width = view.spatial_shape
    scale = view.scale or (1.0, 1.0)
    box = (0, 0, width * scale[1], height * scale[0])
    want = stored
    if max(box[2] - stored.shape[1], box[3] - stored.shape[0]) <= 0:
        pillow = Image.fromarray(stored)
        want = np.asarray(pillow.resize((width, height), Image.Resampling.NEAREST, box))
    else:  # which does not look over the edge
        at = [
            np.minimum(((np.arange(n) + 0.5) * s).astype(int), extent - 1)
            for n, s, extent in zip((height, width), scale, stored.shape, strict=True)
        ]
        want = stored[np.ix_(*at)]
    assert np.array_equal(view.read(Region.of((height, width)))[..., 0], want)
    part = Region((height // 3, width // 4), (height // 2, width // 2))
    assert np.array_equal(view.read(part)[..., 0], want[part.slices])


def test_thumbnails_of_labels_hold_labels_only(map_of_labels):
    slide = open_slide(map_of_labels[0])
    assert set(np.unique(slide.get_thumbnail((17, 19)))) <= {0, 7, 200}
    outside = slide.read_region((-4, -4), 0, (2, 2))
    assert not outside.any()


def test_any_slide_can_be_taken_for_labels(map_of_labels, tmp_path):
    labels = map_of_labels[1]
    tifffile.imwrite(tmp_path / "a.tif", labels, tile=(16, 16), metadata=None)
    grey = open_slide(tmp_path / "a.tif").with_mpp(0.5).view(mpp=1.3)
    whole_region = Region.of(grey.spatial_shape)
    assert not set(np.unique(grey.read(whole_region))) <= {0, 7, 200}
    assert set(np.unique(grey.as_labels().read(whole_region))) <= {0, 7, 200}
    assert grey.as_labels().token != grey.token
    level = open_slide(tmp_path / "a.tif").view()
    assert level.as_labels().token == level.token  # the same pixels


# ---------------------------------------------------------------------------- colour profiles
@pytest.fixture(scope="module")
def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def test_the_profile_of_a_tiff_file(tmp_path, profile, make):
    path = tmp_path / "a.tif"
    make.write_pyramid(path, (64, 96), 2, compression="deflate", iccprofile=profile)
    assert open_slide(path, backend="tiff").icc_profile == profile
    assert open_slide(path, backend="openslide").icc_profile == profile
    assert ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.version > 0
    make.write_pyramid(path, (64, 96), 2, compression="deflate")
    assert open_slide(path, backend="tiff").icc_profile is None
    assert open_slide(path, backend="openslide").icc_profile is None


def test_a_profile_of_another_kind_is_refused(tmp_path, profile, make):
    path = tmp_path / "a.tif"
    make.write_pyramid(path, (64, 96), 1, compression="deflate", iccprofile=profile)
    with pytest.raises(UnsupportedImageError, match="of no use for RGB"):
        open_slide(path, backend="tiff").to_srgb()
