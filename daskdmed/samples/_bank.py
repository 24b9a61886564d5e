"""Tiles of a made slide: what lies where; drawn once per (corner labels, place), then reused.

A tile's content is a pure function of its key. Inside a tile every label has a weight that
runs bilinearly between the corners plus a periodic noise; the strongest label wins. Along an
edge the weight depends on the two corners of that edge only, so borders meet without seams.
Memory is bounded by least-recently-used memos.

Where tissue, background and the two classes lie is told by labels on the corners of the tile
grid, not on tiles, so that borders run through tiles. Pure and seeded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from daskdmed.samples._texture import smooth_noise

if TYPE_CHECKING:
    from daskdmed.core.types import Array
    from daskdmed.samples._pyramid import JpegEncoder

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: side of a mask cell is tile / CELLS
CELLS = 8


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


class Memo(Generic[K, V]):
    """A dictionary that forgets what was used least recently."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        if key not in self._values:
            self._values[key] = make()
            if len(self._values) > self._capacity:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


def shrink(image: Array, factor: int) -> Array:
    """Area mean of an RGB uint8 image whose sides the factor divides, rounded to nearest."""
    h, w, c = image.shape
    lines = image.reshape(h // factor, factor, w * c)
    # added slice by slice: a reduction along so short an axis is several times slower
    rows = lines[:, 0].astype(np.uint16)
    for i in range(1, factor):
        rows += lines[:, i]
    columns = rows.reshape(h // factor, w // factor, factor, c)
    total = columns[:, :, 0] + columns[:, :, 1]
    for i in range(2, factor):
        total += columns[:, :, i]
    total += factor * factor // 2
    total //= factor * factor
    return np.asarray(total, np.uint8)


@dataclass(frozen=True, slots=True)
class Tile:
    """One encoded tile, what it looks like on the next level, and its ground truth."""

    stream: bytes
    small: Array
    truth: Array


class TileBank:
    """Draws and encodes the level-0 tiles from periodic uint8 `textures` (labels, period, period,
    3), whose period is whole tiles; `factor` is the downsample from one level to the next."""

    def __init__(
        self,
        textures: Array,
        label_classes: tuple[int, ...],
        tile: int,
        encoder: JpegEncoder,
        factor: int,
        seed: int,
        capacity: int = 768,
    ) -> None:
        self.textures = textures
        self.label_classes = np.asarray(label_classes, np.uint8)
        self.tile = tile
        self.encoder = encoder
        self.factor = factor
        self.places = textures.shape[1] // tile
        rng = np.random.default_rng((seed, 3))
        side = self.places * tile
        coarse = smooth_noise(rng, (side, side), (tile * 0.45, tile * 0.45))
        fine = smooth_noise(rng, (side, side), (tile * 0.06, tile * 0.06))
        # below 1/2 everywhere, or a label could win where all corners belong to another
        self._ragged = np.clip(0.13 * coarse + 0.025 * fine, -0.24, 0.24)
        ramp = ((np.arange(tile, dtype=np.float32) + 0.5) / tile).astype(np.float32)
        self._ramps = (ramp, 1 - ramp)
        self._memo: Memo[int, Tile] = Memo(capacity)

    def keys(self, corners: Array, row: int) -> Array:
        """Keys of one row of tiles, int64 (columns,)."""
        labels = len(self.label_classes)
        upper, lower = corners[row].astype(np.int64), corners[row + 1].astype(np.int64)
        pattern = ((upper[:-1] * labels + upper[1:]) * labels + lower[:-1]) * labels + lower[1:]
        column = np.arange(pattern.size) % self.places
        place = (row % self.places) * self.places + column
        return np.asarray(pattern * self.places**2 + place)

    def get(self, key: int) -> Tile:
        return self._memo.get(key, lambda: self._make(key))

    def _make(self, key: int) -> Tile:
        pattern, place = divmod(key, self.places**2)
        corners = []
        for _ in range(4):
            pattern, label = divmod(pattern, len(self.label_classes))
            corners.append(label)
        pixels, truth = self._draw(tuple(corners[::-1]), divmod(place, self.places))
        return Tile(self.encoder.encode(pixels), shrink(pixels, self.factor), truth)

    def _window(self, field: Array, place: tuple[int, int], shift: int = 0) -> Array:
        """Part of a periodic field that a tile sees."""
        y = (place[0] + shift) % self.places * self.tile
        x = (place[1] + 2 * shift) % self.places * self.tile
        return field[y : y + self.tile, x : x + self.tile]

    def _draw(self, corners: tuple[int, ...], place: tuple[int, int]) -> tuple[Array, Array]:
        """(pixels, classes of the mask cells) of one tile."""
        present = sorted(set(corners))
        if len(present) == 1:
            pixels = np.ascontiguousarray(self._window(self.textures[present[0]], place))
            return pixels, np.full((CELLS, CELLS), self.label_classes[present[0]], np.uint8)
        weight = [self._weight(label, corners, place) for label in present]
        looks = [self._window(self.textures[label], place) for label in present]
        mixed, best = looks[0], weight[0]
        for look, claim in zip(looks[1:], weight[1:], strict=True):
            # an edge about four pixels soft, as optics make it
            share = np.clip((claim - best) * np.float32(64 * self.tile) + 128, 0, 256)
            mixed = _blend(mixed, look, share.astype(np.uint16))
            best = np.maximum(best, claim)
        return mixed, self._truth(np.asarray(present), weight)

    def _weight(self, label: int, corners: tuple[int, ...], place: tuple[int, int]) -> Array:
        """How strongly a label claims each pixel, float32 (tile, tile)."""
        a, b, c, d = (np.float32(corner == label) for corner in corners)
        up, down = self._ramps
        top = a * down + b * up
        bottom = c * down + d * up
        weight = down[:, None] * top[None, :] + up[:, None] * bottom[None, :]
        return weight + self._window(self._ragged, place, label)

    def _truth(self, present: Array, weight: list[Array]) -> Array:
        """Majority class of each mask cell, uint8 (CELLS, CELLS)."""
        side = self.tile // CELLS
        step = max(1, side // 8)
        claims = np.stack([w[step // 2 :: step, step // 2 :: step] for w in weight])
        classes = self.label_classes[present[claims.argmax(axis=0)]]
        cells = classes.reshape(CELLS, side // step, CELLS, side // step)
        votes = [(cells == c).sum(axis=(1, 3)) for c in range(int(self.label_classes.max()) + 1)]
        return np.asarray(np.argmax(votes, axis=0), np.uint8)


def _blend(below: Array, above: Array, share: Array) -> Array:
    """Mix two RGB uint8 images; share is uint16 (height, width) in 1/256 of the upper one."""
    # repeated, not broadcast: three times as fast over a last axis of three
    part = np.repeat(share, 3, axis=1).reshape(*share.shape, 3)
    mixed = below * (256 - part)
    mixed += above * part
    mixed += 128
    mixed >>= 8
    return np.asarray(mixed, np.uint8)
