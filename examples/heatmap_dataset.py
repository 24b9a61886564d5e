"""Heatmaps of a whole dataset: one store per patient, tissue only, and a run that is cut off.

python examples/heatmap_dataset.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

import daskdmed
from daskdmed import Dataset, samples

OUTPUT = Path("output/heatmap_dataset")


class Network(torch.nn.Module):
    """Stands for a trained classifier: two values per window."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, stride=4)
        )
        self.head = torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3))).softmax(1)


class CutOff:
    """A model whose machine fails after some calls. What it computes is the network's."""

    def __init__(self, network: torch.nn.Module, after: int) -> None:
        self.network, self.left = network, after

    def __dask_tokenize__(self) -> tuple[str, torch.nn.Module]:
        return "network", self.network

    def __call__(self, windows: np.ndarray) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the power went off")
        with torch.inference_mode():
            scaled = torch.from_numpy(windows.copy()).permute(0, 3, 1, 2).float() / 255
            return self.network(scaled)


def tissue(patient: daskdmed.Patient) -> daskdmed.TissueMask:
    """Made when the patient's turn comes."""
    return daskdmed.tissue_mask(patient.record())


def main() -> None:
    size = 1536 if os.environ.get("DASKDMED_QUICK") else 6144
    samples.make_cohort(OUTPUT / "slides", n=3, size=size)
    dataset = Dataset.from_folder(OUTPUT / "slides", labels=OUTPUT / "slides" / "labels.csv")
    network = Network().eval()

    # a module, at 1 um/px, on tissue only; several slides are in flight at once
    maps = daskdmed.heatmap(
        dataset, network, kernel_size=128, stride=64, mpp=1.0, mask=tissue, mask_fraction=0.5,
        out=OUTPUT / "maps", overwrite=True, channels_last=True,
    )  # fmt: skip
    for patient, values in maps.items():
        scores = values[1].compute()
        inside = np.isfinite(scores)
        mean = scores[inside].mean()
        print(f"{patient}: {values.shape}, {inside.mean():.0%} tissue, mean {mean:.3f}")

    # the same network as a file, as another machine would load it
    program = torch.export.export(network, (torch.zeros(8, 3, 128, 128),))
    torch.export.save(program, OUTPUT / "network.pt2")
    again = daskdmed.heatmap(
        dataset[0], OUTPUT / "network.pt2", kernel_size=128, stride=64, mpp=1.0,
        mask=tissue(dataset[0]), mask_fraction=0.5,
    )  # fmt: skip
    first = maps[dataset[0].key].compute()
    same = np.allclose(again.compute(), first, atol=1e-5, equal_nan=True)
    print("from the file, equal:", same)

    # a run that fails keeps what is done, and goes on
    model = CutOff(network, after=10 if size < 2000 else 100)
    folder, common = OUTPUT / "cut off", {"kernel_size": 224, "block_windows": 4}
    try:
        daskdmed.heatmap(dataset, model, out=folder, **common)
    except daskdmed.DaskdmedError as error:
        print("stopped:", str(error).split(": ", 1)[1].split(" (")[0])
    model.left = 10**9
    daskdmed.heatmap(dataset, model, out=folder, resume=True, **common)
    stores = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*.zarr"))
    print("resumed, stores:", stores)


if __name__ == "__main__":
    main()
