"""A result to be shown or exported: its values, read part by part, and where they lie.

Not covered: writing results (`daskdmed.store.results.resumable`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from dask.blockwise import Blockwise
from zarr.abc.store import Store

from daskdmed.core.errors import GeometryError, StoreError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, PathLike
from daskdmed.images.ngff.metadata import MALFORMED, Multiscale
from daskdmed.store.location import Location, damage_named
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.resumable import lazy_array


@dataclass(frozen=True)
class Heatmap:
    """Values of windows (*space) or (k, *space), and their place. Made by `open_heatmap`.

    `shape0` is the level-0 extent of the image, (y, x), when it is known: cells end there. `edge`
    says how windows lie at the far border, see `daskdmed.heatmap`.
    """

    array: Any
    georeference: Georeference
    has_channels: bool
    shape0: tuple[float, ...] | None = None
    name: str = ""
    channel_names: tuple[str, ...] = field(default=())
    edge: str = "pad"

    @property
    def channels(self) -> int:
        """Number of values per window."""
        return int(self.array.shape[0]) if self.has_channels else 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Windows per axis of space."""
        return tuple(int(n) for n in self.array.shape[1 if self.has_channels else 0 :])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        found: np.dtype[Any] = np.dtype(self.array.dtype)
        return found

    def __repr__(self) -> str:
        each = f"{self.channels} x " if self.has_channels else ""
        named = f" of {self.name}" if self.name else ""
        return f"<Heatmap{named}: {each}{' x '.join(map(str, self.counts))} windows, {self.dtype}>"

    def _repr_html_(self) -> str:
        from daskdmed.store.results.html import heatmap_html

        return heatmap_html(self)

    def read(self, region: Region) -> Array:
        """Values of a box of windows, (k, *region.shape)."""
        lead = (slice(None),) if self.has_channels else ()
        named = isinstance(self.array, zarr.Array)
        with damage_named(self.array.store_path) if named else nullcontext():
            part = self.array[(*lead, *region.slices)]
        if isinstance(part, da.Array):
            part = part.compute(scheduler=dask.get)
        values = np.asarray(part)
        return values if self.has_channels else values[None]

    def lazy(self) -> da.Array:
        """As a Dask array."""
        if isinstance(self.array, da.Array):
            return self.array
        if isinstance(self.array, np.ndarray):
            return da.from_array(self.array, chunks=-1)
        return lazy_array(self.array)

    def plane(self) -> Heatmap:
        """Itself, checked to be flat."""
        if len(self.counts) != 2:
            raise GeometryError(
                f"this is for results over (y, x), got {len(self.counts)} axes of space of shape "
                f"{self.counts}; choose a plane first"
            )
        return self

    def pick(self, channel: int | None) -> Heatmap:
        """One channel; which one must be said where there are several."""
        if channel is None:
            if self.channels > 1:
                raise UsageError(
                    f"the heatmap has {self.channels} values per window; say which with channel="
                )
            channel = 0
        if not -self.channels <= channel < self.channels:
            values = "one value" if self.channels == 1 else f"{self.channels} values"
            raise UsageError(f"channel={channel}, but the heatmap has {values} per window")
        if not self.has_channels:
            return self
        names = (self.channel_names[channel],) if self.channel_names else ()
        return replace(self, array=self.lazy()[channel], has_channels=False, channel_names=names)

    def spans(self, axis: int, extent: str = "window") -> Array:
        """Where windows begin and end along an axis of space, (count, 2), in level-0 pixels: the
        "window", or the "cell" one stride wide around its centre. Both end at the slide's border,
        where it is known."""
        place = self.georeference
        kernel, stride, down = (
            v[axis] for v in (place.kernel_size, place.stride, place.downsample)
        )
        first: Array = np.arange(self.counts[axis]) * float(stride)
        limit = None if self.shape0 is None else self.shape0[axis]
        if self.edge == "shift" and limit is not None:
            first = np.minimum(first, max(limit / down - kernel, 0))
        length = float(kernel)
        if extent == "cell":
            first, length = first + (kernel - stride) / 2, float(stride)
        spans = np.stack([first, first + length], 1) * down
        return spans if limit is None else np.clip(spans, 0, limit)

    def bands(self, rows: int) -> Iterator[tuple[Region, Array]]:
        """The values as bands of `rows` rows of a plane, (k, rows, columns) each."""
        height, width = self.counts
        for top in range(0, height, rows):
            region = Region((top, 0), (min(rows, height - top), width))
            yield region, self.read(region)


