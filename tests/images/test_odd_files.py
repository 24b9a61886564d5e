"""Files that scanners, converters and servers make, and that are easily read wrongly."""

from __future__ import annotations

import os
import zlib

import fsspec
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from daskdmed.errors import CorruptImageError, TileError, UnsupportedImageError, UsageError
from daskdmed.images.opening import open_slide
from daskdmed.images.remote.blocks import blocks
from daskdmed.images.slide import Slide
from daskdmed.images.tiff import codecs, ifd, jpeg

SVS = "Aperio Image Library v11.2.1 \r\n{w}x{h} (128x128) J2K|AppMag = 20|MPP = {mpp}"


def whole(slide: Slide, level: int = 0) -> np.ndarray:
    return slide.read_region((0, 0), level, slide.level_dimensions[level])


def write_svs(path, levels, mpp="0.5", tail=()):
    """Aperio: baseline, striped thumbnail, levels, then (description, image, subfile type)."""
    height, width = levels[0].shape[:2]
    text = SVS.format(w=width, h=height, mpp=mpp)
    options = {"metadata": None, "photometric": "rgb", "compression": "lzw"}
    with tifffile.TiffWriter(path) as tif:
        tif.write(levels[0], tile=(128, 128), description=text, **options)
        tif.write(levels[0][::8, ::8].copy(), rowsperstrip=16, description=text, **options)
        for level in levels[1:]:
            tif.write(level, tile=(128, 128), description=text, **options)
        for description, image, kind in tail:
            tif.write(image, rowsperstrip=16, description=description, subfiletype=kind, **options)


# --- Aperio


@pytest.fixture
def holed(make, tmp_path):
    """Three levels; of the second two tiles are empty, of the third one that shows them."""
    levels = [make.picture(512 >> i, 640 >> i, seed=1) for i in range(3)]
    path = tmp_path / "a.svs"
    write_svs(path, levels)
    for page, missing in ((2, (1, 3)), (3, (0,))):
        with tifffile.TiffFile(path, mode="r+") as tif:
            tag = tif.pages[page].tags[325]
            tag.overwrite(tuple(0 if i in missing else n for i, n in enumerate(tag.value)))
    return path, levels


def test_empty_tiles_of_lower_levels_come_from_the_finer_one(holed):
    path, levels = holed
    slide = open_slide(path, backend="tiff")
    half = levels[0].reshape(256, 2, 320, 2, 3).mean((1, 3))
    second = whole(slide, 1)
    for y, x, missing in ((0, 128, True), (128, 0, True), (0, 0, False), (128, 256, False)):
        box = np.s_[y : y + 128, x : x + 128]
        if missing:
            assert np.abs(second[box] - half[box]).max() <= 0.5
        else:
            assert np.array_equal(second[box], levels[1][box])
    # one that is empty in both levels comes from the finest
    quarter = levels[0].reshape(128, 4, 160, 4, 3).mean((1, 3))
    third = whole(slide, 2)
    assert np.abs(third[:64, 64:128] - quarter[:64, 64:128]).max() <= 1.5
    # any part is the same as that of the whole
    assert np.array_equal(slide.read_region((200, 20), 1, (97, 211)), second[10:221, 100:197])
    assert slide.failed_tiles == ()


def test_empty_tiles_are_no_tissue_nor_background_for_thumbnails(holed):
    path, levels = holed
    picture = open_slide(path, backend="tiff").get_thumbnail((160, 128))
    expected = levels[0].reshape(128, 4, 160, 4, 3).mean((1, 3))
    assert np.abs(picture - expected)[32:64, 64:128].max() < 3


def test_empty_tiles_of_the_finest_level_are_background(make, tmp_path):
    write_svs(tmp_path / "a.svs", [make.picture(256, 256)])
    counts = make.page_facts(tmp_path / "a.svs")[1]
    make.overwrite_tag(tmp_path / "a.svs", 325, (*counts[:3], 0))
    assert (whole(open_slide(tmp_path / "a.svs"))[128:, 128:] == 255).all()


