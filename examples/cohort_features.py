"""Features of a whole cohort: one Parquet table per slide, tissue only, a run that is cut off.

    python examples/cohort_features.py

The encoder stands for one of timm's or a foundation model's. Calling it again goes on where
the run before was cut off; ``run.csv`` says what became of every slide.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

import daskdmed
from daskdmed import Dataset, Patient, samples
from daskdmed.tables import features, read_windows

OUTPUT = Path("output/cohort_features").absolute()


class Encoder(torch.nn.Module):
    """(n, 3, h, w) -> (n, 16). `left` is how many batches its machine lasts."""

    def __init__(self, left: int = 10**9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 16, 3, stride=4), torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )  # fmt: skip
        # no attribute: what it computes does not depend on it, and neither does its fingerprint
        self._left = [left]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._left[0] -= 1
        if self._left[0] < 0:
            raise RuntimeError("the power went off")
        return self.body(x)


def main() -> None:
    size = 1024 if os.environ.get("DASKDMED_QUICK") else 6144
    samples.make_cohort(OUTPUT / "slides", n=3, size=size)
    slides = Dataset.from_folder(OUTPUT / "slides", "*.tif")
    # a cohort of days has one that cannot be read
    (OUTPUT / "slides" / "torn.svs").write_bytes(b"II*\0 and nothing more")
    torn = Patient("torn", {"wsi": daskdmed.Record(OUTPUT / "slides" / "torn.svs")})
    dataset = slides + Dataset("torn", [torn])

    options = {
        "kernel_size": 128, "mpp": 1.0, "mask": lambda p: daskdmed.tissue_mask(p.record()),
        "mask_fraction": 0.5, "out": OUTPUT / "features", "devices": ["cpu"], "batch_size": 16,
        "block_windows": 2, "on_error": "skip",
    }  # fmt: skip
    try:
        features(dataset, Encoder(left=4), **options)
    except daskdmed.DaskdmedError as error:
        print("stopped:", str(error).split(": ", 1)[1].split(" (")[0])
    tables = features(dataset, Encoder(), **options)
    for patient, path in tables.items():
        rows = read_windows(path)
        print(f"{patient}: {path.relative_to(OUTPUT)}, {rows.values.shape} {rows.values.dtype}")
    for failure in tables.failures:
        print("left out:", failure.patient)
    report = (OUTPUT / "features" / "run.csv").read_text().splitlines()
    print("\n".join(line[:60] for line in report))


if __name__ == "__main__":
    main()
