from .build import EVALUATOR_REGISTRY as EVALUATOR_REGISTRY
from .build import build_evaluator as build_evaluator
from .evaluator import DatasetEvaluator as DatasetEvaluator
from .evaluator import inference_on_dataset as inference_on_dataset
from .metrics import rms_cv as rms_cv
from .metrics import rmse_cv as rmse_cv
from .sem_seg_evaluation import SemSegEvaluator as SemSegEvaluator