def open_heatmap(
    heatmap: Heatmap | PathLike | Store | zarr.Group | da.Array | Array,
    georeference: Georeference | None = None,
) -> Heatmap:
    """Values and place of a result, without reading the values.

    Parameters
    ----------
    heatmap : path, URL, zarr store or group, dask.array.Array, ndarray or Heatmap
        What `daskdmed.heatmap` wrote or returned; these know where they lie. (rows, columns)
        or (k, rows, columns).
    georeference : Georeference, optional
        The place of an array without one of its own; goes before its own.

    Raises
    ------
    StoreError
        There is no result, or it is damaged.
    UsageError
        An array whose place nobody knows, or that does not fit it.
    """
    if isinstance(heatmap, Heatmap):
        return heatmap
    array, group = values_of(heatmap)
    with nullcontext() if group is None else damage_named(heatmap):
        place = georeference or place_of(group)
        if place is not None:
            return described(array, group, place)
    if group is not None:
        raise StoreError(f"{heatmap} is no result of this library; give its georeference=")
    raise UsageError(
        "nobody knows where this array lies on its slide; give "
        "georeference=Georeference(kernel_size, stride, downsample, mpp), or the store"
    )


def placed_over(
    heatmap: Any, extent0: tuple[float, ...], given: Georeference | None = None
) -> Heatmap:
    """A result where it lies, or where it is said to, and its label images where it lies; any other
    array evenly over an image of this level-0 extent, (y, x)."""
    if isinstance(heatmap, Heatmap):
        return heatmap
    array, group = values_of(heatmap)
    place = given or place_of(group) or _place_of_home(heatmap, array.shape)
    if place is None:
        down = [extent / max(n, 1) for extent, n in zip(extent0, array.shape[-2:], strict=False)]
        place = Georeference((1, 1), (1, 1), (down[0], down[-1]))
    return described(array, group, place)


def _place_of_home(labels: Any, shape: tuple[int, ...]) -> Georeference | None:
    """Of a label image, which lies in the store of a result: where that lies, if cells are its."""
    if not isinstance(labels, (str, os.PathLike)):
        return None
    home, found, _ = os.fspath(labels).rpartition("/labels/")
    if not found:
        return None
    array, group = values_of(home)
    return place_of(group) if array.shape[-2:] == shape[-2:] else None


def levels_of(heatmap: Any) -> list[da.Array]:
    """Coarser levels of an image in a store, as `daskdmed.store.add_pyramid` adds; arrays that were
    made of a result have none."""
    if isinstance(heatmap, (Heatmap, da.Array, np.ndarray, zarr.Array)):
        return []
    _, group = values_of(heatmap)
    image = None if group is None else Multiscale.parse(group.attrs.asdict())
    if group is None or image is None:
        return []
    with damage_named(heatmap):
        return [lazy_array(_array(group, level.path)) for level in image.levels[1:]]


