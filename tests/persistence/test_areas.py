"""Where small chunks may lie, against brute force over pixels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.errors import UsageError
from daskdmed.persistence.areas import Area, spread
from daskdmed.persistence.blockgrid import BlockGrid


@st.composite
def cases(draw):
    """A mask in 1-D to 3-D, whole pixels per mask pixel, a region and a crop inside."""
    axes = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(2, 7)) for _ in range(axes))
    scale = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    extent = tuple(n * s for n, s in zip(shape, scale, strict=True))
    size = tuple(draw(st.integers(1, e)) for e in extent)
    origin = tuple(draw(st.integers(0, e - s)) for e, s in zip(extent, size, strict=True))
    region = tuple(
        draw(st.integers(s, e - o)) for e, s, o in zip(extent, size, origin, strict=True)
    )
    least = draw(st.sampled_from([None, 0.25, 0.5, 1.0]))
    return mask, scale, extent, Region(origin, region), size, least


def brute_force(mask, scale, region, size, least):
    """Every first pixel whose crop is allowed, counted pixel by pixel."""
    pixels = mask
    for axis, s in enumerate(scale):
        pixels = pixels.repeat(s, axis=axis)
    found = set()
    rooms = [e - s + 1 for e, s in zip(region.shape, size, strict=True)]
    for at in np.ndindex(*rooms):
        first = tuple(o + a for o, a in zip(region.origin, at, strict=True))
        if least is None:
            centre = tuple(int((f + s / 2) / k) for f, s, k in zip(first, size, scale, strict=True))
            centre = tuple(min(c, n - 1) for c, n in zip(centre, mask.shape, strict=True))
            allowed = mask[centre]
        else:
            crop = pixels[tuple(slice(f, f + s) for f, s in zip(first, size, strict=True))]
            allowed = crop.mean() >= least - 1e-6
        if allowed:
            found.add(first)
    return found


@settings(max_examples=150)
@given(cases())
def test_all_lattices_together_are_all_allowed_places(case):
    mask, scale, extent, region, size, least = case
    area = Area.of(mask, extent, least)
    assert area.scale == scale
    found = []
    shifts = {area.shift(n, 7, 0, 0) for n in range(area.shifts())}
    assert len(shifts) == area.shifts()
    for shift in shifts:
        found += [tuple(c) for c in area.candidates(region, size, shift).tolist()]
    assert len(found) == len(set(found))  # no place on two lattices
    assert set(found) == brute_force(mask, scale, region, size, least)


@settings(max_examples=60)
@given(cases())
def test_a_cut_area_decides_the_same_inside_its_region(case):
    mask, _, extent, region, size, least = case
    area = Area.of(mask, extent, least)
    part = pickle.loads(pickle.dumps(area.cut(region)))
    for number in range(min(4, area.shifts())):
        shift = area.shift(number, 1)
        assert part.shift(number, 1) == shift
        np.testing.assert_array_equal(
            part.candidates(region, size, shift), area.candidates(region, size, shift)
        )


def test_a_scale_that_is_no_whole_number():
    # 3 mask pixels over 10: the middle one covers 3.33 to 6.67
    area = Area.of(np.array([False, True, False]), (10,), 0.5)
    covered = area.covered([np.arange(7)], (4,))
    expected = [max(0, min(o + 4, 20 / 3) - max(o, 10 / 3)) / 4 for o in range(7)]
    np.testing.assert_allclose(covered, expected, atol=1e-12)


def test_first_pixels_are_multiples_when_a_target_asks_for_it():
    area = Area.of(np.ones((4, 4), bool), (64, 64), 1.0, multiple=(8, 4))
    for number in range(area.shifts()):
        found = area.candidates(Region((3, 3), (50, 50)), (16, 16), area.shift(number, 5))
        assert not np.any(found % (8, 4))
    assert area.steps == (16, 16)


def test_big_chunks_without_anything_weigh_nothing():
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True
    grid = BlockGrid.of((512, 512), (256, 256), (64, 64), (64, 64))
    weights = Area.of(mask, (512, 512), 0.5).weights(grid, (64, 64))
    assert weights[0] > 0
    assert not weights[3]
    # half a crop may hang over into the neighbours' side only where they hold tissue
    assert weights[0] > weights[1:].max()


def test_equal_weights_give_each_thing_once_a_lap():
    for seed in range(20):
        lap = spread(np.full(13, 3.0), np.random.default_rng(seed))
        assert sorted(lap) == list(range(13))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any), st.integers(0, 999))
def test_a_lap_visits_in_proportion(weights, seed):
    w = np.array(weights, float)
    lap = spread(w, np.random.default_rng(seed))
    counts = np.bincount(lap, minlength=w.size)
    expected = w / w.sum() * np.count_nonzero(w)
    assert lap.size == np.count_nonzero(w)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    assert not counts[w == 0].any()


def test_the_mean_over_laps_is_the_weight():
    w = np.array([1.0, 2, 5, 0, 12])
    counts = sum(np.bincount(spread(w, np.random.default_rng(s)), minlength=5) for s in range(3000))
    np.testing.assert_allclose(counts / counts.sum(), w / w.sum(), atol=0.01)


def test_a_fraction_that_is_none():
    with pytest.raises(UsageError, match=r"\(0, 1\]"):
        Area.of(np.ones((2, 2), bool), (8, 8), 1.5)
