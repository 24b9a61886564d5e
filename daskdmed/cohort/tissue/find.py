"""Where the tissue of a slide is: `tissue_mask`, and `tissue_masks` for a dataset.

Masks are made of a low-resolution picture, once per slide, and kept in a cache. Not covered:
drawing crops from them, and annotations of people (`daskdmed.cohort.annotations`).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daskdmed.cohort.alike import check_spaces
from daskdmed.cohort.sources import Image, ImagesLike, LeftOut, Request, Results, images_of
from daskdmed.cohort.tissue.cache import lookup, parameters_key, store
from daskdmed.cohort.tissue.files import fit, read_mask
from daskdmed.cohort.tissue.html import slide_overlay
from daskdmed.cohort.tissue.mask import TissueMask
from daskdmed.cohort.tissue.methods import RULES, clean, detect, detect_intensity
from daskdmed.cohort.tissue.picture import preview
from daskdmed.cohort.tissue.source import ASSUMED_UM, Source, grid_shape, source_of
from daskdmed.core import errors
from daskdmed.core.cachefolder import cache_dir
from daskdmed.core.errors import DaskdmedError, GeometryError, ResolutionError, UsageError
from daskdmed.core.types import Array, OnError, OnTileError
from daskdmed.core.work import run_all
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.html import register_overlay

if TYPE_CHECKING:
    from distributed import Client


__all__ = ["METHODS", "TissueMask", "cache_dir", "tissue_mask", "tissue_masks"]

_log = logging.getLogger("daskdmed.cohort")
Method: TypeAlias = Any
_Numbered: TypeAlias = tuple[int, Callable[[], TissueMask | DaskdmedError]]
#: methods by name
METHODS: tuple[str, ...] = tuple(RULES)
#: islands below and holes below this are taken away by the named methods, in um^2
MIN_AREA, MAX_HOLE = 2_500.0, 10_000.0


def tissue_mask(
    image: Any,
    *,
    method: Method = "otsu",
    resolution: float | None = None,
    downsample: float | None = None,
    min_area: float | None = None,
    max_hole: float | None = None,
    marks: bool | None = None,
    spatial_ndim: int | None = None,
    cache: bool = True,
    record: str | None = None,
    tile_error: OnTileError = "raise",
) -> TissueMask:
    """Find the tissue of an image, at low resolution.

    Parameters
    ----------
    image : Slide, Patient, Record, image view, array, path or URL
        One image. A slide is read from its nearest coarse level; level 0 of a slide with several is
        not touched unless a finer mask than the second level is asked for. Anything else,
        and slides of one level, are averaged down slab by slab in bounded memory.
    method : str, callable, path, array or TissueMask
        - "otsu": Otsu's threshold on the saturation of HSV for stained slides (three uint8
          channels on a bright background); for all other images on the difference from the
          background, whatever the number of axes.
        - "entropy": local entropy of the grey levels: whatever has texture, also pale tissue;
          flat areas and grey dust are not found.
        - "hed": haematoxylin plus eosin by colour deconvolution: goes by the density of the
          stains, so grey dust counts and pale DAB does not.
        - a callable from the low-resolution picture, (h, w, 3) uint8 for a stained slide,
          otherwise ``(*space[, c])``, to a mask ``(*space)`` of bool or integers.
        - a file with a mask: PNG, TIFF, ``.npy``, Zarr or of `TissueMask.save`; or an array.
          Any scale; it lies over the whole image and counts where it is not zero.
        - a `TissueMask` of this image.

        The named methods find nothing on a slide without tissue, although Otsu's threshold
        would: classes that are not apart are one class, which is glass when it is not more
        saturated (textured, stained) than glass can be.
    resolution : float, optional
        Micrometers per mask pixel. Default: about 8, with about 256 to 2048 pixels along the
        longer side, and a whole multiple of a level of the slide; of volumes a whole step
        that gives at most 2**23 voxels.
    downsample : float, optional
        The same in level-0 pixels per mask pixel.
    min_area : float, optional
        Islands below this are dropped. Square micrometers of an image with two axes, level-0
        voxels of a volume. Default: 2 500 for the named methods (50 um x 50 um), otherwise 0.
    max_hole : float, optional
        Enclosed holes below this are filled. Units as `min_area`. Default: 10 000 for the
        named methods, otherwise 0.
    marks : bool, optional
        Leave out near-black pixels and green and blue ink of pens, default True. For the
        named methods on stained slides; use False for stains of these colours (trichrome).
    spatial_ndim : int, optional
        Number of leading axes of an array that are space, as in `Record.view`.
    cache : bool
        Look for the mask of a slide in memory and in the user's cache folder
        (``DASKDMED_CACHE_DIR``), and keep it there. Arrays and masks given are not cached; a
        callable is when Dask names it deterministically and its source is known (a change
        of what it calls is not noticed).

    Returns
    -------
    TissueMask
        `TissueMask.empty` when there is no tissue; nothing is raised for that.

    Raises
    ------
    UsageError
        A method that does not fit the image, or a callable with a result of another shape.
    ResolutionError, GeometryError
        Micrometers for an image without mpp; a mask with another aspect ratio or axes.

    Notes
    -----
    Otsu, IEEE Trans SMC 1979; Ruifrok and Johnston, Anal Quant Cytol Histol 2001.

    Examples
    --------
    >>> mask = daskdmed.tissue_mask("slide.svs")  # doctest: +SKIP
    >>> mask.fraction, mask.fraction_of(daskdmed.Region((0, 0), (512, 512)))  # doctest: +SKIP
    """
    request = Request(record, spatial_ndim=spatial_ndim, tile_error=tile_error)
    one = images_of(image, request).only("tissue_mask")
    return _find(one, method, resolution, downsample, min_area, max_hole, marks=marks, cache=cache)


def _find(
    image: Image,
    method: Method = "otsu",
    resolution: float | None = None,
    downsample: float | None = None,
    min_area: float | None = None,
    max_hole: float | None = None,
    *,
    marks: bool | None = None,
    cache: bool = True,
) -> TissueMask:
    source = source_of(image)
    name = _method_name(method)
    made = isinstance(method, str) and method in RULES
    if marks is not None and not made:
        raise UsageError(f"marks= is for the methods {METHODS}, not for {name}")
    if not made and not callable(method):
        if resolution is not None or downsample is not None:
            raise UsageError("a mask that is given has its own scale; leave out resolution=")
        return _given(source, method, name, min_area, max_hole)
    shape = grid_shape(source, resolution, downsample)
    parameters = {
        "shape": shape,
        "min_area": min_area if min_area is not None else (MIN_AREA if made else 0.0),
        "max_hole": max_hole if max_hole is not None else (MAX_HOLE if made else 0.0),
        "marks": marks is not False,
    }
    explicit = min_area, max_hole
    _area_pixels(source, shape, explicit)
    key = parameters_key(method, parameters) if cache else None
    if key is None or source.token is None:
        return _make(source, method, name, shape, parameters)
    found = lookup(source.token, key)
    if found is None or found.shape0 != source.shape0:
        found = _make(source, method, name, shape, parameters)
        store(source.token, key, found)
    return found


def _make(
    source: Source, method: Method, name: str, shape: tuple[int, ...], parameters: dict[str, Any]
) -> TissueMask:
    picture = source.read(shape)
    axes = len(source.shape0)
    space = picture.shape[:axes]
    small = preview(picture, axes)
    um = source.um(space)
    if callable(method):
        found = _call(method, name, picture, space, source)
    elif source.bright:
        assumed = ASSUMED_UM * source.shape0[0] / space[0]
        found = detect(picture, method, um or assumed, parameters["marks"])
    elif method == "otsu":
        found = detect_intensity(picture, source.background, um)
    else:
        raise UsageError(
            f"{source.name}: the method {method!r} needs a stained slide: three uint8 channels "
            "on a bright background; use 'otsu', which takes any intensities, or a callable"
        )
    areas = (parameters["min_area"], parameters["max_hole"])
    small_area, small_hole = _area_pixels(source, space, areas, assume=True)
    found = clean(found, small_area, small_hole)
    return _mask(found, source, name, small)


def _given(
    source: Source, method: Method, name: str, min_area: float | None, max_hole: float | None
) -> TissueMask:
    """A mask from an array, a file, or a mask."""
    own = isinstance(method, TissueMask)
    if isinstance(method, (str, os.PathLike)):
        method = read_mask(method, source.name, source.shape0)
    if isinstance(method, TissueMask):
        mask = _turned(method, source)
        if own and not min_area and not max_hole:
            return mask
        name, data, small = mask.method, mask.data, mask.picture
    else:
        data, small = fit(method, source.shape0, "the array", source.name), b""
    areas = _area_pixels(source, data.shape, (min_area, max_hole))
    if min_area or max_hole:
        data = clean(data, *areas)
    return _mask(data, source, name, small)


def _turned(mask: TissueMask, source: Source) -> TissueMask:
    """A mask that was made before, as its image lies."""
    if mask.space is not None and source.space is not None:
        mask = mask.turned(source.space)
    if mask.shape0 != source.shape0:
        raise GeometryError(
            f"this mask is of an image of {mask.shape0} level-0 pixels, {source.name} has "
            f"{source.shape0}"
        )
    if mask.space is not None and source.space is not None:
        check_spaces("the mask", mask.space, f"image {source.name}", source.space)
    return mask


def _mask(data: Array, source: Source, method: str, picture: bytes) -> TissueMask:
    return TissueMask(
        data,
        shape0=source.shape0,
        method=method,
        mpp=source.mpp,
        space=source.space,
        picture=picture,
    )


def _call(
    method: Callable[[Array], Any],
    name: str,
    picture: Array,
    space: tuple[int, ...],
    source: Source,
) -> Array:
    try:
        result = np.asarray(method(picture))
    except Exception as error:
        error.add_note(f"in the tissue method {name}, on the picture of {source.name}")
        raise
    if result.shape != space or result.dtype.kind not in "biu":
        raise UsageError(
            f"{source.name}: the tissue method {name} returned {result.dtype} of shape "
            f"{result.shape}; it must return bool (or integers, not zero on tissue) of shape "
            f"{space}, one value per pixel of the picture of {picture.shape} that it got"
        )
    found: Array = result != 0
    return found


def _area_pixels(
    source: Source,
    shape: tuple[int, ...],
    areas: tuple[float | None, float | None],
    *,
    assume: bool = False,
) -> tuple[float, float]:
    """Areas in mask pixels. Without mpp an error, or the assumed one for the defaults."""
    found = []
    cell = float(np.prod([e / n for e, n in zip(source.shape0, shape, strict=True)]))
    for name, area in zip(("min_area", "max_hole"), areas, strict=True):
        if area is not None and not (np.isfinite(area) and area >= 0):
            raise UsageError(f"{name} must be a number from 0 on, got {area!r}")
        if not area:
            found.append(0.0)
        elif len(shape) != 2:
            found.append(area / cell)
        elif source.mpp is not None:
            found.append(area / (cell * source.mpp[0] * source.mpp[1]))
        elif assume:
            found.append(area / (cell * ASSUMED_UM**2))
        else:
            raise ResolutionError(
                f"{source.name}: {name}={area:g} is in square micrometers, and the image has no "
                "mpp; give it: Record(..., mpp=0.5) or slide.with_mpp(0.5)"
            )
    return found[0], found[1]


def _method_name(method: Method) -> str:
    if isinstance(method, TissueMask):
        return method.method
    if isinstance(method, (str, os.PathLike)):
        return os.path.basename(os.fspath(method)) if method not in RULES else str(method)
    if callable(method):
        return str(getattr(method, "__qualname__", type(method).__name__))
    if hasattr(method, "__array__"):
        return "array"
    raise UsageError(
        f"method= is one of {METHODS}, a callable, the path of a mask, an array or a TissueMask, "
        f"got {type(method).__name__}"
    )


# -------------------------------------------------------------------- whole datasets
def tissue_masks(
    dataset: ImagesLike,
    *,
    method: Method = "otsu",
    record: str | None = None,
    client: Client | None = None,
    on_error: OnError = "raise",
    tile_error: OnTileError = "raise",
    spatial_ndim: int | None = None,
    **parameters: Any,
) -> Results[TissueMask]:
    """The tissue of every patient's slide: one Dask task per slide, in parallel.

    Parameters
    ----------
    dataset : Dataset, Patient, Record, Slide, view, path, URL, array, or list of these
        Whose.
    method, tile_error, spatial_ndim, **parameters
        As in `tissue_mask`. A mapping of patient id (text) to any of these as `method` gives
        each patient its own, for example files of masks.
    record : str, optional
        Name of the record, as in `Patient.record`.
    client : distributed.Client, optional
        Cluster that reads the slides and finds the tissue; otherwise threads of this process.
    on_error : {"raise", "skip"}
        Raise the first error, or leave out the patients whose mask cannot be made and log
        them. Errors of a callable's own are always raised. Slides without tissue are no error;
        their masks are `TissueMask.empty`.

    Returns
    -------
    Results: dict of str to TissueMask
        By patient id as text, in the order of the dataset; ``failures`` lists what was left
        out.
    """
    images = images_of(dataset, Request(record, spatial_ndim=spatial_ndim, tile_error=tile_error))
    left_out = LeftOut(on_error, len(images))
    own = images.each(method, "method") if isinstance(method, Mapping) else lambda image: method
    calls = [functools.partial(_attempt, i, own(i), parameters) for i in images]
    found = _run(calls, [_lives_on_cluster(i) for i in images], client)
    masks: Results[TissueMask] = Results()
    for image, result in zip(images, found, strict=True):
        with left_out.of(image):
            if not isinstance(result, TissueMask):
                raise result
            masks[image.key] = result
    masks.failures = tuple(left_out.failures)
    return masks


def _run(
    calls: Sequence[Callable[[], TissueMask | DaskdmedError]],
    here: Sequence[bool],
    client: Client | None,
) -> list[TissueMask | DaskdmedError]:
    """On the cluster or in threads; those of `here` always in threads."""
    found: dict[int, TissueMask | DaskdmedError] = {}

    def keep(item: _Numbered, mask: TissueMask | DaskdmedError) -> None:
        found[item[0]] = mask

    for where, local in ((client, False), (None, True)):
        items = [n for n, h in zip(enumerate(calls), here, strict=True) if h == local]
        if items:
            run_all("tissue", items, _call_numbered, keep, client=where)
    return [found[number] for number in range(len(calls))]


def _call_numbered(item: _Numbered) -> TissueMask | DaskdmedError:
    return item[1]()


def _lives_on_cluster(image: Image) -> bool:
    """Whether it is a persisted array, whose blocks only its own client can ask for."""
    try:
        array = image.record.array
    except errors.DatasetError:  # said when the image's turn comes
        return False
    return array is not None and ArrayView(array, array.ndim).remote is not None


def _attempt(
    image: Image, method: Method, parameters: dict[str, Any]
) -> TissueMask | DaskdmedError:
    try:
        return _find(image, method, **parameters)
    except DaskdmedError as error:
        return error


# also where the metadata of the installed package is older than its entry points
register_overlay("tissue", slide_overlay)
