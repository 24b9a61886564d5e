"""`DefaultTrainer`: from a configuration to the metrics of the best weights.

Not covered: learning rates that change, frozen layers, self-supervised training, and several
devices; a callback, or a torch loop over `daskdmed.LightDL`, has them all.
"""

from __future__ import annotations

import copy
import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.data.build import build_loader
from daskdmed.compat.medsegpy.evaluation.build import build_evaluator
from daskdmed.compat.medsegpy.evaluation.evaluator import inference_on_dataset
from daskdmed.compat.medsegpy.losses import METRICS, get_training_loss
from daskdmed.compat.medsegpy.modeling.build import get_model
from daskdmed.compat.medsegpy.modeling.model import History, Model
from daskdmed.core.errors import ImageNotFoundError, UsageError, listing, meant
from daskdmed.core.places import local

_WEIGHTS = re.compile(r"weights\.(\d+)-(-?\d+\.\d{4})\.pt")


class DefaultTrainer:
    """Trains the network of a configuration, and tests it.

    A subclass may override `build_model`, `_build_data_loaders`, `build_test_data_loader`,
    `build_loss` and `build_callbacks`.

    Parameters
    ----------
    cfg : Config
        TRAIN_DATASET, VAL_DATASET and TEST_DATASET name datasets of `DatasetCatalog`, read in
        batches of TRAIN_BATCH_SIZE, VALID_BATCH_SIZE and TEST_BATCH_SIZE; without VAL_DATASET the
        loss of training tells which weights are best, without TEST_DATASET nothing is tested.
        There are at most N_EPOCHS epochs: with USE_EARLY_STOPPING, training ends when
        EARLY_STOPPING_CRITERION has not become better by more than EARLY_STOPPING_MIN_DELTA for
        EARLY_STOPPING_PATIENCE epochs. OUTPUT_DIR is a folder, made where there is none, for
        ``weights.<epoch>-<loss>.pt`` whenever that loss is the least so far, and for
        ``metrics.log``, a table of CSV with a row for each epoch.
    run_eagerly, strategy : None
        TensorFlow's.

    Raises
    ------
    UsageError
        No OUTPUT_DIR or TRAIN_DATASET, or something of TensorFlow's.
    """

    def __init__(self, cfg: Config, run_eagerly: None = None, strategy: None = None) -> None:
        for name, given in (("run_eagerly", run_eagerly), ("strategy", strategy)):
            if given is not None:
                raise UsageError(f"{name}={given!r} is TensorFlow's; networks here are torch's")
        for key in ("OUTPUT_DIR", "TRAIN_DATASET"):
            if not cfg.get(key):
                raise UsageError(f"DefaultTrainer needs cfg.{key}, which is {cfg.get(key)!r}")
        self._cfg = cfg
        self._model: Model = self.build_model(cfg)
        self._train_loader, self._val_loader = self._build_data_loaders(cfg)
        #: of the training, once there was one
        self.history: History | None = None

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import trainer_html

        return trainer_html(self)

    @classmethod
    def build_model(cls, cfg: Config) -> Model:
        """The network, by default that of `get_model`."""
        return get_model(cfg)

    def _build_data_loaders(self, cfg: Config) -> tuple[Any, Any]:
        """Loaders of training and validation; the second one may be None."""
        training = build_loader(cfg, cfg.TRAIN_DATASET, cfg.TRAIN_BATCH_SIZE, False, True, True)
        if not cfg.VAL_DATASET:
            return training, None
        # every image counts
        return training, build_loader(
            cfg, cfg.VAL_DATASET, cfg.VALID_BATCH_SIZE, False, False, False
        )

    @classmethod
    def build_test_data_loader(cls, cfg: Config) -> Any:
        """The loader whose scans are predicted."""
        return build_loader(cfg, cfg.TEST_DATASET, cfg.TEST_BATCH_SIZE, True, False, False)

    def build_loss(self) -> Any:
        """What is minimised, by default ``cfg.LOSS``."""
        return get_training_loss(self._cfg.LOSS, self._cfg.CLASS_WEIGHTS)

    def build_callbacks(self) -> list[Any]:
        """What `Model.fit_generator` calls when an epoch is over."""
        cfg, folder = self._cfg, local(self._cfg.OUTPUT_DIR, "cfg.OUTPUT_DIR", UsageError)
        folder.mkdir(parents=True, exist_ok=True)
        there = next(folder.glob("weights.*.pt"), None)
        if there is not None:
            raise UsageError(
                f"{there} is of another training, whose weights would be tested with these: choose "
                "another cfg.OUTPUT_DIR, or empty that"
            )
        watched = "loss" if self._val_loader is None else "val_loss"
        found: list[Any] = [_Best(folder, watched), _Table(folder / "metrics.log")]
        if cfg.USE_EARLY_STOPPING:
            found.append(
                _Stop(
                    cfg.EARLY_STOPPING_CRITERION,
                    float(cfg.EARLY_STOPPING_MIN_DELTA),
                    int(cfg.EARLY_STOPPING_PATIENCE),
                )
            )
        return found

    def train(self) -> dict[str, Any]:
        """Train, and `test` where there is a TEST_DATASET.

        Returns
        -------
        dict
            What `test` gives, or empty.

        Raises
        ------
        UsageError
            OUTPUT_DIR holds weights of another training.
        """
        cfg, model = self._cfg, self._model
        callbacks = self.build_callbacks()
        model.compile(optimizer="adam", loss=self.build_loss(), metrics=["dice"])
        self.history = model.fit_generator(
            self._train_loader,
            epochs=int(cfg.N_EPOCHS),
            validation_data=self._val_loader,
            callbacks=callbacks,
        )
        for loader in (self._train_loader, self._val_loader):
            if hasattr(loader, "clear_cached_data"):
                loader.clear_cached_data()
        return self.test(cfg, model) if cfg.TEST_DATASET else {}

    @classmethod
    def test(cls, cfg: Config, model: Model) -> dict[str, Any]:
        """Predict and evaluate TEST_DATASET.

        Parameters
        ----------
        cfg : Config
            TEST_WEIGHT_PATH is the file of weights; without one they are the best of OUTPUT_DIR.
        model : Model
            Has these weights afterwards.

        Returns
        -------
        dict
            What `inference_on_dataset` gives.

        Raises
        ------
        ImageNotFoundError
            There are no weights.
        """
        cfg = copy.deepcopy(cfg)
        cfg.STATE = "testing"
        model.load_weights(cfg.TEST_WEIGHT_PATH or best_weights(cfg.OUTPUT_DIR))
        loader = cls.build_test_data_loader(cfg)
        return inference_on_dataset(model, loader, build_evaluator(cfg.TEST_DATASET, cfg))


