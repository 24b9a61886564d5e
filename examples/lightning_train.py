"""Lightning: fit, validate, predict, go on in the middle of an epoch, several processes.

The loaders go into the Trainer as they are. Their states go into its checkpoints, and each
process finds its own share of the batches.

    pip install lightning
    python examples/lightning_train.py
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from daskdmed import Dataset, LightDL, SlidingWindowDL, samples
from daskdmed.transforms import Compose, RandomFlip, ToFloat

OUTPUT = Path("output/lightning_train")
STEPS = 6
# Lightning says much of cores, devices and what could be faster
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def loader(dataset: Dataset, **options: Any) -> LightDL:
    """Small chunks at random; without `epoch_length` Lightning takes them for an endless stream."""
    return LightDL(
        dataset,
        smallchunk_size=64,
        batch_size=8,
        bigchunk_size=512,
        smallchunks_per_bigchunk=16,
        resident="50 MiB",
        epoch_length=STEPS,
        **options,
    )


class Classifier(lightning.LightningModule):
    """A linear model of mean colours, and what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.augment = Compose([RandomFlip(), ToFloat()])
        self.model = torch.nn.Linear(3, 2)
        self.seen: list[str] = []
        self.validated: list[str] = []

    def loss(self, batch: Any) -> torch.Tensor:
        x, patients, smallchunks = batch  # x is on the device, the other two as they were
        classes = [p.labels["label"] == "tumour" for p in patients]
        labels = torch.tensor(classes, dtype=torch.long, device=x.device)
        logits = self.model(self.augment(x, smallchunks).mean((2, 3)))
        return torch.nn.functional.cross_entropy(logits, labels)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.seen += [f"{c.patient.id} {c.location}" for c in batch[2]]
        return self.loss(batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.validated += [f"{c.patient.id} {c.location}" for c in batch[2]]
        # say how large the batch is: Lightning would look for it in everything that is in it
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))

    def predict_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.model(batch[0].float().mean((2, 3)) / 255)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options: Any) -> lightning.Trainer:
    quiet = ("logger", "enable_progress_bar", "enable_model_summary")
    options = {**dict.fromkeys(quiet, False), **options}
    return lightning.Trainer(accelerator="cpu", default_root_dir=OUTPUT, **options)


def alone(dataset: Dataset) -> None:
    """One process: training, validation, prediction, and going on."""
    # in the middle of the second epoch
    saving = ModelCheckpoint(OUTPUT, "middle", every_n_train_steps=STEPS + 2, save_top_k=-1)
    module = Classifier()
    with loader(dataset) as training, loader(dataset, seed=1, restart=True) as validation:
        trainer(max_epochs=2, callbacks=[saving]).fit(module, training, validation)
    first, second = module.validated[-2 * STEPS * 8 : -STEPS * 8], module.validated[-STEPS * 8 :]
    print(f"validated twice on the same {len(second)} small chunks: {first == second}")

    with SlidingWindowDL(dataset, kernel_size=256) as windows:
        predictions = trainer().predict(module, windows)
    assert predictions is not None
    print(f"predicted {sum(map(len, predictions))} of {windows.windows} windows")

    again = Classifier()
    with loader(dataset) as training:
        trainer(max_epochs=2, enable_checkpointing=False).fit(
            again, training, ckpt_path=OUTPUT / "middle.ckpt"
        )
    same = again.seen == module.seen[(STEPS + 2) * 8 :]
    print(f"went on with the other {len(again.seen) // 8} batches: {same}")


def together(dataset: Dataset) -> None:
    """Two processes, each with its own batches of one plan."""
    run = trainer(max_epochs=1, devices=2, strategy="ddp", enable_checkpointing=False)
    module = Classifier()
    with torch.random.fork_rng(), loader(dataset) as training:
        run.fit(module, training)
    everything: list[Any] = [None, None]
    torch.distributed.all_gather_object(everything, module.seen)
    if run.is_global_zero:
        first, second = map(set, everything)
        print(f"2 processes: {[len(s) for s in everything]}, {len(first & second)} in common")


if __name__ == "__main__":
    if "LOCAL_RANK" not in os.environ:  # Lightning starts this script again for the second process
        samples.make_cohort(OUTPUT / "slides", n=2, size=1024)
        alone(Dataset.from_folder(OUTPUT / "slides", labels=OUTPUT / "slides/labels.csv"))
    together(Dataset.from_folder(OUTPUT / "slides", labels=OUTPUT / "slides/labels.csv"))
