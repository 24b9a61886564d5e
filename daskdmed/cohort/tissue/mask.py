"""`TissueMask`: where on an image the tissue is, as a small frozen value.

The mask is a low-resolution picture of truth values stretched over the whole image. It is
held packed (eight pixels to a byte, deflated), so that the masks of thousands of slides fit
into memory and travel cheaply. Not covered: how masks are made (`daskdmed.cohort.tissue.find`).
"""

from __future__ import annotations

import functools
import hashlib
import math
import weakref
import zlib
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from daskdmed.cohort.tissue.npz import read_npz, write_npz
from daskdmed.core.coverage import SummedArea, covered
from daskdmed.core.errors import GeometryError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array, PathLike


class TissueMask:
    """A low-resolution mask of an image, of any number of spatial axes. Frozen.

    Parameters
    ----------
    data : array-like of bool
        One axis per spatial axis of the image, (y, x) or (z, y, x); other types count where
        they are not zero. It lies over the whole image, each pixel over an equal part.
    scale : sequence of float, optional
        Level-0 pixels per mask pixel along each axis.
    shape0 : sequence of int, optional
        Extent of the image at level 0, in pixels, array order. One of `scale` and `shape0`
        is enough; with both, `shape0` counts and `scale` must agree within a mask pixel.
    method : str
        How the mask was made. Not compared.
    mpp : (float, float), optional
        Micrometers per level-0 pixel, (x, y).
    space : Space, optional
        Where the voxels of level 0 of a volume lie in the patient: a mask that knows it is turned
        as the image is that it is laid over.
    picture : bytes
        A JPEG of the image for `_repr_html_`. Not compared.

    Raises
    ------
    GeometryError
        `data` has no axes or no pixels, or the sizes contradict each other or the space.
    """

    shape: tuple[int, ...]
    shape0: tuple[int, ...]
    scale: tuple[float, ...]
    method: str
    mpp: tuple[float, float] | None
    space: Space | None
    picture: bytes
    _packed: bytes
    _count: int
    _unpacked: weakref.ref[Array] | None

    def __init__(
        self,
        data: ArrayLike,
        scale: tuple[float, ...] | None = None,
        shape0: tuple[int, ...] | None = None,
        method: str = "array",
        *,
        mpp: tuple[float, float] | None = None,
        space: Space | None = None,
        picture: bytes = b"",
    ) -> None:
        values = np.ascontiguousarray(np.asarray(data) != 0)
        extent = _extent(values.shape, scale, shape0)
        if space is not None and space.shape != extent:
            raise GeometryError(f"a mask over {extent} level-0 pixels does not lie in {space}")
        self.__dict__.update(
            _packed=zlib.compress(np.packbits(values).tobytes(), 1),
            _unpacked=None,
            _count=int(np.count_nonzero(values)),
            shape=values.shape,
            shape0=extent,
            scale=tuple(e / n for e, n in zip(extent, values.shape, strict=True)),
            method=str(method),
            mpp=None if mpp is None else (float(mpp[0]), float(mpp[1])),
            space=space,
            picture=bytes(picture),
        )

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a TissueMask cannot be changed (setting {name!r}); make a new one")

    # ---------------------------------------------------------------- what it holds
    @property
    def data(self) -> Array:
        """The mask: bool, read-only, unpacked when it is asked for and not kept here."""
        kept = None if self._unpacked is None else self._unpacked()
        if kept is not None:
            return kept
        bits = np.frombuffer(zlib.decompress(self._packed), np.uint8)
        values = np.unpackbits(bits, count=math.prod(self.shape)).view(np.bool_)
        values = values.reshape(self.shape)
        values.flags.writeable = False
        self.__dict__["_unpacked"] = weakref.ref(values)
        return values

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    @property
    def fraction(self) -> float:
        """Share of the image that is tissue, in [0, 1]."""
        return self._count / math.prod(self.shape)

    @property
    def empty(self) -> bool:
        """Whether there is no tissue at all."""
        return self._count == 0

    @property
    def area(self) -> float:
        """Tissue in level-0 pixels (voxels of a volume)."""
        return self._count * math.prod(self.scale)

    @property
    def area_um2(self) -> float | None:
        """Tissue in square micrometers; None without mpp, or when there are not two axes."""
        if self.mpp is None or self.ndim != 2:
            return None
        return self.area * self.mpp[0] * self.mpp[1]

    @property
    def bounds(self) -> Region | None:
        """The smallest level-0 box around all tissue; None when there is none."""
        if self.empty:
            return None
        low, high = [], []
        for axis, (step, extent) in enumerate(zip(self.scale, self.shape0, strict=True)):
            others = tuple(a for a in range(self.ndim) if a != axis)
            found = np.flatnonzero(self.data.any(axis=others))
            low.append(math.floor(found[0] * step + 1e-6))
            high.append(min(extent, math.ceil((found[-1] + 1) * step - 1e-6)))
        return Region(tuple(low), tuple(h - lo for h, lo in zip(high, low, strict=True)))

    def turned(self, space: Space) -> TissueMask:
        """The same mask with axes that grow as those of a space; as it is when it knows none."""
        if self.space is None or self.space.axcodes == space.axcodes:
            return self
        order, flips = self.space.permutation(space.axcodes)
        data = self.data.transpose(order)
        return TissueMask(
            data[tuple(slice(None, None, -1 if flip else 1) for flip in flips)],
            shape0=tuple(self.shape0[axis] for axis in order),
            method=self.method,
            space=self.space.reorient(space.axcodes),
            picture=self.picture,
        )

    # ---------------------------------------------------------------- shares of regions
    def fraction_of(self, region: Region) -> float:
        """Share of a level-0 region that is tissue, in [0, 1].

        The exact area-weighted mean of the mask over the part of the region inside the image,
        as for the windows of a masked heatmap; 0 for a region outside.
        """
        self._same_axes(region.origin, "a region")
        boxes = []
        for first, size, extent in zip(region.origin, region.shape, self.shape0, strict=True):
            begin, end = max(0, first), min(extent, first + size)
            if begin >= end:
                return 0.0
            boxes.append([(begin, end)])
        value = covered(self.data, boxes, self.shape0).item()
        return min(1.0, max(0.0, value))

    def fractions(self, origins: ArrayLike, shape: tuple[int, ...]) -> Array:
        """`fraction_of` many regions of one shape, by an integral image: (n,) float64.

        `origins` are (n, axes), the first level-0 pixel of each region in array order.
        """
        first = np.asarray(origins, np.float64)
        if first.ndim != 2 or first.shape[1] != self.ndim:
            raise GeometryError(f"origins must be (n, {self.ndim}), got {first.shape}")
        self._same_axes(shape, "a shape")
        extent, scale = np.asarray(self.shape0), np.asarray(self.scale)
        begin = np.clip(first, 0, extent) / scale
        end = np.clip(first + np.asarray(shape), 0, extent) / scale
        area = np.prod(end - begin, axis=1)
        total = SummedArea(self.data).sums(begin, end)
        share = np.divide(total, area, out=np.zeros(len(area)), where=area > 0)
        clipped: Array = np.clip(share, 0.0, 1.0)
        return clipped

    def _same_axes(self, given: tuple[int, ...], what: str) -> None:
        if len(given) != self.ndim:
            raise GeometryError(
                f"{what} of {len(given)} axes does not fit a mask of {self.ndim} axes over an "
                f"image of {self.shape0}"
            )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        values = self.data if dtype is None else self.data.astype(dtype)
        return values.copy() if copy and values is self.data else values

    # ---------------------------------------------------------------- a value
    @functools.cached_property
    def token(self) -> str:
        """Deterministic name of the content: mask, extent, mpp, space."""
        facts: tuple[Any, ...] = (self.shape, self.shape0, self.mpp)
        if self.space is not None:
            facts += (self.space.affine.tolist(),)
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
        digest.update(zlib.decompress(self._packed))
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.token == other.token if isinstance(other, TissueMask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.token)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "TissueMask", self.token

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unpacked": None}

    # ---------------------------------------------------------------- files
    def save(self, path: PathLike) -> None:
        """Write an ``.npz`` file; it appears whole or not at all.

        It holds ``packed`` (`numpy.packbits` of the mask), ``shape``, ``shape0``, ``mpp``,
        ``affine`` (of volumes), ``method`` and ``picture``, and no pickles.

        Raises
        ------
        StoreError
            The file cannot be written.
        """
        affine = None if self.space is None else self.space.affine
        write_npz(path, self.data, self.shape0, self.mpp, affine, self.method, self.picture)

    @classmethod
    def load(cls, path: PathLike) -> TissueMask:
        """Read what `save` wrote.

        Raises
        ------
        ImageNotFoundError
            There is no such file.
        CorruptImageError
            It is no tissue mask, or damaged.
        """
        return cls(**read_npz(path))

    # ---------------------------------------------------------------- shown
    def __repr__(self) -> str:
        scale = ", ".join(f"{s:.4g}" for s in self.scale)
        return (
            f"TissueMask({self.fraction:.1%} tissue, method={self.method!r}, shape={self.shape}, "
            f"scale=({scale}), shape0={self.shape0})"
        )

    def _repr_html_(self) -> str:
        from daskdmed.cohort.tissue.picture import mask_html

        return mask_html(self)


def _extent(
    shape: tuple[int, ...],
    scale: tuple[float, ...] | None,
    shape0: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """The level-0 extent, from what was given of scale and extent."""
    if not shape or 0 in shape:
        raise GeometryError(f"a tissue mask of shape {shape} has no pixels")
    for name, given in (("scale", scale), ("shape0", shape0)):
        if given is not None and (len(given) != len(shape) or not all(v > 0 for v in given)):
            raise GeometryError(
                f"{name} must be {len(shape)} positive numbers for a mask of shape {shape}, "
                f"got {given}"
            )
    if shape0 is None:
        if scale is None:
            raise GeometryError("a tissue mask needs scale= or shape0= to lie over its image")
        return tuple(max(1, round(n * s)) for n, s in zip(shape, scale, strict=True))
    extent = tuple(int(e) for e in shape0)
    if scale is not None:
        for n, s, e in zip(shape, scale, extent, strict=True):
            if abs(n * s - e) > max(s, 1):
                raise GeometryError(
                    f"scale={tuple(scale)} times the mask's shape {shape} does not give "
                    f"shape0={extent}; leave one of them out"
                )
    return extent
