"""Covered shares of windows against a mask blown up to full resolution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.errors import GeometryError
from daskdmed.tiling.grid import WindowGrid
from daskdmed.tiling.mask import coverage, kept_windows


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 7)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0.4, 1, 1.5, 2, 3.3, 5]),
    st.sampled_from(["pad", "shift", "drop"]),
    st.integers(0, 2**32),
)
def test_coverage_is_the_area_weighted_mean(axes, downsample, edge, seed):
    shape, kernel, stride = zip(*axes, strict=True)
    cells = [math.ceil(n / downsample) for n in shape]
    grid = WindowGrid(shape, kernel, stride, edge)
    mask = np.random.default_rng(seed).random(cells)
    # a common multiple of pixels and cells, on which both have whole edges
    factor = [math.lcm(n, c) for n, c in zip(shape, cells, strict=True)]
    fine = mask
    for axis, (f, c) in enumerate(zip(factor, cells, strict=True)):
        fine = np.repeat(fine, f // c, axis=axis)
    found = coverage(mask, grid)
    assert found.shape == grid.counts
    for index, origin in grid:
        window = tuple(
            slice(o * f // n, min(o + k, n) * f // n)
            for o, k, f, n in zip(origin, kernel, factor, shape, strict=True)
        )
        assert math.isclose(found[index], fine[window].mean(), abs_tol=1e-9)


def test_boolean_masks_and_the_least_share():
    grid = WindowGrid.of((40, 40), 20)
    mask = np.zeros((40, 40), bool)
    mask[:20, :10] = True
    np.testing.assert_array_equal(coverage(mask, grid), [[0.5, 0], [0, 0]])
    assert kept_windows(mask, grid).sum() == 1
    assert kept_windows(mask, grid, 0.5).sum() == 1
    assert kept_windows(mask, grid, 0.51).sum() == 0
    with pytest.raises(GeometryError, match="share"):
        kept_windows(mask, grid, 1.5)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 12), st.integers(1, 6), st.integers(1, 7), st.integers(1, 5),
            st.integers(1, 6),
        ),
        min_size=1,
        max_size=2,
    ),
    st.sampled_from(["pad", "shift"]),
    st.integers(0, 2**32),
)  # fmt: skip
def test_a_mask_with_a_scale_of_its_own(axes, edge, seed):
    shape, kernel, stride, cells, scale = zip(*axes, strict=True)
    grid = WindowGrid(shape, kernel, stride, edge)
    mask = np.random.default_rng(seed).random(cells)
    # each mask pixel covers `scale` image pixels; beyond the mask there is nothing
    fine = mask
    for axis, s in enumerate(scale):
        fine = np.repeat(fine, s, axis=axis)
    fine = np.pad(fine, [(0, max(n - len_, 0)) for n, len_ in zip(shape, fine.shape)])
    found = coverage(mask, grid, [c * s for c, s in zip(cells, scale)])
    for index, origin in grid:
        window = tuple(
            slice(o, min(o + k, n)) for o, k, n in zip(origin, kernel, shape, strict=True)
        )
        assert math.isclose(found[index], fine[window].mean(), abs_tol=1e-9)


def test_a_mask_whose_scale_is_no_whole_number():
    # 10 mask pixels of 10.24 over 100 image pixels: the last one reaches beyond the image
    grid = WindowGrid.of((100,), 10)
    mask = np.zeros(10, bool)
    mask[9] = True  # 92.16 to 102.4
    np.testing.assert_allclose(coverage(mask, grid, [102.4]), [0] * 9 + [0.784])
    for extent in ([0.0], [1.0, 1.0], [float("nan")]):
        with pytest.raises(GeometryError, match="spans"):
            coverage(mask, grid, extent)


def test_masks_of_other_kinds_are_refused():
    grid = WindowGrid.of((40, 40), 20)
    for mask in (np.full((4, 4), "x"), np.full((4, 4), np.nan), np.ones(4), np.ones((0, 4))):
        with pytest.raises(GeometryError):
            coverage(mask, grid)
