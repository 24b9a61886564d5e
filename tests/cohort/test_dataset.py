"""Datasets: a sequence with unique ids, selecting, joining, and the notebook repr."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from daskdmed.cohort import Dataset, Patient, Record
from daskdmed.errors import DaskdmedError, DatasetError


def patient(name: str | int, **labels: object) -> Patient:
    return Patient(name, {"wsi": Record(f"{name}.svs")}, labels)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset("cohort", [patient("a", y=1), patient("b", y=2), patient(3, y=1)])


def test_a_dataset_is_a_sequence(dataset: Dataset) -> None:
    assert len(dataset) == 3
    assert [p.id for p in dataset] == ["a", "b", 3]
    assert dataset[0] is dataset["a"]
    assert dataset[-1] is dataset["3"]
    assert dataset[1:].ids == ("b", "3")
    assert "a" in dataset
    assert "z" not in dataset
    assert patient("b", y=2) in dataset
    assert patient("b", y=9) not in dataset
    assert dataset.index(patient("b", y=2)) == 1
    with pytest.raises(IndexError):
        dataset[3]
    with pytest.raises(DatasetError, match=r"no 'aa'; near 'aa' there are \['a'\]"):
        dataset["aa"]
    twin = pickle.loads(pickle.dumps(dataset))
    assert twin == dataset
    assert hash(twin) == hash(dataset)


def test_ids_are_unique_as_text() -> None:
    with pytest.raises(DatasetError, match="1 ids occur more than once: '1'") as caught:
        Dataset("d", [patient("1"), patient(1), patient("2")])
    assert isinstance(caught.value, (ValueError, DaskdmedError))
    with pytest.raises(DatasetError, match="item 1 is a str"):
        Dataset("d", [patient("1"), "2"])


def test_many_duplicates_make_a_short_message() -> None:
    with pytest.raises(DatasetError, match="and 90 more") as caught:
        Dataset("d", [patient(i % 100) for i in range(200)])
    assert len(str(caught.value)) < 500


def test_filter_subset_concat(dataset: Dataset) -> None:
    assert dataset.filter(lambda p: p.labels["y"] == 1).ids == ("a", "3")
    assert len(dataset.filter(lambda p: False)) == 0
    assert dataset.subset([3, "a"]).ids == ("3", "a")
    with pytest.raises(DatasetError, match="has no 'x', 'y'"):
        dataset.subset(["a", "x", "y"])
    other = Dataset("other", [patient("z")])
    assert (dataset + other).ids == ("a", "b", "3", "z")
    assert dataset.concat(other, name="both").name == "both"
    with pytest.raises(DatasetError, match="'a'"):
        dataset + Dataset("again", [patient("a")])
    assert dataset.ids == ("a", "b", "3")


def test_labels(dataset: Dataset) -> None:
    assert dataset.labels("y") == [1, 2, 1]
    more = dataset + Dataset("x", [patient("u")])
    with pytest.raises(DatasetError, match=r"1 of 4 patients have no label 'y': 'u'"):
        more.labels("y")
    assert more.labels("y", default=None) == [1, 2, 1, None]
    assert more.label_names == ["y"]


def test_the_token_names_images_not_labels(dataset: Dataset) -> None:
    relabelled = Dataset("other", [patient(p.id, y=0) for p in dataset])
    assert relabelled.token == dataset.token
    assert dataset[::-1].token != dataset.token
    assert dataset[:2].token != dataset.token


def test_from_arrays() -> None:
    arrays = [np.full((50, 60, 3), i, np.uint8) for i in range(3)]
    dataset = Dataset.from_arrays(arrays, labels=[0, 1, 0], mpp=0.5)
    assert dataset.ids == ("0", "1", "2")
    assert dataset.labels("label") == [0, 1, 0]
    assert dataset["1"].record("image").view(mpp=0.5).shape == (50, 60, 3)
    named = Dataset.from_arrays({"u": arrays[0], "v": arrays[1]}, labels={"v": {"k": 1}, "u": {}})
    assert named.labels("k", None) == [None, 1]
    volumes = Dataset.from_arrays([np.zeros((4, 5, 6))], ids=[7], spatial_ndim=3)
    assert volumes["7"].record().view().spatial_ndim == 3
    with pytest.raises(DatasetError, match="3 arrays, 2 ids"):
        Dataset.from_arrays(arrays, ids=["a", "b"])
    with pytest.raises(DatasetError, match="no entry for '2'"):
        Dataset.from_arrays(arrays, labels={0: 1, 1: 1})
    with pytest.raises(DatasetError, match="more than once"):
        Dataset.from_arrays(arrays, ids=["a", "b", "a"])
    with pytest.raises(DatasetError, match="mapping gives the ids"):
        Dataset.from_arrays({"a": arrays[0]}, ids=["b"])


def test_the_notebook_repr_is_short_and_escaped() -> None:
    small = Dataset("<d>", [patient("a&b", y="<i>")])
    html = small._repr_html_()
    assert "<d>" not in html
    assert "&lt;d&gt;" in html
    assert "a&amp;b" in html
    assert "&lt;i&gt; &times; 1" in html
    large = Dataset("large", [patient(f"p{i}", y=i % 3, z=i) for i in range(1000)])
    html = large._repr_html_()
    assert len(html) < 10_000
    assert "p0.svs" in html
    assert "p999.svs" in html
    assert "p500.svs" not in html
    assert "0 &times; 334" in html
    assert "1,000 patients" in html
    assert "cohort" not in repr(large)
    assert "labels=['y', 'z']" in repr(large)
    assert "array" not in Dataset("none", [])._repr_html_()
