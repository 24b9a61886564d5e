"""Where small chunks may lie, against brute force over pixels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from daskdmed.core.region import Region
from daskdmed.errors import UsageError
from daskdmed.persistence import areas
from daskdmed.persistence.areas import GOLDEN, Area, Draws, Places, spread


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


def rows_of(area, region, size):
    return Places(area, [region], size).all()


@settings(max_examples=150)
@given(cases())
def test_all_places_are_those_that_brute_force_finds(case):
    mask, scale, extent, region, size, least = case
    area = Area.of(mask, extent, least)
    assert area.scale == scale
    places = Places(area, [region], size)
    found = [tuple(row[1:]) for row in places.all().tolist()]
    assert len(found) == len(set(found)) <= places.bound
    expected = brute_force(mask, scale, region, size, least)
    assert set(found) == expected
    assert places.any() == bool(expected)
    tried = places.tried(np.random.default_rng(1), 200)
    assert {tuple(row[1:]) for row in tried.tolist()} <= expected
    assert area.allowed(np.array(found, np.int64).reshape(-1, len(size)), size).all()


@settings(max_examples=60)
@given(cases())
def test_a_cut_area_decides_the_same_inside_its_region(case):
    mask, _, extent, region, size, least = case
    area = Area.of(mask, extent, least)
    part = pickle.loads(pickle.dumps(area.cut(region)))
    np.testing.assert_array_equal(rows_of(part, region, size), rows_of(area, region, size))


@settings(max_examples=60)
@given(cases(), st.integers(1, 50))
def test_draws_give_every_place_once_before_any_again(case, portion):
    mask, scale, extent, region, size, least = case
    places = Places(Area.of(mask, extent, least), [region], size)
    expected = brute_force(mask, scale, region, size, least)
    draws = Draws(places, portion, np.random.default_rng)
    drawn = []
    while expected and len(drawn) < 2 * len(expected):
        drawn += [tuple(row[1:]) for row in draws.more()]
    if not expected:
        assert draws.more() == []
        return
    assert set(drawn[: len(expected)]) == expected
    assert set(drawn[len(expected) : 2 * len(expected)]) == expected


@pytest.mark.parametrize("few", [0, 10**6])
def test_draws_are_uniform_whether_tried_or_listed(monkeypatch, few):
    monkeypatch.setattr(areas, "_FEW", few)
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0]], bool)
    area = Area.of(mask, (12, 16), 0.5)
    places = Places(area, [Region((0, 0), (12, 16))], (5, 5))
    number = {tuple(row): i for i, row in enumerate(places.all().tolist())}
    counts = np.zeros(len(number))
    for seed in range(1000):
        draws = Draws(places, 6, lambda n, seed=seed: np.random.default_rng([seed, n]))
        for row in draws.more()[:6]:
            counts[number[row]] += 1
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    # drawn without repetition, so that the statistic is smaller than with it
    assert statistic < chi2.ppf(0.9999, len(number) - 1)


def test_a_scale_that_is_no_whole_number():
    # 3 mask pixels over 10: the middle one covers 3.33 to 6.67
    for least in (0.2, 0.5, 0.75, 0.9):
        area = Area.of(np.array([False, True, False]), (10,), least)
        expected = [max(0, min(o + 4, 20 / 3) - max(o, 10 / 3)) / 4 >= least for o in range(7)]
        assert area.allowed(np.arange(7)[:, None], (4,)).tolist() == expected


def test_first_pixels_are_multiples_when_a_target_asks_for_it():
    area = Area.of(np.ones((4, 4), bool), (64, 64), 1.0, multiple=(8, 4))
    places = Places(area, [Region((3, 3), (50, 50))], (16, 16))
    found = places.all()[:, 1:]
    assert not np.any(found % (8, 4))
    assert len(found) == 4 * 9  # 8, 16, 24, 32; and 4, 8, ... 36
    assert not np.any(places.tried(np.random.default_rng(0), 100)[:, 1:] % (8, 4))


def test_several_regions():
    area = Area.of(np.ones((4, 4), bool), (64, 64), None)
    regions = [Region((0, 0), (16, 20)), Region((40, 8), (17, 16))]
    rows = Places(area, regions, (16, 16)).all()
    assert rows.tolist() == [*([0, 0, x] for x in range(5)), [1, 40, 8], [1, 41, 8]]


def test_equal_weights_give_each_thing_once_a_lap():
    for seed in range(20):
        lap = spread(np.full(13, 3.0), seed / 20, np.random.default_rng(seed))
        assert sorted(lap) == list(range(13))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30).filter(any), st.integers(0, 999))
def test_a_lap_visits_in_proportion(weights, seed):
    w = np.array(weights, float)
    lap = spread(w, seed / 1000, np.random.default_rng(seed))
    counts = np.bincount(lap, minlength=w.size)
    expected = w / w.sum() * np.count_nonzero(w)
    assert lap.size == np.count_nonzero(w)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    assert not counts[w == 0].any()


def test_the_mean_over_laps_is_the_weight():
    w = np.array([1.0, 2, 5, 0, 12])
    laps = [spread(w, lap * GOLDEN % 1.0, np.random.default_rng(lap)) for lap in range(1000)]
    counts = np.bincount(np.concatenate(laps), minlength=5)
    np.testing.assert_allclose(counts / counts.sum(), w / w.sum(), atol=0.001)


def test_a_fraction_that_is_none():
    with pytest.raises(UsageError, match=r"\(0, 1\]"):
        Area.of(np.ones((2, 2), bool), (8, 8), 1.5)
