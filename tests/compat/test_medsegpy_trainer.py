"""MedSegPy's trainer: from a configuration to the metrics of the best weights."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from daskdmed.compat.medsegpy.data import build_loader
from daskdmed.compat.medsegpy.engine import DefaultTrainer
from daskdmed.compat.medsegpy.engine.trainer import best_weights
from daskdmed.compat.medsegpy.modeling import get_model
from daskdmed.errors import ImageNotFoundError, UsageError
from tests.compat.made import config


@pytest.fixture(autouse=True)
def one_thread():
    """Networks as small as these take longer with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(folder, **changed):
    """Small and quick ones."""
    usual = {
        "OUTPUT_DIR": str(folder / "run"),
        "TRAIN_DATASET": "slices",
        "VAL_DATASET": "slices",
        "TRAIN_BATCH_SIZE": 7,
        "N_EPOCHS": 3,
        "INITIAL_LEARNING_RATE": 3e-2,
        "TEST_METRICS": ("DSC",),
    }
    return config(**{**usual, **changed})


def table(cfg):
    with open(f"{cfg.OUTPUT_DIR}/metrics.log", newline="") as file:
        return list(csv.DictReader(file))


def test_it_trains_and_tests_the_best_weights(registered, tmp_path):
    cfg = settings(tmp_path, TEST_DATASET="slices")
    torch.manual_seed(0)
    trainer = DefaultTrainer(cfg)
    found = trainer.train()
    rows, history = table(cfg), trainer.history.history
    assert [float(row["val_loss"]) for row in rows] == pytest.approx(history["val_loss"])
    assert rows[0].keys() == {"epoch", "loss", "dice", "val_loss", "val_dice"}
    least = int(np.argmin(history["val_loss"]))
    best = best_weights(cfg.OUTPUT_DIR)
    assert best.name == f"weights.{least + 1:03d}-{min(history['val_loss']):.4f}.pt"
    # what was tested: these weights, on these scans
    model = get_model(cfg)
    model.load_weights(best)
    assert DefaultTrainer.test(cfg, model) == found
    assert found["SemSegEvaluator"]
    with pytest.raises(UsageError, match="of another training"):
        trainer.train()


def test_a_file_of_weights_may_be_named(registered, tmp_path):
    cfg = settings(tmp_path, TEST_DATASET="slices")
    with pytest.raises(ImageNotFoundError, match="it has no weights"):
        DefaultTrainer.test(cfg, get_model(cfg))
    one, two = (get_model(cfg, device="cpu") for _ in range(2))
    one.save_weights(tmp_path / "mine.pt")
    cfg.TEST_WEIGHT_PATH = str(tmp_path / "mine.pt")
    DefaultTrainer.test(cfg, two)
    for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loaders_of_ones_own(registered, tmp_path):
    """What MedSegPy's tutorial says of a loader of one's own."""

    class Own(DefaultTrainer):
        def _build_data_loaders(self, cfg):
            return build_loader(cfg, "slices", 3, False, True, True), None

        @classmethod
        def build_test_data_loader(cls, cfg):
            tested.append(cfg.STATE)
            return build_loader(cfg, "slices", 4, True, False, False)

    tested = []
    cfg = settings(tmp_path, TEST_DATASET="slices", VAL_DATASET="", N_EPOCHS=1)
    trainer = Own(cfg)
    assert trainer.train()
    assert (len(trainer._train_loader), tested, cfg.STATE) == (7, ["testing"], "training")
    (row,) = table(cfg)
    assert row.keys() == {"epoch", "loss", "dice"}
    assert f"{float(row['loss']):.4f}.pt" in best_weights(cfg.OUTPUT_DIR).name


@pytest.mark.parametrize(("criterion", "epochs"), [("val_loss", 1 + 2), ("dice", 1 + 2)])
def test_it_stops_early(registered, tmp_path, criterion, epochs):
    stopping = {"EARLY_STOPPING_CRITERION": criterion, "EARLY_STOPPING_PATIENCE": 2}
    # nothing becomes better by so much
    cfg = settings(
        tmp_path,
        USE_EARLY_STOPPING=True,
        EARLY_STOPPING_MIN_DELTA=1e6,
        N_EPOCHS=6,
        **stopping,
    )
    trainer = DefaultTrainer(cfg)
    assert trainer.train() == {}
    assert trainer.history.epoch == list(range(epochs))


def test_it_stops_when_the_dice_no_longer_grows(tmp_path):
    trainer = DefaultTrainer.__new__(DefaultTrainer)
    trainer._cfg = settings(
        tmp_path,
        USE_EARLY_STOPPING=True,
        EARLY_STOPPING_CRITERION="val_dice",
        EARLY_STOPPING_PATIENCE=2,
    )
    trainer._val_loader = None
    stop = trainer.build_callbacks()[-1]
    stop.set_model(type("Model", (), {"stop_training": False})())
    seen = []
    for value in (0.1, 0.3, 0.2, 0.4, 0.4, 0.1):
        stop.on_epoch_end(0, {"val_dice": value})
        seen.append(stop.model.stop_training)
    assert seen == [False] * 5 + [True]


def test_what_cannot_be_is_said_at_once(registered, tmp_path):
    for wrong, told in (
        ({"OUTPUT_DIR": ""}, "needs cfg.OUTPUT_DIR"),
        ({"TRAIN_DATASET": ""}, "needs cfg.TRAIN_DATASET"),
    ):
        with pytest.raises(UsageError, match=told):
            DefaultTrainer(settings(tmp_path, **wrong))
    with pytest.raises(UsageError, match="TensorFlow's"):
        DefaultTrainer(settings(tmp_path), run_eagerly=True)
    cfg = settings(tmp_path, USE_EARLY_STOPPING=True, EARLY_STOPPING_CRITERION="val_los")
    with pytest.raises(UsageError, match="is 'val_loss' meant.*an epoch has 'loss', 'dice'"):
        DefaultTrainer(cfg).train()
