"""PyDmed's patients, datasets, splits and files of rows."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.compat.pydmed.utils.data import ORIGINAL, Dataset, Patient, Record
from daskdmed.compat.pydmed.utils.minimath import lcm, multiminority, multimode
from daskdmed.compat.pydmed.utils.multiproc import poplast_from_queue
from daskdmed.compat.pydmed.utils.output import StreamWriter
from daskdmed.errors import DatasetError, StoreError, UsageError


def patients(count, labels=2):
    return [Patient(n, {"label": n % labels}) for n in range(count)]


def label_of(patient):
    return patient.dict_records["label"]


def test_patients_are_their_ids():
    one, two = Patient(3, {"H&E": Record("/root/", "a.svs", {"mpp": 0.5})}), Patient(3, {})
    assert one == two
    assert hash(one) == hash(two)
    assert Patient(2, {}) < one <= two
    assert one != "3"
    assert "a.svs" in repr(one.dict_records["H&E"])


def test_a_dataset_has_patients_only_and_each_once():
    with pytest.raises(DatasetError, match="holds a str"):
        Dataset("x", [Patient(0, {}), "b"])
    with pytest.raises(DatasetError, match="two patients with the id 1"):
        Dataset("x", [Patient(1, {}), Patient(1, {})])


percentages = st.lists(st.integers(1, 50), min_size=1, max_size=5).map(
    lambda parts: [100 * p / sum(parts) for p in parts]
)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), percentages, st.integers(1, 4))
def test_splits_are_disjoint_complete_and_leave_the_dataset_as_it_is(count, parts, labels):
    """P17: patients were in no part, and the dataset was shuffled."""
    whole = Dataset("x", patients(count, labels))
    before = list(whole.list_patients)
    for split in (
        Dataset.splits_from(whole, parts),
        Dataset.labelbalanced_splits_from(whole, parts, label_of),
    ):
        together = [p.int_uniqueid for one in split for p in one.list_patients]
        assert sorted(together) == list(range(count))
        assert len(split) == len(parts)
        for one, share in zip(split, parts, strict=True):
            assert abs(len(one.list_patients) - count * share / 100) < labels + 1
    assert whole.list_patients == before


def test_splits_are_balanced_within_labels_and_can_be_repeated(capsys):
    whole = Dataset("x", [Patient(n, {"label": n < 30}) for n in range(100)])
    random.seed(4)
    one = Dataset.labelbalanced_splits_from(whole, [60, 20, 20], label_of, verbose=True)
    random.seed(4)
    two = Dataset.labelbalanced_splits_from(whole, [60, 20, 20], label_of)
    assert [p.list_patients for p in one] == [p.list_patients for p in two]
    assert [Counter(map(label_of, p.list_patients))[True] for p in one] == [18, 6, 6]
    assert "label True: [18, 6, 6]" in capsys.readouterr().out
    with pytest.raises(UsageError, match="sum up to 100"):
        Dataset.splits_from(whole, [50, 40])


def test_small_classes_reach_the_parts_that_lack_most():
    """7 + 3 patients by [60, 10, 30] gave 5, 0, 5."""
    whole = Dataset("x", [Patient(n, {"label": n < 3}) for n in range(10)])
    sizes = [
        len(p.list_patients)
        for p in Dataset.labelbalanced_splits_from(whole, [60, 10, 30], label_of)
    ]
    assert sizes == [6, 1, 3]


def test_balancing_repeats_every_class():
    """A class with more patients than were asked for vanished."""
    whole = Dataset("x", [Patient(n, {"label": n < 7}) for n in range(10)])
    repeated = Dataset.balance_by_repeat(whole, label_of)
    assert Counter(map(label_of, repeated.list_patients)) == {True: 21, False: 21}
    assert len({p.int_uniqueid for p in repeated.list_patients}) == 42
    copies = [p for p in repeated.list_patients if ORIGINAL in p.dict_records]
    assert len(copies) == 32
    assert all(p.dict_records[ORIGINAL] in whole.list_patients for p in copies)
    five = Dataset.balance_by_repeat(whole, label_of, newlen_each_class=5)
    assert Counter(map(label_of, five.list_patients)) == {True: 5, False: 5}
    many = Dataset("x", [Patient(n, {"label": n < 1001}) for n in range(1001 + 1009)])
    with pytest.raises(UsageError, match="give newlen_each_class="):
        Dataset.balance_by_repeat(many, label_of)


def test_a_folder_becomes_a_dataset(tmp_path, monkeypatch):
    for name in ("b.svs", "sub/a.svs", "c.txt"):
        (tmp_path / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "slides" / name).touch()
    monkeypatch.chdir(tmp_path)
    made = Dataset.create_onetoone(
        "x", "slides", "svs", lambda name: {"label": len(name)}, lambda name: {"name": name}
    )
    records = [p.dict_records["wsi"] for p in made.list_patients]
    assert [r.rootdir + r.relativedir for r in records] == ["slides/b.svs", "slides/sub/a.svs"]
    assert [p.int_uniqueid for p in made.list_patients] == [0, 1]
    assert label_of(made.list_patients[0]) == len("slides/b.svs")
    assert records[0].dict_infos == {"name": "slides/b.svs"}
    with pytest.raises(DatasetError, match="no files"):
        Dataset.create_onetoone("x", "slides", "ndpi", dict, dict)


def test_small_mathematics():
    assert lcm([4, 6, 10]) == 60
    assert multimode([1, 2, 2, 3, 3]) == 3
    assert multiminority([1, 1, 2, 3, 3, 0]) == 0


def test_the_last_of_a_queue():
    import queue

    full = queue.Queue()
    assert poplast_from_queue(full) is None
    for n in range(3):
        full.put(n)
    assert poplast_from_queue(full) == 2
    assert full.empty()


def test_rows_are_in_the_file_of_each_patient(tmp_path):
    """With more patients than files that may be open; a patient without rows has an empty one."""
    everyone = patients(70)
    writer = StreamWriter(list_patients=everyone, rootpath=str(tmp_path))
    writer.start()
    for row in range(2):
        for patient in everyone[1:]:
            writer.write(patient, f"{patient.int_uniqueid}, {row}\n")
    writer.flush_and_close()
    writer.flush_and_close()
    assert (tmp_path / "patient_0.csv").read_text() == ""
    for patient in everyone[1:]:
        n = patient.int_uniqueid
        assert (tmp_path / f"patient_{n}.csv").read_text() == f"{n}, 0\n{n}, 1\n"
    with pytest.raises(StoreError, match="after flush_and_close"):
        writer.write(everyone[0], "late")


def test_rows_of_all_in_one_file(tmp_path):
    writer = StreamWriter(fname_tosave=str(tmp_path / "all.csv"))
    for patient in patients(3):
        writer.write(patient, f"{patient.int_uniqueid}\n")
    writer.flush_and_close()
    assert (tmp_path / "all.csv").read_text() == "0\n1\n2\n"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UsageError, "one of them"),
        ({"rootpath": "x", "fname_tosave": "y.csv"}, UsageError, "one of them"),
        ({"fname_tosave": "y.txt"}, UsageError, r"must end in \.csv"),
        ({"rootpath": "missing"}, StoreError, "is not there"),
        ({"rootpath": "."}, StoreError, "is not empty"),
    ],
)
def test_where_no_rows_can_go(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(error, match=message):
        StreamWriter(**options)
