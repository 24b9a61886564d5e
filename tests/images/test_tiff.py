"""Pixels of TIFF files of every kind, against tifffile and what was written."""

from __future__ import annotations

import functools

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.errors import (
    GeometryError,
    ImageError,
    ResolutionError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.tiff import TiffBackend, count_tiles

NAMES = [
    "jpeg-444", "jpeg-422", "jpeg-420", "jpeg-rgb", "jpeg-grey", "lzw", "lzw-predictor",
    "deflate", "zstd", "packbits", "none", "webp", "jpeg2000", "jpegxl", "planar", "jpeg-planar",
    "grey", "grey16", "grey16-big-endian", "rgb16", "rgb16-big-endian", "bigtiff", "strips-jpeg",
    "strips-lzw", "strips-none", "strips-one", "strips-planar", "strips-webp",
]  # fmt: skip


def read_all(reader, level=0):
    shape = reader.info.levels[level].shape
    return reader.read(level, Region((0, 0), shape[:2]))


def reference(path, page=0):
    with tifffile.TiffFile(path) as tif:
        image = tif.pages[page].asarray()
        if tif.pages[page].planarconfig == 2:
            image = image.transpose(1, 2, 0)
    return image[..., None] if image.ndim == 2 else image


def test_every_format_is_tested(make):
    assert set(NAMES) == set(make.FORMATS)


@pytest.mark.parametrize("name", NAMES)
def test_formats(make, tmp_path, name):
    path = tmp_path / "image.tif"
    written = make.write_format(path, name)
    reader = TiffBackend().open(str(path))
    whole = read_all(reader)
    expected = reference(path)
    assert whole.dtype == expected.dtype
    assert np.array_equal(whole, expected)
    if "jpeg" not in name and name not in ("bigtiff", "strips-webp", "jpegxl"):
        assert np.array_equal(whole, written)
    assert reader.info.levels[0].shape == written.shape
    rng = np.random.default_rng(1)
    for _ in range(12):
        y, x = rng.integers(0, 480), rng.integers(0, 600)
        h, w = rng.integers(1, 500 - y + 1), rng.integers(1, 611 - x + 1)
        part = reader.read(0, Region((int(y), int(x)), (int(h), int(w))))
        assert np.array_equal(part, expected[y : y + h, x : x + w])
    reader.close()


@pytest.mark.parametrize("name", ["jpeg-420", "strips-lzw", "strips-jpeg", "planar", "none"])
def test_out_may_have_any_strides(make, tmp_path, name):
    make.write_format(tmp_path / "a.tif", name)
    reader = TiffBackend().open(str(tmp_path / "a.tif"))
    whole = read_all(reader)
    big = np.zeros((700, 3, 800), np.uint8)
    out = big.transpose(0, 2, 1)[100:600:1, 50:661]
    assert reader.read(0, Region((0, 0), (500, 611)), out) is out
    assert np.array_equal(out, whole)
    assert big[:100].sum() == 0
    assert big[600:].sum() == 0
    flipped = np.zeros((500, 611, 3), np.uint8)[::-1, ::-1]
    reader.read(0, Region((0, 0), (500, 611)), flipped)
    assert np.array_equal(flipped, whole)


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", ["jpeg-420", "strips-none", "planar", "strips-one"])
def test_any_region_is_a_part_of_the_whole(make, tmp_path_factory, name, data):
    folder = tmp_path_factory.getbasetemp() / f"regions-{name}"
    path = folder / "image.tif"
    if not path.exists():
        folder.mkdir()
        make.write_format(path, name)
    reader = TiffBackend().open(str(path))
    y0, y1 = sorted(data.draw(st.tuples(st.integers(0, 500), st.integers(0, 500))))
    x0, x1 = sorted(data.draw(st.tuples(st.integers(0, 611), st.integers(0, 611))))
    part = reader.read(0, Region((y0, x0), (y1 - y0, x1 - x0)))
    assert np.array_equal(part, reference(path)[y0:y1, x0:x1])
    reader.close()


@pytest.mark.parametrize("kind", ["pages", "subifds", "untagged", "bigtiff", "factor4"])
def test_pyramids(make, tmp_path, kind):
    path = tmp_path / "pyramid.tif"
    options = {"subifds": kind == "subifds", "bigtiff": kind == "bigtiff"}
    if kind == "factor4":
        images = [make.picture(1000, 1200), make.picture(125, 150), make.picture(31, 38)]
        with tifffile.TiffWriter(path) as tif:
            for number, image in enumerate(images):
                tif.write(
                    image,
                    tile=(128, 160),
                    photometric="rgb",
                    subfiletype=1 if number else 0,
                    metadata=None,
                )
    else:
        images = make.write_pyramid(
            path, compression="deflate", reduced=kind != "untagged", **options
        )
    reader = TiffBackend().open(str(path))
    assert [lv.shape for lv in reader.info.levels] == [i.shape for i in images]
    for level, image in enumerate(images):
        assert np.array_equal(read_all(reader, level), image)
        ratio = (images[0].shape[0] / image.shape[0], images[0].shape[1] / image.shape[1])
        assert reader.info.levels[level].downsample == ratio
        assert reader.info.levels[level].tile_shape == (128, 160)


@pytest.mark.parametrize("associated", [False, True])
def test_alpha_is_blended_on_white(make, tmp_path, associated):
    image = make.picture(300, 400, 4)
    image[:100, :100, 3] = 0
    image[100:200, :100, 3] = 255
    kind = {False: "unassalpha", True: "assocalpha"}[associated]
    path = tmp_path / "rgba.tif"
    tifffile.imwrite(
        path, image, photometric="rgb", extrasamples=[kind], tile=(128, 160), metadata=None
    )
    reader = TiffBackend().open(str(path))
    got = read_all(reader)
    alpha = image[..., 3:].astype(float) / 255
    colour = image[..., :3] * (1 if associated else alpha)
    expected = np.clip(np.rint(colour + 255 * (1 - alpha)), 0, 255)
    assert got.shape == (300, 400, 3)
    assert np.abs(got - expected).max() <= 1
    if not associated:
        assert (got[:100, :100] == 255).all()
    assert np.array_equal(got[100:200, :100], image[100:200, :100, :3])


def test_a_fourth_sample_without_meaning_is_a_channel(make, tmp_path):
    """Near infrared or a mask beside RGB must not be mixed into the colours."""
    image = make.picture(300, 400, 4)
    path = tmp_path / "rgbn.tif"
    tifffile.imwrite(
        path, image, photometric="rgb", extrasamples=["unspecified"], tile=(128, 160), metadata=None
    )
    assert np.array_equal(read_all(TiffBackend().open(str(path))), image)


def ome_text(height, width):
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME '
        'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="OME Bio-Formats 6.12">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>'
        "</Pixels></Image></OME>"
    )


