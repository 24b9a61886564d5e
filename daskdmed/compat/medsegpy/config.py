"""`Config` and `UNetConfig`: what MedSegPy is told, as attributes in capitals.

A container of values. Those that daskdmed acts on are documented at `Config`; those that a script
or `daskdmed.compat.medsegpy.engine.DefaultTrainer` reads (names of datasets, batch sizes, numbers
of epochs) are kept; setting one that MedSegPy acted on and nothing here does says so in the log.

Not covered: files of configurations and the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from daskdmed.compat.medsegpy.losses import DICE_LOSS
from daskdmed.core.errors import UsageError, meant

logger = logging.getLogger("daskdmed.compat")

#: what the modules of this package act on
_ACTED_ON: Mapping[str, Any] = {
    "TAG": "DefaultDataLoader",
    "SEED": None,
    "CATEGORIES": (),
    "INCLUDE_BACKGROUND": False,
    "IMG_SIZE": (288, 288, 1),
    "IMG_STRIDE": (),
    "IMG_PAD_SIZE": (),
    "IMG_PAD_MODE": "edge",
    "PRELOAD_DATA": False,
    "PREPROCESSING": (),
    "PREPROCESSING_ARGS": (),
    "NUM_WORKERS": 1,
    "PRIMARY_TASK": "",
    "LOSS": DICE_LOSS,
    "CLASS_WEIGHTS": None,
    "INITIAL_LEARNING_RATE": 1e-4,
    "MODEL_NAME": "",
    "INIT_WEIGHTS": "",
    "TEST_METRICS": ("DSC", "VOE", "ASSD", "CV"),
}
#: what scripts read themselves, and `DefaultTrainer`
_KEPT: Mapping[str, Any] = {
    "TRAIN_DATASET": "",
    "VAL_DATASET": "",
    "TEST_DATASET": "",
    "TRAIN_BATCH_SIZE": 12,
    "VALID_BATCH_SIZE": 35,
    "TEST_BATCH_SIZE": 72,
    "N_EPOCHS": 100,
    "OUTPUT_DIR": "",
    "TEST_WEIGHT_PATH": "",
    "USE_EARLY_STOPPING": False,
    "EARLY_STOPPING_CRITERION": "val_loss",
    "EARLY_STOPPING_MIN_DELTA": 0.0,
    "EARLY_STOPPING_PATIENCE": 0,
    "EXP_NAME": "",
    "DESCRIPTION": "",
    "LEARNING_TAG": "",
    "VERSION": 7,
    "STATE": "training",
}
#: what only MedSegPy acted on
_WITHOUT_EFFECT: Mapping[str, Any] = {
    "ADAM_DECAY": 0.0,
    "AUGMENT_DATA": False,
    "CV_FILE": "",
    "CV_K": 0,
    "CV_TEST_BINS": (),
    "CV_TRAIN_BINS": (),
    "CV_VALID_BINS": (),
    "DROP_FACTOR": 0.7,
    "DROP_RATE": 1.0,
    "FILE_TYPES": ("im",),
    "FREEZE_LAYERS": (),
    "FREEZE_PRETRAINED": False,
    "INIT_UNET_2D": False,
    "KERNEL_INITIALIZER": "he_normal",
    "LR_COOLDOWN": 0,
    "LR_MIN_DELTA": 1e-4,
    "LR_PATIENCE": 0,
    "LR_SCHEDULER_NAME": "",
    "MIN_LEARNING_RATE": 1e-8,
    "NORMALIZATION": "BatchNorm",
    "NORMALIZATION_ARGS": None,
    "NUM_GRAD_STEPS": 1,
    "PIDS": None,
    "PRETRAINED_CONFIG_PATH": "",
    "PRETRAINED_WEIGHTS_PATH": None,
    "ROBUST_LOSS_NAME": "",
    "ROBUST_LOSS_STEP_SIZE": 0.1,
    "SS_LOADED_LAYERS": (),
    "USE_AMSGRAD": False,
    "USE_ATTENTION": False,
    "USE_CROSS_VALIDATION": False,
    "USE_DEEP_SUPERVISION": False,
    "WEIGHT_STANDARDIZATION": False,
}


class Config:
    """Values by name, as attributes: ``cfg.TAG = "PatchDataLoader"``, or ``Config(TAG=...)``.

    Parameters
    ----------
    **values
        Any of the keys:

        - TAG: name of the loader, see `daskdmed.compat.medsegpy.data.DATA_LOADER_REGISTRY`.
        - SEED: of everything random; None draws one for each loader, which the log names.
        - CATEGORIES: positions of masks, from 0; a nested sequence is one class of several. Empty:
          every mask of the files is a class.
        - INCLUDE_BACKGROUND: whether a first channel is 1 where no class is.
        - IMG_SIZE: what a network gets, without the axis of the batch. Of `PatchDataLoader` the
          extent of a patch, and one number more when its channels have an axis of their own; of
          `N5dDataLoader` and `S25dDataLoader` the last number is how many slices become channels.
        - IMG_STRIDE: distance of patches, () for the patch itself.
        - IMG_PAD_SIZE, IMG_PAD_MODE: voxels added on both sides of each axis, and in which mode of
          `numpy.pad`; the mode also says what lies beyond the first and the last slice.
        - PRELOAD_DATA: whether scans are held in memory once they were read.
        - PREPROCESSING, PREPROCESSING_ARGS: names of transforms and the keywords of each, see
          `daskdmed.compat.medsegpy.data.transforms`.
        - NUM_WORKERS: threads in which ``fit_generator`` makes batches.
        - PRIMARY_TASK: of metadata that differ by task; "inpainting" needs no masks.
        - LOSS: name and activation, see `daskdmed.compat.medsegpy.losses`.
        - CLASS_WEIGHTS: of the weighted losses, one per class.
        - INITIAL_LEARNING_RATE: of optimizers that are given by name.
        - MODEL_NAME: of the network, see `daskdmed.compat.medsegpy.modeling.get_model`.
        - INIT_WEIGHTS: file of weights that `get_model` loads.
        - TEST_METRICS: see `daskdmed.compat.medsegpy.evaluation.metrics`.

        Others are kept for the script to read, or for `DefaultTrainer`: ``cfg.TRAIN_DATASET``,
        ``cfg.N_EPOCHS``...

    Raises
    ------
    UsageError
        No such key; says which is written nearly so.
    """

    #: what keys of a kind of configuration are instead, beyond those above
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **values: Any) -> None:
        known = {**_ACTED_ON, **_KEPT, **_WITHOUT_EFFECT}
        for base in reversed(type(self).__mro__):
            known.update(vars(base).get("DEFAULTS", {}))
        self.__dict__.update(known)
        for key, value in values.items():
            setattr(self, key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        if key not in self.__dict__:
            raise UsageError(
                f"{type(self).__name__} has no key {key!r}{meant(key, self.__dict__)}; what is "
                "your own belongs into a variable of your own"
            )
        if key in _WITHOUT_EFFECT and value != self.__dict__[key]:
            logger.warning("%s.%s is kept, and nothing here acts on it", type(self).__name__, key)
        self.__dict__[key] = value

    def __getattr__(self, key: str) -> Any:
        # only asked for what is not there
        if key.startswith("__"):
            raise AttributeError(key)
        raise AttributeError(f"{type(self).__name__} has no key {key!r}{meant(key, self.__dict__)}")

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or `default` where there is no such key."""
        return self.__dict__.get(key, default)

    def set_attr(self, key: str, value: Any) -> None:
        """The same as setting the attribute."""
        setattr(self, key, value)

    def merge_from_list(self, pairs: Iterable[Any]) -> None:
        """Set keys from ``[key, value, key, value...]``.

        Raises
        ------
        UsageError
            An odd number of items, or no such key.
        """
        items = list(pairs)
        if len(items) % 2:
            raise UsageError(f"keys and values come in pairs, got {len(items)} items")
        for key, value in zip(items[::2], items[1::2], strict=True):
            setattr(self, str(key), value)

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values."""
        return dict(self.__dict__)

    def get_num_classes(self) -> int:
        """How many classes `CATEGORIES` and the background make; 0 where these are all masks of
        the files."""
        return len(self.CATEGORIES) + bool(self.INCLUDE_BACKGROUND) if len(self.CATEGORIES) else 0

    def summary(self) -> str:
        """A line for each key that is not as it was at first."""
        usual = type(self)().to_dict()
        changed = {k: v for k, v in self.__dict__.items() if v != usual[k]}
        return "\n".join(f"{k}: {v!r}" for k, v in changed.items())

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.summary().splitlines())})"

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import config_html

        return config_html(self, _WITHOUT_EFFECT)


class UNetConfig(Config):
    """Of a U-Net over planes.

    Parameters
    ----------
    **values
        As of `Config`, and DEPTH, the number of resolutions of the network, and NUM_FILTERS, one
        number for each or None for 32 doubled from one to the next.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "MODEL_NAME": "UNet2D",
        "DEPTH": 6,
        "NUM_FILTERS": None,
        "INITIAL_LEARNING_RATE": 2e-2,
        "TRAIN_BATCH_SIZE": 35,
        "DROP_FACTOR": 0.8 ** (1 / 5),
    }


class UNet2_5DConfig(UNetConfig):
    """Of a U-Net that sees a slice among its neighbours, as channels."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "IMG_SIZE": (288, 288, 7),
        "N_EPOCHS": 20,
        "INITIAL_LEARNING_RATE": 1e-2,
    }


class UNet3DConfig(UNetConfig):
    """Of a U-Net over volumes."""

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "MODEL_NAME": "UNet3D",
        "IMG_SIZE": (288, 288, 4, 1),
        "TAG": "PatchDataLoader",
        "N_EPOCHS": 20,
        "INITIAL_LEARNING_RATE": 1e-2,
    }


__all__ = ["Config", "UNet2_5DConfig", "UNet3DConfig", "UNetConfig"]
