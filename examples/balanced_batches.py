"""Who is in a batch: labels of patients, classes of annotations, targets, policies.

python examples/balanced_batches.py
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from daskdmed import Categories, Dataset, LightDL, Patient, Quota, Record, samples
from daskdmed.explorers import LowDiscrepancyExplorer
from daskdmed.policies import LabelBalanced, Weighted

OUTPUT = Path("output/balanced_batches")
SETTINGS = {
    "smallchunk_size": 128,
    "batch_size": 32,
    "bigchunk_size": 1024,
    "smallchunks_per_bigchunk": 64,
    "resident": "100 MiB",
    "tissue": True,
    "epoch_length": 20,
}


def square(label: str, x: int, y: int, side: int) -> dict[str, object]:
    """One annotation as QuPath writes it, level-0 pixels."""
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": {"name": label}},
    }


def make_dataset() -> Dataset:
    """Eight slides; one is of grade 3, and only that one has 'Tumor' in a small place."""
    patients = []
    for i, slide in enumerate(samples.make_cohort(OUTPUT / "slides", n=8, size=2048)):
        shapes = [square("Stroma", 600, 600, 500)]
        if i == 5:
            shapes.append(square("Tumor", 1200, 900, 150))
        outlines = OUTPUT / f"slide_{i}.geojson"
        outlines.write_text(json.dumps({"type": "FeatureCollection", "features": shapes}))
        records = {"wsi": Record(slide.path), "outlines": Record(outlines)}
        patients.append(Patient(f"slide_{i}", records, {"grade": 3 if i == 5 else i % 2}))
    return Dataset("balanced", patients)


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    dataset = make_dataset()

    # a policy decides whose big chunk comes next: right in the mean
    for policy in (None, LabelBalanced("grade"), Weighted({"slide_1": 1.0, "slide_5": 3.0})):
        with LightDL(dataset, **SETTINGS, policy=policy) as loader:
            grades = Counter(p.labels["grade"] for _, who, _ in loader for p in who)
        name = type(policy).__name__ if policy else "least visited first"
        print(f"{name:20} small chunks by grade: {dict(sorted(grades.items()))}")

    # quotas decide about every single batch: 4 centred in tumour, which one slide of eight
    # has, half from patients of grade 0, the rest from anybody
    quotas = [Quota(4, labels="Tumor"), Quota(0.5, patients={"grade": 0})]
    classes = Categories({"stroma": "Stroma", "tumour": "Tumor"})
    shares = []
    with LightDL(
        dataset, **SETTINGS, quotas=quotas, target="outlines", target_classes=classes
    ) as loader:
        for _, _, chunks in loader:
            # a target of annotations is painted at the places of the small chunks
            middle = chunks.targets[:, 60:68, 60:68].reshape(len(chunks), -1)
            shares.append(int(np.count_nonzero((middle == 2).any(axis=1))))
        print(loader.stats())
    print(f"small chunks centred in tumour, the fewest in a batch: {min(shares)}")

    # several smaller regions per visit mix better for the same reading
    explorer = LowDiscrepancyExplorer(256, regions=16)
    with LightDL(dataset, **SETTINGS, bigchunk_loader=explorer) as loader:
        next(loader)
        regions = {c.bigchunk.origin for _, _, chunks in loader for c in chunks}
    print(f"explorer: small chunks from {len(regions)} regions of 256 x 256")


if __name__ == "__main__":
    main()
