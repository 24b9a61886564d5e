"""The backend over OpenSlide, for what the TIFF backend does not read (MRXS, VMS, CZI...).

Pixels are those of OpenSlide, with transparency blended over the background that the file
names, or white; opaque pixels are OpenSlide's RGB bit for bit.

OpenSlide takes locations in whole level-0 pixels and divides them by the level's (float)
downsample. Where the quotient is not a whole number it interpolates, so a pixel would
depend on the region it was read in. Readers here therefore start at the nearest location
that maps onto the pixel grid and crop. Levels whose downsample is a whole number (MRXS,
VMS, CZI) always have one, others mostly. Where there is none within `_MAX_SKIP` pixels (a
downsample such as 2.0002), the result is shifted by less than half a level-0 pixel, as
OpenSlide does it. Not covered: remote files (OpenSlide reads local ones only).
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from daskdmed.core.errors import CorruptImageError, MissingExtraError, UnsupportedImageError
from daskdmed.core.places import local_path
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import SlideInfo
from daskdmed.images.readers import BaseReader, check_readable, fingerprint_files, level_infos

if TYPE_CHECKING:
    from daskdmed.images.protocols import Reader

logger = logging.getLogger("daskdmed.images")

_TIFF_NAMES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide")
_OTHER_NAMES = (".mrxs", ".vms", ".vmu", ".dcm", ".czi")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"SQLi")

#: in the words of OpenSlide and the libraries below: it is not damaged
_UNSUPPORTED = re.compile(
    r"(?i)unsupported|not supported|unrecognized|can ?not handle|can't handle"
)
#: bytes of decoded tiles that all handles of the process share. A block read never needs a
#: tile twice, so this only has to hold one row of tiles of a few concurrent reads.
_CACHE_BYTES = 32 * 2**20
#: longest edge of one call, so that a block of any size needs about 40 MiB on top
_PIECE = 2048
#: OpenSlide itself cuts at 4096, and rounds there: `_PIECE + _MAX_SKIP` must stay below
_MAX_SKIP = 1024
#: larger offsets than 1/512 of a pixel change pixels (found by trial; cairo counts in 1/256)
_EXACT = 1 / 600

#: threads that open the first slides together make one cache only
_cache_lock = threading.Lock()
#: (height, width) of storage tiles where OpenSlide does not tell
_USUAL_TILE = 512


class OpenSlideBackend:
    """Opens what OpenSlide opens. Needs the extra ``openslide``."""

    name = "openslide"
    priority = 50
    needs: ClassVar = {"openslide": "openslide"}

    def accepts(self, uri: str) -> bool:
        """Ask OpenSlide; when it is not installed, judge by name and first bytes."""
        path = local_path(uri)
        if path is None or not os.path.isfile(path):
            return False
        try:
            openslide = _openslide()
        except MissingExtraError:
            return _looks_like_slide(path)
        try:
            return openslide.OpenSlide.detect_format(path) is not None
        except openslide.OpenSlideError as error:
            logger.debug("%s: OpenSlide cannot tell the format: %s", uri, error)
            return False

    def open(self, uri: str) -> Reader:
        path = local_path(uri)
        if path is None:
            raise UnsupportedImageError.of(
                uri, "OpenSlide reads local files only; download the slide first"
            )
        check_readable(uri, path)
        if os.path.isdir(path):
            raise UnsupportedImageError(
                f"{uri} is a directory; give the slide file inside (for MRXS, the .mrxs file "
                f"beside the directory)",
                uri=uri,
            )
        return OpenSlideReader(uri, path)

    def fingerprint(self, uri: str) -> str:
        """Size and modification time of the file and of the files it refers to."""
        path = local_path(uri)
        if path is None:
            raise UnsupportedImageError.of(uri, "OpenSlide reads local files only")
        return fingerprint_files(uri, [path, *_companions(path)])


class OpenSlideReader(BaseReader):
    """An open slide. Reads from any number of threads share one OpenSlide handle.

    An error makes such a handle useless for good, for all threads; the reader then takes a new
    one, and repeats the read on a handle of its own to learn whether the error was its own.
    """

    def __init__(self, uri: str, path: str) -> None:
        super().__init__(uri)
        self._path = path
        self._lock = threading.Lock()
        self._handle: Any = _open_handle(uri, path)
        try:
            self.info = _describe(self._handle)
            self._downsamples: tuple[float, ...] = self._handle.level_downsamples
        except _openslide().OpenSlideError as error:
            raise CorruptImageError.of(uri, f"OpenSlide fails: {error}") from error

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        tile = self.info.levels[level].tile_shape
        steps = tuple(max(1, _PIECE // t) * t if t <= _PIECE else _PIECE for t in tile)
        read = functools.partial(self._read_piece, level)
        for piece in region.tiles(steps):
            part = out[piece.local_to(region).slices]
            try:
                read(piece, part)
            except _OpenSlideFailed:
                self._read_tiles(level, piece, part, tile_error, read)

    def read_associated(self, name: str) -> Array:
        if name not in self.info.associated:
            raise self._no_associated(name)
        try:
            rgba = self._attempt(lambda handle: np.asarray(handle.associated_images[name]))
        except _OpenSlideFailed as error:
            raise CorruptImageError.of(
                self._uri, f"associated image {name!r} cannot be decoded: {error}"
            ) from error
        out = np.empty((*rgba.shape[:2], 3), np.uint8)
        _blend(rgba, self.info.background, out)
        return out

    def icc_profile(self) -> bytes | None:
        """The colour profile that OpenSlide knows of, from its version 4 on, as in the file."""

        def read(handle: Any) -> Any:
            return handle.read_region((0, 0), handle.level_count - 1, (1, 1)).info

        return dict(self._attempt(read)).get("icc_profile")

    def close(self) -> None:
        """Forget the handle; it is freed when the last read in progress ends. Idempotent."""
        with self._lock:
            self._closed = True
            self._handle = None

    def _read_piece(self, level: int, piece: Region, out: Array) -> None:
        """Read a box of at most `_PIECE` pixels a side."""
        if piece.size == 0:
            return
        downsample = self._downsamples[level]
        y, skip_y = _anchor(piece.origin[0], downsample)
        x, skip_x = _anchor(piece.origin[1], downsample)
        size = (piece.shape[1] + skip_x, piece.shape[0] + skip_y)
        rgba = self._attempt(lambda handle: np.asarray(handle.read_region((x, y), level, size)))
        _blend(rgba[skip_y:, skip_x:], self.info.background, out)

    def _attempt(self, action: Any) -> Any:
        """Run an action on the shared handle, and once more on a private one if that fails."""
        openslide = _openslide()
        with self._lock:
            self._check_open()
            if self._handle is None:
                self._handle = _open_handle(self._uri, self._path)
            handle = self._handle
        try:
            return action(handle)
        except openslide.OpenSlideError as error:
            logger.debug("%s: a handle failed (%s), opening another", self._uri, error)
        with self._lock:
            # other threads may still hold the failed one, so it is not closed here
            if self._handle is handle:
                self._handle = None
        try:
            return action(_open_handle(self._uri, self._path))
        except openslide.OpenSlideError as error:
            raise _OpenSlideFailed(str(error)) from error


class _OpenSlideFailed(Exception):
    """OpenSlide failed on a handle that nothing else had touched."""


def _openslide() -> Any:
    try:
        import openslide
    except ImportError as error:
        raise MissingExtraError(
            f"reading this slide needs OpenSlide, which cannot be imported ({error}); "
            f'pip install "daskdmed[openslide]"'
        ) from error
    return openslide


def _open_handle(uri: str, path: str) -> Any:
    openslide = _openslide()
    try:
        handle = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise UnsupportedImageError.of(
            uri,
            "OpenSlide does not know this format; check that it is a slide, and for "
            "MRXS and VMS that the files beside it are there",
        ) from error
    except openslide.OpenSlideError as error:
        if _UNSUPPORTED.search(str(error)):
            raise UnsupportedImageError.of(
                uri, f"OpenSlide does not read it: {error}; convert it"
            ) from error
        raise CorruptImageError.of(
            uri,
            f"OpenSlide cannot open it: {error}; the file is truncated or damaged, copy it again",
        ) from error
    with _cache_lock:
        cache = _shared_cache()
    if cache is not None:
        handle.set_cache(cache)
    return handle


@functools.cache
def _shared_cache() -> Any:
    """One cache per process: the default of 32 MiB per handle adds up over many slides."""
    openslide = _openslide()
    try:
        return openslide.OpenSlideCache(_CACHE_BYTES)
    except openslide.OpenSlideVersionError as error:
        logger.debug("every slide has its own cache: %s", error)
        return None


def _describe(handle: Any) -> SlideInfo:
    properties = dict(handle.properties)
    tiles = [
        tuple(
            _whole(properties.get(f"openslide.level[{i}].tile-{axis}")) or _USUAL_TILE
            for axis in ("height", "width")
        )
        for i in range(handle.level_count)
    ]
    mpp_x, mpp_y = (_positive(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    return SlideInfo(
        levels=level_infos([(h, w, 3) for w, h in handle.level_dimensions], tiles),
        dtype="uint8",
        background=_colour(properties.get("openslide.background-color")),
        mpp=(mpp_x, mpp_y) if mpp_x and mpp_y else None,
        power=_positive(properties.get("openslide.objective-power")),
        vendor=properties.get("openslide.vendor", ""),
        properties=properties,
        associated=tuple(sorted(handle.associated_images)),
    )


def _colour(text: str | None) -> tuple[int, int, int]:
    """A colour such as "FFEEDD"; white when there is none."""
    try:
        red, green, blue = bytes.fromhex((text or "").lstrip("#"))
    except ValueError:
        return (255, 255, 255)
    return (red, green, blue)


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) and value > 0 else None


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _anchor(start: int, downsample: float) -> tuple[int, int]:
    """Level-0 coordinate that OpenSlide maps onto a whole pixel at or before `start`, and how many
    pixels of the level lie between the two: pixel `start` then comes out untouched."""
    pixels = start - np.arange(min(start, _MAX_SKIP) + 1)
    locations = np.rint(pixels * downsample)
    good = np.flatnonzero(np.abs(locations / downsample - pixels) < _EXACT)
    skip = int(good[0]) if good.size else 0
    return int(locations[skip]), skip


def _blend(rgba: Array, background: tuple[int, ...], out: Array) -> None:
    """Write RGBA (not premultiplied) over a background colour into `out`."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        out[...] = rgba[..., :3]
        return
    a = alpha.astype(np.uint16)  # 255 * 255 + 127 still fits
    out[...] = (rgba[..., :3] * a + np.array(background, np.uint16) * (255 - a) + 127) // 255


