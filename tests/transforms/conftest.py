"""Images with known stains, and reference pictures."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

#: haematoxylin and eosin of two laboratories, rows of optical density
PURPLE = np.array([[0.60, 0.72, 0.35], [0.18, 0.90, 0.40]])
BLUISH = np.array([[0.72, 0.62, 0.30], [0.10, 0.85, 0.52]])


def unit(stains):
    return stains / np.linalg.norm(stains, axis=1, keepdims=True)


def stained(seed, stains=PURPLE, size=96, strength=(1.2, 0.8), background=0.2):
    """(size, size, 3) uint8: blobs of two stains, white where there is no tissue."""
    rng = np.random.default_rng(seed)
    coarse = rng.gamma(1.5, 0.6, (2, size // 8 + 1, size // 8 + 1))
    amounts = np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, :size, :size]
    amounts = amounts * np.array(strength)[:, None, None] + rng.gamma(2, 0.05, (2, size, size))
    amounts[:, : int(size * background)] = 0
    density = np.moveaxis(amounts, 0, -1) @ unit(stains)
    rgb = 240 * np.exp(-density) + rng.normal(0, 1, density.shape)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def batch_of(images):
    """[n, 3, y, x] in channels-last memory, as the loader gives it."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images))).movedim(-1, 1)


def keys_of(n, first=0):
    """Keys as the loader's: seed, visit, draw."""
    rows = np.arange(first, first + n, dtype=np.uint64)
    return np.stack([np.full(n, 12345, np.uint64), rows // 7, rows % 7], axis=1)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """On a shared machine threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images():
    return [stained(i, PURPLE if i % 2 else BLUISH) for i in range(8)]


@pytest.fixture
def x(images):
    return batch_of(images)


@pytest.fixture
def keys():
    return keys_of(8)
