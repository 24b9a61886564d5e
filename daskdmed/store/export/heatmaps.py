"""A result for other programs, the format chosen by the name of the file.

Not covered: how each format is written (`daskdmed.store.export.tiff`,
`daskdmed.store.export.geojson`); pictures of slide and result together (`daskdmed.plot.overlay`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from daskdmed import __version__
from daskdmed.core.errors import DaskdmedError, GeometryError, StoreError, UsageError
from daskdmed.core.files import write_failure
from daskdmed.core.region import Region
from daskdmed.core.types import PathLike
from daskdmed.core.work import run_all
from daskdmed.images.ngff.metadata import ZARR_FORMATS, Multiscale, check_version
from daskdmed.store.export.geojson import export_contours, export_tiles, heatmap_contours
from daskdmed.store.export.tiff import export_tiff
from daskdmed.store.location import Location
from daskdmed.store.ngff.levels import create_level, write_units
from daskdmed.store.ngff.pyramid import SMALLEST_LEVEL, add_pyramid
from daskdmed.store.results.finished import Heatmap, open_heatmap
from daskdmed.store.results.georeference import Georeference
from daskdmed.store.results.resumable import LEVEL

if TYPE_CHECKING:
    from distributed import Client

_CHUNK = 256


def export_heatmap(
    heatmap: Heatmap | PathLike | Any, path: PathLike, *, kind: str | None = None, **options: Any
) -> None:
    """Write a result for another program.

    Parameters
    ----------
    heatmap : path, zarr store, array or Heatmap
        What `daskdmed.heatmap` wrote or returned, or another array with `georeference`.
    path : path
        ``.tif``, ``.tiff``: a tiled pyramid, see `daskdmed.store.export.tiff.export_tiff`.
        ``.geojson``: shapes, see `kind`. ``.zarr``: OME-Zarr with coarser levels, see
        `export_ome_zarr`. For ``.png`` draw it: ``daskdmed.plot.overlay(slide, heatmap)``.
    kind : {"contours", "tiles"}, optional
        Of a GeoJSON: regions above thresholds (the default), or one rectangle per window; see
        `daskdmed.store.export.geojson.export_contours` and `export_tiles`.
    **options
        Of the function that writes the format; `overwrite` of all.

    Raises
    ------
    UsageError
        A name that says no format, or an option that the format has not.
    StoreError
        Something is there, or it cannot be written.

    Examples
    --------
    >>> daskdmed.export_heatmap("a.zarr", "a.tif", cmap="magma")  # doctest: +SKIP
    >>> daskdmed.export_heatmap("a.zarr", "a.geojson", thresholds=[0.5, 0.9])  # doctest: +SKIP
    """
    name = os.fspath(path).rstrip("/").lower()
    writer: Any
    if name.endswith((".tif", ".tiff")):
        writer = export_tiff
    elif name.endswith((".geojson", ".json")):
        writers = {"contours": export_contours, "tiles": export_tiles}
        if kind not in (None, *writers):
            raise UsageError(f"kind must be one of {sorted(writers)}, got {kind!r}")
        writer = writers[kind or "contours"]
        kind = None
    elif name.endswith(".zarr"):
        writer = export_ome_zarr
    else:
        raise UsageError(
            f"{path} says no format; it must end in .tif, .tiff, .geojson or .zarr (pictures are "
            "drawn by daskdmed.plot.overlay(slide, heatmap).savefig(path))"
        )
    if kind is not None:
        raise UsageError(f"kind={kind!r} is for .geojson, not for {path}")
    known = set(writer.__kwdefaults__)
    if writer is export_contours:
        known |= {"thresholds", *(heatmap_contours.__kwdefaults__ or ())}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(
            f"{writer.__name__} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known))}"
        )
    writer(heatmap, path, **options)


def export_ome_zarr(
    heatmap: Heatmap | PathLike | Any,
    path: PathLike,
    *,
    version: str = "0.5",
    factor: int = 2,
    smallest: int = SMALLEST_LEVEL,
    channels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    window: tuple[float, float] | None = None,
    georeference: Georeference | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> None:
    """Copy a result into an OME-Zarr image of its own, with coarser levels.

    The copy appears when it is complete. For a result that `daskdmed.heatmap` wrote,
    `daskdmed.store.add_pyramid` does the same in place, for version 0.5.

    Parameters
    ----------
    heatmap : path, zarr store, array or Heatmap
        Over two or three axes of space, see `daskdmed.store.open_heatmap`.
    version : {"0.5", "0.4"}
        Of OME-Zarr.
    factor, smallest, channels, colors, window
        As in `daskdmed.store.add_pyramid`.
    georeference
        As in `daskdmed.store.open_heatmap`.
    overwrite : bool
        Replace a store that is there, which stays until the new one is complete.
    client : distributed.Client, optional
        Copy on a cluster, whose workers can read `heatmap`.
    """
    version = check_version(version)
    source = open_heatmap(heatmap, georeference)
    image = source.georeference.image(
        LEVEL, channels=source.has_channels, name="heatmap", version=version
    )
    if image is None:
        raise GeometryError(
            f"OME-Zarr describes images over two or three axes of space, this result has "
            f"{len(source.counts)}"
        )
    location = Location.of(path).writable(client)
    try:
        there = location.holds_group()
        if there and not overwrite:
            raise StoreError(f"{location} holds a Zarr group; overwrite=True replaces it")
        place = location.staging if there or location.path is not None else location
        place.remove()
        _copy(source, place, image, client)
        if channels is None and source.channel_names:
            channels = source.channel_names
        add_pyramid(
            place.target,
            factor=factor,
            smallest=smallest,
            channels=channels,
            colors=colors,
            window=window,
            client=client,
        )
        location.replace(place)
    except OSError as error:
        if isinstance(error, DaskdmedError):
            raise
        raise write_failure(location, error, "the result itself is unchanged") from error


def _copy(source: Heatmap, place: Location, image: Multiscale, client: Client | None) -> None:
    """The finest level with its metadata."""
    own = {
        "kind": "heatmap",
        "version": __version__,
        "path": LEVEL,
        "image": source.name,
        "georeference": source.georeference.to_json(),
    }
    group = zarr.create_group(
        place.target,
        zarr_format=ZARR_FORMATS[image.version],
        attributes={**image.attributes(), "daskdmed": own},
    )
    lead = (source.channels,) if source.has_channels else ()
    array = create_level(
        group,
        LEVEL,
        shape=(*lead, *source.counts),
        chunks=(*lead, *(min(_CHUNK, n) for n in source.counts)),
        dtype=source.dtype.str,
        fill_value=float("nan") if source.dtype.kind == "f" else 0,
        axes=[axis.name for axis in image.axes],
    )
    run_all("export", write_units(array), _CopyTask(source, array), client=client)


class _CopyTask:
    """Copies one chunk of a result."""

    def __init__(self, source: Heatmap, target: Any) -> None:
        self.source, self.target = source, target

    def __call__(self, unit: Region) -> None:
        space = len(self.source.counts)
        values = self.source.read(Region(unit.origin[-space:], unit.shape[-space:]))
        self.target[unit.slices] = values if self.source.has_channels else np.asarray(values[0])
