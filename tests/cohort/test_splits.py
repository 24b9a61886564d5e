"""Splits and folds: disjoint, complete, stratified, deterministic, without side effects."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.cohort import Dataset, Patient, Record
from daskdmed.cohort.splits import fold_indices, split_indices
from daskdmed.errors import DatasetError


def cohort(classes: list[object], name: str = "d") -> Dataset:
    return Dataset(
        name,
        [
            Patient(f"p{i:03d}", {"wsi": Record(f"{i}.svs")}, {"y": c})
            for i, c in enumerate(classes)
        ],
    )


classes_st = st.lists(st.sampled_from(["a", "b", "c", 1, 2.5]), max_size=60)
fractions_st = (
    st.lists(st.integers(0, 10), min_size=1, max_size=5)
    .filter(sum)
    .map(lambda w: [x / sum(w) for x in w])
)


@given(classes=classes_st, fractions=fractions_st, seed=st.integers(-3, 2**40))
@settings(max_examples=150)
def test_parts_are_disjoint_complete_and_in_proportion(classes, fractions, seed) -> None:
    dataset = cohort(classes)
    before = dataset.ids
    parts = dataset.split(fractions, by="y", seed=seed)
    assert len(parts) == len(fractions)
    found = [i for part in parts for i in part.ids]
    assert sorted(found) == sorted(dataset.ids)
    assert dataset.ids == before
    assert parts == dataset.split(fractions, by="y", seed=seed)
    used = [f for f in fractions if f > 0]
    for label, size in Counter(classes).items():
        for part, fraction in zip(parts, fractions, strict=True):
            count = sum(p.labels["y"] == label for p in part)
            if size >= len(used):
                assert count >= (fraction > 0)
                # beyond rounding only where another part had to be given its one
                assert abs(count - size * fraction) < len(used)
            else:
                assert abs(count - size * fraction) < 1 + 1e-6
            if fraction == 0:
                assert count == 0
    for part in parts:
        assert [i for i in dataset.ids if i in set(part.ids)] == list(part.ids)


@given(n=st.integers(0, 200), fractions=fractions_st, seed=st.integers(0, 99))
@settings(max_examples=100)
def test_sizes_without_classes_are_rounded_shares(n, fractions, seed) -> None:
    ids = [str(i) for i in range(n)]
    sizes = [len(p) for p in split_indices(ids, [0] * n, fractions, seed)]
    assert sum(sizes) == n
    if all(f * n >= 1 for f in fractions if f):
        for size, fraction in zip(sizes, fractions, strict=True):
            floor = math.floor(fraction * n + 1e-9)
            assert size in (floor, floor + 1)


@given(classes=classes_st, seed=st.integers(0, 99), order=st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_the_order_of_patients_does_not_matter(classes, seed, order) -> None:
    dataset = cohort(classes)
    shuffled = list(dataset)
    order.shuffle(shuffled)
    for a, b in zip(
        dataset.split([0.6, 0.4], by="y", seed=seed),
        Dataset("d", shuffled).split([0.6, 0.4], by="y", seed=seed),
        strict=True,
    ):
        assert set(a.ids) == set(b.ids)


def test_the_seed_matters_and_classes_are_independent() -> None:
    dataset = cohort(["a"] * 20 + ["b"] * 20)
    first = dataset.split([0.5, 0.5], by="y", seed=1)[0]
    assert set(first.ids) != set(dataset.split([0.5, 0.5], by="y", seed=2)[0].ids)
    more = cohort(["a"] * 20 + ["b"] * 20 + ["c"] * 7)
    again = more.split([0.5, 0.5], by="y", seed=1)[0].filter(lambda p: p.labels["y"] != "c")
    assert again.ids == first.ids


def test_known_cases_that_lost_patients_elsewhere() -> None:
    ten = cohort(["x"] * 10)
    assert [len(p) for p in ten.split([0.33, 0.33, 0.34])] == [3, 3, 4]
    mixed = cohort(["a"] * 7 + ["b"] * 3)
    parts = mixed.split([0.6, 0.1, 0.3], by="y")
    assert all({p.labels["y"] for p in part} == {"a", "b"} for part in parts)
    # many classes of one patient must not all fall into the largest part
    singles = cohort([f"c{i}" for i in range(10)])
    assert [len(p) for p in singles.split([0.6, 0.2, 0.2], by="y")] == [6, 2, 2]


def test_named_parts() -> None:
    parts = cohort(["a"] * 10).split({"train": 0.8, "test": 0.2})
    assert [p.name for p in parts] == ["d/train", "d/test"]
    assert [len(p) for p in parts] == [8, 2]
    by_callable = cohort(["a"] * 10).split([0.5, 0.5], by=lambda p: int(p.id[1:]) % 2)
    assert [Counter(int(i[1:]) % 2 for i in p.ids) for p in by_callable]


@pytest.mark.parametrize(
    ("fractions", "match"),
    [
        ([0.5, 0.4], "sum to 0.9"),
        ([70, 30], "divide percentages by 100"),
        ([], "one or more"),
        ([1.5, -0.5], ">= 0"),
        ([float("nan"), 1], ">= 0"),
    ],
)
def test_wrong_fractions(fractions, match) -> None:
    with pytest.raises(DatasetError, match=match):
        cohort(["a"] * 4).split(fractions)


def test_patients_without_a_class_are_named() -> None:
    dataset = cohort(["a", "b", None, float("nan")])
    with pytest.raises(DatasetError, match=r"2 of 4.*'p002', 'p003'"):
        dataset.split([0.5, 0.5], by="y")
    with pytest.raises(DatasetError, match=r"known labels are \['y'\]"):
        dataset.kfold(2, by="z")
    with pytest.raises(DatasetError, match="list"):
        dataset.split([0.5, 0.5], by=lambda p: [1])


@given(classes=st.lists(st.sampled_from("abc"), min_size=2, max_size=50), data=st.data())
@settings(max_examples=100)
def test_folds(classes, data) -> None:
    dataset = cohort(classes)
    k = data.draw(st.integers(2, min(8, len(classes))))
    pairs = dataset.kfold(k, by="y", seed=data.draw(st.integers(0, 9)))
    assert len(pairs) == k
    assert sorted(i for _, v in pairs for i in v.ids) == sorted(dataset.ids)
    for train, validation in pairs:
        assert not set(train.ids) & set(validation.ids)
        assert set(train.ids) | set(validation.ids) == set(dataset.ids)
    for label in [None, *set(classes)]:
        sizes = [sum(label in (None, p.labels["y"]) for p in v) for _, v in pairs]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("k", [0, 1, 5, 2.5])
def test_wrong_number_of_folds(k) -> None:
    with pytest.raises(DatasetError, match="4 patients"):
        cohort(["a"] * 4).kfold(k)


def test_indices_do_not_depend_on_the_type_of_equal_numbers() -> None:
    ids = [f"{i}" for i in range(20)]
    assert fold_indices(ids, [1] * 20, 4, 0) == fold_indices(ids, [1.0] * 20, 4, 0)
    assert fold_indices(ids, [1] * 20, 4, 0) == fold_indices(ids, [True] * 20, 4, 0)
