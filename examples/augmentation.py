"""Augment whole batches, reproducibly, images and targets together.

Each random number is a function of the small chunk (seed, visit, draw): the same crop is
augmented the same way in any batch, on any cluster, and after a resume. Parameters can be
drawn again and replayed, on the same images or on others of the same place.

    python examples/augmentation.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from daskdmed import Dataset, LightDL, Patient, Record, open_slide, samples
from daskdmed.transforms import (
    Compose,
    HEDJitter,
    MacenkoNormalizer,
    RandomFlip,
    RandomRotate90,
    ToFloat,
)

OUTPUT = Path("output/augmentation")


def cohort(size: int) -> Dataset:
    """Two made slides, each with a mask of its dark pixels as target."""
    samples.make_cohort(OUTPUT / "slides", n=2, size=size)
    patients = []
    for path in sorted((OUTPUT / "slides").glob("*.tif")):
        image = open_slide(path).to_dask(chunks=1024)
        dark = (image.mean(axis=-1) < 200).astype(np.uint8)
        patients.append(Patient(path.stem, {"wsi": Record(path), "dark": Record(array=dark)}))
    return Dataset("made", patients)


def main() -> None:
    size = 2048 if os.environ.get("DASKDMED_QUICK") else 8192
    dataset = cohort(size)

    # where there is a GPU, big chunks and batches lie on it, and batch_tfms run there
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # everything on uint8 until the end
    augment = Compose([RandomFlip(), RandomRotate90(), HEDJitter(0.1, 0.05), ToFloat()], seed=7)

    def loader(batch_size: int) -> LightDL:
        return LightDL(
            dataset,
            record="wsi",
            target="dark",
            batch_size=batch_size,
            bigchunk_size=1024,
            resident="100 MiB",
            smallchunks_per_bigchunk=64,
            batch_tfms=augment,
            device=device,
        )

    with loader(64) as loading:
        x, _, smallchunks = next(loading)
        print("batch", tuple(x.shape), x.dtype, "targets", tuple(smallchunks.targets.shape))
        print("big chunks on", loading.stats().resident_on, "batches on", x.device)

        # targets moved with their images: dark pixels are still the dark ones
        dark = smallchunks.targets.bool()
        grey = x.mean(1)
        print(f"mean inside the targets {grey[dark].mean():.2f}, outside {grey[~dark].mean():.2f}")

        # the parameters are a function of the small chunks, and can be replayed
        params = augment.draw(smallchunks)
        raw = torch.from_numpy(smallchunks.data).movedim(-1, 1).to(device)
        print("replayed: identical", torch.equal(augment.replay(params, raw), x))
        print("quarter turns of the first five", params["1.quarters"][:5].tolist())

    # the same small chunks in batches of another size
    with loader(16) as loading:
        quarter, _, _ = next(loading)
    print("whatever the batch: identical", torch.equal(quarter, x[:16]))

    # stains of every patient brought to those of the first, by one look at each slide
    normalise = MacenkoNormalizer(per="patient")
    slides = [open_slide(patient.records["wsi"].uri) for patient in dataset]
    thumbnails = [np.asarray(slide.get_thumbnail((512, 512))) for slide in slides]
    normalise.fit(thumbnails[0])
    for patient, thumbnail in zip(dataset, thumbnails, strict=True):
        normalise.fit_patient(patient, thumbnail)
    y = normalise(raw, smallchunks)[0]
    print("normalised", tuple(y.shape), y.dtype)


if __name__ == "__main__":
    main()
