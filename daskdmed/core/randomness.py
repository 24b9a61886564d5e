"""Counter-based random numbers: a generator for every (seed, purpose, place).

Philox (Salmon et al., SC 2011) is keyed, not stepped, so the numbers of a visit or draw
depend on nothing that happened before: not on the number of workers, not on their timing.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np


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


def generator(key: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """Philox generator of one place: at most three coordinates (visit, draw...) in [0, 2**64); it
    has 2**64 blocks before it would meet the stream of another place."""
    coordinates = (*place, 0, 0, 0)[:3]
    # the lowest counter word is left to the stream itself
    return np.random.Generator(np.random.Philox(key=[key, int(purpose)], counter=[0, *coordinates]))
