"""What users give as a mask or a place, in the form that everything below takes.

Not covered: images (`daskdmed.cohort.sources`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from daskdmed.cohort.alike import check_alike, laid_over
from daskdmed.cohort.annotations.view import target_view
from daskdmed.cohort.record import Record
from daskdmed.cohort.sources import Image, images_of
from daskdmed.core.errors import DaskdmedError, DatasetError, GeometryError, StoreError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array, OnError, PathLike
from daskdmed.core.view import ImageView
from daskdmed.images.volumes.volume import Volume
from daskdmed.store.location import Location, file_names, result_path
from daskdmed.store.results.finished import group_of, keeps_cells, place_of
from daskdmed.tiling.blocks import choose_block
from daskdmed.tiling.grid import PerAxis, WindowGrid, per_axis
from daskdmed.tiling.mask import kept_windows, placed

if TYPE_CHECKING:
    from distributed import Client
    from zarr.abc.store import Store

    from daskdmed.cohort.sources import Images


def as_location(out: PathLike | Store | None, client: Client | None) -> Location:
    """Where a result goes; UsageError where workers of a cluster could not write there."""
    if out is None:
        import zarr

        out = zarr.storage.MemoryStore()
    elif not isinstance(out, (str, os.PathLike)) and not hasattr(out, "supports_writes"):
        raise UsageError(f"out must be a path, a URL or a Zarr store, got {type(out).__name__}")
    return Location.of(out).writable(client)


def locations_of(
    images: Images,
    out: PathLike | Store | None,
    client: Client | None,
    *,
    replaces: bool,
    on_error: OnError = "raise",
) -> dict[str, Location]:
    """Where the results of images go, by patient id; memory without `out`.

    A single image's result is at `out` itself, those of several at ``<id>/<record>.zarr``
    below it. `replaces` says whether stores that are there may be gone on with or replaced;
    with ``on_error="skip"`` images whose record is missing have no place.
    """
    if images.single:
        return {images[0].key: as_location(out, client)}
    if out is not None and not isinstance(out, (str, os.PathLike)):
        raise UsageError(
            f"out= of several images is a folder or URL for one store each, got "
            f"{type(out).__name__}"
        )
    places = {}
    names = file_names(image.key for image in images)
    for image in images:
        try:
            name = image.record_name
        except DatasetError:
            if on_error == "raise":
                raise
            continue
        path = None if out is None else result_path(out, image.key, name, names)
        places[image.key] = as_location(path, client)
    there = [] if replaces else [key for key, place in places.items() if place.holds_group()]
    if there:
        shown = ", ".join(map(repr, there[:10])) + (" ..." if len(there) > 10 else "")
        raise StoreError(
            f"{out} holds results of {len(there)} of {len(images)} patients already: {shown}; "
            "resume=True goes on with them (same parameters) and makes the others, "
            "overwrite=True replaces them, or give another out="
        )
    return places


def check_resources(resources: Mapping[str, float] | None, client: Client | None) -> None:
    """Refuse resources without workers that could offer them."""
    if resources and client is None:
        raise UsageError(
            f"resources={dict(resources)!r} are offered by workers of a cluster; give client=, "
            "or device= to run in this process"
        )


def check_lazy(**given: Any) -> None:
    """Refuse arguments that say how to write, beside ``compute=False``."""
    meant = [name for name, value in given.items() if value]
    if meant:
        raise UsageError(
            f"{' and '.join(f'{name}=' for name in meant)} beside compute=False, which writes "
            "nothing: leave compute away, or write the lazy array with its to_zarr"
        )


def mask_over(mask: Any, image: Image, view: ImageView) -> Any:
    """A mask as values: of a volume also a record, a path or a view, which is read as the image is.

    GeometryError where it lies elsewhere in the patient than the view; so for a result, which
    may be coarser, too.
    """
    if view.spatial_ndim != 3:
        return mask
    if isinstance(mask, (str, os.PathLike, Record, Volume)):
        record = images_of(mask).only("mask=").record
        asked = image.request.orientation
        try:
            mask = target_view(record, view, spacing=image.resolution.spacing, orientation=asked)
        except DaskdmedError as error:
            error.add_note(f"the target is what mask= gives, {record!r}")
            raise
    if isinstance(mask, da.Array):
        _check_place(mask, view)
    if not isinstance(mask, ImageView):
        return laid_over(mask, view)
    mask = mask.as_labels()
    check_alike(f"image {view.name}", view, f"mask {mask.name}", mask)
    inside: Array = mask.read(Region.of(mask.spatial_shape)) > 0
    return inside


def _check_place(mask: da.Array, view: ImageView) -> None:
    """That a result of this library lies over a volume, as far as both say where they do."""
    place = place_of(group_of(mask)) if keeps_cells(mask) else None
    if place is None or place.space is None or view.space is None or mask.ndim != 3:
        return
    scale = [n / m for n, m in zip(view.spatial_shape, mask.shape, strict=True)]
    steps = np.diag([*scale, 1.0])
    steps[:3, 3] = [(s - 1) / 2 for s in scale]
    over = Space(view.space.affine @ steps, mask.shape)
    if over.distance(place.space) > 1:  # extents are rounded to whole cells
        raise GeometryError(
            f"mask= does not lie over {view.name}, up to {over.distance(place.space):.4g} of its "
            f"cells apart: it has {place.space}, the image {view.space}; make it with the same "
            "orientation="
        )


def windows_inside(mask: Any, view: ImageView, grid: WindowGrid, minimum: float) -> Array | None:
    """Which windows a mask covers by at least `minimum`; None without a mask."""
    if mask is None:
        return None
    values, spans = placed(laid_over(mask, view), view.spatial_shape, view.downsample)
    return kept_windows(values, grid, minimum, spans)


def windows_per_block(
    grid: WindowGrid, view: ImageView, block_windows: PerAxis | None
) -> tuple[int, ...]:
    """Windows per block along each axis, as wanted or as the geometry suggests."""
    if block_windows is not None:
        wanted = per_axis(block_windows, grid.ndim, "block_windows")
        if min(wanted) < 1:
            raise GeometryError(f"block_windows must be at least 1, got {wanted}")
        return tuple(min(n, c) for n, c in zip(wanted, grid.counts, strict=True))
    channels = int(np.prod(view.shape[grid.ndim :], dtype=int))
    return choose_block(
        grid,
        view.tile_shape,
        bytes_per_pixel=channels * view.dtype.itemsize,
        in_strips=view.cheap_to_cut and grid.ndim > 1,
    )
