"""The records of a dataset, opened at one resolution and cut into big chunks.

This is where patients become something to draw from: every record is opened once (in
parallel), its resolution resolved, its size checked, its block grid made. No pixels are
read. Not covered: the order of visits (`daskdmed.persistence.plan`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from daskdmed.cohort.alike import REMEDY, check_alike
from daskdmed.cohort.annotations.categories import Categories
from daskdmed.cohort.annotations.undrawn import stand_in
from daskdmed.cohort.annotations.view import CollatedView, target_view
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.cohort.sources import Failure, Image, Images, open_all
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import LevelLike, MppLike, OnError
from daskdmed.core.view import ImageView
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.context import Context, ContextEdge, ContextLike
from daskdmed.images.view import SlideView
from daskdmed.images.volumes.volume import Volume
from daskdmed.persistence.blockgrid import BlockGrid
from daskdmed.persistence.plan import Population

#: pixels per axis of a big chunk with up to two axes, and with more
DEFAULT_BIGCHUNK = (4096, 256)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes that all records of a loader share, per spatial axis.

    `pad`: images smaller than a small chunk are padded. `by_places`: how images are cut, see
    `daskdmed.persistence.blockgrid`. `context`: what lies around each small chunk and is read too.
    """

    smallchunk: tuple[int, ...]
    bigchunk: tuple[int, ...]
    pad: bool = False
    by_places: bool = False
    context: Context | None = None

    @classmethod
    def of(
        cls,
        smallchunk: int | tuple[int, ...],
        bigchunk: int | tuple[int, ...] | None,
        *,
        pad: bool = False,
        by_places: bool = False,
        context: ContextLike | None = None,
        context_edge: ContextEdge = "reflect",
    ) -> Geometry:
        """From what the user gives: one number (two axes, y and x) or one per axis.

        Without a `bigchunk`: `DEFAULT_BIGCHUNK`, or a small chunk's extent where that is more.
        """
        small = _extents("smallchunk_size", smallchunk, 2)
        if bigchunk is None:
            bigchunk = tuple(max(DEFAULT_BIGCHUNK[len(small) > 2], s) for s in small)
        big = _extents("bigchunk_size", bigchunk, len(small))
        if len(big) != len(small):
            raise UsageError(
                f"bigchunk_size {big} has {len(big)} axes and smallchunk_size {small} has "
                f"{len(small)}; give one number or one per axis"
            )
        if any(b < s for b, s in zip(big, small, strict=True)):
            raise GeometryError(
                f"bigchunk_size {big} is smaller than smallchunk_size {small}; make the big "
                "chunks larger"
            )
        return cls(small, big, pad, by_places, Context.of(context, len(small), context_edge))

    @property
    def ndim(self) -> int:
        return len(self.smallchunk)