def _looks_like_slide(path: str) -> bool:
    name = path.lower()
    if name.endswith(_OTHER_NAMES):
        return True
    if not name.endswith(_TIFF_NAMES):
        return False
    try:
        with open(path, "rb") as file:
            return file.read(4) in _TIFF_MAGIC
    except OSError as error:
        logger.debug("%s: %s", path, error)
        return False


def _companions(path: str) -> list[str]:
    """Files that hold the pixels when the slide's own file is only an index."""
    name = path.lower()
    folder = os.path.dirname(path)
    if name.endswith(".mrxs"):
        folder = path[: -len(".mrxs")]
        return [os.path.join(folder, n) for n in _listing(folder)]
    if name.endswith(".dcm"):
        names = [n for n in _listing(folder) if n.lower().endswith(".dcm")]
        return [os.path.join(folder, n) for n in names if n != os.path.basename(path)]
    if name.endswith((".vms", ".vmu")):
        with open(path, encoding="latin-1") as file:
            values = [line.partition("=")[2].strip() for line in file.read(1 << 20).splitlines()]
        wanted = {os.path.join(folder, v) for v in values if v and os.sep not in v}
        return sorted(p for p in wanted if os.path.isfile(p))
    return []


def _listing(folder: str) -> list[str]:
    return sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
