"""Whole scans of a dataset against their truth: prediction, Dice, volume, scan by scan.

python examples/infer_scans.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from daskdmed import Dataset, Patient, Record, infer
from daskdmed.inference.metrics import auc, confusion, volume

OUTPUT = Path("output/infer_scans")


def make_scan(seed: int) -> Patient:
    """A volume (z, y, x) of noise around a bright ball, and the ball."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:40, :96, :96]
    ball = (2 * (z - 20)) ** 2 + (y - 48) ** 2 + (x - 44) ** 2 < (20 + 4 * seed) ** 2
    image = (ball + rng.normal(0, 0.4, ball.shape)).astype(np.float32)
    records = {
        "scan": Record(array=image, spacing=(2.0, 1.0, 1.0)),  # millimeters, (z, y, x)
        "ball": Record(array=ball.astype(np.uint8), spatial_ndim=3),
    }
    return Patient(f"patient-{seed}", records)


def smoothed(windows: np.ndarray) -> np.ndarray:
    """A model that sees each window as an array: a blur, cut into [0, 1]."""
    value = windows
    for axis in (1, 2, 3):
        value = sum(np.roll(value, i, axis) for i in (-2, -1, 0, 1, 2)) / 5
    return np.clip(value, 0, 1)


def main() -> None:
    dataset = Dataset("balls", [make_scan(seed) for seed in range(3)])
    scans = infer(
        dataset,
        smoothed,
        kernel_size=(24, 48, 48),
        overlap=0.5,
        target="ball",
        out=OUTPUT,
        overwrite=True,
        on_error="skip",
    )
    pooled = None
    for inputs, outputs in scans:
        score, truth = outputs["y_pred"], outputs["y_true"]
        assert truth is not None
        labels = (score > 0.5).astype(np.uint8)
        found = confusion(truth, labels, classes=2)
        pooled = found if pooled is None else pooled + found
        size = volume(labels, outputs["spacing"], classes=2)[1]
        print(
            f"{inputs['scan_id']}: Dice {found.dice[1]:.3f}, IoU {found.iou[1]:.3f}, "
            f"AUC {auc(truth, score):.4f}, volume {size:,.0f} cubic {inputs['unit']}s, "
            f"{outputs['time_elapsed']:.2f} s"
        )
    assert pooled is not None
    print(f"pooled Dice {pooled.dice[1]:.3f} of {len(scans)} scans, {len(scans.failures)} skipped")


if __name__ == "__main__":
    main()
