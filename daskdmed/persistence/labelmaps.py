"""Where small chunks may lie by the classes of a label map: exact, to the voxel.

A small chunk is allowed when its middle voxel has one of the classes asked for, or when any
of its voxels has. Every big chunk is looked at once, by itself, so that memory does not grow
with the volume; what was found is kept packed, `KEPT_BYTES` of it for all loaders of a process,
and looked up anew beyond.

Not covered: annotations and tissue (`daskdmed.persistence.where`), who is drawn from when
(`daskdmed.persistence.plan`).
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.sources import Failure
from daskdmed.core.errors import DaskdmedError, UsageError, listing
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.persistence.areas import Chosen, places_along
from daskdmed.persistence.catalogue import Catalogue, Entry, Geometry, LabelMap

logger = logging.getLogger("daskdmed.loading")

#: bytes of packed marks that a process keeps
KEPT_BYTES = 256 << 20
#: which pixels of a small chunk decide: the middle one, or all of them
At: TypeAlias = Literal["centre", "any"]


@dataclass(frozen=True, slots=True)
class Classes:
    """Classes that small chunks are wanted of; none: wherever there is tissue.

    `labels`: names of annotations, or numbers of a label map. `of`: the record that holds them,
    None for the annotations of a patient.
    """

    labels: tuple[Any, ...] = ()
    of: str | None = None
    at: At = "centre"

    def __bool__(self) -> bool:
        return bool(self.labels)


@dataclass(frozen=True)
class Marks:
    """The allowed places of one big chunk: a mask over all places of it, packed.

    `axes` are the places along each axis; the mask covers those of `box`, and there is none
    elsewhere.
    """

    axes: tuple[npt.NDArray[np.int64], ...]
    box: Region
    packed: bytes
    count: int

    @classmethod
    def of(cls, mask: npt.NDArray[np.bool_], axes: Sequence[npt.NDArray[np.int64]]) -> Marks:
        """Of a mask with one element for each place."""
        low, high = [], []
        for axis in range(mask.ndim):
            others = tuple(a for a in range(mask.ndim) if a != axis)
            hit = np.flatnonzero(mask.any(axis=others))
            low.append(int(hit[0]) if hit.size else 0)
            high.append(int(hit[-1]) + 1 if hit.size else 0)
        box = Region.between(low, high)
        packed = zlib.compress(np.packbits(mask[box.slices]).tobytes(), 1)
        return cls(tuple(axes), box, packed, int(np.count_nonzero(mask)))

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Over the places of `box`."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return np.unpackbits(bits, count=self.box.size).astype(bool).reshape(self.box.shape)

    def drawn(self, rng: np.random.Generator, count: int) -> Chosen:
        """So many places in random order, none twice before all were given."""
        flat = np.flatnonzero(self.mask)
        parts = [rng.permutation(flat) for _ in range(count // max(1, flat.size))]
        if flat.size:
            rest = count - flat.size * len(parts)
            parts.append(flat[rng.choice(flat.size, rest, replace=False)])
        found = np.concatenate([flat[:0], *parts])
        within = np.stack(np.unravel_index(found, self.box.shape), axis=1)
        at = zip(self.axes, within.T, self.box.origin, strict=True)
        return Chosen(np.stack([a[i + o] for a, i, o in at], axis=1).astype(np.int32))

    def hold(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of some places of the big chunk, (n, axes), are allowed."""
        found = [np.searchsorted(a, p) for a, p in zip(self.axes, places.T, strict=True)]
        at = np.stack(found, axis=1) - np.array(self.box.origin)
        inside = ((at >= 0) & (at < self.box.shape)).all(axis=1)
        inside[inside] = self.mask[tuple(at[inside].T)]
        return np.asarray(inside, np.bool_)


