"""Neighbouring slices as channels."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.context import context_of, neighbours, with_context


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 4), st.data())
def test_neighbours_are_those_of_numpys_pad(size, reach, data):
    begin = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(begin + 1, size))
    for edge in ("reflect", "edge"):
        padded = np.pad(np.arange(size), reach, mode=edge)
        found = neighbours(begin, stop, reach, size, edge)
        assert found.tolist() == padded[begin : stop + 2 * reach].tolist()


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def volume(rng, channels):
    values = rng.integers(0, 255, (7, 6, 5, *channels)).astype(np.uint8)
    space = Space(np.diag([3, 1, 1, 1]), (7, 6, 5))
    return values, ArrayView(da.from_array(values, chunks=3), 3, space=space)


@pytest.mark.parametrize("channels", [(), (2,)])
@pytest.mark.parametrize("context", [1, (2, 0, 0), (1, 0, 1)])
def test_channels_are_slices_around_the_one_in_the_middle(rng, channels, context):
    values, view = volume(rng, channels)
    seen = with_context(view, context)
    reach = context_of(context, 3)
    padded = np.pad(values.reshape(7, 6, 5, -1), [(k, k) for k in reach] + [(0, 0)], mode="reflect")
    offsets = np.ndindex(*(2 * k + 1 for k in reach))
    wanted = np.concatenate(
        [padded[a : a + 7, b : b + 6, c : c + 5] for a, b, c in offsets], axis=-1
    )
    assert seen.shape == wanted.shape
    assert np.array_equal(seen.read(Region.of((7, 6, 5))), wanted)
    part = Region((5, 1, 0), (2, 4, 3))
    assert np.array_equal(seen.read(part), wanted[part.slices])
    # the middle is the slice itself: nothing is shifted
    middle = wanted.shape[-1] // 2
    width = max(1, *channels) if channels else 1
    own = wanted[..., middle - width // 2 : middle - width // 2 + width]
    assert np.array_equal(own, values.reshape(7, 6, 5, -1))
    assert seen.space == view.space
    assert seen.token != view.token


def test_it_travels_with_the_slices_that_it_needs(rng):
    values, view = volume(rng, ())
    seen = with_context(view, 1)
    region = Region((0, 0, 0), (1, 6, 5))
    sent = pickle.loads(pickle.dumps(seen.narrowed(region)))
    wanted = np.stack([values[1], values[0], values[1]], -1)[None]
    assert np.array_equal(sent.read(region), wanted)
    kept = seen.detached(region).attached(view.read(Region((0, 0, 0), (2, 6, 5))))
    assert np.array_equal(kept.read(region), wanted)


def test_pixels_outside_are_the_background_in_every_channel(rng):
    _, view = volume(rng, (2,))
    padded = with_context(view, 1).read_padded(Region((0, -1, 0), (1, 2, 5)))
    assert padded.shape == (1, 2, 5, 6)
    assert not padded[0, 0].any()


def test_no_context_is_the_view_itself(rng):
    _, view = volume(rng, ())
    assert with_context(view, None) is view
    assert with_context(view, 0) is view


@pytest.mark.parametrize(("context", "axes"), [(-1, 3), (1.5, 3), ((1, 0), 3), (1, 2), (True, 3)])
def test_what_is_no_context_is_refused(context, axes):
    with pytest.raises(GeometryError, match="neighbouring slices"):
        context_of(context, axes)
