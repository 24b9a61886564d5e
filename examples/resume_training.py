"""Stop anywhere, go on with exactly the next batch: on another day, on another machine.

And with other numbers: two processes stop, one goes on with larger batches, and no small chunk
is lost or comes twice.

python examples/resume_training.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from daskdmed import Dataset, LightDL, samples

OUTPUT = Path("output/resume_training")


def loader(dataset: Dataset, batch_size: int = 8, rank: int = 0, world_size: int = 1) -> LightDL:
    """Small chunks are a function of these arguments, but not of the numbers, and nothing else."""
    return LightDL(
        dataset,
        smallchunk_size=64,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
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
    go_on_with_other_numbers(dataset, torch.cat(expected))


def go_on_with_other_numbers(dataset: Dataset, expected: torch.Tensor) -> None:
    """Two ranks take three batches of 8 each, 48 small chunks; one goes on with batches of 14."""
    ranks = [loader(dataset, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:  # with torchrun, these are processes
        for _ in range(3):
            rank.get()
    state = ranks[1].state_dict()  # that of any rank
    for rank in ranks:
        rank.close()

    alone = loader(dataset, batch_size=14)
    alone.load_state_dict(state)
    with alone:
        rest = torch.cat([alone.get()[0] for _ in range(8)])

    same = torch.equal(rest, expected[48:])
    print(f"small chunks 48 to 159 come from one rank as they would have from two: {same}")
    if not same:
        raise SystemExit("the run with other numbers gave other small chunks")


if __name__ == "__main__":
    main()