def write_encoded(path, image, encode, compression, description):
    """One level of 128 x 160 tiles that `encode` makes."""
    tiles = [
        np.ascontiguousarray(image[y : y + 128, x : x + 160])
        for y in range(0, image.shape[0], 128)
        for x in range(0, image.shape[1], 160)
    ]
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            (encode(t) for t in tiles),
            shape=image.shape,
            dtype=image.dtype,
            tile=(128, 160),
            compression=compression,
            photometric="rgb",
            description=description,
            metadata=None,
        )
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags[262].overwrite(2)


def test_lossless_jpeg_2000_of_bio_formats_is_rgb(make, tmp_path):
    """It has the number that Aperio gave to YCbCr."""
    image = make.picture(256, 320)
    path = tmp_path / "a.ome.tif"
    encode = functools.partial(imagecodecs.jpeg2k_encode, level=0, mct=True)
    write_encoded(path, image, encode, 33003, ome_text(256, 320))
    assert np.array_equal(read_all(TiffBackend().open(str(path))), image)


@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_bio_formats_tags_jpeg_as_rgb_whatever_it_is(make, tmp_path, subsampling):
    image = make.picture(256, 320)
    path = tmp_path / "a.ome.tif"
    made = []

    def encode(tile):
        data = imagecodecs.jpeg8_encode(tile, level=90, subsampling=subsampling)
        made.append(imagecodecs.jpeg8_decode(data))
        assert data[6:10] == b"JFIF"
        return data

    write_encoded(path, image, encode, "jpeg", ome_text(256, 320))
    expected = np.concatenate([np.concatenate(made[i : i + 2], axis=1) for i in (0, 2)])
    assert np.array_equal(read_all(TiffBackend().open(str(path))), expected)


def test_jpeg_without_a_jfif_marker_is_what_the_tag_says(make, tmp_path):
    image = make.picture(256, 320)
    path = tmp_path / "a.ome.tif"

    def encode(tile):
        data = imagecodecs.jpeg8_encode(tile, level=100, colorspace="rgb", outcolorspace="rgb")
        assert data[6:10] != b"JFIF"
        return data

    write_encoded(path, image, encode, "jpeg", ome_text(256, 320))
    got = read_all(TiffBackend().open(str(path))).astype(int)
    assert np.abs(got - image).mean() < 3


