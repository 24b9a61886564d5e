"""Manifests: nothing is lost on the way out and back, and wrong files say what is wrong."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskdmed.cohort import Dataset, Patient, Record
from daskdmed.core.space import Space
from daskdmed.errors import DatasetError

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
names = st.text(string.ascii_letters + ':_"é ,', min_size=1, max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    text,
    st.sampled_from(["1", "007", "1.5", "NA", "nan", "", "true", "1e5", " 1", "\u0661"]),
)
values = st.one_of(
    scalars, st.lists(scalars, max_size=3), st.dictionaries(text, scalars, max_size=2)
)
mpps = st.one_of(
    st.none(), st.floats(0.01, 100), st.tuples(st.floats(0.01, 100), st.floats(0.01, 100))
)
spaces = st.builds(
    lambda steps, origin: Space(
        [[0, 0, steps[0], origin], [0, steps[1], 0, 1 / 3], [steps[2], 0, 0, 0], [0, 0, 0, 1]],
        (3, 4, 5),
    ),
    steps=st.tuples(*[st.sampled_from([-1 / 3, 0.1, 2])] * 3),
    origin=st.floats(-1e3, 1e3),
)
volumes = st.builds(
    lambda place, more, space: Record(
        "/a/b.nii.gz", **more, **({"space": space} if place is None else {"spacing": place})
    ),
    place=st.one_of(st.none(), st.floats(0.1, 9), st.tuples(*[st.floats(0.1, 9)] * 3)),
    space=spaces,
    more=st.fixed_dictionaries(
        {},
        optional={
            "background": st.one_of(st.integers(-1024, 0), st.floats(-9, 9), st.just([1, 2.5])),
            "series": st.sampled_from(["3", "1.2.840", "T1 ax", "[1", "1 2"]),
            "dataset": text.filter(bool),
            "time": st.sampled_from([0, 12, "channels"]),
            "on_gap": st.just("resample"),
            "form": st.sampled_from(["sform", "qform"]),
            "spatial_ndim": st.just(3),
            "backend": st.just("nifti"),
        },
    ),
)
records = volumes | st.builds(
    lambda uri, mpp, backend, facts: Record(uri, mpp=mpp, backend=backend, facts=facts),
    uri=st.sampled_from(["/a/b.svs", "s3://bucket/c.zarr", '/x y/ü,".tif', "/a/../b.svs"]),
    mpp=mpps,
    backend=st.sampled_from([None, "tiff", "openslide"]),
    facts=st.dictionaries(names, values, max_size=2),
)
ids = st.one_of(st.integers(-5, 10**12), text.filter(bool))
datasets = st.lists(
    st.builds(
        Patient,
        id=ids,
        records=st.dictionaries(names, records, min_size=1, max_size=3),
        labels=st.dictionaries(names, values, max_size=3),
    ),
    max_size=5,
    unique_by=lambda p: p.key,
).map(lambda patients: Dataset("cohort", patients))


@pytest.mark.parametrize("suffix", ["json", "csv", "tsv"])
@given(dataset=datasets)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, suffix: str, dataset: Dataset) -> None:
    path = tmp_path / f"cohort.{suffix}"
    dataset.to_manifest(path)
    back = Dataset.from_manifest(path)
    assert back == dataset
    assert back.token == dataset.token
    for a, b in zip(dataset, back, strict=True):
        assert list(a.records) == list(b.records)
        assert repr(dict(a.labels)) == repr(dict(b.labels)) or set(a.labels) == set(b.labels)
        if suffix == "json":
            assert type(a.id) is type(b.id)
    assert not list(tmp_path.glob("*.partial"))


def test_the_csv_is_one_a_person_would_write(tmp_path: Path) -> None:
    dataset = Dataset(
        "d",
        [
            Patient(
                "p1",
                {
                    "wsi": Record(tmp_path / "slides/a.svs", mpp=0.25),
                    "mask": Record(tmp_path / "m.tif"),
                },
                {"grade": 2, "site": "X"},
            ),
            Patient(
                "p2",
                {"wsi": Record("/far/b.svs", mpp=(0.5, 0.25), facts={"year": 2020})},
                {"grade": 3, "site": "Y"},
            ),
        ],
    )
    dataset.to_manifest(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().splitlines() == [
        "patient,record,uri,mpp,backend,label:grade,label:site,fact:year",
        "p1,wsi,slides/a.svs,0.25,,2,X,",
        "p1,mask,m.tif,,,2,X,",
        "p2,wsi,/far/b.svs,0.5 0.25,,3,Y,2020",
    ]
    assert Dataset.from_manifest(tmp_path / "m.csv", name="d") == dataset


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_the_folder_can_be_moved(tmp_path: Path, suffix: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    dataset = Dataset("d", [Patient("p", {"wsi": Record(here / "slides" / "a.svs")})])
    dataset.to_manifest(here / f"m.{suffix}")
    here.rename(there)
    moved = Dataset.from_manifest(there / f"m.{suffix}")
    assert moved["p"].record().uri == str(there / "slides" / "a.svs")


def test_relative_uris_mean_the_same_file_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    dataset = Dataset("d", [Patient("p", {"wsi": Record("slides/a.svs")})])
    dataset.to_manifest("out/m.csv")
    expected = str(tmp_path / "slides" / "a.svs")
    assert Dataset.from_manifest("out/m.csv")["p"].record().uri == expected


def test_a_table_of_volumes_made_by_hand(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(
        "patient,uri,spacing,background,time,series\n"
        "a,a.nii,3 1 1,-1024,,\nb,b.nii,2,,channels,T1 ax\nc,c,,,3,\n"
    )
    a, b, c = (p.record() for p in Dataset.from_manifest(tmp_path / "m.csv"))
    assert a == Record(tmp_path / "a.nii", spacing=(3, 1, 1), background=-1024, name="wsi")
    assert b == Record(tmp_path / "b.nii", spacing=2, time="channels", series="T1 ax", name="wsi")
    assert dict(c.options) == {"time": 3}


@pytest.mark.parametrize("cells", ["3 1,", "x,", ',{"affine": 1}', ",[]", ",3"])
def test_wrong_cells_of_volumes(tmp_path: Path, cells: str) -> None:
    (tmp_path / "m.csv").write_text(f"patient,uri,spacing,space\na,a.nii,{cells}\n")
    if cells == "3 1,":
        # told when the file is opened, which says how many axes there are
        assert Dataset.from_manifest(tmp_path / "m.csv")[0].record().spacing == (3, 1)
        return
    with pytest.raises(DatasetError, match=r"m\.csv: row 2: "):
        Dataset.from_manifest(tmp_path / "m.csv")


def test_slices_in_files_are_no_row_of_a_manifest(tmp_path: Path) -> None:
    for number in (1, 2):
        np.save(tmp_path / f"{number}.npy", np.zeros((4, 4)))
    dataset = Dataset("d", [Patient("p", {"image": Record.stack(f"{tmp_path}/*.npy")})])
    for suffix in ("json", "csv"):
        with pytest.raises(DatasetError, match=r"'p', record 'image': is an array"):
            dataset.to_manifest(tmp_path / f"m.{suffix}")


def test_a_table_made_by_hand(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,patient,label:y\na.svs,1,yes\n\nb.svs,2,no\n")
    dataset = Dataset.from_manifest(tmp_path / "m.csv")
    assert dataset.name == "m"
    assert dataset.ids == ("1", "2")
    assert dataset.labels("y") == ["yes", "no"]
    assert dataset["1"].record("wsi").uri == str(tmp_path / "a.svs")


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    arrays = Dataset.from_arrays([np.zeros((4, 4), np.uint8)])
    with pytest.raises(DatasetError, match=r"patient '0', record 'image'.*array.*Zarr"):
        arrays.to_manifest(tmp_path / "m.json")
    odd = Dataset("d", [Patient("p", {"wsi": Record("/a.svs")}, {"y": (1, 2)})])
    with pytest.raises(DatasetError, match=r"patient 'p', label 'y': \(1, 2\) \(tuple\)"):
        odd.to_manifest(tmp_path / "m.csv")
    with pytest.raises(DatasetError, match="Unicode"):
        Dataset("d", [Patient("\ud800", {"wsi": Record("/a.svs")})]).to_manifest(tmp_path / "m.csv")
    with pytest.raises(DatasetError, match=r"\.json, \.csv or \.tsv"):
        Dataset("d", []).to_manifest(tmp_path / "m.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("patient,url\na,b\n", "no column 'uri'"),
        ("patient,uri\na,x.svs\na,y.svs\n", "row 3: patient 'a' has the record 'wsi' twice"),
        ("patient,uri,mpp\na,x.svs,half\n", "row 2: .*half"),
        ("patient,uri,mpp\na,x.svs,1 2 3\n", "row 2: mpp is one number or two"),
        ("patient,uri\na,\n", "row 2: the uri of a record is empty"),
        ("patient,uri\n,x.svs\n", "id is a text"),
        (
            "patient,record,uri,label:y\na,u,x.svs,1\na,v,y.svs,2\n",
            "row 3: patient 'a' has labels {'y': 2} here and {'y': 1} before",
        ),
        ("patient,uri,label:y:json\na,x.svs,{\n", "row 2, column 'label:y:json': '{' is not JSON"),
    ],
)
def test_wrong_csv(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(DatasetError, match=match) as caught:
        Dataset.from_manifest(tmp_path / "m.csv")
    assert "m.csv" in str(caught.value)


GOOD = {
    "format": "daskdmed-manifest",
    "version": 1,
    "patients": [{"id": "a", "records": {"wsi": {"uri": "x"}}}],
}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "other"}, "is not a manifest"),
        ({"version": 2}, "manifest version 2, this release reads 1"),
        ({"patients": [{"id": "a", "records": {"wsi": {}}}]}, "number 0 is wrong: KeyError: 'uri'"),
        ({"patients": [{"id": "a", "records": []}]}, "number 0 is wrong"),
        ({"patients": None}, "number 0 is wrong"),
        ({"patients": GOOD["patients"] * 2}, "more than once"),
    ],
)
def test_wrong_json(tmp_path: Path, change: dict, match: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(GOOD))
    assert Dataset.from_manifest(path).name == "m"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(DatasetError, match=match):
        Dataset.from_manifest(path)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(DatasetError, match=r"m\.json: cannot be read as JSON"):
        Dataset.from_manifest(tmp_path / "m.json")
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(DatasetError, match="is not a manifest"):
        Dataset.from_manifest(tmp_path / "m.json")
    for name in ("no.json", "no.csv"):
        with pytest.raises(DatasetError, match="there is no such file"):
            Dataset.from_manifest(tmp_path / name)


def test_json_that_is_nested_too_deep(tmp_path):
    path = tmp_path / "cohort.json"
    path.write_text("[" * 100_000)
    with pytest.raises(DatasetError, match=r"cohort\.json.*JSON"):
        Dataset.from_manifest(path)


@pytest.mark.parametrize("mpp", [[[0.5], [0.5]], ["a", "b"], [1, 2, 3], {"x": 1}, 10**400, "0.5"])
def test_resolutions_that_make_no_sense(tmp_path, mpp):
    path = tmp_path / "cohort.json"
    Dataset("d", [Patient("p", {"wsi": Record("a.svs", mpp=0.5)})]).to_manifest(path)
    document = json.loads(path.read_text())
    document["patients"][0]["records"]["wsi"]["mpp"] = mpp
    path.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=r"cohort\.json.*patient number 0"):
        Dataset.from_manifest(path)
