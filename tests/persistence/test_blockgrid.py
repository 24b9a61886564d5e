from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdmed.errors import GeometryError
from daskdmed.persistence.blockgrid import BlockGrid, cut_axis, cut_places


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


@given(axes())
def test_each_place_lies_in_one_span_with_all_its_pixels(axis):
    size, chunk, tile, smallest = axis
    spans = cut_places(size, chunk, tile, smallest)
    seen = np.zeros(size - smallest + 1, int)
    for span in spans:
        assert smallest <= span.length <= chunk
        assert span.start + span.length <= size
        seen[span.start : span.start + span.length - smallest + 1] += 1
    assert (seen == 1).all()
    if len(cut_axis(*axis)) == 1:
        assert spans == cut_axis(*axis), "what is one big chunk stays one"


@given(axes())
def test_spans_of_places_begin_on_the_tile_grid_and_are_nearly_equal(axis):
    size, chunk, tile, smallest = axis
    spans = cut_places(size, chunk, tile, smallest)
    aligned = tile if tile <= chunk - smallest + 1 else 1
    assert all(s.start % aligned == 0 for s in spans)
    lengths = [s.length for s in spans[:-1]] or [0]
    assert max(lengths) - min(lengths) <= aligned


@given(axes(), st.integers(1, 9))
def test_places_are_counted(axis, multiple):
    size, _, _, smallest = axis
    grid = BlockGrid.of(*((v,) for v in axis), by_places=True)
    counts = [
        len([p for p in range(r.start, r.stop - smallest + 1) if p % multiple == 0])
        for (r,) in (grid.region(i).slices for i in range(len(grid)))
    ]
    assert grid.places((multiple,)).tolist() == counts
    assert sum(counts) == (size - smallest) // multiple + 1


def test_a_big_chunk_decodes_no_more_tiles_for_reaching_over_the_next():
    """Default sizes on a slide: 16 x 16 tiles at most, as when it is cut by pixels."""
    for by_places in (False, True):
        grid = BlockGrid.of(
            (80_000, 90_000), (4096, 4096), (256, 256), (224, 224), by_places=by_places
        )
        for number in range(len(grid)):
            region = grid.region(number)
            edges = zip(region.origin, region.stop, strict=True)
            tiles = [-(-b // 256) - a // 256 for a, b in edges]
            assert max(tiles) <= 16
