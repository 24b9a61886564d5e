"""What backends of plain arrays share: which axes are what, and options that they refuse."""

from __future__ import annotations

from typing import Any

from daskdmed.core.errors import UnsupportedImageError, UsageError
from daskdmed.images.protocols import VolumeOptions

#: a last axis of at most so many is taken for channels
MAX_CHANNELS = 4


def check_options(uri: str, options: VolumeOptions, *known: str) -> None:
    """Refuse options that a backend cannot follow."""
    usual = VolumeOptions()
    for name in ("series", "dataset", "time", "on_gap", "files"):
        value = getattr(options, name)
        if name not in known and value != getattr(usual, name):
            raise UsageError(f"{uri}: {name}={value!r} means nothing for this kind of file")


def laid_out(uri: str, array: Any, time: int | str | None) -> tuple[Any, bool]:
    """An array as (z, y, x, c), and whether users see the channels.

    (y, x) is one slice; of four axes the last are channels where there are few, else the first
    are time points, one of which `time` chooses.
    """
    if array.ndim in (2, 3) and time is None:
        return (array[None] if array.ndim == 2 else array)[..., None], False
    if array.ndim == 4 and (time is None) and array.shape[-1] <= MAX_CHANNELS:
        return array, True
    if array.ndim == 4 and time == "channels":
        return array.transpose(1, 2, 3, 0), True
    if array.ndim == 4 and isinstance(time, int):
        if time >= array.shape[0]:
            raise UsageError(f"{uri}: no time point {time}, there are 0 to {array.shape[0] - 1}")
        return array[time][..., None], False
    if array.ndim == 4:
        raise UsageError(
            f"{uri} has {array.shape[0]} time points of {array.shape[1:]}; say which: time=0, or "
            'time="channels" for all as channels'
        )
    raise UnsupportedImageError.of(
        uri, f"a volume is (z, y, x), with time points before or channels behind; not {array.shape}"
    )
