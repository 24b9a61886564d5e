"""The backend over Zarr: OME-Zarr image pyramids and plain arrays, local or remote.

Takes a local directory, a zip file, or any URL that fsspec opens (``s3://``, ``https://``,
``memory://``), Zarr v2 and v3, sharded or not. Chunks that were never written hold the
fill value, as the format has it. What the metadata mean is in `daskdmed.images.ngff.planes`,
where the bytes come from in `daskdmed.images.ngff.storage`. Not covered: writing (see
`daskdmed.store`), volumes and time series.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import ImageError, TileError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import FailedTile
from daskdmed.images.ngff.planes import Plane, read_pyramid
from daskdmed.images.ngff.storage import fingerprint, looks_like_zarr, open_node, open_store
from daskdmed.images.protocols import SlideInfo
from daskdmed.images.readers import TileFailures, prepare_output

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
        self._failures = TileFailures(uri)
        self._pyramid = read_pyramid(uri, open_node(uri, store))

    @property
    def info(self) -> SlideInfo:
        """Facts about the image."""
        return self._pyramid.info

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        """The last chunks that ``tile_error="fill"`` painted with the background."""
        return self._failures.kept

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
        for box in region.tiles(plane.tile_shape):
            part = out[box.local_to(region).slices]
            try:
                plane.read(box, part)
            except MemoryError:
                raise
            except Exception as error:
                self._failures(level, box.cells(plane.tile_shape).origin, error, tile_error)
                part[...] = self.info.background_value