def test_a_label_without_a_description_is_one(make, tmp_path):
    label, macro = make.picture(60, 50), make.picture(60, 90)
    write_svs(tmp_path / "a.svs", [make.picture(512, 512)], tail=[("", label, 1), ("", macro, 9)])
    found = open_slide(tmp_path / "a.svs", backend="tiff").associated_images
    assert set(found) == {"label", "macro", "thumbnail"}
    assert np.array_equal(found["label"], label)
    assert np.array_equal(found["macro"], macro)


def test_a_decimal_comma(make, tmp_path):
    write_svs(tmp_path / "a.svs", [make.picture(256, 256)], mpp="0,4990")
    assert open_slide(tmp_path / "a.svs", backend="tiff").mpp == (0.499, 0.499)


# --- arrangements of pages


@pytest.mark.parametrize(
    "text", ["ImageJ=1.53t\nimages=1\n", "state.configPath='a'\nstate.acq=1\n", "ImageJ=1.53t"]
)
def test_a_pyramid_keeps_its_levels_whatever_its_description_says(make, tmp_path, text):
    path = tmp_path / "a.tif"
    options = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    images = make.write_pyramid(
        path, (512, 640), tile=(128, 128), compression="lzw", description=text, **options
    )
    slide = open_slide(path)
    assert slide.backend == "tiff"
    assert slide.level_count == 3
    for level, image in enumerate(images):
        assert np.array_equal(whole(slide, level), image)
    assert slide.mpp == pytest.approx((0.25, 0.25))


def test_an_image_in_several_files_is_not_called_damaged(make, tmp_path):
    path = tmp_path / "c0.ome.tif"
    plane = make.picture(200, 300, 0, "uint16")
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeC="2" SizeT="1" '
        'SizeX="300" SizeY="200" SizeZ="1" Type="uint16"><Channel ID="C:0" SamplesPerPixel="1"/>'
        '<Channel ID="C:1" SamplesPerPixel="1"/>'
        '<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="c0.ome.tif">urn:uuid:0</UUID>'
        '</TiffData><TiffData FirstC="1" IFD="0" PlaneCount="1">'
        '<UUID FileName="c1.ome.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, plane, tile=(128, 128), description=text, metadata=None)
    with pytest.raises(UnsupportedImageError, match=r"another file.*c1\.ome\.tif"):
        open_slide(path, backend="tiff")


@pytest.mark.parametrize("said", ["", '<UUID FileName="a.ome.tif">urn:uuid:0</UUID>'])
def test_a_plane_that_is_nowhere_is_called_missing(make, tmp_path, said):
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeC="2" SizeT="1" '
        'SizeX="300" SizeY="200" SizeZ="1" Type="uint16"><Channel ID="C:0" SamplesPerPixel="1"/>'
        '<Channel ID="C:1" SamplesPerPixel="1"/>'
        f'<TiffData FirstC="0" IFD="0" PlaneCount="1">{said}</TiffData></Pixels></Image></OME>'
    )
    path, plane = tmp_path / "a.ome.tif", make.picture(200, 300, 0, "uint16")
    tifffile.imwrite(path, plane, tile=(128, 128), description=text, metadata=None)
    with pytest.raises(CorruptImageError, match="plane 1 is missing"):
        open_slide(path)


def test_of_several_images_one_is_read_and_the_others_are_named(make, tmp_path, caplog):
    path = tmp_path / "a.ome.tif"
    first, second = make.picture(200, 300), make.picture(256, 320, seed=1)
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, image in (("one ", first), ("two", second), ("Label", second)):
            tif.write(image, metadata={"Name": name}, photometric="rgb", tile=(128, 128))
    with caplog.at_level("WARNING", logger="daskdmed.images"):
        slide = open_slide(path)
    assert "reads the image 'two', not 'one'" in caplog.text
    assert slide.images == ("one", "two")
    assert np.array_equal(whole(slide), second)
    for image in (0, slide.images[0], "0"):
        other = open_slide(path, image=image)
        assert np.array_equal(whole(other), first)
        assert np.array_equal(other.to_dask(chunks=128).compute(), first)
    assert other != slide
    assert other.token != slide.token
    with pytest.raises(UsageError, match=r"image='three'.*0 'one' of 60000 pixels, 1 'two'"):
        open_slide(path, image="three")


