"""MedSegPy's names of metrics, for those of `daskdmed.evaluate`.

ASSD is the mean over the voxels of both surfaces, where MedSegPy (by medpy) has the mean of the two
means; see `daskdmed.evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import GeometryError, UsageError, listing, meant
from daskdmed.inference.evaluation.scores import COUNTED, MEASURED

#: of a class of a scan
METRICS: Mapping[str, str] = {
    "DSC": "dice",
    "VOE": "voe",
    "CV": "cv",
    "ASSD": "assd",
    "Precision": "precision",
    "Recall": "recall",
}
#: of the predicted values themselves
L2NORM = "L2NORM"


def names_of(metrics: Sequence[str]) -> dict[str, str]:
    """Metrics of `daskdmed.evaluate` by the names under which they are wanted: MedSegPy's or its
    own; L2NORM is its own.

    Raises
    ------
    UsageError
        No such metric.
    """
    own = {n: n for n in (*COUNTED, *MEASURED)}
    known = {**own, **METRICS, L2NORM: L2NORM}
    for name in metrics:
        if name not in known:
            raise UsageError(
                f"no metric {name!r}{meant(str(name), known)}; there are "
                f"{listing([*METRICS, L2NORM])} and those of daskdmed.evaluate: {', '.join(own)}"
            )
    if not metrics:
        raise UsageError("cfg.TEST_METRICS names no metric")
    return {name: known[name] for name in metrics}


def rms_cv(y_pred: npt.ArrayLike, y_true: npt.ArrayLike) -> float:
    """Root mean square over scans of the coefficient of variation of pairs of values."""
    a, b = _pairs(y_pred, y_true)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.abs(a - b) / (a + b)
    return float(np.sqrt(np.nanmean(found**2)))


def rmse_cv(y_pred: npt.ArrayLike, y_true: npt.ArrayLike) -> float:
    """Root mean square difference of pairs of values, over the mean of all."""
    a, b = _pairs(y_pred, y_true)
    return float(np.sqrt(np.mean((a - b) ** 2)) / np.mean((a + b) / 2))


def _pairs(
    one: npt.ArrayLike, other: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    a, b = (np.asarray(v, np.float64).reshape(-1) for v in (one, other))
    if a.shape != b.shape or not a.size:
        raise GeometryError(f"{a.size} values against {b.size}: one pair for each scan is wanted")
    return a, b


__all__ = ["L2NORM", "METRICS", "rms_cv", "rmse_cv"]
