"""Where small chunks of a catalogue's records may lie: tissue masks, annotations, anywhere.

Areas are made when a record is first admitted, some records ahead in a thread, and the last
few are kept. Not covered: how a mask is found (`daskdmed.cohort.tissue.find`), what is drawn from
it (`daskdmed.persistence.areas`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from dask.system import CPU_COUNT

from daskdmed.cohort.annotations.undrawn import drawn_on, undrawn
from daskdmed.cohort.sources import Failure
from daskdmed.core.errors import (
    DaskdmedError,
    LoaderError,
    NoTissueError,
    UsageError,
)
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.images.view import SlideView
from daskdmed.persistence.areas import Area, Places
from daskdmed.persistence.blockgrid import Span
from daskdmed.persistence.catalogue import Catalogue, Entry, Geometry
from daskdmed.persistence.labelmaps import Classes, LabelMaps

if TYPE_CHECKING:
    from daskdmed.cohort.annotations import Annotations
    from daskdmed.cohort.tissue.find import TissueMask

logger = logging.getLogger("daskdmed.loading")

#: no classes: tissue, or any place
ANYWHERE = Classes()

#: areas kept in memory; a mask of a large slide has some megabytes, and is soon unpacked
_KEPT = 16
#: finer ones of a class in one big chunk
_KEPT_FINE = 8
#: pixels of a class in a big chunk up to which its places are counted exactly
_FEW_PIXELS = 256
#: big chunks are weighed by classes resolved to this part of a small chunk...
_CLASS_PARTS = 8
#: ... in which places are then found to this part of a small chunk
_FINE_PARTS = 64
#: the mask of a class has at most so many pixels along an axis
_CLASS_EXTENT = 4096

#: what ``tissue=`` accepts: a method, a function, or masks by patient
TissueLike: TypeAlias = "bool | str | Callable[[Array], Array] | Mapping[str, Any] | TissueMask"


@dataclass(frozen=True, slots=True)
class Wish:
    """Where small chunks shall come from: as ``tissue=``, ``min_tissue=`` and ``annotations=`` of
    `LightDL`.
    """

    tissue: TissueLike | None = None
    least: float = 0.5
    annotations: str | None = None

    @property
    def masked(self) -> bool:
        return self.tissue is not None and self.tissue is not False

    @property
    def map(self) -> str | None:
        """The record whose classes may be meant by tissue: neither a method nor a file is."""
        from daskdmed.cohort.tissue.methods import RULES

        return self.tissue if isinstance(self.tissue, str) and self.tissue not in RULES else None


class AreaSource:
    """Areas by number of the record and classes (none: tissue); those of label maps are in `maps`.

    `on_error` says what a slide without tissue, or without a readable mask, does; `anywhere`: big
    chunks may lie anywhere, not only on the grid.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        wish: Wish,
        geometry: Geometry,
        *,
        on_error: Literal["raise", "skip"],
        anywhere: bool = False,
    ) -> None:
        self.maps = LabelMaps(catalogue, geometry)
        self.anywhere = anywhere
        self.catalogue = catalogue
        self._wish = wish
        self.size = geometry.smallchunk
        self._by_places = geometry.by_places
        self._on_error = on_error
        self._areas: OrderedDict[tuple[int, Classes], Area | None] = OrderedDict()
        self._weights: dict[tuple[int, Classes], Array | None] = {}
        self._fine: OrderedDict[tuple[int, Classes, Region], Area] = OrderedDict()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[None]] = {}
        self.failures: list[Failure] = []

    def prefetch(self, records: Iterable[int]) -> None:
        """Begin to find the tissue of some records, in order, in threads."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(CPU_COUNT, thread_name_prefix="daskdmed-tissue")
        for record in records:
            if (record, ANYWHERE) not in self._weights and record not in self._pending:
                self._pending[record] = self._pool.submit(self._find, record)

    def _find(self, record: int) -> None:
        """Fill the cache; what goes wrong is met again, and told, by who asks."""
        with contextlib.suppress(DaskdmedError, OSError):
            area = self.area(record)
            if area is not None:
                found = self._bounds(record, ANYWHERE, area)
                if found.any():
                    self._weights[record, ANYWHERE] = found

    def close(self) -> None:
        """Stop to look ahead. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        self._pending.clear()

    def area(self, record: int, classes: Classes = ANYWHERE) -> Area | None:
        """Where in a record small chunks may lie; None: anywhere."""
        if not classes and not self._wish.masked:
            return None
        key = (record, classes)
        with self._lock:
            if key in self._areas:
                self._areas.move_to_end(key)
                return self._areas[key]
        area = self._make(record, classes)
        with self._lock:
            self._areas[key] = area
            while len(self._areas) > _KEPT:
                self._areas.popitem(last=False)
        return area

    def local(self, record: int, classes: Classes, region: Region) -> Area | None:
        """Where in one big chunk small chunks may lie; for classes finer than `area`.

        Outlines are painted anew at this place, so that a centre lies in its class to within
        a 64th of a small chunk. Where no centre can come as near, for instance at the edge of
        the slide, a pixel of `area` counts as a whole.
        """
        whole = self.area(record, classes)
        if whole is None or not classes:
            return None if whole is None else whole.cut(region)
        key = (record, classes, region)
        with self._lock:
            fine = self._fine.get(key)
        if fine is None:
            fine = self._painted(record, classes, whole.cut(region).tight())
            with self._lock:
                self._fine[key] = fine
                while len(self._fine) > _KEPT_FINE:
                    self._fine.popitem(last=False)
        return fine

    def _deciding(
        self, record: int, classes: Classes, area: Area, region: Region
    ) -> tuple[Area, bool]:
        """What tells how many places a big chunk has, and whether that is exact.

        Where a class has few pixels of the coarse mask, such as those of points, hardly any
        place in them is in the class, so that most visits would be refused.
        """
        part = area.cut(region)
        if not classes or not 0 < np.count_nonzero(part.mask) <= _FEW_PIXELS:
            return part, not classes
        fine = self.local(record, classes, region)
        assert fine is not None
        return fine, True

    def _painted(self, record: int, classes: Classes, coarse: Area) -> Area:
        """A part of the mask of a class, each pixel divided into some."""
        entry = self.catalogue.entries[record]
        # divided by powers of two, so that what lies in a part lies in the pixel
        parts = tuple(
            2 ** max(0, math.ceil(math.log2(scale / max(1, s / _FINE_PARTS))))
            for scale, s in zip(coarse.scale, self.size, strict=True)
        )
        scale = tuple(s / n for s, n in zip(coarse.scale, parts, strict=True))
        origin = tuple(o * n for o, n in zip(coarse.origin, parts, strict=True))
        painted = self.drawn(entry, classes).rasterize(
            origin,
            tuple(m * n for m, n in zip(coarse.mask.shape, parts, strict=True)),
            tuple(d * s for d, s in zip(entry.view.downsample, scale, strict=True)),
            classes=dict.fromkeys(classes.labels, 1),
            all_touched=True,
        )
        (rows, columns), (down, across) = coarse.mask.shape, parts

        def divided(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
            return np.repeat(np.repeat(mask, down, axis=0), across, axis=1)

        mask = (painted > 0) & divided(coarse.mask)
        fine = Area(mask, scale, None, origin, coarse.multiple)
        held: Any = fine.mask
        for axis, (spans, first) in enumerate(zip(self._spans(entry), origin, strict=True)):
            hit = np.zeros(held.shape[axis], bool)
            for low, high in fine.centres(axis, spans, self.size):
                hit[max(0, low - first) : max(0, high - first)] = True
            held = held & (hit[:, None] if axis == 0 else hit)
        held = held.reshape(rows, down, columns, across).any(axis=(1, 3))
        lost = coarse.mask & ~held
        if lost.any():
            mask[divided(lost)] = True
        return fine

    def _spans(self, entry: Entry) -> Sequence[tuple[Span, ...]]:
        """What small chunks lie in, along each axis."""
        if self.anywhere:
            sizes = zip(entry.view.spatial_shape, self.size, strict=True)
            return [(Span(0, max(size)),) for size in sizes]
        return entry.grid.axes

    def drawn(self, entry: Entry, classes: Classes) -> Annotations:
        """The annotations that classes are meant of."""
        return drawn_on(entry.patient, classes.of or self._wish.annotations)

    def weights(self, record: int, classes: Classes = ANYWHERE) -> Array | None:
        """No less than how many places each big chunk of a record has; None: all alike.

        0 where there is none. `accepts` says how many of them there really are. NoTissueError,
        under ``on_error="raise"``: the record has tissue nowhere.
        """
        key = (record, classes)
        pending = None if classes else self._pending.pop(record, None)
        if pending is not None and not pending.cancelled():
            pending.result()
        if key in self._weights:
            return self._weights[key]
        entry = self.catalogue.entries[record]
        found: Array | None
        try:
            area = None if self.maps.meant(classes) else self.area(record, classes)
            if self.maps.meant(classes):
                found = self.maps.counts(record, classes)
            elif area is None:
                found = self._everywhere(entry)
            else:
                found = self._bounds(record, classes, area)
                if not classes and not found.any():
                    raise NoTissueError(self._no_tissue(entry, area))
        except (DaskdmedError, OSError) as error:
            found = self.failed(entry, error)
        self._weights[key] = found
        return found

    def _everywhere(self, entry: Entry) -> Array | None:
        """How many places big chunks have that are cut by places; None: all alike."""
        if not self._by_places:
            return None
        found = entry.grid.places(entry.target_ratio)
        return None if (found == found[0]).all() else found

    def _bounds(self, record: int, classes: Classes, area: Area) -> npt.NDArray[np.float64]:
        grid = self.catalogue.entries[record].grid
        found = np.zeros(len(grid))
        for block in range(len(grid)):
            region = grid.region(block)
            part, _ = self._deciding(record, classes, area, region)
            if part.mask.any():
                places = Places(part, [region], self.size)
                found[block] = places.bound if part.mask.all() or places.any() else 0
        return found

    def choice(self, classes: Classes) -> dict[str, Any]:
        """`weights` and `accepts` of a plan that draws from some classes, or from tissue."""
        return {
            "weights": lambda record: self.weights(record, classes),
            "accepts": lambda record, block, rng: self.accepts(record, classes, block, rng),
        }

    def accepts(self, record: int, classes: Classes, block: int, rng: np.random.Generator) -> bool:
        """True with the probability of a big chunk's places in proportion to its weight."""
        area = None if self.maps.meant(classes) else self.area(record, classes)
        if area is None:
            return True  # these weights are no bounds
        region = self.catalogue.entries[record].grid.region(block)
        part, exact = self._deciding(record, classes, area, region)
        found = Places(part, [region], self.size).tried(rng, 1)
        if exact or not len(found):
            return len(found) > 0
        local = self.local(record, classes, region)
        assert local is not None
        return bool(local.allowed(found[:, 1:], self.size)[0])

    def no_weights(self, record: int, classes: Classes, weights: Array) -> None:
        """Draw nothing of some classes from a record."""
        self._weights[record, classes] = weights

    @property
    def annotations(self) -> str | None:
        """The record that holds annotations, where one was named."""
        return self._wish.annotations

    def failed(self, entry: Entry, error: Exception) -> npt.NDArray[np.float64]:
        """Weights of a record that cannot be drawn from: an error, or none and a report."""
        patient = str(entry.patient.id)
        if self._on_error == "raise":
            if isinstance(error, UsageError):
                raise error
            raise LoaderError(
                f"patient {patient!r}, record {entry.record!r}: {error}",
                patient=patient,
                record=entry.record,
            ) from error
        failure = Failure(patient, entry.record, "mask", str(error), error)
        failure.tell()
        self.failures.append(failure)
        return np.zeros(len(entry.grid))

    def _no_tissue(self, entry: Entry, area: Area) -> str:
        covered = float(area.mask.mean()) if area.mask.size else 0.0
        return (
            f"patient {str(entry.patient.id)!r}, record {entry.record!r}: no small chunk of "
            f"{self.size} pixels has at least {self._wish.least:.0%} tissue (the mask covers "
            f"{covered:.2%} of the image); lower min_tissue, choose another tissue method, pass "
            'on_error="skip", or leave the patient out'
        )

    # -- masks ----------------------------------------------------------------------

    def _make(self, record: int, classes: Classes) -> Area:
        entry = self.catalogue.entries[record]
        multiple = entry.target_ratio
        if classes:
            mask, scale = self._class_mask(entry, classes)
            return Area(mask, scale, None, (0,) * mask.ndim, multiple)
        tissue = self._tissue_mask(entry)
        scale = tuple(s / d for s, d in zip(tissue.scale, entry.view.downsample, strict=True))
        return Area(tissue.data, scale, self._wish.least, (0,) * tissue.data.ndim, multiple)

    def _tissue_mask(self, entry: Entry) -> TissueMask:
        from daskdmed.cohort.tissue.find import tissue_mask

        method: Any = self._wish.tissue
        if self._wish.map in entry.maps:
            return _labelled(entry, str(method))
        if isinstance(method, Mapping):
            patient = str(entry.patient.id)
            if patient not in method:
                raise UsageError(
                    f"tissue= has no mask for patient {patient!r}, only for "
                    f"{', '.join(map(str, list(method)[:5]))}"
                )
            method = method[patient]
        elif method is True:
            method = "otsu"
        source: Any = entry.source
        view = entry.view
        if not isinstance(source, ImageView) and view.space is not None:
            # an array lies over the image as it is read, a mask with a space is turned
            source = source.view(orientation=view.space.orientation)
        errors = view.tile_error if isinstance(view, SlideView) else "raise"
        axes = view.spatial_ndim
        return tissue_mask(source, method=method, spatial_ndim=axes, tile_error=errors)

    def _class_mask(
        self, entry: Entry, classes: Classes
    ) -> tuple[npt.NDArray[np.bool_], tuple[float, ...]]:
        extent0, scale = self._class_scale(entry)
        scale0 = tuple(s * d for s, d in zip(scale, entry.view.downsample, strict=True))
        drawn: Any = self.drawn(entry, classes)
        return drawn.mask(
            list(classes.labels), extent0=extent0, scale=scale0, all_touched=True
        ), scale

    def _class_scale(self, entry: Entry) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Level-0 extent of the image; pixels of the view per pixel of a class' mask."""
        view = entry.view
        sizes = zip(view.spatial_shape, view.downsample, strict=True)
        extent0 = tuple(round(s * d) for s, d in sizes)
        scale = tuple(
            max(1.0, size * d / _CLASS_PARTS, extent / _CLASS_EXTENT) / d
            for size, d, extent in zip(self.size, view.downsample, extent0, strict=True)
        )
        return extent0, scale

    # -- what can be drawn ----------------------------------------------------------

    def undrawn(self, record: int, classes: Classes) -> list[tuple[int, list[str]]] | Exception:
        """Of each class of annotations how many shapes a record has, and which of them no small
        chunk can be centred in.
        """
        entry = self.catalogue.entries[record]
        try:
            table = self.drawn(entry, classes)
            if not len(table):
                return [(0, [])] * len(classes.labels)
            down, shape = entry.view.downsample, entry.view.spatial_shape
            _, scale = self._class_scale(entry)
            area = Area(np.zeros((1, 1), bool), scale, None, (0, 0), entry.target_ratio)
            centres = [
                [(a * d * s, b * d * s) for a, b in area.centres(axis, spans, self.size)]
                for axis, (d, s, spans) in enumerate(
                    zip(down, scale, self._spans(entry), strict=True)
                )
            ]
            extent = tuple(n * d for n, d in zip(shape, down, strict=True))
            half = tuple(s * d / 2 for s, d in zip(self.size, down, strict=True))
            whose = f"patient {str(entry.patient.id)!r}: "
            found = [undrawn(table, label, centres, extent, half) for label in classes.labels]
            return [(number, [whose + note for note in notes]) for number, notes in found]
        except (DaskdmedError, OSError) as error:
            return error


def _labelled(entry: Entry, name: str) -> TissueMask:
    """Where a label map has any class; of a large one where most of a cell of pixels has one.

    It is read slab by slab.
    """
    from daskdmed.cohort.tissue.mask import TissueMask
    from daskdmed.cohort.tissue.source import VOLUME_PIXELS

    labels = entry.maps[name]
    shape, axes = labels.view.spatial_shape, labels.view.spatial_ndim
    step = max(1, math.ceil((math.prod(shape) / VOLUME_PIXELS) ** (1 / axes) - 1e-6))
    slabs = []
    for first in range(0, shape[0], step):
        region = Region((first, *(0,) * (axes - 1)), (min(step, shape[0] - first), *shape[1:]))
        held: Any = labels.view.read(region).reshape(region.shape) != 0
        for axis, extent in enumerate(region.shape):
            edges = np.arange(0, extent, step)
            size = np.diff(np.append(edges, extent)).reshape([-1, *(1,) * (axes - axis - 1)])
            held = np.add.reduceat(held, edges, axis=axis, dtype=np.float64) / size
        slabs.append(held >= 0.5)
    downs = zip(labels.ratio, entry.view.downsample, strict=True)
    return TissueMask(np.concatenate(slabs), tuple(step * r * d for r, d in downs), method=name)
