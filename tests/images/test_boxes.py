"""Boxes of one size: each as it is read for itself, and no storage tile decoded twice for them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.errors import TileError, UsageError
from daskdmed.images.opening import open_slide
from daskdmed.images.parts import Boxes, parts_of
from daskdmed.images.tiff import count_tiles
from tests.images.test_parts import Tiled, cases

HEIGHT, WIDTH, TILE = 300, 351, (128, 160)


def apart(view, region, places, size):
    """The boxes, and the tiles that were decoded for them."""
    boxes = Boxes.at(places, size)
    out = np.full((len(boxes), *size, *view.channel_shape), 77, view.dtype)
    with count_tiles() as counted:
        parts_of(view, region, boxes).read_apart(view, boxes, out)
    return out, counted.tiles


def alone(view, places, size):
    return np.stack([view.read_padded(Region(tuple(map(int, p)), size)) for p in places])


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_any_view_and_boxes(case, data):
    view, region, _ = case
    size = tuple(data.draw(st.integers(1, extent)) for extent in region.shape)
    room = zip(region.origin, region.shape, size, strict=True)
    place = st.tuples(*(st.integers(o, o + e - s) for o, e, s in room))
    places = data.draw(st.lists(place, min_size=1, max_size=5))
    expected = alone(view, places, size)
    view.decoded.clear()
    out, _ = apart(view, region, places, size)
    assert np.array_equal(out, expected)
    if view.cheap_to_cut:
        assert len(view.decoded) == len(set(view.decoded))


def test_outside_of_the_image_is_the_background_where_it_is_known():
    view = Tiled((8, 8), (4, 4), (0, 0))
    out, _ = apart(view, Region((-4, -4), (12, 12)), [(-2, -3), (4, 4)], (4, 4))
    assert not out[0, :2].any()
    assert not out[0, :, :3].any()
    assert np.array_equal(out[1], view.values[4:, 4:])


def test_what_lies_inside_the_image_needs_no_background():
    def unknown(self):
        raise UsageError("signed integers do not tell what is empty")

    class Unknown(Tiled):
        background = property(unknown, lambda self, value: None)

    view, region = Unknown((8, 8), (4, 4), (0, 0)), Region((-4, -4), (12, 12))
    with pytest.raises(UsageError, match="signed"):
        apart(view, region, [(-2, -3)], (4, 4))
    out, _ = apart(view, region, [(2, 3)], (4, 4))
    assert np.array_equal(out[0], view.values[2:6, 3:7])


def slide(make, path, kind, **options):
    make.write_format(path, kind, HEIGHT, WIDTH)
    return open_slide(path).view(**options)


#: at both ends, twice the same, one over the other
PLACES = [(0, 0), (HEIGHT - 70, WIDTH - 45), (100, 130), (100, 130), (120, 150), (127, 159)]


@pytest.mark.parametrize(
    ("kind", "at_once"),
    {
        "jpeg-420": True,
        "jpeg-422": True,
        "jpeg-rgb": True,
        "jpeg-grey": True,
        "deflate": True,
        "grey16": True,
        "jpeg2000": True,
        "none": False,
        "planar": False,
        "strips-lzw": False,
    }.items(),
)
def test_formats(make, tmp_path, kind, at_once):
    view = slide(make, tmp_path / "one.tif", kind)
    size = (70, 45)
    out, tiles = apart(view, Region.of((HEIGHT, WIDTH)), PLACES, size)
    assert np.array_equal(out, alone(view, PLACES, size))
    values = np.empty_like(out)
    with count_tiles() as counted:
        assert view.read_boxes(np.array(PLACES), values) is at_once
    if at_once:
        assert np.array_equal(values, out)
        # of 3 x 3 tiles two are not touched
        assert counted.tiles == tiles == 7


def test_part_of_the_channels_and_other_colours(make, tmp_path):
    path = tmp_path / "one.tif"
    make.write_format(path, "jpeg-420", HEIGHT, WIDTH)
    for image in (open_slide(path).with_channels([2, 0]), open_slide(path)):
        view = image.view()
        out, _ = apart(view, Region.of((HEIGHT, WIDTH)), PLACES, (70, 45))
        assert np.array_equal(out, alone(view, PLACES, (70, 45)))


def test_a_failed_tile_raises_or_is_painted(make, tmp_path):
    path = tmp_path / "bad.tif"
    make.write_format(path, "jpeg-420", HEIGHT, WIDTH)
    offsets, counts = make.page_facts(path)
    make.damage(path, offsets[4], bytes(counts[4]))
    whole = Region.of((HEIGHT, WIDTH))
    with pytest.raises(TileError, match=r"tile \(1, 1\)"):
        apart(open_slide(path).view(), whole, PLACES, (70, 45))
    view = open_slide(path).view(tile_error="fill")
    out, _ = apart(view, whole, PLACES, (70, 45))
    assert [(f.level, f.tile) for f in view.failed_tiles] == [(0, (1, 1))]
    assert np.array_equal(out, alone(view, PLACES, (70, 45)))
    assert (out[2, 28:, 30:] == 255).all()


def test_missing_tiles_are_the_background(make, tmp_path):
    path = tmp_path / "holes.tif"
    encoded = list(make.tiles(make.picture(HEIGHT, WIDTH), TILE, lambda t: t.tobytes()))
    encoded[4] = b""
    options = {"photometric": "rgb", "metadata": None, "compression": "deflate"}
    with tifffile.TiffWriter(path) as tif:
        data = (zlib.compress(t) if t else t for t in encoded)
        tif.write(data, shape=(HEIGHT, WIDTH, 3), dtype="uint8", tile=TILE, **options)
    view = open_slide(path).view()
    out, tiles = apart(view, Region.of((HEIGHT, WIDTH)), PLACES, (70, 45))
    assert tiles == 6
    assert (out[2, 28:, 30:] == 255).all()
    assert np.array_equal(out, alone(view, PLACES, (70, 45)))
