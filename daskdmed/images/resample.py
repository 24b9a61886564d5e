"""Area-correct resampling along any number of axes, separable and block by block.

A pixel of the result is the average of the source pixels under it, each weighted with the
part of it that lies under the pixel. Every output pixel is computed from its own position
with a fixed order of additions, so that any region is bit for bit the same part of the whole,
whatever blocks it was computed in. Enlarging interpolates linearly between pixel centres.

Not covered: which level is read (`daskdmed.images.view`); shrinking by whole factors where
NaN or the most frequent value count (`daskdmed.store.ngff.reduction`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daskdmed.core.buffers import empty
from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView

#: source read at once along the first axis; a band of a wide block stays within tens of MiB
_BAND_BYTES = 32 * 2**20
#: pixels along an axis that are resampled: a glass slide has 750 000 at 0.1 micrometers
LONGEST = 2**22
#: source samples worked on at a time
_CACHED = 2**18


@dataclass(frozen=True, slots=True)
class Taps:
    """Weights of the source pixels under each output pixel of one axis.

    `index` (n, taps) are source positions relative to `start`, `weight` (n, taps) add up to one for
    each pixel; `start` to `stop` is what they cover. `step` is the whole number of source pixels
    per output pixel with equal weights, or 0.
    """

    index: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]
    start: int
    stop: int
    step: int


def axis_taps(begin: int, end: int, scale: float, length: int, offset: float = 0.0) -> Taps:
    """Taps of the output pixels [begin, end) of an axis, `scale` source pixels each, of which the
    first begins `offset` source pixels behind the source's border; weights beyond the source's
    `length` are zero, and pixels that lie outside of it as a whole have its outermost pixel."""
    position = np.arange(begin, end, dtype=np.float64)
    if scale < 1:
        return _linear_taps(position, scale, length, offset)
    low, high = position * scale + offset, (position + 1) * scale + offset
    # an interval that misses a whole number by rounding only shall not touch the next pixel
    low, high = _snap(low), _snap(high)
    high = np.clip(high, 1e-6, length)
    low = np.clip(low, 0, np.maximum(high - 1e-6, 0))
    first = np.floor(low).astype(np.intp)
    number = min(math.ceil(scale - 1e-9), length) + 1
    index = first[:, None] + np.arange(number)
    weight = np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None])
    weight = np.maximum(weight, 0)
    return _finish(index, weight, length, 0.0 if offset else scale, end)


def _snap(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    nearest = np.rint(value)
    return np.where(np.abs(value - nearest) < 1e-6, nearest, value)


def _linear_taps(
    position: npt.NDArray[np.float64], scale: float, length: int, offset: float
) -> Taps:
    centre = np.clip((position + 0.5) * scale - 0.5 + offset, 0, length - 1)
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
    scale: Sequence[float],
    source_shape: Sequence[int],
    tile_rows: int,
    read: Callable[[Region], Array],
    out: Array,
    offset: Sequence[float] | None = None,
) -> Array:
    """Compute a region of the resampled image into `out`, ``(*region.shape[, c])``.

    `scale` are source pixels per pixel of the result along each spatial axis, `offset` where its
    first pixel begins in the source (see `axis_taps`); `read` gives a region of the source, of
    whose storage tiles (`tile_rows` along the first axis) whole ones are read. Integers are
    rounded, halves to even.
    """
    if not region.size:
        return out
    target = out if out.ndim > len(region.shape) else out[..., None]
    shift = tuple(offset or (0.0,) * len(scale))
    whole = all(_whole(s) for s in scale) and not any(shift)
    axes = list(zip(region.origin, region.stop, scale, source_shape, strict=True))
    # of every axis but the first: where in `out`, and what it is made of
    across = [
        [(slice(a - begin, b - begin), axis_taps(a, b, step, length, by)) for a, b in parts]
        for (begin, end, step, length), by in zip(axes[1:], shift[1:], strict=True)
        if (parts := _split(begin, end, step, length, whole))
    ]
    start = [min(taps.start for _, taps in parts) for parts in across]
    stop = [max(taps.stop for _, taps in parts) for parts in across]
    band = _Band(read, Region.between((0, *start), (source_shape[0], *stop)), tile_rows)
    line = max(1, math.prod(band.whole.shape[1:]) * target.shape[-1] * out.dtype.itemsize)
    step = max(1, int(max(tile_rows, _BAND_BYTES // line) / max(scale[0], 1)))
    top = region.origin[0]
    for row, last in _split(*axes[0], whole):
        for begin in range(row, last, step):
            end = min(begin + step, last)
            first = axis_taps(begin, end, scale[0], source_shape[0], shift[0])
            rows = band.rows(first.start, first.stop)
            rows = rows if rows.ndim == target.ndim else rows[..., None]
            for cell in itertools.product(*across):
                taps = [taps for _, taps in cell]
                cut = [slice(x.start - o, x.stop - o) for x, o in zip(taps, start, strict=True)]
                place = (slice(begin - top, end - top), *(place for place, _ in cell))
                _reduce(rows[(slice(None), *cut)], [first, *taps], target[place])
    return out


def resample_labels(
    region: Region,
    scale: Sequence[float],
    source_shape: Sequence[int],
    tile_rows: int,
    read: Callable[[Region], Array],
    out: Array,
    offset: Sequence[float] | None = None,
) -> Array:
    """The same of a map of labels: the one that most of a pixel's area has, the smallest of equals.

    So labels that are no neighbours as numbers are never blended into a third one.
    """
    if not region.size:
        return out
    needed = source_region(region, scale, source_shape, offset)
    columns = Region.between((0, *needed.origin[1:]), (source_shape[0], *needed.stop[1:]))
    band = _Band(read, columns, tile_rows)
    channels = math.prod(out.shape[len(region.shape) :])
    line = math.prod(needed.shape[1:]) * channels * np.dtype(np.float32).itemsize
    step = max(1, int(max(tile_rows, _BAND_BYTES // line) / max(scale[0], 1)))
    for begin in range(0, region.shape[0], step):
        end = min(begin + step, region.shape[0])
        origin = (region.origin[0] + begin, *region.origin[1:])
        part = Region(origin, (end - begin, *region.shape[1:]))
        under = source_region(part, scale, source_shape, offset)
        source = band.rows(under.origin[0], under.stop[0])
        _most_of_each(part, scale, source_shape, under, source, out[begin:end], offset)
    return out


def _most_of_each(
    region: Region,
    scale: Sequence[float],
    source_shape: Sequence[int],
    under: Region,
    source: Array,
    out: Array,
    offset: Sequence[float] | None,
) -> None:
    """Of each pixel the label with the largest area, of a part whose source is there."""
    best = np.full(out.shape, -1, np.float32)
    share = np.empty(out.shape, np.float32)
    for label in np.unique(source):

        def one(part: Region, label: Any = label) -> Array:
            return np.asarray(source[part.local_to(under).slices] == label, np.float32)

        resample_region(region, scale, source_shape, under.shape[0], one, share, offset)
        # sums of weights differ in their last bits; of equal areas the smaller label stays
        wins = share > best + 1e-4
        out[wins], best[wins] = label, share[wins]


def resample_nearest(
    region: Region,
    scale: Sequence[float],
    source_shape: Sequence[int],
    tile_rows: int,
    read: Callable[[Region], Array],
    out: Array,
) -> Array:
    """The same of a map of labels, as `PIL.Image.resize` does it: the pixel of the source in which
    the middle of a pixel lies, whatever is around it."""
    if not region.size:
        return out
    axes = zip(region.origin, region.stop, scale, source_shape, strict=True)
    rows, *across = (_nearest(*axis) for axis in axes)
    start, stop = [int(at[0]) for at in across], [int(at[-1]) + 1 for at in across]
    picked = np.ix_(*(at - first for at, first in zip(across, start, strict=True)))
    line = max(1, math.prod(b - a for a, b in zip(start, stop, strict=True)) * out.dtype.itemsize)
    step = max(1, int(max(tile_rows, _BAND_BYTES // line) / max(scale[0], 1)))
    for begin in range(0, len(rows), step):
        at = rows[begin : begin + step]
        band = read(Region.between((int(at[0]), *start), (int(at[-1]) + 1, *stop)))
        for place, row in enumerate(at - at[0], begin):
            out[place] = band[row][picked]
    return out


def _nearest(begin: int, end: int, scale: float, length: int) -> npt.NDArray[np.intp]:
    """Source pixels in which the middles of the output pixels [begin, end) lie."""
    middle = _snap((np.arange(begin, end, dtype=np.float64) + 0.5) * np.float64(scale))
    return np.clip(np.floor(middle).astype(np.intp), 0, length - 1)


def source_region(
    region: Region,
    scale: Sequence[float],
    source_shape: Sequence[int],
    offset: Sequence[float] | None = None,
) -> Region:
    """The pixels of the source that a region, which is not empty, is made of."""
    shift = offset or (0.0,) * len(scale)
    axes = zip(region.origin, region.stop, scale, source_shape, shift, strict=True)
    taps = [axis_taps(*axis) for axis in axes]
    return Region.between([t.start for t in taps], [t.stop for t in taps])


def check_resampled(name: str, extent: Sequence[int]) -> None:
    """Refuse sides so long that the weights of their pixels alone would fill memory."""
    if max(extent) > LONGEST:
        raise GeometryError(
            f"{name} has {tuple(extent)} pixels; images of more than {LONGEST} pixels a side are "
            "not resampled, read them at a level of their own"
        )


def area_means(view: ImageView, shape: Sequence[int]) -> Array:
    """A whole image averaged over areas to a spatial `shape`, slab by slab, so that memory does not
    grow with it; of the view's type for uint8, otherwise float32."""
    extent = view.spatial_shape
    check_resampled(view.name, extent)
    shape = tuple(min(n, e) for n, e in zip(shape, extent, strict=True))
    scale = [e / n for e, n in zip(extent, shape, strict=True)]
    kind = np.uint8 if view.dtype == np.uint8 else np.float32
    out = np.empty((*shape, *view.channel_shape), kind)
    return resample_region(Region.of(shape), scale, extent, 1, view.read, out)


