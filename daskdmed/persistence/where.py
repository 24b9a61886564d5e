"""Where small chunks of a catalogue's records may lie: tissue masks, annotations, anywhere.

Areas are made when a record is first admitted, some records ahead in a thread, and the last
few are kept. Not covered: how a mask is found (`daskdmed.cohort.tissue.find`), what is drawn from
it (`daskdmed.persistence.areas`).
"""

from __future__ import annotations

import contextlib
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

from daskdmed.cohort.sources import Failure
from daskdmed.core.errors import DaskdmedError, LoaderError, NoTissueError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.view import SlideView
from daskdmed.persistence.areas import Area, Places
from daskdmed.persistence.catalogue import Catalogue, Entry, Geometry

if TYPE_CHECKING:
    from daskdmed.cohort.tissue.find import TissueMask


#: areas kept in memory; a mask of a large slide has some megabytes, and is soon unpacked
_KEPT = 16
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
    """Where small chunks shall come from.

    Parameters
    ----------
    tissue : bool, str, callable, mapping or None
        As ``tissue=`` of `LightDL`.
    least : float
        Fraction of a small chunk that tissue must cover.
    annotations : str or None
        Name of the record that holds annotations; None: the one record that does.
    """

    tissue: TissueLike | None = None
    least: float = 0.5
    annotations: str | None = None

    @property
    def masked(self) -> bool:
        """Whether tissue matters."""
        return self.tissue is not None and self.tissue is not False


