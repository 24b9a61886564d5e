"""A script as people write them for MedSegPy: catalogues, loaders, training, inference, metrics.

Slices of made knees lie in HDF5 files as those of the Osteoarthritis Initiative. A 2-D network
learns from batches of slices, whole scans are predicted, and evaluated class by class. The import
lines are MedSegPy's: `install` has daskdmed's modules found under that name. To do without it,
write ``from daskdmed.compat.medsegpy...``; what new code writes is in docs/from-medsegpy.md.

    python examples/from_medsegpy.py
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import torch

import daskdmed.compat.medsegpy

daskdmed.compat.medsegpy.install()

from medsegpy.config import UNetConfig  # noqa: E402
from medsegpy.data import MetadataCatalog, build_loader, register_oai  # noqa: E402
from medsegpy.evaluation import build_evaluator, inference_on_dataset  # noqa: E402
from medsegpy.modeling import get_model  # noqa: E402

OUTPUT = Path("output/from_medsegpy")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
SIZE, SLICES, EPOCHS = (32, 12, 8) if QUICK else (64, 24, 8)
SPLITS = {"oai_train": range(3), "oai_val": range(3, 4), "oai_test": range(4, 6)}


def write(path: Path, values: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = values


def make_scan(folder: Path, number: int) -> None:
    """A bright shell, the cartilage, around a grey bone: ``<scan>_<slice>.im`` and its masks,
    ``.seg``, rows x columns x 1 x masks."""
    rng = np.random.default_rng(number)
    rows, columns = np.ogrid[:SIZE, :SIZE]
    middle = SIZE * rng.uniform(0.4, 0.6, 2)
    for z in range(SLICES):
        height = (z - SLICES / 2) * SIZE / SLICES
        distance = np.sqrt((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 + height**2)
        bone = distance < SIZE * 0.28
        shell = (distance < SIZE * 0.4) & ~bone
        inner = shell & (columns < middle[1])
        image = 100 * shell + 40 * bone + rng.normal(0, 15, shell.shape)
        masks = np.stack([bone, inner, shell & ~inner], -1)
        name = f"{9000000 + number:07d}_V00-Aug00_{z + 1:03d}"
        write(folder / f"{name}.im", image.astype(np.float32)[:, :, None])
        write(folder / f"{name}.seg", masks.astype(np.uint8)[:, :, None])


def register() -> None:
    """Make the scans, and say where they are and what their masks are."""
    for name, numbers in SPLITS.items():
        folder = OUTPUT / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            make_scan(folder, number)
        register_oai(name, folder, spacing=(1, 1, 3), categories=("bone", "medial", "lateral"))


def main() -> None:
    register()
    cfg = UNetConfig(
        TAG="DefaultDataLoader",
        IMG_SIZE=(SIZE, SIZE, 1),
        CATEGORIES=(0, (1, 2)),  # the bone, and both sides of the cartilage as one class
        PREPROCESSING=["ZeroMeanNormalization"],
        DEPTH=3,
        NUM_FILTERS=[8, 16, 32],
        INITIAL_LEARNING_RATE=1e-2,
        SEED=0,
        TEST_METRICS=["DSC", "VOE", "ASSD", "Precision", "Recall"],
    )
    how = {"batch_size": 6, "is_test": False, "shuffle": True}
    train_loader = build_loader(cfg, "oai_train", drop_last=True, **how)
    val_loader = build_loader(cfg, "oai_val", drop_last=False, **how)
    test_loader = build_loader(cfg, "oai_test", drop_last=False, **how)
    print(f"{train_loader.num_scans()} scans, {len(train_loader)} batches an epoch of",
          [a.shape for a in train_loader[0]])  # fmt: skip

    torch.manual_seed(0)
    model = get_model(cfg)
    model.compile(optimizer="adam", metrics=["dice"])
    history = model.fit_generator(train_loader, validation_data=val_loader, epochs=EPOCHS)
    for epoch in history.epoch:
        values = (f"{name} {each[epoch]:.3f}" for name, each in history.history.items())
        print(f"epoch {epoch}:", ", ".join(values))

    for inputs, outputs in test_loader.inference(model):
        volume = (outputs["y_pred"][..., 1] > 0.5).sum().compute() * 3 / 1000
        print(f"{inputs['scan_id']}: {inputs['x'].shape}, cartilage {volume:.1f} ml, "
              f"{outputs['time_elapsed']:.2f} s")  # fmt: skip

    evaluator = build_evaluator("oai_test", cfg, output_folder=OUTPUT / "results")
    found = inference_on_dataset(model, test_loader, evaluator)["SemSegEvaluator"]
    classes = list(next(iter(found.values())))
    print(f"{'':10}", *(f"{name:>14}" for name in classes))
    for metric, each in found.items():
        print(f"{metric:10}", *(f"{each[name]:14.3f}" for name in classes))
    print("in", MetadataCatalog.get("oai_test").scan_root)


if __name__ == "__main__":
    main()