def _split(begin: int, end: int, scale: float, length: int, whole: bool) -> list[tuple[int, int]]:
    """Cut off the pixels that reach over the end of the source: with whole steps the others are
    computed in integers, and which way a pixel is computed must depend on its position only."""
    if not whole:
        return [(begin, end)]
    middle = min(max(begin, length // round(scale)), end)
    return [part for part in ((begin, middle), (middle, end)) if part[0] < part[1]]


def _whole(scale: float) -> bool:
    return scale >= 1 and abs(scale - round(scale)) < 1e-9


class _Band:
    """The source along its first axis, read once although bands of output share some."""

    def __init__(self, read: Callable[[Region], Array], whole: Region, tile: int) -> None:
        self.whole = whole
        self._read, self._tile = read, max(1, tile)
        self._start = self._stop = 0
        self._kept: Array | None = None

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop); asked for in ascending order."""
        if self._kept is not None and start >= self._start and stop <= self._stop:
            return self._kept[start - self._start : stop - self._start]
        have = self._kept is not None and self._start <= start < self._stop
        begin = self._stop if have else start
        # to the end of the row of tiles: its rest is needed by the next band
        limit = min(self.whole.stop[0], -(-stop // self._tile) * self._tile)
        if limit - stop > 4 * (stop - start) + 64:
            limit = stop
        across = self.whole.origin[1:], self.whole.shape[1:]
        fresh = self._read(Region((begin, *across[0]), (limit - begin, *across[1])))
        if have:
            assert self._kept is not None
            keep = self._kept[start - self._start :]
            joined = empty((len(keep) + len(fresh), *fresh.shape[1:]), fresh.dtype)
            joined[: len(keep)] = keep
            joined[len(keep) :] = fresh
            fresh = joined
        self._kept, self._start, self._stop = fresh, start, limit
        return fresh[: stop - start]


def _reduce(source: Array, taps: Sequence[Taps], out: Array) -> None:
    """One band: axis by axis, a few output rows at a time."""
    steps = [axis.step for axis in taps]
    whole = all(steps) and source.dtype in (np.uint8, np.uint16) and out.dtype == source.dtype
    # what is worked on stays in the processor's cache
    rows = max(1, _CACHED // max(1, math.prod(source.shape[1:]) * max(1, steps[0])))
    for begin in range(0, len(out), rows):
        end = min(begin + rows, len(out))
        if whole:
            _reduce_whole(source[begin * steps[0] : end * steps[0]], steps, out[begin:end])
        else:
            _reduce_weighted(source, taps, begin, end, out[begin:end])


def _reduce_whole(source: Array, steps: Sequence[int], out: Array) -> None:
    """Whole steps with equal weights: exact integer sums."""
    area = math.prod(steps)
    narrow = source.dtype == np.uint8 and area * 255 < 2**16
    wide: Array = source.astype(np.uint16 if narrow else np.uint64)
    total = _sums(wide, 0, steps[0])
    kind = np.float32 if narrow else np.float64
    # channel by channel: loops over three interleaved values are slow
    for channel in range(out.shape[-1]):
        plane: Array = total[..., channel]
        for axis, step in enumerate(steps[1:], start=1):
            plane = _sums(plane, axis, step)
        mean = np.true_divide(plane, kind(area), dtype=kind)
        out[..., channel] = np.rint(mean, out=mean)


def _sums(values: Array, axis: int, step: int) -> Array:
    """Sums of so many neighbours along an axis."""
    along = (slice(None),) * axis
    parts = [values[(*along, slice(tap, None, step))] for tap in range(step)]
    if step == 1:
        return parts[0]
    total: Array = np.add(parts[0], parts[1])
    for part in parts[2:]:
        total += part
    return total


@np.errstate(invalid="ignore", over="ignore")  # of values that are infinite
def _reduce_weighted(source: Array, taps: Sequence[Taps], begin: int, end: int, out: Array) -> None:
    """Any steps: weighted sums, tap by tap so that the order of additions is fixed."""
    index = taps[0].index[begin:end]
    low, high = int(index.min()), int(index.max()) + 1
    rows = source[low:high].astype(np.float32).reshape(high - low, -1)
    values = np.zeros((end - begin, rows.shape[1]), np.float32)
    for tap in range(index.shape[1]):
        values += rows.take(index[:, tap] - low, axis=0) * taps[0].weight[begin:end, tap, None]
    lead, behind = end - begin, source.shape[1:]
    for axis in taps[1:]:
        extent, behind = behind[0], behind[1:]
        width = math.prod(behind)
        lines = values.reshape(lead, extent, width)
        values = np.zeros((lead, len(axis.index) * width), np.float32)
        taken = np.empty((lead, len(axis.index), width), np.float32)
        flat = taken.reshape(lead, -1)
        for tap in range(axis.index.shape[1]):
            lines.take(axis.index[:, tap], axis=1, out=taken, mode="clip")
            flat *= np.repeat(axis.weight[:, tap], width)
            values += flat
        lead *= len(axis.index)
    if out.dtype.kind in "ui":
        np.rint(values, out=values)
        limits = np.iinfo(out.dtype)
        np.clip(values, limits.min, limits.max, out=values)
    out[...] = values.reshape(out.shape)
