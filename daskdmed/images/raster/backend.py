"""The backend of plain pictures: PNG, JPEG, JPEG 2000, BMP and WebP, as slides of one level.

What is read:

- gray values, RGB and 16 bits as they are; transparency laid on white; CMYK as RGB by plain
  arithmetic, as Pillow does it; the orientation that EXIF asks for, as viewers show it;
- palettes (and pixels of one bit) as the numbers behind them, one channel: in pathology these
  are label maps. `SlideInfo.is_labels` says so, and the log, as the colours are left out;
- micrometers per pixel where the file gives a density of a microscope's magnitude (JFIF, EXIF,
  pHYs, capture resolution): 72 and 300 per inch are a printer's, and nothing is known then.

Pictures are decoded once, as a whole, on the first read. Up to ``daskdmed.images.decoded-limit``
(512 MiB) they stay in memory while they are in use, together at most ``decoded-kept`` (1 GiB);
larger ones are written once, uncompressed, into the cache folder. Those that take more than
``picture-limit`` (4 GiB) to decode are refused. JPEG 2000 in tiles is read tile by tile, without
any of this.

Not covered: animations (the first picture of a PNG is read), GIF, HEIF, raw camera files.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator

import numpy as np

from daskdmed.core.errors import DaskdmedError, ImageError, UnsupportedImageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images import source as sources
from daskdmed.images.protocols import SlideInfo
from daskdmed.images.raster import headers, jpeg2000
from daskdmed.images.raster.picture import Picture, check_memory, check_sizes
from daskdmed.images.raster.pixels import decode
from daskdmed.images.readers import BaseReader, level_infos, level_properties, number_text
from daskdmed.images.source import LocalSource, Source
from daskdmed.images.tiff.decode import LevelPlan, Reading, read_level
from daskdmed.images.volumes.decoded import Decoded, converted, decoded_files, setting
from daskdmed.images.volumes.rawfile import RawArray

_log = logging.getLogger("daskdmed.images")
#: edge of what counts as a tile of a picture that is decoded whole
_TILE = 512
#: rows that are written into the cache folder at once
_ROWS = 256


def kind_of_picture(head: bytes) -> str:
    """The name of the format by its first 16 bytes, "" for others."""
    if head.startswith(headers.PNG_MAGIC):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((jpeg2000.JP2_MAGIC, jpeg2000.J2K_MAGIC)):
        return "jp2"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return "bmp" if head[:2] == b"BM" and head[6:10] == bytes(4) else ""


class RasterBackend:
    """Opens plain pictures."""

    name = "raster"
    priority = 30

    def accepts(self, uri: str) -> bool:
        try:
            source = sources.open_source(uri)
        except ImageError:
            return False
        try:
            return bool(kind_of_picture(source.read(0, 16)))
        except Exception:
            _log.debug("%s: the first bytes cannot be read", uri, exc_info=True)
            return False
        finally:
            source.close()

    def open(self, uri: str) -> RasterReader:
        source = sources.open_source(uri)
        try:
            return RasterReader(source)
        except BaseException as exc:
            source.close()
            if isinstance(exc, DaskdmedError) or not isinstance(exc, Exception):
                raise
            raise sources.explain_os_error(exc, uri) from exc

    def fingerprint(self, uri: str) -> str:
        return sources.fingerprint(uri)


def parse(source: Source) -> tuple[Picture, LevelPlan | None]:
    """What a file holds, and its tiles where it has some; an error for what is not read."""
    kind = kind_of_picture(source.read(0, 16))
    plan = None
    if kind == "jp2":
        picture, plan = jpeg2000.parse_jpeg2000(source)
    elif kind == "png":
        picture = headers.parse_png(source)
    elif kind == "jpeg":
        picture = headers.parse_jpeg(source)
    elif kind == "bmp":
        picture = headers.parse_bmp(source)
    elif kind == "webp":
        picture = headers.parse_webp(source)
    else:
        raise UnsupportedImageError.of(
            source.uri, "it is no PNG, JPEG, JPEG 2000, BMP or WebP by its first bytes"
        )
    check_sizes(picture, source)
    if plan is None:
        check_memory(picture, source)
    return picture, plan


class RasterReader(BaseReader):
    """An open picture. Reads from any number of threads; one decodes."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.uri)
        self._source = source
        self._picture, self._plan = parse(source)
        self.info = _describe(self._picture, self._plan)
        self._lock = threading.Lock()
        self._failure: Exception | None = None
        self._shared: Decoded | None = None
        self._file: tuple[LocalSource, RawArray] | None = None
        self._key = f"{source.uri}|{sources.fingerprint(source.uri)}|picture"
        if self._plan is None and self._nbytes <= setting("decoded-limit"):
            self._shared = decoded_files.enter(self._key)
        if self._picture.colour == "labels":
            _log.info("%s: reads the numbers behind the palette, not its colours", source.uri)

    @property
    def _nbytes(self) -> int:
        return int(np.prod(self._picture.shape)) * self.info.numpy_dtype.itemsize

    def icc_profile(self) -> bytes | None:
        """The colour profile in the file."""
        return self._picture.icc_profile

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        if self._plan is not None:

            def fail(level: int, row: int, column: int, cause: Exception) -> None:
                self._failures(level, (row, column), cause, tile_error)

            read_level(
                self._plan, Reading(self._source, self.info.background_value, fail), region, out
            )
            return
        try:
            self._copy(region, out)
        except (MemoryError, DaskdmedError):
            raise
        except Exception as error:  # codecs raise all sorts
            self._failures(0, (0, 0), error, tile_error)
            out[...] = self.info.background_value

    def _copy(self, region: Region, out: Array) -> None:
        if self._shared is not None:
            out[...] = decoded_files.get(self._key, self._shared, self._decode)[region.slices]
            return
        self._in_file().read((*region.slices, slice(0, out.shape[2])), out)

    def _decode(self) -> Array:
        if self._failure is not None:
            raise self._failure
        try:
            return decode(self._picture, self._source.read(0, self._source.size))
        except MemoryError:
            raise
        except Exception as error:
            self._failure = error  # a picture of many blocks is not tried for each
            raise

    def _in_file(self) -> RawArray:
        """The picture, decoded, in the cache folder."""
        with self._lock:
            if self._file is None:
                name = hashlib.blake2b(self._key.encode(), digest_size=16).hexdigest()
                file = converted(self._uri, name, self._nbytes, self._rows)
                raw = RawArray(file, 0, self._picture.shape, self.info.numpy_dtype)
                self._file = file, raw
            return self._file[1]

    def _rows(self) -> Iterator[bytes]:
        image = self._decode()
        for row in range(0, len(image), _ROWS):
            yield image[row : row + _ROWS].tobytes()

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        if self._shared is not None:
            decoded_files.leave(self._key)
        self._source.close()
        if self._file is not None:
            self._file[0].close()


def _describe(picture: Picture, plan: LevelPlan | None) -> SlideInfo:
    height, width, _ = picture.shape
    tile = (min(_TILE, height), min(_TILE, width)) if plan is None else plan.tile
    levels = level_infos([picture.shape], [tile])
    properties = level_properties(levels)
    if plan is None:  # no tiles to speak of
        for axis in ("width", "height"):
            del properties[f"openslide.level[0].tile-{axis}"]
    properties |= {"openslide.vendor": picture.kind, "raster.orientation": str(picture.orientation)}
    mpp = picture.shown_mpp
    if mpp is not None:
        properties["openslide.mpp-x"], properties["openslide.mpp-y"] = map(number_text, mpp)
    return SlideInfo(
        levels=levels,
        dtype=picture.dtype,
        background=picture.background,
        mpp=mpp,
        vendor=picture.kind,
        properties=dict(sorted(properties.items())),
        is_labels=picture.colour == "labels",
    )
