"""Values that files give by a slope and an intercept: modality values, in the smallest type.

Pure. Not covered: which slope a file means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.types import Array


@dataclass(frozen=True, slots=True)
class Rescale:
    """value = slope * stored + intercept, as `dtype`; as they are stored where that changes
    nothing."""

    slope: float
    intercept: float
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, stored: Any, slope: float = 1.0, intercept: float = 0.0) -> Rescale:
        """Of what is stored: its own type without a change, else the smallest signed integer type
        that holds every value where they are whole numbers, else float32; float64 stays."""
        kind = np.dtype(stored).newbyteorder("=")
        if slope == 1 and intercept == 0:
            return cls(1.0, 0.0, kind)
        if kind.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
            limits = np.iinfo(kind)
            ends = [int(slope) * int(n) + int(intercept) for n in (limits.min, limits.max)]
            for name in ("int8", "int16", "int32", "int64"):
                fits = np.iinfo(name)
                if fits.min <= min(ends) and max(ends) <= fits.max:
                    return cls(slope, intercept, np.dtype(name))
        return cls(slope, intercept, np.dtype("f8" if kind == np.float64 else "f4"))

    def into(self, stored: Array, out: Array) -> None:
        """Values of what is stored, into an array of `dtype`."""
        if self.slope == 1 and self.intercept == 0:
            out[...] = stored
        elif self.dtype.kind == "i":
            # slope, intercept and all results fit, so what overflows on the way comes back
            values = stored.astype(self.dtype)
            values *= self.dtype.type(self.slope)
            values += self.dtype.type(self.intercept)
            out[...] = values
        else:
            # no numbers stay so, though some signal that they are used; what is too large is inf
            with np.errstate(invalid="ignore", over="ignore"):
                out[...] = stored * np.float64(self.slope) + np.float64(self.intercept)
