"""Value types shared by every layer: regions and resolutions.

Frozen dataclasses without Dask and without I/O, so that they can be property-tested,
tokenised and pickled. Axis order is array order, (y, x) or (z, y, x); the public
``location`` of OpenSlide's kind, (x, y) in the level-0 frame, is made at the surface.

Not covered here: what a patient is (`daskdmed.cohort`), and how pixels are read
(`daskdmed.images`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import GeometryError, ResolutionError

Array: TypeAlias = npt.NDArray[Any]
PathLike: TypeAlias = str | os.PathLike[str]
#: what an image, or a part of one, that cannot be used does: an error, or left out and reported
OnError: TypeAlias = Literal["raise", "skip"]
#: what a storage tile that cannot be decoded becomes: an error, or background and a report
OnTileError: TypeAlias = Literal["raise", "fill"]


@dataclass(frozen=True, slots=True)
class Region:
    """A box of pixels along the spatial axes of an array.

    Parameters
    ----------
    origin : tuple of int
        First pixel along each spatial axis, array order (y, x) or (z, y, x).
    shape : tuple of int
        Extent along each spatial axis, in pixels.
    """

    origin: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.origin) != len(self.shape):
            raise GeometryError(
                f"a region needs as many origins as extents, got origin={self.origin} "
                f"and shape={self.shape}"
            )

    @property
    def stop(self) -> tuple[int, ...]:
        """One past the last pixel along each axis."""
        return tuple(o + s for o, s in zip(self.origin, self.shape, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The same box as slices."""
        return tuple(slice(o, o + s) for o, s in zip(self.origin, self.shape, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels."""
        n = 1
        for s in self.shape:
            n *= s
        return n


@dataclass(frozen=True, slots=True)
class Resolution:
    """One of the three mutually exclusive ways to say the resolution.

    Exactly one is set. ``mpp`` is (x, y) micrometers per pixel, as OpenSlide orders it.
    """

    level: int | None = None
    mpp: tuple[float, float] | None = None
    power: float | None = None

    @classmethod
    def of(
        cls,
        level: int | None = None,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
    ) -> Resolution:
        """Check and normalise the three keywords.

        ``level=0`` counts as "not given" beside ``mpp`` or ``power``, because 0 is the
        default of every public function.

        Raises
        ------
        ResolutionError
            More than one is given, or a value is not positive.
        """
        given = [n for n, v in (("mpp", mpp), ("power", power)) if v is not None]
        if level:
            given.append("level")
        if len(given) > 1:
            raise ResolutionError(
                f"level, mpp and power exclude each other, got {' and '.join(given)}; give one"
            )
        if mpp is not None:
            pair = (float(mpp), float(mpp)) if isinstance(mpp, (int, float)) else tuple(mpp)
            if len(pair) != 2 or not all(np.isfinite(v) and v > 0 for v in pair):
                raise ResolutionError(f"mpp must be one or two positive numbers, got {mpp!r}")
            return cls(mpp=(float(pair[0]), float(pair[1])))
        if power is not None:
            if not (np.isfinite(power) and power > 0):
                raise ResolutionError(f"power must be a positive number, got {power!r}")
            return cls(power=float(power))
        if level is None:
            level = 0
        if int(level) != level or level < 0:
            raise ResolutionError(f"level must be an integer >= 0, got {level!r}")
        return cls(level=int(level))

    def __str__(self) -> str:
        if self.mpp is not None:
            return f"mpp={self.mpp[0]:g}" if self.mpp[0] == self.mpp[1] else f"mpp={self.mpp}"
        if self.power is not None:
            return f"power={self.power:g}"
        return f"level={self.level}"


@runtime_checkable
class ImageView(Protocol):
    """One image at one resolution, ready to be read region by region.

    A value: picklable, hashable by `token`, without open handles. Made by
    ``Slide.view(...)`` for files and by ``ArrayView`` for Dask arrays; everything above
    `daskdmed.images` reads pixels through it.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Full array shape, spatial axes first, channels (if any) last."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Sample type."""
        ...

    @property
    def spatial_ndim(self) -> int:
        """Number of leading axes that are space."""
        ...

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """Storage tile along the spatial axes; reads aligned to it decode nothing twice."""
        ...

    @property
    def downsample(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel along each spatial axis, exact floats."""
        ...

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) micrometers per pixel of this view, None when the file does not say."""
        ...

    @property
    def background(self) -> Array:
        """Value of the pixels outside the image, one per channel (shape (c,) or ())."""
        ...

    @property
    def token(self) -> str:
        """Deterministic name of content and resolution."""
        ...

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Pixels of a region that lies inside the image, into `out` when it is given."""
        ...


LevelLike: TypeAlias = int | Callable[[Any], int]
MppLike: TypeAlias = float | tuple[float, float] | Callable[[Any], float]
PowerLike: TypeAlias = float | Callable[[Any], float]
Facts: TypeAlias = Mapping[str, Any]
