"""The one scale on which networks see stored samples, in training and in prediction.

Unsigned integers of 8 and 16 bits are fractions of their largest value, in [0, 1]; every
other type is taken as it is, as floating point: Hounsfield units of int16 stay what they
are. `daskdmed.transforms.ToFloat` and modules in `heatmap`, `predict` and `infer` follow it.
"""

from __future__ import annotations

from typing import Any

_FULL = {"uint8": 255.0, "uint16": 65535.0}


def full_scale(dtype: Any) -> float | None:
    """The sample of a NumPy or torch type that becomes 1.0; None where samples stay as they are."""
    return _FULL.get(str(dtype).removeprefix("torch."))