def test_an_image_of_a_backend_that_knows_only_one(make, tmp_path):
    pytest.importorskip("openslide")
    make.write_format(tmp_path / "a.tif", "lzw")
    with pytest.raises(UnsupportedImageError, match="one image per file"):
        open_slide(tmp_path / "a.tif", backend="openslide", image=1)


# --- tiles


@pytest.mark.parametrize("compression", ["deflate", "zstd", "packbits", "lzw"])
def test_a_last_strip_at_full_height(make, tmp_path, compression):
    """The strip holds more rows than the picture has left."""
    path, image = tmp_path / "a.tif", make.picture(300, 200)
    tifffile.imwrite(
        path,
        np.concatenate([image, image[:84]]),
        rowsperstrip=128,
        compression=compression,
        photometric="rgb",
        metadata=None,
    )
    make.overwrite_tag(path, 257, 300)
    assert np.array_equal(whole(open_slide(path, backend="tiff")), image)


def test_a_tile_that_decodes_to_much_too_much_is_an_error(make, tmp_path, monkeypatch):
    monkeypatch.setattr(codecs, "_SURPLUS", 2**20)
    path = tmp_path / "a.tif"
    make.write_pyramid(path, (256, 256), levels=1, tile=(128, 128), compression="deflate")
    bomb = zlib.compress(bytes(2**24), 9)
    with path.open("ab") as file:
        offset = file.tell()
        file.write(bomb)
    offsets, counts = make.page_facts(path)
    make.overwrite_tag(path, 324, (offset, *offsets[1:]))
    make.overwrite_tag(path, 325, (len(bomb), *counts[1:]))
    with pytest.raises(TileError):
        whole(open_slide(path, backend="tiff"))


@pytest.mark.parametrize(
    "behind", [b"\x01\x02\x03", b"trailer\xff\xd9", b"\0\0\xff", b"\xff\xd8\xff\xe0"]
)
def test_bytes_behind_the_end_of_a_jpeg_tile(make, tmp_path, behind):
    path, image = tmp_path / "a.tif", make.picture(256, 256)
    streams = {"plain": [], "padded": []}
    for name, tail in (("plain", b""), ("padded", behind)):

        def encode(tile, tail=tail, name=name):
            streams[name].append(imagecodecs.jpeg8_encode(tile, 90, subsampling="444") + tail)
            return streams[name][-1]

        make.write_tiles(path.with_stem(name), image, encode, compression="jpeg", photometric=6)
    plain, padded = (whole(open_slide(path.with_stem(n), backend="tiff")) for n in streams)
    assert np.array_equal(plain, padded)


def test_the_end_of_a_jpeg_stream_is_found_from_its_beginning(make):
    for options in ({}, {"optimize": True}):
        data = bytes(imagecodecs.jpeg8_encode(make.picture(64, 64), 90, **options))
        assert jpeg._end_of(data + b"rest\xff\xd9") == len(data) - 2
        assert jpeg._end_of(data[:-2]) == -1
        assert jpeg._end_of(data[:300]) == -1


def test_one_long_strip_of_raw_pixels_has_no_limit(make, tmp_path, monkeypatch):
    monkeypatch.setattr(ifd, "MAX_SEGMENT_BYTES", 200_000)
    image = make.picture(600, 200)
    options = {"photometric": "rgb", "metadata": None, "rowsperstrip": 600}
    tifffile.imwrite(tmp_path / "raw.tif", image, **options)
    assert np.array_equal(whole(open_slide(tmp_path / "raw.tif", backend="tiff")), image)
    tifffile.imwrite(tmp_path / "lzw.tif", image, **options, compression="lzw")
    with pytest.raises(CorruptImageError, match="limit of"):
        open_slide(tmp_path / "lzw.tif", backend="tiff")
    tifffile.imwrite(tmp_path / "two.tif", image, **{**options, "rowsperstrip": 400})
    with pytest.raises(CorruptImageError, match="limit of"):
        open_slide(tmp_path / "two.tif", backend="tiff")


@pytest.mark.parametrize("compression", ["lzma", "png", "lerc"])
def test_further_compressions(make, tmp_path, compression):
    path, image = tmp_path / "a.tif", make.picture(300, 280)
    tifffile.imwrite(
        path, image, tile=(128, 128), photometric="rgb", compression=compression, metadata=None
    )
    slide = open_slide(path)
    assert slide.backend == "tiff"
    assert np.array_equal(whole(slide), image)


