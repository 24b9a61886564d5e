"""Area-correct resampling between levels, separable and block by block.

A pixel of the result is the average of the source pixels under it, each weighted with the
part of it that lies under the pixel. Every output pixel is computed from its own position
with a fixed order of additions, so that any region is bit for bit the same part of the whole,
whatever blocks it was computed in. Enlarging interpolates linearly between pixel centres.

Not covered: which level is read (`daskdmed.images.view`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskdmed.core.buffers import empty
from daskdmed.core.region import Region
from daskdmed.core.types import Array

#: source rows read at once; a band of a wide block stays within tens of MiB
_BAND_BYTES = 32 * 2**20
#: source samples worked on at a time
_CACHED = 2**18


@dataclass(frozen=True, slots=True)
class Taps:
    """Weights of the source pixels under each output pixel of one axis.

    Parameters
    ----------
    index : ndarray
        (n, taps) source positions relative to `start`.
    weight : ndarray
        (n, taps) float32 that add up to one for each output pixel.
    start, stop : int
        Source range that the taps cover.
    step : int
        Whole number of source pixels per output pixel with equal weights, or 0.
    """

    index: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]
    start: int
    stop: int
    step: int


def axis_taps(begin: int, end: int, scale: float, length: int) -> Taps:
    """Taps of the output pixels [begin, end) of an axis.

    Parameters
    ----------
    begin, end : int
        Output pixels.
    scale : float
        Source pixels per output pixel.
    length : int
        Source extent; weights beyond it are zero.
    """
    position = np.arange(begin, end, dtype=np.float64)
    if scale < 1:
        return _linear_taps(position, scale, length)
    low, high = position * scale, (position + 1) * scale
    # an interval that misses a whole number by rounding only shall not touch the next pixel
    low, high = _snap(low), _snap(high)
    high = np.minimum(high, length)
    low = np.minimum(low, np.maximum(high - 1e-6, 0))
    first = np.floor(low).astype(np.intp)
    number = math.ceil(scale - 1e-9) + 1
    index = first[:, None] + np.arange(number)
    weight = np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None])
    weight = np.maximum(weight, 0)
    return _finish(index, weight, length, scale, end)


def _snap(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    nearest = np.rint(value)
    return np.where(np.abs(value - nearest) < 1e-6, nearest, value)


def _linear_taps(position: npt.NDArray[np.float64], scale: float, length: int) -> Taps:
    centre = np.clip((position + 0.5) * scale - 0.5, 0, length - 1)
    first = np.floor(centre).astype(np.intp)
    share = centre - first
    index = np.stack([first, first + 1], axis=1)
    weight = np.stack([1 - share, share], axis=1)
    return _finish(index, weight, length, scale, 0)


def _finish(
    index: npt.NDArray[np.intp],
    weight: npt.NDArray[np.float64],
    length: int,
    scale: float,
    end: int,
) -> Taps:
    inside = np.minimum(index, length - 1)
    used = np.where(weight > 0, inside, inside[:, :1])
    start, stop = int(used.min()), int(used.max()) + 1
    share = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    whole = round(scale)
    step = whole if _whole(scale) and end * whole <= length else 0
    return Taps(used - start, share, start, stop, step)


def resample_region(
    region: Region,
    scale: tuple[float, float],
    source_shape: tuple[int, int, int],
    tile_rows: int,
    read: Callable[[Region], Array],
    out: Array,
) -> Array:
    """Compute a region of the resampled image.

    Parameters
    ----------
    region : Region
        (y, x) in pixels of the result.
    scale : tuple of float
        Source pixels per result pixel along (y, x).
    source_shape : tuple of int
        (height, width, channels) of the source level.
    tile_rows : int
        Height of a storage tile; the source is read in whole rows of tiles.
    read : callable
        Gives a region of the source.
    out : ndarray
        (height, width, channels), written.

    Returns
    -------
    ndarray
        `out`.
    """
    top, left = region.origin
    if not region.size:
        return out
    columns = [
        (x0 - left, x1 - left, axis_taps(x0, x1, scale[1], source_shape[1]))
        for x0, x1 in _split(left, region.stop[1], scale, 1, source_shape[1])
    ]
    first = min(x.start for _, _, x in columns)
    width = max(x.stop for _, _, x in columns) - first
    line = max(1, width * source_shape[2] * out.dtype.itemsize)
    step = max(1, int(max(tile_rows, _BAND_BYTES // line) / max(scale[0], 1)))
    band = _Band(read, first, width, source_shape[0], tile_rows)
    for y0, y1 in _split(top, region.stop[0], scale, 0, source_shape[0]):
        for begin in range(y0, y1, step):
            end = min(begin + step, y1)
            y = axis_taps(begin, end, scale[0], source_shape[0])
            rows = band.rows(y.start, y.stop)
            for x0, x1, x in columns:
                part = rows[:, x.start - first : x.stop - first]
                _reduce(part, y, x, out[begin - top : end - top, x0:x1])
    return out


def _split(
    begin: int, end: int, scale: tuple[float, float], axis: int, length: int
) -> list[tuple[int, int]]:
    """Cut off the pixels that reach over the end of the source.

    With whole steps the others are computed in integers, so which way a pixel is computed
    must depend on its position only.
    """
    if begin >= end:
        return []
    if not (_whole(scale[0]) and _whole(scale[1])):
        return [(begin, end)]
    middle = min(max(begin, length // round(scale[axis])), end)
    return [part for part in ((begin, middle), (middle, end)) if part[0] < part[1]]


def _whole(scale: float) -> bool:
    return scale >= 1 and abs(scale - round(scale)) < 1e-9


class _Band:
    """Rows of the source, read once although bands of output share some."""

    def __init__(
        self, read: Callable[[Region], Array], left: int, width: int, height: int, tile: int
    ) -> None:
        self._read, self._left, self._width = read, left, width
        self._height, self._tile = height, max(1, tile)
        self._start = self._stop = 0
        self._kept: Array | None = None

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop); asked for in ascending order."""
        if self._kept is not None and start >= self._start and stop <= self._stop:
            return self._kept[start - self._start : stop - self._start]
        have = self._kept is not None and self._start <= start < self._stop
        begin = self._stop if have else start
        # to the end of the row of tiles: its rest is needed by the next band
        limit = min(self._height, -(-stop // self._tile) * self._tile)
        if limit - stop > 4 * (stop - start) + 64:
            limit = stop
        fresh = self._read(Region((begin, self._left), (limit - begin, self._width)))
        if have:
            assert self._kept is not None
            keep = self._kept[start - self._start :]
            joined = empty((len(keep) + len(fresh), *fresh.shape[1:]), fresh.dtype)
            joined[: len(keep)] = keep
            joined[len(keep) :] = fresh
            fresh = joined
        self._kept, self._start, self._stop = fresh, start, limit
        return fresh[: stop - start]


def _reduce(source: Array, y: Taps, x: Taps, out: Array) -> None:
    """One band: rows first, then columns, a few output rows at a time."""
    whole = bool(y.step and x.step) and source.dtype in (np.uint8, np.uint16)
    # what is worked on stays in the processor's cache
    rows = max(1, _CACHED // max(1, source.shape[1] * source.shape[2] * max(1, y.step)))
    for begin in range(0, len(out), rows):
        end = min(begin + rows, len(out))
        if whole:
            part = source[begin * y.step : end * y.step]
            _reduce_whole(part, y.step, x.step, out[begin:end])
        else:
            _reduce_weighted(source, y, begin, end, x, out[begin:end])


def _reduce_whole(source: Array, step_y: int, step_x: int, out: Array) -> None:
    """Whole steps with equal weights: exact integer sums."""
    area = step_y * step_x
    narrow = source.dtype == np.uint8 and area * 255 < 2**16
    wide: Array = source.astype(np.uint16 if narrow else np.uint64)
    total: Array = wide[0::step_y].copy()
    for tap in range(1, step_y):
        total += wide[tap::step_y]
    kind = np.float32 if narrow else np.float64
    # channel by channel: loops over three interleaved values are slow
    for channel in range(out.shape[2]):
        plane: Array = total[:, ::step_x, channel].copy()
        for tap in range(1, step_x):
            plane += total[:, tap::step_x, channel]
        mean = np.true_divide(plane, kind(area), dtype=kind)
        out[:, :, channel] = np.rint(mean, out=mean)


def _reduce_weighted(source: Array, y: Taps, begin: int, end: int, x: Taps, out: Array) -> None:
    """Any steps: weighted sums, tap by tap so that the order of additions is fixed."""
    height, channels = end - begin, source.shape[2]
    index = y.index[begin:end]
    low, high = int(index.min()), int(index.max()) + 1
    rows = source[low:high].astype(np.float32).reshape(high - low, -1)
    lines = np.zeros((height, rows.shape[1]), np.float32)
    for tap in range(index.shape[1]):
        lines += rows.take(index[:, tap] - low, axis=0) * y.weight[begin:end, tap, None]
    total = lines.reshape(height, -1, channels)
    result = np.zeros((height, len(x.index) * channels), np.float32)
    taken = np.empty((height, len(x.index), channels), np.float32)
    flat = taken.reshape(height, -1)
    for tap in range(x.index.shape[1]):
        total.take(x.index[:, tap], axis=1, out=taken, mode="clip")
        flat *= np.repeat(x.weight[:, tap], channels)
        result += flat
    if out.dtype.kind in "ui":
        np.rint(result, out=result)
        limits = np.iinfo(out.dtype)
        np.clip(result, limits.min, limits.max, out=result)
    out[...] = result.reshape(out.shape)