def values_of(heatmap: Any) -> tuple[Any, zarr.Group | None]:
    """The array of a result or of another image, not read, and its group where it has one."""
    if isinstance(heatmap, da.Array):
        return heatmap, group_of(heatmap)
    if isinstance(heatmap, (np.ndarray, zarr.Array)):
        return heatmap, None
    if isinstance(heatmap, zarr.Group):
        group = heatmap
    elif isinstance(heatmap, (str, os.PathLike, Store)):
        group = Location.of(heatmap).open("r", zarr_format=None)
    else:
        raise UsageError(
            f"heatmap must be a path, a zarr store or an array, got {type(heatmap).__name__}"
        )
    own: Any = group.attrs.get("daskdmed")
    if isinstance(own, dict) and "path" in own:
        with damage_named(heatmap):
            return _array(group, str(own["path"])), group
    try:
        image = Multiscale.parse(group.attrs.asdict())
        if image is not None:
            with damage_named(heatmap):
                return _array(group, image.levels[0].path), group
        reason = "it has no 'multiscales'"
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
    raise StoreError(f"{heatmap} is no result of this library and no OME-Zarr image ({reason})")


def _array(group: zarr.Group, path: str) -> Any:
    """An array of a group."""
    found: Any = group[path]
    if not isinstance(found, zarr.Array):
        raise StoreError(f"{path!r} is no array")
    return found


def place_of(group: zarr.Group | None) -> Georeference | None:
    """The place that this library wrote into a group, None in any other."""
    own: Any = None if group is None else group.attrs.get("daskdmed")
    known = isinstance(own, dict) and "georeference" in own
    return Georeference.from_json(own["georeference"]) if known else None


def group_of(array: da.Array) -> zarr.Group | None:
    """The Zarr group of a Dask array that `daskdmed.heatmap` returned, None for another. Arithmetic
    on such a result, and one of its k values, keep the group; a part of its rows or columns has
    none, because it lies elsewhere."""
    for value in dict(array.__dask_graph__()).values():
        source = getattr(value, "value", value)
        if not isinstance(source, zarr.Array) or source.shape[-2:] != array.shape[-2:]:
            continue
        parent = source.store_path.path.rpartition("/")[0]
        group = zarr.open_group(source.store_path.store, path=parent, mode="r")
        if place_of(group) is not None:
            return group
    return None


def keeps_cells(array: da.Array) -> bool:
    """Whether every cell of a Dask array over a stored result is where it was in that: itself, or
    made of it cell by cell. Not what was cut, turned or reduced, even if its shape is the same."""
    for layer in array.__dask_graph__().layers.values():
        if not isinstance(layer, Blockwise):
            if not all(isinstance(getattr(v, "value", v), zarr.Array) for v in layer.values()):
                return False
            continue
        axes = [tuple(i) for _, i in layer.indices if i is not None]
        if any(i != tuple(layer.output_indices) for i in axes if len(i) > 1):
            return False
    return True


def described(array: Any, group: zarr.Group | None, place: Georeference) -> Heatmap:
    """An array that lies at a place, with what its group tells about it."""
    own: Any = {} if group is None else group.attrs.get("daskdmed", {})
    space = len(place.stride)
    if array.ndim not in (space, space + 1):
        wanted = (
            "(rows, columns) or (k, rows, columns)" if space == 2 else "(*space) or (k, *space)"
        )
        raise GeometryError(
            f"an array of shape {array.shape} is no result over {space} axes of space, {wanted}"
        )
    shape = own.get("parameters", {}).get("shape")
    shape0 = None
    if isinstance(shape, Sequence) and len(shape) >= space:
        shape0 = tuple(n * d for n, d in zip(shape[:space], place.downsample, strict=True))
    has_channels = array.ndim > space
    names: tuple[str, ...] = ()
    image = None if group is None else Multiscale.parse(group.attrs.asdict())
    labels = (
        ()
        if image is None
        else tuple(channel.label or str(i) for i, channel in enumerate(image.channels))
    )
    if has_channels:
        count = array.shape[0]
        names = labels if len(labels) == count else tuple(map(str, range(count)))
    elif len(labels) == 1:
        names = labels
    edge = str(own.get("parameters", {}).get("edge", "pad"))
    return Heatmap(array, place, has_channels, shape0, str(own.get("image", "")), names, edge)
