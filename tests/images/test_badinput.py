"""Bad files end in typed errors that name the file, in bounded time and memory."""

from __future__ import annotations

import os
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile

from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    GeometryError,
    ImageError,
    ImageNotFoundError,
    ImagePermissionError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images import readers
from daskdmed.images.opening import open_slide, open_slides
from daskdmed.images.tiff import TiffBackend

PLACES = 50


@pytest.fixture(scope="session")
def pyramids(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("truncated")
    make.write_pyramid(folder / "pages.tif", (512, 640), tile=(128, 128))
    make.write_pyramid(folder / "subifds.tif", (512, 640), tile=(128, 128), subifds=True)
    make.write_pyramid(
        folder / "big.tif", (512, 640), tile=(128, 128), compression="lzw", bigtiff=True
    )
    make.write_pyramid(folder / "raw.tif", (512, 640), tile=(128, 128), compression=None)
    return {path.stem: path for path in folder.iterdir()}


def attempt(action, *args):
    """(result, None) or (None, typed error); any other error fails the test."""
    try:
        return action(*args), None
    except ImageError as error:
        return None, error


def read_levels(path):
    reader = TiffBackend().open(str(path))
    try:
        return [
            reader.read(i, Region((0, 0), level.shape[:2]))
            for i, level in enumerate(reader.info.levels)
        ]
    finally:
        reader.close()


@pytest.mark.parametrize("kind", ["pages", "subifds", "big", "raw"])
def test_truncated_at_fifty_places(pyramids, tmp_path, kind):
    data = pyramids[kind].read_bytes()
    expected = read_levels(pyramids[kind])
    path = tmp_path / "cut.tif"
    places = sorted({round(len(data) * i / PLACES) for i in range(PLACES)} | {len(data) - 1, 9})
    failed = 0
    for place in places:
        path.write_bytes(data[:place])
        levels, error = attempt(read_levels, path)
        if error is not None:
            failed += 1
            assert "cut.tif" in str(error)
            assert error.uri == str(path)
            continue
        for got, right in zip(levels, expected, strict=True):
            assert np.array_equal(got, right)
    assert failed >= PLACES - 2


@pytest.mark.parametrize("kind", ["pages", "big"])
def test_damaged_at_random_places(pyramids, tmp_path, kind):
    """Whatever byte is wrong in the directories, the end is pixels or a typed error."""
    data = bytearray(pyramids[kind].read_bytes())
    with tifffile.TiffFile(pyramids[kind]) as tif:
        places = [p.offset + d for p in tif.pages for d in range(180)]
    rng = np.random.default_rng(3)
    path = tmp_path / "odd.tif"
    for _ in range(120):
        damaged = bytearray(data)
        for place in rng.choice(places, 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        reader, error = attempt(TiffBackend().open, str(path))
        if error is not None:
            assert "odd.tif" in str(error)
            continue
        for number, level in enumerate(reader.info.levels):
            height, width = (min(300, n) for n in level.shape[:2])
            _, error = attempt(reader.read, number, Region((0, 0), (height, width)))
            assert error is None or "odd.tif" in str(error)
        reader.close()


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", CorruptImageError, "empty"),
        (b"not a slide at all, only text", UnsupportedImageError, "no backend reads"),
        (b"II*\0", CorruptImageError, "header"),
        (b"II*\0\xff\xff\xff\x7f", CorruptImageError, "behind the end"),
        (b"MM\0*\0\0\0\0", CorruptImageError, "no directory"),
        (b"II+\0\x08\0\0\0" + b"\xff" * 8, CorruptImageError, "behind the end"),
    ],
)
def test_no_tiff(tmp_path, content, error, words):
    path = tmp_path / "what.svs"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as caught:
        open_slide(path)
    assert "what.svs" in str(caught.value)
    with pytest.raises((UnsupportedImageError, CorruptImageError), match=r"what\.svs"):
        open_slide(path, backend="tiff")


