"""A feature vector for every window of every slide, one Parquet table per patient.

    python examples/features_to_parquet.py

Windows are read ahead, features computed here, rows written by a thread of their own; a
table has its final name when it is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from daskdmed import Dataset, SlidingWindowDL, samples
from daskdmed.tables import ProcessedPiece, StreamCollector, StreamWriter, read_windows, run_stream

OUTPUT = Path("output/features_to_parquet")
torch.manual_seed(0)
ENCODER = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(),
).eval()  # fmt: skip


class Features(StreamCollector):
    """The seed's shape: what is done with each batch is a method."""

    @torch.inference_mode()
    def process_pieceofstream(self, batch: Any) -> list[ProcessedPiece]:
        """One vector per window."""
        x, _, windows = batch
        return ProcessedPiece.of_batch(windows, ENCODER(x.float() / 255))


def brightest(previous: Any, piece: ProcessedPiece, patient: str) -> Any:
    """Folding keeps one value per patient in memory, whatever the number of windows."""
    found = (float(piece.data), piece.source_smallchunk.location)
    return found if previous is None else max(previous, found)


def main() -> None:
    samples.make_cohort(OUTPUT / "slides", n=2, size=1536)
    dataset = Dataset.from_folder(OUTPUT / "slides", "*.tif")
    with SlidingWindowDL(dataset, kernel_size=128, level=0, batch_size=64) as loader:
        writer = StreamWriter(OUTPUT / "features", overwrite=True)
        tables = Features(loader, writer=writer).start_collecting()
        print({patient: path.name for patient, path in tables.items()})

        fold = run_stream(loader, lambda b: b[0].float().mean((1, 2, 3)), fold=brightest)
        print("brightest windows", fold)

    table = read_windows(OUTPUT / "features")
    print(len(table), "rows of", table.values.shape[1], table.values.dtype, "features")
    print(table.to_pandas().iloc[:3, [0, 2, 3, 4, 5, -2, -1]])
    # rows know their place in the grid, so that a map with holes where nothing was computed
    image = table.image(str(dataset[0].id))
    rows = table.select(image.patient)
    heat = np.full(image.grid.counts, np.nan)
    heat[tuple(rows.indices.T)] = rows.values.max(axis=1)
    print("map", heat.shape, "mean", round(float(np.nanmean(heat)), 4))


if __name__ == "__main__":
    main()
