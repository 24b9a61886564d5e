"""Random numbers of many small chunks at once, each from the chunk's own key.

A key (seed, visit, draw) is hashed to 64 bits, and those start a SplitMix64 stream
(`daskdmed.core.randomness`). Everything is array arithmetic over the batch; there is no
generator to advance, so the numbers of a chunk depend on its key alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.randomness import fold, mix, stream
from daskdmed.core.types import Array


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
        """From `SmallChunks`, from an integer array ``[batch, k]``, or from nothing."""
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
        """(size, count) uint64, uniform."""
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
        u = (self.bits(count) >> np.uint64(11)) * 2.0**-53
        numbers: Array = np.asarray(low) + u * (np.asarray(high) - np.asarray(low))
        return numbers
