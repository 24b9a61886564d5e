"""Pictures: a result, or what was drawn, laid over its slide.

Needs the extra ``plot`` (matplotlib). Not covered: computing results
(`daskdmed.inference.heatmap`), interactive viewers (the stores open in napari and QuPath).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from daskdmed.cohort.annotations.html import label_colours
from daskdmed.cohort.annotations.reading import read_annotations
from daskdmed.cohort.annotations.table import Annotations
from daskdmed.cohort.sources import ImageLike, Request, images_of
from daskdmed.cohort.tissue.source import Source, source_of
from daskdmed.core.errors import UsageError
from daskdmed.core.extras import extra
from daskdmed.core.figures import new_figure
from daskdmed.core.region import Region
from daskdmed.core.types import Array, PathLike
from daskdmed.images.composite import display
from daskdmed.store.ngff.reduction import Method, reduce_block
from daskdmed.store.results.finished import Heatmap, placed_over
from daskdmed.store.results.georeference import Georeference
from daskdmed.tiling.grid import PerAxis, per_axis

#: cells of a result that are drawn at most per pixel of the thumbnail, along each axis
_CELLS_PER_PIXEL = 4
#: rows of a large result that are read at once
_BAND = 1024

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def overlay(
    slide: ImageLike,
    heatmap: PathLike | da.Array | Array,
    *,
    alpha: float = 0.5,
    cmap: str = "magma",
    channel: int | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    max_size: int = 1024,
    ax: Axes | None = None,
    kernel_size: PerAxis | None = None,
    stride: PerAxis | None = None,
    downsample: float = 1.0,
    title: str | None = None,
    label: str = "",
) -> Figure:
    """Draw a heatmap over the thumbnail of its slide.

    Each value is drawn as a cell one stride wide around the centre of its window. Windows
    that were not computed (NaN) are transparent.

    Parameters
    ----------
    slide : Slide, Patient, Record, view, path, URL or array
        The image. Of several channels a composite in their colours; ``slide.with_channels(...)``
        or ``Record(uri, channels=...)`` chooses among them.
    heatmap : path, zarr store, Heatmap, dask.array.Array or numpy.ndarray
        What `daskdmed.heatmap` wrote or returned. These know where they lie. Any other array
        or OME-Zarr image lies where `kernel_size`, `stride` and `downsample` say, or without
        these evenly over the whole slide. (rows, columns) or (k, rows, columns). Of a large
        one no more is in memory than is drawn.
    alpha, cmap : float, str
        Opacity of the heatmap, 0 to 1, and matplotlib's name of its colours.
    channel : int, optional
        Which of k values; needed when there are several.
    vmin, vmax : float, optional
        Ends of the colour scale, default the smallest and largest value.
    max_size : int
        Longer side of the thumbnail, in pixels.
    ax : matplotlib.axes.Axes, optional
        Draw here instead of in a new figure.
    kernel_size, stride : int or sequence of int, optional
        Of the windows, for arrays without a place of their own, (y, x).
    downsample : float
        Level-0 pixels per pixel of those.
    title, label : str
        Of the figure (default the file's name) and of the colour bar.

    Returns
    -------
    matplotlib.figure.Figure
        With axes in level-0 pixels and a scale bar when the slide has an mpp. It is not
        registered with pyplot: save it with ``figure.savefig(...)``; notebooks show it.
    """
    colormaps = extra("matplotlib", "plot", "drawing needs").colormaps
    source = source_of(images_of(slide, Request(spatial_ndim=2)).only("overlay"))
    height, width = source.shape0
    given = None
    if kernel_size is not None or stride is not None:
        given = _place(kernel_size, stride, float(downsample))
    plane = placed_over(heatmap, (height, width), given).plane().pick(channel)
    values, factor = _values(plane, _CELLS_PER_PIXEL * max_size)
    # what is drawn of a large result are means of squares, the last of them cut by the axes
    counts = [n * factor for n in values.shape]
    edges = plane.georeference.extent(counts)
    axes = _slide_drawn(source, max_size, ax)
    colours = colormaps[cmap].with_extremes(bad=(0, 0, 0, 0))
    (top, bottom), (left, right) = edges
    cells = axes.imshow(
        np.ma.masked_invalid(values),
        extent=(left, right, bottom, top),
        cmap=colours,
        alpha=alpha,
        vmin=vmin,
        vmax=vmax,
        interpolation="nearest",
    )
    _colour_bar(axes, cells, label)
    _decorate(axes, source, title)
    whole: Figure = axes.figure
    return whole


def outlines(
    slide: ImageLike | None,
    annotations: Annotations | PathLike,
    *,
    fill: float = 0.15,
    linewidth: float = 1.5,
    max_size: int = 1024,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """Draw annotations over the thumbnail of their slide, in the colours of their labels.

    Parameters
    ----------
    slide : Slide, Patient, Record, view, path, URL, array or None
        The image, as for `overlay`. None: they are drawn over what `ax` shows, for instance what
        `overlay` has drawn there.
    annotations : Annotations or path
        In the level-0 frame of the slide. Labels without a colour get one.
    fill : float
        Opacity of the inside of polygons, 0 to 1.
    linewidth : float
        In points.
    max_size : int
        Longer side of the thumbnail, in pixels.
    ax : matplotlib.axes.Axes, optional
        Draw here instead of in a new figure.
    title : str, optional
        Default the file's name.

    Returns
    -------
    matplotlib.figure.Figure
        As of `overlay`, with a legend of the labels.

    Raises
    ------
    UsageError
        Neither a slide nor axes.
    """
    patches = extra("matplotlib.patches", "plot", "drawing needs")
    table = annotations if isinstance(annotations, Annotations) else read_annotations(annotations)
    axes: Any = ax
    if slide is not None:
        source = source_of(images_of(slide, Request(spatial_ndim=2)).only("outlines"))
        axes = _slide_drawn(source, max_size, ax)
        _decorate(axes, source, title)
    elif ax is None:
        raise UsageError("outlines are drawn over a slide, or over what ax= shows: give either")
    handles = []
    for label, colour in label_colours(table).items():
        ink = tuple(c / 255 for c in colour)
        polygons, lines, points = _paths([item.geometry for item in table if item.label == label])
        if polygons is not None:
            inside = (*ink, fill)
            axes.add_patch(patches.PathPatch(polygons, fc=inside, ec=ink, lw=linewidth))
        if lines is not None:
            axes.add_patch(patches.PathPatch(lines, fill=False, ec=ink, lw=linewidth))
        if len(points):
            axes.plot(*points.T, "o", color=ink, markersize=4)
        handles.append(patches.Patch(fc=(*ink, 0.4), ec=ink, label=label or "without a label"))
    if handles:
        axes.legend(handles=handles, loc="upper right", fontsize=8)
    whole: Figure = axes.figure
    return whole


def _paths(shapes: list[Any]) -> tuple[Any, Any, Array]:
    """Polygons and lines as one path each, None where there are none; points as (n, 2)."""
    import shapely
    from matplotlib.path import Path

    parts = shapely.get_parts(shapely.get_parts(shapes))  # of a collection in a collection
    # outlines turn one way and holes the other, so that holes stay empty
    parts = shapely.normalize(parts[~shapely.is_empty(parts)])
    kinds = shapely.get_type_id(parts)
    rings = shapely.get_rings(parts[kinds == shapely.GeometryType.POLYGON])
    lines = parts[
        np.isin(kinds, (shapely.GeometryType.LINESTRING, shapely.GeometryType.LINEARRING))
    ]
    made = [
        Path.make_compound_path(
            *(Path(shapely.get_coordinates(one), closed=closed) for one in each)
        )
        if len(each)
        else None
        for each, closed in ((rings, True), (lines, False))
    ]
    return *made, shapely.get_coordinates(parts[kinds == shapely.GeometryType.POINT])


def _slide_drawn(source: Source, max_size: int, ax: Axes | None) -> Any:
    """Axes in level-0 pixels, in a figure of their own where none are given, with the thumbnail."""
    height, width = source.shape0
    shrunk = max(1.0, width / max_size, height / max_size)
    thumbnail = source.read((max(1, round(height / shrunk)), max(1, round(width / shrunk))))
    if ax is None:
        ax = _figure(width / height).add_subplot()
    picture = thumbnail if thumbnail.ndim == 3 else thumbnail[..., None]
    shown = display(picture, source.info)
    ax.imshow(shown, extent=(0, width, height, 0), interpolation="antialiased")
    return ax


def _values(plane: Heatmap, most: int) -> tuple[Array, int]:
    """Values of a plane with at most `most` cells along each axis, and how many each stands for.

    A larger one is read band by band: numbers become means, classes the first of each square.
    """
    factor = -(-max(*plane.counts, 1) // most)
    if factor == 1:
        values = plane.read(Region((0, 0), plane.counts))[0]
    else:
        method: Method = "mean" if plane.dtype.kind == "f" else "nearest"
        rows = -(-_BAND // factor) * factor
        parts = [reduce_block(v[0], (factor,) * 2, method) for _, v in plane.bands(rows)]
        values = np.concatenate(parts)
    return np.asarray(values, np.float64), factor


def _place(kernel_size: PerAxis | None, stride: PerAxis | None, downsample: float) -> Georeference:
    kernel: Any = stride if kernel_size is None else kernel_size
    step = kernel if stride is None else stride
    sizes = per_axis(kernel, 2, "kernel_size"), per_axis(step, 2, "stride")
    return Georeference(*sizes, (downsample, downsample))


def _figure(ratio: float) -> Figure:
    """A figure as wide as the slide asks for, with room for the colour bar."""
    long = 7.0
    width, height = (long, long / ratio) if ratio >= 1 else (long * ratio, long)
    size = max(width, 2.5) + 1.6, max(height, 2.0) + 0.7
    return new_figure("drawing", figsize=size, layout="constrained")


def _colour_bar(ax: Any, cells: Any, label: str) -> None:
    beside = ax.inset_axes((1.02, 0.0, 0.035, 1.0))
    bar = ax.figure.colorbar(cells, cax=beside, label=label)
    bar.solids.set_alpha(1.0)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def _decorate(ax: Any, source: Source, title: str | None) -> None:
    height, width = source.shape0
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_title(os.path.basename(source.name) if title is None else title, fontsize=10)
    ax.tick_params(labelsize=7, color="0.6", labelcolor="0.35")
    for spine in ax.spines.values():
        spine.set_color("0.8")
    ax.set_xlabel("x, level-0 pixels", fontsize=8, color="0.35")
    ax.set_ylabel("y, level-0 pixels", fontsize=8, color="0.35")
    if source.mpp is not None:
        _scale_bar(ax, source.shape0, source.mpp[0])


def _scale_bar(ax: Any, shape: tuple[int, ...], mpp: float) -> None:
    """A bar of a round length, about a fifth of the width, in the lower left corner."""
    height, width = shape
    wanted = width * mpp / 5
    power = 10.0 ** np.floor(np.log10(wanted))
    length = power * max(f for f in (1, 2, 5) if f * power <= wanted)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    x, y = 0.04 * width, 0.95 * height
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    ax.plot([x, x + length / mpp], [y, y], color="black", linewidth=3, solid_capstyle="butt")
    ax.text(
        *(x + length / mpp / 2, y - 0.015 * height, text),
        ha="center",
        va="bottom",
        fontsize=8,
        bbox=box,
    )
