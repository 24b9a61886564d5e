"""Metrics of predictions that are too large for memory, computed chunk by chunk.

Everything that follows from a confusion matrix is exact: counts are summed over the chunks.
The area under the ROC curve comes from histograms of the scores, with a bound on the error
that belongs to the data. Any metric of torchmetrics can be fed chunk by chunk with
`update_blockwise`.

Not covered: distances between surfaces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array
from daskdmed.inference.counts import AnyArray, as_dask, paired, summed

if TYPE_CHECKING:
    import torchmetrics

_MAX_CLASSES = 1024


@dataclass(frozen=True)
class Confusion:
    """Counts of (true class, predicted class), and what follows from them.

    Per class the metrics are arrays (classes,) of float64, NaN for a class that occurs
    neither here nor there (0 / 0). Add two of them to pool scans.

    Parameters
    ----------
    matrix : ndarray of int
        (classes, classes), rows are the truth.

    Examples
    --------
    >>> import numpy as np
    >>> found = confusion(np.array([[0, 1], [1, 1]]), np.array([[0, 1], [0, 1]]))
    >>> found.dice.round(2).tolist()
    [0.67, 0.8]
    """

    matrix: Array

    def __add__(self, other: Confusion) -> Confusion:
        if self.matrix.shape != other.matrix.shape:
            raise UsageError(
                f"confusions of {len(self.matrix)} and {len(other.matrix)} classes cannot be "
                "added; give classes= to both"
            )
        return Confusion(self.matrix + other.matrix)

    def __repr__(self) -> str:
        return f"<Confusion of {self.classes} classes, {self.total:,} pixels>"

    def _repr_html_(self) -> str:
        from daskdmed.inference.html import confusion_html

        return confusion_html(self)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.matrix)

    @property
    def total(self) -> int:
        """Number of pixels counted."""
        return int(self.matrix.sum())

    @property
    def true_positives(self) -> Array:
        """Per class."""
        return np.asarray(np.diagonal(self.matrix))

    @property
    def false_positives(self) -> Array:
        """Per class."""
        return np.asarray(self.matrix.sum(axis=0) - self.true_positives)

    @property
    def false_negatives(self) -> Array:
        """Per class."""
        return np.asarray(self.matrix.sum(axis=1) - self.true_positives)

    @property
    def dice(self) -> Array:
        """2 TP / (2 TP + FP + FN), which is also the F1 score."""
        return _ratio(2 * self.true_positives, self.matrix.sum(axis=0) + self.matrix.sum(axis=1))

    @property
    def iou(self) -> Array:
        """TP / (TP + FP + FN), the Jaccard index."""
        tp = self.true_positives
        return _ratio(tp, self.matrix.sum(axis=0) + self.matrix.sum(axis=1) - tp)

    @property
    def sensitivity(self) -> Array:
        """TP / (TP + FN), also called recall."""
        return _ratio(self.true_positives, self.matrix.sum(axis=1))

    @property
    def precision(self) -> Array:
        """TP / (TP + FP)."""
        return _ratio(self.true_positives, self.matrix.sum(axis=0))

    @property
    def specificity(self) -> Array:
        """TN / (TN + FP)."""
        negatives = self.matrix.sum() - self.matrix.sum(axis=1)
        return _ratio(negatives - self.false_positives, negatives)

    @property
    def accuracy(self) -> float:
        """Share of pixels that are right."""
        return float(_ratio(self.true_positives.sum(), self.matrix.sum()))

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance."""
        n = float(self.matrix.sum())
        by_chance = (self.matrix.sum(axis=0) / n) @ (self.matrix.sum(axis=1) / n) if n else np.nan
        return float(_ratio(np.asarray(self.accuracy - by_chance), np.asarray(1 - by_chance)))


def _ratio(above: Array, below: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.divide(above, below, dtype=np.float64))