def best_weights(folder: Any) -> Path:
    """Of the weights that `DefaultTrainer` wrote, those with the least loss.

    ImageNotFoundError: there are none.
    """
    place = local(folder, "the folder of weights", UsageError)
    found = []
    for path in place.glob("weights.*.pt"):
        named = _WEIGHTS.fullmatch(path.name)
        if named:
            # of equal ones, to the four digits of their names, the later are the better
            found.append((float(named[2]), -int(named[1]), path))
    if not found:
        raise ImageNotFoundError.of(
            str(place),
            "it has no weights.<epoch>-<loss>.pt; train, or set cfg.TEST_WEIGHT_PATH",
        )
    return min(found)[2]


class _Callback:
    model: Model

    def set_model(self, model: Model) -> None:
        self.model = model


class _Best(_Callback):
    """Writes weights whenever they are the best."""

    def __init__(self, folder: Path, watched: str) -> None:
        self._folder, self._watched, self._least = folder, watched, math.inf

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        value = logs[self._watched]
        if value < self._least:
            self._least = value
            self.model.save_weights(self._folder / f"weights.{epoch + 1:03d}-{value:.4f}.pt")


class _Table:
    """Writes a row for each epoch, at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: Sequence[str] = ()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        first = not self._names
        self._names = self._names or ["epoch", *logs]
        with self._path.open("w" if first else "a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, self._names)
            if first:
                table.writeheader()
            table.writerow({"epoch": epoch, **logs})


class _Stop(_Callback):
    """Ends the training when nothing becomes better any more."""

    def __init__(self, watched: str, least: float, patience: int) -> None:
        self._watched, self._least, self._patience = watched, abs(least), patience
        # of a metric more is better, of a loss less
        self._sign = -1 if watched.removeprefix("val_") in METRICS else 1
        self._best, self._waited = math.inf, 0

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        if self._watched not in logs:
            raise UsageError(
                f"cfg.EARLY_STOPPING_CRITERION={self._watched!r}{meant(self._watched, logs)}; an "
                f"epoch has {listing(list(logs))}"
            )
        value = self._sign * logs[self._watched]
        if value < self._best - self._least:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self._patience:
            self.model.stop_training = True
