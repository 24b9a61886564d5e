"""Layers for napari: a slide with its heatmap, labels and annotations, each where it lies.

`layers` gives what napari calls layer data, ``(data, options, kind)``, of lazy Dask arrays; it
needs no napari. `show` puts them into a viewer. World coordinates are micrometers where the slide
says its mpp, else level-0 pixels; the centre of the slide's first pixel is their origin, as
napari and OME-Zarr have it.

Not covered: volumes, which napari opens from OME-Zarr; pictures without a viewer
(`daskdmed.plot`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import dask.array as da
import numpy as np

from daskdmed.cohort.annotations import Annotations, read_annotations
from daskdmed.cohort.sources import ImageLike, Request, images_of
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array, PathLike
from daskdmed.core.view import ImageView
from daskdmed.images.lazy import to_dask
from daskdmed.images.ngff.metadata import PALETTE, rgb
from daskdmed.images.protocols import ChannelInfo
from daskdmed.images.slide import Slide
from daskdmed.store.results.finished import levels_of, placed_over

if TYPE_CHECKING:
    from daskdmed.cohort.annotations import Annotation

#: what napari takes: data, the options of its layer, "image", "labels", "shapes" or "points"
LayerData: TypeAlias = tuple[Any, dict[str, Any], str]
#: pixels of a block along each axis: what a viewer asks for is small
_BLOCK = 1024
#: how many times a line fits into the longer side of the slide
_LINES = 800


def layers(
    image: ImageLike,
    *,
    heatmap: Any = None,
    labels: Any = None,
    annotations: Annotations | PathLike | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    colormap: str = "magma",
) -> list[LayerData]:
    """What napari shows of a slide, as layers from the lowest to the uppermost.

    Nothing is read but metadata and annotations.

    Parameters
    ----------
    image : Slide, Patient, Record, view, path, URL or array
        The image, with all its levels. RGB is one layer, anything else one for each channel in
        its colour.
    heatmap : path, zarr store, Heatmap, dask.array.Array or numpy.ndarray, optional
        What `daskdmed.heatmap` or `daskdmed.predict` wrote or returned, with the levels of
        `daskdmed.store.add_pyramid`; one layer for each of k values. Any other array
        (rows, columns) or (k, rows, columns) lies evenly over the whole image.
    labels : as `heatmap`, optional
        Whole numbers, 0 for nothing; for instance the result of ``predict(post="argmax")``, or
        ``"scores.ome.zarr/labels/classes"`` of `daskdmed.store.write_labels`.
    annotations : Annotations or path, optional
        Of the slide; a file is read by `daskdmed.read_annotations`. Polygons (with their holes)
        and lines become one layer of shapes, points one of points, with their class, name and
        kind as features.
    limits : (float, float), default (0, 1)
        Ends of the colour scale of the heatmap.
    colormap : str, default "magma"
        napari's name of its colours.

    Returns
    -------
    list of (data, options, kind)
        For ``napari.layers.Layer.create(*layer)``, a reader of a plugin, or `show`.

    Raises
    ------
    UsageError, GeometryError
        An image of no two axes, labels that are no whole numbers, or a heatmap that does not
        fit.
    """
    opened = images_of(image, Request(spatial_ndim=2)).only("napari.layers").open()
    finest = opened if isinstance(opened, ImageView) else opened.view()
    if finest.spatial_ndim != 2:
        raise GeometryError(
            f"napari.layers shows planes, got {finest.spatial_ndim} axes of space of shape "
            f"{finest.shape}; choose a plane, or open the volume as OME-Zarr in napari"
        )
    frame = _Frame(finest)
    found = list(_image_layers(opened, frame))
    if heatmap is not None:
        options = {"colormap": colormap, "contrast_limits": tuple(limits), "opacity": 0.5}
        found += _result_layers(heatmap, frame, "image", options)
    if labels is not None:
        found += _result_layers(labels, frame, "labels", {"opacity": 0.5})
    if annotations is not None:
        if not isinstance(annotations, Annotations):
            slide = opened if isinstance(opened, Slide) else None
            annotations = read_annotations(annotations, offset=slide)
        found += _annotation_layers(annotations, frame)
    return found


def show(image: ImageLike, *, viewer: Any = None, **options: Any) -> Any:
    """Put the layers of a slide into a viewer of napari, and give that.

    Parameters
    ----------
    image, **options
        As of `layers`.
    viewer : napari.Viewer or napari.components.ViewerModel, optional
        Where they are added; default a new window, which ``napari.run()`` then serves.

    Raises
    ------
    UsageError
        A window is wanted and napari is not installed.
    """
    wanted = layers(image, **options)
    if viewer is None:
        try:
            viewer = importlib.import_module("napari").Viewer()
        except ImportError as error:
            raise UsageError(
                f"a window needs napari ({error}); install it with: pip install 'napari[all]'"
            ) from error
    for data, made, kind in wanted:
        getattr(viewer, f"add_{kind}")(data, **made)
    return viewer


class _Frame:
    """The world of a slide: its extent in level-0 pixels, and how large one is."""

    def __init__(self, finest: ImageView) -> None:
        down = finest.downsample
        self.shape0 = tuple(n * d for n, d in zip(finest.shape[:2], down, strict=True))
        self.pixel = (1.0, 1.0)
        self.units: tuple[str, str] | None = None
        if finest.mpp is not None:
            x, y = finest.mpp
            self.pixel, self.units = (y / down[0], x / down[1]), ("um", "um")

    def place(self, begins: Sequence[float], steps: Sequence[float]) -> dict[str, Any]:
        """Options of a grid whose first cell begins at a corner, in level-0 pixels, (y, x)."""
        pairs = list(zip(begins, steps, self.pixel, strict=True))
        found: dict[str, Any] = {
            "scale": tuple(s * u for _, s, u in pairs),
            # from the centre of the slide's first pixel to that of the first cell
            "translate": tuple((b + s / 2 - 0.5) * u for b, s, u in pairs),
        }
        return found if self.units is None else {**found, "units": self.units}


def _image_layers(opened: Any, frame: _Frame) -> Iterator[LayerData]:
    """The image, RGB or channel by channel."""
    if isinstance(opened, Slide):
        views: list[ImageView] = [opened.view(level=n) for n in range(opened.level_count)]
        channels, labelled = opened.channels, opened.is_labels
    else:
        views, channels, labelled = [opened], None, False
    arrays = [to_dask(view, _BLOCK) for view in views]
    name = _name(views[0])
    place = frame.place((0.0, 0.0), views[0].downsample)
    if arrays[0].ndim == 3 and arrays[0].shape[2] == 3 and arrays[0].dtype == np.uint8:
        yield _levels(arrays), {"name": name, "rgb": True, **_many(arrays), **place}, "image"
        return
    if arrays[0].ndim == 2:
        arrays = [array[..., None] for array in arrays]
    kind = "labels" if labelled else "image"
    for number in range(arrays[0].shape[2]):
        picked = [array[..., number] for array in arrays]
        options = {"name": name, **_many(picked), **place}
        if not labelled and arrays[0].shape[2] > 1:
            known = channels[number] if channels else ChannelInfo()
            options |= {"name": f"{name}: {known or number}", "blending": "additive"}
            options["colormap"] = _ramp(known.color or PALETTE[number % len(PALETTE)])
            if known.window is not None:
                options["contrast_limits"] = known.window
        yield _levels(picked), options, kind


def _result_layers(
    result: Any, frame: _Frame, kind: str, options: dict[str, Any]
) -> Iterator[LayerData]:
    """A result, or an array that lies over the whole image."""
    found = placed_over(result, frame.shape0).plane()
    if kind == "labels" and found.dtype.kind not in "iub":
        raise UsageError(
            f"labels are whole numbers, got {found.dtype}; give it as heatmap=, or "
            "daskdmed.store.argmax_labels of it"
        )
    levels = [found.lazy(), *levels_of(result)]
    (top, _), (left, _) = found.georeference.extent(found.counts)
    place = found.georeference
    steps = [s * d for s, d in zip(place.stride, place.downsample, strict=True)]
    where = frame.place((top, left), steps)
    for number in range(found.channels):
        picked = [level[number] if found.has_channels else level for level in levels]
        if kind == "labels" and found.dtype.kind == "b":
            picked = [level.astype(np.uint8) for level in picked]
        name = found.channel_names[number] if found.channel_names else kind
        name = "heatmap" if name == "image" else name
        yield _levels(picked), {"name": name, **_many(picked), **where, **options}, kind


def _annotation_layers(annotations: Annotations, frame: _Frame) -> Iterator[LayerData]:
    """Shapes, and points where there are any."""
    colours = {label: f"#{PALETTE[n % len(PALETTE)]}" for n, label in enumerate(annotations.labels)}
    line = max(1.0, max(frame.shape0) / _LINES)
    # vertices are places, not cells: (0, 0) is the corner of the first pixel
    place = frame.place((-0.5, -0.5), (1.0, 1.0))
    drawn: dict[str, list[tuple[Any, str, Annotation]]] = {"shapes": [], "points": []}
    for item in annotations:
        for vertices, shape in _parts(item.geometry):
            drawn["points" if shape == "point" else "shapes"].append((vertices, shape, item))
    for kind, parts in drawn.items():
        if not parts:
            continue
        items = [item for _, _, item in parts]
        edges = [_colour(item, colours) for item in items]
        options = {
            "name": "annotations" if kind == "shapes" else "annotated points",
            "features": {
                "label": [item.label or "" for item in items],
                "name": [item.name for item in items],
                "kind": [item.kind for item in items],
            },
            **place,
        }
        if kind == "points":
            yield (
                np.concatenate([v for v, _, _ in parts]),
                {**options, "face_color": edges, "size": 5 * line},
                kind,
            )
            continue
        options |= {"shape_type": [shape for _, shape, _ in parts], "edge_width": line}
        options |= {"edge_color": edges, "face_color": [f"{edge}30" for edge in edges]}
        yield [v for v, _, _ in parts], options, kind


def _parts(geometry: Any) -> Iterator[tuple[Array, str]]:
    """(y, x) of every simple part of a geometry, and which of napari's shapes it is."""
    if geometry.is_empty:
        return
    kind = geometry.geom_type
    if hasattr(geometry, "geoms"):
        for part in geometry.geoms:
            yield from _parts(part)
    elif kind == "Polygon":
        yield _keyholed(geometry), "polygon"
    else:
        xy = np.asarray(geometry.coords, np.float64)
        yield xy[:, 1::-1], "point" if kind == "Point" else "path"


