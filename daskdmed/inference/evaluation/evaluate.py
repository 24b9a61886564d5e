"""`evaluate`: metrics of segmentations per scan and class, and over all.

Not covered: how a class is counted (`daskdmed.inference.evaluation.tally`), scores that are no
labels yet (`daskdmed.inference.metrics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core import html
from daskdmed.core.errors import DatasetError, UsageError
from daskdmed.core.extras import extra
from daskdmed.inference.evaluation.pairs import pairs_of
from daskdmed.inference.evaluation.scores import (
    COUNTED,
    MEASURED,
    check_metrics,
    confusion_of,
    scores,
)
from daskdmed.inference.evaluation.tally import Labels, labels_in, tallies
from daskdmed.inference.metrics import Confusion

if TYPE_CHECKING:
    import pandas as pd

#: scans that a notebook shows one by one
_ROWS = 20
#: of the mean over all classes
ALL = "all"
METRICS = ("dice", "voe", "cv", "precision", "recall", "assd", "hd95", "volume_difference")


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Metrics of scans. Made by `evaluate`.

    Attributes
    ----------
    metrics : tuple of str
        Their names, in the order of columns.
    rows : tuple of dict
        One per scan and class: "scan", "class", and a number per metric.
    confusions : dict
        By class, the voxels of all scans: a `Confusion` of the class (index 1) against all
        others.
    """

    metrics: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    confusions: Mapping[Any, Confusion]

    @property
    def scans(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(dict.fromkeys(row["scan"] for row in self.rows))

    @property
    def classes(self) -> tuple[Any, ...]:
        """Labels, or names where these were given."""
        return tuple(self.confusions)

    @property
    def table(self) -> pd.DataFrame:
        """A row per scan and class, columns "scan", "class" and the metrics."""
        columns = ["scan", "class", *self.metrics]
        found: pd.DataFrame = _pandas().DataFrame(list(self.rows), columns=columns)
        return found

    def mean(self) -> pd.DataFrame:
        """The mean over scans per class, and ("all") over classes of these; NaN does not count,
        infinite distances do."""
        found = {c: [self._mean(m, c) for m in self.metrics] for c in self.classes}
        found[ALL] = [_mean([values[i] for values in found.values()]) for i in self._positions]
        return self._by_class(found, self.metrics)

    def pooled(self) -> pd.DataFrame:
        """Per class the metrics of all voxels of all scans together, as far as counts say them:
        large scans weigh more."""
        names = [m for m in self.metrics if m in COUNTED]
        found = {c: [COUNTED[n](one) for n in names] for c, one in self.confusions.items()}
        return self._by_class(found, names)

    @property
    def _positions(self) -> range:
        return range(len(self.metrics))

    def _mean(self, metric: str, label: Any) -> float:
        return _mean([row[metric] for row in self.rows if row["class"] == label])

    def _by_class(self, found: Mapping[Any, Sequence[float]], names: Sequence[str]) -> pd.DataFrame:
        pandas = _pandas()
        index = pandas.Index(list(found), name="class", dtype=object)
        values = list(found.values())
        made: pd.DataFrame = pandas.DataFrame(values, index=index, columns=list(names))
        return made

    def __len__(self) -> int:
        """Number of scans."""
        return len(self.scans)

    def __repr__(self) -> str:
        means = (f"{m} {_mean([self._mean(m, c) for c in self.classes]):.4g}" for m in self.metrics)
        return f"<Evaluation of {len(self)} scans, {len(self.classes)} classes: {', '.join(means)}>"

    def _repr_html_(self) -> str:
        means = [
            {"scan": "mean", "class": c, **{m: self._mean(m, c) for m in self.metrics}}
            for c in self.classes
        ]
        cells = [
            (str(row["scan"]), str(row["class"]), *(f"{row[m]:.4g}" for m in self.metrics))
            for row in [*self.rows[:_ROWS], *means]
        ]
        left = len(self.rows) - _ROWS
        if left > 0:
            cells.insert(_ROWS, (f"{left} more", *[""] * (len(self.metrics) + 1)))
        said = f"{len(self)} scans, {len(self.classes)} classes"
        head = ("scan", "class", *self.metrics)
        return html.page(html.title("Evaluation", said), html.table(head, cells))


def evaluate(
    scans: Iterable[Any] | Mapping[Any, Any],
    *,
    metrics: str | Sequence[str] = METRICS,
    classes: int | Sequence[int] | Mapping[Any, int | Sequence[int]] | None = None,
    spacing: float | Sequence[float] | None = None,
) -> Evaluation:
    """Compare label maps with their references, scan by scan.

    Maps are read block by block; memory holds some blocks, and for distances the positions of
    surface voxels. One scan is done before the next is asked for, so that what
    `daskdmed.infer` yields is let go.

    Parameters
    ----------
    scans : iterable or mapping
        What `daskdmed.infer` yields; or pairs (prediction, reference); or ``{id: (prediction,
        reference)}``. Each is a path of a result or an image, a `Record`, a `Volume` or
        `Slide`, or a Dask, NumPy or Zarr array, and holds labels: integers, bool, or whole
        numbers in floating point.
    metrics : str or sequence of str
        Of one class P (predicted) and T (true), fractions all of them:

        - "dice": ``2 |P & T| / (|P| + |T|)``; "iou": ``|P & T| / |P | T|``
        - "voe": volumetric overlap error, 1 - iou (Heimann et al. 2009, as in MedSegPy)
        - "cv": coefficient of variation of both volumes, standard deviation (of the two, without
          Bessel's correction) over mean, ``||P| - |T|| / (|P| + |T|)``, as in MedSegPy
        - "precision": ``|P & T| / |P|``; "recall": ``|P & T| / |T|``; "specificity"
        - "volume_difference": ``(|P| - |T|) / |T|``

        and in millimeters, between the voxels of a class that have a neighbour across a face
        which is none of it (as in MONAI):

        - "assd": average symmetric surface distance, the mean over the voxels of both
          surfaces of the distance to the other (MedSegPy's, by medpy, is the mean of the two
          means)
        - "hd": Hausdorff distance; "hd95": the larger of both 95th percentiles
    classes : int, sequence of int or mapping, optional
        Which labels are classes. A number n: 1 to n - 1; a sequence: these labels, 0 too if it
        is in it; a mapping: names with a label or several that count as one. Default: the labels
        above 0 that a scan has, in its prediction or reference.
    spacing : float or sequence of float, optional
        Millimeters per voxel along each axis, for arrays that do not say so. What the reference
        says, else the prediction, is taken otherwise.

    Returns
    -------
    Evaluation
        `table`, `mean()` and `pooled()` are pandas DataFrames (extra "tables").

    Raises
    ------
    GeometryError
        Prediction and reference of a scan have other shapes, or do not lie at the same place.
    ResolutionError
        Distances are wanted, and nobody says the size of voxels.
    UsageError
        No such metric, values that are no labels, or scans in another form.
    DatasetError
        No scans, two of one id, or one without a reference.
    BudgetError
        A surface of more voxels than memory holds.

    Notes
    -----
    Where a class is in neither map, every metric is NaN but "specificity", and `mean` leaves it
    out. Where it is in one only, "dice" and "iou" are 0, "voe" and "cv" 1, and distances
    infinite; "precision" is NaN without a prediction, "recall" without a reference, where
    "volume_difference" is infinite. MONAI's ``ignore_empty=True`` leaves out scans with an empty
    reference even if something was predicted there; here these count as 0.

    Examples
    --------
    >>> scans = daskdmed.infer(  # doctest: +SKIP
    ...     dataset, unet, kernel_size=96, record="t1", target="seg", post="argmax"
    ... )
    >>> found = daskdmed.evaluate(  # doctest: +SKIP
    ...     scans, classes={"cartilage": [1, 2], "meniscus": 3}
    ... )
    >>> found.mean()  # doctest: +SKIP
    """
    names = check_metrics(metrics)
    wanted = _classes(classes)
    rows: list[dict[str, Any]] = []
    confusions: dict[Any, Confusion] = {}
    seen = set()
    for pair in pairs_of(scans):
        if pair.scan in seen:
            raise DatasetError(f"two scans are called {pair.scan!r}")
        seen.add(pair.scan)
        surfaces = any(name in MEASURED for name in names)
        steps = pair.steps(spacing) if surfaces or spacing is not None else ()
        maps = pair.predicted.array, pair.true.array
        mine = wanted if wanted is not None else {n: (n,) for n in labels_in(*maps)}
        found = tallies(*maps, list(mine.values()), surfaces=surfaces)
        for label, tally in zip(mine, found, strict=True):
            rows.append({"scan": pair.scan, "class": label, **scores(tally, names, steps)})
            one = confusion_of(tally)
            confusions[label] = confusions[label] + one if label in confusions else one
    if not seen:
        raise DatasetError("there are no scans to evaluate; an iterator of them may be used up")
    if wanted is None:
        confusions = dict(sorted(confusions.items()))
    return Evaluation(names, tuple(rows), confusions)


def _classes(classes: Any) -> dict[Any, Labels] | None:
    """Labels by class, from what users write."""
    if classes is None:
        return None
    given: Any = classes
    if isinstance(classes, (int, np.integer)) and not isinstance(classes, bool):
        given = range(1, int(classes))
    pairs = list(given.items()) if isinstance(given, Mapping) else [(n, n) for n in _listed(given)]
    found = {name: tuple(_listed(labels)) for name, labels in pairs}
    whole = all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool)
        for labels in found.values()
        for n in labels
    )
    if not found or len(found) < len(pairs) or not whole or not all(found.values()):
        raise UsageError(
            f"classes={classes!r} is a number of classes (2 for label 1), a list of labels, each "
            "once, or {name: label or labels}"
        )
    return {
        name if isinstance(given, Mapping) else int(name): tuple(int(n) for n in labels)
        for name, labels in found.items()
    }


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _pandas() -> Any:
    return extra("pandas", "tables", "tables of an evaluation need")


__all__ = ["Evaluation", "evaluate"]