def test_no_file(tmp_path):
    with pytest.raises(ImageNotFoundError, match=r"gone\.svs.*no such file"):
        open_slide(tmp_path / "gone.svs")
    with pytest.raises(FileNotFoundError):
        open_slide(tmp_path / "gone.svs", backend="tiff")
    with pytest.raises(UnsupportedImageError, match=r"no backend|directory"):
        open_slide(tmp_path)
    with pytest.raises(UnsupportedImageError, match="directory"):
        open_slide(tmp_path, backend="tiff")
    for wrong in ("", 3, None, "a\0b"):
        with pytest.raises(UsageError, match="path or a URL"):
            open_slide(wrong)
    with pytest.raises(UsageError, match=r"no backend 'nope'.*tiff"):
        open_slide(tmp_path / "x.svs", backend="nope")


def test_no_permission(make, tmp_path, monkeypatch):
    path = tmp_path / "secret.tif"
    make.write_format(path, "lzw")
    real = os.open

    def refuse(name, *args, **kwargs):
        if str(name).endswith("secret.tif"):
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImagePermissionError, match=r"secret\.tif.*read access"):
        open_slide(path, backend="tiff")


def test_skipping_bad_slides(make, tmp_path, caplog):
    make.write_format(tmp_path / "good.tif", "lzw")
    (tmp_path / "bad.tif").write_bytes(b"II*\0")
    uris = [tmp_path / "bad.tif", tmp_path / "good.tif", tmp_path / "gone.tif"]
    with caplog.at_level("WARNING", logger="daskdmed.images"):
        slides = open_slides(uris, on_error="skip")
    assert [s.uri for s in slides] == [str(tmp_path / "good.tif")]
    assert "bad.tif" in caplog.text
    assert "gone.tif" in caplog.text
    with pytest.raises(CorruptImageError, match=r"bad\.tif"):
        open_slides(uris)
    with pytest.raises(UsageError, match="on_error"):
        open_slides(uris, on_error="ignore")


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (256, 2**31 - 1),
        (256, 10**6),
        (257, 2**30),
        (256, 0),
        (257, 0),
        (322, 0),
        (323, 0),
        (322, 16),
        (277, 60000),
    ],
)
def test_absurd_sizes(make, tmp_path, tag, value):
    path = tmp_path / "absurd.tif"
    make.write_pyramid(path, (512, 640), levels=1, tile=(128, 128), compression="deflate")
    make.overwrite_tag(path, tag, value)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptImageError, match=r"absurd\.tif.*fetch it again"):
            open_slide(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [2, 5, 12, 99])
@pytest.mark.parametrize("tag", [257, 324, 325])
def test_sizes_and_places_that_are_no_whole_numbers(make, tmp_path, tag, kind):
    path = tmp_path / "odd.tif"
    make.write_pyramid(path, (512, 640), levels=1, tile=(128, 128), compression="deflate")
    with tifffile.TiffFile(path) as tif:
        entry = tif.pages[0].tags[tag].offset
    make.damage(path, entry + 2, struct.pack("<H", kind))
    with pytest.raises(CorruptImageError, match=rf"odd\.tif.*tag {tag} .* has type {kind}"):
        open_slide(path)


def test_absurd_image_in_one_tile(make, tmp_path):
    """The number of tiles agrees, but no tile can be that large."""
    path = tmp_path / "absurd.tif"
    make.write_pyramid(path, (512, 640), levels=1, tile=(128, 128), compression="deflate")
    for tag in (256, 257, 322, 323):
        make.overwrite_tag(path, tag, 2**30)
    with pytest.raises(CorruptImageError, match=r"absurd\.tif.*limit of"):
        open_slide(path)


