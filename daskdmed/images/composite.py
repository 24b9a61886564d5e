"""How pixels of any kind are shown to people: as (h, w, 3) uint8.

RGB as it is, one channel as grey, several as a composite in which each adds its own colour, labels
in colours by their number. Not covered: figures (`daskdmed.plot`), notebooks
(`daskdmed.images.html`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from daskdmed.core.types import Array
from daskdmed.images.ngff.metadata import PALETTE, rgb
from daskdmed.images.protocols import ChannelInfo, SlideInfo

#: share of the pixels that are shown darkest, and brightest, where a file does not say which values
_DARKEST, _BRIGHTEST = 0.01, 0.001


def display(picture: Array, info: SlideInfo | None = None) -> Array:
    """A picture (h, w, c) of any type; `info` is what is known of the slide that it shows."""
    if info is not None and info.is_labels:
        return _labels(picture)
    plain = picture.shape[2] == 3 and picture.dtype == np.uint8
    if plain if info is None else info.is_rgb:
        return picture if picture.dtype == np.uint8 else (picture >> 8).astype(np.uint8)
    known = [] if info is None else list(info.channels)
    if picture.shape[2] == 1 and not any(channel.color for channel in known):
        return np.repeat(_stretched(picture[..., 0], None, grey=True)[..., None], 3, axis=2)
    return composite(picture, known)


def composite(picture: Array, channels: Sequence[ChannelInfo]) -> Array:
    """The sum of all channels (h, w, c), each in its colour.

    Colours that a file does not give are those of a palette; the values shown darkest and brightest
    are those of its window, else one percent of the pixels and one in a thousand.
    """
    total = np.zeros((*picture.shape[:2], 3), np.float32)
    for number in range(picture.shape[2]):
        known = channels[number] if number < len(channels) else ChannelInfo()
        colour = rgb(known.color or PALETTE[number % len(PALETTE)])
        shown = _stretched(picture[..., number], known.window)
        total += shown[..., None] * (np.asarray(colour, np.float32) / 255)
    return np.minimum(total, 255).astype(np.uint8)


def _stretched(plane: Array, window: tuple[float, float] | None, grey: bool = False) -> Array:
    """Values as 0 to 255, float32; of the whole range for `grey`, uint8."""
    with np.errstate(invalid="ignore"):  # of values that are no number some signal
        values = plane.astype(np.float64)
    if window is None:
        finite = values[np.isfinite(values)]
        shares = (0, 1) if grey else (_DARKEST, 1 - _BRIGHTEST)
        window = tuple(np.quantile(finite, shares).tolist()) if finite.size else (0, 0)
    assert window is not None
    low, high = window
    if not high > low:
        return np.zeros(plane.shape, np.uint8 if grey else np.float32)
    scaled = np.clip(np.nan_to_num((values - low) * (255 / (high - low))), 0, 255)
    return scaled.astype(np.uint8 if grey else np.float32)


def _labels(picture: Array) -> Array:
    """Background black, every label in a colour of the palette."""
    plane = picture[..., 0]
    colours = np.array([rgb(digits) for digits in PALETTE], np.uint8)
    shown = colours[(plane.astype(np.int64) - 1) % len(colours)]
    shown[plane == 0] = 0
    return shown
