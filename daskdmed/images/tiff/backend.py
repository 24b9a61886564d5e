"""The TIFF backend: accepts a file, opens it, reads regions.

Not covered: parsing (`daskdmed.images.tiff.index`) and decoding
(`daskdmed.images.tiff.decode`).
"""

from __future__ import annotations

import logging
import threading

import numpy as np

from daskdmed.core.errors import DaskdmedError, ImageError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import FailedTile
from daskdmed.images import source as sources
from daskdmed.images.protocols import LevelInfo, SlideInfo
from daskdmed.images.readers import TileFailures, prepare_output
from daskdmed.images.source import Source
from daskdmed.images.tiff.decode import Canvas, LevelPlan, read_level
from daskdmed.images.tiff.index import TiffIndex, parse
from daskdmed.images.tiff.metadata import number_text

_log = logging.getLogger("daskdmed.images")


class TiffReader:
    """An open TIFF slide. Thread-safe; holds a descriptor and plain arrays."""

    def __init__(self, source: Source, index: TiffIndex) -> None:
        self._source = source
        self._plans = tuple(index.levels)
        self._associated = index.associated
        self._info = make_info(index)
        self._background = np.asarray(index.background, index.dtype)
        self._lock = threading.Lock()
        self._failures = TileFailures(source.uri)
        self._closed = False

    @property
    def info(self) -> SlideInfo:
        """Facts about the slide."""
        return self._info

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        """The last tiles that ``tile_error="fill"`` painted with the background."""
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
            A tile cannot be decoded.
        ResolutionError, GeometryError
            There is no such level, or the region is not inside it.
        ImageError
            The reader is closed.
        """
        if self._closed:
            raise ImageError(f"{self._source.uri}: the reader is closed", uri=self._source.uri)
        out = prepare_output(self._source.uri, self._info, level, region, out)
        plan = self._plans[level]
        return self._fill(plan, region, out, self._background, tile_error)

    def read_associated(self, name: str) -> Array:
        """One associated image, (height, width, channels) uint8.

        Raises
        ------
        UsageError
            There is none of that name.
        """
        plan = self._associated.get(name)
        if plan is None:
            raise UsageError(
                f"{self._source.uri}: no associated image {name!r}; there are "
                f"{sorted(self._associated)}"
            )
        height, width, channels = plan.shape
        out = np.empty(plan.shape, plan.dtype)
        white = np.full(channels, 255, plan.dtype)
        return self._fill(plan, Region((0, 0), (height, width)), out, white, "raise")

    def close(self) -> None:
        """Release the descriptor. Idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._source.close()

    def _fill(
        self,
        plan: LevelPlan | Canvas,
        region: Region,
        out: Array,
        background: Array,
        tile_error: OnTileError,
    ) -> Array:
        def fail(level: int, row: int, column: int, cause: Exception) -> None:
            self._failures(level, (row, column), cause, tile_error)

        read_level(plan, self._source, region, out, background, fail)
        return out


class TiffBackend:
    """Opens TIFF slides: SVS, generic pyramids, OME-TIFF, NDPI, SCN, BIF, QPTIFF, Philips."""

    name = "tiff"
    priority = 10

    def accepts(self, uri: str) -> bool:
        """Whether the file starts like a TIFF; never raises."""
        try:
            source = sources.open_source(uri)
        except ImageError:
            return False
        try:
            head = source.read(0, 4)
        except Exception:
            _log.debug("%s: the first bytes cannot be read", uri, exc_info=True)
            return False
        finally:
            source.close()
        return head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

    def open(self, uri: str) -> TiffReader:
        """Open a file.

        Raises
        ------
        ImageNotFoundError, ImagePermissionError, UnsupportedImageError, CorruptImageError
            Naming the file and a remedy.
        """
        source = sources.open_source(uri)
        try:
            return TiffReader(source, parse(source))
        except DaskdmedError:
            source.close()
            raise
        except Exception as exc:
            source.close()
            raise sources.explain_os_error(exc, uri) from exc

    def fingerprint(self, uri: str) -> str:
        """Size and modification time, or what identifies a remote object."""
        return sources.fingerprint(uri)


def make_info(index: TiffIndex) -> SlideInfo:
    """Facts about the slide, with OpenSlide's property names."""
    height, width = index.levels[0].shape[:2]
    levels = tuple(
        LevelInfo(
            shape=plan.shape,
            tile_shape=plan.tile,
            downsample=(height / plan.shape[0], width / plan.shape[1]),
        )
        for plan in index.levels
    )
    about = index.metadata
    properties = dict(about.properties)
    properties["openslide.vendor"] = about.vendor
    if about.mpp is not None:
        properties["openslide.mpp-x"] = number_text(about.mpp[0])
        properties["openslide.mpp-y"] = number_text(about.mpp[1])
    if about.power is not None:
        properties["openslide.objective-power"] = number_text(about.power)
    properties["openslide.level-count"] = str(len(levels))
    for i, level in enumerate(levels):
        name = f"openslide.level[{i}]."
        properties[name + "width"] = str(level.shape[1])
        properties[name + "height"] = str(level.shape[0])
        properties[name + "downsample"] = number_text(sum(level.downsample) / 2)
        if isinstance(index.levels[i], LevelPlan) and not index.levels[i].short_tiles:
            properties[name + "tile-width"] = str(level.tile_shape[1])
            properties[name + "tile-height"] = str(level.tile_shape[0])
    for name, plan in index.associated.items():
        properties[f"openslide.associated.{name}.width"] = str(plan.shape[1])
        properties[f"openslide.associated.{name}.height"] = str(plan.shape[0])
    return SlideInfo(
        levels=levels,
        dtype=index.dtype.name,
        background=index.background,
        mpp=about.mpp,
        power=about.power,
        vendor=about.vendor,
        properties=dict(sorted(properties.items())),
        associated=tuple(sorted(index.associated)),
    )
