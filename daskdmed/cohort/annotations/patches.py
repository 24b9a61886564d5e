"""Patch coordinates of CLAM and TRIDENT in HDF5, and as annotations.

Both keep a dataset ``coords``, (n, 2), upper left corners (x, y) in level-0 pixels, with the
size of the patches in its attributes: CLAM as ``patch_size`` at ``patch_level`` with that
level's ``downsample``, TRIDENT as ``patch_size`` at ``target_magnification`` and
``patch_size_level0``. Needs the extra ``hdf5`` (h5py).

Not covered: features that are stored beside the coordinates; only their number is checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.core import html
from daskdmed.core.errors import AnnotationError, AnnotationNotFoundError, UsageError
from daskdmed.core.extras import extra
from daskdmed.core.files import new_file
from daskdmed.core.frozen import FrozenMapping, plain
from daskdmed.core.places import local
from daskdmed.core.types import PathLike
from daskdmed.images.volumes.heaps import watched

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.table import Annotations

Format: TypeAlias = Literal["trident", "clam"]

#: coordinates that a file declares and does not hold would be made up in memory
_MOST_BYTES = 2**29
#: attributes that have a field of their own
_OWN = frozenset(
    {"patch_size", "patch_level", "downsample", "level_dim", "downsampled_level_dim", "name"}
    | {"patch_size_level0", "level0_magnification", "target_magnification", "overlap"}
    | {"level0_width", "level0_height", "custom_downsample"}
)


@dataclass(frozen=True, eq=False)
class PatchCoordinates:
    """Where patches lie on a slide.

    Parameters
    ----------
    coords : array-like of int
        (n, 2) upper left corners (x, y) in level-0 pixels. Kept read-only as int64.
    patch_size : int
        Side of a patch as it is read or fed to a network, in pixels.
    size0 : float or (float, float)
        (width, height) of a patch in level-0 pixels.
    level : int, optional
        Pyramid level that patches are read from (CLAM).
    extent0 : (int, int), optional
        (width, height) of the slide at level 0, which no patch lies outside.
    power0, power : float, optional
        Objective power of level 0, and the one asked for (TRIDENT).
    overlap : int
        Of neighbouring patches, in pixels of the patch (TRIDENT).
    name, attributes
        The slide, and what else the file says.
    """

    coords: npt.NDArray[np.int64]
    patch_size: int
    size0: tuple[float, float]
    level: int | None = None
    extent0: tuple[int, int] | None = None
    power0: float | None = None
    power: float | None = None
    overlap: int = 0
    name: str = ""
    attributes: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        coords = _whole(np.asarray(self.coords))
        if self.patch_size <= 0:
            raise AnnotationError(f"the patch size is {self.patch_size}, it must be positive")
        pair = tuple(float(s) for s in np.broadcast_to(self.size0, 2))
        if not all(math.isfinite(s) and s > 0 for s in pair):
            raise AnnotationError(f"the level-0 size of a patch is {pair}, it must be positive")
        if self.extent0 is not None and len(coords):
            outside = (coords >= self.extent0).any(axis=1) | (coords + pair <= 0).any(axis=1)
            if outside.any():
                place = int(np.argmax(outside))
                raise AnnotationError(
                    f"patch {place} at {tuple(coords[place].tolist())} lies outside the slide of "
                    f"{self.extent0} level-0 pixels; are the coordinates of another slide or of "
                    "another level?",
                    index=place,
                )
        attributes = FrozenMapping(self.attributes)
        self.__dict__.update(coords=coords, size0=pair, attributes=attributes)

    def __len__(self) -> int:
        return len(self.coords)

    def __repr__(self) -> str:
        size = " x ".join(f"{n:g}" for n in self.size0)
        named = f" of {self.name}" if self.name else ""
        return f"<PatchCoordinates{named}: {len(self):,} patches of {size} level-0 pixels>"

    def _repr_html_(self) -> str:
        told = [
            ("patches", f"{len(self):,}"),
            ("pixels", self.patch_size),
            ("level-0 pixels", html.times(f"{n:g}" for n in self.size0)),
            ("level", self.level),
            ("slide", self.extent0 and html.times(self.extent0)),
            ("power", self.power),
            ("overlap", self.overlap or None),
        ]
        return html.page(html.title(self.name or "Patch coordinates"), html.facts(told))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PatchCoordinates):
            return NotImplemented
        return bool(np.array_equal(self.coords, other.coords)) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash((len(self), self.patch_size, self.size0, self.name))

    @property
    def _facts(self) -> tuple[Any, ...]:
        own = (self.patch_size, self.size0, self.level, self.extent0, self.power0, self.power)
        return (*own, self.overlap, self.name)

    # ------------------------------------------------------------------- files
    @classmethod
    def read(cls, path: PathLike) -> PatchCoordinates:
        """Read a file of CLAM or TRIDENT; which one is told from its attributes.

        Raises
        ------
        AnnotationError
            There is no such file, it is not HDF5, or contradicts itself: no ``coords``, sizes
            that do not belong together, coordinates outside the slide...
        """
        uri = str(local(path, "patch coordinates", AnnotationError))
        extra("h5py", "hdf5", "patch coordinates need")
        try:
            with watched(uri) as file:
                coords, attributes = _contents(file)
        except FileNotFoundError:
            raise AnnotationNotFoundError(f"{uri}: there is no such file", uri=uri) from None
        except AnnotationError as error:
            raise AnnotationError(f"{uri}: {error}", uri=uri) from error
        except (OSError, LookupError, RuntimeError, ValueError, TypeError, MemoryError) as error:
            raise AnnotationError(f"{uri}: cannot be read as HDF5: {error}", uri=uri) from error
        try:
            known = _trident(attributes) if _is_trident(attributes) else _clam(attributes)
            rest = {k: v for k, v in attributes.items() if k not in _OWN}
            return cls(coords, attributes=rest, **known)
        except AnnotationError as error:
            raise AnnotationError(f"{uri}: {error}", uri=uri, index=error.index) from error

    def write(self, path: PathLike, format: Format = "trident") -> None:
        """Write a file that TRIDENT or CLAM reads; an existing one is replaced.

        TRIDENT's format needs `power0`, `power` and `extent0`, and square patches of whole
        level-0 pixels, CLAM's needs `level`: an `AnnotationError` when these are not known.
        """
        if format not in ("trident", "clam"):
            raise UsageError(f'format is "trident" or "clam", got {format!r}')
        facts = self._as_trident() if format == "trident" else self._as_clam()
        h5py = extra("h5py", "hdf5", "patch coordinates need")
        uri = os.fspath(path)
        try:
            with new_file(path, overwrite=True) as partial, h5py.File(partial, "w") as file:
                rows = max(1, min(len(self), 4096))
                data = file.create_dataset(
                    "coords", data=self.coords, maxshape=(None, 2), chunks=(rows, 2)
                )
                for key, value in {**self.attributes, **facts}.items():
                    data.attrs[key] = value
        except (TypeError, ValueError) as error:
            raise AnnotationError(f"{uri}: cannot be written: {error}", uri=uri) from error

    def _as_trident(self) -> dict[str, Any]:
        if self.power0 is None or self.power is None or self.extent0 is None:
            raise AnnotationError(
                "TRIDENT's format needs power0= and power= (objective power of level 0 and of the "
                f"patches) and extent0=, got {self.power0}, {self.power} and {self.extent0}"
            )
        width, height = self.size0
        if width != height or width != int(width):
            raise AnnotationError(
                "TRIDENT's patches are square and of whole level-0 pixels, these are "
                f'{self.size0}; write format="clam"'
            )
        _check_trident(self.patch_size, width, self.power0, self.power)
        return {
            "patch_size": self.patch_size,
            "patch_size_level0": int(width),
            "level0_magnification": plain(_integral(self.power0)),
            "target_magnification": plain(_integral(self.power)),
            "overlap": self.overlap,
            "name": self.name,
            "level0_width": self.extent0[0],
            "level0_height": self.extent0[1],
        }

    def _as_clam(self) -> dict[str, Any]:
        if self.level is None:
            raise AnnotationError("CLAM's format needs level=, the level that patches are read at")
        downsample = tuple(s / self.patch_size for s in self.size0)
        facts: dict[str, Any] = {
            "patch_size": self.patch_size,
            "patch_level": self.level,
            "downsample": downsample,
            "name": self.name,
        }
        if self.extent0 is not None:
            level_dim = tuple(round(n / d) for n, d in zip(self.extent0, downsample, strict=True))
            facts["level_dim"] = facts["downsampled_level_dim"] = level_dim
        return facts

    # ------------------------------------------------------------- annotations
    def to_annotations(self, label: str | None = "patch") -> Annotations:
        """A box per patch, of QuPath's object type "tile"."""
        from daskdmed.cohort.annotations.annotation import Annotation
        from daskdmed.cohort.annotations.shapes import require_shapely
        from daskdmed.cohort.annotations.table import Annotations

        corners = np.hstack([self.coords, self.coords + np.array(self.size0)]).astype(float)
        boxes = require_shapely().box(*corners.T)
        return Annotations(Annotation(box, label, kind="tile") for box in boxes)

    @classmethod
    def from_annotations(
        cls, annotations: Annotations, patch_size: int, **facts: Any
    ) -> PatchCoordinates:
        """The reverse of `to_annotations`; `facts` are other parameters of the class.

        The annotations are boxes along the axes, all of one size, with whole corners; an
        `AnnotationError` names the first that is not.
        """
        boxes = annotations.shapes.bounds
        if len(boxes) == 0:
            raise AnnotationError("there is no box, so that the size of patches is not known")
        sizes = boxes[:, 2:] - boxes[:, :2]
        areas = annotations.areas
        wrong = (np.abs(sizes - sizes[0]) > 1e-6).any(axis=1)
        wrong |= ~(np.abs(areas - sizes[:, 0] * sizes[:, 1]) <= 1e-6 * np.maximum(areas, 1))
        wrong |= ~(areas > 0)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise AnnotationError(
                f"annotation {place} is no box of {tuple(sizes[0].tolist())} level-0 pixels along "
                "the axes, as the first is; patches are boxes of one size",
                index=place,
            )
        size = float(sizes[0][0]), float(sizes[0][1])
        return cls(_whole(boxes[:, :2]), patch_size, size, **facts)


