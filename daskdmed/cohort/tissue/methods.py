"""How tissue is told from glass: scores of a thumbnail, a guarded threshold, clean-up.

A score is high on tissue. Otsu's threshold (Otsu, IEEE Trans SMC 1979) always finds two
classes, also in noise or within dense tissue; `threshold` therefore asks whether the classes
are apart at all, and keeps the threshold between what glass and what tissue can reach.
Not covered: reading thumbnails (`daskdmed.cohort.tissue.source`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskdmed.core.extras import extra
from daskdmed.core.types import Array

#: structures below this, in micrometers, do not decide what is tissue
_SMOOTH_UM = 4.0
#: grey levels of the entropy: coarse enough that camera noise on glass stays in one
_GREYS = 32


@dataclass(frozen=True, slots=True)
class Rule:
    """A score, from (h, w, 3) float32 in [0, 1] and micrometers per pixel, and its values.

    Glass stays below `high`, tissue above `low`: the threshold is kept between. Means of the
    two classes that are closer than `gap` are one class.
    """

    score: Callable[[Array, float], Array]
    low: float
    high: float
    gap: float


def skimage(module: str) -> Any:
    """A module of scikit-image."""
    what = "tissue masks need scikit-image, or are given as an array or a file:"
    return extra(f"skimage.{module}", "tissue", what)


# -------------------------------------------------------------------- scores of bright fields
def saturation(rgb: Array, um: float) -> Array:
    """Saturation of HSV, smoothed; near-black pixels have none that means anything."""
    top, spread = _extremes(rgb)
    return _smooth(_share(spread, top), um)


def entropy(rgb: Array, um: float) -> Array:
    """Local entropy of the grey levels, in bits; tissue has texture, glass has none."""
    radius = int(np.clip(round(24 / um), 2, 12))
    grey = skimage("color").rgb2gray(rgb)
    levels = np.rint(grey * (_GREYS - 1)).astype(np.uint8)
    disk = skimage("morphology").disk(radius)
    found: Array = skimage("filters.rank").entropy(levels, disk)
    # a window that only touches tissue has some of its texture: take that rim back
    eroded: Array = skimage("morphology").erosion(
        found.astype(np.float32), skimage("morphology").disk(max(1, round(0.7 * radius)))
    )
    return eroded


def stains(rgb: Array, um: float) -> Array:
    """Haematoxylin plus eosin by colour deconvolution (Ruifrok and Johnston 2001)."""
    hed = skimage("color").rgb2hed(np.clip(rgb, 1e-3, 1))
    both = np.clip(hed[..., 0], 0, None) + np.clip(hed[..., 1], 0, None)
    return _smooth(both.astype(np.float32), um)


def _smooth(values: Array, um: float) -> Array:
    sigma = float(np.clip(_SMOOTH_UM / um, 0.5, 6))
    smoothed: Array = skimage("filters").gaussian(values, sigma=sigma, mode="nearest")
    return smoothed.astype(np.float32, copy=False)


RULES: dict[str, Rule] = {
    "otsu": Rule(saturation, low=0.05, high=0.12, gap=0.06),
    "entropy": Rule(entropy, low=1.1, high=1.7, gap=0.8),
    "hed": Rule(stains, low=0.007, high=0.015, gap=0.008),
}


# -------------------------------------------------------------------- from scores to masks
def detect(rgb: Array, method: str, um: float, marks: bool) -> Array:
    """Tissue on a bright-field thumbnail, uint8; `marks`: without near-black pixels and ink."""
    rule = RULES[method]
    scaled = rgb.astype(np.float32) / 255
    valid = ~pen_marks(scaled) if marks else np.ones(rgb.shape[:2], bool)
    return threshold(rule.score(scaled, um), valid, rule)


def pen_marks(rgb: Array) -> Array:
    """Ink and black: (h, w) bool.

    Green, cyan and light blue do not occur in haematoxylin, eosin, DAB or blood; dark blue
    only counts when it is more saturated than haematoxylin gets. Red ink cannot be told
    from eosin by colour and is not found.
    """
    top, spread = _extremes(rgb)
    found: Array = (top < 0.15) | ((top < 0.3) & (spread < 0.06))
    # few pixels are as saturated as ink, and only those need a hue
    vivid = _share(spread, top) > 0.25
    hue, full, _ = np.moveaxis(skimage("color").rgb2hsv(rgb[vivid]), -1, 0)
    green = (hue > 0.20) & (hue < 0.58)
    blue = (hue >= 0.58) & (hue < 0.67) & (full > 0.65)
    found[vivid] |= green | blue
    if found.any():
        # the rim of a mark mixes with glass and looks like pale tissue
        found = skimage("morphology").dilation(found, np.ones((3, 3), bool))
    return found


def _extremes(rgb: Array) -> tuple[Array, Array]:
    """The largest channel, and by how much it exceeds the smallest."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    top = np.maximum(np.maximum(red, green), blue)
    return top, top - np.minimum(np.minimum(red, green), blue)