def mark(
    labels: LabelMap, classes: Classes, region: Region, size: Sequence[int], multiple: Sequence[int]
) -> Marks:
    """Look up a big chunk: the allowed places of small chunks of a size inside a region."""
    axes = places_along(region, tuple(size), tuple(multiple))
    if not all(a.size for a in axes):
        return Marks.of(np.zeros([a.size for a in axes], bool), axes)
    spans = []
    for places, s, r in zip(axes, size, labels.ratio, strict=True):
        first, last = (places, places + s - 1) if classes.at == "any" else (places + s // 2,) * 2
        spans.append((first // r, last // r + 1))
    box = Region.between([int(a[0]) for a, _ in spans], [int(b[-1]) for _, b in spans])
    values = labels.view.read_padded(box)
    if values.ndim > len(axes):
        values = values[..., 0]
    found = np.isin(values, classes.labels)
    for axis, (begin, stop) in enumerate(spans):
        found = _any_between(found, axis, begin - box.origin[axis], stop - box.origin[axis])
    return Marks.of(found, axes)


def _any_between(
    found: npt.NDArray[np.bool_], axis: int, begin: Array, stop: Array
) -> npt.NDArray[np.bool_]:
    """Along an axis, whether any element from each begin to each stop is True."""
    if (stop == begin + 1).all():
        return found if begin.size == found.shape[axis] else found.take(begin, axis=axis)
    held = np.cumsum(found, axis=axis, dtype=np.int32)
    held = np.insert(held, 0, 0, axis=axis)
    return np.asarray(held.take(stop, axis=axis) > held.take(begin, axis=axis))


class _Kept:
    """Marks of all loaders of this process, by content; those used last, within `KEPT_BYTES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._marks: OrderedDict[Any, Marks] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any) -> Marks | None:
        with self._lock:
            if key in self._marks:
                self._marks.move_to_end(key)
            return self._marks.get(key)

    def put(self, key: Any, marks: Marks) -> None:
        with self._lock:
            if key in self._marks:
                return
            self._marks[key] = marks
            self._bytes += _nbytes(marks)
            while self._bytes > KEPT_BYTES:
                self._bytes -= _nbytes(self._marks.popitem(last=False)[1])


def _nbytes(marks: Marks) -> int:
    return len(marks.packed) + sum(a.nbytes for a in marks.axes) + 256


_kept = _Kept()


class LabelMaps:
    """Classes of label maps, for the records of a catalogue."""

    def __init__(self, catalogue: Catalogue, geometry: Geometry) -> None:
        self._catalogue = catalogue
        self._size = geometry.smallchunk
        self._names = {name for entry in catalogue.entries for name in entry.maps}
        self._counts: dict[tuple[int, Classes], npt.NDArray[np.float64]] = {}
        self._lock = threading.Lock()

    def meant(self, classes: Classes) -> bool:
        """Whether classes are those of a label map."""
        return bool(classes) and classes.of in self._names

    def marks(self, record: int, classes: Classes, block: int) -> Marks:
        """The allowed places of a big chunk."""
        entry = self._catalogue.entries[record]
        labels, multiple = entry.maps[str(classes.of)], entry.target_ratio
        region = entry.grid.region(block)
        key = (labels.view.token, labels.ratio, classes, region, self._size, multiple)
        found = _kept.get(key)
        if found is None:
            found = mark(labels, classes, region, self._size, multiple)
            _kept.put(key, found)
        return found

    def counts(self, record: int, classes: Classes) -> npt.NDArray[np.float64]:
        """How many places are allowed in each big chunk of a record; looks at all of it."""
        entry = self._catalogue.entries[record]
        key = (record, classes)
        if key not in self._counts:
            numbers = range(len(entry.grid) if str(classes.of) in entry.maps else 0)
            found = np.zeros(len(entry.grid))
            for block in numbers:
                found[block] = self.marks(record, classes, block).count
            self._counts[key] = found
        return self._counts[key]

    def chosen(
        self, record: int, classes: Classes, block: int, count: int, rng: np.random.Generator
    ) -> Chosen:
        """Places of a visit."""
        return self.marks(record, classes, block).drawn(rng, count)

    # -- what can be drawn ----------------------------------------------------------

    def check(
        self, title: str, members: Sequence[int], classes: Classes
    ) -> Iterator[tuple[int, Failure]]:
        """Look at the label maps of some records, in threads: gives those that cannot be drawn
        from, because they lack the classes or (with an error) cannot be read.

        UsageError: labels that are no numbers, or no record has any of the classes.
        """
        entries = self._catalogue.entries
        odd = [x for x in classes.labels if isinstance(x, (str, bool)) or int(x) != x]
        if odd:
            raise UsageError(
                f"{title}: record {classes.of!r} is a label map, whose classes are numbers; got "
                f"labels {listing(odd)}"
            )
        with ThreadPoolExecutor(min(16, len(members) or 1)) as pool:
            found = list(pool.map(lambda m: self._look(m, classes), members))
        for member, result in zip(members, found, strict=True):
            if isinstance(result, Exception):
                yield member, self._failure(entries[member], title, str(result), result)
        without = [m for m, r in zip(members, found, strict=True) if r == 0]
        if members and not any(isinstance(r, int) and r for r in found):
            if not without:
                return
            raise UsageError(
                f"{title}: none of {len(members)} patients has the label "
                f"{listing(classes.labels)} in record {classes.of!r} {self._where(classes)}; "
                "check the numbers, or make smallchunk_size smaller"
            )
        for member in without:
            message = self._lacks(entries[member], classes)
            yield member, self._failure(entries[member], title, message, None)
        if without:
            names = listing([str(entries[m].patient.id) for m in without])
            logger.warning(
                "%s: %d of %d patients give no small chunk of it: none of the labels %s in "
                "record %r %s (%s)",
                title,
                len(without),
                len(members),
                listing(classes.labels),
                classes.of,
                self._where(classes),
                names,
            )

    def _look(self, record: int, classes: Classes) -> int | Exception:
        try:
            return int(self.counts(record, classes).sum())
        except (DaskdmedError, OSError) as error:
            return error

    def _where(self, classes: Classes) -> str:
        what = "in a small chunk" if classes.at == "any" else "where a small chunk can be centred"
        return f"{what} of {self._size} pixels"

    def _lacks(self, entry: Entry, classes: Classes) -> str:
        if str(classes.of) not in entry.maps:
            return f"it has no record {classes.of!r}, from which labels are wanted"
        return f"record {classes.of!r} has none of the labels {listing(classes.labels)}"

    def _failure(self, entry: Entry, title: str, message: str, error: Exception | None) -> Failure:
        return Failure(str(entry.patient.id), entry.record, title, message, error)
