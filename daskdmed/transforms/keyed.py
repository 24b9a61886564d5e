"""Random numbers of many small chunks at once, each from the chunk's own key.

A key (seed, visit, draw) is hashed to 64 bits with the finaliser of SplitMix64 (Steele,
Lea and Flood, OOPSLA 2014), and those start a SplitMix64 stream: number j of a chunk is
``mix(state + (j + 1) * gamma)``. Everything is array arithmetic over the batch; there is
no generator to advance, so the numbers of a chunk depend on its key alone.

Not covered: the random numbers of sampling itself (`daskdmed.core.randomness`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_27, _30, _31, _11 = (np.uint64(n) for n in (27, 30, 31, 11))


def mix(z: Array) -> Array:
    """The finaliser of SplitMix64: a bijection of uint64 in which every bit affects all."""
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    mixed: Array = z ^ (z >> _31)
    return mixed


def stream(state: Array, count: int) -> Array:
    """The first `count` outputs of SplitMix64 from each state: (n,) -> (n, count) uint64."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The small chunks of a batch as transforms see them: who they are, not their pixels.

    Parameters
    ----------
    size : int
        How many.
    state : ndarray of uint64, shape (size,), or None
        Hashed keys, None where the caller gave none.
    patients : tuple of str or None
        Patient id of each, None where the caller gave keys only.
    """

    size: int
    state: Array | None = None
    patients: tuple[str, ...] | None = None

    @classmethod
    def of(cls, source: Any, size: int | None = None) -> Samples:
        """From `SmallChunks`, from an integer array ``[batch, k]``, or from nothing.

        Parameters
        ----------
        source : SmallChunks, ndarray, tensor, Samples or None
            What identifies each small chunk.
        size : int, optional
            Length of the batch; needed with None, checked otherwise.

        Raises
        ------
        UsageError
            Another length than the batch, or not keys.
        """
        if source is None:
            samples = cls(size or 0)
        elif isinstance(source, Samples):
            samples = source
        elif hasattr(source, "keys") and hasattr(source, "patients"):
            keys: Array = source.keys
            ids = tuple(str(getattr(p, "id", p)) for p in source.patients)
            samples = cls(len(keys), fold(keys), ids)
        else:
            state = fold(source)
            samples = cls(len(state), state)
        if size is not None and samples.size != size:
            raise UsageError(f"{samples.size} keys for a batch of {size}; give one row a sample")
        return samples

    def at(self, salt: int) -> Samples:
        """The same small chunks with numbers of their own for one more purpose."""
        if self.state is None:
            return self
        return Samples(self.size, mix(self.state ^ np.uint64(salt)), self.patients)

    def bits(self, count: int) -> Array:
        """(size, count) uint64, uniform.

        Raises
        ------
        UsageError
            The batch came without keys.
        """
        if self.state is None:
            raise UsageError(
                "this transform is random and needs to know the small chunks: call it as "
                "transform(x, smallchunks) or transform(x, keys) with keys an integer array "
                "[batch, k]"
            )
        return stream(self.state, count)

    def uniform(
        self, count: int, low: float | Sequence[float] = 0.0, high: float | Sequence[float] = 1.0
    ) -> Array:
        """(size, count) float64, uniform in [low, high); bounds may be one a column."""
        u = (self.bits(count) >> _11) * 2.0**-53
        numbers: Array = np.asarray(low) + u * (np.asarray(high) - np.asarray(low))
        return numbers
