"""Labels to classes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from dask.base import tokenize
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from daskdmed import Categories
from daskdmed.errors import GeometryError, UsageError


def test_forms_and_names() -> None:
    named = Categories({"tumour": ["a", "b"], "stroma": "c"})
    assert named.names == ("tumour", "stroma")
    assert named.channels == named.names
    assert len(named) == 2
    assert named.labels == ("a", "b", "c")
    nested = Categories(["c", ("a", "b")], background="last")
    assert nested.channels == ("c", "a+b", "background")
    assert nested.classes_of("b") == (2,)
    assert nested.classes_of("x") == ()
    both = Categories({"any": ["a", "b"], "b": "b"}, erase=["hole"])
    assert both.classes_of("b") == (1, 2)
    assert both.classes_of("hole") == (0,)
    assert pickle.loads(pickle.dumps(both)) == both
    assert hash(both) == hash(pickle.loads(pickle.dumps(both)))
    assert tokenize(both) != tokenize(named)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.uint16, np.int64, np.uint32]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
        elements=st.integers(0, 9),
    )
)
def test_label_maps_against_a_loop(labelmap) -> None:
    classes = Categories({"x": [1, 4], "y": 2, "z": [4, 7, 300]}, background="first")
    got = classes.collate(labelmap)
    many = classes.collate(labelmap, multichannel=True)
    assert got.dtype == np.uint8
    assert many.shape == (*labelmap.shape, 4)
    for place, value in np.ndenumerate(labelmap):
        numbers = [k for k, group in enumerate(classes.members, 1) if value in group]
        assert got[place] == (numbers[-1] if numbers else 0)
        assert np.flatnonzero(many[place]).tolist() == (numbers or [0])


def test_masks_of_medsegpy() -> None:
    # its CATEGORIES select and join channels, INCLUDE_BACKGROUND puts one first
    masks = np.zeros((2, 3, 4), np.float32)
    masks[0, 0, 0] = masks[0, 0, 3] = masks[0, 1, 2] = 0.5
    masks[1, 2, 1] = 1
    got = Categories([0, (2, 3)], background="first").collate_channels(masks)
    assert got.shape == (2, 3, 3)
    assert got[0, 0].tolist() == [0, 1, 1]
    assert got[0, 1].tolist() == [0, 0, 1]
    assert got[1, 2].tolist() == [1, 0, 0]
    last = Categories([0], background="last").collate_channels(masks)
    assert last[0, 0].tolist() == [1, 0]
    assert last[0, 1].tolist() == [0, 1]
    with pytest.raises(GeometryError, match=r"channels \[4\].*have 4"):
        Categories([4]).collate_channels(masks)


def test_bool_maps_and_large_values() -> None:
    assert Categories([1]).collate(np.array([True, False])).tolist() == [1, 0]
    big = np.array([70_000, 5], np.int64)
    assert Categories([70_000, -1]).collate(big).tolist() == [1, 0]
    many = Categories(list(range(1, 301)))
    with pytest.raises(UsageError, match="300 classes do not fit into uint8"):
        many.collate(np.arange(5))
    assert many.collate(np.array([300]), dtype=np.uint16).tolist() == [300]


@pytest.mark.parametrize(
    "spec", [[], {}, "ab", 3, None, [1.5], [True], [None], {"": "a"}, ["a", "a"], {"x": object()}]
)
def test_wrong_categories(spec) -> None:
    with pytest.raises(UsageError):
        Categories(spec)


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="background"):
        Categories(["a"], background="middle")
    with pytest.raises(UsageError, match=r"\['a'\] are both"):
        Categories(["a"], erase=["a"])
    with pytest.raises(UsageError, match="integers, got float"):
        Categories([1]).collate(np.zeros(3))
    with pytest.raises(UsageError, match=r"integers, got \['a'\]"):
        Categories(["a"]).collate(np.zeros(3, int))