class AreaSource:
    """Areas by record and classes.

    Parameters
    ----------
    catalogue : Catalogue
        The records.
    wish : Wish
        What is asked for.
    geometry : Geometry
        Extent of a small chunk, and how images are cut.
    on_error : {"raise", "skip"}
        What a slide without tissue, or without a readable mask, does.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        wish: Wish,
        geometry: Geometry,
        *,
        on_error: Literal["raise", "skip"],
    ) -> None:
        self._catalogue = catalogue
        self._wish = wish
        self._size = geometry.smallchunk
        self._by_places = geometry.by_places
        self._on_error = on_error
        self._areas: OrderedDict[tuple[int, tuple[str, ...]], Area | None] = OrderedDict()
        self._weights: dict[tuple[int, tuple[str, ...]], Array | None] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[None]] = {}
        self.failures: list[Failure] = []

    def prefetch(self, records: Iterable[int]) -> None:
        """Begin to find the tissue of some records, in order, in threads."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(CPU_COUNT, thread_name_prefix="daskdmed-tissue")
        for record in records:
            if (record, ()) not in self._weights and record not in self._pending:
                self._pending[record] = self._pool.submit(self._find, record)

    def _find(self, record: int) -> None:
        """Fill the cache; what goes wrong is met again, and told, by who asks."""
        with contextlib.suppress(DaskdmedError, OSError):
            area = self.area(record)
            if area is not None:
                found = self._bounds(record, area)
                if found.any():
                    self._weights[record, ()] = found

    def close(self) -> None:
        """Stop to look ahead. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        self._pending.clear()

    def area(self, record: int, classes: tuple[str, ...] = ()) -> Area | None:
        """Where in a record small chunks may lie; None: anywhere.

        Parameters
        ----------
        record : int
            Number in the catalogue.
        classes : tuple of str
            Classes of annotations; empty: tissue.
        """
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

    def local(self, record: int, classes: tuple[str, ...], region: Region) -> Area | None:
        """Where in one big chunk small chunks may lie; for classes finer than `area`.

        Outlines are painted anew at this place, so that a centre lies in its class to within
        a 64th of a small chunk. What is too thin for that counts as `area` has it.
        """
        whole = self.area(record, classes)
        if whole is None:
            return None
        coarse = whole.cut(region)
        if not classes:
            return coarse
        fine = self._painted(record, classes, coarse)
        return fine if Places(fine, [region], self._size).any() else coarse

    def _painted(self, record: int, classes: tuple[str, ...], coarse: Area) -> Area:
        """A part of the mask of a class, each pixel divided into some."""
        entry = self._catalogue.entries[record]
        # divided by powers of two, so that what lies in a part lies in the pixel
        parts = tuple(
            2 ** max(0, math.ceil(math.log2(scale / max(1, s / _FINE_PARTS))))
            for scale, s in zip(coarse.scale, self._size, strict=True)
        )
        scale = tuple(s / n for s, n in zip(coarse.scale, parts, strict=True))
        origin = tuple(o * n for o, n in zip(coarse.origin, parts, strict=True))
        painted = annotations_of(entry, self._wish.annotations).rasterize(
            origin,
            tuple(m * n for m, n in zip(coarse.mask.shape, parts, strict=True)),
            tuple(d * s for d, s in zip(entry.view.downsample, scale, strict=True)),
            classes=dict.fromkeys(classes, 1),
        )
        return Area(painted > 0, scale, None, origin, coarse.multiple)

    def weights(self, record: int, classes: tuple[str, ...] = ()) -> Array | None:
        """No less than how many places each big chunk of a record has; None: all alike.

        0 where there is none. `accepts` says how many of them there really are.

        Raises
        ------
        NoTissueError
            Under ``on_error="raise"``: the record has tissue nowhere.
        """
        key = (record, classes)
        pending = None if classes else self._pending.pop(record, None)
        if pending is not None and not pending.cancelled():
            pending.result()
        if key in self._weights:
            return self._weights[key]
        entry = self._catalogue.entries[record]
        try:
            area = self.area(record, classes)
            found = self._everywhere(entry) if area is None else self._bounds(record, area)
            if area is not None and not classes and not found.any():
                raise NoTissueError(self._no_tissue(entry, area))
        except (DaskdmedError, OSError) as error:
            found = self._failed(entry, error)
        self._weights[key] = found
        return found

    def _everywhere(self, entry: Entry) -> Array | None:
        """How many places big chunks have that are cut by places; None: all alike."""
        if not self._by_places:
            return None
        found = entry.grid.places(entry.target_ratio)
        return None if (found == found[0]).all() else found

    def _bounds(self, record: int, area: Area) -> npt.NDArray[np.float64]:
        grid = self._catalogue.entries[record].grid
        found = np.zeros(len(grid))
        for block in range(len(grid)):
            region = grid.region(block)
            part = area.cut(region)
            if part.mask.any():
                places = Places(part, [region], self._size)
                found[block] = places.bound if part.mask.all() or places.any() else 0
        return found

    def choice(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """`weights` and `accepts` of a plan that draws from some classes, or from tissue."""
        return {
            "weights": lambda record: self.weights(record, classes),
            "accepts": lambda record, block, rng: self.accepts(record, classes, block, rng),
        }

    def accepts(
        self, record: int, classes: tuple[str, ...], block: int, rng: np.random.Generator
    ) -> bool:
        """True with the probability of a big chunk's places in proportion to its weight.

        Parameters
        ----------
        record : int
            Number in the catalogue.
        classes : tuple of str
            As of `weights`.
        block : int
            Number of the big chunk in the record's grid.
        rng : numpy.random.Generator
            Decides.
        """
        area = self.area(record, classes)
        if area is None:
            return True  # these weights are no bounds
        region = self._catalogue.entries[record].grid.region(block)
        found = Places(area.cut(region), [region], self._size).tried(rng, 1)
        if not classes or not len(found):
            return len(found) > 0
        local = self.local(record, classes, region)
        assert local is not None
        return bool(local.allowed(found[:, 1:], self._size)[0])

    def _failed(self, entry: Entry, error: Exception) -> npt.NDArray[np.float64]:
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
            f"{self._size} pixels has at least {self._wish.least:.0%} tissue (the mask covers "
            f"{covered:.2%} of the image); lower min_tissue, choose another tissue method, pass "
            'on_error="skip", or leave the patient out'
        )

    # -- masks ----------------------------------------------------------------------

    def _make(self, record: int, classes: tuple[str, ...]) -> Area:
        entry = self._catalogue.entries[record]
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
        source, view = entry.patient.record(entry.record), entry.view
        errors = view.tile_error if isinstance(view, SlideView) else "raise"
        axes = view.spatial_ndim
        return tissue_mask(source, method=method, spatial_ndim=axes, tile_error=errors)

    def _class_mask(
        self, entry: Entry, classes: Sequence[str]
    ) -> tuple[npt.NDArray[np.bool_], tuple[float, ...]]:
        annotations = annotations_of(entry, self._wish.annotations)
        view = entry.view
        shape = view.spatial_shape
        extent0 = tuple(round(s * d) for s, d in zip(shape, view.downsample, strict=True))
        scale0 = tuple(
            max(1.0, size * d / _CLASS_PARTS, extent / _CLASS_EXTENT)
            for size, d, extent in zip(self._size, view.downsample, extent0, strict=True)
        )
        mask = annotations.mask(list(classes), extent0=extent0, scale=scale0, all_touched=True)
        return mask, tuple(s / d for s, d in zip(scale0, view.downsample, strict=True))


def annotations_of(entry: Entry, name: str | None) -> Any:
    """The annotations of an entry's patient.

    Parameters
    ----------
    entry : Entry
        Whose.
    name : str or None
        Record that holds them; None: the only record that holds annotations.

    Raises
    ------
    UsageError
        None or several do, or the named one does not.
    """
    patient = entry.patient
    if name is not None:
        record = patient.record(name)
        if not record.is_annotations:
            raise UsageError(
                f"patient {str(patient.id)!r}: record {name!r} holds no annotations; give a "
                ".geojson or .xml record, or Record(annotations=...)"
            )
        return record.annotations()
    holding = [r for r in patient.records.values() if r.is_annotations]
    if len(holding) != 1:
        names = ", ".join(r.name for r in holding) or "none"
        raise UsageError(
            f"patient {str(patient.id)!r} has {len(holding)} records with annotations ({names}); "
            "name one with annotations="
        )
    return holding[0].annotations()
