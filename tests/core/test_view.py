"""What every view shares: identity, checks, pixels outside the image."""

from __future__ import annotations

import numpy as np
import pytest
from dask.base import tokenize
from hypothesis import given
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.core.view import ImageView
from daskdmed.errors import GeometryError


class Pixels(ImageView):
    """An image in memory."""

    mpp = None

    def __init__(self, values, spatial_ndim, background=7):
        self.values, self.spatial_ndim = values, spatial_ndim
        self.shape, self.dtype = values.shape, values.dtype
        self.background = np.full(self.channel_shape, background, values.dtype)
        self.tile_shape = self.downsample = (1,) * spatial_ndim
        self.token = tokenize(values, spatial_ndim)
        self.reads = []

    def _read(self, region, out):
        self.reads.append(region)
        if out is None:
            return self.values[region.slices].copy()
        out[...] = self.values[region.slices]
        return out


@st.composite
def images(draw):
    ndim = draw(st.integers(1, 3))
    shape = draw(st.tuples(*(st.integers(1, 6),) * ndim))
    channels = draw(st.sampled_from([(), (1,), (3,)]))
    count = int(np.prod((*shape, *channels)))
    values = np.arange(100, 100 + count, dtype=np.int32).reshape(*shape, *channels)
    origin = draw(st.tuples(*(st.integers(-5, 8),) * ndim))
    extent = draw(st.tuples(*(st.integers(0, 7),) * ndim))
    return values, Region(origin, extent)


@given(images(), st.booleans())
def test_outside_the_image_lies_the_background(image, given_out):
    values, region = image
    ndim = len(region.shape)
    view = Pixels(values, ndim)
    expected = np.full((*region.shape, *view.channel_shape), 7, np.int32)
    for index in np.ndindex(region.shape):
        at = tuple(o + i for o, i in zip(region.origin, index, strict=True))
        if all(0 <= a < n for a, n in zip(at, values.shape, strict=False)):
            expected[index] = values[at]
    frame = np.full(tuple(n + 2 for n in expected.shape), -1, np.int32)
    out = frame[(slice(1, -1),) * expected.ndim] if given_out else None
    got = view.read_padded(region, out)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == values.dtype
    if given_out:
        assert got is out
        out[...] = -1
        assert (frame == -1).all(), "pixels around `out` were written"
    # only what lies inside is read, once
    inside = region.clip(view.spatial_shape)
    assert view.reads == ([inside] if inside.size or inside == region else [])


def test_what_is_read_is_checked_once_for_all_views():
    view = Pixels(np.zeros((4, 5, 3), np.uint8), 2)
    for region in (Region((0, 0), (5, 5)), Region((-1, 0), (2, 2)), Region((0,), (2,))):
        with pytest.raises(GeometryError, match="outside"):
            view.read(region)
    with pytest.raises(GeometryError, match="no region"):
        view.read_padded(Region((0, 0, 0), (1, 1, 1)))
    with pytest.raises(GeometryError, match="no region"):
        view.read_padded(Region((0, 0), (-1, 1)))
    for wrong in (np.zeros((2, 3, 3), np.uint8), np.zeros((2, 2, 3), np.uint16)):
        for read in (view.read, view.read_padded):
            with pytest.raises(GeometryError, match="out has shape"):
                read(Region((0, 0), (2, 2)), wrong)


def test_views_are_equal_when_their_tokens_are():
    one, same = (Pixels(np.arange(12).reshape(3, 4), 2) for _ in range(2))
    other = Pixels(np.arange(12).reshape(3, 4), 1)
    assert one == same
    assert hash(one) == hash(same)
    assert tokenize(one) == tokenize(same)
    assert one != other
    assert one != "array"


def test_spacing_is_in_array_order_and_millimeters():
    view = Pixels(np.zeros((4, 5)), 2)
    assert view.spacing is None
    view.mpp = (0.25, 0.5)
    assert view.spacing == (0.5 / 1000, 0.25 / 1000)
    assert view.name == "array of shape (4, 5)"
