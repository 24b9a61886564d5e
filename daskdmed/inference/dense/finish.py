"""What becomes of blended values before they are written: labels, thresholds, quantisation.

Values come as float32 with NaN outside the mask; integers have no NaN, a fill value stands
for it.

Not covered: blending (`daskdmed.inference.dense.sweep`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

Post: TypeAlias = (
    Literal["argmax", "threshold", "uint8", "uint16", "float16"]
    | tuple[Literal["threshold"], float]
    | None
)
_NAMES = ("argmax", "threshold", "uint8", "uint16", "float16")
_LEAST = 0.5


@dataclass(frozen=True)
class Finish:
    """One way to end. Make it with `Finish.of`."""

    kind: str  # "none" or one of the names of `Post`
    dtype: str  # of the result
    outputs: int  # values per cell of the result; 0 without a channel axis
    fill: float  # outside the mask
    least: float = _LEAST  # threshold

    @classmethod
    def of(cls, post: Any, outputs: int, fill: float | None = None) -> Finish:
        """From what users write."""
        least = _LEAST
        kind = "none" if post is None else post
        if isinstance(post, tuple):
            if len(post) != 2 or post[0] != "threshold" or not _is_number(post[1]):
                raise UsageError(f"post as a pair is ('threshold', number), got {post!r}")
            kind, least = "threshold", float(post[1])
        elif kind not in ("none", *_NAMES):
            raise UsageError(
                f"post must be None, one of {_NAMES} or ('threshold', number), got {post!r}"
            )
        dtype = {"none": "float32", "threshold": "uint8"}.get(kind, kind)
        if kind == "argmax":
            if outputs < 2:
                raise UsageError(
                    "post='argmax' picks the largest of several channels; the model gives one "
                    "value per cell, use post='threshold'"
                )
            dtype = "uint8" if outputs <= 256 else "uint16"
            outputs = 0
        return cls(str(kind), dtype, outputs, _fill(fill, dtype), least)

    def __call__(self, values: Array, inside: Array | None) -> Array:
        """End one block."""
        result = self._convert(values)
        if not self.outputs and self.kind != "argmax":
            result = result[0]
        if inside is not None and not inside.all():
            fill = np.asarray(self.fill).astype(self.dtype)
            result = np.where(inside, result, fill)
        return result

    def _convert(self, values: Array) -> Array:
        if self.kind == "argmax":
            return np.asarray(values.argmax(axis=0), self.dtype)
        if self.kind == "threshold":
            return np.asarray(values >= self.least, self.dtype)
        if self.kind in ("uint8", "uint16"):
            full = np.float32(np.iinfo(self.dtype).max)
            return np.rint(np.clip(values, 0, 1) * full).astype(self.dtype)
        return values.astype(self.dtype, copy=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _fill(fill: float | None, dtype: str) -> float:
    kind = np.dtype(dtype)
    if fill is None:
        return float("nan") if kind.kind == "f" else 0.0
    if kind.kind == "u" and not (
        _is_number(fill) and 0 <= fill <= np.iinfo(kind).max and int(fill) == fill
    ):
        raise UsageError(
            f"fill={fill!r} cannot be held by the {dtype} of the result; give a whole number "
            f"from 0 to {np.iinfo(kind).max}"
        )
    return float(fill)
