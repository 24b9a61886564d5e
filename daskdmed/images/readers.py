"""Steps that readers share: local paths, checks and fingerprints of files, output arrays.

Not covered here: how any format is read, and the choice of a backend for a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import numpy as np

from daskdmed.core.errors import GeometryError, ResolutionError
from daskdmed.core.types import Array, Region
from daskdmed.images.protocols import SlideInfo
from daskdmed.images.source import explain_os_error, is_remote


def local_path(uri: str) -> str | None:
    """Path of a local file, or None when `uri` is a URL of something remote."""
    if is_remote(uri):
        return None
    return unquote(urlsplit(uri).path) if uri.startswith("file:") else uri


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


def prepare_output(
    uri: str, info: SlideInfo, level: int, region: Region, out: Array | None
) -> Array:
    """Check what a reader is asked for, and make the array to read into.

    Returns
    -------
    ndarray
        `out`, or a new array of shape (height, width, channels) and the dtype of `info`.

    Raises
    ------
    ResolutionError
        There is no such level.
    GeometryError
        The region is not two-dimensional, or not inside the level; or `out` does not fit.
    """
    if not 0 <= level < len(info.levels):
        raise ResolutionError(
            f"{uri} has levels 0 to {len(info.levels) - 1}, there is no level {level}"
        )
    height, width, channels = info.levels[level].shape
    if len(region.shape) != 2:
        raise GeometryError(f"{uri}: a region of a slide is (y, x), got {region}")
    inside = (
        min(region.origin) >= 0
        and min(region.shape) >= 0
        and region.stop[0] <= height
        and region.stop[1] <= width
    )
    if not inside:
        raise GeometryError(
            f"{uri}, level {level}: the region from {region.origin} to {region.stop} (y, x) is not "
            f"inside the level of {height} x {width} pixels; crop it, or read through a slide, "
            f"which pads with the background"
        )
    shape = (*region.shape, channels)
    if out is None:
        return np.empty(shape, info.numpy_dtype)
    if out.shape != shape or out.dtype != info.numpy_dtype:
        raise GeometryError(
            f"{uri}, level {level}: out is {out.shape} {out.dtype}, the region needs "
            f"{shape} {info.dtype}"
        )
    return out


def fill_background(out: Array, info: SlideInfo) -> None:
    """Set every pixel of `out` to the background."""
    out[...] = np.asarray(info.background, info.numpy_dtype)
