"""Any Dask array as an image.

`ArrayView` gives an array from ``map_blocks``, Zarr, NumPy or anywhere else the interface
of a slide at one resolution, so that everything above treats files and arrays alike.

Not covered: files (`daskdmed.images.view`).
"""

from __future__ import annotations

import bisect
import copy
import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import MaterializedLayer
from dask.task_spec import DataNode, Task

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView, background_of


class ArrayView(ImageView):
    """A Dask array whose leading axes are space.

    Parameters
    ----------
    array : dask.array.Array
        Spatial axes first, channels (if any) last.
    spatial_ndim : int
        Number of leading axes that are space: 2 for (y, x[, c]), 3 for (z, y, x[, c]).
    mpp : (float, float), optional
        (x, y) micrometers per pixel, of planes.
    spacing : sequence of float, optional
        Millimeters per pixel along each spatial axis, array order; one number counts for
        every axis. For planes it says what `mpp` says; not both.
    space : Space, optional
        Where the voxels of a volume lie, in the place of `spacing`.
    background : number or sequence of numbers, optional
        Value of the pixels outside the image, one or one per channel. Default white for
        three channels of uint8, 0 for other unsigned integers, bools and floats; signed
        integers have none, because what is empty in CT is not 0 but -1024.

    Notes
    -----
    Big-endian values are read in the machine's own order, which models need.
    """

    spatial_ndim: int
    mpp: tuple[float, float] | None
    token: str

    def __init__(
        self,
        array: da.Array,
        spatial_ndim: int,
        mpp: tuple[float, float] | None = None,
        *,
        spacing: float | Sequence[float] | None = None,
        space: Space | None = None,
        background: Any = None,
    ) -> None:
        if not spatial_ndim <= array.ndim <= spatial_ndim + 1:
            raise GeometryError(
                f"an array of {array.ndim} axes, shape {array.shape}, cannot have {spatial_ndim} "
                "spatial axes and at most one channel axis behind them; transpose it, or give "
                "a crop size with as many numbers as the array has spatial axes"
            )
        if any(np.isnan(s) for s in array.shape):
            raise GeometryError(
                f"array {array.name!r} has unknown chunk sizes; call compute_chunk_sizes() first"
            )
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        self.array: Any = array
        self._dtype: np.dtype[Any] = np.dtype(array.dtype)
        self._shape = tuple(int(s) for s in array.shape)
        self.spatial_ndim = spatial_ndim
        self._spacing = None if spacing is None else _per_axis(spacing, spatial_ndim)
        self._space = space
        if space is not None and (space.shape != self._shape[:spatial_ndim] or spacing is not None):
            raise GeometryError(
                f"an array of shape {self._shape}, spacing={spacing}, does not lie in {space}"
            )
        if self._spacing is not None and spatial_ndim == 2 and mpp is None:
            mpp = (self._spacing[1] * 1000, self._spacing[0] * 1000)
        self.mpp = mpp
        self._background = None if background is None else self._checked(background)
        told = None if self._background is None else self._background.tolist()
        facts = (self._spacing, told) if space is None else (self._spacing, told, space)
        self.token = tokenize("array-view", array, spatial_ndim, mpp, *facts)
        #: the region of the image that `array` holds
        self._held = Region.of(self._shape[:spatial_ndim])

    def __repr__(self) -> str:
        return (
            f"ArrayView(shape={self.shape}, dtype={self.dtype}, spatial_ndim={self.spatial_ndim})"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """The largest Dask chunk along each spatial axis."""
        return tuple(max(1, *c) for c in self.array.chunks[: self.spatial_ndim])

    @property
    def downsample(self) -> tuple[float, ...]:
        """An array is its own level 0."""
        return (1.0,) * self.spatial_ndim

    @property
    def given_background(self) -> tuple[float, ...] | None:
        """The value outside that the user gave, one per channel."""
        return None if self._background is None else tuple(self._background.reshape(-1).tolist())

    @property
    def space(self) -> Space | None:
        """Where the voxels lie in the patient; None when unknown."""
        return self._space

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimeters per pixel along each spatial axis, array order; None when unknown."""
        return super().spacing if self._spacing is None else self._spacing

    @property
    def background(self) -> Array:
        """Value of pixels outside the image: shape (c,) or () without channels. An error for signed
        integers, when nobody said what is empty in them."""
        return background_of(self, self._background)

    def as_labels(self) -> ArrayView:
        """The same array as a map of labels, outside of which there is 0, if nothing else."""
        if self._background is not None or self.dtype.kind != "i":
            return self
        view = copy.copy(self)
        view._background = np.zeros(self.channel_shape, self.dtype)
        return view

    def picked(self, numbers: tuple[int, ...]) -> ArrayView:
        """Some of its channels, see `daskdmed.images.channels.pick`."""
        view = copy.copy(self)
        view.__dict__.pop("remote", None)
        view.array = None if self.array is None else self.array[..., list(numbers)]
        view._shape = (*self._shape[:-1], len(numbers))
        if self._background is not None:
            view._background = self._background[list(numbers)]
        view.token = tokenize("array-view-channels", self.token, numbers)
        return view

    def _checked(self, background: Any) -> Array:
        """A background that was given, one value per channel."""
        given = np.asarray(background)
        fits = given.ndim <= 1 and given.size in (1, *self.channel_shape)
        cast = given.astype(self.dtype) if fits and given.dtype.kind in "iufb" else None
        if cast is None or not np.array_equal(cast, given, equal_nan=cast.dtype.kind == "f"):
            raise UsageError(
                f"background={background!r} is not one {self.dtype}, or one per channel, of an "
                f"array of shape {self.shape}"
            )
        return np.broadcast_to(cast.reshape(-1), self.channel_shape or (1,)).reshape(
            self.channel_shape
        )

    def narrowed(self, region: Region) -> ArrayView:
        """The same image with a graph that holds one region only, cheap to pickle; it cannot read
        any other."""
        (culled,) = dask.optimize(self.array[self._local(region).slices])
        view = copy.copy(self)
        view.array = culled
        view._held = region
        return view

    def detached(self, region: Region) -> ArrayView:
        """The same image without any array, to be given one region's values by `attached`."""
        view = copy.copy(self)
        view.array = None
        view._held = region
        return view

    def attached(self, values: Array) -> ArrayView:
        view = copy.copy(self)
        view.array = da.from_array(np.asarray(values), chunks=-1, name=False)
        return view

    def delivery(self, region: Region) -> da.Array:
        part: da.Array = self.array[self._local(region).slices]
        return part

    def _local(self, region: Region) -> Region:
        """A region of the image, in the frame of the array that is held."""
        if not self._held.contains(region):
            raise GeometryError(
                f"{region} lies outside what this view was narrowed to, {self._held} of an image "
                f"of {self.spatial_shape}"
            )
        return region.local_to(self._held)

    def _read(self, region: Region, out: Array | None) -> Array:
        """Compute a region in the calling thread; never a view of memory that the array holds."""
        local = self._local(region)
        parts = self._parts(local)
        if parts is None:
            value = self._compute(self.array[local.slices])
            if out is None:
                return value if value.base is None and value.flags.writeable else value.copy()
            parts = [(..., value)]
        if out is None:
            out = np.empty((*region.shape, *self.channel_shape), self.dtype)
        for where, values in parts:
            out[where] = values
        return out

    def _parts(self, local: Region) -> list[tuple[Any, Array]] | None:
        """The places within a region, and their values as slices of blocks that need no other
        task: without the graph that Dask would make, optimise and walk for them, which takes
        longer than to copy them. None: some block does need one."""
        layer = self.array.dask.layers.get(self.array.name)
        if not isinstance(layer, MaterializedLayer):  # others make all their tasks to give one
            return None
        axes = self.array.chunks[: self.spatial_ndim]
        if any(len(c) > 1 for c in self.array.chunks[len(axes) :]):
            return None
        behind = [0] * (self.array.ndim - len(axes))
        crossed = list(itertools.product(*map(_crossed, axes, local.origin, local.stop)))
        found = []
        for spans in crossed:
            node: Any = layer.mapping.get((self.array.name, *(s[0] for s in spans), *behind))
            # a task may have to read all of its block for a corner
            kinds = (Task, DataNode) if len(crossed) == 1 else DataNode
            values = node() if isinstance(node, kinds) and not node.dependencies else node
            # a future, of an array that is persisted; or what its maker did not promise
            if not isinstance(values, np.ndarray) or values.dtype != self.dtype:
                return None
            found.append((tuple(s[2] for s in spans), values[tuple(s[1] for s in spans)]))
        return found

    @functools.cached_property
    def remote(self) -> Any:
        """The distributed client whose futures the graph holds, or None."""
        for value in self.array.__dask_graph__().values():
            future = getattr(value, "value", value)
            if type(future).__module__ == "distributed.client":
                return getattr(future, "client", None)
        return None

    def _compute(self, array: da.Array) -> Array:
        if self.remote is not None:
            # a persisted array: its blocks live on a cluster, which has to deliver them
            with _aside():
                return np.asarray(self.remote.compute(array, sync=True))
        # by its function: of a name older Dask warns where there is a client
        return np.asarray(array.compute(scheduler=dask.get))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "remote"}


