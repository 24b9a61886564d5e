"""Transforms in the loader: keys, reproducible augmentation, joint targets."""

from __future__ import annotations

import threading

import dask.array as da
import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL, heatmap
from daskdmed.errors import UsageError
from daskdmed.transforms import (
    ColorJitter,
    Compose,
    HEDJitter,
    MacenkoNormalizer,
    PerSample,
    RandomFlip,
    RandomRotate90,
    ToFloat,
)
from tests.loading.clusters import tcp_cluster
from tests.transforms.conftest import stained

LOADER = {
    "smallchunk_size": 32,
    "batch_size": 8,
    "bigchunk_size": 128,
    "resident": "2 MiB",
    "smallchunks_per_bigchunk": 12,
}


@pytest.fixture(scope="module")
def dataset():
    """Images, and masks that are their green channel."""
    patients = []
    for i in range(3):
        pixels = stained(i, size=256, background=0.1)
        records = {
            "wsi": Record(array=da.from_array(pixels, chunks=(128, 128, 3))),
            "mask": Record(array=da.from_array(pixels[..., 1], chunks=(128, 128))),
        }
        patients.append(Patient(f"p{i}", records))
    return Dataset("stained", patients)


def augment():
    return Compose([RandomFlip(), RandomRotate90(), HEDJitter(0.1, 0.1), ColorJitter(0.1)], seed=3)


def batches(dataset, n=6, **changes):
    arguments = {**LOADER, "record": "wsi", "batch_tfms": augment(), **changes}
    with LightDL(dataset, **arguments) as loader:
        return [next(loader) for _ in range(n)]


def by_key(items):
    """Augmented image of each small chunk."""
    found = {}
    for x, _, chunks in items:
        for key, image in zip(chunks.keys.tolist(), x, strict=True):
            found[tuple(key)] = image.numpy().copy()
    return found


def test_keys(dataset):
    items = batches(dataset)
    keys = np.concatenate([chunks.keys for _, _, chunks in items])
    assert keys.dtype == np.uint64
    assert keys.shape == (48, 3)
    assert len(np.unique(keys, axis=0)) == 48
    for _, _, chunks in items:
        assert chunks.keys[:, 1].tolist() == [c.bigchunk.visit for c in chunks]
        assert chunks.keys[:, 2].tolist() == [c.draw for c in chunks]
    other = batches(dataset, 1, seed=1)[0][2].keys
    assert len(set(keys[:, 0].tolist())) == 1
    assert other[0, 0] != keys[0, 0]


def test_the_same_whatever_the_batch(dataset):
    """A small chunk is augmented alike in batches of another size, and of other ranks."""
    once = by_key(batches(dataset))
    again = by_key(batches(dataset))
    smaller = by_key(batches(dataset, 12, batch_size=4))
    assert once.keys() == again.keys()
    assert all(np.array_equal(once[k], again[k]) for k in once)
    common = once.keys() & smaller.keys()
    assert len(common) > 24
    assert all(np.array_equal(once[k], smaller[k]) for k in common)
    ranks = [by_key(batches(dataset, 3, rank=r, world_size=2)) for r in (0, 1)]
    common = once.keys() & (ranks[0].keys() | ranks[1].keys())
    assert len(common) > 24
    assert all(np.array_equal(once[k], {**ranks[0], **ranks[1]}[k]) for k in common)


def test_the_same_after_a_resume(dataset):
    items = batches(dataset, 4)
    with LightDL(dataset, record="wsi", batch_tfms=augment(), **LOADER) as loader:
        next(loader), next(loader)
        state = loader.state_dict()
    resumed = LightDL(dataset, record="wsi", batch_tfms=augment(), **LOADER)
    resumed.load_state_dict(state)
    with resumed:
        for expected, _, _ in items[2:]:
            x, _, _ = next(resumed)
            assert torch.equal(x, expected)


@pytest.mark.cluster
def test_the_same_on_a_cluster(dataset):
    once = by_key(batches(dataset, target="mask"))
    with tcp_cluster(2) as (_, client):
        there = batches(dataset, target="mask", client=client)
    for key, image in by_key(there).items():
        assert np.array_equal(image, once[key])


@pytest.mark.parametrize("where", ["batch_tfms", "tfms"])
def test_targets_follow(dataset, where):
    transform = Compose([RandomRotate90(), RandomFlip(), ToFloat()])
    arguments = {"batch_tfms": None, where: transform, "target": "mask"}
    moved = 0
    for x, _, chunks in batches(dataset, 3, **arguments):
        green = (x[:, 1] * 255).round().byte().numpy()
        assert isinstance(chunks.targets, np.ndarray)
        assert np.array_equal(chunks.targets, green)
        assert np.array_equal(chunks[2].target, green[2])
        # what was sampled stays, to compare with
        moved += not np.array_equal(chunks.data[..., 1], green)
        again, targets = transform.replay(
            transform.draw(chunks),
            torch.from_numpy(chunks.data).movedim(-1, 1),
            chunks.data[..., 1],
        )
        assert torch.equal(again, x)
        assert np.array_equal(targets, chunks.targets)
    assert moved == 3


