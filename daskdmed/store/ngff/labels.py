"""Label images beside an image: classes, masks, regions, with colours and names.

A label image lies in the group ``labels`` of its image, covers the same pixels, and has as
many levels, as OME-Zarr wants it. Coarser levels hold the most frequent label.

Not covered: shapes instead of pixels (`daskdmed.store.export.geojson`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import zarr
from zarr.abc.store import Store

from daskdmed.core.errors import GeometryError, StoreError, UsageError
from daskdmed.core.files import write_failure
from daskdmed.core.region import Region
from daskdmed.core.types import Array, PathLike
from daskdmed.core.work import run_all
from daskdmed.images.ngff.metadata import (
    PALETTE,
    Axis,
    ImageLabel,
    LevelPlace,
    Multiscale,
    hex_color,
    ome_attributes,
    ome_of,
    rgb,
    version_of,
)
from daskdmed.store.location import Location
from daskdmed.store.ngff.levels import create_level, stored_image, write_units
from daskdmed.store.ngff.pyramid import build_levels
from daskdmed.store.results.finished import Heatmap, open_heatmap

if TYPE_CHECKING:
    from distributed import Client

#: name of the group, fixed by the format
_HOME = "labels"
#: a colour per label is written for at most so many of them
_MOST_COLORS = 4096
_SMALLEST_CHUNK = 256


def argmax_labels(
    heatmap: Heatmap | PathLike | da.Array | Array, *, threshold: float | None = None
) -> da.Array:
    """Classes of a result: 1 + the channel with the largest value, 0 where there is none.

    Parameters
    ----------
    heatmap : path, zarr store, array or Heatmap
        (k, rows, columns), or (rows, columns) with a `threshold`. The channel comes first.
    threshold : float, optional
        A pixel whose largest value is below is 0. With one channel it is needed.

    Returns
    -------
    dask.array.Array
        uint8 (uint16 from 255 channels on), lazy, without the channel axis. Pixels that were
        not computed (all values NaN) are 0.

    Raises
    ------
    UsageError
        One channel without a threshold.
    """
    values = open_heatmap(heatmap)
    array: Any = values.lazy()
    if values.channels == 1:
        if threshold is None:
            raise UsageError("a result with one value per window needs a threshold to have classes")
        array = array if values.has_channels else array[None]
    dtype = np.dtype(np.uint8 if array.shape[0] < 255 else np.uint16)
    array = array.rechunk({0: -1})
    return da.map_blocks(
        _argmax,
        array,
        drop_axis=0,
        dtype=dtype,
        threshold=threshold,
        meta=np.empty((0,) * 0, dtype),
    )


def _argmax(block: Array, threshold: float | None) -> Array:
    dtype = np.uint8 if len(block) < 255 else np.uint16
    filled = np.where(np.isnan(block), -np.inf, block) if block.dtype.kind == "f" else block
    best = filled.argmax(axis=0)
    top = np.take_along_axis(filled, best[None], 0)[0]
    known = ~np.isnan(block).all(axis=0) if block.dtype.kind == "f" else np.ones(top.shape, bool)
    if threshold is not None:
        known &= top >= threshold
    return np.where(known, best + 1, 0).astype(dtype)


def write_labels(
    store: PathLike | Store,
    labels: da.Array | Array | Any,
    *,
    name: str = "classes",
    classes: Sequence[str] | Mapping[int, str] | None = None,
    colors: Sequence[str] | Mapping[int, str] | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> None:
    """Write a label image into the group of its image.

    Parameters
    ----------
    store : path, URL or zarr store
        An OME-Zarr image: a result of `daskdmed.heatmap`, a converted slide...
    labels : dask.array.Array, zarr.Array or ndarray of int or bool
        One label per pixel of the image's finest level, without the channel axis; 0 is
        background. Read block by block.
    name : str
        Of the label image.
    classes : sequence or mapping of int to str, optional
        Names; a sequence names the labels 1, 2, 3...
    colors : sequence or mapping of int to str, optional
        Six hexadecimal digits per label, likewise. Default: a palette for the labels 1 to
        the largest one, or as many as have names.
    overwrite : bool
        Replace a label image of that name; readers see the old one until then.
    client : distributed.Client, optional
        Compute on a cluster; `labels` must be something that its workers can read.

    Raises
    ------
    StoreError
        No image is there, or the labels are and `overwrite` is not set, or writing failed.
    GeometryError
        The labels are not as many pixels as the image.
    UsageError
        No integers, or a wrong name or colour.

    Examples
    --------
    >>> classes = argmax_labels("a.zarr")  # doctest: +SKIP
    >>> write_labels("a.zarr", classes, classes=["benign", "tumour"])  # doctest: +SKIP
    """
    if not name or name.startswith(".") or "/" in name:
        raise UsageError(f"name must be one word without slashes, got {name!r}")
    _shown(classes, colors, 0)  # wrong ones are refused before anything is written
    location = Location.of(store).writable(client)
    group = location.open(zarr_format=None)
    image = stored_image(location, group)
    finest: Any = group[image.levels[0].path]
    spatial = [i for i, axis in enumerate(image.axes) if axis.type != "channel"]
    shape, dtype = tuple(labels.shape), np.dtype(labels.dtype)
    expected = tuple(finest.shape[i] for i in spatial)
    if shape != expected:
        raise GeometryError(
            f"labels have shape {shape}, the image in {location} is {expected} without channels"
        )
    if dtype.kind not in "uib":
        raise UsageError(f"labels are integers or bool, got {dtype}")
    dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    home = group.require_group(_HOME)
    announced = name in ome_of(home.attrs.asdict()).get("labels", [])
    if announced and not overwrite:
        raise StoreError(
            f"{location} has labels {name!r} already; overwrite=True replaces them, or give "
            "another name"
        )
    job = _LabelJob(
        axes=tuple(image.axes[i] for i in spatial),
        places=[_spatial(place, spatial) for place in image.levels],
        chunks=tuple(_chunk(finest, i) for i in spatial),
        shards=tuple(finest.shards[i] for i in spatial) if finest.shards else None,
        dtype=dtype,
        version=version_of(group),
        name=name,
    )
    target = None  # a store object has no places inside
    if isinstance(location.target, str):
        target = Location(f"{location.target.rstrip('/')}/{_HOME}/{name}")
    place = target.staging if target is not None and announced else target
    try:
        if place is not None:
            place.remove()
            made = zarr.create_group(place.target, zarr_format=group.metadata.zarr_format)
        else:
            made = home.create_group(name, overwrite=True)
        places, largest = job.write(made, labels, client)
        job.describe(made, places, ImageLabel(*_shown(classes, colors, largest)))
        if place is not None and target is not None:
            target.replace(place)
        job.announce(home)
    except OSError as error:
        raise write_failure(f"labels {name!r} of {location}", error, "call again") from error


@dataclass(frozen=True)
class _LabelJob:
    """What a label image shares with its image, and its name."""

    axes: tuple[Axis, ...]
    places: list[LevelPlace]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]
    version: str
    name: str

    def write(
        self, group: zarr.Group, labels: Any, client: Client | None
    ) -> tuple[list[LevelPlace], int]:
        """Write all levels: where they lie, and the largest label."""
        finest = create_level(
            group,
            self.places[0].path,
            shape=labels.shape,
            chunks=self.chunks,
            shards=self.shards,
            dtype=self.dtype.str,
            fill_value=0,
            axes=[axis.name for axis in self.axes],
            overwrite=True,
        )
        largest = 0

        def note(_: Region, found: int) -> None:
            nonlocal largest
            largest = max(largest, found)

        run_all("labels", write_units(finest), _CopyLabels(labels, finest), note, client=client)
        written = [self.places[0]]
        for fine, coarse in itertools.pairwise(self.places):
            # levels of a slide may round their extents: take the nearest whole factor
            factor = round(coarse.scale[-1] / fine.scale[-1])
            if factor < 2:
                raise GeometryError(
                    f"level {coarse.path!r} of the image is not coarser than {fine.path!r} by a "
                    "whole factor; labels need such levels"
                )
            source = group[fine.path]
            build_levels(group, source, [factor], self.axes, "mode", [coarse.path], client)
            written.append(written[-1].coarser(coarse.path, (factor,) * len(self.axes)))
        return written, largest

    def describe(self, group: zarr.Group, places: list[LevelPlace], label: ImageLabel) -> None:
        """The metadata, in one write."""
        method = "mode" if len(places) > 1 else ""
        image = Multiscale(
            self.axes, tuple(places), self.name, method, label=label, version=self.version
        )
        group.attrs.put(image.attributes())

    def announce(self, home: zarr.Group) -> None:
        """Name the label image in the group of all labels, when it is complete."""
        names = [*ome_of(home.attrs.asdict()).get("labels", [])]
        if self.name not in names:
            names.append(self.name)
        extra = {} if self.version == "0.4" else {"version": self.version}
        home.attrs.update(ome_attributes({**extra, "labels": names}, self.version))


@dataclass(frozen=True)
class _CopyLabels:
    labels: Any
    target: Any

    def __call__(self, unit: Region) -> int:
        part = self.labels[unit.slices]
        if isinstance(part, da.Array):
            part = part.compute(scheduler=dask.get)
        values = np.asarray(part).astype(self.target.dtype)
        if values.size and values.min() < 0:
            raise UsageError(f"labels are 0 or larger, got {values.min()} in {unit}")
        self.target[unit.slices] = values
        return int(values.max(initial=0))


def _chunk(finest: Any, axis: int) -> int:
    """As the image's, but no crumbs: cells of a result are few."""
    chunk, extent = int(finest.chunks[axis]), int(finest.shape[axis])
    return chunk if finest.shards else min(max(chunk, _SMALLEST_CHUNK), extent)


