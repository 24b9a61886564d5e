"""Targets as images: annotations, or a label map's classes, on the grid of another image.

Both are `daskdmed.core.view.ImageView`: values that pickle, named by a token, read region by
region, so that the loader reads a target exactly as it reads an image.

Not covered: the rules of painting (`daskdmed.cohort.annotations.raster`).
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.alike import check_alike
from daskdmed.cohort.annotations.categories import Categories
from daskdmed.cohort.annotations.raster import ClassesLike, ClassTable, Grid
from daskdmed.core.errors import DatasetError, GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView, ViewOver

if TYPE_CHECKING:
    import dask.array as da

    from daskdmed.cohort.annotations.table import Annotations
    from daskdmed.cohort.record import Record


@dataclass(frozen=True, eq=False)
class AnnotationView(ImageView):
    """Annotations painted on an image's grid, read region by region; of ``Annotations.view``."""

    annotations: Annotations
    table: ClassTable
    extent: tuple[int, int]
    tile_shape: tuple[int, int]
    downsample: tuple[float, float]
    mpp: tuple[float, float] | None
    multichannel: bool
    all_touched: bool
    dtype_name: str
    token: str

    @classmethod
    def on(
        cls,
        like: ImageView,
        annotations: Annotations,
        table: ClassTable,
        *,
        multichannel: bool,
        all_touched: bool,
        dtype: npt.DTypeLike,
    ) -> AnnotationView:
        """On the grid of an image, see ``Annotations.view``."""
        if not isinstance(like, ImageView):
            raise UsageError(
                f"like= is a view of the image, got {type(like).__name__}; give "
                "slide.view(level=...) or record.view(...)"
            )
        if like.spatial_ndim != 2:
            raise GeometryError(
                f"annotations lie in a plane, the image has {like.spatial_ndim} spatial axes; "
                "paint them slice by slice with Annotations.rasterize"
            )
        kind = np.dtype(dtype) if multichannel else table.check_dtype(dtype)
        shape = int(like.shape[0]), int(like.shape[1])
        tile = int(like.tile_shape[0]), int(like.tile_shape[1])
        scale = float(like.downsample[0]), float(like.downsample[1])
        numbers = sorted((repr(k), v) for k, v in table.numbers.items())
        facts = (annotations.token, numbers, table.count, table.background, shape, scale)
        name = repr((*facts, multichannel, all_touched, kind.str))
        token = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        own = (annotations, table, shape, tile, scale, like.mpp)
        return cls(*own, bool(multichannel), bool(all_touched), kind.str, token)

    @property
    def shape(self) -> tuple[int, ...]:
        """(y, x), or (y, x, channels) of a multi-channel target."""
        channels = (self.table.channels,) if self.multichannel else ()
        return (*self.extent, *channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype_name)

    @property
    def spatial_ndim(self) -> int:
        return 2

    @property
    def background(self) -> Array:
        """What lies outside: 0, or 1 in the background channel; shape () or (channels,)."""
        empty = np.zeros(self.shape[2:], self.dtype)
        if self.multichannel and self.table.background is not None:
            empty[0 if self.table.background == "first" else -1] = 1
        return empty

    def __repr__(self) -> str:
        return f"AnnotationView(shape={self.shape}, dtype={self.dtype}, {self.annotations!r})"

    def narrowed(self, region: Region) -> AnnotationView:
        """With only the shapes near a region, to travel; elsewhere it reads other than before."""
        near = self.annotations.shapes.near(self._grid(region).bounds)
        chosen = [item for item, kept in zip(self.annotations, near, strict=True) if kept]
        return replace(self, annotations=type(self.annotations)(chosen))

    def _grid(self, region: Region) -> Grid:
        (y, x), (height, width) = region.origin, region.shape
        return Grid((y, x), (height, width), self.downsample)

    def _read(self, region: Region, out: Array | None) -> Array:
        painted = self.annotations._paint(
            self._grid(region), self.table, self.multichannel, self.all_touched, self.dtype
        )
        return _delivered(painted, out)


