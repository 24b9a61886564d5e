"""Weights of windows, and the geometry that adds them up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.errors import GeometryError, UsageError
from daskdmed.inference.dense.blend import Blend
from daskdmed.inference.dense.cellmask import CellMask
from daskdmed.inference.dense.mosaic import AxisWindows, MosaicPlan, blended_axis, choose_mosaic
from daskdmed.inference.dense.sweepjobs import last_axis_overhead, make_sweeps, steps_per_job

MODES = ["gaussian", "constant", "hann"]


@st.composite
def axes(draw):
    reduction = draw(st.integers(1, 4))
    kernel = draw(st.integers(1, 12)) * reduction
    stride = draw(st.integers(1, kernel // reduction)) * reduction
    return blended_axis(draw(st.integers(1, 90)), kernel, stride, reduction), stride


@given(axes())
def test_windows_of_an_axis_cover_every_cell(made):
    axis, stride = made
    assert axis.cells == -(-axis.size // axis.unit)
    covered = np.zeros(axis.cells, int)
    for o, a, b, first in zip(axis.origins, axis.starts, axis.stops, axis.offsets):
        covered[a:b] += 1
        assert 0 <= a < b <= axis.cells
        assert a - first == o / axis.unit  # cells lie on whole cells of the window
        assert b - a + first <= axis.kernel_size // axis.unit
    assert covered.min() >= 1
    steps = np.diff(axis.origins)
    assert (steps[:-1] == stride).all()
    assert (steps >= 1).all()
    assert (steps <= stride).all()
    if axis.size >= axis.kernel_size:
        # nothing but the filling to whole cells lies outside
        assert axis.origins[-1] + axis.kernel_size == axis.cells * axis.unit


@given(axes(), st.integers(0, 80), st.integers(1, 20))
def test_windows_that_touch_a_span(made, begin, n):
    axis, _ = made
    begin = min(begin, axis.cells - 1)
    stop = min(begin + n, axis.cells)
    wanted = [i for i in range(len(axis)) if axis.starts[i] < stop and axis.stops[i] > begin]
    assert list(axis.touching(begin, stop)) == wanted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sigma_scale", [0.125, 0.5, (0.1, 0.3)])
@pytest.mark.parametrize("reduction", [(1, 1), (2, 4)])
def test_total_is_the_sum_of_all_windows(mode, sigma_scale, reduction):
    blend = Blend.of(mode, (16, 24), reduction=reduction, sigma_scale=sigma_scale)
    made = [
        blended_axis(n, k, s, r)
        for n, k, s, r in zip((61, 90), (16, 24), (8, 20), reduction, strict=True)
    ]
    cells = [a.cells for a in made]
    truth = np.zeros(cells)
    for i, j in itertools.product(range(len(made[0])), range(len(made[1]))):
        truth[made[0].starts[i] : made[0].stops[i], made[1].starts[j] : made[1].stops[j]] += (
            blend.weights
        )
    for box in [((0, cells[0]), (0, cells[1])), ((3, 11), (5, 6))]:
        spans = [a.spans(a.touching(*b), *b) for a, b in zip(made, box, strict=True)]
        total = blend.total(spans, [b - a for a, b in box])
        np.testing.assert_allclose(total, truth[box[0][0] : box[0][1], box[1][0] : box[1][1]], 1e-5)


def test_hann_windows_that_overlap_by_half_add_up_to_one():
    blend = Blend.of("hann", (32,))
    axis = blended_axis(160, 32, 16, 1)
    total = blend.total([axis.spans(axis.touching(16, 144), 16, 144)], (128,))
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert blend.weights.min() > 0


@pytest.mark.parametrize("sigma_scale", [0.05, 0.125, 0.4, (0.125, 0.3, 0.2)])
@pytest.mark.parametrize("kernel", [(7, 8, 9), (32, 16, 16)])
def test_gaussian_is_that_of_monai(kernel, sigma_scale):
    utils = pytest.importorskip("monai.data.utils")
    wanted = utils.compute_importance_map(kernel, mode="gaussian", sigma_scale=sigma_scale)
    found = Blend.of("gaussian", kernel, sigma_scale=sigma_scale).weights
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


def test_gaussian_by_its_formula():
    # sigma = 0.5 * 4 = 2, distances 1.5, 0.5, 0.5, 1.5
    wanted = np.exp(-np.array([2.25, 0.25, 0.25, 2.25]) / 8)
    found = Blend.of("gaussian", (4, 4), sigma_scale=0.5).weights
    np.testing.assert_allclose(found, np.outer(wanted, wanted), rtol=1e-6)
    assert Blend.of("gaussian", (64, 64), sigma_scale=0.05).weights.min() == np.float32(1e-3)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"mode": "cosine"}, UsageError),
        ({"sigma_scale": 0.0}, UsageError),
        ({"sigma_scale": float("nan")}, UsageError),
        ({"sigma_scale": (0.1, 0.1, 0.1)}, UsageError),
        ({"reduction": (3, 1)}, GeometryError),
    ],
)
def test_weights_that_cannot_be(keywords, error):
    keywords = {"mode": "gaussian", "kernel_size": (8, 8), **keywords}
    with pytest.raises(error):
        Blend.of(keywords.pop("mode"), keywords.pop("kernel_size"), **keywords)


def plan_of(sizes, kernel, stride, chunk, rows) -> MosaicPlan:
    made = tuple(blended_axis(n, kernel, stride, 1) for n in sizes)
    return MosaicPlan(made, chunk, rows)


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 25),
    st.integers(1, 25),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(1, 3),
    st.integers(1, 9),
    st.randoms(),
)
def test_sweeps_write_each_pending_chunk_once_and_give_it_all_its_windows(
    height, width, kernel, stride, chunk, rows, longest, random
):
    plan = plan_of((height, width), kernel, min(stride, kernel), chunk, (rows,))
    every = [
        c
        for band in np.ndindex(plan.bands)
        for s in range(plan.steps)
        for c in plan.band_chunks(band, s)
    ]
    assert sorted(every) == sorted(set(every))
    assert len(every) == -(-height // chunk[0]) * -(-width // chunk[1])
    pending = sorted(random.sample(every, random.randint(0, len(every))))
    written: list[tuple[int, ...]] = []
    for job in make_sweeps(plan, pending, None, longest, skip=lambda chunk: None):
        assert job.stop - job.begin <= longest
        computed: list[int] = []
        for step in range(job.begin, job.stop):
            for group in plan.groups_for(step, begin=job.begin):
                computed += group.windows
            # all that touch this step are there, each once, in order
            assert computed == sorted(set(computed))
            assert set(plan.axes[-1].touching(*plan.step_cells(step))) <= set(computed)
            written += plan.band_chunks(job.band, step)
    assert len(written) == len(set(written))
    assert set(pending) <= set(written)


def test_where_a_sweep_begins_does_not_change_its_batches():
    plan = plan_of((40, 200), 32, 8, (40, 20), (1,))
    whole = [g for s in range(plan.steps) for g in plan.groups_for(s, begin=0)]
    for begin in range(plan.steps):
        groups = [g for s in range(begin, plan.steps) for g in plan.groups_for(s, begin=begin)]
        assert groups == [g for g in whole if g.last >= begin]


def test_how_often_windows_are_computed():
    made = tuple(blended_axis(4096, 512, 384, 1) for _ in range(2))
    plan = choose_mosaic(made, 1, pitch=(384, 384))
    assert (plan.chunk, plan.bands, plan.needed) == ((768, 768), (1,), 121)
    assert plan.recomputed == 1
    # in two bands each has 6 rows of windows, of 11 in all; 2 of 4 steps repeat a column
    bands = MosaicPlan(made, (1152, 1152), (2,))
    assert bands.computed == 12 * 11
    assert last_axis_overhead(bands, 2) == pytest.approx(12 / 11)
    # 100 000 pixels and twenty classes
    large = choose_mosaic(tuple(blended_axis(100_000, 512, 384, 1) for _ in range(2)), 20)
    held = 20 * 4 * large.rows[0] * large.chunk[0] * (large.chunk[1] + 512)
    assert held <= 96 * 2**20
    assert large.recomputed < 1.6
    one = choose_mosaic(tuple(blended_axis(100_000, 512, 384, 1) for _ in range(2)), 1)
    assert one.recomputed < 1.06


def test_bands_are_cut_for_workers_while_that_is_cheap():
    wide = plan_of((1000, 50_000), 512, 384, (1000, 1000), (1,))
    longest = steps_per_job(wide, 4)
    assert longest < wide.steps
    assert last_axis_overhead(wide, longest) <= 1.1
    small = plan_of((1000, 1000), 512, 256, (250, 250), (4,))
    assert steps_per_job(small, 16) == small.steps


def test_a_middle_on_an_edge_of_the_mask():
    """It belongs to the element that begins there, although 23.5 * (6 / 47) is below 3."""
    assert 23.5 * (6 / 47) < 23.5 * 6 / 47 == 3
    for size in range(1, 200):
        for n in range(1, 10):
            axis = blended_axis(size, 1, 1, 1)
            found = CellMask(np.arange(n) % 2, (axis,)).at([(0, axis.cells)])
            middles = np.arange(size) * 2 + 1  # in halves
            np.testing.assert_array_equal(found, middles * n // (2 * size) % 2 == 1)


@settings(max_examples=60)
@given(axes(), axes(), st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(0, 2**31))
def test_a_mask_says_the_same_of_boxes_and_of_cells(first, second, shape, seed):
    made: tuple[AxisWindows, ...] = (first[0], second[0])
    rng = np.random.default_rng(seed)
    given_mask = rng.random(shape) < 0.3
    mask = CellMask(given_mask, made)
    every = mask.at([(0, a.cells) for a in made])
    for row, column in [(0, 0), (made[0].cells - 1, made[1].cells // 2)]:
        y = min((row + 0.5) * made[0].unit, made[0].size - 0.5) * shape[0] / made[0].size
        x = min((column + 0.5) * made[1].unit, made[1].size - 0.5) * shape[1] / made[1].size
        assert (
            every[row, column] == given_mask[min(int(y), shape[0] - 1), min(int(x), shape[1] - 1)]
        )
    spans = [list(zip(a.starts, a.stops)) for a in made]
    found = mask.any(spans)
    for i, j in np.ndindex(found.shape):
        box = every[slice(*spans[0][i]), slice(*spans[1][j])]
        assert found[i, j] == box.any()
    part = [(a.cells // 3, a.cells) for a in made]
    np.testing.assert_array_equal(mask.crop(part).at(part), every[part[0][0] :, part[1][0] :])
