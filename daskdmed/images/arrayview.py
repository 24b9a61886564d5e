"""Any Dask array as an image.

`ArrayView` gives an array from ``map_blocks``, Zarr, NumPy or anywhere else the interface
of a slide at one resolution, so that everything above treats files and arrays alike.

Not covered: files (`daskdmed.images.view`).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize

from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView


class ArrayView(ImageView):
    """A Dask array whose leading axes are space.

    Parameters
    ----------
    array : dask.array.Array
        Spatial axes first, channels (if any) last.
    spatial_ndim : int
        Number of leading axes that are space: 2 for (y, x[, c]), 3 for (z, y, x[, c]).
    mpp : (float, float), optional
        (x, y) micrometers per pixel.

    Raises
    ------
    GeometryError
        The array has fewer axes than `spatial_ndim`, unknown (NaN) chunks, or more than
        one axis behind the spatial ones.
    """

    spatial_ndim: int
    mpp: tuple[float, float] | None
    token: str

    def __init__(
        self,
        array: da.Array,
        spatial_ndim: int,
        mpp: tuple[float, float] | None = None,
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
        self.array: Any = array
        self._dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.spatial_ndim = spatial_ndim
        self.mpp = mpp
        self.token = tokenize("array-view", array, spatial_ndim, mpp)
        self._shape = tuple(int(s) for s in array.shape)
        #: the region of the image that `array` holds
        self._held = Region.of(self._shape[:spatial_ndim])

    def __repr__(self) -> str:
        return (
            f"ArrayView(shape={self.shape}, dtype={self.dtype}, spatial_ndim={self.spatial_ndim})"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Array shape, spatial axes first."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type."""
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
    def background(self) -> Array:
        """White for three-channel uint8, else zero: shape (c,) or () without channels."""
        channels = self.shape[self.spatial_ndim :]
        white = channels == (3,) and self.dtype == np.uint8
        return np.full(channels, 255 if white else 0, self.dtype)

    def narrowed(self, region: Region) -> ArrayView:
        """The same image with a graph that holds one region only: cheap to pickle.

        Reading outside that region is an error.
        """
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
        """A detached view with the values of its region."""
        view = copy.copy(self)
        view.array = da.from_array(np.asarray(values), chunks=-1, name=False)
        return view

    def delivery(self, region: Region) -> da.Array:
        """The region of the array."""
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
        """Compute a region in the calling thread.

        Never gives a view of memory that the array itself holds.
        """
        value = self._compute(self.array[self._local(region).slices])
        if out is not None:
            np.copyto(out, value)
            return out
        return value if value.base is None and value.flags.writeable else value.copy()

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
        return np.asarray(array.compute(scheduler="synchronous"))

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
