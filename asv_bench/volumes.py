"""Random 64^3 patches with labels from compressed NIfTI scans: the work, its limits, and peers.

Each peer is used as its documentation shows: TorchIO's Queue with a UniformSampler, MONAI's
CacheDataset with RandSpatialCropSamplesd, each with two worker processes. All give batches of
image and label; a scan here is a pair of files, ``scan_000.nii.gz`` and ``label_000.nii.gz``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import scenarios
from peers import PEERS, Peer, Steps

PATCH, BATCH, DRAWS, WORKERS = 64, 8, 128, 2


def label_of(scan: Path) -> Path:
    """The file of the label of a scan."""
    return scan.with_name(scan.name.replace("scan", "label"))


def loader(scans: list[Path], **options: Any) -> Any:
    """`LightDL` over scans and labels; a big chunk is a whole scan."""
    import daskdmed

    records = [
        {"scan": daskdmed.Record(scan), "label": daskdmed.Record(label_of(scan))} for scan in scans
    ]
    patients = [daskdmed.Patient(str(i), r) for i, r in enumerate(records)]
    return daskdmed.LightDL(
        daskdmed.Dataset("scans", patients),
        record="scan",
        target="label",
        smallchunk_size=(PATCH,) * 3,
        batch_size=BATCH,
        bigchunk_size=inputs.SCAN,
        smallchunks_per_bigchunk=DRAWS,
        seed=0,
        **options,
    )


def daskdmed_patches(scans: list[Path]) -> Steps:
    with loader(scans) as batches:
        done = 0
        for x, *_ in batches:
            done += x.shape[0]
            if batches.stats().visits_evicted >= 2:
                break
        yield done
        for x, *_ in batches:
            yield x.shape[0]


def torchio_patches(scans: list[Path]) -> Steps:
    import torchio

    subjects = [
        torchio.Subject(image=torchio.ScalarImage(s), label=torchio.LabelMap(label_of(s)))
        for s in scans
    ]
    while True:
        queue = torchio.Queue(
            torchio.SubjectsDataset(subjects * 8),
            max_length=64,
            samples_per_volume=16,
            sampler=torchio.UniformSampler(PATCH),
            num_workers=WORKERS,
        )
        for batch in torchio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0):
            yield len(batch["image"]["data"])


def monai_patches(scans: list[Path]) -> Steps:
    import torch
    from monai import data, transforms

    keys = ["image", "label"]
    steps = [
        transforms.LoadImaged(keys),
        transforms.EnsureChannelFirstd(keys),
        transforms.RandSpatialCropSamplesd(keys, (PATCH,) * 3, 16, random_size=False),
        transforms.ToTensord(keys),
    ]
    files = [{"image": str(s), "label": str(label_of(s))} for s in scans]
    cached = data.CacheDataset(files, transforms.Compose(steps), progress=False)
    torch.manual_seed(0)
    batches = data.DataLoader(
        cached, batch_size=1, num_workers=WORKERS, shuffle=True, persistent_workers=True
    )
    while True:
        for batch in batches:
            yield len(batch["image"])


VOLUME_PEERS: tuple[Peer, ...] = (
    Peer("daskdmed", ("daskdmed", "torch", "nibabel"), {"volumes": daskdmed_patches}),
    Peer("TorchIO Queue, 2 workers", ("torchio",), {"volumes": torchio_patches}),
    Peer("MONAI CacheDataset, 2 workers", ("monai", "nibabel"), {"volumes": monai_patches}),
)


# ---------------------------------------------------------------------- limits
def decode_seconds(scan: Path) -> float:
    """Seconds to unpack a scan and its label with one thread."""
    import imagecodecs

    packed = [path.read_bytes() for path in (scan, label_of(scan))]
    began = time.perf_counter()
    for data in packed:
        imagecodecs.gzip_decode(data)
    return time.perf_counter() - began


def gather_seconds(batches: int = 40) -> float:
    """Seconds per patch in which NumPy copies image and label out of resident arrays."""
    rng = np.random.default_rng(0)
    sources = [np.ones((inputs.SCAN,) * 3, kind) for kind in (np.int16, np.uint8)]
    outs = [np.empty((BATCH, PATCH, PATCH, PATCH), s.dtype) for s in sources]
    at = rng.integers(inputs.SCAN - PATCH + 1, size=(batches, BATCH, 3))
    began = time.perf_counter()
    for batch in at.tolist():
        for i, (z, y, x) in enumerate(batch):
            for source, out in zip(sources, outs, strict=True):
                out[i] = source[z : z + PATCH, y : y + PATCH, x : x + PATCH]
    return (time.perf_counter() - began) / (batches * BATCH)


@dataclass(frozen=True)
class Patches:
    """Patches per second, and the ratio to decode / reuse + gather in the same round."""

    rate: float
    to_model: float


def patches(scans: list[Path], *, seconds: float, rounds: int = 1) -> Patches:
    """Random patches with labels while scans rotate; two threads decode."""

    def once(turn: int) -> tuple[float, ...]:
        decode, gather = decode_seconds(scans[turn % len(scans)]), gather_seconds()
        steps = daskdmed_patches(scans)
        next(steps)
        done, began = 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            done += next(steps)
        rate = done / (time.perf_counter() - began)
        steps.close()
        return rate, rate * (decode / DRAWS / WORKERS + gather)

    return Patches(*scenarios.median_of(rounds, once))


PEERS_OF = {"volumes": VOLUME_PEERS, **dict.fromkeys(("patches", "blocks", "windows"), PEERS)}