def test_tile_that_claims_to_be_larger(make, tmp_path):
    """A JPEG of 60 000 pixels a side in a tile of 128 must not be allocated."""
    path = tmp_path / "bomb.tif"
    make.write_pyramid(path, (512, 640), levels=1, tile=(128, 128), compression="jpeg")
    offsets, counts = make.page_facts(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0", offsets[3], offsets[3] + counts[3])
    data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(TileError, match=r"bomb\.tif.*60000 x 60000"):
            read_levels(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_directory_cycle(make, tmp_path):
    path = tmp_path / "cycle.tif"
    make.write_pyramid(path, (512, 640), tile=(128, 128))
    with tifffile.TiffFile(path) as tif:
        first, last = tif.pages[0], tif.pages[2]
        pointer = last.offset + 2 + 12 * len(last.tags)
        offset = first.offset
    make.damage(path, pointer, struct.pack("<I", offset))
    with pytest.raises(CorruptImageError, match=r"cycle\.tif.*form a cycle"):
        open_slide(path)


def test_sub_directory_cycle(make, tmp_path):
    path = tmp_path / "cycle.tif"
    make.write_pyramid(path, (512, 640), tile=(128, 128), subifds=True)
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].offset
    make.overwrite_tag(path, 330, (offset, offset))
    with pytest.raises(CorruptImageError, match=r"cycle\.tif.*form a cycle"):
        open_slide(path)


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "deflate", "zstd", None])
def test_offsets_outside_the_file(make, tmp_path, compression):
    path = tmp_path / "far.tif"
    images = make.write_pyramid(
        path, (512, 640), levels=1, tile=(128, 128), compression=compression
    )
    offsets, _ = make.page_facts(path)
    make.overwrite_tag(path, 324, (*offsets[:7], 2**31, *offsets[8:]))
    slide = open_slide(path)
    with pytest.raises(TileError, match=r"far\.tif.*tile \(1, 2\).*outside the file") as caught:
        slide.read_region((0, 0), 0, slide.dimensions)
    assert caught.value.tile == (1, 2)
    filled = slide.read_region((0, 0), 0, slide.dimensions, tile_error="fill")
    assert (filled[128:256, 256:384] == 255).all()
    if compression != "jpeg":
        assert np.array_equal(filled[256:], images[0][256:])
    assert [f.tile for f in slide.failed_tiles] == [(1, 2)]