def confusion(
    y_true: AnyArray,
    y_pred: AnyArray,
    *,
    classes: int | None = None,
    ignore: int | None = None,
    mask: AnyArray | None = None,
) -> Confusion:
    """Count pairs of true and predicted classes, chunk by chunk.

    Parameters
    ----------
    y_true, y_pred : dask.array.Array, numpy.ndarray or zarr.Array
        Class numbers, integer or bool, of one shape. Chunks may differ.
    classes : int, optional
        Number of classes. Without it one more than the largest number that occurs (one
        more pass), at least 2.
    ignore : int, optional
        Pixels with this true or predicted number do not count.
    mask : array, optional
        Where pixels count; bool, of the same shape.

    Raises
    ------
    GeometryError
        The shapes differ.
    UsageError
        Values that are no class numbers: not integers, negative, or `classes` and above.
    """
    arrays = paired(y_true, y_pred, mask)
    for name, array in zip(("y_true", "y_pred"), arrays, strict=False):
        if array.dtype.kind not in "biu":
            raise UsageError(
                f"{name} holds {array.dtype}, class numbers are integers; predict with "
                "post='argmax' or 'threshold', or compare first: scores >= 0.5"
            )
    if classes is None:
        classes = _class_count(arrays[:2], ignore)
    if not 1 <= classes <= _MAX_CLASSES:
        raise UsageError(
            f"classes={classes} must lie between 1 and {_MAX_CLASSES}; labels of single objects "
            "are no classes, compare first: labels > 0"
        )
    wanted = int(classes)

    def count(true: Array, predicted: Array, inside: Array | None = None) -> Array:
        keep = np.ones(true.shape, bool) if inside is None else inside.astype(bool)
        if ignore is not None:
            keep &= (true != ignore) & (predicted != ignore)
        t, p = true[keep].astype(np.int64), predicted[keep].astype(np.int64)
        good = (t >= 0) & (t < wanted) & (p >= 0) & (p < wanted)
        counts = np.bincount(t[good] * wanted + p[good], minlength=wanted * wanted)
        return np.append(counts, np.count_nonzero(~good))

    counts = summed(count, arrays, wanted * wanted + 1, np.dtype(np.int64))
    if counts[-1]:
        raise UsageError(
            f"{counts[-1]} pixels have a true or predicted number outside 0 to {wanted - 1}; give "
            "classes=, or ignore= for the number that stands for no class"
        )
    return Confusion(counts[:-1].reshape(wanted, wanted))


def _class_count(arrays: Sequence[da.Array], ignore: int | None) -> int:
    largest = []
    for array in arrays:
        values = array.astype(np.int64)
        if ignore is not None:
            values = da.where(values == ignore, 0, values)
        largest.append(values.max())
    return max(int(max(da.compute(*largest))) + 1, 2)


def volume(
    labels: AnyArray,
    spacing: Sequence[float],
    *,
    classes: int | None = None,
    mask: AnyArray | None = None,
) -> Array:
    """Area (two axes) or volume (three) of each class, (classes,) float64.

    Parameters
    ----------
    labels : array
        Class numbers.
    spacing : sequence of float
        Extent of a pixel along each axis, array order; the result is in its unit to the
        power of the number of axes. `daskdmed.infer` gives it with every scan.
    classes, mask
        As in `confusion`.

    Raises
    ------
    GeometryError
        `spacing` is not one positive number per axis.
    """
    array = as_dask(labels)
    steps = np.asarray(spacing, np.float64)
    if steps.shape != (array.ndim,) or not (np.isfinite(steps) & (steps > 0)).all():
        raise GeometryError(
            f"spacing={spacing!r} must be {array.ndim} positive numbers, one per axis of an array "
            f"of shape {array.shape}"
        )
    counts = np.diagonal(confusion(array, array, classes=classes, mask=mask).matrix)
    return np.asarray(counts * np.prod(steps))


@dataclass(frozen=True)
class ScoreHistogram:
    """Scores of positives and negatives in bins, (bins,) each; add two of them to pool scans."""

    edges: Array
    positives: Array
    negatives: Array

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        if not np.array_equal(self.edges, other.edges):
            raise UsageError(
                "histograms with different bins cannot be added; give the same bins= and limits="
            )
        return ScoreHistogram(
            self.edges, self.positives + other.positives, self.negatives + other.negatives
        )

    @property
    def auc(self) -> float:
        """Area under the ROC curve; pairs within one bin count one half. NaN without
        positives or without negatives."""
        below = np.cumsum(self.negatives) - self.negatives
        return self._share(self.positives * (below + self.negatives / 2))

    @property
    def auc_error(self) -> float:
        """Largest possible difference between `auc` and the exact area: half the share of
        pairs that fall into one bin."""
        return self._share(self.positives * (self.negatives / 2))

    def __repr__(self) -> str:
        counts = f"{self.positives.sum():,} positives, {self.negatives.sum():,} negatives"
        return f"<ScoreHistogram of {counts}: auc {self.auc:.4g}>"

    def _repr_html_(self) -> str:
        from daskdmed.inference.html import histogram_html

        return histogram_html(self)

    def _share(self, pairs: Array) -> float:
        every = float(self.positives.sum()) * float(self.negatives.sum())
        return float(pairs.sum(dtype=np.float64) / every) if every else float("nan")

    def roc(self) -> tuple[Array, Array, Array]:
        """False-positive rate, true-positive rate and threshold, from the strictest on."""
        found = np.append(0, np.cumsum(self.positives[::-1]))
        wrong = np.append(0, np.cumsum(self.negatives[::-1]))
        with np.errstate(invalid="ignore"):
            return wrong / wrong[-1], found / found[-1], self.edges[::-1]