def _keyholed(polygon: Any) -> Array:
    """A polygon as one ring: each hole is reached from the outer ring, and left, by one way."""
    from shapely.geometry.polygon import orient

    polygon = orient(polygon)  # holes run the other way round
    outer = np.asarray(polygon.exterior.coords)
    if not polygon.interiors:
        found: Array = outer[:-1, 1::-1]
        return found
    rings = [outer, *(np.asarray(hole.coords) for hole in polygon.interiors)]
    back = [np.empty((0, 2)), *([outer[:1]] * len(polygon.interiors))]
    joined: Array = np.concatenate(
        [part for pair in zip(rings, back, strict=True) for part in pair]
    )
    return joined[:, 1::-1]


def _colour(item: Annotation, colours: dict[str, str]) -> str:
    if item.colour is not None:
        return "#{:02x}{:02x}{:02x}".format(*item.colour)
    return colours.get(item.label or "", "#808080")


def _ramp(code: str) -> dict[str, Any]:
    """A colour map from black to a colour, six hexadecimal digits."""
    return {"colors": [[0.0, 0.0, 0.0], [v / 255 for v in rgb(code)]], "name": f"#{code}"}


def _name(view: ImageView) -> str:
    uri = getattr(view, "uri", None)
    return str(uri).rstrip("/").rsplit("/", 1)[-1] if uri else "image"


def _levels(arrays: list[da.Array]) -> Any:
    return arrays if len(arrays) > 1 else arrays[0]


def _many(arrays: list[da.Array]) -> dict[str, Any]:
    return {"multiscale": len(arrays) > 1}
