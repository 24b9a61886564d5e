"""MedSegPy's evaluators: their numbers are those of `daskdmed.evaluate`, and are given back."""

from __future__ import annotations

import csv

import dask.array as da
import h5py
import numpy as np
import pytest

from daskdmed import evaluate
from daskdmed.compat.medsegpy import losses
from daskdmed.compat.medsegpy.data import MetadataCatalog, build_loader
from daskdmed.compat.medsegpy.evaluation import (
    EVALUATOR_REGISTRY,
    DatasetEvaluator,
    SemSegEvaluator,
    build_evaluator,
    inference_on_dataset,
    rms_cv,
    rmse_cv,
)
from daskdmed.errors import DatasetError, GeometryError, ResolutionError, UsageError
from tests.compat.made import config

METRICS = ["DSC", "VOE", "CV", "ASSD", "Precision", "Recall", "L2NORM", "hd95"]
RNG = np.random.default_rng(0)
TRUE = (RNG.random((8, 7, 5, 2)) > 0.6).astype(np.uint8)
PRED = np.clip(0.7 * TRUE + RNG.random(TRUE.shape) * 0.5, 0, 1).astype(np.float32)
SPACING = (0.5, 1.0, 2.0)


def scan(name="a", pred=PRED, true=TRUE, **facts):
    outputs = {"y_pred": pred, "y_true": true, "time_elapsed": 1.0}
    return [{"scan_id": name, "scan_spacing": SPACING, **facts}], [outputs]


def evaluator(tmp_path=None, data="made", *, save_raw_data=False, stream=True, **values):
    cfg = config(**{"CATEGORIES": (0, 3), "TEST_METRICS": METRICS, **values})
    return SemSegEvaluator(data, cfg, tmp_path, save_raw_data, stream)


def test_metrics_by_class(catalogs):
    MetadataCatalog.get("made").set(category_ids=(0, 3), categories=("bone", "skin"))
    found = evaluator()
    found.process(*scan())
    assert "DSC" in repr(found)
    assert repr(found).endswith("2 rows so far>")
    result = found.evaluate()
    assert list(result) == METRICS
    own = ["dice", "voe", "cv", "assd", "precision", "recall", "hd95"]
    for k, name in enumerate(("bone", "skin")):
        label = (PRED[..., k] > 0.5).astype(np.uint8)
        row = evaluate([(label, TRUE[..., k])], metrics=own, classes=[1], spacing=SPACING).rows[0]
        for metric, mine in zip([m for m in METRICS if m != "L2NORM"], own, strict=True):
            assert result[metric][name] == row[mine]
        both, sizes = (label & TRUE[..., k]).sum(), label.sum() + TRUE[..., k].sum()
        assert abs(result["DSC"][name] - 2 * both / sizes) < 1e-12
        norm = np.linalg.norm(PRED[..., k].astype(float) - TRUE[..., k])
        assert abs(result["L2NORM"][name] - norm) < 1e-6
    assert result["DSC"]["mean"] == np.mean([result["DSC"]["bone"], result["DSC"]["skin"]])
    assert [(r["scan_id"], r["class"]) for r in found.rows] == [("a", "bone"), ("a", "skin")]


def test_labels_by_the_activation_without_the_background(catalogs):
    pred = RNG.random((4, 4, 3, 3)).astype(np.float32)
    true = np.eye(3, dtype=np.uint8)[pred.argmax(-1)]
    found = evaluator(
        LOSS=losses.WEIGHTED_CROSS_ENTROPY_LOSS, INCLUDE_BACKGROUND=True, TEST_METRICS=["DSC"]
    )
    found.process(*scan(pred=da.from_array(pred, chunks=2), true=da.from_array(true, chunks=2)))
    assert found.evaluate() == {"DSC": {"class 0": 1.0, "class 3": 1.0, "mean": 1.0}}
    sigmoid = evaluator(INCLUDE_BACKGROUND=True, TEST_METRICS=["DSC"])
    sigmoid.process(*scan(pred=pred, true=true))
    assert sigmoid.evaluate()["DSC"]["mean"] < 1


def test_many_classes_are_counted_as_each_alone(catalogs):
    pred = RNG.random((6, 5, 4, 11)).astype(np.float32)
    true = (RNG.random(pred.shape) > 0.4).astype(np.uint8)  # voxels of several classes
    found = evaluator(CATEGORIES=tuple(range(11)), TEST_METRICS=["DSC", "ASSD"])
    found.process(*scan(pred=da.from_array(pred, chunks=3), true=da.from_array(true, chunks=4)))
    for k, row in enumerate(found.rows):
        pair = (pred[..., k] > 0.5).astype(np.uint8), true[..., k]
        one = evaluate([pair], metrics=("dice", "assd"), classes=[1], spacing=SPACING).rows[0]
        assert (row["DSC"], row["ASSD"]) == pytest.approx((one["dice"], one["assd"]), rel=1e-12)


def test_names_of_classes(catalogs):
    MetadataCatalog.get("made").set(
        category_ids={"a": (0, (1, 2), 3, 4)}, categories={"a": ("w", "xy", "z", "v")}
    )
    for wanted, names in (
        ((0, (1, 2)), ["w", "xy"]),
        (((3, 4), 5), ["z + v", "class 5"]),
        ((), ["w", "class 1"]),  # every mask is a class
    ):
        found = evaluator(CATEGORIES=wanted, PRIMARY_TASK="a", TEST_METRICS=["DSC"])
        found.process(*scan())
        assert [row["class"] for row in found.rows] == names


