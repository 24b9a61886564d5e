"""`read_parts`: what boxes need of a region, and no storage tile that none touches."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.view import ImageView
from daskdmed.errors import GeometryError
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.opening import open_slide
from daskdmed.images.parts import Boxes, joined, parts_of, read_parts
from daskdmed.images.tiff import count_tiles
from daskdmed.images.volumes.view import VolumeView, view_of_array


class Tiled(ImageView):
    """An image in memory that notes which storage tiles are decoded, each time."""

    mpp = None

    def __init__(self, shape, tile, origin, channels=(), cheap=True):
        self.spatial_ndim, self.shape = len(shape), (*shape, *channels)
        self.values = np.arange(1, 1 + np.prod(self.shape), dtype=np.int64).reshape(self.shape)
        self.dtype, self.background = self.values.dtype, np.zeros(channels, np.int64)
        self.tile_shape, self._origin, self._cheap = tile, origin, cheap
        self.downsample, self.token = (1.0,) * len(shape), "tiled"
        self.decoded = []

    tile_origin = property(lambda self: self._origin)
    cheap_to_cut = property(lambda self: self._cheap)

    def tiles(self, region):
        cells = region.shift([-o for o in self._origin]).cells(self.tile_shape)
        return {tuple(np.add(i, cells.origin).tolist()) for i in np.ndindex(cells.shape)}

    def _read(self, region, out):
        self.decoded += self.tiles(region)
        out[...] = self.values[region.slices]
        return out


@st.composite
def cases(draw):
    axes = draw(st.integers(1, 3))
    shape = draw(st.tuples(*(st.integers(1, 9),) * axes))
    tile = draw(st.tuples(*(st.integers(1, 4),) * axes))
    origin = draw(st.tuples(*(st.integers(0, 5),) * axes))
    channels = draw(st.sampled_from([(), (2,)]))

    def region():
        first = draw(st.tuples(*(st.integers(-3, 8),) * axes))
        return Region(first, draw(st.tuples(*(st.integers(1, 7),) * axes)))

    boxes = [region() for _ in range(draw(st.integers(0, 4)))]
    return Tiled(shape, tile, origin, channels, draw(st.booleans())), region(), boxes


@settings(max_examples=150, deadline=None)
@given(cases())
def test_boxes_are_as_in_the_whole_and_no_other_tile_is_decoded(case):
    view, region, boxes = case
    whole = view.read_padded(region)
    view.decoded.clear()
    got = read_parts(view, region, boxes, out := np.full(whole.shape, -1))
    assert got is out
    inside = region.clip(view.spatial_shape)
    needed = set()
    for box in boxes:
        part = box.intersect(region)
        if part.size:
            place = part.local_to(region).slices
            assert np.array_equal(got[place], whole[place])
        if (part := part.intersect(inside)).size:
            needed |= view.tiles(part)
    assert set(view.decoded) == needed
    if view.cheap_to_cut:  # each once
        assert len(view.decoded) == len(needed)
    other = got != whole
    assert not got[other].any()  # the background
    parts = parts_of(view, region, Boxes.of(boxes, len(region.shape)))
    read = sum(r.size for r in parts.rectangles())
    assert parts.pixels == read
    assert (got != 0).sum() == read * max(1, np.prod(view.channel_shape))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3).flatmap(lambda n: st.tuples(*(st.integers(1, 5),) * n)), st.data())
def test_cells_are_joined_into_rectangles(shape, data):
    bits = data.draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=10**3))
    wanted = np.array(bits[: int(np.prod(shape))]).reshape(shape)
    counts = np.zeros(shape, int)
    for first, stop in zip(*joined(wanted), strict=True):
        counts[Region.between(first.tolist(), stop.tolist()).slices] += 1
    assert np.array_equal(counts, wanted)


def test_few_rectangles():
    wanted = np.zeros((6, 8), bool)
    wanted[1:4, 2:7] = wanted[5, :3] = True
    assert len(joined(wanted)[0]) == 2


def test_the_same_parts_have_the_same_name():
    view = Tiled((40, 40), (8, 8), (0, 0))
    whole = Region.of((40, 40))

    def digest(*places, tight=False):
        view._cheap = not tight
        return parts_of(view, whole, Boxes.at(places, (4, 4))).digest

    assert digest((0, 0), (20, 20)) == digest((18, 17), (3, 3), (1, 2))
    assert digest((0, 0), (20, 20)) != digest((0, 0), (21, 20))
    # what lies beside the boxes is not read of these
    assert digest((0, 0), tight=True) != digest((1, 1), tight=True)
    assert digest((0, 0), (9, 9), tight=True) == digest((9, 9), (0, 0), (9, 9), tight=True)


def test_rows_without_number_are_joined():
    view = Tiled((512, 512), (1, 1), (0, 0))
    parts = parts_of(view, Region.of((512, 512)), Boxes.at([(7, 9)], (30, 30)))
    assert parts.wanted.size <= 1 << 16
    got = parts.read(view, Region.of((512, 512)))
    assert np.array_equal(got[7:37, 9:39], view.values[7:37, 9:39])


def test_other_axes_are_refused():
    view = Tiled((8, 8), (4, 4), (0, 0))
    with pytest.raises(GeometryError, match="2 axes"):
        read_parts(view, Region((0,), (3,)), [])
    with pytest.raises(GeometryError, match="boxes of 2 axes"):
        read_parts(view, Region.of((8, 8)), [Region((0,), (3,))])
    with pytest.raises(GeometryError, match="out has shape"):
        read_parts(view, Region.of((8, 8)), [], np.zeros((7, 8), np.int64))


@pytest.fixture(scope="module")
def pyramid(make, tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "pyramid.tif"
    make.write_pyramid(path, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    return open_slide(path)


def check(view, region, boxes):
    """Equal inside the boxes; the number of tiles decoded."""
    whole = view.read_padded(region)
    with count_tiles() as counted:
        got = read_parts(view, region, boxes)
    assert (got.shape, got.dtype) == (whole.shape, whole.dtype)
    for box in boxes:
        place = box.intersect(region).local_to(region).slices
        assert np.array_equal(got[place], whole[place])
    assert not np.array_equal(got, whole)
    return counted.tiles


BOXES = [Region((300, 330), (60, 60)), Region((20, 10), (60, 60)), Region((340, 340), (60, 60))]


def test_tiles_of_a_level(pyramid):
    # tiles of 128 x 160: one, then the four around (384, 480), to which (300, 330) adds one
    view = pyramid.view(level=0)
    boxes = [Region((20, 10), (60, 60)), Region((360, 450), (60, 60)), Region((300, 330), (60, 60))]
    assert check(view, Region((0, 0), (700, 700)), boxes) == 1 + 4
    assert check(view, Region((-50, -50), (700, 700)), boxes) == 1 + 4
    assert check(pyramid.view(level=1), Region((0, 0), (500, 768)), boxes[:1]) == 1


@pytest.mark.parametrize("mpp", [0.7, 1.5, 0.4])
def test_between_levels_no_tile_beside_the_boxes_is_decoded(pyramid, mpp):
    view = pyramid.view(mpp=mpp)
    with count_tiles() as alone:
        view.read(BOXES[1])
    assert check(view, Region((0, 0), (300, 300)), BOXES[1:2]) == alone.tiles
    check(view, Region((0, 0), (420, 420)), BOXES)


def test_other_backends(make, cmu, tmp_path):
    path = tmp_path / "image.zarr"
    values = make.picture(500, 611)
    zarr.create_array(path, data=values, chunks=(64, 48, 3))
    check(open_slide(path).view(level=0), Region((3, 5), (450, 450)), BOXES)
    check(open_slide(cmu, backend="openslide").view(level=0), Region((7, 0), (450, 999)), BOXES)
    array = da.from_array(values, chunks=(100, 90, 3))
    check(ArrayView(array, 2), Region((-3, 5), (450, 450)), BOXES)


def test_volumes_and_axes_that_are_turned():
    values = np.random.default_rng(0).integers(0, 99, (20, 30, 25), np.uint8)
    array = da.from_array(values, chunks=8)
    view = ArrayView(array, 3, space=Space(np.diag([1.0, 1, 1, 1]), values.shape))
    boxes = [Region((2, 3, 4), (5, 5, 5)), Region((10, 17, 3), (5, 5, 5))]
    check(view_of_array(view, None, "LPS"), Region((0, 0, 0), (18, 22, 22)), boxes)
    check(view_of_array(view, 1.5, None), Region((0, 0, 0), (12, 18, 14)), boxes[:1])


def test_tiles_are_counted_from_the_end_of_an_axis_that_is_turned_round():
    source = Tiled((11, 13, 9), (4, 5, 3), (0, 0, 0))
    view = VolumeView(
        source, (9, 11, 13), (2, 0, 1), (True, False, True), None, (1.0,) * 3, outside=(0,)
    )
    view.read(Region((1, 2, 3), (2, 2, 2)))
    alone = set(source.decoded)
    source.decoded.clear()
    boxes = [Region((1, 2, 3), (2, 2, 2)), Region((2, 3, 3), (1, 1, 1))]
    got = read_parts(view, Region.of(view.shape), boxes)
    assert sorted(source.decoded) == sorted(alone)
    assert np.array_equal(got[1:3, 2:4, 3:5], view.read(boxes[0]))
