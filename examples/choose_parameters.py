"""How large, how many, how often: measure the trade-off on your own slides.

python examples/choose_parameters.py [FOLDER WITH SLIDES]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import daskdmed
from daskdmed import Dataset, LightDL, samples

OUTPUT = Path("output/choose_parameters")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT / "slides"
    if len(sys.argv) == 1:
        samples.make_cohort(folder, n=3, size=2048 if QUICK else 8192)
    dataset = Dataset.from_folder(folder)

    sizes = (512, 1024) if QUICK else (1024, 2048, 4096)
    advice = daskdmed.advise(dataset, resident="500 MiB", bigchunk_sizes=sizes)
    print(advice)

    # the most varied choice that keeps a model busy that takes 1000 patches a second
    choice = advice.best(1_000)
    print(f"\nfor 1,000 patches/s: {choice}")
    with LightDL(
        dataset,
        bigchunk_size=choice.bigchunk_size,
        smallchunks_per_bigchunk=choice.smallchunks_per_bigchunk,
        resident="500 MiB",
        tissue=True,
        epoch_length=20 if QUICK else 200,
    ) as loader:
        for _ in loader:
            pass
        print(loader.stats())
        figure = loader.plot_coverage(dataset[0])
    figure.savefig(OUTPUT / "coverage.png")
    print(f"where they came from -> {OUTPUT / 'coverage.png'}")


if __name__ == "__main__":
    main()
