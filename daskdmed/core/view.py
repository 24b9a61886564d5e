"""`ImageView`: one image at one resolution, what everything above `daskdmed.images` sees.

The base class of all views holds what is the same for every one of them: identity by token,
the check of what is read, pixels outside the image, and how a view travels to a worker. Not
covered: where pixels come from (`daskdmed.images.view`, `daskdmed.images.arrayview`,
`daskdmed.cohort.annotations.view`).
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array

if TYPE_CHECKING:
    import dask.array as da


@dataclass(frozen=True, slots=True)
class FailedTile:
    """A tile that was painted with the background: level, index in array order, cause."""

    level: int
    tile: tuple[int, ...]
    cause: str


class ImageView:
    """One image at one resolution, ready to be read region by region.

    A value: picklable, equal and hashed by `token`, without open handles. Made by
    ``Slide.view(...)`` for files and by ``ArrayView`` for Dask arrays. A view of your own
    derives from this class, has the attributes below, and defines `_read`.

    Attributes
    ----------
    shape : tuple of int
        Full array shape, spatial axes first, channels (if any) last.
    dtype : dtype
        Sample type.
    spatial_ndim : int
        Number of leading axes that are space.
    tile_shape : tuple of int
        Storage tile along the spatial axes; reads aligned to it decode nothing twice.
    downsample : tuple of float
        Level-0 pixels per pixel along each spatial axis, exact.
    mpp : (float, float) or None
        (x, y) micrometers per pixel; None when it is not known, and for volumes.
    background : ndarray
        Value of the pixels outside the image, one per channel (shape (c,) or ()).
    token : str
        Deterministic name of content and resolution.
    """

    if TYPE_CHECKING:
        # declared for the type checker only: subclasses are dataclasses, which would take
        # what stands here for the default of their fields

        @property
        def shape(self) -> tuple[int, ...]: ...
        @property
        def dtype(self) -> np.dtype[Any]: ...
        @property
        def spatial_ndim(self) -> int: ...
        @property
        def tile_shape(self) -> tuple[int, ...]: ...
        @property
        def downsample(self) -> tuple[float, ...]: ...
        @property
        def mpp(self) -> tuple[float, float] | None: ...
        @property
        def background(self) -> Array: ...
        @property
        def token(self) -> str: ...

    # ------------------------------------------------------------------ what it is
    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Extent along the spatial axes."""
        return self.shape[: self.spatial_ndim]

    @property
    def channel_shape(self) -> tuple[int, ...]:
        """(c,), or () without channels."""
        return self.shape[self.spatial_ndim :]

    @property
    def uri(self) -> str | None:
        """The file or URL, None for what has none."""
        return None

    @property
    def name(self) -> str:
        """The image in messages and reports."""
        return self.uri or f"array of shape {self.shape}"

    @property
    def space(self) -> Space | None:
        """Where the voxels of a volume lie in the patient; None when unknown, and for planes."""
        return None

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimeters per pixel along each spatial axis, array order; None when unknown.

        For planes it says what `mpp` says, in other units and order; for volumes with a `space`
        what that says.
        """
        if self.space is not None:
            return self.space.spacing
        return None if self.mpp is None else (self.mpp[1] / 1000, self.mpp[0] / 1000)

    @property
    def tile_origin(self) -> tuple[int, ...]:
        """Where a storage tile begins along each spatial axis: the others lie around it."""
        return (0,) * self.spatial_ndim

    @property
    def cheap_to_cut(self) -> bool:
        """Whether a region costs what its storage tiles cost, so that cutting it is free."""
        return False

    @property
    def cheap_in_parts(self) -> bool:
        """Whether some storage tiles of a region cost that part of what the region costs."""
        return self.cheap_to_cut

    @property
    def cheap_in_tiles(self) -> bool:
        """Whether a part of a storage tile may cost less than the tile."""
        return False

    def kept(self, region: Region) -> Region:
        """What is worth to be read and kept for a region: whole tiles, or just the region.

        A tile is decoded into its place; of a part of one, the rest has to be cut away first.
        So up to a quarter more is kept where that spares the copy.
        """
        if not self.cheap_to_cut:
            return region
        whole = region.cells(self.tile_shape).times(self.tile_shape).clip(self.spatial_shape)
        spared = whole.contains(region) and 4 * whole.size <= 5 * region.size
        return whole if spared else region

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        """Tiles that ``tile_error="fill"`` painted in this process since the file was opened."""
        return ()

    def __dask_tokenize__(self) -> tuple[str, str]:
        return f"daskdmed.{type(self).__name__}", self.token

    def __eq__(self, other: object) -> bool:
        same = type(self) is type(other)
        return (
            same and self.token == other.token if isinstance(other, ImageView) else NotImplemented
        )

    def __hash__(self) -> int:
        return hash(self.token)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}: shape={self.shape}, dtype={self.dtype}>"

    def _repr_html_(self) -> str:
        # of a higher layer, so found by its name
        shown: str = pkgutil.resolve_name("daskdmed.images.html:view_html")(self)
        return shown

    def as_labels(self) -> ImageView:
        """The same image, taken for a map of labels: outside of it there is no label."""
        return self

    # ------------------------------------------------------------------ its pixels
    def read(self, region: Region, out: Array | None = None) -> Array:
        """Pixels of a region that lies inside the image.

        Parameters
        ----------
        region : Region
            In pixels of the view, array order.
        out : ndarray, optional
            Of the region's shape with the channels behind and the view's dtype, any
            strides; written in place when given.

        Returns
        -------
        ndarray
            ``(*region.shape[, c])``; `out` when it was given.

        Raises
        ------
        GeometryError
            The region does not lie inside the image, or `out` does not fit.
        ImageError
            The file changed, cannot be opened, or a tile cannot be decoded.
        """
        if not region.within(self.spatial_shape):
            raise GeometryError(
                f"{self.name}: the region from {region.origin} to {region.stop} lies outside the "
                f"view of {self.spatial_shape}, at least in part; clip it, or take read_padded, "
                "which gives the background there"
            )
        if out is not None:
            self.check_out(region, out)
        return self._read(region, out)

    def read_padded(self, region: Region, out: Array | None = None) -> Array:
        """Pixels of any region; where it lies outside the image they are the background.

        The region may lie partly or wholly outside; `out` as in `read`, without it recycled
        memory, see `daskdmed.core.buffers`.

        Raises
        ------
        GeometryError
            A negative extent, another number of axes than the image has, or `out` does not
            fit.
        UsageError
            The region reaches outside, and the view does not know its background.
        """
        if len(region.shape) != self.spatial_ndim or min(region.shape, default=0) < 0:
            raise GeometryError(f"{self.name}: {region} is no region of {self.spatial_shape}")
        if out is None:
            out = buffers.empty((*region.shape, *self.channel_shape), self.dtype)
        else:
            self.check_out(region, out)
        if region.within(self.spatial_shape):
            return self._read(region, out)
        inside = region.clip(self.spatial_shape)
        if not inside.size:
            paint(out, self.background)
            return out
        place = inside.local_to(region)
        background, shrinking = self.background, out
        for axis, (start, stop) in enumerate(zip(place.origin, place.stop, strict=True)):
            along = (slice(None),) * axis
            paint(shrinking[(*along, slice(0, start))], background)
            paint(shrinking[(*along, slice(stop, None))], background)
            shrinking = shrinking[(*along, slice(start, stop))]
        self._read(inside, shrinking)
        return out

    def read_boxes(self, first: Array, out: Array) -> bool:
        """Boxes of one size at their `first` pixels (boxes, axes), all inside the image, into `out`
        of shape ``(boxes, *size[, c])``, where that is cheaper than regions are; False: it is not,
        and nothing was read."""
        return False

    def check_out(self, region: Region, out: Array) -> None:
        """GeometryError where an array does not fit a region."""
        needed = (*region.shape, *self.channel_shape)
        if out.shape != needed or out.dtype != self.dtype:
            raise GeometryError(
                f"{self.name}: out has shape {out.shape} and type {out.dtype}, the region needs "
                f"{needed} and {self.dtype}"
            )

    def _read(self, region: Region, out: Array | None) -> Array:
        """`read` of what has been checked."""
        raise NotImplementedError(f"{type(self).__name__} must define _read")

    # ------------------------------------------------------------------ how it travels
    @property
    def remote(self) -> Any:
        """The distributed client on whose cluster the pixels are persisted, or None."""
        return None

    def narrowed(self, region: Region) -> Self:
        """The same image, able to read one region only where that makes it cheap to pickle."""
        return self

    def detached(self, region: Region) -> Self:
        """The same image without pixels of its own, where it holds any.

        Its shape, type and name remain. `attached` gives it the values of the region.
        """
        return self

    def attached(self, values: Array) -> Self:
        """A detached view with the values that `delivery` of its region computes to."""
        return self

    def delivery(self, region: Region) -> da.Array:
        """What has to be computed on the cluster that `remote` names, to be `attached`."""
        raise NotImplementedError(f"{type(self).__name__} holds nothing that is persisted")


class ViewOver(ImageView):
    """An image made over another one, its `source`: of which is what it does not say itself."""

    if TYPE_CHECKING:

        @property
        def source(self) -> ImageView: ...

    @property
    def spatial_ndim(self) -> int:
        return self.source.spatial_ndim

    @property
    def tile_shape(self) -> tuple[int, ...]:
        return self.source.tile_shape

    @property
    def tile_origin(self) -> tuple[int, ...]:
        return self.source.tile_origin

    @property
    def downsample(self) -> tuple[float, ...]:
        return self.source.downsample

    @property
    def mpp(self) -> tuple[float, float] | None:
        return self.source.mpp

    @property
    def uri(self) -> str | None:
        return self.source.uri

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def space(self) -> Space | None:
        return self.source.space

    @property
    def spacing(self) -> tuple[float, ...] | None:
        return self.source.spacing

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        return self.source.failed_tiles

    @property
    def remote(self) -> Any:
        return self.source.remote


def paint(out: Array, value: Array) -> None:
    """Fill ``(*spatial[, c])`` with a value per channel, by lines of pixels: broadcasting a few
    channels to each pixel takes ten times as long."""
    if value.size == 1 or (value == value.flat[0]).all():
        out[...] = value.flat[0]
    elif out.size:
        out[...] = np.broadcast_to(value, out.shape[-2:]).copy()


def background_of(view: ImageView, given: Any = None) -> Array:
    """Value of pixels outside a view, shape (c,) or (): what was given, else white for three
    channels of uint8 and 0 for others.

    UsageError for signed integers when nobody said what is empty in them.
    """
    if given is not None:
        values = np.asarray(given, view.dtype).reshape(-1)
        return np.broadcast_to(values, view.channel_shape or (1,)).reshape(view.channel_shape)
    if view.dtype.kind == "i":
        raise UsageError(
            f"{view.name}: pixels outside the image are needed, and signed integers do not "
            f"tell what is empty ({view.dtype}: -1024, air, in CT; 0 in a map of labels); "
            "give it, Record(..., background=-1024), or avoid padding"
        )
    white = view.channel_shape == (3,) and view.dtype == np.uint8
    return np.full(view.channel_shape, 255 if white else 0, view.dtype)
