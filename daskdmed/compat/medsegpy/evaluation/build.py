"""Evaluators by name."""

from __future__ import annotations

from collections.abc import Callable

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.data.catalog import MetadataCatalog
from daskdmed.compat.medsegpy.evaluation.evaluator import DatasetEvaluator
from daskdmed.compat.medsegpy.evaluation.sem_seg_evaluation import SemSegEvaluator
from daskdmed.compat.medsegpy.registry import Registry
from daskdmed.core.types import PathLike

EVALUATOR_REGISTRY: Registry[Callable[..., DatasetEvaluator]] = Registry("evaluator")
EVALUATOR_REGISTRY.register(SemSegEvaluator)


def build_evaluator(
    dataset_name: str,
    cfg: Config,
    output_folder: PathLike | None = None,
    save_raw_data: bool = False,
) -> DatasetEvaluator:
    """The evaluator that the metadata of a dataset name as ``evaluator_type``, by default
    `SemSegEvaluator`. Arguments are handed to it.

    Raises
    ------
    UsageError
        No evaluator of that name.
    """
    known = MetadataCatalog.get(dataset_name)
    name = known.of_task("evaluator_type", str(cfg.PRIMARY_TASK), "SemSegEvaluator")
    return EVALUATOR_REGISTRY.get(name)(
        dataset_name, cfg, output_folder=output_folder, save_raw_data=save_raw_data
    )
