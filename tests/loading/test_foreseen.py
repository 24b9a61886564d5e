"""What is read of a big chunk is what its small chunks can need, said in few boxes."""

from __future__ import annotations

import numpy as np
import pytest

from daskdmed.core.region import Region
from daskdmed.loading.foreseen import _reach
from daskdmed.persistence.areas import Area


def painted(shape, first, stop):
    found = np.zeros(shape, bool)
    for low, high in zip(first, stop, strict=True):
        found[tuple(map(slice, low, high))] = True
    return found


@pytest.mark.parametrize("least", [None, 0.4])
@pytest.mark.parametrize("shape", [(40, 56), (12, 14, 16)])
def test_every_small_chunk_that_may_be_drawn_is_read_and_nothing_else(shape, least):
    size = (6, 5, 4)[: len(shape)]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        coarse = rng.random([-(-n // 4) for n in shape]) < 0.5
        mask = np.kron(coarse, np.ones((4,) * len(shape), bool))[tuple(map(slice, shape))]
        area = Area.of(mask, shape, least)
        region = Region((3,) * len(shape), tuple(n - 5 for n in shape))
        places = np.argwhere(np.ones([n - s + 1 for n, s in zip(region.shape, size, strict=True)]))
        places += np.array(region.origin)
        allowed = places[area.allowed(places, size)]
        found = _reach(area, region, size)
        held = painted(shape, found.first, found.stop)
        needed = painted(shape, allowed, allowed + np.array(size))
        if least is None:
            np.testing.assert_array_equal(held, needed)
        else:  # boxes of a cover hold places that are not allowed, too
            assert held[needed].all()
        assert len(found.first) < len(area.cover(region, size)[0]) / 2


def test_of_outlines_there_is_a_box_for_each_row_not_for_each_pixel():
    mask = np.zeros((64, 64), bool)
    mask[10:50, 5:30] = mask[20:40, 45:60] = True
    found = _reach(Area.of(mask, (64, 64), None), Region((0, 0), (64, 64)), (4, 4))
    assert len(found.first) == 40 + 20
    assert not len(_reach(Area.of(mask, (64, 64), None), Region((0, 0), (4, 4)), (4, 4)).first)
