"""The window grid against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.errors import GeometryError, UsageError
from daskdmed.tiling.blocks import choose_block, tile_reads
from daskdmed.tiling.grid import WindowGrid

AXIS = st.tuples(st.integers(1, 40), st.integers(1, 15), st.integers(1, 20))
EDGES = st.sampled_from(["pad", "shift", "drop"])


@st.composite
def grids(draw, max_ndim=3):
    axes = draw(st.lists(AXIS, min_size=1, max_size=max_ndim))
    shape, kernel, stride = zip(*axes, strict=True)
    return WindowGrid(shape, kernel, stride, draw(EDGES))


def brute_axis(size, kernel, stride, edge):
    """First pixels of the windows of one axis, found by walking."""
    places, at = [], 0
    while True:
        if at + kernel > size:
            if edge == "pad" and at < size and (not places or places[-1] + kernel < size):
                places.append(at)
            if edge == "shift" and (not places or places[-1] + kernel < size):
                places.append(max(size - kernel, 0))
            return places
        places.append(at)
        at += stride


@given(grids())
def test_windows_are_those_of_a_walk(grid):
    walked = [
        brute_axis(n, k, s, grid.edge)
        for n, k, s in zip(grid.shape, grid.kernel_size, grid.stride, strict=True)
    ]
    assert grid.counts == tuple(len(w) for w in walked)
    assert [origin for _, origin in grid] == list(itertools.product(*walked))
    assert len({origin for _, origin in grid}) == len(grid)


@given(grids(max_ndim=2))
def test_every_pixel_is_covered_or_in_a_declared_gap(grid):
    covered = np.zeros(grid.shape, bool)
    for _, origin in grid:
        window = tuple(slice(o, o + k) for o, k in zip(origin, grid.kernel_size, strict=True))
        assert covered[window].size  # no window lies wholly outside
        if grid.edge == "drop":
            assert covered[window].shape == grid.kernel_size
        if grid.edge == "shift" and all(
            k <= n for k, n in zip(grid.kernel_size, grid.shape, strict=True)
        ):
            assert covered[window].shape == grid.kernel_size
        covered[window] = True
    declared = np.ones(grid.shape, bool)
    for axis, (n, k, s) in enumerate(zip(grid.shape, grid.kernel_size, grid.stride, strict=True)):
        inside = np.arange(n) % s < k
        if grid.edge == "drop":
            inside &= np.arange(n) < (grid.counts[axis] - 1) * s + k if grid.counts[axis] else False
        declared &= np.expand_dims(inside, [a for a in range(grid.ndim) if a != axis])
    if grid.edge == "shift":
        assert covered[declared].all()
    else:
        np.testing.assert_array_equal(covered, declared)
    if grid.edge != "drop" and all(
        s <= k for s, k in zip(grid.stride, grid.kernel_size, strict=True)
    ):
        assert covered.all()


@given(grids(), st.data())
def test_blocks_partition_the_grid_and_know_their_pixels(grid, data):
    if not len(grid):
        return
    per_block = tuple(data.draw(st.integers(1, 6)) for _ in grid.shape)
    seen = np.zeros(grid.counts, int)
    for index, block in grid.blocks(per_block):
        seen[block.slices] += 1
        assert block.start == tuple(i * b for i, b in zip(index, per_block, strict=True))
        first, stop = block.region.origin, block.region.stop
        steps = []
        for place in itertools.product(*(range(n) for n in block.shape)):
            window = tuple(a + i for a, i in zip(block.start, place, strict=True))
            origin = grid.origin(window)
            relative = tuple(block.origins[a][i] for a, i in enumerate(place))
            assert origin == tuple(f + r for f, r in zip(first, relative, strict=True))
            assert all(
                r + k <= e for r, k, e in zip(relative, grid.kernel_size, block.extent, strict=True)
            )
            steps.append(relative == tuple(i * s for i, s in zip(place, grid.stride, strict=True)))
        assert block.regular == all(steps)
        assert all(0 <= a < b <= n for a, b, n in zip(first, stop, grid.shape, strict=True))
        assert block.padding == tuple(
            max(f + e - n, 0) for f, e, n in zip(first, block.extent, grid.shape, strict=True)
        )
        last = grid.origin(tuple(s.stop - 1 for s in block.slices))
        assert stop == tuple(
            min(o + k, n) for o, k, n in zip(last, grid.kernel_size, grid.shape, strict=True)
        )
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "edge", "count"),
    [
        (1000, 100, 100, "pad", 10),
        (1050, 100, 100, "pad", 11),
        (1030, 100, 100, "shift", 11),
        (1030, 100, 100, "drop", 10),
        (1000, 100, 50, "pad", 19),
        (1000, 100, 200, "pad", 5),
        (150, 100, 100, "pad", 2),
        (100, 100, 100, "pad", 1),
        (90, 100, 100, "pad", 1),
        (90, 100, 100, "shift", 1),
        (90, 100, 100, "drop", 0),
        (10, 2, 5, "pad", 2),
        (11, 2, 5, "pad", 3),
    ],
)
def test_counts(size, kernel, stride, edge, count):
    # the sizes at which a known sliding window left out or repeated parts of the slide
    assert WindowGrid.of((size,), kernel, stride=stride, edge=edge).counts == (count,)


def test_overlap_in_pixels_and_as_a_fraction():
    assert WindowGrid.of((9, 9), 4, overlap=1).stride == (3, 3)
    assert WindowGrid.of((9, 9), (4, 8), overlap=0.25).stride == (3, 6)
    assert WindowGrid.of((9, 9), 4, overlap=0).stride == (4, 4)
    assert WindowGrid.of((9, 9), (4, 8), overlap=(1, 0.5)).stride == (3, 4)
    with pytest.raises(UsageError, match="give one of them"):
        WindowGrid.of((9, 9), 4, stride=2, overlap=2)


@pytest.mark.parametrize(
    "keywords",
    [
        {"kernel_size": 0},
        {"kernel_size": (4, 4, 4)},
        {"kernel_size": 4.5},
        {"kernel_size": 4, "stride": 0},
        {"kernel_size": 4, "stride": (1,)},
        {"kernel_size": 4, "overlap": 4},
        {"kernel_size": 4, "overlap": 1.0},
        {"kernel_size": 4, "overlap": -1},
        {"kernel_size": 4, "overlap": (1, 1, 1)},
    ],
)
def test_bad_geometry_is_refused(keywords):
    with pytest.raises(GeometryError):
        WindowGrid.of((9, 9), **keywords)


def test_other_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="edge"):
        WindowGrid.of((9, 9), 4, edge="mirror")
    with pytest.raises(GeometryError, match="shape"):
        WindowGrid.of((9, 0), 4)
    with pytest.raises(GeometryError, match="no window"):
        WindowGrid.of((9, 9), 4).origin((0, 3))
    with pytest.raises(GeometryError, match="not in a grid"):
        WindowGrid.of((9, 9), 4).box((0, 2), (1, 2))


def brute_reads(grid, tile, per_block):
    reads = np.zeros([-(-n // t) for n, t in zip(grid.shape, tile, strict=True)], int)
    for _, block in grid.blocks(per_block):
        reads[
            tuple(
                slice(a // t, -(-b // t))
                for a, b, t in zip(block.region.origin, block.region.stop, tile, strict=True)
            )
        ] += 1
    return reads.mean()


@given(grids(), st.data())
def test_tile_reads_are_counted_exactly(grid, data):
    if not len(grid):
        return
    per_block = tuple(data.draw(st.integers(1, 6)) for _ in grid.shape)
    tile = tuple(data.draw(st.integers(1, 9)) for _ in grid.shape)
    assert math.isclose(
        tile_reads(grid, tile, per_block), brute_reads(grid, tile, per_block), rel_tol=1e-9
    )


def test_aligned_blocks_read_each_tile_once():
    for size in (51_200, 20_001, 102_400):
        grid = WindowGrid.of((size, size), 224)
        block = choose_block(grid, (256, 256))
        assert block[0] % 8 == 0
        assert tile_reads(grid, (256, 256), block) == 1.0


@pytest.mark.parametrize(
    ("kernel", "stride"), [(224, 112), (224, 64), (300, 300), (512, 384), (64, 48), (100, 333)]
)
def test_other_blocks_read_little_twice(kernel, stride):
    grid = WindowGrid.of((51_200, 38_000), kernel, stride=stride)
    block = choose_block(grid, (256, 256))
    assert tile_reads(grid, (256, 256), block) <= 1.15
    assert math.prod(grid.block((0, 0), block).extent) * 3 <= 210 * 2**20


@pytest.mark.parametrize(("kernel", "stride"), [(224, 112), (224, 64), (300, 300), (512, 384)])
def test_blocks_that_are_read_in_strips_are_larger_where_that_leaves_enough(kernel, stride):
    reads = {}
    for side in (6_000, 12_800, 25_600, 51_200):
        grid = WindowGrid.of((side, side), kernel, stride=stride)
        held, strips = (choose_block(grid, (256, 256), in_strips=s) for s in (False, True))
        reads[side] = [tile_reads(grid, (256, 256), block) for block in (held, strips)]
        assert reads[side][1] <= reads[side][0]
        if strips != held:
            assert min(grid.block_counts(strips)) >= 3
            assert math.prod(grid.block((0, 0), strips).extent) * 3 <= 210 * 2**20
    for side in (25_600, 51_200):
        assert reads[side][1] <= 1.08 < reads[side][0]


def test_strips_are_read_whole():
    grid = WindowGrid.of((20_000, 30_000), 224)
    block = choose_block(grid, (8, 30_000))
    assert block[1] == grid.counts[1]
    assert tile_reads(grid, (8, 30_000), block) < 1.05
    assert math.prod(grid.block((0, 0), block).extent) * 3 <= 210 * 2**20


@settings(max_examples=50)
@given(grids(), st.data())
def test_chosen_blocks_fit_any_grid(grid, data):
    if not len(grid):
        return
    tile = tuple(data.draw(st.integers(1, 9)) for _ in grid.shape)
    block = choose_block(grid, tile, bytes_per_pixel=data.draw(st.integers(1, 8)))
    assert all(1 <= b <= n for b, n in zip(block, grid.counts, strict=True))


@given(
    st.lists(
        st.tuples(
            st.integers(1, 60),
            st.integers(1, 20),
            st.one_of(st.integers(0, 19), st.floats(0, 0.99)),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["pad", "shift"]),
)
def test_windows_that_overlap_cover_everything_and_overlap_by_that_much(axes, edge):
    shape, kernel, overlap = zip(*axes, strict=True)
    pixels = [
        o if isinstance(o, int) else k - max(int(k * (1 - o)), 1) for k, o in zip(kernel, overlap)
    ]
    if any(p >= k for p, k in zip(pixels, kernel)):
        with pytest.raises(GeometryError, match="overlap"):
            WindowGrid.of(shape, kernel, overlap=overlap, edge=edge)
        return
    grid = WindowGrid.of(shape, kernel, overlap=overlap, edge=edge)
    for axis, (n, k, p) in enumerate(zip(shape, kernel, pixels)):
        places = [grid.axis_origin(axis, i) for i in range(grid.counts[axis])]
        assert places == brute_axis(n, k, k - p, edge)
        steps = np.diff(places)
        # neighbours share at least so many pixels, the last pair more when it was shifted
        assert (steps[:-1] == k - p).all()
        assert (steps <= k - p).all()
        covered = np.zeros(n, bool)
        for place in places:
            covered[place : place + k] = True
        assert covered.all()


@pytest.mark.parametrize("edge", ["pad", "shift", "drop"])
@pytest.mark.parametrize("size", [(100, 500), (500, 100), (90, 500), (150, 150), (100, 100)])
def test_images_as_large_as_the_kernel_or_smaller(size, edge):
    # the sizes at which a known sliding window divides by zero, hangs, or leaves out a half
    grid = WindowGrid.of(size, 100, edge=edge)
    covered = np.zeros(size, int)
    for _, (y, x) in grid:
        covered[y : y + 100, x : x + 100] += 1
    if edge != "drop":
        assert covered.min() == 1
    else:
        whole = tuple(n // 100 for n in size)
        assert len(grid) == math.prod(whole)
    if edge == "pad":
        assert covered.max() == 1


def test_numbers_of_numpy_are_numbers():
    grid = WindowGrid.of(np.array([50, 40]), np.int64(10), stride=np.array([5, 7]))
    assert (grid.kernel_size, grid.stride) == ((10, 10), (5, 7))
    assert WindowGrid.of((50, 40), 10, overlap=np.float32(0.5)).stride == (5, 5)
    assert WindowGrid.of((50, 40), 10, overlap=np.int32(3)).stride == (7, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "4", None, 4.5, {}, [4, "4"]])
@pytest.mark.parametrize("name", ["kernel_size", "stride", "overlap"])
def test_what_is_no_size_is_refused(name, value):
    if (name, value) in (("stride", None), ("overlap", None)):
        return  # not given
    if name == "overlap" and value is True:
        return  # one pixel, as in Python
    keywords = {"kernel_size": 8} if name != "kernel_size" else {}
    with pytest.raises(GeometryError):
        WindowGrid.of((9, 9), **keywords, **{name: value})
