"""Numbers from keys: known answers, uniform, independent, and of the key alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from daskdmed.core.randomness import fold, mix, salt_of, stream
from daskdmed.errors import UsageError
from daskdmed.transforms.keyed import Samples


def test_known_answers_of_splitmix64():
    # the first outputs of the reference implementation for the seed 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert stream(np.array([1234567], np.uint64), 3)[0].tolist() == expected


def test_mixing_is_a_bijection_with_avalanche():
    z = np.arange(1 << 12, dtype=np.uint64)
    assert np.unique(mix(z)).size == z.size
    flipped = mix(z[:, None]) ^ mix(z[:, None] ^ (np.uint64(1) << np.arange(64, dtype=np.uint64)))
    share = np.bitwise_count(flipped).mean(0) / 64
    assert np.all(np.abs(share - 0.5) < 0.02)


def grid_of_keys():
    """Seeds, visits and draws as loaders have them: small numbers, in rows."""
    seeds = np.array([0, 1, 2, 2**63], np.uint64)
    s, v, d = np.meshgrid(seeds, np.arange(100), np.arange(250), indexing="ij")
    return np.stack([s.ravel(), v.ravel().astype(np.uint64), d.ravel().astype(np.uint64)], 1)


def test_no_two_keys_meet():
    keys = grid_of_keys()
    assert np.unique(fold(keys)).size == len(keys)
    # columns are told apart, and so is their number
    swapped = fold(keys[:, [0, 2, 1]])
    assert np.mean(swapped == fold(keys)) < 0.01
    assert fold(np.array([[0, 5]]))[0] != fold(np.array([[0, 5, 0]]))[0]


def test_signed_and_unsigned_keys_are_the_same():
    assert np.array_equal(fold(np.array([[-1, 3]])), fold(np.array([[2**64 - 1, 3]], np.uint64)))


def test_uniform_and_uncorrelated():
    u = Samples.of(grid_of_keys()).uniform(4)
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    # between numbers of a chunk, neighbouring draws, neighbouring visits, and seeds
    first = u[:, 0].reshape(4, 100, 250)
    pairs = [
        (u[:, 0], u[:, 1]),
        (first[:, :, 1:].ravel(), first[:, :, :-1].ravel()),
        (first[:, 1:].ravel(), first[:, :-1].ravel()),
        (first[0].ravel(), first[1].ravel()),
    ]
    for a, b in pairs:
        cells = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-3


def test_purposes_are_independent():
    samples = Samples.of(grid_of_keys())
    a, b = (samples.at(salt_of(name)).uniform(1)[:, 0] for name in ("flip", "turn"))
    cells = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(cells.ravel()).pvalue > 1e-3
    assert salt_of("a", 1) != salt_of("a", 2) != salt_of("a1")


def test_bounds_per_column():
    u = Samples.of(grid_of_keys()).uniform(2, [0, 10], [1, 30])
    assert 0 <= u[:, 0].min() < u[:, 0].max() < 1
    assert 10 <= u[:, 1].min() < 10.1
    assert 29.9 < u[:, 1].max() < 30


def test_the_same_in_every_process():
    # keyed needs no torch, so that the other process starts quickly
    script = (
        "import numpy as np; from daskdmed.transforms.keyed import Samples;"
        "from daskdmed.core.randomness import salt_of;"
        "s = Samples.of(np.arange(6).reshape(2, 3)).at(salt_of('HEDJitter', 3));"
        "print(s.uniform(3).tolist())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    samples = Samples.of(np.arange(6).reshape(2, 3)).at(salt_of("HEDJitter", 3))
    assert run.stdout.strip() == str(samples.uniform(3).tolist())


@pytest.mark.parametrize(
    "keys", [np.zeros(3, int), np.zeros((3, 0), int), np.zeros((3, 2)), [[True]]]
)
def test_what_is_no_key(keys):
    with pytest.raises(UsageError, match="integer array"):
        Samples.of(keys)


def test_another_length():
    with pytest.raises(UsageError, match="3 keys for a batch of 4"):
        Samples.of(np.arange(3)[:, None], 4)
