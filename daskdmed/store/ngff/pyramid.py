"""Coarser levels of an image, each built block by block from the one before.

Memory holds one block per thread, whatever the size of the image. A pixel of a coarser
level covers `factor` pixels along each axis; at the far border it covers those that are
there.

Not covered: how pixels become one (`daskdmed.store.ngff.reduction`), levels that a slide has
already (`daskdmed.store.export.slides`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.abc.store import Store

from daskdmed.core.errors import StoreError, UsageError
from daskdmed.core.files import write_failure
from daskdmed.core.region import Region
from daskdmed.core.types import Array, PathLike
from daskdmed.core.work import run_all
from daskdmed.images.ngff.metadata import (
    PALETTE,
    Axis,
    Channel,
    LevelPlace,
    hex_color,
    holds_classes,
    version_of,
)
from daskdmed.store.location import Location
from daskdmed.store.ngff.levels import create_level, stored_image, write_units
from daskdmed.store.ngff.reduction import METHODS, Method, reduce_block
from daskdmed.store.results.donemap import DONE, progress_of

if TYPE_CHECKING:
    from distributed import Client

#: levels are added until the longest spatial axis has at most this many pixels
SMALLEST_LEVEL = 256
#: chunk of a coarser level along each spatial axis, unless the finest has a larger one
_CHUNK = 256
#: no image needs more
_MAX_LEVELS = 32


def level_factors(extents: Sequence[int], factor: int, smallest: int) -> list[int]:
    """Factors, relative to the finest level with these extents of space, of the levels to be built
    ([2, 4, 8]...) until no axis is longer than `smallest`."""
    found: list[int] = []
    total = 1
    while max(-(-n // total) for n in extents) > smallest and len(found) < _MAX_LEVELS:
        total *= factor
        found.append(total)
    return found


@dataclass(frozen=True)
class ReduceTask:
    """Computes one write unit of a coarser level from the finer one. Picklable, for clusters."""

    source: Any
    target: Any
    factors: tuple[int, ...]
    method: Method

    def __call__(self, unit: Region) -> None:
        box = unit.times(self.factors).clip(self.source.shape)
        values = reduce_block(self.source[box.slices], self.factors, self.method)
        self.target[unit.slices] = values


def value_range(
    array: Any, channel: int | None, client: Client | None = None
) -> list[tuple[float, float]]:
    """Smallest and largest finite value per channel, the position of whose axis is given."""
    count = 1 if channel is None else array.shape[channel]
    low, high = np.full(count, np.inf), np.full(count, -np.inf)

    def merge(unit: Region, found: tuple[Array, Array]) -> None:
        rows = slice(None) if channel is None else unit.slices[channel]
        low[rows] = np.minimum(low[rows], found[0])
        high[rows] = np.maximum(high[rows], found[1])

    run_all("range", write_units(array), _RangeTask(array, channel), merge, client=client)
    return [(float(a), float(b)) if a <= b else (0.0, 1.0) for a, b in zip(low, high, strict=True)]


@dataclass(frozen=True)
class _RangeTask:
    array: Any
    channel: int | None

    def __call__(self, unit: Region) -> tuple[Array, Array]:
        values = np.asarray(self.array[unit.slices])
        others = tuple(axis for axis in range(values.ndim) if axis != self.channel)
        if values.dtype.kind != "f":
            return values.min(others), values.max(others)
        known = np.isfinite(values)
        low, high = (np.where(known, values, end) for end in (np.inf, -np.inf))
        return low.min(others), high.max(others)


def make_channels(
    count: int,
    windows: Sequence[tuple[float, float]],
    names: Sequence[str] | None,
    colors: Sequence[str] | None,
) -> list[Channel]:
    for word, given in (("channels", names), ("colors", colors)):
        if given is not None and len(given) != count:
            raise UsageError(
                f"{word} must have one entry per channel ({count}), got {list(given)!r}"
            )
    palette = ["FFFFFF"] if count == 1 else [PALETTE[i % len(PALETTE)] for i in range(count)]
    shown = palette if colors is None else map(hex_color, colors)
    labels = map(str, range(count)) if names is None else names
    limits = [(float(low), float(high)) for low, high in windows]
    return [Channel(*one) for one in zip(labels, shown, limits, limits, strict=True)]


def build_levels(
    group: zarr.Group,
    source: Any,
    totals: Sequence[int],
    axes: Sequence[Axis],
    method: Method,
    names: Sequence[str],
    client: Client | None = None,
) -> None:
    """Write coarser levels of an array into a group, each from the one before; arrays of the same
    names are replaced. `totals` are factors relative to `source` along its axes of space."""
    before = 1
    for total, name in zip(totals, names, strict=True):
        step = _per_axis(total // before, axes)
        shape = tuple(-(-n // f) for n, f in zip(source.shape, step, strict=True))
        chunks = tuple(
            min(n, max(c, _CHUNK) if a.type == "space" else c)
            for n, c, a in zip(shape, source.chunks, axes, strict=True)
        )
        target = create_level(
            group,
            name,
            shape=shape,
            chunks=chunks,
            dtype=source.dtype.str if source.dtype.kind != "b" else "bool",
            fill_value=source.fill_value,
            axes=[a.name for a in axes],
            overwrite=True,
        )
        reduce = ReduceTask(source, target, step, method)
        run_all("pyramid", write_units(target), reduce, client=client)
        source, before = target, total


def _per_axis(factor: int, axes: Sequence[Axis]) -> tuple[int, ...]:
    """Axes of space are reduced, and no others."""
    return tuple(factor if axis.type == "space" else 1 for axis in axes)


def _following(path: str, number: int) -> str:
    return str(int(path) + number) if path.isdecimal() else f"{path}_{number}"


def add_pyramid(
    store: PathLike | Store,
    *,
    method: Method | None = None,
    factor: int = 2,
    smallest: int = SMALLEST_LEVEL,
    channels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    window: tuple[float, float] | None = None,
    client: Client | None = None,
) -> int:
    """Give a stored image coarser levels, and say how viewers show its channels.

    The levels are built block by block, each from the one before, and named by the metadata
    only when all are there; a call that was interrupted is simply made again.

    Parameters
    ----------
    store : path, URL or zarr store
        What `daskdmed.heatmap` wrote, or another OME-Zarr image. Levels beside its finest
        one are replaced.
    method : {"mean", "nearest", "mode"}, optional
        The mean leaves out NaN. Default: "mode" for the classes that `daskdmed.predict` wrote
        (post "argmax" and "threshold"), else "mean".
    factor : int
        Between levels, along each axis of space.
    smallest : int
        Levels are added until no axis of space is longer.
    channels : sequence of str, optional
        Names, one per channel; default those that the image gives, else numbers.
    colors : sequence of str, optional
        Six hexadecimal digits per channel; default likewise, else a palette.
    window : (float, float), optional
        Values shown darkest and brightest; default the smallest and largest of each channel.
    client : distributed.Client, optional
        Compute on a cluster.

    Returns
    -------
    int
        Number of levels, the finest included.

    Raises
    ------
    StoreError
        There is no OME-Zarr image, it is not finished, or it cannot be written.
    UsageError
        Arguments that do not fit.

    Examples
    --------
    >>> daskdmed.heatmap(slide, model, kernel_size=64, out="a.zarr")  # doctest: +SKIP
    >>> daskdmed.store.add_pyramid("a.zarr", channels=["tumour"])  # doctest: +SKIP
    """
    _check_arguments(method, factor, smallest, window)
    location = Location.of(store).writable(client)
    group = location.open(zarr_format=None)
    image = stored_image(location, group)
    finest = image.levels[0]
    _check_finished(location, group)
    array: Any = group[finest.path]
    method = method or _usual_method(group)
    extents = [n for n, axis in zip(array.shape, image.axes, strict=True) if axis.type == "space"]
    count = 1 if image.channel is None else array.shape[image.channel]
    windows = [window] * count if window is not None else value_range(array, image.channel, client)
    if len(image.channels) == count:
        labels, digits = ([getattr(c, n) for c in image.channels] for n in ("label", "digits"))
        channels = channels or (labels if all(labels) else None)
        colors = colors or (digits if all(digits) else None)
    shown = tuple(make_channels(count, windows, channels, colors))

    def describe(levels: Sequence[LevelPlace]) -> None:
        new = replace(
            image, levels=tuple(levels), method=method, channels=shown, version=version_of(group)
        )
        group.attrs.update(new.attributes(group.attrs.asdict()))

    levels = [finest]
    try:
        if len(image.levels) > 1:
            describe(levels)  # what is replaced is not shown while it is
        totals = level_factors(extents, factor, smallest)
        names = [_following(finest.path, number) for number in range(1, len(totals) + 1)]
        build_levels(group, array, totals, image.axes, method, names, client)
        for name, total in zip(names, totals, strict=True):
            levels.append(finest.coarser(name, _per_axis(total, image.axes)))
        describe(levels)
    except OSError as error:
        raise write_failure(f"the pyramid of {location}", error, "call again to go on") from error
    return len(levels)


def _usual_method(group: zarr.Group) -> Method:
    own: Any = group.attrs.get("daskdmed")
    return "mode" if holds_classes(own if isinstance(own, dict) else None) else "mean"


def _check_arguments(
    method: str | None, factor: int, smallest: int, window: tuple[float, float] | None
) -> None:
    if method not in (None, *METHODS):
        raise UsageError(f"method must be one of {METHODS}, got {method!r}")
    if int(factor) != factor or factor < 2:
        raise UsageError(f"factor must be a whole number >= 2, got {factor!r}")
    if int(smallest) != smallest or smallest < 1:
        raise UsageError(f"smallest must be a whole number >= 1, got {smallest!r}")
    if window is None:
        return
    low, high = window
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"window must be two finite rising numbers, got {window!r}")


def _check_finished(location: Location, group: zarr.Group) -> None:
    if "daskdmed" in group.attrs and DONE in group:
        done, total = progress_of(group)
        if done < total:
            raise StoreError(
                f"{location}: {done} of {total} blocks are done; finish "
                "the run first (resume=True), so that coarse levels show all of it"
            )
