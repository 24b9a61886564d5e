"""Counter-based random numbers: a generator for every (seed, purpose, place).

Philox (Salmon et al., SC 2011) is keyed, not stepped, so the numbers of a visit or draw
depend on nothing that happened before: not on the number of workers, not on their timing.
For many keys at once there is SplitMix64, in array arithmetic: `fold` and `stream`.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array


class Purpose(IntEnum):
    """What random numbers are for; part of the key, so that no two uses share a stream."""

    ADMIT = 1
    BLOCKS = 2
    TURN = 3
    LOCATE = 4
    COLLECT = 5
    LOAD = 6
    SHIFT = 7
    SHARE = 8
    MIX = 9
    ACCEPT = 10


def seed_key(seed: int) -> int:
    """Spread a user's seed (any int) over 64 bits, so that near seeds are unrelated."""
    digest = hashlib.blake2b(str(int(seed)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class _Key(ISpawnableSeedSequence):
    """Key of a Philox generator, given as its seed.

    With ``Philox(key=...)`` NumPy asks the operating system for a seed that nobody needs: that is
    two thirds of the time, it hands the GIL to other threads, and ``Generator.spawn`` would give
    other children in each run.
    """

    def __init__(self, *words: int) -> None:
        self._words = words
        self._children: np.random.SeedSequence | None = None

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Array:
        """Both words of the key, as ``Philox(key=[...])`` reads them: the first one, from 2**63 on,
        with 53 bits."""
        return np.array(self._words[:2]).astype(dtype)

    def spawn(self, n_children: int) -> Any:
        """Seeds of generators beside this one, others at each call."""
        if self._children is None:
            self._children = np.random.SeedSequence(self._words)
        return self._children.spawn(n_children)


def generator(key: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """Philox generator of one place: at most three coordinates (visit, draw...) in [0, 2**64); it
    has 2**64 blocks before it would meet the stream of another place."""
    coordinates = (*place, 0, 0, 0)[:3]
    seed: Any = _Key(key, int(purpose), *coordinates)
    # the lowest counter word is left to the stream itself
    return np.random.Generator(np.random.Philox(seed, counter=[0, *coordinates]))


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_27, _30, _31 = (np.uint64(n) for n in (27, 30, 31))


def mix(z: Array) -> Array:
    """The finaliser of SplitMix64: a bijection of uint64 in which every bit affects all."""
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    mixed: Array = z ^ (z >> _31)
    return mixed


def stream(state: Array, count: int) -> Array:
    """The first `count` outputs of SplitMix64 from each state: (n,) -> (n, count) uint64.

    Steele, Lea and Flood, OOPSLA 2014: number j is ``mix(state + (j + 1) * gamma)``.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GAMMA
    return mix(state[:, None] + steps)


def fold(keys: Array) -> Array:
    """Hash keys (n, k) of integers to (n,) uint64.

    Raises
    ------
    UsageError
        Not a two-dimensional array of integers.
    """
    keys = np.asarray(keys)
    if keys.ndim != 2 or keys.dtype.kind not in "iu" or not keys.shape[1]:
        raise UsageError(
            f"keys must be an integer array [batch, k], got shape {keys.shape} {keys.dtype}; "
            "SmallChunks.keys is one, np.arange(batch)[:, None] another"
        )
    state = np.full(len(keys), keys.shape[1], np.uint64)
    for column in keys.astype(np.uint64).T:
        state = mix(mix(state + _GAMMA) ^ column)
    return state


def salt_of(*parts: object) -> int:
    """64 bits from names and numbers, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
