"""Say what is loaded and what is cropped, with two plain functions.

A big-chunk loader chooses the region, or several, that a visit keeps in memory. A
small-chunk collector chooses each crop. Both get all their randomness from `rng`, which is
keyed by the seed, the visit and the draw: batches stay reproducible on any cluster, and
both can be called by hand, as at the end.

    python examples/custom_hooks.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed import Dataset, LightDL, Region, samples

OUTPUT = Path("output/custom_hooks")


def four_corners(
    read: Callable[[Region], np.ndarray[Any, Any]], context: Any, rng: np.random.Generator
) -> list[Region]:
    """Four regions of a quarter of the pixels each, anywhere in the image: better mixing.

    `read` gives pixels, to look before choosing; it is not needed here.
    """
    side = [min(s, b) // 2 for s, b in zip(context.shape, context.bigchunk_size, strict=True)]
    room = np.subtract(context.shape, side) + 1
    return [Region(tuple(map(int, rng.integers(room))), tuple(side)) for _ in range(4)]


def mostly_tissue(bigchunk: Any, context: Any, rng: np.random.Generator) -> tuple[int, ...]:
    """The most coloured of four places."""
    room = np.subtract(bigchunk.shape, context.smallchunk_size) + 1
    places = [tuple(map(int, p)) for p in rng.integers(room, size=(4, 2))]

    def colour(place: tuple[int, ...]) -> float:
        crop = bigchunk.data[place[0] :, place[1] :][: context.smallchunk_size[0] : 16, :224:16]
        return float(np.ptp(crop.mean(axis=(0, 1))))

    return max(places, key=colour)


def main() -> None:
    quick = bool(os.environ.get("DASKDMED_QUICK"))
    samples.make_cohort(OUTPUT / "slides", n=2, size=2048 if quick else 6144)
    dataset = Dataset.from_folder(OUTPUT / "slides", labels=OUTPUT / "slides/labels.csv")
    for name, collector in (("anywhere", None), ("mostly tissue", mostly_tissue)):
        with LightDL(
            dataset,
            bigchunk_size=2048,
            resident="100 MiB",
            bigchunk_loader=four_corners,
            smallchunk_collector=collector,
            epoch_length=10,
        ) as loader:
            x = np.concatenate([np.asarray(batch[0]) for batch in loader])
        tissue = (np.ptp(x[:, :, ::8, ::8], axis=1) > 20).mean()
        print(f"{name:14s} {len(x)} crops, {tissue:.0%} of their pixels are tissue")

    # without any loader or cluster: a hook is a function
    from daskdmed.loading.chunks import BigChunk
    from daskdmed.loading.collectors import CollectContext

    pixels = np.full((512, 512, 3), 240, np.uint8)
    pixels[200:, 200:] = (200, 100, 180)
    bigchunk = BigChunk(pixels, (0, 0), (512, 512), "p", "wsi", 0, (1.0, 1.0))
    context = CollectContext("p", "wsi", {}, (224, 224), visit=0, nth=0, draw=0)
    print("by hand: ", mostly_tissue(bigchunk, context, np.random.default_rng(1)))


if __name__ == "__main__":
    main()
