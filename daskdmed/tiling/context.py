"""Neighbouring slices as channels: what networks for 2.5 dimensions see of a volume.

A view with context has the slices around each one behind it as channels, so that windows,
blocks and batches need no code of their own for it. At the ends slices are mirrored: before the
first comes the second.

Not covered: dropping the axis of one slice for a network over planes (``squeeze=`` of those who
call models or make batches).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.core.buffers import empty
from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array
from daskdmed.core.view import FailedTile, ImageView

if TYPE_CHECKING:
    import dask.array as da

#: slices on each side along the first axis, or along each axis
ContextLike: TypeAlias = int | Sequence[int]


def context_of(context: ContextLike | None, spatial_ndim: int) -> tuple[int, ...]:
    """Slices on each side along each axis, from what users write: a number is of the first axis
    of a volume, None is none. GeometryError for what is no context."""
    if context is None:
        return (0,) * spatial_ndim
    given: tuple[Any, ...] = (context, *(0,) * (spatial_ndim - 1))
    if isinstance(context, Sequence):
        given = tuple(context)
    whole = all(not isinstance(k, bool) and int(k) == k and k >= 0 for k in given)
    if spatial_ndim < 3 or len(given) != spatial_ndim or not whole:
        raise GeometryError(
            f"context={context!r} is whole numbers of neighbouring slices on each side, of the "
            f"first axis (1) or along each axis of a volume (1, 0, 0); this has {spatial_ndim} axes"
        )
    return tuple(int(k) for k in given)


def neighbours(begin: int, stop: int, reach: int, size: int) -> npt.NDArray[np.intp]:
    """Positions on an axis of `size` of what lies around each of [begin, stop): row j of
    (2 * reach + 1, stop - begin) is `reach` before to `reach` after, mirrored at the ends."""
    at = np.arange(begin, stop) + np.arange(-reach, reach + 1)[:, None]
    period = max(2 * (size - 1), 1)
    found: npt.NDArray[np.intp] = np.abs((at + size - 1) % period - (size - 1))
    return found


def with_context(view: ImageView, context: ContextLike | None) -> ImageView:
    """A view whose channels are those of each slice and of its neighbours, the one before first,
    the channels of one slice side by side; itself without any."""
    reach = context_of(context, view.spatial_ndim) if context is not None else ()
    return ContextView(view, reach) if any(reach) else view


@dataclass(frozen=True, eq=False)
class ContextView(ImageView):
    """`source` with ``(2 * k + 1)`` times its channels for each of `reach`. See `with_context`."""

    source: ImageView
    reach: tuple[int, ...]

    @property
    def count(self) -> int:
        """Slices that are seen at a position."""
        return int(np.prod([2 * k + 1 for k in self.reach]))

    @property
    def shape(self) -> tuple[int, ...]:
        channels = int(np.prod(self.source.channel_shape, dtype=int))
        return (*self.source.spatial_shape, self.count * channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    @property
    def spatial_ndim(self) -> int:
        return self.source.spatial_ndim

    @property
    def tile_shape(self) -> tuple[int, ...]:
        return self.source.tile_shape

    @property
    def downsample(self) -> tuple[float, ...]:
        return self.source.downsample

    @property
    def mpp(self) -> tuple[float, float] | None:
        return self.source.mpp

    @property
    def background(self) -> Array:
        return np.tile(self.source.background.reshape(-1), self.count)

    @property
    def token(self) -> str:
        said = repr(("context", self.source.token, self.reach)).encode()
        return hashlib.blake2b(said, digest_size=16).hexdigest()

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

    def as_labels(self) -> ContextView:
        """The same over a map of labels."""
        return replace(self, source=self.source.as_labels())

    def _read(self, region: Region, out: Array | None) -> Array:
        if out is None:
            out = empty((*region.shape, *self.channel_shape), self.dtype)
        if not region.size:
            return out
        around = self._around(region)
        needed = self._needed(region)
        pixels = self.source.read(needed)
        pixels = pixels.reshape(*needed.shape, -1)
        width = pixels.shape[-1]
        for number, tap in enumerate(itertools.product(*map(range, map(len, around)))):
            part = pixels
            for axis, (rows, one, first) in enumerate(zip(around, tap, needed.origin, strict=True)):
                if self.reach[axis]:
                    part = part.take(rows[one] - first, axis)
            out[..., number * width : (number + 1) * width] = part
        return out

    def _around(self, region: Region) -> list[npt.NDArray[np.intp]]:
        axes = zip(region.origin, region.stop, self.reach, self.spatial_shape, strict=True)
        return [neighbours(*axis) for axis in axes]

    def _needed(self, region: Region) -> Region:
        """The part of the source that a region is made of."""
        if not region.size:
            return region
        around = self._around(region)
        return Region.between([int(a.min()) for a in around], [int(a.max()) + 1 for a in around])

    # ------------------------------------------------------------------ how it travels
    @property
    def remote(self) -> Any:
        return self.source.remote

    def narrowed(self, region: Region) -> ContextView:
        return replace(self, source=self.source.narrowed(self._needed(region)))

    def detached(self, region: Region) -> ContextView:
        return replace(self, source=self.source.detached(self._needed(region)))

    def attached(self, values: Array) -> ContextView:
        return replace(self, source=self.source.attached(values))

    def delivery(self, region: Region) -> da.Array:
        return self.source.delivery(self._needed(region))