def _spatial(place: LevelPlace, kept: Sequence[int]) -> LevelPlace:
    return LevelPlace(
        place.path, tuple(place.scale[i] for i in kept), tuple(place.translation[i] for i in kept)
    )


def _shown(
    classes: Sequence[str] | Mapping[int, str] | None,
    colors: Sequence[str] | Mapping[int, str] | None,
    largest: int,
) -> tuple[dict[int, tuple[int, int, int, int]], dict[int, str]]:
    """Colours (red, green, blue, opacity) and names by label."""
    names, given = _by_label(classes, "classes"), _by_label(colors, "colors")
    count = min(max([largest, *names]), _MOST_COLORS)
    found = {i: PALETTE[(i - 1) % len(PALETTE)] for i in range(1, count + 1)}
    found |= {label: hex_color(color) for label, color in given.items()}
    shades = {label: (*rgb(color), 255) for label, color in found.items()}
    return {0: (0, 0, 0, 0), **shades}, names


def _by_label(given: Sequence[str] | Mapping[int, str] | None, word: str) -> dict[int, str]:
    if given is None:
        return {}
    if isinstance(given, str):
        raise UsageError(f"{word} must be a list or a mapping, got the text {given!r}")
    if isinstance(given, Mapping):
        return {int(label): str(value) for label, value in given.items()}
    return {i: str(value) for i, value in enumerate(given, 1)}
