"""Textures of tissue and background, periodic so that tiles cut from them join without seams.

Synthetic ones imitate haematoxylin and eosin in optical density (stain vectors of Ruifrok
and Johnston, Anal Quant Cytol Histol 2001): nuclei take haematoxylin, the rest eosin.
`textures_from_slide` cuts them out of a real slide instead. Where on a slide which texture
lies is decided in `daskdmed.samples._bank`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import UsageError

if TYPE_CHECKING:
    from daskdmed.core.types import Array

#: label -> class: background, two looks of class 1, two looks of class 2
LABEL_CLASSES: tuple[int, ...] = (0, 1, 1, 2, 2)

_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], dtype=np.float32)
_EOSIN = np.array([0.07, 0.80, 0.22], dtype=np.float32)
_GLASS = 244.0


@dataclass(frozen=True, slots=True)
class _Look:
    """How one tissue looks; lengths in micrometers, stains in optical density."""

    spacing: float
    radius: tuple[float, float]
    elongation: tuple[float, float]
    nucleus: tuple[float, float]
    haematoxylin: float
    eosin: float
    fibre: float
    holes: float
    ring: float


_LOOKS: tuple[_Look, ...] = (
    # class 1: pink fibrous stroma with few slender nuclei
    _Look(27.0, (2.2, 3.2), (1.8, 3.2), (0.45, 0.7), 0.04, 0.42, 0.16, 0.9, 0.0),
    # class 1: pink with sparse, large, pale, round nuclei
    _Look(21.0, (4.6, 6.2), (1.0, 1.25), (0.28, 0.45), 0.06, 0.34, 0.06, 0.35, 0.5),
    # class 2: purple with densely packed small dark nuclei
    _Look(8.6, (2.7, 3.9), (1.0, 1.4), (0.75, 1.15), 0.20, 0.24, 0.03, 0.12, 0.0),
    # class 2: the same tissue less packed and of more variable nuclei
    _Look(10.4, (2.4, 4.9), (1.0, 1.8), (0.6, 1.25), 0.15, 0.31, 0.06, 0.35, 0.15),
)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], wavelength: tuple[float, float]
) -> Array:
    """Periodic float32 noise (height, width), mean 0 and deviation 1, without structure below a
    wavelength in pixels along (y, x)."""
    spectrum = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    fy = np.fft.fftfreq(shape[0]).astype(np.float32)[:, None] * wavelength[0]
    fx = np.fft.rfftfreq(shape[1]).astype(np.float32)[None, :] * wavelength[1]
    spectrum *= np.exp(-2.0 * (fy * fy + fx * fx))
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=shape).astype(np.float32, copy=False)
    noise /= max(float(noise.std()), 1e-6)
    return noise


def _nuclei(rng: np.random.Generator, period: int, um: float, look: _Look) -> Array:
    """Haematoxylin of nuclei on a jittered periodic grid, float32 (period, period)."""
    stain = np.zeros((period, period), np.float32)
    n = max(1, round(period * um / look.spacing))
    step = period / n
    count = n * n
    centre = (np.indices((n, n)).reshape(2, -1).T + 0.5) * step
    centre += rng.uniform(-0.42, 0.42, (count, 2)) * step
    radius = rng.uniform(*look.radius, count) / um
    stretch = rng.uniform(*look.elongation, count)
    angle = rng.uniform(0, np.pi, count) if look.fibre < 0.1 else rng.normal(0.4, 0.35, count)
    depth = rng.uniform(*look.nucleus, count)
    for (cy, cx), r, s, a, d in zip(centre, radius, stretch, angle, depth, strict=True):
        reach = int(r * s + 3)
        ys = np.arange(int(cy) - reach, int(cy) + reach + 1)
        xs = np.arange(int(cx) - reach, int(cx) + reach + 1)
        dy, dx = (ys - cy)[:, None], (xs - cx)[None, :]
        along = (dx * np.cos(a) + dy * np.sin(a)) / (r * s)
        across = (dy * np.cos(a) - dx * np.sin(a)) / r
        distance = np.sqrt(along * along + across * across)
        inside = np.clip((1.0 - distance) * r / 1.5 + 0.5, 0.0, 1.0)
        if look.ring:
            inside *= 1.0 - look.ring * np.clip(1.15 - distance, 0.0, 0.5)
        at = np.ix_(ys % period, xs % period)
        stain[at] = np.maximum(stain[at], (inside * d).astype(np.float32))
    return stain


def _wavy(rng: np.random.Generator, field: Array, um: float) -> Array:
    """Bend a periodic field, so that fibres swing instead of running along a row."""
    period = field.shape[0]
    swing = smooth_noise(rng, field.shape, (130.0 / um, 130.0 / um)) * (14.0 / um)
    rows = (np.arange(period)[:, None] + swing).astype(np.intp) % period
    return np.take_along_axis(field, rows, axis=0)


def _tissue(rng: np.random.Generator, period: int, um: float, look: _Look) -> Array:
    """RGB texture of one look, uint8 (period, period, 3)."""
    shape = (period, period)
    fibres = _wavy(rng, smooth_noise(rng, shape, (2.2 / um, 16.0 / um)), um)
    # clefts: where two slow fields are both near an extreme, the tissue is torn open
    cleft = smooth_noise(rng, shape, (24.0 / um, 24.0 / um))
    cleft += fibres
    cleft = np.clip(1.4 * cleft - 2.0 * (2.6 - look.holes), 0.0, 1.0, out=cleft)
    eosin = fibres
    eosin *= look.fibre
    eosin += look.eosin
    cells = smooth_noise(rng, shape, (9.0 / um, 9.0 / um))
    eosin += 0.035 * cells
    haematoxylin = cells
    haematoxylin *= 0.25 * look.haematoxylin
    haematoxylin += look.haematoxylin
    grain = smooth_noise(rng, shape, (0.9 / um, 0.9 / um))
    eosin += 0.045 * grain
    nuclei = _nuclei(rng, period, um, look)
    cleft *= nuclei < 0.1
    grain *= 0.2
    grain += 1.0
    nuclei *= grain
    haematoxylin += nuclei
    eosin *= 1.0 - 0.9 * cleft
    haematoxylin *= 1.0 - cleft
    del cleft, grain, nuclei
    np.clip(eosin, 0.01, None, out=eosin)
    np.clip(haematoxylin, 0.0, None, out=haematoxylin)
    shot = 1.6 * rng.standard_normal(shape, dtype=np.float32)
    rgb = np.empty((*shape, 3), np.uint8)
    for c in range(3):
        value = _GLASS * np.exp(-(haematoxylin * _HAEMATOXYLIN[c] + eosin * _EOSIN[c]))
        value += shot + 0.9 * rng.standard_normal(shape, dtype=np.float32)
        rgb[..., c] = np.clip(value, 0, 255)
    return rgb


def _glass(rng: np.random.Generator, period: int) -> Array:
    """Near-white background with slight sensor noise, uint8 (period, period, 3)."""
    shape = (period, period)
    shade = 0.8 * smooth_noise(rng, shape, (period / 3, period / 3))
    shade += 0.9 * rng.standard_normal(shape, dtype=np.float32)
    rgb = np.empty((*shape, 3), np.uint8)
    for c, tint in enumerate((0.0, -1.0, 0.5)):
        rgb[..., c] = np.clip(shade + np.float32(_GLASS + tint), 0, 255)
    return rgb


@lru_cache(maxsize=1)
def synthetic_textures(seed: int, period: int, mpp: float) -> Array:
    """Textures of all labels, uint8 (labels, period, period, 3); the last ones made are kept.
    `seed` is independent of the layout, nuclei have their natural size at `mpp`."""
    out = np.empty((len(LABEL_CLASSES), period, period, 3), np.uint8)
    for label, rng in enumerate(np.random.default_rng((seed, 1)).spawn(len(LABEL_CLASSES))):
        out[label] = (
            _glass(rng, period) if label == 0 else _tissue(rng, period, mpp, _LOOKS[label - 1])
        )
    return out


def textures_from_slide(source: Any, seed: int, period: int, tile: int) -> Array:
    """Textures of all labels put together from level-0 tiles of a real slide, or of anything with
    `dimensions` and `read_region`.

    Tiles are told apart as OpenSlide users do by hand: glass is bright and unsaturated, tissue is
    not; tissue with more haematoxylin (bluer) counts as class 2.
    """
    if not hasattr(source, "read_region"):
        from daskdmed.images.opening import open_slide

        with open_slide(source) as slide:
            return textures_from_slide(slide, seed, period, tile)
    rng = np.random.default_rng((seed, 5))
    per_label = (period // tile) ** 2
    glass, tissue = _sort_tiles(source, rng, tile, per_label)
    if len(tissue) < 2:
        raise UsageError(
            f"the slide of {source.dimensions} shows {len(tissue)} tiles of {tile} x {tile} "
            "pixels with tissue, 2 are needed; give a larger slide or a smaller tile"
        )
    tissue.sort(key=lambda t: _blueness(t))
    half = max(1, len(tissue) // 2)
    groups = [tissue[:half], tissue[half:]]
    out = np.empty((len(LABEL_CLASSES), period, period, 3), np.uint8)
    out[0] = _mosaic(rng, glass, period, tile) if glass else _glass(rng, period)
    for label in range(1, len(LABEL_CLASSES)):
        out[label] = _mosaic(rng, groups[LABEL_CLASSES[label] - 1], period, tile)
    return out


def _sort_tiles(
    slide: Any, rng: np.random.Generator, tile: int, per_label: int
) -> tuple[list[Array], list[Array]]:
    """(glass, tissue) tiles in random order, at most what the textures can hold."""
    width, height = slide.dimensions
    places = [
        (x, y) for y in range(0, height - tile + 1, tile) for x in range(0, width - tile + 1, tile)
    ]
    glass: list[Array] = []
    tissue: list[Array] = []
    want = per_label * (len(LABEL_CLASSES) - 1)
    # a large slide is only sampled: enough looks to fill the textures
    for i in rng.permutation(len(places))[: 20 * want]:
        if len(tissue) >= want and len(glass) >= per_label:
            break
        pixels = np.asarray(slide.read_region(places[i], 0, (tile, tile)))[..., :3]
        value = pixels.astype(np.int16)
        saturated = (value.max(-1) - value.min(-1)) > 20
        fraction = float(saturated.mean())
        if fraction > 0.75 and len(tissue) < want:
            tissue.append(np.ascontiguousarray(pixels))
        elif fraction < 0.02 and float(value.mean()) > 200 and len(glass) < per_label:
            glass.append(np.ascontiguousarray(pixels))
    return glass, tissue


def _blueness(tile: Array) -> float:
    """Mean of blue minus red, greater where haematoxylin prevails; ties by the bytes."""
    return float(tile[..., 2].mean(dtype=np.float64) - tile[..., 0].mean(dtype=np.float64))


def _mosaic(rng: np.random.Generator, tiles: list[Array], period: int, tile: int) -> Array:
    """A texture of tiles in random order, mirrored at random when they are few."""
    out = np.empty((period, period, 3), np.uint8)
    n = period // tile
    order = rng.permutation(np.arange(n * n) % len(tiles))
    flips = rng.integers(0, 4, n * n) if len(tiles) < n * n else np.zeros(n * n, np.int64)
    for place, (i, flip) in enumerate(zip(order, flips, strict=True)):
        image = tiles[i][:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]
        y, x = divmod(place, n)
        out[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] = image
    return out
