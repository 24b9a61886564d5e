"""`Annotations`: an immutable table of drawn shapes.

Geometries are shapely's, in the level-0 frame, (x, y) in pixels with y downwards; the order
of the table is the order in which they paint. Not covered: file formats
(`daskdmed.cohort.annotations.geojson`, `.asap`), and the rules of painting (`.raster`).
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.annotations.annotation import LARGEST_COORDINATE, Annotation
from daskdmed.cohort.annotations.geojson import write_geojson
from daskdmed.cohort.annotations.raster import ClassesLike, ClassTable, Grid, pair_of, rasterize
from daskdmed.cohort.annotations.shapes import ShapeTable, require_shapely
from daskdmed.core.errors import AnnotationError, UsageError
from daskdmed.core.types import Array, PathLike
from daskdmed.core.view import ImageView

if TYPE_CHECKING:
    import dask.array as da

    from daskdmed.cohort.annotations.view import AnnotationView


class Annotations(Sequence[Annotation]):
    """An immutable table of annotations of one slide. Picklable, hashable by `token`.

    Parameters
    ----------
    items : iterable of Annotation
        In painting order: later ones lie over earlier ones.
    source : str
        The file they come from.
    notes : sequence of str
        What was repaired or left out when they were read, one line each.

    Raises
    ------
    AnnotationError
        An item is no `Annotation`, or a coordinate is not finite or absurdly large.
    """

    def __init__(
        self, items: Iterable[Annotation] = (), *, source: str = "", notes: Sequence[str] = ()
    ) -> None:
        self._items = tuple(items)
        self.source = source
        self.notes = tuple(notes)
        for position, item in enumerate(self._items):
            if not isinstance(item, Annotation):
                raise AnnotationError(
                    f"item {position} is a {type(item).__name__}, wrap it as "
                    "Annotation(geometry, label)",
                    index=position,
                )
        xy, owner = require_shapely().get_coordinates(self.geometries, return_index=True)
        wrong = ~(np.abs(xy) <= LARGEST_COORDINATE).all(axis=1)
        if wrong.any():
            position = int(owner[np.argmax(wrong)])
            raise AnnotationError(
                f"annotation {position} has the coordinate {tuple(xy[np.argmax(wrong)])}, which "
                "cannot lie on a slide",
                uri=source,
                index=position,
            )

    @classmethod
    def from_mask(
        cls,
        mask: npt.ArrayLike,
        scale: float | tuple[float, float] = 1.0,
        labels: str | Mapping[int, str] | Sequence[str] = "tissue",
        *,
        origin: tuple[float, float] = (0.0, 0.0),
    ) -> Annotations:
        """Exact outlines of a mask or a label map, along its pixels' borders.

        One polygon, with holes, per region of pixels connected along their sides. Painting
        the result on the grid of the mask gives the mask back.

        Parameters
        ----------
        mask : array-like
            (rows, columns), bool or integers; 0 is background.
        scale : float or (float, float)
            Level-0 pixels per mask pixel along (y, x).
        labels : str, mapping or sequence
            The label of a bool mask; for a label map value to label, values that it does
            not name being left out. A sequence names the values 1, 2, ...
        origin : (float, float)
            Level-0 position (x, y) of the mask's corner.
        """
        from daskdmed.cohort.annotations.outlines import outlines

        return cls(
            Annotation(polygon, label) for polygon, label in outlines(mask, scale, labels, origin)
        )

    # ---------------------------------------------------------------- the table
    @property
    def geometries(self) -> npt.NDArray[np.object_]:
        """The shapes, an array of shapely geometries."""
        shapes = np.empty(len(self._items), object)
        shapes[:] = [item.geometry for item in self._items]
        return shapes

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels, in order of first appearance."""
        return tuple(dict.fromkeys(i.label for i in self._items if i.label is not None))

    @property
    def counts(self) -> dict[str | None, int]:
        """Number of shapes of each label; None counts those without one."""
        return dict(Counter(item.label for item in self._items))

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Level-0 square pixels of each shape; 0 for lines and points."""
        return np.asarray(require_shapely().area(self.geometries))

    @property
    def area(self) -> float:
        """Sum of `areas`: where shapes overlap counts several times."""
        return float(self.areas.sum())

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """(x0, y0, x1, y1) of all shapes in the level-0 frame, None when there is none."""
        boxes = self.shapes.bounds
        boxes = boxes[~np.isnan(boxes[:, 0])]
        if len(boxes) == 0:
            return None
        low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @functools.cached_property
    def shapes(self) -> ShapeTable:
        """The shapes as arrays of edges, made on first use."""
        return ShapeTable.of(self.geometries)

    @functools.cached_property
    def _codes(self) -> tuple[list[str | None], npt.NDArray[np.int64]]:
        """The different labels, and each shape's position among them."""
        labels = list(self.counts)
        place = {label: k for k, label in enumerate(labels)}
        return labels, np.array([place[item.label] for item in self._items], np.int64)

    @functools.cached_property
    def token(self) -> str:
        """Deterministic name of the content: shapes, their order and facts, not the source."""
        digest = hashlib.blake2b(digest_size=16)
        for code in require_shapely().to_wkb(self.geometries, byte_order=1):
            digest.update(len(code).to_bytes(8, "little") + code)
        digest.update(repr([item.facts for item in self._items]).encode())
        return digest.hexdigest()

    def select(
        self,
        labels: str | Iterable[str | None] | Callable[[Annotation], bool] | None = (),
        *,
        bounds: tuple[float, float, float, float] | None = None,
        kinds: Iterable[str] | None = None,
    ) -> Annotations:
        """Those that match all that is given, in the same order.

        `labels` to keep (None is "without a label"), or ``f(annotation) -> bool``; shapes that
        touch the box `bounds` of the level-0 frame; object types ("annotation", "detection"...).
        """
        keep = np.ones(len(self), bool)
        if callable(labels):
            keep &= np.array([bool(labels(item)) for item in self], bool)
        elif labels != ():
            wanted = {labels} if labels is None or isinstance(labels, str) else set(labels)
            keep &= np.array([item.label in wanted for item in self], bool)
        if kinds is not None:
            types = set(kinds)
            keep &= np.array([item.kind in types for item in self], bool)
        if bounds is not None:
            keep &= self.shapes.near(bounds)
            shapely = require_shapely()
            keep[keep] = shapely.intersects(self.geometries[keep], shapely.box(*bounds))
        return self._of(item for item, kept in zip(self, keep, strict=True) if kept)

    def relabel(self, mapping: Mapping[str | None, str | None]) -> Annotations:
        """Other labels; those that `mapping` does not name stay."""
        return self._of(replace(i, label=mapping.get(i.label, i.label)) for i in self)

    def translate(self, x: float, y: float) -> Annotations:
        """Moved by (x, y) level-0 pixels."""
        moved = require_shapely().transform(self.geometries, lambda xy: xy + np.array([x, y]))
        return self._of(replace(i, geometry=g) for i, g in zip(self, moved, strict=True))

    def _of(self, items: Iterable[Annotation]) -> Annotations:
        return Annotations(items, source=self.source, notes=self.notes)

    # ---------------------------------------------------------------- painting
    def rasterize(
        self,
        region_origin: tuple[int, int],
        shape: tuple[int, int],
        downsample: float | tuple[float, float] = 1.0,
        *,
        classes: ClassesLike,
        multichannel: bool = False,
        all_touched: bool = False,
        dtype: npt.DTypeLike = "u1",
    ) -> Array:
        """Paint a region at any resolution.

        A polygon paints the pixels whose centre it holds (even-odd rule, holes cut out); the
        exact rules are in `daskdmed.cohort.annotations.raster`. Later shapes paint over
        earlier ones.

        Parameters
        ----------
        region_origin : (int, int)
            First pixel (y, x), in pixels of the resolution asked for; may be negative.
        shape : (int, int)
            Pixels (y, x).
        downsample : float or (float, float)
            Level-0 pixels per pixel along (y, x), any positive numbers.
        classes : Categories, mapping or sequence
            Which label paints which number: ``{label: number}``, where 0 erases and None
            names shapes without a label; or `Categories`, or what these are made of, which
            number themselves 1, 2, ...
        multichannel : bool
            One channel of zeros and ones per class instead of numbers; shapes of different
            classes do not hide each other there.
        all_touched : bool
            Polygons paint every pixel that they cover in part.
        dtype : dtype
            Of the result.

        Returns
        -------
        ndarray
            (height, width), 0 for background; or (height, width, channels).

        Raises
        ------
        GeometryError
            `shape` or `downsample` is not positive.
        UsageError
            `classes` is wrong, or does not fit into `dtype`.
        """
        grid = Grid.of(region_origin, shape, downsample)
        table = ClassTable.of(classes, self.labels)
        return self._paint(grid, table, multichannel, all_touched, dtype)

    def _paint(
        self, grid: Grid, table: ClassTable, multichannel: bool, touched: bool, dtype: Any
    ) -> Array:
        kind = np.dtype(dtype) if multichannel else table.check_dtype(dtype)
        labels, codes = self._codes
        layers = [layer[codes] for layer in table.layers(labels, multichannel)]
        planes = rasterize(self.shapes, layers, grid, all_touched=touched, dtype=kind)
        if not multichannel:
            return np.asarray(planes[0])
        result = np.zeros((*grid.shape, table.channels), kind)
        first = 1 if table.background == "first" else 0
        result[..., first : first + table.count] = np.moveaxis(planes, 0, -1)
        if table.background is not None:
            own = 0 if first else -1
            result[..., own] = ~planes.astype(bool).any(axis=0)
        return result

    def mask(
        self,
        labels: str | Iterable[str] | None = None,
        *,
        extent0: tuple[int, int],
        scale: float | tuple[float, float],
        all_touched: bool = True,
    ) -> npt.NDArray[np.bool_]:
        """Where shapes lie, at low resolution: what sampling draws from.

        Parameters
        ----------
        labels : str or iterable of str, optional
            Labels that count; without it every shape does. One that no shape of this slide
            has counts nowhere: slides of a cohort differ.
        extent0, scale
            Level-0 extent of the image, and level-0 pixels per mask pixel, along (y, x): the
            mask has one divided by the other, rounded up.
        all_touched : bool
            Pixels that are covered in part count.
        """
        pair = pair_of(scale)
        sizes = [int(np.ceil(n / s - 1e-6)) for n, s in zip(extent0, pair, strict=True)]
        grid = Grid.of((0, 0), (sizes[0], sizes[1]), pair)
        if labels is None:
            table = ClassTable(dict.fromkeys((None, *self.labels), (1,)), 1)
        else:
            wanted = [labels] if isinstance(labels, str) else list(labels)
            if not wanted:
                raise UsageError(
                    f"labels= names no label, so that nothing counts; there are {list(self.labels)}"
                )
            table = ClassTable(dict.fromkeys(wanted, (1,)), 1)
        return self._paint(grid, table, False, all_touched, bool)

    def view(
        self,
        like: ImageView,
        *,
        classes: ClassesLike,
        multichannel: bool = False,
        all_touched: bool = False,
        dtype: npt.DTypeLike = "u1",
    ) -> AnnotationView:
        """The annotations as an image on another image's grid: a target for the loader.

        `like` is ``slide.view(level=1)`` or ``record.view(...)``, with two spatial axes: extent
        and resolution. The rest is as in `rasterize`.
        """
        from daskdmed.cohort.annotations.view import AnnotationView

        table = ClassTable.of(classes, self.labels)
        return AnnotationView.on(
            like, self, table, multichannel=multichannel, all_touched=all_touched, dtype=dtype
        )

    def to_dask(
        self,
        like: ImageView,
        chunks: Any = 4096,
        *,
        classes: ClassesLike,
        multichannel: bool = False,
        all_touched: bool = False,
        dtype: npt.DTypeLike = "u1",
    ) -> da.Array:
        """A lazy array, (y, x[, channels]), that lies block for block on an image's array.

        `chunks` are as given to ``Slide.to_dask``, which rounds them down to whole storage
        tiles in the same way; or those of a Dask array, taken as they are. The rest is as of
        `view`. The name of the array depends on the content only.
        """
        from daskdmed.images.lazy import to_dask

        view = self.view(
            like, classes=classes, multichannel=multichannel, all_touched=all_touched, dtype=dtype
        )
        return to_dask(view, chunks)

    # ---------------------------------------------------------------- files
    @overload
    def to_geojson(self, path: None = None, *, offset: Any = None) -> str: ...
    @overload
    def to_geojson(self, path: PathLike, *, offset: Any = None) -> None: ...
    def to_geojson(self, path: PathLike | None = None, *, offset: Any = None) -> str | None:
        """Write a GeoJSON FeatureCollection that QuPath imports; without a path give the text.

        The file is replaced whole, and packed when it ends in ``.gz``. `offset`, (x, y) or a
        slide, is subtracted from every coordinate: the reverse of `read_annotations`.
        """
        return write_geojson(self, path, offset)

    # ---------------------------------------------------------------- a value
    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Annotation]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> Annotation: ...
    @overload
    def __getitem__(self, index: slice) -> Annotations: ...
    def __getitem__(self, index: int | slice) -> Annotation | Annotations:
        if isinstance(index, slice):
            return self._of(self._items[index])
        return self._items[index]

    def __add__(self, other: Annotations) -> Annotations:
        """Both tables, `other` painting over this one."""
        if not isinstance(other, Annotations):
            return NotImplemented
        source = self.source if self.source == other.source else ""
        return Annotations((*self, *other), source=source, notes=(*self.notes, *other.notes))

    def __eq__(self, other: object) -> bool:
        return self.token == other.token if isinstance(other, Annotations) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.token)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "daskdmed.Annotations", self.token

    def __reduce__(self) -> tuple[Any, ...]:
        codes = require_shapely().to_wkb(self.geometries).tolist()
        facts = [item.facts for item in self._items]
        return _rebuild, (codes, facts, self.source, self.notes)

    def __repr__(self) -> str:
        counts = ", ".join(f"{label}: {n}" for label, n in self.counts.items())
        return f"Annotations({len(self)}{f'; {counts}' if counts else ''})"

    def _repr_html_(self) -> str:
        from daskdmed.cohort.annotations.html import annotations_html

        return annotations_html(self)


def _rebuild(codes: list[bytes], facts: list[Any], source: str, notes: Any) -> Annotations:
    shapes = require_shapely().from_wkb(codes)
    items = (Annotation(shape, *own) for shape, own in zip(shapes, facts, strict=True))
    return Annotations(items, source=source, notes=notes)