def test_hundreds_of_named_channels_are_all_given(make, tmp_path):
    stack = np.stack([np.roll(make.picture(128, 160, 0), i, 0) for i in range(300)])
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stack, ome=True, metadata={"axes": "CYX"}, tile=(128, 160))
    assert np.array_equal(read_all(TiffBackend().open(str(path))), stack.transpose(1, 2, 0))


def test_min_is_white_is_inverted(make, tmp_path):
    image = make.picture(200, 200, 0)
    tifffile.imwrite(
        tmp_path / "a.tif", image, photometric="miniswhite", tile=(64, 64), metadata=None
    )
    reader = TiffBackend().open(str(tmp_path / "a.tif"))
    assert np.array_equal(read_all(reader)[..., 0], 255 - image)
    assert reader.info.background == (0,)


def test_ome_channels_are_last_and_mpp_has_units(make, tmp_path):
    path = tmp_path / "image.ome.tif"
    image = make.picture(400, 500, 4, "uint16").transpose(2, 0, 1)
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 250,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.0005,
        "PhysicalSizeYUnit": "mm",
        "Channel": {"Name": ["DAPI", "FITC", "Cy3", "Cy5"]},
    }
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(image, subifds=1, tile=(128, 160), metadata=metadata, photometric="minisblack")
        tif.write(
            np.ascontiguousarray(image[:, ::2, ::2]), subfiletype=1, tile=(128, 160),
            photometric="minisblack",
        )  # fmt: skip
    reader = TiffBackend().open(str(path))
    info = reader.info
    assert info.vendor == "ome"
    assert [lv.shape for lv in info.levels] == [(400, 500, 4), (200, 250, 4)]
    assert info.mpp == pytest.approx((0.25, 0.5))
    assert info.properties["ome.Channel[2].Name"] == "Cy3"
    assert info.background == (0, 0, 0, 0)
    assert np.array_equal(read_all(reader), image.transpose(1, 2, 0))
    assert np.array_equal(read_all(reader, 1), image[:, ::2, ::2].transpose(1, 2, 0))


def test_ome_rgb_is_white_outside(make, tmp_path):
    path = tmp_path / "rgb.ome.tif"
    image = make.picture(300, 300)
    tifffile.imwrite(path, image, photometric="rgb", tile=(128, 160), metadata={"axes": "YXS"})
    reader = TiffBackend().open(str(path))
    assert reader.info.background == (255, 255, 255)
    assert np.array_equal(read_all(reader), image)


def test_qptiff(qptiff):
    reader = TiffBackend().open(qptiff)
    info = reader.info
    assert info.levels[0].shape == (1440, 1920, 3)
    assert info.vendor == "qptiff"
    assert info.mpp == pytest.approx((0.4965, 0.4965), abs=1e-4)
    assert info.power == 10
    assert set(info.associated) == {"label", "macro", "thumbnail"}
    with tifffile.TiffFile(qptiff) as tif:
        expected = tif.series[0].asarray().transpose(1, 2, 0)
        macro = tif.pages[4].asarray()
    assert np.array_equal(read_all(reader), expected)
    part = reader.read(0, Region((100, 200), (333, 444)))
    assert np.array_equal(part, expected[100:433, 200:644])
    assert np.array_equal(reader.read_associated("macro"), macro)


def test_missing_tiles_are_background(make, tmp_path):
    path = tmp_path / "holes.tif"
    image = make.picture(500, 611)
    encoded = list(make.tiles(image, (128, 160), lambda t: t.tobytes()))
    encoded[5] = encoded[6] = b""
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            iter(encoded), shape=image.shape, dtype="uint8", tile=(128, 160),
            photometric="rgb", metadata=None,
        )  # fmt: skip
    _, counts = make.page_facts(path)
    assert counts[5] == counts[6] == 0
    reader = TiffBackend().open(str(path))
    expected = image.copy()
    expected[128:256, 160:480] = 255
    with count_tiles() as count:
        assert np.array_equal(read_all(reader), expected)
    assert count.tiles == 14
    assert reader.failed_tiles == ()


def test_each_tile_is_decoded_once(make, tmp_path):
    make.write_pyramid(tmp_path / "p.tif", tile=(128, 128))
    reader = TiffBackend().open(str(tmp_path / "p.tif"))
    with count_tiles() as outer:
        with count_tiles() as count:
            reader.read(0, Region((0, 0), (512, 512)))
        assert (count.tiles, dict(count.by_level)) == (16, {0: 16})
        with count_tiles() as count:
            reader.read(1, Region((127, 127), (2, 2)))
        assert (count.tiles, dict(count.by_level)) == (4, {1: 4})
    assert outer.tiles == 20
    reader.read(0, Region((0, 0), (512, 512)))
    assert outer.tiles == 20