def score_histogram(
    y_true: AnyArray,
    score: AnyArray,
    *,
    bins: int = 4096,
    limits: tuple[float, float] = (0.0, 1.0),
    mask: AnyArray | None = None,
) -> ScoreHistogram:
    """Histogram of the scores of positives and of negatives, chunk by chunk.

    Parameters
    ----------
    y_true : array
        Positive where it is above 0; integer or bool.
    score : array
        Real numbers within `limits`; NaN (outside of a mask) does not count.
    bins : int
        Number of equal bins.
    limits : (float, float)
        Of the scores.
    mask : array, optional
        Where pixels count.

    Raises
    ------
    GeometryError, UsageError
        The shapes differ, or scores lie outside `limits`.
    """
    low, high = float(limits[0]), float(limits[1])
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UsageError(f"limits={limits!r} must be two numbers, the first below the second")
    if int(bins) != bins or not 1 <= bins <= 2**24:
        raise UsageError(f"bins={bins!r} must be a whole number from 1 to {2**24}")
    arrays = paired(y_true, score, mask)
    if arrays[0].dtype.kind not in "biu":
        raise UsageError(f"y_true holds {arrays[0].dtype}, it must be integer or bool")
    n = int(bins)

    def count(true: Array, values: Array, inside: Array | None = None) -> Array:
        keep = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
        if inside is not None:
            keep &= inside.astype(bool)
        scores, positive = values[keep].astype(np.float64), true[keep] > 0
        good = (scores >= low) & (scores <= high)
        place = np.minimum(((scores[good] - low) * (n / (high - low))).astype(np.int64), n - 1)
        both = np.bincount(place + n * positive[good], minlength=2 * n)
        return np.append(both, np.count_nonzero(~good))

    counts = summed(count, arrays, 2 * n + 1, np.dtype(np.int64))
    if counts[-1]:
        raise UsageError(
            f"{counts[-1]} scores lie outside limits={limits}; give limits= that hold them all, "
            "or turn logits into probabilities"
        )
    return ScoreHistogram(np.linspace(low, high, n + 1), counts[n : 2 * n], counts[:n])


def auc(
    y_true: AnyArray,
    score: AnyArray,
    *,
    bins: int = 4096,
    limits: tuple[float, float] = (0.0, 1.0),
    mask: AnyArray | None = None,
) -> float:
    """Area under the ROC curve, see `score_histogram` and `ScoreHistogram.auc_error`."""
    return score_histogram(y_true, score, bins=bins, limits=limits, mask=mask).auc


def update_blockwise(
    metric: torchmetrics.Metric, y_true: AnyArray, y_pred: AnyArray, *, flatten: bool = True
) -> None:
    """Feed a metric of torchmetrics chunk by chunk; memory holds one chunk.

    Parameters
    ----------
    metric : torchmetrics.Metric
        Gets ``update(predictions, target)``. Metrics that keep all they are given (those
        with ``thresholds=None``) keep it here too.
    y_true, y_pred : array
        Class numbers; and class numbers or scores of the same shape, or with a leading channel
        axis for scores of several classes. Pixels where a score is NaN are left out.
    flatten : bool
        Give pixels as one axis, (n,) and (n[, k]); else chunks in their shape with a batch
        axis in front.
    """
    import torch

    for true, predicted in _chunks(as_dask(y_true), as_dask(y_pred)):
        extra = predicted.ndim > true.ndim
        if not flatten:
            metric.update(torch.from_numpy(predicted[None]), torch.from_numpy(true[None]))
            continue
        rows = predicted.reshape(len(predicted), -1).T if extra else predicted.reshape(-1)
        target = true.reshape(-1)
        if rows.dtype.kind == "f":
            unknown = np.isnan(rows).any(axis=1) if extra else np.isnan(rows)
            rows, target = rows[~unknown], target[~unknown]
        if len(target):
            metric.update(
                torch.from_numpy(np.ascontiguousarray(rows)),
                torch.from_numpy(np.ascontiguousarray(target).astype(np.int64)),
            )


def _chunks(y_true: da.Array, y_pred: da.Array) -> Iterator[tuple[Array, Array]]:
    """Chunk by chunk, all channels of the scores together."""
    extra = y_pred.ndim - y_true.ndim
    if extra not in (0, 1) or y_pred.shape[extra:] != y_true.shape:
        raise GeometryError(
            f"y_true of shape {y_true.shape} and y_pred of shape {y_pred.shape} do not fit: "
            "they are equal, or y_pred has one channel axis in front"
        )
    y_true = y_true.rechunk(y_pred.chunks[extra:])
    lead = (slice(None),) * extra
    ends = [np.cumsum((0, *sizes)) for sizes in y_true.chunks]
    for index in itertools.product(*(range(len(sizes)) for sizes in y_true.chunks)):
        at = tuple(slice(int(e[i]), int(e[i + 1])) for e, i in zip(ends, index, strict=True))
        true, predicted = da.compute(y_true[at], y_pred[(*lead, *at)])
        yield np.array(true), np.array(predicted)


__all__ = [
    "Confusion",
    "ScoreHistogram",
    "auc",
    "confusion",
    "score_histogram",
    "update_blockwise",
    "volume",
]
