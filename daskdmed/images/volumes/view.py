"""A volume in one orientation at one spacing: the value that everything above reads.

Made over a view of a file's level or of an array. Axes are permuted and flipped while they are
read, so that this costs nothing; then values are resampled by areas, labels by classes.

Not covered: which levels, series and time points a file has (`daskdmed.images.volumes.volume`).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.buffers import empty
from daskdmed.core.errors import GeometryError, ResolutionError
from daskdmed.core.region import Region
from daskdmed.core.space import Space, spacing_of
from daskdmed.core.types import Array
from daskdmed.core.view import FailedTile, ImageView, background_of
from daskdmed.images.channels import pick
from daskdmed.images.resample import (
    check_resampled,
    resample_labels,
    resample_region,
    source_region,
)
from daskdmed.images.view import SAME_RESOLUTION, SlideView

if TYPE_CHECKING:
    import dask.array as da

_Steps = tuple[float, ...]
#: voxels that are no difference between two places; headers hold affines in single precision
_ASTRAY = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class VolumeView(ImageView):
    """One volume at one resolution, made by ``Volume.view``. Picklable, without open handles.

    Axis i of the view is axis ``order[i]`` of `source`, backwards where ``flips[i]``; `scale` are
    voxels of the source per voxel of the view, along axes of the view, None for no resampling.
    `placed` and `steps` are space and spacing of the view where they are known, `outside` is
    the value beyond it where that is. `labels`: its values are never blended. `offset` is where
    the first voxel begins in the source, in voxels of it along axes of the view; None for at its
    border.
    """

    source: ImageView
    shape: tuple[int, ...]
    order: tuple[int, ...]
    flips: tuple[bool, ...]
    scale: _Steps | None
    downsample: _Steps
    placed: Space | None = None
    steps: _Steps | None = None
    outside: tuple[float, ...] | None = None
    labels: bool = False
    offset: _Steps | None = None

    spatial_ndim = 3
    mpp = None

    @property
    def uri(self) -> str | None:
        return self.source.uri

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    @property
    def space(self) -> Space | None:
        """Where the voxels lie in the patient; None when unknown."""
        return self.placed

    @property
    def spacing(self) -> _Steps | None:
        return self.steps if self.placed is None else self.placed.spacing

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        return self.source.failed_tiles

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Storage tile in voxels of the view, rounded when resampled."""
        tile = self._turned(self.source.tile_shape)
        if self.scale is None:
            return tile
        return tuple(max(1, round(n / s)) for n, s in zip(tile, self.scale, strict=True))

    @property
    def tile_origin(self) -> tuple[int, ...]:
        """Along axes that are turned round tiles are counted from the end of the source."""
        if self.scale is not None:
            return (0, 0, 0)
        first = self._turned(self.source.tile_origin)
        axes = zip(self.flips, self.shape, first, strict=False)
        return tuple(n - o if flip else o for flip, n, o in axes)

    @property
    def background(self) -> Array:
        """Value outside; an error where nobody says, see `daskdmed.core.view.background_of`."""
        return background_of(self, self.outside)

    def as_labels(self) -> VolumeView:
        """The same volume as a map of labels: never blended, outside of it there is 0."""
        return replace(self, labels=True, outside=self.outside or (0,))

    def picked(self, numbers: tuple[int, ...]) -> VolumeView:
        """Some of its channels, see `daskdmed.images.channels.pick`."""
        outside = self.outside
        if outside is not None and len(outside) > 1:
            outside = tuple(outside[n] for n in numbers)
        source, shape = pick(self.source, numbers), (*self.shape[:3], len(numbers))
        return replace(self, source=source, shape=shape, outside=outside)

    @functools.cached_property
    def token(self) -> str:
        where = None if self.placed is None else self.placed.affine.tolist()
        facts = (self.source.token, self.shape, self.order, self.flips, self.scale, where)
        more = (self.steps, self.outside, self.labels, self.offset)
        return hashlib.blake2b(repr((*facts, *more)).encode(), digest_size=16).hexdigest()

    @property
    def cheap_to_cut(self) -> bool:
        return self.scale is None and self.source.cheap_to_cut

    @property
    def cheap_in_parts(self) -> bool:
        return self.source.cheap_in_parts

    # ------------------------------------------------------------------ its pixels
    def _read(self, region: Region, out: Array | None) -> Array:
        if out is None:
            out = empty((*region.shape, *self.channel_shape), self.dtype)
        if not region.size:
            return out
        if self.scale is None:
            return self._read_turned(region, out)
        extent = self._turned(self.source.spatial_shape)
        # of an array that was narrowed to a region no more can be read
        rows = self._turned(self.source.tile_shape)[0] if self._of_file else 1
        resample = resample_labels if self.labels else resample_region
        return resample(region, self.scale, extent, rows, self._read_turned, out, self.offset)

    def _read_turned(self, region: Region, out: Array | None = None) -> Array:
        """A region of the source in the orientation of the view."""
        if out is None:
            out = empty((*region.shape, *self.channel_shape), self.dtype)
        seen = out[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        back = (int(i) for i in np.argsort(self.order))
        seen = seen.transpose(*back, *range(3, seen.ndim))
        # files have a channel axis also where users see none
        seen = seen if seen.ndim == len(self.source.shape) else seen[..., None]
        self.source.read(self._in_source(region), out=seen)
        return out

    def _turned(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """What is said along axes of the source, along those of the view."""
        return tuple(values[axis] for axis in self.order)

    def _in_source(self, region: Region) -> Region:
        """A region in the orientation of the view, in that of the source."""
        origin, shape = [0, 0, 0], [0, 0, 0]
        axes = zip(self.order, self.flips, region.origin, region.shape, strict=True)
        for axis, flip, start, extent in axes:
            shape[axis] = extent
            origin[axis] = self.source.spatial_shape[axis] - start - extent if flip else start
        return Region(tuple(origin), tuple(shape))

    # ------------------------------------------------------------------ how it travels
    @property
    def _of_file(self) -> bool:
        return isinstance(self.source, SlideView)

    def _needed(self, region: Region) -> Region:
        """What has to be read of the source for a region."""
        if self.scale is not None:
            extent = self._turned(self.source.spatial_shape)
            region = source_region(region, self.scale, extent, self.offset)
        return self._in_source(region)

    @property
    def remote(self) -> Any:
        return self.source.remote

    def narrowed(self, region: Region) -> VolumeView:
        return replace(self, source=self.source.narrowed(self._needed(region)))

    def detached(self, region: Region) -> VolumeView:
        return replace(self, source=self.source.detached(self._needed(region)))

    def attached(self, values: Array) -> VolumeView:
        return replace(self, source=self.source.attached(values))

    def delivery(self, region: Region) -> da.Array:
        return self.source.delivery(self._needed(region))


def turned(
    source: ImageView,
    *,
    wanted: _Steps,
    order: tuple[int, ...],
    flips: tuple[bool, ...],
    full: tuple[int, ...],
    space: Space | None,
    spacing: _Steps | None,
    channels: bool,
    outside: tuple[float, ...] | None,
) -> VolumeView:
    """A view over a level of a volume, `wanted` level-0 voxels per voxel along the view's axes.

    `order` and `flips` as of `VolumeView`, `full` is the extent of level 0, `space` and `spacing`
    are those of level 0, all along the view's axes.
    """
    down = tuple(source.downsample[axis] for axis in order)
    scale = tuple(w / d for w, d in zip(wanted, down, strict=True))
    resampled = any(abs(s - 1) > SAME_RESOLUTION for s in scale)
    shape = tuple(source.shape[axis] for axis in order)
    if resampled:
        check_resampled(source.name, source.spatial_shape)
        down = wanted
        shape = tuple(max(1, round(n / w)) for n, w in zip(full, wanted, strict=True))
    if space is not None and (shape != space.shape or any(d != 1 for d in down)):
        moved = space.resample([s * d for s, d in zip(space.spacing, down, strict=True)])
        space = Space(moved.affine, shape)
    return VolumeView(
        source=source,
        shape=(*shape, *source.channel_shape) if channels else shape,
        order=order,
        flips=flips,
        scale=scale if resampled else None,
        downsample=down,
        placed=space,
        steps=None if spacing is None else _times(spacing, down),
        outside=outside,
    )


def _times(steps: _Steps, factors: _Steps) -> _Steps:
    return tuple(s * f for s, f in zip(steps, factors, strict=True))


def orient(
    name: str, space: Space | None, orientation: Any
) -> tuple[tuple[int, ...], tuple[bool, ...], Space | None]:
    """Order and flips of axes for an orientation in nibabel's letters, and the space then."""
    if orientation is None:
        return (0, 1, 2), (False, False, False), space
    if space is None:
        raise ResolutionError(
            f"{name}: nobody says how it lies in the patient, so orientation={orientation!r} means "
            "nothing; say it, Record(..., space=Space(affine, shape)), or leave it out"
        )
    axcodes = orientation[::-1] if isinstance(orientation, str) else orientation
    return *space.permutation(axcodes), space.reorient(axcodes)


def downsample_for(name: str, spacing: Any, steps: _Steps | None) -> _Steps:
    """Level-0 voxels of `steps` millimeters per voxel of the spacing that is wanted."""
    if spacing is None:
        return (1.0, 1.0, 1.0)
    if steps is None:
        raise ResolutionError(
            f"{name}: nobody says the size of its voxels, so spacing={spacing!r} means nothing; "
            "say it, Record(..., spacing=(3, 1, 1)), or ask for level="
        )
    pairs = zip(spacing_of(spacing), steps, strict=True)
    return tuple(1.0 if wanted is None else wanted / own for wanted, own in pairs)


def view_of_array(source: ImageView, spacing: Any, orientation: str | None) -> ImageView:
    """An array of a volume at a spacing in an orientation; itself when neither is asked for."""
    if spacing is None and orientation is None:
        return source
    if source.spatial_ndim != 3:
        raise ResolutionError(
            f"{source.name}: spacing= and orientation= are for volumes, (z, y, x); planes take mpp="
        )
    order, flips, space = orient(source.name, source.space, orientation)
    own = source.spacing
    steps = None if own is None else tuple(own[axis] for axis in order)
    given = getattr(source, "given_background", None)
    return turned(
        source,
        wanted=downsample_for(source.name, spacing, steps),
        order=order,
        flips=flips,
        full=tuple(source.spatial_shape[axis] for axis in order),
        space=space,
        spacing=steps,
        channels=bool(source.channel_shape),
        outside=given,
    )


def on_voxels_of(source: ImageView, space: Space) -> VolumeView:
    """A volume on the voxels of a space whose axes are the same up to order and direction: the way
    back from any view. Voxels beyond the volume have its outermost ones.

    GeometryError where the volume has no space, or lies obliquely to this one.
    """
    own = source.space
    if own is None:
        raise GeometryError(f"{source.name}: nobody says how it lies in the patient")
    moves = np.linalg.inv(own.affine) @ space.affine
    order = tuple(int(axis) for axis in np.abs(moves[:3, :3]).argmax(axis=0))
    steps = moves[order, range(3)]
    rest = moves[:3, :3].copy()
    rest[order, range(3)] = 0
    astray = float((np.abs(rest) @ [max(n - 1, 1) for n in space.shape]).max())
    if sorted(order) != [0, 1, 2] or astray > _ASTRAY:
        raise GeometryError(
            f"{source.name} lies obliquely to the space that is asked for, by up to {astray:.3g} "
            f"voxels: it has {own}, wanted is {space}; resample it with a tool for registration"
        )
    flips = tuple(bool(step < 0) for step in steps)
    scale = tuple(_whole(abs(float(s)), n) for s, n in zip(steps, space.shape, strict=True))
    extent = tuple(source.spatial_shape[axis] for axis in order)
    first = [
        n - 1 - at if flip else at
        for at, n, flip in zip(moves[order, 3], extent, flips, strict=True)
    ]
    offset = tuple(_whole(float(c) + 0.5 - s / 2) for c, s in zip(first, scale, strict=True))
    same = all(s == 1 for s in scale) and not any(offset) and extent == space.shape
    return VolumeView(
        source=source,
        shape=(*space.shape, *source.channel_shape),
        order=order,
        flips=flips,
        scale=None if same else scale,
        downsample=(1.0, 1.0, 1.0),
        placed=space,
        offset=None if same else offset,
    )


def _whole(value: float, times: int = 1) -> float:
    """As the whole number that it misses by rounding only, so often repeated."""
    return float(round(value)) if abs(value - round(value)) * times <= _ASTRAY else value