def test_edge_tiles_may_be_stored_small(make, tmp_path):
    """Some writers encode the tiles at the right and lower edge at what is left."""
    import imagecodecs

    path = tmp_path / "small.tif"
    image = make.picture(500, 600)
    parts = []
    for y in range(0, 500, 256):
        for x in range(0, 600, 256):
            part = np.ascontiguousarray(image[y : y + 256, x : x + 256])
            parts.append(imagecodecs.jpeg8_encode(part, level=95))
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            iter(parts), shape=image.shape, dtype="uint8", tile=(256, 256), compression="jpeg",
            photometric="ycbcr", subsampling=(2, 2), metadata=None,
        )  # fmt: skip
    got = read_all(TiffBackend().open(str(path)))
    assert np.abs(got.astype(int) - image).max() < 60
    assert np.abs(got.astype(int) - image).mean() < 4


def test_what_is_not_covered_is_said(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((300, 300), "u1"), photometric="cfa", tile=(64, 64),
        metadata=None,
    )  # fmt: skip
    with pytest.raises(UnsupportedImageError, match=r"a\.tif.*(does not read|no backend reads)"):
        TiffBackend().open(str(tmp_path / "a.tif"))


def test_wrong_arguments(make, tmp_path):
    make.write_format(tmp_path / "a.tif", "lzw")
    reader = TiffBackend().open(str(tmp_path / "a.tif"))
    for region in (Region((-1, 0), (5, 5)), Region((0, 0), (501, 5)), Region((0, 610), (5, 2))):
        with pytest.raises(GeometryError, match="level 0: the region .* lies outside"):
            reader.read(0, region)
    with pytest.raises(ResolutionError, match="no level 1"):
        reader.read(1, Region((0, 0), (5, 5)))
    with pytest.raises(GeometryError, match=r"out is \(5, 5, 4\)"):
        reader.read(0, Region((0, 0), (5, 5)), np.empty((5, 5, 4), np.uint8))
    with pytest.raises(UsageError, match="no associated image"):
        reader.read_associated("label")
    reader.close()
    reader.close()
    for late in (
        lambda: reader.read(0, Region((0, 0), (5, 5))),
        lambda: reader.read_associated("a"),
    ):
        with pytest.raises(ImageError, match="closed"):
            late()


def test_failed_tile_raises_or_fills(make, tmp_path, caplog):
    path = tmp_path / "bad.tif"
    make.write_format(path, "jpeg-420")
    expected = reference(path)
    offsets, counts = make.page_facts(path)
    make.damage(path, offsets[5], bytes(counts[5]))
    reader = TiffBackend().open(str(path))
    with pytest.raises(TileError) as caught:
        read_all(reader)
    error = caught.value
    assert (error.level, error.tile, error.uri) == (0, (1, 1), str(path))
    assert "bad.tif" in str(error)
    assert "tile (1, 1)" in str(error)
    assert error.__cause__ is not None
    region = Region((0, 0), (500, 611))
    with caplog.at_level("WARNING", logger="daskdmed.images"):
        got = reader.read(0, region, tile_error="fill")
    expected[128:256, 160:320] = 255
    assert np.array_equal(got, expected)
    assert [(f.level, f.tile) for f in reader.failed_tiles] == [(0, (1, 1))]
    assert "tile (1, 1)" in caplog.text
    # what lies beside the tile is read as ever
    assert np.array_equal(reader.read(0, Region((0, 320), (500, 291))), expected[:, 320:])


def test_aperio_levels_without_a_thumbnail_between_them(tmp_path):
    import openslide

    from daskdmed import open_slide
    from daskdmed.samples import make_slide

    path = make_slide(tmp_path / "two.svs", 512, tile=64, levels=2).path
    with openslide.OpenSlide(path) as theirs:
        assert theirs.level_count > 1
        slide = open_slide(path)
        assert slide.level_dimensions == theirs.level_dimensions
        assert "thumbnail" not in slide.associated_images
        pixels = slide.read_region((0, 0), 1, slide.level_dimensions[1])
        expected = theirs.read_region((0, 0), 1, theirs.level_dimensions[1]).convert("RGB")
        assert np.array_equal(pixels, np.asarray(expected))
