"""Big chunks, small chunks, and the record of where a batch came from.

A batch's `SmallChunks` is a lazy sequence over a few arrays: making 64 objects per batch
would cost more than copying 64 crops. Not covered: cropping (`daskdmed.loading.sampling`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from daskdmed.core.frozen import Unmoved
from daskdmed.core.space import Space
from daskdmed.core.types import Array

if TYPE_CHECKING:
    from daskdmed.cohort.patient import Patient


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class BigChunk(Unmoved):
    """One block of a record, as collectors see it.

    Parameters
    ----------
    data : ndarray or None
        Pixels, spatial axes first, channels last. Shared with every other draw of the
        visit: do not write into it. None in the provenance of a batch, because the block
        may have left memory by then.
    origin, shape : tuple of int
        First pixel and extent along each spatial axis, array order, at the resolution read.
    patient, record : str
        Patient id and name of the record.
    visit : int
        Number of the visit in the plan.
    downsample : tuple of float
        Level-0 pixels per pixel along each spatial axis.
    level : int or None
        Level read, None when the resolution was given by mpp or power.
    mpp : (float, float) or None
        (x, y) micrometers per pixel.
    space : Space or None
        Where its voxels lie in the patient; None for planes, and where nobody says.
    target : ndarray or None
        With ``LightDL(target=...)``, the target's pixels of the same place, shared as `data`
        is; of a target with fewer pixels those that the big chunk touches, from pixel
        ``origin // ratio`` on. None in the provenance of a batch.
    """

    data: Array | None
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    patient: str
    record: str
    visit: int
    downsample: tuple[float, ...]
    level: int | None = None
    mpp: tuple[float, float] | None = None
    space: Space | None = None
    target: Array | None = None

    @property
    def location(self) -> tuple[int, ...]:
        """First pixel in the level-0 frame, (x, y) or (x, y, z)."""
        return location_of(self.origin, self.downsample)

    def __repr__(self) -> str:
        return (
            f"<BigChunk of {self.patient} / {self.record}: origin={self.origin}, "
            f"shape={self.shape}, visit={self.visit}>"
        )

    def _repr_html_(self) -> str:
        from daskdmed.loading.html import bigchunk_html

        return bigchunk_html(self)


def location_of(origin: Sequence[int], downsample: Sequence[float]) -> tuple[int, ...]:
    """Array position at some resolution -> (x, y[, z]) in the level-0 frame, rounded."""
    scaled = [round(o * d) for o, d in zip(origin, downsample, strict=True)]
    return tuple(reversed(scaled))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SmallChunk(Unmoved):
    """One crop and where it came from.

    Parameters
    ----------
    data : ndarray
        Pixels as sampled (before any transform), spatial axes first, channels last.
    location : tuple of int
        First pixel in the level-0 frame, (x, y) or (x, y, z).
    patient : Patient
        Whose.
    origin, level, mpp, record
        As of `BigChunk`.
    bigchunk : BigChunk
        The big chunk it was cropped from, without pixels.
    draw : int
        How many draws the visit had given before.
    target : ndarray, tensor or None
        The target's pixels of the same place; its part of `SmallChunks.targets`.
    """

    data: Array
    location: tuple[int, ...]
    origin: tuple[int, ...]
    level: int | None
    mpp: tuple[float, float] | None
    patient: Patient
    record: str
    bigchunk: BigChunk
    draw: int
    target: Any = None

    @property
    def affine(self) -> Array | None:
        """(4, 4), from its array index (z, y, x) to RAS+ millimeters; None for planes, and where
        nobody says how the volume lies in the patient. `data` that was squeezed has fewer axes."""
        space = self.bigchunk.space
        if space is None:
            return None
        first = [a - b for a, b in zip(self.origin, self.bigchunk.origin, strict=True)]
        return space.crop(first, space.shape).affine

    def __repr__(self) -> str:
        at = f"location={self.location}, shape={getattr(self.data, 'shape', ())}"
        return f"<{type(self).__name__} of {self.patient.id} / {self.record}: {at}>"

    def _repr_html_(self) -> str:
        from daskdmed.loading.html import smallchunk_html

        return smallchunk_html(self)


@dataclass(frozen=True, slots=True)
class Provenance(Unmoved):
    """What all crops of one visit share: patient, and its pieces without pixels."""

    patient: Patient
    bigchunks: tuple[BigChunk, ...]


class SmallChunks(Unmoved):
    """The small chunks of one batch: a lazy, indexable sequence.

    Parameters
    ----------
    data : ndarray, shape ``(batch, *spatial, [channels])``
        Pixels.
    provenance : sequence of Provenance
        Of each small chunk.
    pieces : ndarray of int, shape (batch,)
        Which piece of the visit each came from.
    origins : ndarray of int64, shape (batch, spatial axes)
        First pixel of each at the resolution read.
    draws : ndarray of int64, shape (batch,)
        Draw number of each within its visit.
    targets : ndarray, tensor or None, shape ``(batch, *spatial, [channels])``
        Pixels of the target record; what a joint transform made of them, where one is used. With
        ``LightDL(device=...)`` a tensor beside the batch, ``[batch, [channels], *spatial]``.
    key : int, default 0
        Spread seed of the loader, see `keys`.
    spatial_ndim : int, optional
        Spatial axes of `data` and `targets`: fewer than `origins` has, where some of length 1
        were dropped.
    """

    # no collections.abc.Sequence: torch's default_convert would take it apart

    def __init__(
        self,
        data: Array,
        provenance: Sequence[Provenance],
        pieces: Array,
        origins: Array,
        draws: Array,
        targets: Any = None,
        key: int = 0,
        spatial_ndim: int | None = None,
    ) -> None:
        #: as they were made: an array, or a tensor on a device
        self.made: Any = data
        self.targets = targets
        #: whether a transform made other targets, which need not lie on `data` any more
        self.moved = False
        self.origins = origins
        self.spatial_ndim = origins.shape[1] if spatial_ndim is None else spatial_ndim
        self.draws = draws
        self._provenance = provenance
        self._pieces = pieces
        self._key = key

    @property
    def data(self) -> Array:
        """Pixels, on the host: of those that were made on a device a copy, when asked for."""
        if not isinstance(self.made, np.ndarray):
            self.made = self.made.cpu().numpy()
        return self.made

    def __len__(self) -> int:
        return len(self._provenance)

    def __iter__(self) -> Iterator[SmallChunk]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> SmallChunk: ...
    @overload
    def __getitem__(self, index: slice) -> list[SmallChunk]: ...
    def __getitem__(self, index: int | slice) -> SmallChunk | list[SmallChunk]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return SmallChunk(**self._facts(range(len(self))[index]))

    def _facts(self, i: int) -> dict[str, Any]:
        source = self._provenance[i]
        bigchunk = source.bigchunks[int(self._pieces[i])]
        origin = tuple(int(o) for o in self.origins[i])
        return {
            "data": self.data[i],
            "location": location_of(origin, bigchunk.downsample),
            "origin": origin,
            "level": bigchunk.level,
            "mpp": bigchunk.mpp,
            "patient": source.patient,
            "record": bigchunk.record,
            "bigchunk": bigchunk,
            "draw": int(self.draws[i]),
            "target": None if self.targets is None else self.targets[i],
        }

    @property
    def provenance(self) -> Sequence[Provenance]:
        """Patient and visit of each small chunk; holds no pixels."""
        return self._provenance

    @property
    def patients(self) -> list[Patient]:
        """The patient of each small chunk."""
        return [source.patient for source in self._provenance]

    @property
    def keys(self) -> Array:
        """(batch, 3) uint64: seed key, visit, draw.

        Names each small chunk, whatever batch it is in: what transforms are seeded by.
        """
        keys = np.empty((len(self), 3), np.uint64)
        keys[:, 0] = self._key
        keys[:, 1] = [source.bigchunks[0].visit for source in self._provenance]
        keys[:, 2] = self.draws
        return keys

    @property
    def locations(self) -> Array:
        """(batch, 2 or 3) int64: first pixel of each in the level-0 frame, (x, y[, z])."""
        scale = np.array([s.bigchunks[0].downsample for s in self._provenance], np.float64)
        scaled = np.rint(self.origins * scale.reshape(self.origins.shape))
        return scaled.astype(np.int64)[:, ::-1]

    def table(self) -> list[Mapping[str, Any]]:
        """One row per small chunk, for a data frame."""
        return [
            {
                "patient": chunk.patient.id,
                "record": chunk.record,
                "location": chunk.location,
                "level": chunk.level,
                "mpp": chunk.mpp,
                "visit": chunk.bigchunk.visit,
                "draw": chunk.draw,
            }
            for chunk in self
        ]

    def __repr__(self) -> str:
        names = {str(p.id) for p in self.patients}
        shape = tuple(self.made.shape[1:])
        kind = type(self).__name__
        return f"<{kind}: {len(self)} of shape {shape}, {len(names)} patients>"

    def _repr_html_(self) -> str:
        from daskdmed.loading.html import smallchunks_html

        return smallchunks_html(self)
