"""Colour changes that a decoded tile may need: alpha, inverted grey, YCbCr.

Not covered: what a decoder does by itself (JPEG's YCbCr).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from daskdmed.core.types import Array

_LEVELS = np.arange(256, dtype=np.int64) - 128
# ITU-R BT.601 as in JFIF, rounded half up as OpenSlide rounds it
_R_CR = ((1402 * _LEVELS + 500) // 1000).astype(np.int16)
_B_CB = ((1772 * _LEVELS + 500) // 1000).astype(np.int16)
_G_CB_CR = (-34414 * _LEVELS[:, None] - 71414 * _LEVELS + 50000) // 100000
_G_CB_CR = _G_CB_CR.astype(np.int16)


def invert(tile: Array) -> Array:
    """Min-is-white to min-is-black: unsigned integers of any shape."""
    return np.invert(tile)


def ycbcr_to_rgb(tile: Array) -> Array:
    """Full-range YCbCr (h, w, 3) uint8 to RGB, rounded as OpenSlide rounds it."""
    luma = tile[..., 0].astype(np.int16)
    cb, cr = tile[..., 1], tile[..., 2]
    rgb = np.empty(tile.shape, np.int16)
    rgb[..., 0] = luma + _R_CR[cr]
    rgb[..., 1] = luma + _G_CB_CR[cb, cr]
    rgb[..., 2] = luma + _B_CB[cb]
    return np.clip(rgb, 0, 255).astype(np.uint8)


def blend_alpha(
    background: tuple[int, ...], dtype: np.dtype[Any], *, associated: bool
) -> Callable[[Array], Array]:
    """Function that lays pixels (h, w, c + 1) of unsigned integers with alpha on the background,
    rounded to nearest. With `associated` alpha colours are already multiplied by it."""
    top = int(np.iinfo(dtype).max)
    ground = np.asarray(background, np.uint64)

    def blend(tile: Array) -> Array:
        alpha = tile[..., -1:]
        if alpha.size and int(alpha.min()) == top:
            return tile[..., :-1]
        wide = tile.astype(np.uint64)
        alpha = wide[..., -1:]
        colour = wide[..., :-1] * (top if associated else alpha)
        mixed = (colour + (top - alpha) * ground + top // 2) // top
        return np.asarray(np.minimum(mixed, top).astype(dtype))

    return blend
