"""Stop anywhere, go on with exactly the next batch: on another day, on another machine.

python examples/resume_training.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from daskdmed import Dataset, LightDL, samples

OUTPUT = Path("output/resume_training")


def loader(dataset: Dataset) -> LightDL:
    """Batches are a function of these arguments and of nothing else."""
    return LightDL(
        dataset,
        smallchunk_size=64,
        batch_size=8,
        bigchunk_size=512,
        smallchunks_per_bigchunk=32,
        resident="50 MiB",
        seed=7,
    )


def main() -> None:
    samples.make_cohort(OUTPUT / "slides", n=2, size=2048)
    dataset = Dataset.from_folder(OUTPUT / "slides", labels=OUTPUT / "slides/labels.csv")

    with loader(dataset) as uninterrupted:
        expected = [x.clone() for _, (x, _, _) in zip(range(20), uninterrupted, strict=False)]

    with loader(dataset) as first:
        for _ in range(12):
            first.get()
        (OUTPUT / "state.json").write_text(json.dumps(first.state_dict()))

    second = loader(dataset)
    second.load_state_dict(json.loads((OUTPUT / "state.json").read_text()))
    with second:
        rest = [second.get()[0].clone() for _ in range(8)]

    same = all(torch.equal(a, b) for a, b in zip(expected[12:], rest, strict=True))
    print(f"batches 12 to 19 of the interrupted run are bit-identical: {same}")
    if not same:
        raise SystemExit("the resumed run gave other batches")


if __name__ == "__main__":
    main()
