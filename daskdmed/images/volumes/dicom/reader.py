"""One volume of slices: read slice by slice, where it is asked for.

Not covered: which slices these are (`daskdmed.images.volumes.dicom.grouping`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

import numpy as np

from daskdmed.core.errors import CorruptImageError, GeometryError
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.protocols import VolumeInfo
from daskdmed.images.readers import BaseReader, level_infos
from daskdmed.images.volumes.dicom.frames import Frame
from daskdmed.images.volumes.dicom.geometry import along_normal, lay_out
from daskdmed.images.volumes.dicom.grouping import Group, places
from daskdmed.images.volumes.dicom.header import read_told
from daskdmed.images.volumes.dicom.pixels import read_stored
from daskdmed.images.volumes.dicom.values import background_of, dtype_of, rescale

logger = logging.getLogger("daskdmed.images")
#: what is left out, one by one, in properties
_SHOWN = 50


class DicomReader(BaseReader):
    """A volume of slices. Holds no open file; reads from any number of threads.

    A storage tile is one slice. `left_out` says what else is there, as (what, why).
    """

    info: VolumeInfo

    def __init__(
        self, uri: str, volume: Group, on_gap: str, left_out: Sequence[tuple[str, str]]
    ) -> None:
        super().__init__(uri)
        notes = list(left_out)
        self._frames = _sorted(uri, volume.frames, notes)
        layout = lay_out(uri, self._frames, on_gap)
        self._blends = layout.blends
        if layout.note:
            logger.warning("%s: %s", uri, layout.note)
        first = self._frames[0]
        dtype = dtype_of(self._frames)
        rows, columns = first.pixels.rows, first.pixels.columns
        shape = (len(self._blends), rows, columns, 1)
        told = read_told(first.pixels.path)
        told["dicom.volume"] = str(volume)
        if notes:
            said = [f"{what}: {why}" for what, why in notes[:_SHOWN]]
            more = [f"and {len(notes) - _SHOWN} more"] if len(notes) > _SHOWN else []
            told["dicom.left-out"] = "; ".join(said + more)
        if layout.note:
            told["dicom.resampled"] = layout.note
        self.info = VolumeInfo(
            level_infos([shape], [(1, rows, columns)]),
            dtype.name,
            background_of(self._frames, dtype),
            vendor="dicom",
            properties=told,
            space=layout.space,
            voxel_size=layout.voxel_size,
        )

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        # neighbours that are interpolated share the slices they are made of
        recent: dict[tuple[int, Region], Array] = {}

        def read(box: Region, part: Array) -> None:
            low, weight = self._blends[box.origin[0]]
            if not weight:
                part[0, ..., 0] = self._slice(low, box, recent)
                return
            before = self._slice(low, box, recent)
            after = self._slice(low + 1, box, recent)
            mixed = before * np.float64(1 - weight) + after * np.float64(weight)
            part[0, ..., 0] = mixed if part.dtype.kind == "f" else np.rint(mixed)

        self._read_tiles(level, region, out, tile_error, read)

    def _slice(self, number: int, box: Region, recent: dict[tuple[int, Region], Array]) -> Array:
        """Values of a stored slice, in the rows and columns of a box."""
        plane = Region(box.origin[1:], box.shape[1:])
        key = (number, plane)
        if key not in recent:
            frame = self._frames[number]
            rows, columns = plane.slices
            stored = read_stored(frame, rows)[:, columns]
            values = np.empty(stored.shape, self.info.numpy_dtype)
            rescale(stored, frame, values)
            while len(recent) > 1:
                del recent[next(iter(recent))]
            recent[key] = values
        return recent[key]

    def read_associated(self, name: str) -> Array:
        raise self._no_associated(name)

    def close(self) -> None:
        self._closed = True


def _sorted(uri: str, frames: Sequence[Frame], notes: list[tuple[str, str]]) -> tuple[Frame, ...]:
    """Slices along their normal, one in each place; in the order of their numbers without."""
    if frames[0].axes is None:
        return tuple(sorted(frames, key=lambda f: (f.instance, f.pixels.path, f.index)))
    axes = frames[0].axes
    ordered = sorted(frames, key=lambda f: (along_normal(f, axes), f.instance, f.pixels.path))
    kept = []
    for _, twins in itertools.groupby(
        zip(places(ordered), ordered, strict=True), key=lambda pair: pair[0]
    ):
        first, *others = (frame for _, frame in twins)
        kept.append(first)
        for other in others:
            _check_twin(uri, first, other)
            logger.warning(
                "%s: %s is the same slice as %s, it is left out",
                uri, other.pixels.path, first.pixels.path,
            )  # fmt: skip
            notes.append((other.pixels.path, f"the same slice as {first.pixels.path}"))
    return tuple(kept)


def _check_twin(uri: str, first: Frame, other: Frame) -> None:
    """Refuse slices in one place with different pixels."""
    same = (first.slope, first.intercept) == (other.slope, other.intercept)
    if same:
        rows = slice(0, first.pixels.rows)
        try:
            same = np.array_equal(read_stored(first, rows), read_stored(other, rows))
        except ValueError as error:
            raise CorruptImageError.of(
                uri, f"two slices lie in one place, and cannot be compared: {error}"
            ) from error
    if not same:
        raise GeometryError(
            f"{uri}: two different slices lie at {along_normal(first):.4g} mm along the normal, "
            f"{first.pixels.path} (instance {first.instance}, frame {first.index}) and "
            f"{other.pixels.path} (instance {other.instance}, frame {other.index}); open the files "
            "of one volume, as a list"
        )
