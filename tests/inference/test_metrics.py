"""Metrics over chunked arrays against scikit-learn and torchmetrics, and by hand."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.errors import GeometryError, UsageError
from daskdmed.inference.metrics import (
    Confusion,
    auc,
    confusion,
    score_histogram,
    update_blockwise,
    volume,
)


def labels(shape, classes, seed):
    return np.random.default_rng(seed).integers(0, classes, shape)


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(2, 5),
    st.integers(1, 12),
    st.integers(1, 12),
    st.booleans(),
)
def test_counts_do_not_depend_on_chunks(shape, classes, first, second, masked):
    true, predicted = labels(shape, classes, 0), labels(shape, classes, 1)
    mask = labels(shape, 2, 2).astype(bool) if masked else None
    keep = np.ones(shape, bool) if mask is None else mask
    wanted = np.zeros((classes, classes), int)
    np.add.at(wanted, (true[keep], predicted[keep]), 1)
    found = confusion(
        da.from_array(true, chunks=first),
        da.from_array(predicted, chunks=second),
        classes=classes,
        mask=mask,
    )
    np.testing.assert_array_equal(found.matrix, wanted)
    assert found.total == keep.sum()


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    true, predicted = labels((120, 90), 4, 0), labels((120, 90), 4, 1)
    predicted[:60] = true[:60]
    found = confusion(da.from_array(true, chunks=50), da.from_array(predicted, chunks=31))
    t, p = true.ravel(), predicted.ravel()
    np.testing.assert_array_equal(found.matrix, metrics.confusion_matrix(t, p))
    np.testing.assert_allclose(found.dice, metrics.f1_score(t, p, average=None))
    np.testing.assert_allclose(found.iou, metrics.jaccard_score(t, p, average=None))
    np.testing.assert_allclose(found.sensitivity, metrics.recall_score(t, p, average=None))
    np.testing.assert_allclose(found.precision, metrics.precision_score(t, p, average=None))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(t, p))
    assert found.kappa == pytest.approx(metrics.cohen_kappa_score(t, p))
    others = [metrics.recall_score(t != c, p != c) for c in range(4)]
    np.testing.assert_allclose(found.specificity, others)


def test_by_hand_and_pooled():
    first = confusion(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), classes=3)
    np.testing.assert_allclose(first.dice, [2 / 3, 4 / 5, np.nan])
    np.testing.assert_allclose(first.iou, [1 / 2, 2 / 3, np.nan])
    second = confusion(np.array([2]), np.array([2]), classes=3)
    both = first + second
    np.testing.assert_array_equal(both.matrix, [[1, 1, 0], [0, 2, 0], [0, 0, 1]])
    np.testing.assert_allclose(both.dice, [2 / 3, 4 / 5, 1])
    with pytest.raises(UsageError, match="cannot be added"):
        first + confusion(np.array([0]), np.array([1]))


def test_ignored_values_and_booleans():
    true = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    predicted = np.array([[0, 1, 1], [255, 0, 0]], np.uint8)
    found = confusion(true, predicted, ignore=255)
    np.testing.assert_array_equal(found.matrix, [[2, 0], [1, 1]])
    found = confusion(true == 1, predicted == 1)
    np.testing.assert_array_equal(found.matrix, [[2, 1], [2, 1]])


def test_zarr_arrays_and_one_worker_at_a_time():
    array = zarr.create_array(
        zarr.storage.MemoryStore(), shape=(60, 60), chunks=(25, 25), dtype="u1"
    )
    array[:] = labels((60, 60), 3, 0)
    with dask.config.set(scheduler="synchronous"):
        found = confusion(array, array)
    assert found.accuracy == 1
    assert found.total == 3600


def test_volumes_have_units():
    array = da.from_array(labels((10, 20, 30), 3, 0), chunks=7)
    found = volume(array, (2.0, 0.5, 0.25))
    counts = np.bincount(array.compute().ravel())
    np.testing.assert_allclose(found, counts * 0.25)
    assert found.sum() == pytest.approx(10 * 20 * 30 * 0.25)
    for spacing in [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, np.nan)]:
        with pytest.raises(GeometryError, match="spacing"):
            volume(array, spacing)


@pytest.mark.parametrize(
    ("true", "predicted", "keywords", "error", "match"),
    [
        (np.zeros((3, 4), int), np.zeros((4, 3), int), {}, GeometryError, "shapes differ"),
        (np.zeros(3, int), np.zeros(3), {}, UsageError, "class numbers are integers"),
        (np.zeros(3), np.zeros(3, int), {}, UsageError, "class numbers are integers"),
        (np.array([-1]), np.array([0]), {}, UsageError, "1 pixels have .* outside 0 to 1"),
        (np.array([0]), np.array([3]), {"classes": 3}, UsageError, "outside 0 to 2"),
        (np.array([0]), np.array([70_000]), {}, UsageError, "classes=70001"),
        (np.array([0]), np.array([0]), {"classes": 0}, UsageError, "classes=0"),
        (np.zeros(0, int), np.zeros(0, int), {}, GeometryError, "nothing to count"),
        ([0, 1], [0, 1], {}, UsageError, "got list"),
        (np.zeros(3, int), np.zeros(3, int), {"mask": np.ones(4)}, GeometryError, "mask"),
    ],
)
def test_what_cannot_be_counted(true, predicted, keywords, error, match):
    with pytest.raises(error, match=match):
        confusion(true, predicted, **keywords)


def scores(n, seed, ties):
    rng = np.random.default_rng(seed)
    true = rng.random(n) < 0.3
    values = np.clip(rng.normal(0.4 + 0.2 * true, 0.15), 0, 1).astype(np.float32)
    return true, np.round(values, 2) if ties else values


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("bins", [7, 100, 4096])
def test_area_under_the_curve_within_its_own_bound(bins, ties):
    metrics = pytest.importorskip("sklearn.metrics")
    true, values = scores(20_000, bins, ties)
    exact = metrics.roc_auc_score(true, values)
    found = score_histogram(
        da.from_array(true, chunks=3000), da.from_array(values, chunks=4100), bins=bins
    )
    assert abs(found.auc - exact) <= found.auc_error + 1e-12
    if not ties:
        assert found.auc_error < 3 / bins
    assert auc(true, values, bins=bins) == found.auc
    wrong, right, _ = found.roc()
    assert np.trapezoid(right, wrong) == pytest.approx(found.auc)


def test_quantised_scores_give_the_exact_area():
    metrics = pytest.importorskip("sklearn.metrics")
    true, values = scores(5000, 0, False)
    quantised = np.rint(values * 255).astype(np.uint8)
    found = auc(true, quantised, bins=256, limits=(0, 255))
    assert found == pytest.approx(metrics.roc_auc_score(true, quantised), abs=1e-12)


def test_area_by_hand():
    # of 2 x 2 pairs: 3 right, one tie
    true = np.array([0, 1, 0, 1], bool)
    values = np.array([0.1, 0.5, 0.5, 0.9])
    assert auc(true, values) == pytest.approx(3.5 / 4)
    assert auc(true, np.array([np.nan, 0.5, 0.5, 0.9])) == pytest.approx(1.5 / 2)
    assert np.isnan(auc(np.ones(4, bool), values))
    pooled = score_histogram(true, values) + score_histogram(true, values)
    assert pooled.auc == pytest.approx(3.5 / 4)
    with pytest.raises(UsageError, match="different bins"):
        pooled + score_histogram(true, values, bins=3)


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"limits": (0.0, 0.4)}, "2 scores lie outside"),
        ({"limits": (1, 0)}, "limits"),
        ({"limits": (0, np.inf)}, "limits"),
        ({"bins": 0}, "bins"),
        ({"bins": 2.5}, "bins"),
    ],
)
def test_scores_that_do_not_fit(keywords, match):
    with pytest.raises(UsageError, match=match):
        auc(np.array([0, 1, 1]), np.array([0.1, 0.5, 0.9]), **keywords)
    with pytest.raises(UsageError, match="integer or bool"):
        auc(np.array([0.0, 1]), np.array([0.1, 0.5]))


def test_metrics_of_torchmetrics_chunk_by_chunk():
    torchmetrics = pytest.importorskip("torchmetrics")
    true, predicted = labels((64, 50), 3, 0), labels((64, 50), 3, 1)
    predicted[:40] = true[:40]
    metric = torchmetrics.classification.MulticlassJaccardIndex(3, average=None)
    update_blockwise(metric, da.from_array(true, chunks=20), da.from_array(predicted, chunks=33))
    np.testing.assert_allclose(metric.compute(), confusion(true, predicted).iou, rtol=1e-5)
    dice = torchmetrics.F1Score("multiclass", num_classes=3, average=None)
    update_blockwise(dice, true, predicted)
    np.testing.assert_allclose(dice.compute(), confusion(true, predicted).dice, rtol=1e-5)
    # scores with channels in front, NaN outside of a mask
    probability = np.random.default_rng(0).random((3, 64, 50)).astype(np.float32)
    probability[:, :5] = np.nan
    area = torchmetrics.AUROC("multiclass", num_classes=3, thresholds=None)
    update_blockwise(area, true, da.from_array(probability, chunks=(1, 30, 30)))
    whole = torchmetrics.AUROC("multiclass", num_classes=3, thresholds=None)
    rows = probability[:, 5:].reshape(3, -1).T.copy()
    whole.update(torch.from_numpy(rows), torch.from_numpy(true[5:].reshape(-1).copy()))
    assert float(area.compute()) == pytest.approx(float(whole.compute()), abs=1e-6)
    with pytest.raises(GeometryError, match="do not fit"):
        update_blockwise(metric, true, predicted[:10])


def test_a_confusion_is_a_value():
    assert Confusion(np.eye(2, dtype=int)).classes == 2


def test_in_a_notebook():
    counts = confusion(np.array([0, 1, 1, 2] * 3), np.array([0, 1, 2, 2] * 3))
    page = counts._repr_html_()
    assert "12 pixels" in page
    assert 'rgba(74,127,181,0.60);padding:1px 5px;border-radius:2px">3</span>' in page
    assert "<td>0.6667</td>" in page
    many = confusion(np.arange(40), np.arange(40), classes=40)
    assert "and 28 more classes" in many._repr_html_()
    assert "predicted 12" not in many._repr_html_()
    assert repr(counts) == "<Confusion of 3 classes, 12 pixels>"
    scores = score_histogram(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9]), bins=100)
    page = scores._repr_html_()
    assert "2 positives" in page
    assert "from 0 to 1" in page
    assert page.count('height="36.0"') == 4
    assert "auc 1" in repr(scores)
