"""Places of the classes of a label map, against brute force."""

from __future__ import annotations

import itertools

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.core.region import Region
from daskdmed.images.arrayview import ArrayView
from daskdmed.persistence import labelmaps
from daskdmed.persistence.catalogue import LabelMap
from daskdmed.persistence.labelmaps import Classes, mark


def label_map(labels, ratio):
    return LabelMap(ArrayView(da.from_array(labels), labels.ndim, background=0), ratio)


def by_hand(labels, ratio, classes, region, size, multiple):
    """Allowed places of a region, one by one."""
    fine = labels
    for axis, r in enumerate(ratio):
        fine = np.repeat(fine, r, axis=axis)
    axes = [range(o, o + n - s + 1) for o, n, s in zip(*region, size, strict=True)]
    found = []
    for place in itertools.product(*axes):
        if any(p % m for p, m in zip(place, multiple, strict=True)):
            continue
        if classes.at == "any":
            seen = fine[tuple(slice(p, p + s) for p, s in zip(place, size, strict=True))]
        else:
            seen = fine[tuple(slice(p + s // 2, p + s // 2 + 1) for p, s in zip(place, size))]
        if np.isin(seen, classes.labels).any():
            found.append(place)
    return found


@st.composite
def cases(draw):
    axes = draw(st.integers(1, 3))
    ratio = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    shape = tuple(draw(st.integers(2, 6)) for _ in range(axes))
    values = draw(st.lists(st.integers(0, 3), min_size=int(np.prod(shape)), max_size=400))
    labels = np.resize(np.array(values, np.int16), shape)
    extent = [n * r for n, r in zip(shape, ratio, strict=True)]
    size = tuple(draw(st.integers(1, min(4, n))) for n in extent)
    origin = tuple(draw(st.integers(0, n - s)) for n, s in zip(extent, size, strict=True))
    room = [n - o for n, o in zip(extent, origin, strict=True)]
    region = tuple(draw(st.integers(s, r)) for s, r in zip(size, room, strict=True))
    multiple = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    wanted = tuple(draw(st.sets(st.integers(1, 3), min_size=1)))
    classes = Classes(wanted, "seg", draw(st.sampled_from(["centre", "any"])))
    return labels, ratio, classes, (origin, region), size, multiple


@settings(max_examples=40, deadline=None)
@given(cases())
def test_marks_are_the_places_of_a_search_by_hand(case):
    labels, ratio, classes, region, size, multiple = case
    expected = by_hand(*case)
    marks = mark(label_map(labels, ratio), classes, Region(*region), size, multiple)
    assert marks.count == len(expected)
    rng = np.random.default_rng(0)
    drawn = [tuple(row) for row in marks.drawn(rng, len(expected)).places.tolist()]
    assert sorted(drawn) == expected
    every = np.array(list(itertools.product(*marks.axes)), np.int64).reshape(-1, labels.ndim)
    held = marks.hold(every)
    assert [tuple(row) for row in every[held].tolist()] == expected


def test_places_come_again_when_each_was_given():
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 1] = labels[2, 3] = 1
    marks = mark(label_map(labels, (1, 1)), Classes((1,), "x"), Region.of((4, 4)), (1, 1), (1, 1))
    rows = marks.drawn(np.random.default_rng(3), 5).places.tolist()
    assert sorted(rows[:2]) == sorted(rows[2:4]) == [[1, 1], [2, 3]]
    assert rows[4] in rows[:2]


def test_none_are_drawn_where_there_is_none():
    nothing = label_map(np.zeros((4, 4), np.uint8), (1, 1))
    marks = mark(nothing, Classes((1,), "x"), Region.of((4, 4)), (2, 2), (1, 1))
    assert marks.count == 0
    assert marks.drawn(np.random.default_rng(0), 7).places.shape == (0, 2)


def test_what_is_kept_stays_within_its_bytes(monkeypatch):
    monkeypatch.setattr(labelmaps, "KEPT_BYTES", 3000)
    kept = labelmaps._Kept()
    marks = mark(
        label_map(np.ones((9, 9), np.uint8), (1, 1)),
        Classes((1,), "x"),
        Region.of((9, 9)),
        (2, 2),
        (1, 1),
    )
    for key in range(40):
        kept.put(key, marks)
        kept.put(key, marks)
    assert kept.get(39) is marks
    assert kept.get(0) is None
    assert sum(map(labelmaps._nbytes, kept._marks.values())) == kept._bytes <= 3000


@pytest.mark.parametrize("at", ["centre", "any"])
def test_only_the_pixels_of_a_big_chunk_are_looked_at(at):
    read = []

    def seen(block):
        read.append(block.shape)
        return block

    whole = da.from_array(np.ones((64, 64), np.uint8), chunks=8).map_blocks(seen, dtype="u1")
    view = ArrayView(whole, 2, background=0)
    read.clear()
    mark(LabelMap(view, (1, 1)), Classes((1,), "x", at), Region((0, 0), (16, 16)), (4, 4), (1, 1))
    assert 0 < sum(int(np.prod(shape)) for shape in read) <= 16 * 16
