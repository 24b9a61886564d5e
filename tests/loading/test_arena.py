"""Small chunks gathered on a device are those that NumPy slices, from arrays of any kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.images.context import Context
from daskdmed.loading.arena import Arena, Gather, Stage, lying, parts_of
from daskdmed.loading.copying import Copier
from daskdmed.loading.delivery import Lane

LANE = Lane(torch.device("cpu"))
DTYPES = ["u1", "i2", "u2", "f4", "?", "f8", "c16", "f2"]


@pytest.fixture(scope="module")
def copier():
    made = Copier(2)
    yield made
    made.close()


def arena_of(copier, slots, slot_bytes, stage_bytes=100):
    return Arena(LANE, slots, slot_bytes, Stage(LANE, stage_bytes, pin=False, copier=copier))


@st.composite
def boxes(draw):
    """Arrays with as many axes, a size, first pixels of boxes in them, and what is around."""
    axes = draw(st.integers(1, 4))
    size = draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    around = None
    if axes > 2 and draw(st.booleans()):
        reach = draw(st.lists(st.integers(0, 1), min_size=axes, max_size=axes))
        around = Context(tuple(reach)) if any(reach) else None
    grown = [s + 2 * k for s, k in zip(size, around.around if around else [0] * axes, strict=True)]
    shapes = draw(
        st.lists(st.tuples(*(st.integers(g, g + 3) for g in grown)), min_size=1, max_size=3)
    )
    channels = draw(st.sampled_from([(), (1,), (3,)]))
    starts = [
        draw(st.tuples(*(st.integers(0, e - g) for e, g in zip(shape, grown, strict=True))))
        for shape in shapes
    ]
    return tuple(size), shapes, channels, starts, around


@settings(max_examples=40)
@given(boxes(), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_boxes_are_slices(copier, case, dtype, seed):
    size, shapes, channels, starts, around = case
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 200, (*shape, *channels)).astype(dtype) for shape in shapes]
    # however they lie in host memory
    arrays = [np.asfortranarray(a) if i % 2 else a[::-1] for i, a in enumerate(arrays)]
    arena = arena_of(copier, 1, sum(a.nbytes + 16 for a in arrays))
    _, firsts = arena.put(arrays)
    lies = [lying(f, a, len(size)) for f, a in zip(firsts, arrays, strict=True)]
    made = channels
    if around is not None:
        made = (around.count * int(np.prod(channels)),)
    gather = Gather(size, made, np.dtype(dtype), around)
    places = gather.places(np.array([(a.first, *a.steps) for a in lies]), np.array(starts))
    found = gather.take(arena.flat, torch.from_numpy(places)).numpy()
    assert found.dtype == dtype
    for row, array, start in zip(found, arrays, starts, strict=True):
        reach = around.around if around else (0,) * len(size)
        box = array[
            tuple(slice(o, o + s + 2 * k) for o, s, k in zip(start, size, reach, strict=True))
        ]
        expected = box
        if around is not None:
            expected = np.empty((*size, *made), dtype)
            for target, source in around.beside(box, expected):
                target[...] = source
        np.testing.assert_array_equal(row, expected)


@given(st.lists(st.integers(0, 5), max_size=3), st.integers(1, 40))
def test_parts_follow_each_other(shape, most):
    array = np.arange(np.prod(shape, dtype=int), dtype="u2").reshape(shape)
    parts = list(parts_of(array, most))
    assert b"".join(np.ascontiguousarray(p).tobytes() for p in parts) == array.tobytes()
    assert all(p.nbytes <= max(most, 2) for p in parts)


def test_slots_are_filled_anew(copier):
    arena = arena_of(copier, 2, 64)
    assert arena.nbytes == 128
    first, _ = arena.put([np.full(64, 1, "u1")])
    _, [at] = arena.put([np.full(60, 2, "u1")])
    assert arena.put([np.zeros(1, "u1")]) is None
    arena.free(first)
    # the second of these would begin at byte 64, where all types may begin
    assert arena.put([np.zeros(50, "u1"), np.zeros(1, "u1")]) is None
    slot, [image, target] = arena.put([np.full(9, 3, "u1"), np.full(4, 4, "u2")])
    assert (slot, target - image) == (first, 16)
    assert arena.flat[image : image + 9].tolist() == [3] * 9
    assert arena.flat[target : target + 8].view(torch.int16).tolist() == [4] * 4
    assert arena.flat[at : at + 60].tolist() == [2] * 60
