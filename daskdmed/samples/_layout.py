"""Where tissue, background and the two classes lie: labels on the corners of the tile grid.

A label per corner, not per tile, so that borders run through tiles (`daskdmed.samples._bank`
draws them) and neighbouring tiles agree on the edge they share. Pure and seeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from daskdmed.core.types import Array


def _hills(rng: np.random.Generator, shape: tuple[int, int], scale: float, rough: float) -> Array:
    """Noise with most of its power near one scale and a tail of finer detail."""
    # twice the size, cut to one quarter: the Fourier noise is periodic, a slide is not
    big = (2 * shape[0], 2 * shape[1])
    spectrum = np.fft.rfft2(rng.standard_normal(big, dtype=np.float32))
    fy = np.fft.fftfreq(big[0]).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(big[1]).astype(np.float32)[None, :]
    frequency = np.hypot(fy, fx) * scale
    spectrum *= 1.0 / (1.0 + frequency**2) ** rough
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=big)[: shape[0], : shape[1]].astype(np.float32)
    return field / max(float(field.std()), 1e-6)


def _top(field: Array, candidates: Array, fraction: float) -> Array:
    """The given fraction of the candidate corners where the field is highest."""
    count = round(fraction * int(candidates.sum()))
    chosen = np.zeros(field.shape, bool)
    if count:
        masked = np.where(candidates, field, -np.inf).ravel()
        chosen.ravel()[np.argsort(-masked, kind="stable")[:count]] = True
    return chosen


def corner_labels(seed: int, tiles: tuple[int, int], *, tissue: float, second: float) -> Array:
    """Label of every corner of the tile grid, uint8 (rows + 1, columns + 1): indices into
    `LABEL_CLASSES`. Of the corners a fraction is `tissue`, of which a fraction is of class 2."""
    shape = (tiles[0] + 1, tiles[1] + 1)
    islands, classes, looks = np.random.default_rng((seed, 2)).spawn(3)
    extent = float(max(shape))
    height = _hills(islands, shape, extent * 0.45, 1.35)
    # sections lie in the middle of the glass: fall off towards the rim
    y = np.abs(np.linspace(-1, 1, shape[0], dtype=np.float32))[:, None]
    x = np.abs(np.linspace(-1, 1, shape[1], dtype=np.float32))[None, :]
    height -= 1.6 * np.maximum(y, x) ** 3 + 2.5 * np.clip(np.maximum(y, x) - 0.9, 0, None) * 10
    is_tissue = _top(height, np.ones(shape, bool), tissue)
    is_second = _top(_hills(classes, shape, max(extent * 0.12, 6.0), 1.4), is_tissue, second)
    other_look = _hills(looks, shape, max(extent * 0.05, 10.0), 1.3) > 0
    labels = np.where(is_second, 3, 1) + other_look
    return np.where(is_tissue, labels, 0).astype(np.uint8)
