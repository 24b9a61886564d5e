"""A result as shapes in the level-0 frame of its slide, for QuPath: contours and tiles.

Contours are regions of high values as polygons; tiles are one rectangle per window with its
values as measurements. Both open in QuPath by dragging the file onto the slide.

Not covered: reading shapes (`daskdmed.cohort.annotations`), pixels (`daskdmed.store.export.tiff`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from daskdmed.core.errors import BudgetError, UsageError
from daskdmed.core.files import new_file
from daskdmed.core.types import Array, PathLike
from daskdmed.images.ngff.metadata import PALETTE, hex_color, rgb
from daskdmed.store.export.polygons import isolines
from daskdmed.store.results.finished import Heatmap, open_heatmap
from daskdmed.store.results.georeference import Georeference

if TYPE_CHECKING:
    from daskdmed.cohort.annotations import Annotation, Annotations

#: cells whose outlines are searched at once
_MOST_CELLS = 2**27
#: rows that are read at once
_BAND = 64


def heatmap_contours(
    heatmap: Heatmap | PathLike | Any,
    thresholds: float | Sequence[float] = 0.5,
    *,
    channel: int | Sequence[int] | None = None,
    smooth: bool = True,
    min_area: float = 0.0,
    colors: Sequence[str] | None = None,
    georeference: Georeference | None = None,
) -> Annotations:
    """Regions where a result is at least a threshold, as polygons with holes.

    Parameters
    ----------
    heatmap, georeference
        (rows, columns) or (k, rows, columns), see `daskdmed.store.open_heatmap`.
    thresholds : float or sequence of float
        One region set each; with several the regions of higher ones lie in those of lower
        ones.
    channel : int or sequence of int, optional
        Which of k values; default all.
    smooth : bool
        True: isolines between the centres of windows, by linear interpolation (marching
        squares); beside cells that were not computed they run along the cells' borders.
        False: the exact borders of the cells.
    min_area : float
        Leave out polygons with a smaller area, in level-0 pixels squared.
    colors : sequence of str, optional
        Six hexadecimal digits per channel.

    Returns
    -------
    Annotations
        One polygon per region, in level-0 pixels (x, y), clipped to the slide when its size
        is known; labelled with the channel, with the threshold as a measurement.

    Raises
    ------
    UsageError, GeometryError
        Arguments that do not fit the result.
    BudgetError
        More cells than outlines are searched for at once.
    MissingExtraError
        shapely is not installed.
    """
    from daskdmed.cohort.annotations import Annotation, Annotations

    source = open_heatmap(heatmap, georeference).plane()
    levels = _levels(thresholds)
    picked = _picked(source, channel)
    if math.prod(source.counts) > _MOST_CELLS:
        raise BudgetError(
            f"{source.counts} cells are more than {_MOST_CELLS} to find outlines in at once; "
            "export a coarser level, or parts of it"
        )
    if colors is not None and len(colors) != len(picked):
        raise UsageError(f"colors must have one entry per channel ({len(picked)})")
    found: list[Annotation] = []
    for number, i in enumerate(picked):
        values = _values(source.pick(i))
        name = source.channel_names[i] if source.channel_names else "heatmap"
        code = hex_color(colors[number]) if colors else PALETTE[number % len(PALETTE)]
        for level in levels:
            for polygon in _regions(values, level, source, smooth):
                if polygon.area >= min_area and polygon.area > 0:
                    facts = {"measurements": {"threshold": level}}
                    label = name if len(levels) == 1 else f"{name} >= {level:g}"
                    found.append(Annotation(polygon, label, colour=rgb(code), properties=facts))
    return Annotations(found)


def export_contours(
    heatmap: Heatmap | PathLike | Any,
    path: PathLike,
    thresholds: float | Sequence[float] = 0.5,
    *,
    overwrite: bool = False,
    **options: Any,
) -> int:
    """Write what `heatmap_contours` with these `options` gives as GeoJSON.

    The file appears when it is complete. Returns the number of regions.
    """
    with new_file(path, overwrite=overwrite) as partial:
        shapes = heatmap_contours(heatmap, thresholds, **options)
        partial.write_text(shapes.to_geojson(), encoding="utf-8")
    return len(shapes)


def export_tiles(
    heatmap: Heatmap | PathLike | Any,
    path: PathLike,
    *,
    channel: int | Sequence[int] | None = None,
    above: float | None = None,
    extent: Literal["window", "cell"] = "window",
    georeference: Georeference | None = None,
    overwrite: bool = False,
) -> int:
    """Write one rectangle per window with its values, as GeoJSON tiles of QuPath.

    Written row by row, so that memory does not grow with the result; the file appears when it
    is complete. Windows that were not computed are left out. Returns the number of rectangles.

    Parameters
    ----------
    heatmap, channel, georeference
        As in `heatmap_contours`.
    above : float, optional
        Leave out windows of which no such value is at least this.
    extent : {"window", "cell"}
        The pixels that the model saw, or the cell around their centre that is one stride
        wide (cells of a result never overlap).
    overwrite : bool
        Replace a file.
    """
    if extent not in ("window", "cell"):
        raise UsageError(f"extent must be 'window' or 'cell', got {extent!r}")
    source = open_heatmap(heatmap, georeference).plane()
    picked = _picked(source, channel)
    count = 0
    with (
        new_file(path, overwrite=overwrite) as partial,
        partial.open("w", encoding="utf-8") as file,
    ):
        file.write('{"type": "FeatureCollection", "features": [')
        for feature in _tiles(source, picked, above, extent):
            file.write(",\n" if count else "\n")
            json.dump(feature, file)
            count += 1
        file.write("\n]}\n")
    return count


def _tiles(
    source: Heatmap, picked: list[int], above: float | None, extent: str
) -> Iterator[dict[str, Any]]:
    names = [source.channel_names[i] if source.channel_names else "value" for i in picked]
    rows, columns = (source.spans(axis, extent) for axis in (0, 1))
    for region, values in source.bands(_BAND):
        for row, band in enumerate(values[picked].astype(float).swapaxes(0, 1)):
            keep = np.isfinite(band).any(axis=0)
            if above is not None:
                keep &= np.where(np.isnan(band), -np.inf, band).max(axis=0) >= above
            top, bottom = rows[region.origin[0] + row].tolist()
            for column in np.nonzero(keep)[0]:
                left, right = columns[column].tolist()
                if bottom <= top or right <= left:
                    continue  # wholly outside the slide
                known = zip(names, band[:, column].tolist(), strict=True)
                box = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
                measurements = {name: v for name, v in known if math.isfinite(v)}
                yield {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [box]},
                    "properties": {"objectType": "tile", "measurements": measurements},
                }


def _levels(thresholds: float | Sequence[float]) -> list[float]:
    try:
        given = [thresholds] if isinstance(thresholds, (int, float)) else list(thresholds)
        levels = [float(v) for v in given]
    except (TypeError, ValueError):
        levels = []
    if not levels or not all(map(math.isfinite, levels)):
        raise UsageError(f"thresholds must be one or more finite numbers, got {thresholds!r}")
    return levels


def _picked(source: Heatmap, channel: int | Sequence[int] | None) -> list[int]:
    if channel is None:
        return list(range(source.channels))
    given = [channel] if isinstance(channel, int) else list(channel)
    if not given:
        raise UsageError("channel must name at least one value")
    for i in given:
        source.pick(i)
    return [i % source.channels for i in given]


def _values(source: Heatmap) -> Array:
    """The whole of one channel, band by band, as float32."""
    out = np.empty(source.counts, np.float32)
    for region, values in source.bands(1024):
        out[region.slices] = values[0]
    return out


def _regions(values: Array, level: float, source: Heatmap, smooth: bool) -> Iterator[Any]:
    """Polygons in the level-0 frame, clipped to the slide."""
    import shapely

    place = source.georeference
    (top, _), (left, _) = place.extent(source.counts)
    step = [s * d for s, d in zip(place.stride, place.downsample, strict=True)]
    if smooth:
        shapes = [
            shapely.transform(shape, lambda yx: yx[:, ::-1] * step[::-1] + (left, top))
            for shape in isolines(values, level)
        ]
    else:
        from daskdmed.cohort.annotations import Annotations

        with np.errstate(invalid="ignore"):
            mask = values >= level
        exact = Annotations.from_mask(mask, (step[0], step[1]), "region", origin=(left, top))
        shapes = [item.geometry for item in exact]
    if source.shape0 is not None:
        height, width = source.shape0[:2]
        slide = shapely.box(0, 0, width, height)
        shapes = [shapely.intersection(shape, slide) for shape in shapes]
    for part in shapely.get_parts(shapes):
        if part.geom_type == "Polygon" and not part.is_empty:
            yield part