@dataclass(frozen=True, eq=False, repr=False)
class CollatedView(ViewOver):
    """An integer label map, or a stack of masks, seen through `Categories`.

    `multichannel`: one channel per class instead of class numbers; masks always give channels.
    """

    source: ImageView
    categories: Categories
    multichannel: bool = False

    def __post_init__(self) -> None:
        kind = self.source.dtype.kind
        if kind not in "iub":
            raise UsageError(
                f"a label map holds integers, {self.source!r} holds {self.source.dtype}"
            )
        self.background  # noqa: B018  wrong categories are refused now, not when pixels are read

    @property
    def _masks(self) -> bool:
        extra = self.source.channel_shape
        return bool(extra) and extra[0] > 1

    @property
    def shape(self) -> tuple[int, ...]:
        spatial = self.source.spatial_shape
        many = self.multichannel or self._masks
        return (*spatial, len(self.categories.channels)) if many else spatial

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, or uint16 for more than 255 classes."""
        return np.dtype("u1") if len(self.categories) < 256 else np.dtype("u2")

    @property
    def background(self) -> Array:
        """What lies outside the label map: its value 0, collated; of masks, no mask."""
        return self._collate(np.zeros(self.source.channel_shape, "u1"))

    @functools.cached_property
    def token(self) -> str:
        name = repr((self.source.token, self.categories, self.multichannel))
        return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()

    @property
    def cheap_to_cut(self) -> bool:
        return self.source.cheap_to_cut

    @property
    def cheap_in_parts(self) -> bool:
        return self.source.cheap_in_parts

    def narrowed(self, region: Region) -> CollatedView:
        return replace(self, source=self.source.narrowed(region))

    def detached(self, region: Region) -> CollatedView:
        return replace(self, source=self.source.detached(region))

    def attached(self, values: Array) -> CollatedView:
        return replace(self, source=self.source.attached(values))

    def delivery(self, region: Region) -> da.Array:
        return self.source.delivery(region)

    def _read(self, region: Region, out: Array | None) -> Array:
        return _delivered(self._collate(self.source.read(region)), out)

    def _collate(self, values: Array) -> Array:
        if self._masks:
            return self.categories.collate_channels(values, dtype=self.dtype)
        if len(self.source.shape) > self.source.spatial_ndim:
            values = values[..., 0]
        return self.categories.collate(values, multichannel=self.multichannel, dtype=self.dtype)


def target_view(
    record: Record,
    like: ImageView,
    classes: ClassesLike | None = None,
    *,
    multichannel: bool = False,
    all_touched: bool = False,
    spacing: Any = None,
    orientation: str | None = None,
) -> ImageView:
    """A record as a target on an image's grid: a view with the spatial shape of `like`.

    Parameters
    ----------
    record : Record
        Annotations, a label map, or a stack of masks.
    like : ImageView
        The image's view.
    classes : Categories, mapping or sequence, optional
        For annotations required, see ``Annotations.rasterize``. For a label map optional:
        `Categories`, or what makes them, of its values; without it, it is taken as it is.
    multichannel : bool
        One channel of zeros and ones per class.
    all_touched : bool
        Annotations paint pixels that they cover in part. Does not apply to label maps.
    spacing, orientation : optional
        How the view of a volume was asked for, see `Record.view`; labels are never blended.

    Raises
    ------
    UsageError, DatasetError
        Annotations without `classes`, options that the record cannot follow, or a label map
        that has no resolution of the extent of `like`.
    GeometryError
        A label map that lies elsewhere in the patient than the image.
    """
    if record.is_annotations:
        annotations = record.annotations()
        if classes is None:
            raise UsageError(
                f"{record!r} needs classes= (target_classes= of loaders), the same for every "
                "patient, because slides need not have the same labels; this one has "
                f"{list(annotations.labels)}"
            )
        return annotations.view(
            like, classes=classes, multichannel=multichannel, all_touched=all_touched
        )
    if all_touched:
        raise UsageError("all_touched= is for annotations, a label map has pixels already")
    labelmap = _matching(record, like, spacing, orientation).as_labels()
    check_alike(f"image {like.name}", like, f"target record {record.name!r}", labelmap)
    if classes is None:
        if multichannel:
            raise UsageError(
                "a label map needs classes to have channels, for example {'tumour': [1, 2]}"
            )
        return labelmap
    return CollatedView(labelmap, Categories.of(classes), multichannel)


def _matching(record: Record, like: ImageView, spacing: Any, orientation: str | None) -> ImageView:
    """The resolution of a label map that has the image's extent."""
    spatial = like.spatial_shape
    axes = like.spatial_ndim
    if record.array is not None or spacing is not None:
        views = [record.view(spatial_ndim=axes, spacing=spacing, orientation=orientation)]
    else:
        opened = record.open(spatial_ndim=axes)
        turned = {} if orientation is None else {"orientation": orientation}
        views = [opened.view(level=n, **turned) for n in range(len(opened.levels))]  # type: ignore[arg-type]
    for view in views:
        if view.spatial_shape == spatial:
            return view
    raise DatasetError(
        f"{record!r} has the extents {[v.spatial_shape for v in views]}, the "
        f"image has {spatial} at a downsample of {_rounded(like.downsample)}; a target has the "
        "image's extent at the resolution asked for: store it at that resolution, or ask for one "
        "that it has"
    )


def _delivered(values: Array, out: Array | None) -> Array:
    if out is None:
        return values
    np.copyto(out, values)
    return out


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{v:.6g}") if math.isfinite(v) else v for v in values)
