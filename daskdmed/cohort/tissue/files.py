"""Masks that others made, in files.

A mask of another program lies over the whole image, at any scale: PNG, TIFF (plain or
pyramidal), ``.npy`` or Zarr; it counts where it is not zero. Not covered:
finding tissue, and what `TissueMask.save` writes (`daskdmed.cohort.tissue.npz`).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed.cohort.tissue.mask import TissueMask
from daskdmed.core.coverage import check_aspect
from daskdmed.core.errors import (
    CorruptImageError,
    GeometryError,
    ImageNotFoundError,
    UnsupportedImageError,
)
from daskdmed.core.places import is_url, local_path
from daskdmed.core.region import Region
from daskdmed.core.types import Array, PathLike
from daskdmed.core.view import ImageView
from daskdmed.images.resample import area_means
from daskdmed.images.volumes.npy import mapped

#: most pixels that a mask is read with; larger ones are averaged down
READ_PIXELS = 2**24
#: most pixels of a PNG, which can only be decoded as a whole
_PNG_PIXELS = 2**28
_PNG = b"\x89PNG\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_NPZ = b"PK\x03\x04"


def read_mask(path: PathLike, name: str, shape0: tuple[int, ...]) -> Array | TissueMask:
    """A mask file, fitted to an image."""
    place = local_path(path) or os.fspath(path)
    if not is_url(place) and not os.path.exists(place):
        raise ImageNotFoundError(
            f"{place}: there is no such mask file, asked for as the tissue of {name}; the named "
            "methods are 'otsu', 'entropy' and 'hed'",
            uri=str(place),
        )
    head = b""
    if os.path.isfile(place):
        with open(place, "rb") as f:
            head = f.read(32)
    if head.startswith(_NPZ) and str(place).endswith(".npz"):
        mask = TissueMask.load(place)
        if mask.shape0 != shape0:
            raise GeometryError(
                f"{place} is the tissue of an image of {mask.shape0} level-0 pixels, "
                f"{name} has {shape0}"
            )
        return mask
    if head.startswith(_NPY):
        return fit(_read_npy(place), shape0, place, name)
    if head.startswith(_PNG):
        return fit(_read_png(place, head), shape0, place, name)
    return _read_image(place, name, shape0)


def fit(mask: Any, shape0: tuple[int, ...], where: str, name: str) -> Array:
    """Check that a mask can lie over an image, and make it bool."""
    axes, shape = len(shape0), tuple(np.shape(mask))
    # colours of a picture lie behind the axes
    coloured = len(shape) == axes + 1 and shape[-1] <= 4
    if not (len(shape) == axes or coloured) or 0 in shape:
        raise GeometryError(
            f"{where}: a mask of shape {shape} does not lie over {name} of {shape0} "
            f"level-0 pixels; it needs {axes} axes in array order and may have any scale"
        )
    check_aspect(shape[:axes], shape0, f"{name} of {shape0} level-0 pixels", where)
    if math.prod(shape) > READ_PIXELS:
        from daskdmed.cohort.record import Record

        return _reduced(Record(array=mask).view(spatial_ndim=axes))
    return _not_zero(np.asarray(mask), axes)


def _not_zero(values: Any, axes: int) -> Array:
    """Where a mask counts; an alpha channel says nothing about tissue."""
    if values.ndim > axes:
        values = values[..., : {2: 1, 4: 3}.get(values.shape[-1])].any(axis=-1)
    found: Array = values != 0
    return found


def _read_npy(place: str) -> Array:
    values: Array = mapped(place)
    if values.dtype.kind not in "biuf":
        raise UnsupportedImageError(f"{place}: a mask of type {values.dtype}", uri=place)
    return values


def _read_png(place: str, head: bytes) -> Array:
    import imagecodecs

    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    if width * height > _PNG_PIXELS:
        raise UnsupportedImageError(
            f"{place}: a PNG of {width} x {height} pixels must be decoded as a whole; save the "
            "mask smaller, or as a tiled TIFF or Zarr",
            uri=place,
        )
    try:
        return np.asarray(imagecodecs.png_decode(Path(place).read_bytes()))
    except (imagecodecs.PngError, ValueError, RuntimeError) as error:
        raise CorruptImageError(f"{place}: damaged PNG ({error})", uri=place) from error


def _read_image(place: str, name: str, shape0: tuple[int, ...]) -> Array:
    """Any image that a backend reads, from its coarsest level that is fine enough."""
    from daskdmed.images.opening import open_slide

    try:
        slide = open_slide(place)
    except UnsupportedImageError as error:
        raise UnsupportedImageError(
            f"{place}: not a mask that can be read ({error}); masks are PNG, TIFF, .npy or Zarr",
            uri=place,
        ) from error
    if len(shape0) != 2:
        raise GeometryError(
            f"{place}: an image file has 2 axes, {name} has {len(shape0)}; give the mask of a "
            "volume as an array"
        )
    levels = [lv.shape[:2] for lv in slide.levels]
    check_aspect(levels[0], shape0, f"{name} of {shape0} level-0 pixels", place)
    enough = [n for n, s in enumerate(levels) if math.prod(s) >= READ_PIXELS // 4]
    return _reduced(slide.view(level=max(enough, default=0)))


def _reduced(view: Any) -> Array:
    """Where a mask image is not zero, averaged down to `READ_PIXELS` when it is larger."""
    size = view.spatial_shape
    step = max(1.0, (math.prod(size) / READ_PIXELS) ** (1 / len(size)))
    shape = tuple(max(1, math.ceil(n / step - 1e-9)) for n in size)
    found: Array = area_means(_NotZero(view), shape) >= 128
    return found


class _NotZero(ImageView):
    """A mask image as 0 and 255, so that means tell the covered share."""

    dtype = np.dtype(np.uint8)
    background = np.zeros((), np.uint8)
    mpp = None
    shape: tuple[int, ...]
    spatial_ndim: int
    tile_shape: tuple[int, ...]
    downsample: tuple[float, ...]
    token: str

    def __init__(self, view: ImageView) -> None:
        self._view = view
        self.shape = view.spatial_shape
        self.spatial_ndim = view.spatial_ndim
        self.tile_shape = view.tile_shape
        self.downsample = view.downsample
        self.token = f"not-zero-{view.token}"

    def _read(self, region: Region, out: Array | None) -> Array:
        found = _not_zero(self._view.read(region), self.spatial_ndim)
        return np.multiply(found, np.uint8(255), out=out, dtype=np.uint8)