@contextmanager
def _aside() -> Iterator[None]:
    """Wait without keeping a worker's thread from the tasks that are waited for."""
    from distributed import get_worker, rejoin, secede

    try:
        get_worker()
    except ValueError:  # not within a task
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


def _crossed(chunks: Sequence[int], start: int, stop: int) -> list[tuple[int, slice, slice]]:
    """Of each chunk along an axis that pixels lie in: its number, where they are in it, and where
    it is in them."""
    ends = list(itertools.accumulate(chunks))
    found = []
    for number in range(bisect.bisect_right(ends, start), bisect.bisect_left(ends, stop) + 1):
        begin = ends[number] - chunks[number]
        a, b = max(start, begin), min(stop, ends[number])
        found.append((number, slice(a - begin, b - begin), slice(a - start, b - start)))
    return found


def _per_axis(spacing: float | Sequence[float], ndim: int) -> tuple[float, ...]:
    values: tuple[float, ...] = ()
    if np.size(spacing) in (1, ndim):
        values = tuple(float(v) for v in np.broadcast_to(np.ravel(spacing), ndim))
    if not values or not all(0 < v < np.inf for v in values):
        raise GeometryError(
            f"spacing={spacing!r} must be {ndim} positive numbers, millimeters per pixel along "
            "each spatial axis in array order, (z, y, x) or (y, x)"
        )
    return values
