"""Datasets of volumes: one folder, images and labels in two, slices in files."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from daskdmed import Dataset, LightDL, Record, Region, Space, open_volume
from daskdmed.cohort.sources import images_of
from daskdmed.errors import DatasetError, GeometryError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def below(dataset: Dataset, root: Path) -> dict[str, dict[str, str]]:
    return {
        p.key: {n: Path(str(r.uri)).relative_to(root).as_posix() for n, r in p.records.items()}
        for p in dataset
    }


# ------------------------------------------------------------------------- one folder
def test_volumes_of_every_kind_are_images_of_a_folder(tmp_path):
    touch(
        tmp_path,
        *("a.nii.gz", "b.nii", "c.hdr", "c.img", "d.h5", "e.hdf5", "f.npy", "notes.txt"),
        *("g/1.dcm", "g/2.dcm", "h/1.2.840.7/1.DCM", "h/1.2.840.8/1.dcm", "._a.nii.gz"),
        *("i.HDR.GZ", "i.img.gz", "j.img"),
    )
    found = below(Dataset.from_folder(tmp_path, background=-1024), tmp_path)
    names = {key: own["wsi"] for key, own in found.items()}
    assert names == {
        "a": "a.nii.gz", "b": "b.nii", "c": "c.hdr", "d": "d.h5", "e": "e.hdf5", "f": "f.npy",
        "g": "g", "1.2.840.7": "h/1.2.840.7", "1.2.840.8": "h/1.2.840.8", "i": "i.HDR.GZ",
        "j": "j.img",
    }  # fmt: skip
    assert Dataset.from_folder(tmp_path, background=-1024)["a"].record().background == -1024
    # a pattern means files, whatever they are
    assert Dataset.from_folder(tmp_path, "g/*.dcm").ids == ("1", "2")
    assert Dataset.from_folder(tmp_path / "g").ids == ("g",)


def test_slides_come_first(tmp_path, caplog):
    touch(tmp_path, "a.svs", "features.h5", "mask.npy", "x/1.dcm")
    with caplog.at_level("INFO", "daskdmed.cohort"):
        assert Dataset.from_folder(tmp_path).ids == ("a",)
    assert "1 slides are taken, not the volumes beside them ('features.h5', 'mask.npy'," in (
        caplog.text
    )
    assert Dataset.from_folder(tmp_path, "*.h5").ids == ("features",)


def test_a_folder_of_files_is_read(tmp_path):
    volume = np.random.default_rng(0).integers(0, 9, (4, 8, 8)).astype("u1")
    np.save(tmp_path / "a.npy", volume)
    dataset = Dataset.from_folder(tmp_path, spacing=(3, 1, 1))
    view = dataset["a"].record().view(spacing=(3, 2, 2))
    means = volume.reshape(4, 4, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(view.read(Region.of(view.shape)), means, atol=0.5)


# ------------------------------------------------------------------------- two folders
def test_images_and_labels_of_the_decathlon(tmp_path):
    root = tmp_path / "Task09_Spleen"
    touch(root, "imagesTr/spleen_10.nii.gz", "imagesTr/spleen_2.nii.gz", "imagesTr/._x.nii.gz")
    touch(root, "labelsTr/spleen_10.nii.gz", "labelsTr/spleen_2.nii", "labelsTr/spleen_3.nii.gz")
    dataset = Dataset.from_bids_like(root / "imagesTr", root / "labelsTr", background=-1024)
    assert dataset.name == "Task09_Spleen"
    assert below(dataset, root) == {
        "spleen_10": {
            "image": "imagesTr/spleen_10.nii.gz",
            "label": "labelsTr/spleen_10.nii.gz",
        },
        "spleen_2": {"image": "imagesTr/spleen_2.nii.gz", "label": "labelsTr/spleen_2.nii"},
    }
    image, label = (dataset[0].record(n) for n in ("image", "label"))
    assert (image.background, label.background) == (-1024, None)
    assert below(Dataset.from_bids_like(root / "imagesTr", name="n"), root)["spleen_2"] == {
        "image": "imagesTr/spleen_2.nii.gz"
    }


def test_channels_of_nnunet(tmp_path):
    for case in ("BRATS_001", "BRATS_002"):
        touch(tmp_path, *(f"imagesTr/{case}_000{n}.nii.gz" for n in (1, 0)))
        touch(tmp_path, f"labelsTr/{case}.nii.gz")
    dataset = Dataset.from_bids_like(tmp_path / "imagesTr", tmp_path / "labelsTr")
    assert below(dataset, tmp_path)["BRATS_001"] == {
        "0000": "imagesTr/BRATS_001_0000.nii.gz",
        "0001": "imagesTr/BRATS_001_0001.nii.gz",
        "label": "labelsTr/BRATS_001.nii.gz",
    }
    assert list(dataset[0].records) == ["0000", "0001", "label"]
    apart = Dataset.from_bids_like(tmp_path / "imagesTr", channels=False)
    assert apart.ids[:2] == ("BRATS_001_0000", "BRATS_001_0001")
    (tmp_path / "imagesTr/BRATS_002_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"1 channels are missing, .* 'BRATS_002_0001'"):
        Dataset.from_bids_like(tmp_path / "imagesTr")


def test_one_channel_is_the_image_and_years_are_no_channels(tmp_path):
    touch(tmp_path / "one", "ct_1_0000.nii.gz", "ct_2_0000.nii.gz")
    dataset = Dataset.from_bids_like(tmp_path / "one")
    assert {p.key: list(p.records) for p in dataset} == {"ct_1": ["image"], "ct_2": ["image"]}
    touch(tmp_path / "years", "scan_2019.nii.gz", "scan_2020.nii.gz")
    assert Dataset.from_bids_like(tmp_path / "years").ids == ("scan_2019", "scan_2020")
    touch(tmp_path / "mixed", "a_0000.nii.gz", "b.nii.gz")
    assert Dataset.from_bids_like(tmp_path / "mixed").ids == ("a_0000", "b")
    with pytest.raises(DatasetError, match=r"1 of 2 names do not end .*: 'b.nii.gz'"):
        Dataset.from_bids_like(tmp_path / "mixed", channels=True)


def test_what_is_missing_or_doubled_is_named(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    both = tmp_path / "images", tmp_path / "labels"
    with pytest.raises(DatasetError, match=r"labels: no label for 1 of 2 images: 'b' \(it has 'a'"):
        Dataset.from_bids_like(*both)
    dataset = Dataset.from_bids_like(*both, missing_labels="allow")
    assert [list(p.records) for p in dataset] == [["image", "label"], ["image"]]
    touch(tmp_path, "labels/a.nii")
    with pytest.raises(DatasetError, match=r"'a' is there twice: a\.nii and a\.nii\.gz"):
        Dataset.from_bids_like(*both)
    with pytest.raises(DatasetError, match="there is no such folder"):
        Dataset.from_bids_like(both[0], tmp_path / "gone")
    with pytest.raises(DatasetError, match='missing_labels is "raise" or "allow"'):
        Dataset.from_bids_like(*both, missing_labels="no")


def nifti(path, array, space):
    """By nibabel; x first, as files of NIfTI are."""
    turned = np.eye(4)
    turned[:3] = space.affine[:3][:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(array.T, turned), path)


def test_files_of_both_folders_are_trained_on(tmp_path):
    shape, rng = (6, 8, 10), np.random.default_rng(0)
    ras = Space([[0, 0, 1, 3], [0, 1, 0, -7], [2, 0, 0, 5], [0, 0, 0, 1]], shape)
    lps = ras.reorient("SPL")
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    scans = {}
    for case in ("a", "b"):
        t1, t2 = rng.integers(-1000, 1000, (2, *shape)).astype("i2")
        label = (t1 > 0).astype("u1")
        nifti(tmp_path / f"imagesTr/{case}_0000.nii.gz", t1, ras)
        nifti(tmp_path / f"imagesTr/{case}_0001.nii", t2[:, ::-1, ::-1], lps)
        nifti(tmp_path / f"labelsTr/{case}.hdr", label[:, ::-1, ::-1], lps)
        scans[case] = np.stack([t1, t2])
    dataset = Dataset.from_bids_like(tmp_path / "imagesTr", tmp_path / "labelsTr", background=-1024)
    options = {"smallchunk_size": (4, 4, 4), "batch_size": 8, "resident": "1 MiB"}
    both = {"record": ["0000", "0001"], "target": "label"}
    with pytest.raises(GeometryError, match=r"axes to SAR and to SPL.*orientation=\"RAS\""):
        LightDL(dataset, **both, **options)
    with LightDL(dataset, **both, **options, orientation="RAS") as loader:
        x, patients, chunks = loader.get()
    for values, target, patient, origin in zip(
        x.numpy(), chunks.targets, patients, chunks.origins, strict=True
    ):
        place = (slice(None), *(slice(o, o + 4) for o in origin))
        np.testing.assert_array_equal(values, scans[patient.key][place])
        np.testing.assert_array_equal(target, values[0] > 0)


def test_a_folder_of_dicom_files_is_opened(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.data.get_testdata_file("MR_small.dcm")
    (tmp_path / "1.2.840").mkdir()
    shutil.copy(file, tmp_path / "1.2.840" / "1.dcm")
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.ids == ("1.2.840",)
    view = dataset[0].record().view()
    np.testing.assert_array_equal(
        view.read(Region.of(view.spatial_shape))[0], pydicom.dcmread(file).pixel_array
    )


def test_a_volume_that_was_told_its_place_keeps_it(tmp_path):
    values = np.zeros((4, 6, 8), "f4")
    values[:, :3] = 100
    np.save(tmp_path / "a.npy", values)
    space = Space([[0, 0, -1, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]], values.shape)
    volume = open_volume(tmp_path / "a.npy").with_space(space, background=-1)
    assert images_of(volume).dataset[0].record() == Record(
        tmp_path / "a.npy", space=space, background=-1, backend="npy", on_gap="raise", name="wsi"
    )
    with LightDL(
        volume,
        smallchunk_size=(2, 2, 2),
        batch_size=16,
        resident="1 MiB",
        orientation="RPS",
        tissue=lambda picture: picture > 50,
        min_tissue=1.0,
    ) as loader:
        x, _, _ = loader.get()
    assert (x == 100).all()


# ------------------------------------------------------------------------- slices in files
SCANS = {
    name: np.random.default_rng(n).integers(0, 200, (12, 8, 6, 1)).astype("f4")
    for n, name in enumerate(["9000099_V00-Aug00", "9000099_V01-Aug00"])
}


def plane(path, values):
    with h5py.File(path, "w") as file:
        file["data"] = values


@pytest.fixture
def oai(tmp_path):
    """As MedSegPy has them: numbered from 1, image (y, x, 1) and masks (y, x, 1, classes)."""
    for name, scan in SCANS.items():
        for number, values in enumerate(scan, start=1):
            plane(tmp_path / f"{name}_{number:03d}.im", values)
            masks = np.stack([values > 50, values > 100], -1).astype("u1")
            plane(tmp_path / f"{name}_{number:03d}.seg", masks)
    return tmp_path


def test_scans_of_medsegpy(oai):
    dataset = Dataset.from_slices(
        oai, "{id}_{slice}.im", labels="{id}_{slice}.seg", spacing=(0.7, 0.36, 0.36)
    )
    assert dataset.ids == tuple(SCANS)
    sizes = {"smallchunk_size": (12, 8, 6), "batch_size": 2, "resident": "1 MiB"}
    with LightDL(dataset, record="image", target="label", **sizes) as loader:
        x, patients, chunks = loader.get()
    for values, masks, patient in zip(x.numpy(), chunks.targets, patients, strict=True):
        scan = SCANS[patient.key][..., 0]
        np.testing.assert_array_equal(values[0], scan)
        np.testing.assert_array_equal(masks, np.stack([scan > 50, scan > 100], -1))
    assert dataset[0].record("image").spacing == (0.7, 0.36, 0.36)


def test_fields_and_regular_expressions(oai):
    named = Dataset.from_slices(oai, "{id}-Aug{augmented}_{slice}.im", name="n")
    assert named.ids == ("9000099_V00", "9000099_V01")
    assert named.labels("augmented") == ["00", "00"]
    one = Dataset.from_slices(oai, r"(?P<id>\d+)_V01-Aug\d\d_(?P<slice>\d+)\.im")
    assert one.ids == ("9000099",)
    (oai / "deep").mkdir()
    for number in (9, 10):
        plane(oai / "deep" / f"{number}.im", np.full((2, 2), number, "f4"))
    deep = Dataset.from_slices(oai, "{id}/{slice}.im")
    assert deep.ids == ("deep",)
    np.testing.assert_array_equal(deep[0].record().array[:, 0, 0], [9, 10])


def test_wrong_slices_are_named(oai):
    read, pattern = Dataset.from_slices, "{id}_{slice}.im"
    with pytest.raises(DatasetError, match=r"of \{'visit': '00'\} and of \{'visit': '01'\}"):
        read(oai, "{id}_V{visit}-Aug00_{slice}.im")
    for wrong, words in (
        ("{id}.im", "must say which part of a name"),
        ("(?P<id>[", "is no pattern"),
        ("{id}_{slice}.tif", "no file matches pattern='"),
        ("(?P<id>.+)_(?P<slice>V..).*", "the slice 'V00' is no number"),
    ):
        with pytest.raises(DatasetError, match=words):
            read(oai, wrong)
    with pytest.raises(DatasetError, match="no file matches labels="):
        read(oai, pattern, labels="{id}_{slice}.mask")
    first = "9000099_V00-Aug00"
    (oai / f"{first}_003.seg").unlink()
    with pytest.raises(DatasetError, match=r"has 12 slices and its label 11; only one .* has 3$"):
        read(oai, pattern, labels="{id}_{slice}.seg")
    (oai / f"{first}_003.im").unlink()
    with pytest.raises(DatasetError, match=rf"scan '{first}' has slices 1 to 12 without 3; add"):
        read(oai, pattern)
    left = read(oai, pattern, labels="{id}_{slice}.seg", missing_slices="allow")
    assert left[0].record("image").array.shape == (11, 8, 6)
    for number in range(1, 13):
        (oai / f"9000099_V01-Aug00_{number:03d}.seg").unlink()
    with pytest.raises(DatasetError, match=r"no label for 1 of 2 images: '9000099_V01-Aug00'"):
        read(oai, pattern, labels="{id}_{slice}.seg", missing_slices="allow")
    some = read(
        oai, pattern, labels="{id}_{slice}.seg", missing_slices="allow", missing_labels="allow"
    )
    assert [list(p.records) for p in some] == [["image", "label"], ["image"]]
    (oai / "more").mkdir()
    plane(oai / "more" / f"{first}_1.im", np.zeros((8, 6)))
    with pytest.raises(DatasetError, match=rf"slice 1 of scan '{first}' is there twice: .* and m"):
        read(oai, pattern, missing_slices="allow")
