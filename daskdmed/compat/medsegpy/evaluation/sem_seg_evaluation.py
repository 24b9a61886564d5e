"""`SemSegEvaluator`: metrics of each class of each scan.

Not covered: how they are computed (`daskdmed.evaluate`).
"""

from __future__ import annotations

import csv
import functools
import logging
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.data.catalog import Metadata, MetadataCatalog
from daskdmed.compat.medsegpy.evaluation.evaluator import DatasetEvaluator
from daskdmed.compat.medsegpy.evaluation.metrics import L2NORM, names_of
from daskdmed.core.errors import DatasetError, GeometryError, UsageError
from daskdmed.core.extras import extra
from daskdmed.core.places import local
from daskdmed.core.types import PathLike
from daskdmed.inference.evaluation.evaluate import evaluate
from daskdmed.inference.evaluation.scores import MEASURED

logger = logging.getLogger("daskdmed.compat")

#: classes that are evaluated together: as a uint8 has bits
_AT_ONCE = 8


class SemSegEvaluator(DatasetEvaluator):
    """Metrics of segmentations, scan by scan.

    Predictions become labels as ``cfg.LOSS`` has its activation: with "sigmoid" each class where it
    is above 0.5, with "softmax" the class that is largest. The background, where there is one, is
    no class that is evaluated. Arrays are read block by block.

    Parameters
    ----------
    dataset_name : str
        Whose metadata say the names of classes and the size of voxels.
    cfg : Config
        CATEGORIES, INCLUDE_BACKGROUND, LOSS, TEST_METRICS and PRIMARY_TASK are looked at.
    output_folder : path, optional
        Where ``results.txt`` and ``metrics.csv`` are written by `evaluate`.
    save_raw_data : bool
        Whether ``<scan_id>.pred`` is written there for each scan: HDF5 with "probs" and "labels".
    stream_evaluation : bool
        Whether a scan is evaluated when it comes. Otherwise all are kept until `evaluate`.

    Attributes
    ----------
    rows : list of dict
        One for each scan and class: "scan_id", "class", and the metrics.

    Raises
    ------
    UsageError
        No such metric, or data to be saved without a folder.
    """

    def __init__(
        self,
        dataset_name: str,
        cfg: Config,
        output_folder: PathLike | None = None,
        save_raw_data: bool = False,
        stream_evaluation: bool = True,
    ) -> None:
        if save_raw_data and output_folder is None:
            raise UsageError("save_raw_data=True needs an output_folder")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._cfg = cfg
        self._folder = None
        if output_folder is not None:
            self._folder = local(output_folder, "the folder of results", UsageError)
        self._save, self._stream = save_raw_data, stream_evaluation
        self._metrics = names_of(cfg.TEST_METRICS)
        self.reset()

    def __repr__(self) -> str:
        metrics = ", ".join(self._metrics)
        return f"<SemSegEvaluator: {metrics}; {len(self.rows)} rows so far>"

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import evaluator_html

        return evaluator_html(self, self._means())

    def reset(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._waiting: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Evaluate scans.

        Raises
        ------
        DatasetError
            A scan without masks.
        GeometryError
            Predictions and masks of different shapes.
        ResolutionError
            Distances are wanted, and neither ``scan_spacing`` nor the metadata's ``spacing`` say
            the size of voxels.
        """
        for pair in zip(inputs, outputs, strict=True):
            if self._save:
                self._write(*pair)
            if self._stream:
                self._scan(*pair)
            else:
                self._waiting.append(pair)

    def _scan(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        scan = str(inputs["scan_id"])
        if outputs.get("y_true") is None:
            raise DatasetError(
                f"scan {scan!r} has no masks to compare with; take loaders over scans that have, "
                "get_sem_seg_dataset_dicts(names, filter_empty=True)"
            )
        y_pred, y_true = (_lazy(outputs[name]) for name in ("y_pred", "y_true"))
        if y_pred.shape != y_true.shape:
            raise GeometryError(
                f"scan {scan!r}: predictions {y_pred.shape}, masks {y_true.shape}; rows, columns, "
                "slices and classes of both must be the same"
            )
        counted = [m for m in self._metrics.values() if m != L2NORM]
        spacing = inputs.get("scan_spacing") or self._known("spacing")
        if not any(m in MEASURED for m in counted):
            spacing = None
        labels = self._labels(y_pred)
        first = int(bool(self._cfg.INCLUDE_BACKGROUND))
        names = self._class_names(y_pred.shape[-1] - first)
        numbers = range(first, y_pred.shape[-1])
        found: list[Mapping[str, Any]] = [{} for _ in names]
        if counted:
            found = []
            for some in (numbers[i : i + _AT_ONCE] for i in range(0, len(numbers), _AT_ONCE)):
                pair = _coded(labels, some), _coded(lambda k: y_true[..., k] != 0, some)
                members = {k: _with_bit(i, len(some)) for i, k in enumerate(some)}
                done = evaluate({scan: pair}, metrics=counted, classes=members, spacing=spacing)
                found += done.rows
        for k, name, values in zip(numbers, names, found, strict=True):
            row: dict[str, Any] = {"scan_id": scan, "class": name}
            for shown, metric in self._metrics.items():
                row[shown] = values[metric] if metric != L2NORM else _l2(y_pred, y_true, k)
            self.rows.append(row)
        mine = [r for r in self.rows if r["scan_id"] == scan]
        logger.info(
            "scan %s: %s", scan, ", ".join(f"{m} {_mean(mine, m):.3f}" for m in self._metrics)
        )

    def evaluate(self) -> dict[str, Any]:
        """The mean over scans of each metric, for each class and over these.

        Returns
        -------
        dict
            ``{"DSC": {"femoral cartilage": 0.91, ..., "mean": 0.88}, ...}``. NaN, of a class that
            occurs nowhere in a scan, does not count.

        Raises
        ------
        DatasetError
            There were no scans.
        """
        for pair in self._waiting:
            self._scan(*pair)
        self._waiting = []
        if not self.rows:
            raise DatasetError("no scans were evaluated: process() them first")
        found: dict[str, Any] = {
            metric: {**each, "mean": _finite_mean(list(each.values()))}
            for metric, each in self._means().items()
        }
        if self._folder is not None:
            self._report(found)
        return found

    def _means(self) -> dict[str, dict[Any, float]]:
        """Of each metric by class, over the scans so far."""
        classes = list(dict.fromkeys(row["class"] for row in self.rows))
        return {
            metric: {c: _mean([r for r in self.rows if r["class"] == c], metric) for c in classes}
            for metric in self._metrics
        }

    # ----------------------------------------------------------------- what a class is
    def _labels(self, y_pred: da.Array) -> Callable[[int], da.Array]:
        """The voxels of a class, by its number."""
        if str(self._cfg.LOSS[1]) == "softmax":
            largest = da.argmax(y_pred, axis=-1)
            return lambda k: (largest == k).astype(np.uint8)
        return lambda k: (y_pred[..., k] > 0.5).astype(np.uint8)

    def _class_names(self, count: int) -> list[str]:
        """As metadata say, else by number."""
        names = self._known("categories") or ()
        ids = [_plain(i) for i in self._known("category_ids") or range(len(names))]
        wanted = [_plain(c) for c in self._cfg.CATEGORIES]
        if not wanted:  # every mask is a class
            single = len(ids) == count and not any(isinstance(i, tuple) for i in ids)
            wanted = ids if single else list(range(count))
        by_id = dict(zip(ids, names, strict=False))
        return [_name(category, by_id) for category in wanted]

    def _known(self, key: str) -> Any:
        found: Metadata = self._metadata
        return found.of_task(key, str(self._cfg.PRIMARY_TASK))

    # ------------------------------------------------------------------------ files
    def _write(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """The prediction of a scan, chunk by chunk."""
        h5py = extra("h5py", "volumes", "predictions in HDF5 need")
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        probs = _lazy(outputs["y_pred"])
        labels = self._labels(probs)
        every = da.stack([labels(k) for k in range(probs.shape[-1])], axis=-1)
        place = self._folder / f"{inputs['scan_id']}.pred"
        partial = place.with_suffix(f".pred.{os.getpid()}.part")
        with h5py.File(partial, "w") as file:
            for name, array in (("probs", probs), ("labels", every)):
                target = file.create_dataset(name, array.shape, array.dtype)
                da.store(array, target, lock=True)
        os.replace(partial, place)

    def _report(self, found: Mapping[str, Mapping[str, float]]) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["scan_id", "class", *self._metrics])
            writer.writeheader()
            writer.writerows(self.rows)
        scans = len({row["scan_id"] for row in self.rows})
        lines = [f"{scans} scans"]
        for metric, each in found.items():
            lines += [f"{metric} {name}: {value:.4g}" for name, value in each.items()]
        Path(self._folder / "results.txt").write_text("\n".join(lines) + "\n")


def _coded(members: Callable[[int], da.Array], numbers: Sequence[int]) -> da.Array:
    """Which of some classes each voxel is of, a bit for each: a scan is read once for all of them,
    though a voxel may be of several."""
    bits = [members(k).astype(np.uint8) << i for i, k in enumerate(numbers)]
    return functools.reduce(operator.or_, bits)


def _with_bit(bit: int, bits: int) -> list[int]:
    """Numbers of so many bits in which one is set."""
    return [value for value in range(2**bits) if value >> bit & 1]


def _lazy(array: Any) -> da.Array:
    return array if isinstance(array, da.Array) else da.from_array(np.asarray(array))


def _l2(y_pred: da.Array, y_true: da.Array, k: int) -> float:
    """Length of the difference of all voxels."""
    difference = y_pred[..., k].astype(np.float64) - y_true[..., k]
    return float(np.sqrt((difference**2).sum().compute()))


def _name(category: Any, by_id: Mapping[Any, Any]) -> str:
    """Of a class: its own, or those of what it consists of."""
    parts = category if isinstance(category, tuple) else (category,)
    if category not in by_id and all(p in by_id for p in parts):
        return " + ".join(str(by_id[p]) for p in parts)
    return str(by_id.get(category, f"class {category}"))


def _plain(value: Any) -> Any:
    return tuple(int(v) for v in value) if np.ndim(value) else int(value)


def _mean(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    return _finite_mean([row[metric] for row in rows])


def _finite_mean(values: Sequence[float]) -> float:
    """The mean; NaN does not count, infinite distances do."""
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


__all__ = ["SemSegEvaluator"]