def _share(spread: Array, top: Array) -> Array:
    share: Array = np.divide(spread, top, out=np.zeros_like(top), where=top > 0.05)
    return share


def threshold(score: Array, valid: Array, rule: Rule) -> Array:
    """Otsu's threshold over the valid pixels, with guards.

    When the two classes are closer than ``rule.gap`` there is one class only: all tissue
    when its median lies above ``rule.high``, otherwise no tissue.
    """
    values = score[valid]
    if not values.size or not np.isfinite(values).all():
        return np.zeros(score.shape, bool)
    at = float(values[0])
    if values.min() < values.max():
        at = float(skimage("filters").threshold_otsu(values))
    below, above = values[values <= at], values[values > at]
    apart = below.size and above.size and above.mean() - below.mean() >= rule.gap
    if not apart:
        return valid if np.median(values) > rule.high else np.zeros(score.shape, bool)
    found: Array = valid & (score > np.clip(at, rule.low, rule.high))
    return found


def detect_intensity(values: Array, background: Array, um: float | None) -> Array:
    """Tissue on anything that is not bright field: what differs from the background.

    Channels count alike, each over its own range. Nothing is found when the two classes of
    Otsu explain too little of the variance: then there is one class, and nothing says whether
    it is tissue. Without `um` it is smoothed by a pixel.
    """
    score = np.abs(values.astype(np.float32) - background.astype(np.float32))
    if background.ndim:
        axes = tuple(range(score.ndim - 1))
        top = np.percentile(score, 99.9, axis=axes)
        score = (score / np.where(top > 0, top, 1)).mean(axis=-1, dtype=np.float32)
    if not np.isfinite(score).all():
        score = np.nan_to_num(score, nan=0.0, posinf=0.0, neginf=0.0)
    sigma = 1.0 if um is None else float(np.clip(_SMOOTH_UM / um, 0.5, 6))
    score = skimage("filters").gaussian(score, sigma=sigma, mode="nearest")
    if not score.max() > score.min():
        return np.zeros(score.shape, bool)
    at = float(skimage("filters").threshold_otsu(score))
    found: Array = score > at
    share = found.mean()
    between = share * (1 - share) * (score[found].mean() - score[~found].mean()) ** 2
    return found if between >= _EXPLAINED * score.var() else np.zeros(score.shape, bool)


#: smoothed noise of one class reaches 2/pi = 0.64, two classes of which one is small more
_EXPLAINED = 0.7


def clean(mask: Array, min_pixels: float, max_hole_pixels: float) -> Array:
    """Fill enclosed holes, then drop islands (neighbours over corners belong), in pixels."""
    label = skimage("measure").label
    if max_hole_pixels > 0 and not mask.all():
        holes = label(~mask, connectivity=1)
        size = np.bincount(holes.ravel())
        small = size < max_hole_pixels
        for axis in range(mask.ndim):
            for edge in (0, -1):
                small[np.unique(np.take(holes, edge, axis=axis))] = False
        mask = mask | small[holes]
    if min_pixels > 0 and mask.any():
        islands = label(mask, connectivity=mask.ndim)
        keep = np.bincount(islands.ravel()) >= min_pixels
        keep[0] = False
        mask = keep[islands]
    return mask
