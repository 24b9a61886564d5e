"""The TIFF backend: accepts a file, opens it, reads regions.

Not covered: parsing (`daskdmed.images.tiff.index`) and decoding
(`daskdmed.images.tiff.decode`).
"""

from __future__ import annotations

import logging
import threading

import numpy as np

from daskdmed.core.errors import DaskdmedError, ImageError, MissingExtraError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images import source as sources
from daskdmed.images.protocols import SlideInfo, SlideOptions
from daskdmed.images.readers import BaseReader, level_infos, level_properties, number_text
from daskdmed.images.refusals import RangeError
from daskdmed.images.source import Source
from daskdmed.images.tiff.boxes import can_read_boxes, read_boxes
from daskdmed.images.tiff.decode import Canvas, LevelPlan, Reading, read_level
from daskdmed.images.tiff.index import TiffIndex, parse
from daskdmed.images.tiff.some import read_some

_log = logging.getLogger("daskdmed.images")


class TiffReader(BaseReader):
    """An open TIFF slide. Thread-safe; holds a descriptor and plain arrays."""

    def __init__(self, source: Source, index: TiffIndex) -> None:
        super().__init__(source.uri)
        self._source = source
        self._plans = tuple(index.levels)
        self._associated = index.associated
        self._profile = index.profile
        self.info = make_info(index)
        self._background = np.asarray(index.background, index.dtype)
        self._lock = threading.Lock()

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        self._fill(self._plans[level], region, out, self._background, tile_error)

    def _read_channels(
        self,
        level: int,
        region: Region,
        channels: tuple[int, ...],
        out: Array,
        tile_error: OnTileError,
    ) -> None:
        job = self._job(self._background, tile_error)
        read_some(self._plans[level], channels, job, region, out)

    def read_boxes(self, level: int, first: Array, out: Array, tile_error: OnTileError) -> bool:
        """Boxes of one size at their `first` pixels (boxes, 2) into `out`, (boxes, height, width,
        channels), each tile decoded once; all lie inside the level. False: read them as regions."""
        self._check_open()
        plan = self._plans[level]
        if not can_read_boxes(plan):
            return False
        read_boxes(plan, self._job(self._background, tile_error), first, out)
        return True

    def read_associated(self, name: str) -> Array:
        self._check_open()
        plan = self._associated.get(name)
        if plan is None:
            raise self._no_associated(name)
        out = np.empty(plan.shape, plan.dtype)
        white = np.full(plan.shape[2], 255, plan.dtype)
        self._fill(plan, Region.of(plan.shape[:2]), out, white, "raise")
        return out

    def icc_profile(self) -> bytes | None:
        """The colour profile of the file, read on demand: some have a megabyte."""
        self._check_open()
        return None if self._profile is None else self._source.read(*self._profile)

    def close(self) -> None:
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
    ) -> None:
        read_level(plan, self._job(background, tile_error), region, out)

    def _job(self, background: Array, tile_error: OnTileError) -> Reading:
        def fail(level: int, row: int, column: int, cause: Exception) -> None:
            self._failures(level, (row, column), cause, tile_error)

        return Reading(self._source, background, fail)


def looks_like_tiff(uri: str) -> bool:
    """Whether a file begins as TIFF does. Never raises."""
    try:
        source = sources.open_source(uri)
    except RangeError:
        return True  # what it is cannot be seen from here: `open` says why
    except (ImageError, MissingExtraError):
        return False
    try:
        head = source.read(0, 4)
    except Exception:
        _log.debug("%s: the first bytes cannot be read", uri, exc_info=True)
        return False
    finally:
        source.close()
    return head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class TiffBackend:
    """Opens TIFF slides: SVS, generic pyramids, OME-TIFF, NDPI, SCN, BIF, QPTIFF, Philips."""

    name = "tiff"
    priority = 10

    def accepts(self, uri: str) -> bool:
        return looks_like_tiff(uri)

    def open(self, uri: str) -> TiffReader:
        return self.open_slide(uri, SlideOptions())

    def open_slide(self, uri: str, options: SlideOptions) -> TiffReader:
        """One of the images (series) that a file holds, in one plane of it."""
        source = sources.open_source(uri)
        try:
            return TiffReader(source, parse(source, options))
        except BaseException as exc:
            source.close()
            if isinstance(exc, DaskdmedError) or not isinstance(exc, Exception):
                raise
            raise sources.explain_os_error(exc, uri) from exc

    def fingerprint(self, uri: str) -> str:
        return sources.fingerprint(uri)


def make_info(index: TiffIndex) -> SlideInfo:
    """Facts about the slide, with OpenSlide's property names."""
    about, shapes = index.metadata, [plan.shape for plan in index.levels]
    properties = {**about.properties, "openslide.vendor": about.vendor}
    if about.mpp is not None:
        properties["openslide.mpp-x"], properties["openslide.mpp-y"] = map(number_text, about.mpp)
    if about.power is not None:
        properties["openslide.objective-power"] = number_text(about.power)
    levels = level_infos(shapes, [plan.tile for plan in index.levels])
    properties |= level_properties(levels)
    for i, plan in enumerate(index.levels):
        if isinstance(plan, Canvas) or plan.short_tiles:  # no tiles to speak of
            for axis in ("width", "height"):
                del properties[f"openslide.level[{i}].tile-{axis}"]
    for name, one in index.associated.items():
        properties[f"openslide.associated.{name}.width"] = str(one.shape[1])
        properties[f"openslide.associated.{name}.height"] = str(one.shape[0])
    return SlideInfo(
        levels=levels,
        dtype=index.dtype.name,
        background=index.background,
        mpp=about.mpp,
        power=about.power,
        vendor=about.vendor,
        properties=dict(sorted(properties.items())),
        associated=tuple(sorted(index.associated)),
        images=index.images,
        planes=index.planes.names,
        plane=index.planes.name,
        channels=index.channels,
        is_labels=index.is_labels,
    )
