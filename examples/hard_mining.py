"""Draw more of what the model gets wrong: losses go back to the collector.

After every batch the loop tells the loader how large the loss was at each place
(`loader.feedback`). The collector keeps a coarse map of losses per patient in
`context.state`, which outlives the big chunks, and prefers places where the map is high.
The rare class fills more and more of the batches, nobody had to annotate where it is, and
the same run gives the same batches again.

    python examples/hard_mining.py
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from daskdmed import Dataset, LightDL, Patient, Record, SmallChunkCollector, samples

OUTPUT = Path("output/hard_mining")
#: side of a cell of the map of losses, in pixels
CELL = 128


class MineHardPlaces(SmallChunkCollector):
    """The place with the largest known loss among several; often just any place."""

    stateful = True

    def extract_smallchunk(
        self, bigchunk: Any, context: Any, rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Learn from the feedback, then choose."""
        losses: dict[str, float] = context.state.setdefault("losses", {})
        for places in context.feedback:
            for y, x, loss in places:
                cell = f"{y // CELL},{x // CELL}"
                losses[cell] = 0.5 * losses.get(cell, loss) + 0.5 * loss
        room = np.subtract(bigchunk.shape, context.smallchunk_size) + 1
        places = [tuple(map(int, p)) for p in rng.integers(room, size=(16, 2))]
        if rng.random() < 0.25:
            return places[0]
        return max(places, key=lambda place: self.expected(place, bigchunk, context, losses))

    @staticmethod
    def expected(
        place: tuple[int, ...], bigchunk: Any, context: Any, losses: dict[str, float]
    ) -> float:
        """Loss known at the centre of a crop, 0 where nothing is known."""
        centre = np.add(bigchunk.origin, place) + np.array(context.smallchunk_size) // 2
        return losses.get(f"{centre[0] // CELL},{centre[1] // CELL}", 0.0)


def train(slides: dict[str, Any], collector: Any, steps: int) -> list[float]:
    """Share of tumour in each batch, while a small model learns to find it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    patients = [Patient(name, {"wsi": Record(made.path)}) for name, made in slides.items()]
    shares = []
    with LightDL(
        Dataset("mining", patients),
        smallchunk_size=96,
        batch_size=64,
        bigchunk_size=1024,
        resident="40 MiB",
        smallchunk_collector=collector,
        epoch_length=steps,
        seed=1,
    ) as loader:
        for x, who, chunks in loader:
            pixels = x[:, :, ::4, ::4].flatten(2).float() / 255
            features = torch.cat([pixels.mean(2), pixels.std(2)], 1)
            truth = torch.tensor(
                [
                    slides[c.patient.id].label_at(c.location[0] + 48, c.location[1] + 48) == 2
                    for c in chunks
                ]
            ).float()
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                model(features)[:, 0], truth, reduction="none"
            )
            optimiser.zero_grad()
            losses.mean().backward()
            optimiser.step()
            shares.append(float(truth.mean()))
            if collector is not None:
                told = defaultdict(list)
                for patient, (y, x0), loss in zip(
                    who, (chunks.origins + 48).tolist(), losses.tolist(), strict=True
                ):
                    told[patient.id].append((y, x0, loss))
                for name, places in told.items():
                    loader.feedback(name, places)
    return shares


def main() -> None:
    steps = 60 if os.environ.get("DASKDMED_QUICK") else 200
    slides = {
        f"slide{i}": samples.make_slide(
            OUTPUT / f"slide{i}.tif", 2048, tissue=0.6, tumour=0.1, seed=i
        )
        for i in range(2)
    }
    uniform = np.mean(train(slides, None, steps))
    shares = train(slides, MineHardPlaces(), steps)
    begin, end = np.mean(shares[:5]), np.mean(shares[-steps // 3 :])
    print(f"tumour in batches drawn anywhere: {uniform:.1%}")
    print(f"with feedback: {begin:.1%} in the first batches, {end:.1%} in the last third")
    if end < 2 * uniform:
        raise SystemExit("mining found no more than chance does")


if __name__ == "__main__":
    main()
