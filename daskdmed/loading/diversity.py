"""How varied batches are, and where small chunks came from: bounded bookkeeping.

`Diversity` is fed every batch that the consumer takes and keeps a small count map per
patient and one number per resident visit; PyDmed kept every location for ever. Not covered:
throughput (`daskdmed.loading.stats`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.record import Record
from daskdmed.core import html
from daskdmed.core.errors import UsageError
from daskdmed.core.figures import new_figure
from daskdmed.core.types import Array
from daskdmed.images.slide import Slide
from daskdmed.loading.chunks import Provenance, SmallChunks
from daskdmed.persistence.catalogue import Catalogue, Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from daskdmed.persistence.where import AreaSource

#: cells of a count map along the longer of the last two axes
CELLS = 64
#: visits whose last draw is remembered
_VISITS = 65_536
#: batches that are counted together
_TOGETHER = 32
#: corners and centre of a small chunk, its centre in the middle: first, centre or last of each axis
_ROWS, _COLUMNS = [0, 0, 1, 2, 2], [0, 2, 1, 0, 2]


@dataclass(frozen=True, slots=True)
class DiversityStats:
    """How varied the batches taken so far were.

    Parameters
    ----------
    patches_per_visit : float
        Mean over the big chunks that were drawn from.
    patients_per_batch, bigchunks_per_batch : float
        Mean number of distinct ones in a batch.
    repeat_distance : float or None
        Mean number of small chunks between two from the same big chunk; None before any
        was repeated. Independent sampling from n big chunks gives n.
    coverage : float
        Fraction of the cells that hold anything to draw from (tissue, where a mask is in
        use) that a small chunk has reached with a corner or its centre, over all patients
        drawn from. An image has up to 64 x 64 cells.
    patients : int
        Patients drawn from so far.
    """

    patches_per_visit: float
    patients_per_batch: float
    bigchunks_per_batch: float
    repeat_distance: float | None
    coverage: float
    patients: int

    def rows(self) -> list[tuple[str, str]]:
        """Name and value, for people."""
        distance = self.repeat_distance
        return [
            ("patches per visit", f"{self.patches_per_visit:,.1f}"),
            ("patients per batch", f"{self.patients_per_batch:.1f}"),
            ("big chunks per batch", f"{self.bigchunks_per_batch:.1f}"),
            ("repeat distance", "-" if distance is None else f"{distance:,.0f} patches"),
            ("coverage", f"{self.coverage:.1%} of {self.patients:,} patients"),
        ]

    def _repr_html_(self) -> str:
        return html.page(html.facts(self.rows()))


class Diversity:
    """Counts what `DiversityStats` says."""

    def __init__(self, catalogue: Catalogue, size: tuple[int, ...]) -> None:
        self._entries = {str(e.patient.id): e for e in catalogue.entries}
        self._names = list(self._entries)
        self._numbers = {name: i for i, name in enumerate(self._names)}
        self._lock = threading.Lock()
        self._waiting: list[tuple[Sequence[Provenance], Array]] = []
        self._size = np.array(size[-2:])
        self._maps: dict[str, npt.NDArray[np.uint32]] = {}
        self._reached: dict[str, npt.NDArray[np.bool_]] = {}
        self._last: OrderedDict[int, int] = OrderedDict()
        self._usable: dict[str, npt.NDArray[np.bool_]] = {}
        self._taken = self._batches = self._visits = 0
        self._patients = self._bigchunks = 0
        self._gaps = self._repeats = 0

    def add(self, smallchunks: SmallChunks) -> None:
        """Count one batch; done when some have come together, at a fifth of the cost."""
        with self._lock:
            self._waiting.append((smallchunks.provenance, smallchunks.origins[:, -2:]))
            if len(self._waiting) >= _TOGETHER:
                self._count()

    def _count(self) -> None:
        """Count the batches that wait. Under the lock."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        sources = [source for provenance, _ in waiting for source in provenance]
        batches = np.repeat(np.arange(len(waiting)), [len(p) for p, _ in waiting])
        # visits are far fewer than small chunks: each is looked at once
        own = np.fromiter(map(id, sources), np.int64, len(sources))
        _, first, dense = np.unique(own, return_index=True, return_inverse=True)
        told = [sources[i] for i in first.tolist()]
        numbers = np.array([self._numbers[str(s.patient.id)] for s in told])[dense]
        visits = np.array([s.bigchunks[0].visit for s in told])[dense]
        self._batches += len(waiting)
        self._patients += len(np.unique(batches * len(self._names) + numbers))
        self._bigchunks += len(np.unique(batches * len(sources) + dense))
        self._repeat(visits)
        self._taken += len(sources)
        self._locate(numbers, np.concatenate([origins for _, origins in waiting]))

    def _repeat(self, visits: Array) -> None:
        """Distances to the small chunk before of the same visit."""
        order = np.argsort(visits, kind="stable")
        ordered = visits[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        first, final = order[starts], order[np.append(starts[1:], len(order)) - 1]
        self._gaps += int((final - first).sum())
        self._repeats += len(visits) - len(starts)
        last, taken = self._last, self._taken
        rows = zip(ordered[starts].tolist(), first.tolist(), final.tolist(), strict=True)
        for visit, begin, end in sorted(rows, key=lambda row: row[2]):
            before = last.pop(visit, None)
            if before is None:
                self._visits += 1
            else:
                self._gaps += taken + begin - before
                self._repeats += 1
            last[visit] = taken + end
        while len(last) > _VISITS:
            last.popitem(last=False)

    def _locate(self, numbers: Array, origins: Array) -> None:
        for number in np.unique(numbers).tolist():
            name = self._names[number]
            if name not in self._maps:
                shape = cells_of(_extent(self._entries[name]))
                self._maps[name] = np.zeros(shape, np.uint32)
                self._reached[name] = np.zeros(shape, bool)
            counts = self._maps[name]
            here = origins[numbers == number]
            scale = np.array(counts.shape) / _extent(self._entries[name])
            last = np.array(counts.shape) - 1
            # first corner, centre and last corner, per axis
            steps = np.array([0.0, 0.5, 1.0])[:, None, None] * (self._size - 1)
            at = np.clip(((here + steps) * scale).astype(np.int64), 0, last)
            # cells by one number
            cells = at[_ROWS, :, 0] * counts.shape[1] + at[_COLUMNS, :, 1]
            more = np.bincount(cells[2], minlength=counts.size).astype(np.uint32)
            counts += more.reshape(counts.shape)
            self._reached[name].reshape(-1)[cells] = True

    def knows(self, patient: str) -> bool:
        """Whether there is such a patient."""
        return patient in self._entries

    def stats(self, areas: AreaSource | None = None) -> DiversityStats:
        """What has been counted."""
        with self._lock:
            self._count()
        batches = max(1, self._batches)
        seen = possible = 0
        for name, reached in self._reached.items():
            usable = self.usable(name, areas)
            seen += int(np.count_nonzero(reached & usable))
            possible += int(np.count_nonzero(usable))
        return DiversityStats(
            patches_per_visit=self._taken / max(1, self._visits),
            patients_per_batch=self._patients / batches,
            bigchunks_per_batch=self._bigchunks / batches,
            repeat_distance=self._gaps / self._repeats if self._repeats else None,
            coverage=seen / possible if possible else 0.0,
            patients=len(self._maps),
        )

    def counts(self, patient: str) -> npt.NDArray[np.uint32]:
        """How many small chunks were centred in each cell of a patient's image."""
        if patient not in self._entries:
            some = ", ".join(list(self._entries)[:5])
            raise UsageError(f"there is no patient {patient!r} in this loader; there are {some}")
        with self._lock:
            self._count()
        if patient not in self._maps:
            return np.zeros(cells_of(_extent(self._entries[patient])), np.uint32)
        return self._maps[patient].copy()

    def usable(self, patient: str, areas: AreaSource | None) -> npt.NDArray[np.bool_]:
        """Cells in which a small chunk can be centred."""
        if patient not in self._usable:
            self._usable[patient] = self._find_usable(patient, areas)
        return self._usable[patient]

    def _find_usable(self, patient: str, areas: AreaSource | None) -> npt.NDArray[np.bool_]:
        shape = cells_of(_extent(self._entries[patient]))
        area = None if areas is None else areas.area(self._numbers[patient])
        if area is None:
            return np.ones(shape, bool)
        mask: Array = area.mask
        if mask.ndim > 2:
            mask = np.any(mask, axis=tuple(range(mask.ndim - 2)))
        rows = np.arange(mask.shape[0]) * shape[0] // mask.shape[0]
        columns = np.arange(mask.shape[1]) * shape[1] // mask.shape[1]
        found = np.zeros(shape, np.int64)
        np.add.at(found, (rows[:, None], columns[None, :]), mask)
        # cells that tissue only touches may have no place for a centre
        usable: npt.NDArray[np.bool_] = np.asarray(found * 2 >= mask.size / found.size)
        return usable

    def plot(
        self, patient: str, areas: AreaSource | None, *, ax: Axes | None = None, alpha: float = 0.6
    ) -> Figure:
        """Draw where small chunks were centred, over the thumbnail."""
        counts = self.counts(patient)
        return plot_counts(self._entries[patient], counts, ax=ax, alpha=alpha)


def _extent(entry: Entry) -> Array:
    """Rows and columns of an entry's image: its last two spatial axes."""
    return np.array(entry.view.spatial_shape[-2:])


def cells_of(extent: Array) -> tuple[int, int]:
    """Rows and columns of the count map of an image."""
    rows, columns = (max(1, round(CELLS * e / max(extent))) for e in extent.tolist())
    return rows, columns


def plot_counts(entry: Entry, counts: Array, *, ax: Axes | None, alpha: float) -> Figure:
    """A count map over the thumbnail of its image, in its level-0 pixels."""
    if ax is None:
        height = min(12.0, 6.5 * counts.shape[0] / counts.shape[1] + 0.5)
        figure = new_figure("plot_coverage", figsize=(8, height), dpi=100, layout="constrained")
        ax = figure.add_subplot()
    top = ax.get_figure(root=True)
    assert top is not None
    height0, width0 = _extent(entry) * entry.view.downsample[-2:]
    extent = (0.0, float(width0), float(height0), 0.0)
    picture = _thumbnail(entry)
    if picture is not None:
        ax.imshow(picture, extent=extent)
    shown = np.ma.masked_equal(counts, 0)
    image = ax.imshow(shown, extent=extent, alpha=alpha, cmap="viridis")
    top.colorbar(image, ax=ax, label="small chunks centred here", shrink=0.7)
    ax.set_title(f"{entry.patient.id}: {int(counts.sum()):,} small chunks")
    ax.set_axis_off()
    return top


def _thumbnail(entry: Entry) -> Any:
    """A small picture of a slide; None for volumes, and arrays, whose pixels may be anything."""
    record = entry.source
    if not isinstance(record, Record) or record.uri is None:
        return None
    opened = record.open()
    return opened.get_picture((1024, 1024)) if isinstance(opened, Slide) else None
