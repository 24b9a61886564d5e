"""`DatasetEvaluator`, which is told of every scan, and `inference_on_dataset`, which tells it."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from daskdmed.core.errors import DatasetError, UsageError

logger = logging.getLogger("daskdmed.compat")


class DatasetEvaluator(ABC):
    """Is told of scans, and says at the end what it found. To be derived from."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was told."""

    @abstractmethod
    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Be told of scans, as ``loader.inference`` gives them."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """What was found."""


def inference_on_dataset(
    model: Any,
    data_loader: Any,
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator],
    **kwargs: Any,
) -> dict[str, Any]:
    """Predict every scan of a loader, and evaluate it.

    One scan is done before the next one is read, so that one is in memory at a time.

    Parameters
    ----------
    model, **kwargs
        As of ``data_loader.inference``.
    data_loader : DataLoader
        What has ``inference``.
    evaluator : DatasetEvaluator or sequence of them
        They are reset first.

    Returns
    -------
    dict
        What each evaluator found, by the name of its class.

    Raises
    ------
    UsageError
        Two evaluators of one class, or something that is none.
    DatasetError
        The loader has no scans.
    """
    many = list(evaluator) if isinstance(evaluator, Sequence) else [evaluator]
    names = [type(one).__name__ for one in many]
    if not many or len(set(names)) < len(names):
        raise UsageError(f"evaluators are told apart by their classes, got {names}")
    for one in many:
        if not isinstance(one, DatasetEvaluator):
            raise UsageError(f"an evaluator is a DatasetEvaluator, got {type(one).__name__}")
        one.reset()
    total = data_loader.num_scans() if hasattr(data_loader, "num_scans") else 0
    begun, done = time.perf_counter(), 0
    for inputs, outputs in data_loader.inference(model, **kwargs):
        for one in many:
            one.process([inputs], [outputs])
        done += 1
        each = (time.perf_counter() - begun) / done
        logger.info(
            "scan %s: %d of %d, predicted in %.2f s, %.0f s to go",
            inputs["scan_id"], done, total, outputs["time_elapsed"], each * max(total - done, 0),
        )  # fmt: skip
        del inputs, outputs
    if not done:
        raise DatasetError("the loader has no scans to predict")
    return {name: one.evaluate() for name, one in zip(names, many, strict=True)}
