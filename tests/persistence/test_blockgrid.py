from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdmed.errors import GeometryError
from daskdmed.persistence.blockgrid import BlockGrid, cut_axis


@st.composite
def axes(draw):
    smallest = draw(st.integers(1, 300))
    chunk = draw(st.integers(smallest, 4 * smallest + 500))
    tile = draw(st.integers(1, 600))
    size = draw(st.integers(smallest, 5000))
    return size, chunk, tile, smallest


@given(axes())
def test_spans_cover_the_axis_and_keep_their_bounds(axis):
    size, chunk, tile, smallest = axis
    spans = cut_axis(size, chunk, tile, smallest)
    seen = np.zeros(size, int)
    for span in spans:
        assert smallest <= span.length <= chunk
        assert span.start >= 0
        assert span.start + span.length <= size
        seen[span.start : span.start + span.length] += 1
    assert (seen > 0).all()
    # only a span that would have been too small overlaps its neighbour
    assert (seen > 1).sum() <= smallest * len(spans)


@given(axes())
def test_inner_edges_lie_on_the_tile_grid(axis):
    size, chunk, tile, smallest = axis
    spans = cut_axis(size, chunk, tile, smallest)
    if tile <= chunk and all(s.length > smallest for s in spans):
        assert all(s.start % tile == 0 for s in spans)


@given(st.integers(1, 60), st.integers(1, 12))
def test_spans_are_nearly_equal(tiles, per_chunk):
    spans = cut_axis(tiles * 256, per_chunk * 256, 256, 1)
    lengths = [s.length for s in spans]
    assert max(lengths) - min(lengths) <= 256


def test_grid_enumerates_every_block_once():
    grid = BlockGrid.of((1000, 700), (256, 256), (64, 64), (32, 32))
    seen = np.zeros((1000, 700), int)
    for i in range(len(grid)):
        seen[grid.region(i).slices] += 1
    assert (seen == 1).all()
    assert grid.counts == (4, 3)
    assert {grid.index(i) for i in range(len(grid))} == set(np.ndindex(4, 3))


def test_three_axes():
    grid = BlockGrid.of((40, 100, 100), (32, 64, 64), (1, 16, 16), (8, 32, 32))
    assert grid.counts == (2, 2, 2)
    assert all(
        s >= m for i in range(8) for s, m in zip(grid.region(i).shape, (8, 32, 32), strict=True)
    )


def test_image_smaller_than_a_crop_is_refused():
    with pytest.raises(GeometryError, match=r"\(100, 300\).*\(224, 224\)"):
        BlockGrid.of((100, 300), (512, 512), (64, 64), (224, 224))


def test_chunk_smaller_than_a_crop_is_refused():
    with pytest.raises(GeometryError, match="bigchunk_size"):
        BlockGrid.of((1000, 1000), (200, 200), (64, 64), (224, 224))