def _extents(name: str, value: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    try:
        extents = (int(value),) * ndim if np.ndim(value) == 0 else tuple(int(v) for v in value)  # type: ignore[arg-type, union-attr]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be one integer or one per axis, got {value!r}") from error
    if not extents or any(e < 1 for e in extents) or np.any(np.asarray(value) != extents):
        raise UsageError(f"{name} must be positive integers, got {value!r}")
    return extents


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Numbers of classes on the grid of an image; `ratio` pixels of the image per pixel of it."""

    view: ImageView
    ratio: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One record at its resolution, cut into big chunks.

    `record` is its name, "t1+t2" of several that are stacked; `source` is what was opened, of
    several the first; `level` is None when the resolution was given otherwise; `target_ratio` is
    in pixels of the image per pixel of the target. `around`: what is read around big chunks.
    `maps`: label maps on the image's grid, by the name of their record.
    """

    patient: Patient
    record: str
    view: ImageView
    target: ImageView | None
    grid: BlockGrid
    level: int | None
    target_ratio: tuple[int, ...]
    source: Record | Volume | ImageView
    around: Context | None = None
    maps: Mapping[str, LabelMap] = field(default_factory=dict)

    @property
    def summary(self) -> tuple[Any, ...]:
        """Whose image it is, and its shape: the same wherever the files lie."""
        target = None if self.target is None else self.target.shape
        view = self.view
        return str(self.patient.id), self.record, view.shape, str(view.dtype), target

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest big chunk, with its target."""
        largest = self.grid.largest
        read = Region.of(largest)
        read = self.view.kept(read) if self.around is None else self.around.grown(read)
        nbytes = read.size * _pixel_bytes(self.view)
        if self.target is not None:
            covered = [
                -(-e // r) + (r > 1) for e, r in zip(largest, self.target_ratio, strict=True)
            ]
            nbytes += int(np.prod(covered, dtype=np.int64)) * _pixel_bytes(self.target)
        return nbytes


def _pixel_bytes(view: ImageView) -> int:
    channels = int(np.prod(view.channel_shape, dtype=np.int64))
    return channels * view.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything a loader draws from, and what was left out under ``on_error="skip"``."""

    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    #: what was asked of them, see `Request.parameters`
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def population(self) -> Population:
        return Population(
            tuple(len(e.grid) for e in self.entries),
            tuple(str(e.patient.id) for e in self.entries),
            tuple(e.patient.labels for e in self.entries),
        )

    @property
    def block_bytes(self) -> int:
        return max(e.block_bytes for e in self.entries)

    @property
    def tile_bytes(self) -> int:
        views = [e.view for e in self.entries]
        return max(int(np.prod(v.tile_shape, dtype=np.int64)) * _pixel_bytes(v) for v in views)

    @property
    def channels(self) -> tuple[int, ...]:
        """Trailing shape behind the spatial axes, the same for all records."""
        view = self.entries[0].view
        return view.channel_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.entries[0].view.dtype


@dataclass(frozen=True, slots=True)
class Target:
    """What is cropped at the same places as the image.

    Without `level` and `mpp` it is opened as the image is. `classes`: which labels make which
    class, see `daskdmed.cohort.annotations.target_view`; `channels`: one channel per class instead
    of class numbers.
    """

    record: str
    level: LevelLike | None = None
    mpp: MppLike | None = None
    classes: Any = None
    channels: bool = False
    #: stands for the record where a patient lacks it
    empty: Record | None = None

    def view(self, image: Image, view: ImageView) -> ImageView:
        request = image.request
        if self.level is not None or self.mpp is not None:
            request = replace(
                request, level=self.level or 0, mpp=self.mpp, power=None, spacing=None
            )
            view = replace(image, request=request).view()
        request = replace(request, record=self.record, channels=None)
        own = replace(image, request=request, given=None)
        held = self.record in image.patient.records
        record = self.empty if self.empty is not None and not held else own.record
        if record.is_annotations:
            return target_view(record, view, self.classes, multichannel=self.channels)
        labelmap = own.view().as_labels()
        if self.classes is None:
            return labelmap
        return CollatedView(labelmap, Categories.of(self.classes), self.channels)


def _entry(
    image: Image, geometry: Geometry, target: Target | None, maps: Iterable[str] = ()
) -> Entry:
    """Open a patient's record (and target, and label maps) and cut it into big chunks."""
    image = replace(image, request=replace(image.request, spatial_ndim=geometry.ndim))
    view = image.view()
    labels, ratio = None, (1,) * geometry.ndim
    if target is not None:
        labels = target.view(image, view)
        ratio = _ratio(view, labels, target.record, geometry.smallchunk)
        named = (f"record {image.record_name!r}", f"target record {target.record!r}")
        check_alike(named[0], view, named[1], labels, ratio)
    return Entry(
        image.patient,
        image.record_name,
        view,
        labels,
        _grid(view, geometry),
        image.resolution.level,
        ratio,
        _source(image),
        geometry.context,
        {name: _label_map(image, view, name) for name in maps if _is_map(image.patient, name)},
    )


def _is_map(patient: Patient, name: str) -> bool:
    return name in patient.records and not patient.records[name].is_annotations


def _label_map(image: Image, view: ImageView, name: str) -> LabelMap:
    labels = Target(name).view(image, view)
    ratio = _ratio(view, labels, name, (0,) * view.spatial_ndim)
    check_alike(f"record {image.record_name!r}", view, f"label map {name!r}", labels, ratio)
    if labels.dtype.kind not in "iub" or labels.channel_shape not in ((), (1,)):
        raise UsageError(
            f"record {name!r} holds no annotations, nor is it a label map, in which each pixel has "
            f"the number of its class: it is {labels.dtype} of shape {labels.shape}"
        )
    return LabelMap(labels, ratio)


def _source(image: Image) -> Record | Volume | ImageView:
    """The record; of a volume that the user had open, of which no record says all, that one."""
    given = image.given
    if isinstance(given, (Volume, ImageView)) and not isinstance(given, (SlideView, ArrayView)):
        return given
    return image.record


def _grid(view: ImageView, geometry: Geometry) -> BlockGrid:
    shape = view.spatial_shape
    small = geometry.smallchunk
    if any(s < m for s, m in zip(shape, small, strict=True)):
        if not geometry.pad:
            raise GeometryError(
                f"the image has {shape} pixels at this resolution, fewer than smallchunk_size "
                f"{small}; make small chunks smaller, leave the image out, or pass pad=True "
                "to surround it with background"
            )
        around = () if geometry.context is None else geometry.context.around
        if any(k and s < m for k, s, m in zip(around, shape, small, strict=False)):
            raise GeometryError(
                f"the image has {shape} pixels, fewer than smallchunk_size {small} along an axis "
                f"with context={around}: what lies beside its last slice would be padding"
            )
        shape = tuple(max(s, m) for s, m in zip(shape, small, strict=True))
    tiles = view.tile_shape
    return BlockGrid.of(shape, geometry.bigchunk, tiles, small, by_places=geometry.by_places)


def _ratio(
    view: ImageView, target: ImageView, name: str, smallchunk: tuple[int, ...]
) -> tuple[int, ...]:
    """Pixels of the image per pixel of its target, whole numbers."""
    shape, own = view.spatial_shape, target.spatial_shape
    if len(own) != len(shape):
        raise GeometryError(
            f"target record {name!r} has {len(own)} spatial axes and the image {len(shape)}"
        )
    ratio = tuple(max(1, round(s / t)) for s, t in zip(shape, own, strict=True))
    for size, extent, r in zip(shape, own, ratio, strict=True):
        # the last pixel of the target may be cut off or only partly on the image
        if abs(size - extent * r) >= r:
            remedy = "give target_level= or target_mpp=" if len(shape) == 2 else REMEDY
            raise GeometryError(
                f"target record {name!r} has shape {target.shape} and the image {view.shape}; a "
                "target must have the image's size at the resolution asked for, or that divided "
                f"by a whole number; {remedy}"
            )
    if any(s % r for s, r in zip(smallchunk, ratio, strict=True)):
        raise GeometryError(
            f"target record {name!r} has one pixel per {ratio} of the image, so that a small "
            f"chunk of {smallchunk} does not cover whole pixels of it; make smallchunk_size a "
            f"multiple of {ratio}"
        )
    return ratio


def build(
    images: Images,
    geometry: Geometry,
    *,
    target: Target | None = None,
    maps: Iterable[str] = (),
    on_error: OnError = "raise",
) -> Catalogue:
    """Open all images, in parallel; raises as `open_all`, and when they differ in channels or
    sample type. `maps` are records that may hold label maps, see `Entry`.
    """
    if target is not None:
        target = replace(target, empty=stand_in(images.dataset, target.record))
    wanted = sorted(set(maps))
    entries, failures = open_all(images, lambda i: _entry(i, geometry, target, wanted), on_error)
    _check_uniform(entries)
    asked = images.request.parameters(e.patient for e in entries)
    return Catalogue(tuple(entries), tuple(failures), asked)


def _check_uniform(entries: list[Entry]) -> None:
    first = entries[0]
    ndim = first.view.spatial_ndim
    for entry in entries[1:]:
        same = (
            entry.view.dtype == first.view.dtype
            and entry.view.shape[ndim:] == first.view.shape[ndim:]
        )
        if not same:
            raise UsageError(
                f"records of a dataset must agree in channels and sample type: patient "
                f"{first.patient.id!r} has {first.view.shape[ndim:]} {first.view.dtype}, patient "
                f"{entry.patient.id!r} has {entry.view.shape[ndim:]} {entry.view.dtype}; filter "
                "the dataset or convert the images"
            )
