"""The backend over Zarr: OME-Zarr image pyramids and plain arrays, local or remote.

Takes a local directory, a zip file, or any URL that fsspec opens (``s3://``, ``https://``,
``memory://``), Zarr v2 and v3, sharded or not. Chunks that were never written hold the
fill value, as the format has it. What the metadata mean is in `daskdmed.images.ngff.planes`,
where the bytes come from in `daskdmed.images.ngff.storage`. Not covered: writing (see
`daskdmed.store`), volumes and time series.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import ImageError, TileError, UsageError
from daskdmed.core.types import Array, OnTileError, Region
from daskdmed.images.ngff.planes import Plane, read_pyramid
from daskdmed.images.ngff.storage import fingerprint, looks_like_zarr, open_node, open_store
from daskdmed.images.protocols import SlideInfo
from daskdmed.images.readers import fill_background, prepare_output

if TYPE_CHECKING:
    from daskdmed.images.protocols import Reader

logger = logging.getLogger("daskdmed.images")


class ZarrBackend:
    """Opens OME-Zarr pyramids and plain Zarr images."""

    name = "zarr"
    priority = 20

    def accepts(self, uri: str) -> bool:
        """Whether there are Zarr metadata, or the name of a URL says so."""
        return looks_like_zarr(uri)

    def open(self, uri: str) -> Reader:
        """Open a Zarr group or array."""
        store = open_store(uri)
        try:
            return ZarrReader(uri, store)
        except BaseException:
            store.close()
            raise

    def fingerprint(self, uri: str) -> str:
        """Versions of the metadata files of the image and of its levels."""
        return fingerprint(uri)


class ZarrReader:
    """An open Zarr image. Reads from any number of threads."""

    def __init__(self, uri: str, store: Any) -> None:
        self._uri = uri
        self._store = store
        self._closed = False
        self._pyramid = read_pyramid(uri, open_node(uri, store))

    @property
    def info(self) -> SlideInfo:
        """Facts about the image."""
        return self._pyramid.info

    def read(
        self,
        level: int,
        region: Region,
        out: Array | None = None,
        *,
        tile_error: OnTileError = "raise",
    ) -> Array:
        """Read a region (y, x) of a level, see `daskdmed.images.protocols.Reader.read`.

        Raises
        ------
        TileError
            A chunk cannot be fetched or decoded.
        ResolutionError, GeometryError
            There is no such level, or the region is not inside it.
        ImageError
            The reader is closed.
        """
        self._check_open()
        target = prepare_output(self._uri, self.info, level, region, out)
        if target.size == 0:
            return target
        plane = self._pyramid.planes[level]
        try:
            plane.read(region, target)
        except MemoryError:
            raise
        except Exception as error:  # codecs and stores raise all sorts
            logger.debug("%s, level %d: %r, reading chunk by chunk", self._uri, level, error)
            self._read_chunks(level, plane, region, target, tile_error)
        return target

    def read_associated(self, name: str) -> Array:
        """One associated image, (height, width, channels) uint8.

        Raises
        ------
        UsageError
            There is no such image; the message names those that there are.
        TileError
            It cannot be decoded.
        """
        self._check_open()
        plane = self._pyramid.associated.get(name)
        if plane is None:
            raise UsageError(
                f"{self._uri} has no associated image {name!r}, it has {self.info.associated}"
            )
        out = np.empty(plane.shape, np.uint8)
        try:
            plane.read(Region((0, 0), plane.shape[:2]), out)
        except MemoryError:
            raise
        except Exception as error:
            raise TileError(
                f"{self._uri}: associated image {name!r} cannot be read: {error}", uri=self._uri
            ) from error
        return out

    def close(self) -> None:
        """Close the store. Idempotent."""
        if not self._closed:
            self._closed = True
            self._store.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ImageError(f"{self._uri}: the reader is closed", uri=self._uri)

    def _read_chunks(
        self, level: int, plane: Plane, region: Region, out: Array, tile_error: OnTileError
    ) -> None:
        """Read chunk by chunk after a failure, to find the bad ones and to keep the rest."""
        for index, box in _chunks(region, plane.tile_shape):
            offset = tuple(b - r for b, r in zip(box.origin, region.origin, strict=True))
            part = out[Region(offset, box.shape).slices]
            try:
                plane.read(box, part)
            except MemoryError:
                raise
            except Exception as error:
                message = (
                    f"{self._uri}, level {level} (array {plane.path!r}), chunk {index} (row, "
                    f"column): {type(error).__name__}: {error}; read with tile_error='fill' to get "
                    f"the background there"
                )
                if tile_error == "raise":
                    raise TileError(message, uri=self._uri, level=level, tile=index) from error
                logger.warning("%s; filled with the background", message)
                fill_background(part, self.info)


def _chunks(region: Region, chunk: tuple[int, int]) -> Iterator[tuple[tuple[int, int], Region]]:
    """Chunks that a region touches: (row, column), and the part of the region in each."""
    (y0, x0), (y1, x1) = region.origin, region.stop
    for row in range(y0 // chunk[0], -(-y1 // chunk[0])):
        top, bottom = max(y0, row * chunk[0]), min(y1, (row + 1) * chunk[0])
        for column in range(x0 // chunk[1], -(-x1 // chunk[1])):
            left, right = max(x0, column * chunk[1]), min(x1, (column + 1) * chunk[1])
            yield (row, column), Region((top, left), (bottom - top, right - left))
