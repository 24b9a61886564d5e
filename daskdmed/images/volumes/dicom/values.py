"""What stored numbers mean: slope and intercept, and the type that holds the values. Pure.

Values are slope x stored + intercept, of each slice (PET) or frame by its own; where the file
has neither, as most MR, what is stored. MR of some makers has them although the standard gives
MR no such transformation: they are followed, as pydicom, ITK and dcm2niix do. MONOCHROME1 says
how to show values (small ones white), not what they are: nothing is inverted.

Not covered: how stored numbers are decoded (`daskdmed.images.volumes.dicom.pixels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from daskdmed.core.types import Array
from daskdmed.images.volumes.dicom.frames import Frame, Pixels

_SIGNED = ("int8", "int16", "int32", "int64")


def stored_dtype(p: Pixels) -> np.dtype[Any]:
    """Type of the numbers that a file stores."""
    kind = "f" if p.floating else "i" if p.signed else "u"
    return np.dtype(f"{kind}{p.allocated // 8}")


def dtype_of(frames: Sequence[Frame]) -> np.dtype[Any]:
    """The type that holds the values of all slices exactly where they are integers.

    That is the smallest signed one for their bits, slope and intercept (int16 for 12 bits of
    CT); unsigned numbers that fill their type and are not rescaled stay as they are. float32
    where a slope or an intercept is no integer.
    """
    facts = {(_range(f.pixels), f.slope, f.intercept, stored_dtype(f.pixels)) for f in frames}
    kinds = {kind for *_, kind in facts}
    if any(kind.kind == "f" for kind in kinds):
        return max(kinds, key=lambda kind: kind.itemsize)
    if not all(slope.is_integer() and inter.is_integer() for _, slope, inter, _ in facts):
        return np.dtype("float32")
    ends = [int(slope) * v + int(inter) for span, slope, inter, _ in facts for v in span]
    low, high = min(ends), max(ends)
    same = all(slope == 1 and inter == 0 for _, slope, inter, _ in facts)
    for kind in kinds if same and len(kinds) == 1 else ():
        if kind.kind == "u" and high == np.iinfo(kind).max:
            return kind
    for name in _SIGNED:
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return np.dtype(name)
    return np.dtype("float64")


def _range(p: Pixels) -> tuple[int, int]:
    if p.floating:
        return 0, 0
    if p.signed:
        return -(1 << (p.stored - 1)), (1 << (p.stored - 1)) - 1
    return 0, (1 << p.stored) - 1


def background_of(frames: Sequence[Frame], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """The value of padding, where all slices say the same; () else."""
    found = {
        None if f.padding is None else f.slope * f.padding + f.intercept for f in frames
    }  # of slices with slopes of their own there are several
    value = found.pop()
    if found or value is None:
        return ()
    if dtype.kind == "f":
        return (float(value),)
    top = np.iinfo(dtype)
    return (int(value),) if top.min <= value <= top.max else ()


def rescale(stored: Array, frame: Frame, out: Array) -> None:
    """Values of stored numbers, into an array of `dtype_of`."""
    if frame.slope == 1 and frame.intercept == 0:
        out[...] = stored
    elif out.dtype.kind == "f":
        out[...] = stored * np.float64(frame.slope) + np.float64(frame.intercept)
    elif frame.slope == 1:  # whatever wraps around in between comes back: the type holds the sum
        np.add(stored, int(frame.intercept), out=out, dtype=out.dtype, casting="unsafe")
    else:
        wide = stored.astype(np.int64 if out.dtype.itemsize > 2 else np.int32)
        out[...] = wide * int(frame.slope) + int(frame.intercept)
