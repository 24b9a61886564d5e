"""The backend over Zarr: OME-Zarr image pyramids and plain arrays, local or remote.

Takes a local directory, a zip file, or any URL that fsspec opens (``s3://``, ``https://``,
``memory://``), Zarr v2 and v3, sharded or not. Chunks that were never written hold the
fill value, as the format has it. What the metadata mean is in `daskdmed.images.ngff.planes`,
where the bytes come from in `daskdmed.images.ngff.storage`.
Chunks of Zarr v3 on the local disk are decoded here (`daskdmed.images.ngff.chunks`), all others
by zarr; those in Rust, with every core, by the extra `zarrs` and
``zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})`` before slides are opened.
Not covered: writing (`daskdmed.store`), and volumes (`daskdmed.images.ngff.volume`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.core.errors import ChangedImageError, RemoteError, TileError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.ngff.planes import read_pyramid
from daskdmed.images.ngff.storage import (
    Watch,
    fingerprint,
    looks_like_zarr,
    open_node,
    open_store,
)
from daskdmed.images.protocols import SlideOptions
from daskdmed.images.readers import BaseReader

if TYPE_CHECKING:
    from daskdmed.images.protocols import Reader

logger = logging.getLogger("daskdmed.images")


class ZarrBackend:
    """Opens OME-Zarr pyramids and plain Zarr images."""

    name = "zarr"
    priority = 20

    def accepts(self, uri: str) -> bool:
        return looks_like_zarr(uri)

    def open(self, uri: str) -> Reader:
        return self.open_slide(uri, SlideOptions())

    def open_slide(self, uri: str, options: SlideOptions) -> Reader:
        """One of the images that bioformats2raw writes into one group, in one plane of it."""
        store = open_store(uri)
        try:
            return ZarrReader(uri, store, options)
        except BaseException:
            store.close()
            raise

    def fingerprint(self, uri: str) -> str:
        return fingerprint(uri)


class ZarrReader(BaseReader):
    """An open Zarr image. Reads from any number of threads."""

    def __init__(self, uri: str, store: Any, options: SlideOptions) -> None:
        super().__init__(uri)
        self._store = store
        self._watch = Watch(uri)
        self._pyramid = read_pyramid(uri, open_node(uri, store), options)
        self.info = self._pyramid.info

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        plane = self._pyramid.planes[level]
        try:
            plane.read(region, out)
        except (MemoryError, RemoteError, ChangedImageError):
            raise  # of these no chunk is to blame
        except Exception as error:  # codecs and stores raise all sorts
            logger.debug("%s, level %d: %r, reading chunk by chunk", self._uri, level, error)
            self._read_tiles(level, region, out, tile_error, plane.read)
        self._watch.check()

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        plane = self._pyramid.planes[level]
        try:
            plane.read_some(region, channels, out)
        except MemoryError:
            raise
        except Exception as error:  # as above
            logger.debug("%s, level %d: %r, reading all channels", self._uri, level, error)
            super()._read_channels(level, region, channels, out, tile_error)

    def read_associated(self, name: str) -> Array:
        self._check_open()
        plane = self._pyramid.associated.get(name)
        if plane is None:
            raise self._no_associated(name)
        out = np.empty(plane.shape, np.uint8)
        try:
            plane.read(Region((0, 0), plane.shape[:2]), out)
        except (MemoryError, RemoteError, ChangedImageError):
            raise
        except Exception as error:
            raise TileError(
                f"{self._uri}: associated image {name!r} cannot be read: {error}", uri=self._uri
            ) from error
        return out

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.close()
