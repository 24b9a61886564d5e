"""Metrics of segmentations. MONAI's are the reference, and counting by hand."""

from __future__ import annotations

import dask
import dask.array as da
import nibabel
import numpy as np
import pytest
import torch

from daskdmed import Dataset, Patient, Record, Space, evaluate, infer, predict
from daskdmed.core import extras
from daskdmed.errors import (
    BudgetError,
    DatasetError,
    GeometryError,
    MissingExtraError,
    ResolutionError,
    UsageError,
)
from daskdmed.inference.evaluation import tally
from daskdmed.inference.evaluation.evaluate import METRICS

SPACING = (3.0, 0.7, 1.1)
EVERY = (*METRICS, "iou", "hd", "specificity")


def blobs(shape, seed):
    """Labels 0 to 3 in lumps, some of them at the border."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.indices(shape), -1) / shape
    values = np.zeros(shape, np.uint8)
    for label in (1, 2, 3, 1):
        far = np.linalg.norm(grid - rng.random(len(shape)), axis=-1)
        values[far < rng.uniform(0.15, 0.4)] = label
    return values


@pytest.fixture(scope="module")
def maps():
    """(prediction, reference) pairs."""
    return [
        (blobs(s, 2 * i), blobs(s, 2 * i + 1)) for i, s in enumerate([(18, 20, 16), (9, 12, 30)])
    ]


def one_hot(values):
    return torch.from_numpy(np.stack([values == c for c in range(4)])[None])


def of_monai(metric, predicted, true):
    found = metric(one_hot(predicted), one_hot(true))
    return [float(v) for v in found[0, -3:]]


def of_ours(result, scan, metric):
    rows = result.table.set_index(["scan", "class"])
    return rows.loc[scan, metric].tolist()


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # within MONAI
@pytest.mark.parametrize("chunks", [None, 9])
def test_overlaps_and_distances_are_those_of_monai(maps, chunks):
    monai = pytest.importorskip("monai.metrics")
    surface, hausdorff = monai.SurfaceDistanceMetric, monai.HausdorffDistanceMetric
    pairs = maps if chunks is None else [tuple(da.from_array(m, chunks) for m in p) for p in maps]
    result = evaluate(pairs, metrics=EVERY, classes=4, spacing=SPACING)
    assert result.scans == ("0", "1")
    assert result.classes == (1, 2, 3)
    references = {
        "dice": monai.DiceMetric(include_background=False, ignore_empty=True),
        "assd": lambda a, b: surface(symmetric=True)(a, b, spacing=SPACING),
        "hd": lambda a, b: hausdorff()(a, b, spacing=SPACING),
        "hd95": lambda a, b: hausdorff(percentile=95)(a, b, spacing=SPACING),
    }
    for i, pair in enumerate(maps):
        for name, metric in references.items():
            wanted = of_monai(metric, *pair)
            np.testing.assert_allclose(of_ours(result, str(i), name), wanted, rtol=1e-5)


def test_definitions_by_hand():
    true = np.zeros((4, 4), np.uint8)
    true[:2] = 1  # 8
    predicted = np.zeros((4, 4), np.uint8)
    predicted[1:, :3] = 1  # 9, of which 3 in both
    (row,) = evaluate([(predicted, true)], metrics=EVERY, spacing=2.0).rows
    overlap, union = 3, 14
    assert row["dice"] == pytest.approx(2 * overlap / 17)
    assert row["iou"] == pytest.approx(overlap / union)
    assert row["voe"] == pytest.approx(1 - overlap / union)
    assert row["cv"] == pytest.approx(np.std([8, 9]) / np.mean([8, 9]))
    assert row["precision"] == pytest.approx(3 / 9)
    assert row["recall"] == pytest.approx(3 / 8)
    assert row["specificity"] == pytest.approx(2 / 8)
    assert row["volume_difference"] == pytest.approx(1 / 8)
    # all voxels but the one in the middle of the prediction have a neighbour outside
    assert row["hd"] == pytest.approx(4.0)


def test_a_class_that_is_nowhere_and_one_that_is_missed():
    true, predicted = np.zeros((2, 6, 6, 6), np.uint8)
    true[:3, :3, :3], predicted[3:, 3:, 3:] = 1, 2
    result = evaluate([(predicted, true)], metrics=EVERY, classes=[1, 2, 3], spacing=1)
    missed, invented, nowhere = result.rows
    for row in (missed, invented):
        assert (row["dice"], row["iou"], row["voe"], row["cv"]) == (0, 0, 1, 1)
        assert row["assd"] == row["hd"] == row["hd95"] == np.inf
    assert np.isnan(missed["precision"])
    assert missed["recall"] == 0
    assert missed["volume_difference"] == -1
    assert np.isnan(invented["recall"])
    assert invented["precision"] == 0
    assert invented["volume_difference"] == np.inf
    assert nowhere["specificity"] == 1
    assert all(np.isnan(nowhere[m]) for m in EVERY if m != "specificity")
    # what is nowhere does not count in a mean
    assert result.mean().loc["all", "dice"] == 0


def test_only_labels_that_occur_are_classes_by_default(maps):
    true = np.zeros((5, 5), np.int32)
    true[1, 1] = 2035
    result = evaluate({"a": (true, true), 7: maps[0]}, metrics="dice")
    assert [(r["scan"], r["class"]) for r in result.rows] == [
        ("a", 2035), ("7", 1), ("7", 2), ("7", 3),
    ]  # fmt: skip
    assert result.classes == (1, 2, 3, 2035)


def test_names_of_several_labels(maps):
    predicted, true = maps[1]
    result = evaluate([maps[1]], metrics="dice", classes={"both": [1, 3], "rest": 0})
    for name, labels in (("both", [1, 3]), ("rest", [0])):
        a, b = np.isin(predicted, labels), np.isin(true, labels)
        wanted = 2 * np.sum(a & b) / (a.sum() + b.sum())
        assert of_ours(result, "0", "dice")[result.classes.index(name)] == pytest.approx(wanted)


def test_tables(maps):
    result = evaluate(maps, metrics=("dice", "recall", "assd"), classes=4, spacing=1)
    table, mean, pooled = result.table, result.mean(), result.pooled()
    assert list(table.columns) == ["scan", "class", "dice", "recall", "assd"]
    assert len(table) == 6
    assert len(result) == 2
    by_class = table.groupby("class")[["dice", "recall", "assd"]].mean()
    np.testing.assert_allclose(mean.loc[[1, 2, 3]].to_numpy(float), by_class.to_numpy())
    np.testing.assert_allclose(mean.loc["all"].to_numpy(float), by_class.mean().to_numpy())
    joined = [np.concatenate([p[i].ravel() for p in maps]) for i in (0, 1)]
    both = np.sum((joined[0] == 2) & (joined[1] == 2))
    wanted = 2 * both / sum(np.sum(j == 2) for j in joined)
    assert pooled.loc[2, "dice"] == pytest.approx(wanted)
    assert list(pooled.columns) == ["dice", "recall"]  # distances cannot be pooled
    assert "2 scans, 3 classes" in repr(result)
    shown = result._repr_html_()
    assert shown.count("<tr>") == 1 + 6 + 3
    assert "<td>mean</td>" in shown


def test_what_infer_yields(tmp_path):
    rng = np.random.default_rng(0)
    space = Space(np.diag([2.0, 1.0, 0.5, 1.0]), (12, 16, 16))
    patients = []
    for i in range(2):
        image = rng.random(space.shape).astype(np.float32)
        records = {
            "t1": Record(array=image, space=space),
            "seg": Record(array=(image > 0.6).astype(np.int16), space=space),
        }
        patients.append(Patient(f"p{i}", records))
    dataset = Dataset("scans", patients)
    how = {"kernel_size": (8, 8, 8), "target": "seg", "post": "threshold", "overlap": 0}
    result = evaluate(infer(dataset, lambda w: w, **how), metrics=("dice", "hd95"))
    assert result.scans == ("p0/t1", "p1/t1")
    by_hand = [
        ((p.records["t1"].array >= 0.5).astype(np.uint8), p.records["seg"].array) for p in patients
    ]
    wanted = evaluate(by_hand, metrics=("dice", "hd95"), spacing=(2, 1, 0.5))
    for mine, other in zip(result.rows, wanted.rows, strict=True):
        assert mine["dice"] == other["dice"] < 1
        assert mine["hd95"] == other["hd95"]
    # stored results and records know where they lie
    out = tmp_path / "a.zarr"
    predict(patients[0].records["t1"].view(spatial_ndim=3), lambda w: w, kernel_size=(8, 8, 8),
            post="threshold", overlap=0, out=out)  # fmt: skip
    stored = evaluate({"a": (out, patients[0].records["seg"])}, metrics="hd95")
    assert stored.rows[0]["hd95"] == result.rows[0]["hd95"]
    without = Dataset("bare", [Patient("p", {"t1": patients[0].records["t1"]}), patients[1]])
    with pytest.raises(DatasetError, match="has no reference"):
        evaluate(infer(without, lambda w: w, **how), metrics="dice")


def test_micrometers_become_millimeters():
    image = np.zeros((40, 40), np.float32)
    image[:20] = 1
    moved = np.roll(image, 4, axis=0) > 0
    records = {
        "image": Record(array=image, mpp=(0.5, 0.25)),
        "seg": Record(array=moved.astype(np.uint8)),
    }
    scans = infer(
        Dataset("d", [Patient("p", records)]), lambda w: w, kernel_size=16, target="seg",
        post="threshold",
    )  # fmt: skip
    (row,) = evaluate(scans, metrics="hd").rows
    assert row["hd"] == pytest.approx(4 * 0.25e-3)


def test_blocks_are_let_go_and_only_surfaces_are_held(monkeypatch):
    shape, chunk = (24, 24, 24), 8
    sizes = []
    count = tally._count

    def spied(predicted, true, *rest):
        sizes.append(predicted.size)
        return count(predicted, true, *rest)

    monkeypatch.setattr(tally, "_count", spied)
    ones = da.ones(shape, chunks=chunk, dtype=np.uint8)
    with dask.config.set(scheduler="synchronous"):
        result = evaluate([(ones, ones)], metrics=("dice", "assd"), classes=2, spacing=1)
    assert (result.rows[0]["dice"], result.rows[0]["assd"]) == (1, 0)
    assert len(sizes) == 27
    assert max(sizes) == (chunk + 2) ** 3
    monkeypatch.setattr(tally, "_MOST_POINTS", 1000)
    with pytest.raises(BudgetError, match="coarser resolution"):
        evaluate([(ones, ones)], metrics="assd", classes=2, spacing=1)


def test_both_must_be_of_the_same_voxels(maps):
    predicted, true = maps[0]
    here = Space(np.diag([3.0, 1.0, 1.0, 1.0]), true.shape)
    there = here.crop((0, 5, 0), true.shape)
    record = [Record(array=m, space=s) for m, s in ((predicted, there), (true, here))]
    with pytest.raises(GeometryError, match="do not lie at the same place"):
        evaluate([tuple(record)], metrics="dice")
    with pytest.raises(GeometryError, match="has shape"):
        evaluate([(predicted[1:], true)], metrics="dice")


def test_wrong_arguments(maps, monkeypatch):
    pair = maps[0]
    space = Space(np.diag([3.0, 1.0, 1.0, 1.0]), pair[1].shape)
    known = (pair[0], Record(array=pair[1], space=space))
    for scans, arguments, error, match in (
        ([pair], {"metrics": "dise"}, UsageError, "is 'dice' meant"),
        ([pair], {"metrics": ("dice", "dice")}, UsageError, "each once"),
        ([pair], {"metrics": ()}, UsageError, "at least one"),
        ([pair], {}, ResolutionError, "nobody says the size"),
        ([pair], {"spacing": (1, 2)}, ResolutionError, "one number or 3"),
        ([pair], {"spacing": -1}, ResolutionError, "positive"),
        ([known], {"spacing": 2}, ResolutionError, "its own is"),
        ([pair], {"classes": 1, "metrics": "dice"}, UsageError, "number of classes"),
        ([pair], {"classes": [1, 1], "metrics": "dice"}, UsageError, "each once"),
        ([pair], {"classes": {"a": "b"}, "metrics": "dice"}, UsageError, "number of classes"),
        ([pair[0]], {"metrics": "dice"}, UsageError, "list of pairs"),
        (pair[0][0, 0], {"metrics": "dice"}, UsageError, "list of pairs"),
        ("folder", {"metrics": "dice"}, UsageError, "list of pairs"),
        ([], {"metrics": "dice"}, DatasetError, "no scans"),
        ({"1": pair, 1: pair}, {"metrics": "dice"}, DatasetError, "two scans"),
        ([(pair[0] + 0.5, pair[1])], {"metrics": "dice"}, UsageError, "whole numbers"),
        ([(np.arange(2000), np.arange(2000))], {"metrics": "dice"}, UsageError, "objects"),
    ):
        with pytest.raises(error, match=match):
            evaluate(scans, **arguments)

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    result = evaluate([pair], metrics="dice", classes=4)
    with pytest.raises(MissingExtraError, match=r"daskdmed\[tables\]"):
        result.mean()
    with pytest.raises(MissingExtraError, match=r"daskdmed\[volumes\]"):
        evaluate([pair], metrics="hd", classes=4, spacing=1)


def test_files_hold_labels_as_floating_point_too(maps):
    predicted, true = maps[0]
    floats = (predicted.astype(np.float64), true.astype(np.float32))
    mine = evaluate([floats], metrics="dice").rows
    assert mine == evaluate([maps[0]], metrics="dice").rows


def test_paths_of_results_and_of_files(maps, tmp_path):
    predicted, true = maps[0]
    affine = np.diag([0.5, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(true.T, affine), tmp_path / "seg.nii.gz")
    scan = Record(tmp_path / "seg.nii.gz")
    out = tmp_path / "pred.zarr"

    def model(windows):  # the labels that are predicted, as logits
        return np.stack([predicted == c for c in range(4)])[None].astype(np.float32)

    predict(scan, model, kernel_size=true.shape, post="argmax", out=out)
    found = evaluate({"a": (out, tmp_path / "seg.nii.gz")}).rows
    wanted = evaluate({"a": maps[0]}, spacing=(3, 1, 0.5)).rows
    for mine, other in zip(found, wanted, strict=True):
        assert mine == pytest.approx(other)
    turned = scan.view(orientation="LPI").as_labels()
    with pytest.raises(GeometryError, match="do not lie at the same place"):
        evaluate([(out, turned)])