def test_scans_are_told_apart_and_a_missing_class_does_not_count(catalogs):
    empty = np.zeros_like(TRUE)
    found = evaluator(TEST_METRICS=["DSC"])
    found.process(*scan("a", pred=TRUE))
    found.process(*scan("b", pred=empty, true=empty))
    found.process(*scan("c", pred=empty))
    assert found.evaluate()["DSC"]["mean"] == 0.5
    assert [np.isnan(r["DSC"]) for r in found.rows] == [False, False, True, True, False, False]
    found.reset()
    with pytest.raises(DatasetError, match="no scans were evaluated"):
        found.evaluate()


def test_files_and_the_same_at_the_end(tmp_path, catalogs):
    now = evaluator(tmp_path / "now", save_raw_data=True)
    later = evaluator(tmp_path / "later", stream=False)
    for one in (now, later):
        one.process(*scan("a"))
        one.process(*scan("b", pred=da.from_array(PRED[::-1], chunks=4)))
    assert not later.rows
    assert now.evaluate() == later.evaluate()
    rows = list(csv.DictReader((tmp_path / "now" / "metrics.csv").open()))
    assert [r["scan_id"] for r in rows] == ["a", "a", "b", "b"]
    assert float(rows[0]["DSC"]) == now.rows[0]["DSC"]
    assert "DSC class 0: 0." in (tmp_path / "later" / "results.txt").read_text()
    assert sorted(p.name for p in (tmp_path / "now").glob("*.pred*")) == ["a.pred", "b.pred"]
    with h5py.File(tmp_path / "now" / "b.pred") as file:
        np.testing.assert_array_equal(file["probs"], PRED[::-1])
        np.testing.assert_array_equal(file["labels"], PRED[::-1] > 0.5)


def test_what_cannot_be_evaluated(catalogs):
    found = evaluator()
    with pytest.raises(DatasetError, match="'a' has no masks to compare with"):
        found.process(*scan(true=None))
    with pytest.raises(GeometryError, match=r"predictions \(8, 7, 5, 2\), masks \(8, 7, 5, 1\)"):
        found.process(*scan(true=TRUE[..., :1]))
    with pytest.raises(ResolutionError):
        found.process(*scan(scan_spacing=None))
    # the metadata say it as well
    MetadataCatalog.get("made").set(spacing=SPACING)
    found.process(*scan(scan_spacing=None))
    assert len(found.rows) == 2
    with pytest.raises(UsageError, match="no metric 'DCS'; is 'DSC' meant"):
        evaluator(TEST_METRICS=["DCS"])
    with pytest.raises(UsageError, match="save_raw_data=True needs an output_folder"):
        evaluator(save_raw_data=True)
    MetadataCatalog.get("made").set(evaluator_type="SemSegEvaluater")
    with pytest.raises(UsageError, match="no evaluator 'SemSegEvaluater'; is 'SemSegEvaluator'"):
        build_evaluator("made", config())


def test_a_whole_dataset(registered, monkeypatch):
    monkeypatch.setattr(EVALUATOR_REGISTRY, "_classes", {**EVALUATOR_REGISTRY._classes})

    @EVALUATOR_REGISTRY.register()
    class Count(DatasetEvaluator):
        def reset(self):
            self.scans = []

        def process(self, inputs, outputs):
            self.scans += [i["scan_id"] for i in inputs]

        def evaluate(self):
            return {"scans": self.scans}

    cfg = config(CATEGORIES=(0,), TEST_METRICS=["DSC", "ASSD"])
    loader = build_loader(cfg, "slices", 4, False, True, True)

    def truth(x):  # masks are where the image is bright
        return (x > 0.3).astype(np.float32)

    one, other = build_evaluator("slices", cfg), Count()
    found = inference_on_dataset(truth, loader, [one, other])
    wanted = {"femoral cartilage": 1.0, "mean": 1.0}
    assert found["SemSegEvaluator"]["DSC"] == wanted
    assert found["SemSegEvaluator"]["ASSD"]["mean"] == 0
    assert len(found["Count"]["scans"]) == 3
    # everything is forgotten before
    assert inference_on_dataset(truth, loader, one) == {"SemSegEvaluator": found["SemSegEvaluator"]}
    assert len(one.rows) == 3
    with pytest.raises(UsageError, match="told apart by their classes"):
        inference_on_dataset(truth, loader, [one, one])
    with pytest.raises(UsageError, match="an evaluator is a DatasetEvaluator"):
        inference_on_dataset(truth, loader, 3)


def test_variation_of_pairs():
    a, b = np.array([1.0, 2, 4]), np.array([1.0, 3, 2])
    each = [np.std(p) / np.mean(p) for p in zip(a, b)]
    assert abs(rms_cv(a, b) - np.sqrt(np.mean(np.square(each)))) < 1e-12
    assert abs(rmse_cv(a, b) - np.sqrt(np.mean((a - b) ** 2)) / np.mean([a, b])) < 1e-12
    with pytest.raises(GeometryError, match="3 values against 2"):
        rms_cv(a, b[:2])