@pytest.mark.parametrize("compression", ["jpeg", "lzw", "deflate", "zstd", "webp", None])
def test_tiles_cut_short_or_replaced(make, tmp_path, compression):
    path = tmp_path / "tile.tif"
    make.write_pyramid(path, (512, 640), levels=1, tile=(128, 128), compression=compression)
    offsets, counts = make.page_facts(path)
    for replaced in ("short", "zeros", "other"):
        with tifffile.TiffFile(path, mode="r+") as tif:
            tag = tif.pages[0].tags[325]
            tag.overwrite((*counts[:7], counts[7] // 2, *counts[8:]))
        if replaced == "zeros":
            make.damage(path, offsets[7], bytes(counts[7]))
        elif replaced == "other":
            make.damage(path, offsets[7], b"\x7f" * counts[7])
        slide = open_slide(path)
        with pytest.raises(TileError, match=r"tile\.tif: tile \(1, 2\)"):
            slide.read_region((260, 130), 0, (10, 10))
        with pytest.raises(TileError):
            slide.to_dask().compute()
        slide.close()


def test_tile_count_that_is_too_large_is_not_read(make, tmp_path):
    path = tmp_path / "greedy.tif"
    make.write_pyramid(path, (512, 640), levels=1, tile=(128, 128), compression="lzw")
    _, counts = make.page_facts(path)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 2**28)
    make.overwrite_tag(path, 325, (2**27, *counts[1:]))
    slide = open_slide(path)
    tracemalloc.start()
    try:
        with pytest.raises(TileError, match="more than"):
            slide.read_region((0, 0), 0, (10, 10))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_row_of_a_single_strip_that_no_memory_holds(make, tmp_path):
    """Long strips of raw pixels are read in parts, so that they may be long, but not that wide."""
    path = tmp_path / "wide.tif"
    make.write_format(path, "strips-one", 44, 70)
    make.overwrite_tag(path, 256, 2**31 - 1)
    with pytest.raises(CorruptImageError, match=r"wide\.tif.*limit of"):
        open_slide(path)
    make.overwrite_tag(path, 256, 70)
    make.overwrite_tag(path, 257, 2**24)
    make.overwrite_tag(path, 278, 2**24)
    slide = open_slide(path)  # long, and cut off
    assert slide.dimensions == (70, 2**24)
    with pytest.raises(TileError, match=r"wide\.tif"):
        slide.read_region((0, 1000), 0, (8, 8))


@pytest.mark.parametrize(("tag", "value"), [(258, 4), (317, 2), (262, 0)])
def test_channels_that_are_stored_in_different_ways(tmp_path, tag, value):
    """The decoder of the first page is not right for the second."""
    path = tmp_path / "channels.ome.tif"
    image = np.zeros((2, 64, 80), np.uint8)
    options = {"photometric": "minisblack", "compression": "lzw", "tile": (32, 32)}
    tifffile.imwrite(path, image, ome=True, metadata={"axes": "CYX"}, **options)
    assert open_slide(path, backend="tiff").levels[0].shape == (64, 80, 2)
    with tifffile.TiffFile(path, mode="r+") as tif:
        page = tif.pages[1]
        if tag in page.tags:
            page.tags[tag].overwrite(value)
        else:  # in the place of a tag that says nothing
            entry = page.tags[296].offset
    if tag == 317:
        data = bytearray(path.read_bytes())
        data[entry : entry + 12] = struct.pack("<HHIHH", tag, 3, 1, value, 0)
        path.write_bytes(data)
    with pytest.raises(UnsupportedImageError, match=r"channels.*pages.*differ in size or encoding"):
        open_slide(path, backend="tiff")


def test_errors_of_the_parser_are_typed(make, tmp_path, monkeypatch):
    path = tmp_path / "odd.tif"
    make.write_format(path, "lzw")
    for error in (struct.error("x"), MemoryError(), RecursionError(), ValueError("y")):

        def explode(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr("tifffile.TiffFile", explode)
        with pytest.raises(CorruptImageError, match=r"odd\.tif.*cannot be parsed") as caught:
            TiffBackend().open(str(path))
        assert caught.value.__cause__ is error


def test_report_of_failed_tiles_is_bounded(make, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_REPORTED", 3)
    path = tmp_path / "bad.tif"
    make.write_pyramid(path, (512, 640), levels=1, tile=(128, 128), compression="deflate")
    offsets, counts = make.page_facts(path)
    for offset, count in zip(offsets, counts, strict=True):
        make.damage(path, offset, bytes(count))
    reader = TiffBackend().open(str(path))
    out = reader.read(0, Region((0, 0), (512, 640)), tile_error="fill")
    assert (out == 255).all()
    assert [f.tile for f in reader.failed_tiles] == [(3, 2), (3, 3), (3, 4)]


def test_images_that_are_too_long_to_be_shrunk(tmp_path, caplog):
    """Zarr may declare any extent; chunks that are not there are the fill value."""
    zarr = pytest.importorskip("zarr")
    zarr.create_array(store=str(tmp_path / "long.zarr"), shape=(8, 2**40, 3), chunks=(8, 64, 3),
                      dtype="u1", fill_value=7)  # fmt: skip
    slide = open_slide(tmp_path / "long.zarr")
    assert (slide.read_region((2**39, 0), 0, (10, 4)) == 7).all()
    with pytest.raises(GeometryError, match=r"long\.zarr, level 0.*not resampled"):
        slide.get_thumbnail((100, 100))
    with pytest.raises(GeometryError, match=r"long\.zarr, level 0.*not resampled"):
        slide.with_mpp(1).view(mpp=2)
    assert "no picture" not in caplog.text
    assert "long.zarr" in slide._repr_html_()
    with pytest.raises(GeometryError, match=r"long\.zarr.*more than 67108864"):
        slide.to_dask()


def test_a_thumbnail_whose_tiles_have_more_samples(make, tmp_path):
    """Its directory says grey, its JPEG has three samples."""
    path = tmp_path / "samples.svs"
    image = make.picture(64, 80)
    with tifffile.TiffWriter(path) as tif:
        for part, layout in ((image, {"tile": (32, 32)}), (image[::4, ::4], {"rowsperstrip": 16})):
            tif.write(part, description=make.APERIO, compression="jpeg", photometric="rgb",
                      metadata=None, **layout)  # fmt: skip
    make.overwrite_tag(path, 277, 1, page=1)
    slide = open_slide(path, backend="tiff")
    with pytest.raises(TileError, match=r"samples\.svs.*3 samples, expected 1"):
        slide.associated_images["thumbnail"]
