"""JPEG tiles decoded in place by TurboJPEG: the pixels of imagecodecs, or not at all."""

from __future__ import annotations

import importlib.metadata
import io
import logging
import os
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from daskdmed import open_slide
from daskdmed.core.region import Region
from daskdmed.errors import ImageError, UsageError
from daskdmed.images import turbojpeg
from daskdmed.images.source import LocalSource
from daskdmed.images.tiff import count_tiles, decode, jpeg
from daskdmed.images.tiff.fetch import DecodeError

LIBRARY = turbojpeg.library()
needs_library = pytest.mark.skipif(LIBRARY is None, reason="no TurboJPEG library here")
ROWS, WIDTH, MARGIN = 48, 64, 5
TAKEN = ["444", "422", "420", "optimised", "restarts", "jfif", "bare"]
DECLINED = ["440", "grey", "another-size", "progressive"]


def picture(seed=0, rows=ROWS, width=WIDTH):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (-(-rows // 8), -(-width // 8), 3))
    fine = np.kron(coarse, np.ones((8, 8, 1)))[:rows, :width] + rng.integers(
        0, 55, (rows, width, 1)
    )
    return fine.astype(np.uint8)


def stream(kind, seed=0):
    """A JPEG stream of ROWS x WIDTH, or one that is none of that kind."""
    import imagecodecs

    image = picture(seed)
    if kind in ("444", "422", "420", "440"):
        return bytes(imagecodecs.jpeg8_encode(image, 85, subsampling=kind))
    if kind == "optimised":
        return bytes(imagecodecs.jpeg8_encode(image, 85, optimize=True))
    if kind == "grey":
        return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(image[..., 0]), 85))
    if kind == "another-size":
        return bytes(imagecodecs.jpeg8_encode(picture(seed, ROWS, WIDTH // 2), 85))
    if kind == "bare":
        return without(stream("420", seed), {0xE0, 0xEE})
    file = io.BytesIO()
    options = {"progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 2}}
    Image.fromarray(image).save(file, "jpeg", quality=85, **options.get(kind, {}))
    return file.getvalue()


def without(data, markers):
    """A stream without some of its segments."""
    kept, end = [data[:2]], 2
    for marker, _, stop in jpeg.segments(data):
        if marker not in markers:
            kept.append(data[end:stop])
        end = stop
    return b"".join((*kept, data[end:]))


def only(data, markers):
    """The stream of tables that a directory would hold."""
    rest = {m for m, _, _ in jpeg.segments(data)} - markers
    head = without(data, rest)
    stop = 2 + sum(2 + 2 + len(b) for m, b, _ in jpeg.segments(data) if m in markers)
    return head[:stop] + b"\xff\xd9"


def ways(data, *, space=jpeg.YCBCR, tables=None, header=None):
    """What a tile decodes to with imagecodecs alone, and with the library into a gap."""
    scratch = np.zeros((ROWS, WIDTH, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turbojpeg, "library", lambda: None)
        plain = jpeg.make_jpeg(
            samples=3, space=space, outspace=jpeg.RGB, tables=tables, header=header
        )
        assert plain.paint is plain.part is None
        try:
            expected = np.array(plain.decode(data, scratch))
        except Exception as exc:
            expected = exc
    around = np.full((ROWS, WIDTH + 2 * MARGIN, 3), 9, np.uint8)
    place = around[:, MARGIN:-MARGIN]
    painter = jpeg.Painter(LIBRARY, space, tables, header)
    address = place.__array_interface__["data"][0]
    painted = painter(data, address, place.strides[0], ROWS, WIDTH)
    assert (around[:, :MARGIN] == 9).all()
    assert (around[:, -MARGIN:] == 9).all()
    return expected, place if painted else None


@needs_library
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", TAKEN)
def test_same_pixels(kind, shared):
    data, tables = stream(kind), None
    if shared:
        tables = only(data, {0xDB, 0xC4})
        data = without(data, {0xDB, 0xC4})
    expected, painted = ways(data, tables=tables)
    assert painted is not None
    assert np.array_equal(painted, expected)


@needs_library
@pytest.mark.parametrize("kind", ["444", "420", "bare"])
def test_the_tag_decides_on_the_colours(kind):
    """As OpenSlide does; a JFIF marker that says otherwise leaves the tile to imagecodecs."""
    data = without(stream(kind), {0xE0})
    expected, painted = ways(data, space=jpeg.RGB)
    assert np.array_equal(painted, expected)
    other, again = ways(data)
    assert np.array_equal(again, other)
    assert not np.array_equal(painted, again)
    assert ways(stream("420"), space=jpeg.RGB)[1] is None


@needs_library
@pytest.mark.parametrize("transform", [0, 1, 2])
def test_markers_of_adobe(transform):
    plain = without(stream("444"), {0xE0})
    body = b"Adobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    data = plain[:2] + b"\xff\xee\x00\x0e" + body + plain[2:]
    for space, agreeing in ((jpeg.RGB, 0), (jpeg.YCBCR, 1)):
        expected, painted = ways(data, space=space)
        assert (painted is not None) == (transform == agreeing)
        assert painted is None or np.array_equal(painted, expected)


@needs_library
@pytest.mark.parametrize("kind", DECLINED)
def test_declined(kind):
    assert ways(stream(kind))[1] is None


@needs_library
def test_header_kept_apart_as_in_ndpi():
    data = stream("420")
    end = jpeg.Header.parse(data).length
    expected, painted = ways(data[end:-2], header=data[:end])
    assert isinstance(expected, np.ndarray)
    assert np.array_equal(painted, expected)


@needs_library
def test_other_headers_one_after_another():
    """The last header is remembered; another picture must not pass for one of it."""
    painter = jpeg.Painter(LIBRARY, jpeg.YCBCR, None, None)
    for kind in ("444", "420", "440", "420", "another-size", "444", "grey", "progressive") * 2:
        out = np.zeros((ROWS, WIDTH, 3), np.uint8)
        address = out.__array_interface__["data"][0]
        painted = painter(stream(kind), address, out.strides[0], ROWS, WIDTH)
        assert painted == (kind in TAKEN)
        assert not painter(stream("444"), address, out.strides[0], ROWS, WIDTH // 2)


@needs_library
@pytest.mark.parametrize("marker", [0xDB, 0xC4])
def test_missing_tables_are_not_those_of_the_tile_before(marker):
    """A decompressor keeps its tables, and would decode any stream that has none with them."""
    good = stream("420")
    for tables in (None, only(good, {0xDB, 0xC4} - {marker})):
        assert ways(good)[1] is not None
        expected, painted = ways(without(good, {marker}), tables=tables)
        assert painted is None
        if marker == 0xDB:
            assert isinstance(expected, Exception)


@needs_library
@given(
    kind=st.sampled_from(["444", "420", "optimised", "progressive", "restarts"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.floats(0, 1),
    shared=st.booleans(),
)
def test_damaged_streams_are_judged_by_imagecodecs(kind, changes, cut, shared):
    """Whatever the bytes: what is painted is what imagecodecs gives, or nothing is."""
    data = bytearray(stream(kind))
    for where, value in changes:
        data[2 + int(where * (len(data) - 3))] = value
    if cut is not None:
        data = data[: int(cut * len(data))]
    data, tables = bytes(data), None
    if shared:
        # well-formed tables beside a damaged tile
        good = stream("420")
        tables, data = only(good, {0xDB, 0xC4}), without(data, {0xDB, 0xC4})
    expected, painted = ways(data, tables=tables)
    if painted is not None:
        assert isinstance(expected, np.ndarray), expected
        assert np.array_equal(painted, expected)


@given(st.binary(max_size=200))
def test_headers_of_nonsense(data):
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\xff\xd8\xff\xda"):
        head = jpeg.Header.parse(start + data)
        assert head is None or head.length <= len(start + data)


@pytest.fixture
def boxes(monkeypatch):
    """What parts the library decodes: (picture, box)."""
    if LIBRARY is None or not LIBRARY.has_parts:
        pytest.skip("no TurboJPEG library of version 3 here")
    found = []
    turbojpeg.library()  # which decodes parts when it is looked for
    monkeypatch.setattr(turbojpeg.TurboJpeg, "has_many", False)
    original = turbojpeg.TurboJpeg.decode_part

    def spy(self, stream, picture, box, out):
        found.append((picture, box))
        return original(self, stream, picture, box, out)

    monkeypatch.setattr(turbojpeg.TurboJpeg, "decode_part", spy)
    return found


@pytest.mark.parametrize("kind", TAKEN)
def test_parts_are_those_of_the_whole(kind, boxes):
    """At every edge of blocks, and where colours are interpolated over one."""
    data = stream(kind)
    expected, _ = ways(data)
    way = jpeg.make_jpeg(
        samples=3, space=jpeg.YCBCR, outspace=jpeg.RGB, tables=None, header=None
    ).part
    scratch = np.zeros((ROWS, WIDTH, 3), np.uint8)
    rows = [(0, 1), (0, ROWS), (7, 9), (15, 33), (16, ROWS), (ROWS - 1, ROWS)]
    columns = [(0, 1), (0, 15), (1, 16), (15, 17), (16, 32), (17, WIDTH), (WIDTH - 1, WIDTH)]
    for band in rows:
        for begin, stop in columns:
            found = way(data, scratch, band, (begin, stop))
            assert np.array_equal(found, expected[slice(*band), begin:stop])
    assert len(boxes) == len(rows) * len(columns)


@given(
    kind=st.sampled_from(["444", "422", "420"]),
    extent=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    corner=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_parts_of_pictures_of_any_extent(kind, extent, corner, share):
    import imagecodecs

    if LIBRARY is None or not LIBRARY.has_parts:
        pytest.skip("no TurboJPEG library of version 3 here")
    data = bytes(imagecodecs.jpeg8_encode(picture(0, *extent), 85, subsampling=kind))
    expected = imagecodecs.jpeg8_decode(data)
    first = [int(c * n) for c, n in zip(corner, extent, strict=True)]
    stop = [a + 1 + int(s * (n - a - 1)) for a, s, n in zip(first, share, extent, strict=True)]
    band, columns = zip(first, stop, strict=True)
    scratch = np.zeros((*extent, 3), np.uint8)
    found = jpeg.Painter(LIBRARY, jpeg.YCBCR, None, None).part(data, scratch, band, columns)
    assert found is not None
    assert np.array_equal(found, expected[slice(*band), slice(*columns)])


@given(
    kind=st.sampled_from(["444", "420", "restarts", "progressive"]),
    where=st.floats(0, 1),
    value=st.integers(0, 255),
    top=st.integers(0, ROWS - 1),
    left=st.integers(0, WIDTH - 1),
)
def test_parts_of_damaged_streams(kind, where, value, top, left):
    """What is decoded is what imagecodecs gives of the part, where that gives anything."""
    if LIBRARY is None or not LIBRARY.has_parts:
        pytest.skip("no TurboJPEG library of version 3 here")
    data = bytearray(stream(kind))
    data[2 + int(where * (len(data) - 3))] = value
    expected, _ = ways(bytes(data))
    painter = jpeg.Painter(LIBRARY, jpeg.YCBCR, None, None)
    scratch = np.zeros((ROWS, WIDTH, 3), np.uint8)
    band, columns = (top, min(top + 20, ROWS)), (left, min(left + 20, WIDTH))
    found = painter.part(bytes(data), scratch, band, columns)
    if found is not None and isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected[slice(*band), slice(*columns)])


def test_a_patch_decodes_no_more_of_a_tile_than_it_needs(make, tmp_path, boxes):
    height, width = make.TILE
    make.write_format(tmp_path / "image.tif", "jpeg-420", 3 * height, 3 * width)
    with open_slide(tmp_path / "image.tif") as slide, count_tiles() as count:
        whole = slide.read_region((0, 0), 0, slide.dimensions)
        del boxes[:]
        got = slide.read_region((width - 20, height - 10), 0, (60, 40))
    assert np.array_equal(got, whole[height - 10 : height + 30, width - 20 : width + 40])
    assert count.tiles == 9 + 4
    picture = (height, width, 0x22)
    left = (width - 21) // 16 * 16
    assert boxes == [
        (picture, (height - 10, left, 10, width - left)),
        (picture, (height - 10, 0, 10, 41)),
        (picture, (0, left, 30, width - left)),
        (picture, (0, 0, 30, 41)),
    ]


def test_pictures_of_several_sizes_in_one_thread(make, tmp_path, boxes):
    """A decompressor knows the header of the last picture, and must not cut another by it."""
    shapes = {"jpeg-420": "a.tif", "jpeg-444": "b.tif", "strips-jpeg": "c.tif"}
    for name, file in shapes.items():
        make.write_format(tmp_path / file, name, 200, 300)
    slides = [open_slide(tmp_path / file) for file in shapes.values()]
    wholes = [slide.read_region((0, 0), 0, (300, 200)) for slide in slides]
    for x, y in ((1, 2), (70, 50), (200, 140)) * 2:
        for slide, whole in zip(slides, wholes, strict=True):
            got = slide.read_region((x, y), 0, (33, 21))
            assert np.array_equal(got, whole[y : y + 21, x : x + 33])
    assert len({picture for picture, _ in boxes}) > 2


@needs_library
def test_a_library_without_parts(make, tmp_path, monkeypatch):
    """Earlier than version 3, or with other pixels: whole tiles are decoded."""

    class Early:
        pass

    assert turbojpeg._PartDecoder.of(Early(), Early()) is None
    make.write_format(tmp_path / "image.tif", "jpeg-420")
    expected, tiles = everywhere(tmp_path / "image.tif")
    early = turbojpeg.TurboJpeg(LIBRARY.path)
    early.without_parts()
    assert not early.has_parts
    assert not turbojpeg.parts_agree(early)
    monkeypatch.setattr(turbojpeg, "library", lambda: early)
    got, again = everywhere(tmp_path / "image.tif")
    assert tiles == again
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("fault", ["pixels", "margin", "refuses", ""])
def test_parts_that_differ_are_not_used(fault, monkeypatch, boxes):
    original = turbojpeg.TurboJpeg.decode_part

    def other(self, stream, picture, box, out):
        good = original(self, stream, picture, box, out)
        if fault == "pixels":
            out[-1, -2] ^= 1
        elif fault == "margin":
            out.base[-1, -1] = 0
        return good and fault != "refuses"

    monkeypatch.setattr(turbojpeg.TurboJpeg, "decode_part", other)
    monkeypatch.setenv(turbojpeg.VARIABLE, LIBRARY.path)
    assert turbojpeg.library.__wrapped__().has_parts == (not fault)


needs_many = pytest.mark.skipif(
    LIBRARY is None or not LIBRARY.has_many,
    reason="what is compiled is not here, or no TurboJPEG library of version 3",
)


def many(tiles, bands, out, *, in_place, extent=(ROWS, WIDTH), header=None, tables=None):
    """Decode each of some tiles as far as one of (top, bottom, left, right) to out[i] of the same
    place; which were decoded."""
    painter = jpeg.Painter(LIBRARY, jpeg.YCBCR, tables, header)
    places = [(i * out.strides[0] + t * out.strides[1] + 3 * x, t, x, b, r)
              for i, (t, b, x, r) in enumerate(bands)]  # fmt: skip
    wanted = turbojpeg.Wanted(
        np.array(bands, np.int32),
        np.arange(1, len(tiles) + 1, dtype=np.int32),
        np.array(places, np.int64),
    )
    return painter.many(tiles, wanted, np.zeros((*extent, 3), np.uint8), out, in_place)


@needs_many
@given(
    kind=st.sampled_from(["444", "422", "420"]),
    extent=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    corners=st.lists(st.tuples(*[st.floats(0, 0.999)] * 2, *[st.floats(0, 1)] * 2), min_size=1),
    in_place=st.booleans(),
)
def test_parts_of_many_are_those_of_each(kind, extent, corners, in_place):
    import imagecodecs

    bands, streams, wholes = [], [], []
    for seed, (y, x, high, wide) in enumerate(corners):
        top, left = int(y * extent[0]), int(x * extent[1])
        bottom = top + 1 + int(high * (extent[0] - top - 1))
        bands.append((top, bottom, left, left + 1 + int(wide * (extent[1] - left - 1))))
        pixels = picture(seed, *extent)
        streams.append(bytes(imagecodecs.jpeg8_encode(pixels, 85, subsampling=kind)))
        wholes.append(imagecodecs.jpeg8_decode(streams[-1]))
    out = np.full((len(bands), extent[0] + 2, extent[1] + 3, 3), 9, np.uint8)
    expected = out.copy()
    for i, (t, b, x, r) in enumerate(bands):
        expected[i, t:b, x:r] = wholes[i][t:b, x:r]
    assert all(many(streams, bands, out, in_place=in_place, extent=extent))
    assert np.array_equal(out, expected)


@needs_many
@pytest.mark.parametrize("in_place", [False, True])
def test_of_many_those_that_leave_a_doubt_are_left_alone(in_place):
    """Missing ones, other headers, other sizes, streams that are cut: none is touched, and what
    comes behind them is decoded as if they were not there."""
    good = stream("420")
    tiles = [
        None, good, stream("420", seed=1)[:-2], OSError("gone"), stream("444"), good[:200], b"",
        stream("another-size"), good[:400] + b"\x5a" * 40 + good[440:], good,
    ]  # fmt: skip
    out = np.full((len(tiles), ROWS, WIDTH + 1, 3), 9, np.uint8)
    bands = [(0, ROWS, 0, WIDTH)] * len(tiles)
    done = many(tiles, bands, out, in_place=in_place)
    assert done == [i in (1, 9) for i in range(len(tiles))]
    whole, _ = ways(good)
    assert np.array_equal(out[1, :, :WIDTH], whole)
    assert np.array_equal(out[9, :, :WIDTH], whole)
    assert (out[[0, 2, 3, 4, 5, 6, 7]] == 9).all()
    assert (out[:, :, WIDTH:] == 9).all()
    assert many([None, OSError()], bands[:2], out, in_place=in_place) == [False, False]


@needs_many
@pytest.mark.parametrize("in_place", [False, True])
def test_of_many_in_a_file_those_that_leave_a_doubt_are_left_alone(tmp_path, in_place):
    """Read by the same call: what does not begin and end as the first does, lies elsewhere, or is
    not there."""
    good = stream("420")
    tiles = [
        good, stream("420", seed=1), stream("420", seed=2)[:-2] + b"\0\0", stream("444"),
        good[:200], good[:10], stream("another-size"), good[:400] + b"\x5a" * 40 + good[440:],
        stream("420", seed=3),
    ]  # fmt: skip
    path = tmp_path / "tiles"
    path.write_bytes(b"II" + b"".join(tiles) + good[:-40])
    counts = [*map(len, tiles), len(good), 0, len(good), len(good)]
    offsets = [2, *(2 + np.cumsum(counts[:8])).tolist(), path.stat().st_size - len(good) + 40]
    offsets += [2, 0, -5]
    out = np.full((len(counts), ROWS, WIDTH + 1, 3), 9, np.uint8)
    bands = [(0, ROWS, 0, WIDTH)] * len(counts)
    with path.open("rb") as file:
        stored = turbojpeg.Stored(file.fileno(), np.array(offsets), np.array(counts))
        done = many(stored, bands, out, in_place=in_place)
        none = turbojpeg.Stored(file.fileno(), np.zeros(1, np.int64), np.ones(1, np.int64))
        assert many(none, bands[:1], out, in_place=in_place) == [False]
    assert done == [i in (0, 1, 8) for i in range(len(counts))]
    for i, data in ((0, good), (1, tiles[1]), (8, tiles[8])):
        assert np.array_equal(out[i, :, :WIDTH], ways(data)[0])
    assert (out[[2, 3, 4, 5, 6, 9, 10, 11, 12]] == 9).all()
    assert (out[:, :, WIDTH:] == 9).all()


@needs_many
@pytest.mark.parametrize("kind", ["boxes", "region"])
def test_of_a_local_file_only_what_is_left_is_fetched(make, tmp_path, monkeypatch, kind):
    """And a tile that cannot be decoded is told of as ever."""
    import tifffile

    path = tmp_path / "image.tif"
    height, width = make.TILE
    make.write_format(path, "jpeg-420", 3 * height, 4 * width)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page = tif.pages[0]
        offset, size = page.dataoffsets[5], page.databytecounts[5]
    fetched = []
    read = LocalSource.read_many

    def spy(self, offsets, counts):
        fetched.append((list(offsets), list(counts)))
        return read(self, offsets, counts)

    def look(slide):
        if kind == "region":
            slide.read_region((1, 1), 0, (4 * width - 2, 3 * height - 2))
        else:
            out = np.empty((2, height, width, 3), np.uint8)
            assert slide.view().read_boxes(np.array([[0, 1], [2 * height, 2]]), out)
            assert slide.view().read_boxes(np.array([[height - 1, width - 1], [1, 5]]), out)

    with open_slide(path) as slide:
        look(slide)  # whatever is read once
        monkeypatch.setattr(LocalSource, "read_many", spy)
        look(slide)
        assert not fetched
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x5a" * size)
    with open_slide(path) as slide:
        with pytest.raises(ImageError, match=r"tile \(1, 1\)"):
            look(slide)
    assert ([offset], [size]) in fetched


@pytest.mark.parametrize("beyond", [2**62, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("which", ["TileOffsets", "TileByteCounts"])
def test_places_that_no_file_has(tmp_path, which, beyond):
    """In lists so long that they are read with the first tile."""
    import tifffile

    path = tmp_path / "many.tif"
    pixels = np.kron(picture(0, 80, 80), np.ones((8, 8, 1), np.uint8))
    options = {"tile": (16, 16), "photometric": "ycbcr", "compression": "jpeg", "bigtiff": True}
    tifffile.imwrite(path, pixels, **options)
    with tifffile.TiffFile(path) as tif:
        tags = tif.pages[0].tags
        places, counts = list(tags["TileOffsets"].value), list(tags["TileByteCounts"].value)
    # both as numbers of 64 bits, behind the end
    (places if which == "TileOffsets" else counts)[41] = beyond
    end = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(end)
        file.write(np.array([*places, *counts], "<u8").tobytes())
        for at, name in enumerate(("TileOffsets", "TileByteCounts")):
            file.seek(tags[name].offset + 2)
            file.write(np.array([16], "<u2").tobytes())
            file.seek(tags[name].offset + 12)
            file.write(np.array([end + 8 * at * len(places)], "<u8").tobytes())
    with open_slide(path, backend="tiff") as slide:
        assert slide.read_region((0, 0), 0, (640, 16)).any()
        with pytest.raises(ImageError, match=r"tile \(1, 1\)"):
            slide.read_region((0, 0), 0, (640, 640))


@needs_many
@given(where=st.floats(0, 1), value=st.integers(0, 255), top=st.integers(0, ROWS - 1),
       left=st.integers(0, WIDTH - 1))  # fmt: skip
def test_many_of_which_one_is_damaged(where, value, top, left):
    data = bytearray(stream("420"))
    data[2 + int(where * (len(data) - 3))] = value
    expected, _ = ways(bytes(data))
    band = (top, min(top + 20, ROWS), left, min(left + 20, WIDTH))
    out = np.full((3, ROWS, WIDTH, 3), 9, np.uint8)
    good, _ = ways(stream("420"))
    done = many([stream("420"), bytes(data), stream("420")], [band] * 3, out, in_place=False)
    place = np.s_[band[0] : band[1], band[2] : band[3]]
    assert done[0]
    assert done[2]
    assert np.array_equal(out[0][place], good[place])
    assert np.array_equal(out[2][place], good[place])
    if done[1] and isinstance(expected, np.ndarray):
        assert np.array_equal(out[1][place], expected[place])


@needs_many
@pytest.mark.parametrize("shared", ["tables", "header"])
def test_many_whose_beginning_is_in_the_directory(shared):
    whole = stream("420")
    expected, _ = ways(whole)
    out = np.zeros((2, ROWS, WIDTH, 3), np.uint8)
    options, data = {"tables": only(whole, {0xDB, 0xC4})}, without(whole, {0xDB, 0xC4})
    if shared == "header":
        end = jpeg.Header.parse(whole).length
        options, data = {"header": whole[:end]}, whole[end:-2]
    assert all(many([data] * 2, [(0, ROWS, 0, WIDTH)] * 2, out, in_place=True, **options))
    assert np.array_equal(out[1], expected)


@needs_many
@pytest.mark.parametrize("fault", ["pixels", "beside", "refuses", ""])
def test_many_that_differ_are_not_used(fault, monkeypatch):
    original = turbojpeg.TurboJpeg.decode_many

    def other(self, *args, in_place):
        done, out = original(self, *args, in_place=in_place), args[-1]
        if fault == "pixels":
            out[1, 41, 35] ^= 1
        elif fault == "beside":
            out[-1, -1, -1] = 0
        return [d and fault != "refuses" for d in done]

    monkeypatch.setattr(turbojpeg.TurboJpeg, "decode_many", other)
    monkeypatch.setenv(turbojpeg.VARIABLE, LIBRARY.path)
    assert turbojpeg.library.__wrapped__().has_many == (not fault)


@needs_many
@pytest.mark.parametrize("in_place", [0, 2**40])
@pytest.mark.parametrize("name", ["jpeg-444", "jpeg-420", "strips-jpeg"])
def test_slides_with_and_without_many(make, tmp_path, monkeypatch, name, in_place):
    """The same pixels and the same number of tiles, by calls for many of them."""
    make.write_format(tmp_path / "image.tif", name)
    monkeypatch.setattr(decode, "IN_PLACE", in_place)
    calls = []
    original = turbojpeg.TurboJpeg.decode_many

    def spy(self, tiles, *args, **options):
        calls.append(len(tiles))
        return original(self, tiles, *args, **options)

    monkeypatch.setattr(turbojpeg.TurboJpeg, "decode_many", spy)
    got, tiles = everywhere(tmp_path / "image.tif")
    assert sum(calls) == tiles
    assert max(calls) > 1 or name == "strips-jpeg"
    monkeypatch.setattr(turbojpeg.TurboJpeg, "has_many", False)
    del calls[:]
    expected, again = everywhere(tmp_path / "image.tif")
    assert tiles == again
    assert not calls
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one, other)


def everywhere(path, seed=0):
    """Regions of all levels, on tiles and off them."""
    rng = np.random.default_rng(seed)
    found = []
    with open_slide(path, backend="tiff") as slide, count_tiles() as count:
        for level, (width, height) in enumerate(slide.level_dimensions):
            scale = slide.level_downsamples[level]
            found.append(slide.read_region((0, 0), level, (width, height)))
            for _ in range(6):
                w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
                x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                at = round(x * scale), round(y * scale)
                found.append(slide.read_region(at, level, (w, h)))
    return found, count.tiles


def assert_same_with_and_without(path, monkeypatch):
    monkeypatch.setattr(decode, "IN_PLACE", 0)
    got, tiles = everywhere(path)
    with monkeypatch.context() as patch:
        patch.setattr(turbojpeg, "library", lambda: None)
        expected, expected_tiles = everywhere(path)
    assert tiles == expected_tiles
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one, other)


@needs_library
@pytest.mark.parametrize(
    "name",
    ["jpeg-444", "jpeg-422", "jpeg-420", "jpeg-rgb", "jpeg-grey", "jpeg-planar", "strips-jpeg"],
)
def test_slides(make, tmp_path, monkeypatch, name):
    make.write_format(tmp_path / "image.tif", name)
    assert_same_with_and_without(tmp_path / "image.tif", monkeypatch)


@needs_library
def test_a_real_slide(cmu, monkeypatch):
    assert_same_with_and_without(cmu, monkeypatch)


@pytest.fixture
def places(monkeypatch):
    """(address, pitch, rows) of all that the library decodes; nothing is too small for it."""
    found = []
    monkeypatch.setattr(turbojpeg.TurboJpeg, "has_many", False)
    original = turbojpeg.TurboJpeg.decode

    def spy(self, stream, address, pitch, rows, width):
        found.append((address, pitch, rows))
        return original(self, stream, address, pitch, rows, width)

    monkeypatch.setattr(turbojpeg.TurboJpeg, "decode", spy)
    monkeypatch.setattr(decode, "IN_PLACE", 0)
    return found


@needs_library
def test_tiles_are_decoded_where_they_belong(make, tmp_path, places):
    height, width = make.TILE
    make.write_format(tmp_path / "image.tif", "jpeg-420", 4 * height, 5 * width)
    with open_slide(tmp_path / "image.tif") as slide, count_tiles() as count:
        # one row and two columns of tiles are cut by the region's edges
        top, left = 50, 30
        out = np.empty((3 * height, 4 * width, 3), np.uint8)
        view = slide.view()
        view.read(Region((top, left), out.shape[:2]), out)
    assert count.tiles == 20
    corner, pitch = out.__array_interface__["data"][0], out.strides[0]
    within = {p - corner for p, step, _ in places if step == pitch}
    assert within == {
        (row * height - top) * pitch + (column * width - left) * 3
        for row in (1, 2)
        for column in (1, 2, 3)
    }


@needs_library
def test_a_small_part_of_a_large_array_is_decoded_to_its_place(make, tmp_path, places, monkeypatch):
    """A big chunk of which few tiles are wanted does not stay in the cache, as small arrays do."""
    height, width = make.TILE
    make.write_format(tmp_path / "image.tif", "jpeg-420", 2 * height, 2 * width)
    part = Region((0, 0), (2 * height, 2 * width))
    block = np.zeros((2 * height, 6 * width, 3), np.uint8)
    monkeypatch.setattr(decode, "IN_PLACE", block.nbytes)
    with open_slide(tmp_path / "image.tif") as slide:
        alone = slide.view().read(part)
        before = len(places)
        slide.view().read(part, block[:, width : 3 * width])
    assert alone.strides[0] not in {pitch for _, pitch, _ in places[:before]}
    assert [pitch for _, pitch, _ in places[before:]] == [block.strides[0]] * 4
    assert np.array_equal(block[:, width : 3 * width], alone)
    assert not block[:, :width].any()
    assert not block[:, 3 * width :].any()


@needs_library
def test_strips_are_decoded_where_they_belong(make, tmp_path, places):
    make.write_format(tmp_path / "image.tif", "strips-jpeg", 200, 611)
    out = np.empty((200, 611, 3), np.uint8)
    with open_slide(tmp_path / "image.tif") as slide, count_tiles() as count:
        slide.view().read(Region((0, 0), (200, 611)), out)
    assert count.tiles == 4
    corner, pitch = out.__array_interface__["data"][0], out.strides[0]
    strips = ((0, 64), (64, 64), (128, 64), (192, 8))
    assert places == [(corner + y * pitch, pitch, rows) for y, rows in strips]


@needs_library
@pytest.mark.parametrize("damage", ["corrupt", "missing", "outside"])
def test_bad_tiles_among_good_ones(make, tmp_path, monkeypatch, damage):
    """An error names the tile; painted over, its neighbours keep every pixel."""
    import tifffile

    path = tmp_path / "image.tif"
    height, width = make.TILE
    make.write_format(path, "jpeg-444", 3 * height, 4 * width)
    monkeypatch.setattr(decode, "IN_PLACE", 0)
    with open_slide(path) as slide:
        expected = slide.read_region((0, 0), 0, slide.dimensions)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page = tif.pages[0]
        offset, size = page.dataoffsets[5], page.databytecounts[5]
        counts, offsets = list(page.databytecounts), list(page.dataoffsets)
        if damage == "corrupt":
            tif.filehandle.seek(offset)
            tif.filehandle.write(b"\x5a" * size)
        elif damage == "missing":
            counts[5] = 0
            page.tags["TileByteCounts"].overwrite(counts)
        else:
            offsets[5] = 2**31
            page.tags["TileOffsets"].overwrite(offsets)
    expected[height : 2 * height, width : 2 * width] = 255
    with open_slide(path) as slide:
        got = slide.read_region((0, 0), 0, slide.dimensions, tile_error="fill")
        assert np.array_equal(got, expected)
        if damage != "missing":
            with pytest.raises(ImageError, match=r"tile \(1, 1\)"):
                slide.read_region((0, 0), 0, slide.dimensions)


@needs_library
def test_arrays_with_gaps_of_their_own(make, tmp_path, monkeypatch):
    """Reversed, transposed, and interleaved outputs are filled as others are."""
    make.write_format(tmp_path / "image.tif", "jpeg-422")
    monkeypatch.setattr(decode, "IN_PLACE", 0)
    with open_slide(tmp_path / "image.tif") as slide:
        width, height = slide.dimensions
        expected = slide.read_region((0, 0), 0, (width, height))
        region = Region((0, 0), (height, width))
        for out in (
            np.zeros((height, width, 3), np.uint8)[::-1],
            np.zeros((height, width, 3), np.uint8)[:, ::-1],
            np.zeros((width, height, 3), np.uint8).transpose(1, 0, 2),
            np.zeros((height, width, 4), np.uint8)[..., :3],
            np.zeros((2 * height, width, 3), np.uint8)[::2],
        ):
            slide.view().read(region, out)
            assert np.array_equal(out, expected)


@needs_library
def test_threads_have_decompressors_of_their_own(cmu):
    with open_slide(cmu) as slide:
        expected = slide.to_dask(chunks=1024).compute(scheduler="sync")
        failed = []

        def work():
            if not np.array_equal(slide.to_dask(chunks=1024).compute(scheduler="sync"), expected):
                failed.append(threading.get_ident())

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


class Other:
    """Something that decodes, but not as it should."""

    has_parts = has_many = False

    def __init__(self, fault):
        self.fault = fault

    def without_parts(self):
        pass

    def decode(self, stream, address, pitch, rows, width):
        import ctypes

        import imagecodecs

        pixels = imagecodecs.jpeg8_decode(stream)
        if self.fault == "pixels":
            pixels[3, 4] ^= 1
        for row, line in enumerate(pixels):
            ctypes.memmove(address + row * pitch, line.tobytes(), 3 * width)
        if self.fault == "margin":
            ctypes.memmove(address + 3 * width, b"\0", 1)
        return self.fault != "refuses"


@pytest.mark.parametrize("fault", ["pixels", "margin", "refuses", ""])
def test_a_library_that_decodes_otherwise_is_not_used(fault, monkeypatch, caplog):
    assert turbojpeg.agrees(Other(fault)) == (not fault)
    monkeypatch.setattr(turbojpeg, "TurboJpeg", lambda path: Other(fault))
    monkeypatch.setattr(turbojpeg, "_candidates", lambda: iter(["here"]))
    monkeypatch.delenv(turbojpeg.VARIABLE, raising=False)
    caplog.set_level(logging.WARNING, "daskdmed.images")
    found = turbojpeg.library.__wrapped__()
    assert (found is None) == bool(fault)
    assert ("here decodes to other pixels" in caplog.text) == bool(fault)
    monkeypatch.setenv(turbojpeg.VARIABLE, "/named")
    if fault:
        with pytest.raises(UsageError, match="/named decodes to other pixels"):
            turbojpeg.library.__wrapped__()


@pytest.mark.parametrize("content", [None, b"not a library", "libc"])
def test_a_wrong_path_in_the_environment(tmp_path, monkeypatch, content):
    path = tmp_path / "libturbojpeg.so.0"
    if content == "libc":
        path = "libc.so.6" if sys.platform == "linux" else ctypes_of_this_python()
    elif content is not None:
        path.write_bytes(content)
    monkeypatch.setenv(turbojpeg.VARIABLE, str(path))
    with pytest.raises(UsageError, match=f"{turbojpeg.VARIABLE}=.*is no TurboJPEG library.*off"):
        turbojpeg.library.__wrapped__()


def test_opening_a_slide_tells_of_a_wrong_path(make, tmp_path, monkeypatch):
    """The setting is at fault, and not the file."""
    make.write_format(tmp_path / "image.tif", "jpeg-420")
    monkeypatch.setenv(turbojpeg.VARIABLE, str(tmp_path / "nowhere.so"))
    monkeypatch.setattr(turbojpeg, "library", turbojpeg.library.__wrapped__)
    with pytest.raises(UsageError, match=turbojpeg.VARIABLE):
        open_slide(tmp_path / "image.tif")


def ctypes_of_this_python():
    import _ctypes

    return _ctypes.__file__


def test_off(monkeypatch):
    for value in ("off", "OFF", "0"):
        monkeypatch.setenv(turbojpeg.VARIABLE, value)
        assert turbojpeg.library.__wrapped__() is None


@pytest.mark.parametrize("value", ["", "off", "path"])
def test_in_a_new_process(cmu, value):
    """The variable is read by every process that opens slides."""
    if value == "path":
        if LIBRARY is None:
            pytest.skip("no TurboJPEG library here")
        value = LIBRARY.path
    code = (
        "import sys, zlib; from daskdmed import open_slide; from daskdmed.images import turbojpeg\n"
        "pixels = open_slide(sys.argv[1]).to_dask(chunks=2048).compute()\n"
        "print(turbojpeg.library() is not None, zlib.crc32(pixels))"
    )
    env = {**os.environ, turbojpeg.VARIABLE: value}
    done = subprocess.run(
        [sys.executable, "-c", code, cmu], env=env, capture_output=True, text=True, check=True
    )
    used, checksum = done.stdout.split()
    assert used == str(LIBRARY is not None and value != "off")
    with open_slide(cmu) as slide:
        assert int(checksum) == zlib.crc32(slide.to_dask(chunks=700).compute())


def test_that_of_the_environment_comes_first(tmp_path, monkeypatch):
    """As conda has it, in an environment or below a virtual one."""
    name = turbojpeg._NAMES.get(sys.platform, ("libturbojpeg.so.0",))[0]
    folder = turbojpeg._FOLDERS.get(sys.platform, ("lib",))[0]
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "inner"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "outer"))
    elsewhere = list(turbojpeg._candidates())
    assert elsewhere[0] == name
    for prefix in ("outer", "inner"):
        path = tmp_path / prefix / folder / name
        path.parent.mkdir(parents=True)
        path.touch()
        assert next(turbojpeg._candidates()) == str(path)
    assert list(turbojpeg._candidates())[2:] == elsewhere


def test_found_where_the_wheel_is_installed():
    """So that the tests above run where they can."""
    try:
        importlib.metadata.version("turbojpeg")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the wheel turbojpeg is not installed")
    if os.environ.get(turbojpeg.VARIABLE):
        pytest.skip(f"{turbojpeg.VARIABLE} is set")
    assert LIBRARY is not None


def test_errors_are_those_of_imagecodecs(make):
    """With or without the library, who reads a bad tile hears the same."""
    import imagecodecs

    good = bytes(imagecodecs.jpeg8_encode(picture(0, 2 * ROWS, WIDTH), 85))
    said = []
    for available in (LIBRARY, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(turbojpeg, "library", lambda found=available: found)
            plain = jpeg.make_jpeg(
                samples=3, space=jpeg.YCBCR, outspace=jpeg.RGB, tables=None, header=None
            ).decode
        for data in (b"", b"\xff\xd8\xff\xd9", good, good[:-100], good[:300] + b"\xff\xd9"):
            try:
                plain(data, np.zeros((ROWS, WIDTH, 3), np.uint8))
                said.append("")
            except Exception as exc:
                said.append(f"{type(exc).__name__}: {exc}")
    assert said[:5] == said[5:]
    assert "64 x 96 pixels, the tile 64 x 48" in said[2]
    assert "cut off" in said[3]
    with pytest.raises(DecodeError):
        plain(good, np.zeros((ROWS, WIDTH, 3), np.uint8))
