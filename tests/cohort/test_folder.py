"""Datasets from folders: order, grouping, label tables, and every way it can go wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daskdmed.cohort import Dataset
from daskdmed.errors import DatasetError

pd = pytest.importorskip("pandas")


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "slides/z.ome.zarr/0").mkdir(parents=True)
    return touch(
        tmp_path / "slides",
        *("b.svs", "a.ome.tiff", "sub/c.NDPI", "notes.txt", "._b.svs", ".cache/x.svs"),
        *("m.mrxs", "m/Slidedat.ini", "z.ome.zarr/zarr.json", "z.ome.zarr/0/inner.tif"),
    )


def test_slides_in_order_one_patient_each(folder: Path) -> None:
    dataset = Dataset.from_folder(folder, mpp=0.5)
    assert dataset.ids == ("a", "b", "m", "c", "z")
    assert dataset.name == "slides"
    record = dataset["c"].record()
    assert record.uri == str(folder / "sub/c.NDPI")
    assert record.name == "wsi"
    assert record.mpp == (0.5, 0.5)
    assert os.path.isabs(Dataset.from_folder(os.path.relpath(folder))[0].record().uri)
    assert Dataset.from_folder(folder, recursive=False).ids == ("a", "b", "m", "z")


def test_patterns(folder: Path) -> None:
    assert Dataset.from_folder(folder, "*.svs", name="n").ids == ("b",)
    assert Dataset.from_folder(folder, "sub/*").ids == ("c",)
    assert Dataset.from_folder(folder, "*.txt").ids == ("notes",)


def test_compressed_files_are_named_without_both_suffixes(tmp_path: Path) -> None:
    for name in ("scan-1.nii.gz", "scan-2.v2.NII.GZ"):
        (tmp_path / name).touch()
    assert Dataset.from_folder(tmp_path, "*.[nN]*").ids == ("scan-1", "scan-2.v2")


def test_a_folder_without_slides_says_what_it_saw(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.csv")
    with pytest.raises(DatasetError, match=r"'\*' among 2 files.*\.svs.*pattern=") as caught:
        Dataset.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(DatasetError, match=r"'\*\.svs' among 2 files \(subfolders were not"):
        Dataset.from_folder(tmp_path, "*.svs", recursive=False)
    with pytest.raises(DatasetError, match=r"missing: there is no such folder"):
        Dataset.from_folder(tmp_path / "missing")
    with pytest.raises(DatasetError, match=r"a\.txt: is not a folder"):
        Dataset.from_folder(tmp_path / "a.txt")
    with pytest.raises(DatasetError, match="from_manifest"):
        Dataset.from_folder("simplecache::s3://bucket/slides")


def test_duplicate_ids_list_the_paths(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.svs", "y/1.svs", "y/2.svs")
    with pytest.raises(DatasetError, match=r"1 ids .*'1': x/1\.svs, y/1\.svs.*patient=lambda"):
        Dataset.from_folder(tmp_path)
    named = Dataset.from_folder(tmp_path, patient=lambda p: f"{p.parent.name}-{p.stem}")
    assert named.ids == ("x-1", "y-1", "y-2")


def test_several_slides_of_a_patient(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.svs", "y/1.svs", "y/2.svs")
    dataset = Dataset.from_folder(tmp_path, patient=lambda p: p.parent.name)
    assert dataset.ids == ("x", "y")
    assert list(dataset["x"].records) == ["wsi"]
    assert list(dataset["y"].records) == ["wsi-1", "wsi-2"]
    with pytest.raises(DatasetError, match="2 records"):
        dataset["y"].record()


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a.svs")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(root)
    assert Dataset.from_folder(root).ids == ("a",)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.svs", "closed/b.svs")
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DatasetError, match=r"closed: cannot be listed: Permission denied"):
        Dataset.from_folder(tmp_path)


def labels_csv(folder: Path, text: str) -> Path:
    path = folder.parent / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


FULL = (
    "site,slide,grade,score,code\nX,a,1,0.5,01\nY,b,2,1,02\nX,m,1,2,03\nX,c,3,1e-3,04\nY,z,1,4,x\n"
)


def test_labels_from_csv_have_one_type_per_column(folder: Path) -> None:
    dataset = Dataset.from_folder(folder, labels=labels_csv(folder, FULL))
    assert dataset.labels("grade") == [1, 2, 1, 3, 1]
    assert dataset.labels("score") == [0.5, 1.0, 2.0, 0.001, 4.0]
    assert {type(v) for v in dataset.labels("score")} == {float}
    assert dataset.labels("code") == ["01", "02", "03", "04", "x"]
    assert dataset.label_names == ["site", "grade", "score", "code"]
    some = Dataset.from_folder(folder, labels=labels_csv(folder, FULL), label_columns=["grade"])
    assert some.label_names == ["grade"]


def test_labels_may_name_the_file(folder: Path) -> None:
    path = labels_csv(folder, "who;f\n".replace(";", ",") + "0,b.svs\n1,a.ome.tiff\n")
    dataset = Dataset.from_folder(folder, labels=path, id_column="f", missing_labels="allow")
    assert dataset.labels("who", None) == [1, 0, None, None, None]


def test_labels_from_parquet_frames_and_mappings(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"id": ["a", "b", "m", "c", "z"], "y": [0, 1, 0, 1, 0]})
    frame.to_parquet(tmp_path / "l.parquet")
    for source in (frame, tmp_path / "l.parquet", dict(zip("abmcz", [0, 1, 0, 1, 0], strict=True))):
        dataset = Dataset.from_folder(folder, labels=source, label_columns=["y"])
        assert dataset.labels("y") == [0, 1, 0, 1, 0]
        assert {type(v) for v in dataset.labels("y")} == {int}
    nested = Dataset.from_folder(
        folder, labels={"a": {"y": 1, "site": "X"}}, missing_labels="allow"
    )
    assert nested.labels("site", "?") == ["X", "?", "?", "?", "?"]
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        Dataset.from_folder(folder, labels=touch(tmp_path, "bad.parquet") / "bad.parquet")


def test_missing_labels_are_listed_or_allowed(folder: Path) -> None:
    path = labels_csv(folder, "slide,y\na,1\nb,\nother,3\n")
    with pytest.raises(DatasetError, match=r"no labels for 3 of 5 patients: 'm', 'c', 'z'.*allow"):
        Dataset.from_folder(folder, labels=path)
    with pytest.raises(DatasetError, match=r"'y' is empty for 1 of 2 patients: 'b'"):
        Dataset.from_folder(folder, "[ab].*", labels=path)
    dataset = Dataset.from_folder(folder, labels=path, missing_labels="allow")
    assert dataset.labels("y", None) == [1, None, None, None, None]
    with pytest.raises(DatasetError, match="raise"):
        Dataset.from_folder(folder, labels=path, missing_labels="ignore")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("slide,y\na,1,2\n", "row 2 has 3 cells, the header has 2"),
        ("slide,y,y\na,1,2\n", "occurs twice"),
        ("slide,y\na,1\na,2\n", "'a' has two rows that differ"),
        ("slide\0\n", r"labels\.csv|slide"),
        ('slide,y\n"a,1\n', "cannot be read as CSV"),
    ],
)
def test_broken_label_tables_are_named(folder: Path, text: str, match: str) -> None:
    with pytest.raises(DatasetError, match=match) as caught:
        Dataset.from_folder(folder, labels=labels_csv(folder, text))
    assert "labels.csv" in str(caught.value)


def test_wrong_label_sources(folder: Path) -> None:
    path = labels_csv(folder, FULL)
    with pytest.raises(DatasetError, match=r"no column \['who'\]; it has \['site'"):
        Dataset.from_folder(folder, labels=path, id_column="who")
    with pytest.raises(DatasetError, match="there is no such file"):
        Dataset.from_folder(folder, labels="nowhere.csv")
    with pytest.raises(DatasetError, match="got int"):
        Dataset.from_folder(folder, labels=3)
    path.write_bytes(b"slide,y\na,\xff\n")
    with pytest.raises(DatasetError, match="UTF-8"):
        Dataset.from_folder(folder, labels=path)


def test_dicom_slides_are_one_image_each(tmp_path):
    kinds = {"slide-1": b"1.2.840.10008.5.1.4.1.1.77.1.6", "scan-1": b"1.2.840.10008.5.1.4.1.1.4"}
    for folder, kind in kinds.items():
        (tmp_path / folder).mkdir()
        for number in range(2):
            head = b"\0" * 128 + b"DICM" + b"\2\0\2\0UI\x1e\0" + kind
            (tmp_path / folder / f"{number}.dcm").write_bytes(head + b"\0" * 200)
    touch(tmp_path, "b.svs")
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.ids == ("b", "slide-1")
    assert dataset["slide-1"].record().uri == str(tmp_path / "slide-1")
    (tmp_path / "b.svs").unlink()
    assert Dataset.from_folder(tmp_path).ids == ("slide-1",)
    for file in (tmp_path / "slide-1").iterdir():
        file.unlink()
    assert Dataset.from_folder(tmp_path).ids == ("scan-1",)


def test_pictures_only_where_there_is_nothing_else(tmp_path, caplog):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.jpg")
    Image.new("P", (4, 4)).save(tmp_path / "a_labels.png")
    Image.new("1", (4, 4)).save(tmp_path / "b_mask.png")
    assert Dataset.from_folder(tmp_path).ids == ("a", "b")
    assert Dataset.from_folder(tmp_path, "*_labels.png").ids == ("a_labels",)
    touch(tmp_path, "c.svs")
    with caplog.at_level("INFO", "daskdmed.cohort"):
        assert Dataset.from_folder(tmp_path).ids == ("c",)
    assert "not the pictures beside them ('a.png', 'b.jpg')" in caplog.text


def test_label_maps_alone_are_images(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        Image.new("P", (4, 4)).save(tmp_path / f"{name}.png")
    assert Dataset.from_folder(tmp_path).ids == ("a", "b")