def _whole(coords: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if coords.size == 0 and coords.dtype.kind in "iuf":
        coords = np.empty((0, 2), np.int64)
    whole = coords.dtype.kind in "iu" or (
        coords.dtype.kind == "f"
        and bool((np.abs(coords) < 2**53).all() and (coords % 1 == 0).all())
    )
    if coords.ndim != 2 or coords.shape[1] != 2 or not whole:
        raise AnnotationError(
            f"coordinates are whole numbers of shape (n, 2), got {coords.dtype} of shape "
            f"{coords.shape}"
        )
    result = coords.astype(np.int64)
    result.flags.writeable = False
    return result


def _contents(file: Any) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Coordinates and their attributes, with the numbers of patches checked."""
    if "coords" not in file or not hasattr(file["coords"], "shape"):
        raise AnnotationError(
            f"has no dataset 'coords', only {sorted(file)}; expected a file of patch coordinates "
            "of CLAM or TRIDENT"
        )
    data = file["coords"]
    if data.size * data.dtype.itemsize > _MOST_BYTES:
        raise AnnotationError(f"claims {data.shape} coordinates, more than any slide has")
    if data.ndim != 2 or data.shape[1] != 2:
        raise AnnotationError(f"coordinates have the shape (n, 2), here {data.shape}")
    if "features" in file:
        shape = file["features"].shape
        number = shape[1] if len(shape) == 3 else shape[0] if shape else 0
        if number != data.shape[0]:
            raise AnnotationError(
                f"{data.shape[0]} coordinates and features of shape {shape} contradict each other"
            )
    attributes = {k: _plain(v) for k, v in data.attrs.items()}
    if "patch_size" not in attributes:
        raise AnnotationError(
            f"the dataset 'coords' has no attribute 'patch_size', only {sorted(attributes)}"
        )
    return data[()], attributes


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    return plain(value)


def _is_trident(attributes: Mapping[str, Any]) -> bool:
    return "patch_size_level0" in attributes


def _number(attributes: Mapping[str, Any], key: str) -> float:
    value = attributes.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AnnotationError(f"the attribute {key!r} is no number: {value!r}")
    return float(value)


def _trident(attributes: Mapping[str, Any]) -> dict[str, Any]:
    size, size0 = _number(attributes, "patch_size"), _number(attributes, "patch_size_level0")
    facts: dict[str, Any] = {"patch_size": int(size), "size0": (size0, size0)}
    if "target_magnification" in attributes and "level0_magnification" in attributes:
        facts["power0"] = _number(attributes, "level0_magnification")
        facts["power"] = _number(attributes, "target_magnification")
        _check_trident(int(size), size0, facts["power0"], facts["power"])
    if "level0_width" in attributes and "level0_height" in attributes:
        pair = _number(attributes, "level0_width"), _number(attributes, "level0_height")
        facts["extent0"] = (int(pair[0]), int(pair[1]))
    facts["overlap"] = int(_number({"overlap": 0, **attributes}, "overlap"))
    facts["name"] = str(attributes.get("name", ""))
    return facts


def _check_trident(size: int, size0: float, power0: float, power: float) -> None:
    if power <= 0 or power0 <= 0:
        raise AnnotationError(f"objective powers are positive, got {power0} and {power}")
    expected = size * power0 / power
    # TRIDENT rounds down, other writers to the nearest
    if abs(size0 - expected) >= 1:
        raise AnnotationError(
            f"a patch of {size} pixels at {power:g}x on a slide of {power0:g}x covers "
            f"{expected:g} level-0 pixels, the file says {size0:g}"
        )


def _clam(attributes: Mapping[str, Any]) -> dict[str, Any]:
    size, level = _number(attributes, "patch_size"), _number(attributes, "patch_level")
    if _number({"custom_downsample": 1, **attributes}, "custom_downsample") != 1:
        raise AnnotationError(
            f"custom_downsample is {attributes['custom_downsample']}: what the patch size means "
            "then differs between programs; give it yourself: PatchCoordinates(coords, "
            "patch_size, size0=...)"
        )
    downsample = attributes.get("downsample", (1.0, 1.0) if level == 0 else None)
    if downsample is None:
        raise AnnotationError(
            f"patches of level {level:g} without the attribute 'downsample': their level-0 size "
            "is not known; give it yourself: PatchCoordinates(coords, patch_size, size0=...)"
        )
    try:
        x, y = (float(d) for d in np.broadcast_to(downsample, 2))
    except (TypeError, ValueError):
        raise AnnotationError(f"the attribute 'downsample' is not (x, y): {downsample!r}") from None
    if not (x > 0 and y > 0 and (level > 0 or (x, y) == (1, 1))):
        raise AnnotationError(f"level {level:g} and the downsample {(x, y)} contradict each other")
    facts = {"patch_size": int(size), "size0": (size * x, size * y), "level": int(level)}
    facts["name"] = str(attributes.get("name", ""))
    extent = attributes.get("level_dim")
    if isinstance(extent, tuple) and len(extent) == 2:
        # levels are rounded, so that the level-0 extent is known to a level's pixel
        facts["extent0"] = (math.ceil((extent[0] + 1) * x) - 1, math.ceil((extent[1] + 1) * y) - 1)
        if (x, y) == (1, 1):
            facts["extent0"] = (int(extent[0]), int(extent[1]))
    return facts


def _integral(value: float) -> float | int:
    return int(value) if value == int(value) else value
