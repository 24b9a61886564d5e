"""A result as a pyramidal tiled TIFF, for viewers without Zarr.

One channel becomes a plain tiled pyramid, which OpenSlide and QuPath open; several become an
OME-TIFF with named channels, for QuPath, Fiji and napari. Written tile by tile: memory
holds a band of tiles and the coarser levels' bands, whatever the size.

Not covered: slides as TIFF; shapes (`daskdmed.store.export.geojson`).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from daskdmed.core.errors import GeometryError, MissingExtraError, UsageError
from daskdmed.core.files import new_file
from daskdmed.core.region import Region
from daskdmed.core.types import Array, PathLike
from daskdmed.images.ngff.metadata import Axis
from daskdmed.store.ngff.pyramid import build_levels, level_factors
from daskdmed.store.results.finished import Heatmap, open_heatmap
from daskdmed.store.results.georeference import Georeference

_TILE = 256
#: levels are added until no axis is longer
_SMALLEST = 512
#: plain TIFF counts bytes with 32 bits; larger ones become BigTIFF
_BIG = 2**31


def export_tiff(
    heatmap: Heatmap | PathLike | Any,
    path: PathLike,
    *,
    channel: int | None = None,
    dtype: Literal["uint8", "float32"] = "uint8",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str | None = None,
    georeference: Georeference | None = None,
    overwrite: bool = False,
) -> None:
    """Write a result as a pyramidal tiled TIFF.

    One pixel is one window. With an mpp the file says how large a pixel is (stride x mpp),
    and where the first one lies (XPosition and YPosition, when they are not negative), so
    that viewers lay it over its slide; the image description has the exact place in level-0
    pixels, as JSON.

    Parameters
    ----------
    heatmap, georeference
        (rows, columns) or (k, rows, columns), see `daskdmed.store.open_heatmap`.
    path : path
        The file, which appears when it is complete.
    channel : int, optional
        Write only this one of k values. Without it k > 1 values become the channels of an
        OME-TIFF, which OpenSlide does not read.
    dtype : {"uint8", "float32"}
        "uint8": `vmin` to `vmax` become 1 to 255, beyond is clipped, 0 is "not computed".
        "float32": the values, NaN where not computed; OpenSlide reads no such files.
    vmin, vmax : float, optional
        Default: the smallest and the largest value of what is written.
    cmap : str, optional
        A matplotlib colour map: RGB instead of grey, white where not computed. One channel
        of uint8 only.
    overwrite : bool
        Replace a file, which stays until the new one is complete.
    """
    if dtype not in ("uint8", "float32"):
        raise UsageError(f"dtype must be 'uint8' or 'float32', got {dtype!r}")
    source = open_heatmap(heatmap, georeference).plane()
    if channel is not None or source.channels == 1:
        source = source.pick(channel)
    colours = None
    if cmap is not None:
        if source.channels > 1 or dtype != "uint8":
            raise UsageError("cmap= colours one channel of uint8; say which with channel=")
        colours = _colours(cmap)
    if 0 in source.counts:
        raise GeometryError(f"the result has no cells: {source.counts}")
    limits = _limits(source, vmin, vmax) if dtype == "uint8" else None
    # next to the file: its disk has the room, and a memory file system may not
    with new_file(path, overwrite=overwrite) as partial:
        folder = tempfile.TemporaryDirectory(dir=partial.parent, prefix=f"{partial.name}.levels.")
        with folder as scratch:
            levels = _levels(source, Path(scratch))
            _write(partial, source, levels, dtype, limits, colours)


def _limits(source: Heatmap, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    if vmin is None or vmax is None:
        for _, values in source.bands(_TILE):
            finite = values[np.isfinite(values)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if low > high:
            low, high = 0.0, 1.0
    low, high = (low if vmin is None else float(vmin)), (high if vmax is None else float(vmax))
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"vmin={low:g} and vmax={high:g} must be finite and rising")
    return low, high if high > low else low + 1.0


def _colours(name: str) -> Array:
    """RGB of the values 0 (not computed) to 255."""
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise MissingExtraError(
            "colour maps need matplotlib; install it with: pip install 'daskdmed[plot]'"
        ) from error
    if name not in colormaps:
        raise UsageError(f"matplotlib knows no colour map {name!r}; for example 'magma'")
    shades = np.asarray(colormaps[name](np.linspace(0, 1, 255)))[:, :3]
    table = np.full((256, 3), 255, np.uint8)
    table[1:] = np.rint(shades * 255)
    return table


def _levels(source: Heatmap, scratch: Path) -> list[Any]:
    """The finest level as it is, and coarser ones (means without NaN) in a scratch store."""
    finest = _Channels(source)
    group = zarr.create_group(str(scratch / "levels.zarr"))
    totals = level_factors(finest.shape[1:], 2, _SMALLEST)
    axes = [Axis.named(name) for name in "cyx"]
    names = [str(total) for total in totals]
    build_levels(group, finest, totals, axes, "mean", names)
    return [finest, *(group[name] for name in names)]


class _Channels:
    """A result as a float32 array (k, rows, columns), for reading."""

    def __init__(self, source: Heatmap) -> None:
        self.source = source
        self.shape = (source.channels, *source.counts)
        self.chunks = (source.channels, _TILE, _TILE)
        self.dtype, self.fill_value = np.dtype(np.float32), float("nan")

    def __getitem__(self, key: tuple[slice, ...]) -> Array:
        rows, columns = (s.indices(n)[:2] for s, n in zip(key[1:], self.source.counts, strict=True))
        region = Region((rows[0], columns[0]), (rows[1] - rows[0], columns[1] - columns[0]))
        return self.source.read(region)[key[0]].astype(np.float32)


def _write(
    path: Path,
    source: Heatmap,
    levels: list[Any],
    dtype: str,
    limits: tuple[float, float] | None,
    colours: Array | None,
) -> None:
    import tifffile

    ome = source.channels > 1
    itemsize = 4 if dtype == "float32" else 1 if colours is None else 3
    size = itemsize * math.prod(levels[0].shape) * 4 // 3
    resolution, unit, extra = _placed(source.georeference, ome)
    common: dict[str, Any] = {
        "dtype": dtype,
        "tile": (_TILE, _TILE),
        "compression": "deflate",
        "predictor": colours is not None or dtype == "float32",
        "photometric": "minisblack" if colours is None else "rgb",
        "resolutionunit": unit,
    }
    options: dict[str, Any] = {"metadata": _ome(source), "subifds": len(levels) - 1}
    if not ome:
        options = {"metadata": None, "description": _description(source, dtype, limits)}
    options["extratags"] = extra
    with tifffile.TiffWriter(path, bigtiff=size > _BIG, ome=ome) as writer:
        for number, level in enumerate(levels):
            shape = (*level.shape[not ome :], *(() if colours is None else (3,)))
            options["resolution"] = tuple(r / 2**number for r in resolution)
            tiles = _tiles(level, dtype, limits, colours)
            writer.write(tiles, shape=shape, **common, **options)
            options = {"subfiletype": 1, "metadata": None}


def _tiles(
    level: Any, dtype: str, limits: tuple[float, float] | None, colours: Array | None
) -> Iterator[Array]:
    """All tiles in the order of the file, whole ones, read a band at a time."""
    channels, height, width = level.shape
    for channel in range(channels):
        for top in range(0, height, _TILE):
            rows = slice(top, min(top + _TILE, height))
            band = level[(slice(channel, channel + 1), rows, slice(0, width))][0]
            full = np.full((_TILE, -(-width // _TILE) * _TILE), np.nan, np.float32)
            full[: band.shape[0], :width] = band
            values = full if limits is None else _quantised(full, *limits)
            if colours is not None:
                values = colours[values]
            for left in range(0, full.shape[1], _TILE):
                yield np.ascontiguousarray(values[:, left : left + _TILE])


def _quantised(values: Array, low: float, high: float) -> Array:
    """1 to 255; 0 where not computed."""
    scaled = 1 + np.rint((values.astype(np.float64) - low) / (high - low) * 254)
    known: Array = np.where(np.isnan(values), 0, np.clip(scaled, 1, 255))
    return known.astype(np.uint8)


def _placed(
    place: Georeference, ome: bool
) -> tuple[tuple[float, float], int, list[tuple[Any, ...]]]:
    """Pixels per unit along (x, y), the unit, and tags of the first pixel's corner."""
    y, x = place.scale
    if place.mpp is None:
        return (1 / x, 1 / y), 1, []
    axes = zip(place.kernel_size, place.stride, place.pixel, strict=True)
    corner = [(k - s) / 2 * u / 1e4 for k, s, u in axes]
    tags: list[tuple[Any, ...]] = []
    if not ome and min(corner) >= 0:
        for code, value in ((286, corner[1]), (287, corner[0])):
            tags.append((code, 5, 1, (round(value * 10**8), 10**8), True))
    return (1e4 / x, 1e4 / y), 3, tags


def _description(source: Heatmap, dtype: str, limits: tuple[float, float] | None) -> str:
    place = source.georeference
    extent = place.extent(source.counts)
    facts: dict[str, Any] = {
        "daskdmed": "heatmap",
        "image": source.name,
        "channel": source.channel_names[0] if source.channel_names else None,
        "level0_extent": {"y": list(extent[0]), "x": list(extent[1])},
        "georeference": place.to_json(),
        "dtype": dtype,
    }
    if limits is not None:
        facts["values"] = {"1": limits[0], "255": limits[1], "0": "not computed"}
    # TIFF tags are ASCII
    return json.dumps(facts)


def _ome(source: Heatmap) -> dict[str, Any]:
    place = source.georeference
    found: dict[str, Any] = {"axes": "CYX", "Channel": {"Name": list(source.channel_names)}}
    if place.mpp is not None:
        plane = found["Plane"] = {}
        for axis, size, centre in zip("YX", place.scale, place.translation, strict=True):
            found |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
            plane[f"Position{axis}"] = [centre] * source.channels
            plane[f"Position{axis}Unit"] = ["µm"] * source.channels
    return found