def test_in_the_background_or_not(dataset):
    here = batches(dataset, 3)
    there = batches(dataset, 3, batch_tfms=None, tfms=augment())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(here, there, strict=True))


def test_functions_as_before(dataset):
    """Callables of one batch, of one sample, and those that ask for small chunks."""
    seen = []

    def plain(x):
        seen.append(x.shape)
        return x.float()

    class Asking:
        needs_smallchunks = True

        def __call__(self, x, smallchunks):
            seen.append(len(smallchunks))
            return x, smallchunks.targets[:, :4, :4]

    x, _, _ = batches(dataset, 1, batch_tfms=plain)[0]
    assert x.dtype == torch.float32
    _, _, chunks = batches(dataset, 1, batch_tfms=Asking(), target="mask")[0]
    assert chunks.targets.shape == (8, 4, 4)
    assert seen == [(8, 3, 32, 32), 8]
    x, _, _ = batches(dataset, 1, batch_tfms=None, tfms=lambda image: image[:, ::2])[0]
    assert x.shape == (8, 3, 16, 32)
    x, _, _ = batches(dataset, 1, batch_tfms=torch.nn.Flatten())[0]
    assert x.shape == (8, 3072)


def test_windows(dataset):
    """Augmentation at test time: every window is told apart, and augmented alike again."""
    first, again = (
        SlidingWindowDL(dataset, record="wsi", kernel_size=32, batch_size=b, batch_tfms=augment())
        for b in (48, 64)
    )
    with first, again:
        once, twice = by_key(first), by_key(again)
    assert len(once) == 3 * 8 * 8
    assert once.keys() == twice.keys()
    assert all(np.array_equal(once[k], twice[k]) for k in once)


def test_heatmaps(dataset):
    """What needs no small chunks goes into a heatmap; what does says so."""
    image = dataset[0].records["wsi"]
    windows = (
        torch.from_numpy(np.array(image.array)).reshape(8, 32, 8, 32, 3).permute(0, 2, 4, 1, 3)
    )
    model = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten())
    transform = Compose([MacenkoNormalizer(), ToFloat()])
    result = heatmap(image, model, kernel_size=32, batch_tfms=transform).compute()
    expected = model(transform(windows.flatten(0, 1).contiguous())).reshape(8, 8, 3)
    assert np.allclose(result, expected.permute(2, 0, 1).numpy(), atol=1e-5)
    with pytest.raises(UsageError, match="needs to know the small chunks"):
        heatmap(image, model, kernel_size=32, batch_tfms=RandomFlip()).compute()


def test_patients_are_known(dataset):
    normalise = MacenkoNormalizer(per="patient")
    for patient in dataset:
        normalise.fit_patient(patient, np.asarray(patient.records["wsi"].array))
    x, _, chunks = batches(dataset, 1, batch_tfms=Compose([normalise]))[0]
    assert not np.array_equal(x.movedim(1, -1).numpy(), chunks.data)


def test_others_in_the_background(dataset):
    """albumentations as `tfms`: its own generator, seeded by the small chunk."""
    albumentations = pytest.importorskip("albumentations")
    tfms = PerSample(albumentations.RandomBrightnessContrast(p=1))
    once = by_key(batches(dataset, 3, batch_tfms=None, tfms=tfms))
    again = by_key(batches(dataset, 6, batch_tfms=None, tfms=tfms, batch_size=4))
    common = once.keys() & again.keys()
    assert len(common) > 10
    assert all(np.array_equal(once[k], again[k]) for k in common)


@pytest.mark.parametrize("compose", [False, True])
def test_functions_of_global_generators_as_tfms(dataset, compose):
    """In the consumer's thread, which is the only one that may touch what it shares."""
    callers = set()

    def noisy(image):
        callers.add(threading.current_thread())
        return image + torch.rand(1)

    tfms = Compose([RandomFlip(), PerSample(noisy)]) if compose else PerSample(noisy)
    torch.manual_seed(3)
    there = batches(dataset, 3, batch_tfms=None, tfms=tfms)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)
    assert callers == {threading.current_thread()}
    here = batches(dataset, 3, batch_tfms=tfms)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(here, there, strict=True))