def test_what_opens_and_cannot_be_read_is_refused_when_it_is_opened(make, tmp_path):
    pytest.importorskip("openslide")
    path = tmp_path / "a.tif"
    image = make.picture(300, 280, 0).astype(np.float32)
    tifffile.imwrite(
        path, image, tile=(128, 128), compression="deflate", predictor=3, metadata=None
    )
    with pytest.raises(UnsupportedImageError, match=r"tiff: .*predictor 3.*openslide: "):
        open_slide(path)


def test_the_values_of_a_palette(make, tmp_path):
    """Labels with colours for viewers, and channels with a lookup table."""
    image = make.picture(300, 280, 0)
    for tiled in ({"tile": (128, 128)}, {"rowsperstrip": 64}):
        tifffile.imwrite(
            tmp_path / "a.tif",
            image,
            photometric="palette",
            colormap=np.arange(768, dtype=np.uint16).reshape(3, 256) * 85,
            metadata=None,
            **tiled,
        )
        slide = open_slide(tmp_path / "a.tif")
        assert slide.backend == "tiff"
        assert np.array_equal(whole(slide)[..., 0], image)
        assert slide.background == (0,)


# --- resolution


@pytest.mark.parametrize("unit", ["micron", "um", "\\u00B5m", "nm", "pixel"])
def test_pixel_size_of_imagej(make, tmp_path, unit):
    scale = 1000 if unit == "nm" else 1
    tifffile.imwrite(
        tmp_path / "a.tif",
        make.picture(200, 300, 0),
        imagej=True,
        resolution=(4 / scale, 2 / scale),
        metadata={"unit": unit},
    )
    expected = None if unit == "pixel" else pytest.approx((0.25, 0.5))
    assert open_slide(tmp_path / "a.tif", backend="tiff").mpp == expected


@pytest.mark.parametrize(
    ("settings", "power"), [('<ObjectiveSettings ID="O:1"/>', 20.0), ("", None)]
)
def test_the_objective_is_that_of_the_image(make, tmp_path, settings, power):
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="I:0">'
        '<Objective ID="O:0" NominalMagnification="5"/><Objective ID="O:1" '
        f'NominalMagnification="20"/></Instrument><Image ID="Image:0">{settings}'
        '<Pixels DimensionOrder="XYCZT" ID="Pixels:0" SizeC="3" SizeT="1" SizeX="300" SizeY="200" '
        'SizeZ="1" Type="uint8"><Channel ID="C:0" SamplesPerPixel="3"/><TiffData/></Pixels>'
        "</Image></OME>"
    )
    image = make.picture(200, 300)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        image,
        photometric="rgb",
        tile=(128, 128),
        description=text,
        metadata=None,
    )
    assert open_slide(tmp_path / "a.ome.tif", backend="tiff").power == power


# --- servers


@pytest.fixture
def served(make, tmp_path, monkeypatch):
    """A URL, and how to say which ranges are honoured: up to so many bytes."""
    make.write_pyramid(tmp_path / "a.tif", (512, 640), levels=1, tile=(128, 128), compression=None)
    url = f"memory://{tmp_path.name}/a.tif"
    fsspec.filesystem("memory").pipe_file(url, (tmp_path / "a.tif").read_bytes())
    honest = MemoryFileSystem.cat_file

    def honour(small):
        def cat_file(self, path, start=None, end=None, **kwargs):
            limited = start is not None and end - start <= small
            return honest(self, path, *((start, end) if limited else ()))

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)

    return url, honour


def test_a_server_without_ranges_is_named(served):
    url, honour = served
    honour(0)
    with pytest.raises(UnsupportedImageError, match=r"range.*whole file.*simplecache::memory"):
        open_slide(url)


def test_a_server_that_honours_small_ranges_only_gives_no_wrong_pixels(served):
    url, honour = served
    slide = open_slide(url)
    blocks.clear()
    honour(20_000)
    with pytest.raises(TileError, match=r"range.*whole file"):
        slide.read_region((0, 0), 0, (100, 100))


# --- OME-Zarr


