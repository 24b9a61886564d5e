"""Steps that readers share: fingerprints, checks of requests, failed tiles.

Not covered here: how any format is read, and the choice of a backend for a file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable

from daskdmed.core.buffers import empty
from daskdmed.core.errors import GeometryError, ResolutionError, TileError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.core.view import FailedTile
from daskdmed.images.protocols import SlideInfo
from daskdmed.images.source import explain_os_error

logger = logging.getLogger("daskdmed.images")
#: failed tiles remembered per open file
_REPORTED = 1000


def check_readable(uri: str, path: str) -> os.stat_result:
    """Stat a local path and make sure that it may be read.

    Raises
    ------
    ImageNotFoundError, ImagePermissionError, ImageError
        It does not exist, may not be read, or the disk fails.
    """
    try:
        facts = os.stat(path)
        if os.path.isdir(path):
            os.scandir(path).close()
        else:
            os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise explain_os_error(error, uri) from error
    return facts


def fingerprint_files(uri: str, paths: Iterable[str]) -> str:
    """Size and modification time of the files, short: changes when one of them does.

    Raises
    ------
    ImageNotFoundError, ImagePermissionError, ImageError
        One of them cannot be statted.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            facts = os.stat(path)
        except OSError as error:
            raise explain_os_error(error, uri) from error
        digest.update(f"{os.path.basename(path)}:{facts.st_size}:{facts.st_mtime_ns};".encode())
    return digest.hexdigest()


class TileFailures:
    """What becomes of the tiles of one open file that cannot be decoded.

    Parameters
    ----------
    uri : str
        The file.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._kept: deque[FailedTile] = deque(maxlen=_REPORTED)

    def __call__(
        self, level: int, tile: tuple[int, ...], cause: Exception, tile_error: OnTileError
    ) -> None:
        """Raise, or note and log that the caller paints the tile with the background.

        Parameters
        ----------
        level : int
            Level index.
        tile : tuple of int
            Which tile, counted from 0 along each axis in array order.
        cause : Exception
            What the decoder raised.
        tile_error : {"raise", "fill"}
            What the user asked for.

        Raises
        ------
        TileError
            For "raise".
        """
        text = f"{type(cause).__name__}: {cause}"
        axes = {2: " (row, column)", 3: " (z, y, x)"}.get(len(tile), "")
        what = f"{self._uri}: tile {tile}{axes} of level {level} cannot be decoded: {text}"
        if tile_error == "raise":
            raise TileError(
                f"{what}; fetch the file again, or pass tile_error='fill' to have such tiles "
                "painted with the background",
                uri=self._uri,
                level=level,
                tile=tile,
            ) from cause
        with self._lock:
            self._kept.append(FailedTile(level, tile, text))
        logger.warning("%s; painted with the background", what)

    @property
    def kept(self) -> tuple[FailedTile, ...]:
        """The last of those that were painted."""
        with self._lock:
            return tuple(self._kept)


def prepare_output(
    uri: str, info: SlideInfo, level: int, region: Region, out: Array | None
) -> Array:
    """Check what a reader is asked for, and make the array to read into.

    Returns
    -------
    ndarray
        `out`, or recycled memory of shape ``(*region.shape, channels)`` and the dtype of
        `info`.

    Raises
    ------
    ResolutionError
        There is no such level.
    GeometryError
        The region has other axes than the image, or does not lie inside the level; or `out`
        does not fit.
    """
    if not 0 <= level < len(info.levels):
        raise ResolutionError(
            f"{uri} has levels 0 to {len(info.levels) - 1}, there is no level {level}"
        )
    *spatial, channels = info.levels[level].shape
    if not region.within(spatial):
        raise GeometryError(
            f"{uri}, level {level}: the region from {region.origin} to {region.stop} lies outside "
            f"the level of {tuple(spatial)} pixels, at least in part; clip it, or read through a "
            "view, whose read_padded gives the background there"
        )
    shape = (*region.shape, channels)
    if out is None:
        return empty(shape, info.numpy_dtype)
    if out.shape != shape or out.dtype != info.numpy_dtype:
        raise GeometryError(
            f"{uri}, level {level}: out is {out.shape} {out.dtype}, the region needs "
            f"{shape} {info.dtype}"
        )
    return out
