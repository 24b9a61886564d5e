"""Metrics of one class of one scan, from its tally.

Not covered: counting (`daskdmed.inference.evaluation.tally`), tables of many scans
(`daskdmed.inference.evaluation.evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from daskdmed.core.errors import UsageError, meant
from daskdmed.core.extras import extra
from daskdmed.core.types import Array
from daskdmed.inference.evaluation.tally import Tally
from daskdmed.inference.metrics import Confusion


def confusion_of(tally: Tally) -> Confusion:
    """Of a class against all others: its numbers are at index 1."""
    only, missed = tally.predicted - tally.both, tally.true - tally.both
    nothing = tally.total - tally.both - only - missed
    return Confusion(np.array([[nothing, only], [missed, tally.both]]))


def variation(confusion: Confusion) -> float:
    """Standard deviation over mean of the two volumes."""
    predicted, true = _volumes(confusion)
    return _ratio(abs(predicted - true), predicted + true)


def volume_difference(confusion: Confusion) -> float:
    """How much larger the predicted volume is, as a fraction of the true one."""
    predicted, true = _volumes(confusion)
    return _ratio(predicted - true, true)


def _volumes(confusion: Confusion) -> tuple[int, int]:
    tp = confusion.true_positives[1]
    return int(tp + confusion.false_positives[1]), int(tp + confusion.false_negatives[1])


def _ratio(above: float, below: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.divide(float(above), float(below)))


#: from counts
COUNTED: Mapping[str, Callable[[Confusion], float]] = {
    "dice": lambda c: float(c.dice[1]),
    "iou": lambda c: float(c.iou[1]),
    "voe": lambda c: 1 - float(c.iou[1]),
    "cv": variation,
    "precision": lambda c: float(c.precision[1]),
    "recall": lambda c: float(c.sensitivity[1]),
    "specificity": lambda c: float(c.specificity[1]),
    "volume_difference": volume_difference,
}
#: from the distances of all surface voxels to the other surface, those of the prediction first
MEASURED: Mapping[str, Callable[[Array, Array], float]] = {
    "assd": lambda a, b: float(np.concatenate([a, b]).mean()),
    "hd": lambda a, b: float(max(a.max(), b.max())),
    "hd95": lambda a, b: float(max(np.percentile(a, 95), np.percentile(b, 95))),
}


def check_metrics(metrics: Any) -> tuple[str, ...]:
    """Names of metrics, each once, as users give them."""
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    known = [*COUNTED, *MEASURED]
    for name in names:
        if name not in known:
            raise UsageError(
                f"no metric {name!r}{meant(str(name), known)}; there are {', '.join(known)}"
            )
    if not names or len(set(names)) < len(names):
        raise UsageError(f"metrics={metrics!r} must name at least one metric, and each once")
    return names


def surface_distances(
    predicted: Array, true: Array, spacing: Sequence[float]
) -> tuple[Array, Array]:
    """Millimeters from each voxel of one surface to the nearest of the other, both ways; exact.

    Both empty without any voxels, infinite where one of them has none.
    """
    if not len(predicted) or not len(true):
        return np.full(len(predicted), np.inf), np.full(len(true), np.inf)
    spatial = extra("scipy.spatial", "volumes", "distances between surfaces need")
    ours, theirs = (points * np.asarray(spacing, np.float64) for points in (predicted, true))
    there = spatial.cKDTree(theirs, leafsize=32).query(ours)[0]
    back = spatial.cKDTree(ours, leafsize=32).query(theirs)[0]
    return there, back


def scores(tally: Tally, names: Sequence[str], spacing: Sequence[float]) -> dict[str, float]:
    """The metrics of a class, by name."""
    confusion = confusion_of(tally)
    found = {n: COUNTED[n](confusion) for n in names if n in COUNTED}
    measured = [n for n in names if n in MEASURED]
    if measured:
        assert tally.surface_predicted is not None
        assert tally.surface_true is not None
        there, back = surface_distances(tally.surface_predicted, tally.surface_true, spacing)
        if not len(there) or not len(back):
            nothing = np.nan if len(there) == len(back) else np.inf
            found.update(dict.fromkeys(measured, nothing))
        else:
            found.update({n: MEASURED[n](there, back) for n in measured})
    return {n: found[n] for n in names}