def write_series(path, images, names=None, listed=True):
    """As bioformats2raw writes several images; (pixels, micrometers) of each."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    if listed:
        root.create_group("OME").attrs["series"] = [str(i) for i in range(len(images))]
    for i, (image, mpp) in enumerate(images):
        group = root.create_group(str(i))
        group.create_array(
            "0", data=np.ascontiguousarray(image.transpose(2, 0, 1)), chunks=(3, 128, 128)
        )
        scale = {"type": "scale", "scale": [1, mpp, mpp]}
        axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
        group.attrs["multiscales"] = [
            {
                "version": "0.4",
                "name": names[i] if names else "",
                "axes": [{"name": "c", "type": "channel"}, *axes],
                "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
            }
        ]


@pytest.mark.parametrize("listed", [True, False])
def test_bioformats2raw_the_scan_is_read_and_not_the_label(make, tmp_path, listed, caplog):
    label, scan = make.picture(100, 120, seed=5), make.picture(300, 400)
    write_series(tmp_path / "a.zarr", [(label, 20.0), (scan, 0.25)], listed=listed)
    with caplog.at_level("WARNING", logger="daskdmed.images"):
        slide = open_slide(tmp_path / "a.zarr")
    assert np.array_equal(whole(slide), scan)
    assert slide.mpp == (0.25, 0.25)
    assert slide.images == ("0", "1")
    assert "reads the image '1', not '0'" in caplog.text
    other = open_slide(tmp_path / "a.zarr", image=0)
    assert np.array_equal(whole(other), label)
    assert np.array_equal(other.to_dask(chunks=64).compute(), label)
    with pytest.raises(UsageError, match=r"image='2'; there are 0 '0' of 12000 pixels"):
        open_slide(tmp_path / "a.zarr", image=2)


def test_bioformats2raw_overviews_and_labels_are_no_scan(make, tmp_path):
    overview, scan = make.picture(500, 600, seed=5), make.picture(300, 400)
    images = [(overview, 20.0), (overview, 0.25), (scan, 0.25)]
    write_series(tmp_path / "a.zarr", images, ["overview of all", "label image", "scan"])
    slide = open_slide(tmp_path / "a.zarr")
    assert np.array_equal(whole(slide), scan)
    assert np.array_equal(whole(open_slide(tmp_path / "a.zarr", image="label image")), overview)


def test_an_image_number_of_a_store_with_one(make, tmp_path):
    write_series(tmp_path / "a.zarr", [(make.picture(100, 120), 1.0)])
    assert open_slide(tmp_path / "a.zarr" / "0", image=0).dimensions == (120, 100)
    with pytest.raises(UsageError, match="holds one image"):
        open_slide(tmp_path / "a.zarr" / "0", image="scan")


def test_the_mpp_is_that_of_the_largest_level(make, tmp_path):
    """Levels need not be listed largest first."""
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    datasets = []
    for name, step in (("small", 4), ("large", 1)):
        root.create_array(name, data=make.picture(400 // step, 400 // step, 0))
        scale = {"type": "scale", "scale": [0.5 * step] * 2}
        datasets.append({"path": name, "coordinateTransformations": [scale]})
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    slide = open_slide(tmp_path / "a.zarr")
    assert slide.dimensions == (400, 400)
    assert slide.mpp == (0.5, 0.5)


def test_a_zip_file_whose_root_is_in_a_folder(make, tmp_path):
    image = make.picture(100, 120)
    store = zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="w")
    zarr.create_array(store, name="a.zarr", data=image)
    store.close()
    assert np.array_equal(whole(open_slide(tmp_path / "a.zarr.zip")), image)


# --- replaced files


def test_a_file_of_the_same_size_and_time_is_not_the_old_one(make, tmp_path):
    path = tmp_path / "a.tif"
    make.write_pyramid(path, (256, 256), levels=1, tile=(128, 128), compression=None)
    before, facts = whole(open_slide(path)), path.stat()
    new = tmp_path / "b.tif"
    data = bytearray(path.read_bytes())
    offsets, _ = make.page_facts(path)
    data[offsets[0] : offsets[0] + 100] = bytes(100)
    new.write_bytes(data)
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    os.replace(new, path)
    again = open_slide(path)
    assert again.token == open_slide(path).token
    assert not np.array_equal(whole(again), before)
