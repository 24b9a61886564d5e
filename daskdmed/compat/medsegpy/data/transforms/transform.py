"""Transforms that are the same for every image: crop, flip, normalisation, windows.

Each takes one image (rows x columns [x slices] x channels), of a loader without the axis of the
batch: so nothing depends on what else is in a batch. They are written with NumPy, and need no
torch; random ones of whole batches, on any device, are in `daskdmed.transforms`.

Not covered: what is drawn at random (`daskdmed.compat.medsegpy.data.transforms.transform_gen`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array

T = TypeVar("T", bound=Callable[..., Any])


class MedTransform(ABC):
    """A transform of an image and what goes with it."""

    #: whether what lies at a voxel lies elsewhere afterwards
    moves_voxels = False

    @abstractmethod
    def apply_image(self, img: Array) -> Array:
        """Transform an image."""

    def apply_segmentation(self, segmentation: Array) -> Array:
        """Transform its masks: as an image is, if not said otherwise."""
        return self.apply_image(segmentation)

    def undo(self, prediction: Array) -> Array:
        """Where a prediction lies in the image that was not transformed yet.

        Raises
        ------
        UsageError
            It has no place there.
        """
        if self.moves_voxels:
            raise UsageError(
                f"{type(self).__name__} moves voxels and cannot be undone, so that predictions "
                "have no place in the scan: leave it out of the preprocessing for inference"
            )
        return prediction

    @classmethod
    def register_type(cls, data_type: str, func: T) -> T:
        """Add ``apply_<data_type>(x)``, which calls ``func(transform, x)``."""
        setattr(cls, f"apply_{data_type}", func)
        return func

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if k[0] != "_")
        return f"{type(self).__name__}({values})"


class TransformList:
    """Transforms, one after the other: `apply_image`, `apply_segmentation`, or any
    ``apply_<data type>`` of `MedTransform.register_type`."""

    def __init__(self, transforms: Iterable[MedTransform]) -> None:
        self.transforms = list(transforms)
        for one in self.transforms:
            if not isinstance(one, MedTransform):
                raise UsageError(f"a list of transforms holds MedTransforms, not {one!r}")

    def apply_image(self, img: Array) -> Array:
        found: Array = self._apply("apply_image", img)
        return found

    def apply_segmentation(self, segmentation: Array) -> Array:
        found: Array = self._apply("apply_segmentation", segmentation)
        return found

    def undo(self, prediction: Array) -> Array:
        """The inverse of all, for a prediction; see `MedTransform.undo`."""
        for one in reversed(self.transforms):
            prediction = one.undo(prediction)
        return prediction

    @property
    def moves_voxels(self) -> bool:
        """Whether one of them does."""
        return any(one.moves_voxels for one in self.transforms)

    def _apply(self, method: str, x: Any) -> Any:
        for one in self.transforms:
            x = getattr(one, method)(x)
        return x

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("apply_"):
            raise AttributeError(name)
        return lambda x: self._apply(name, x)

    def __add__(self, other: TransformList | Sequence[MedTransform]) -> TransformList:
        return TransformList([*self.transforms, *_members(other)])

    def __radd__(self, other: TransformList | Sequence[MedTransform]) -> TransformList:
        return TransformList([*_members(other), *self.transforms])

    def __iadd__(self, other: TransformList | Sequence[MedTransform]) -> TransformList:
        return self + other

    def __iter__(self) -> Iterator[MedTransform]:
        return iter(self.transforms)

    def __len__(self) -> int:
        return len(self.transforms)


def _members(value: TransformList | Sequence[MedTransform]) -> list[MedTransform]:
    return list(value.transforms if isinstance(value, TransformList) else value)


class NoOpTransform(MedTransform):
    """Leaves everything as it is."""

    def apply_image(self, img: Array) -> Array:
        return img


class CropTransform(MedTransform):
    """A part of an image.

    Parameters
    ----------
    coords0 : sequence of int
        First voxel along the leading axes.
    crop_size : sequence of int
        How many along each of them.
    """

    moves_voxels = True

    def __init__(self, coords0: Sequence[int], crop_size: Sequence[int]) -> None:
        self.coords0 = tuple(int(c) for c in coords0)
        self.crop_size = tuple(int(c) for c in crop_size)
        fits = len(self.coords0) == len(self.crop_size) and min(self.coords0, default=0) >= 0
        if not fits or min(self.crop_size, default=0) < 1:
            raise GeometryError(
                f"coords0={coords0!r} and crop_size={crop_size!r} are whole numbers for the same "
                "axes, from 0 and from 1"
            )

    def apply_image(self, img: Array) -> Array:
        stop = [c + n for c, n in zip(self.coords0, self.crop_size, strict=True)]
        if len(stop) > img.ndim or any(b > n for b, n in zip(stop, img.shape, strict=False)):
            raise GeometryError(
                f"a crop from {self.coords0} to {tuple(stop)} does not lie in an image of shape "
                f"{img.shape}"
            )
        return img[tuple(slice(a, b) for a, b in zip(self.coords0, stop, strict=True))]


class FlipTransform(MedTransform):
    """Reverse axes.

    Parameters
    ----------
    axis : int or sequence of int, optional
        Of the image, 0 being the rows. Default: rows and columns.
    """

    moves_voxels = True

    def __init__(self, axis: int | Sequence[int] | None = None) -> None:
        given = (0, 1) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        self.axis = tuple(int(a) for a in given)

    def apply_image(self, img: Array) -> Array:
        if any(not -img.ndim <= a < img.ndim for a in self.axis):
            raise GeometryError(f"there is no axis {self.axis} of an image of shape {img.shape}")
        return np.flip(img, self.axis)

    def undo(self, prediction: Array) -> Array:
        return self.apply_image(prediction)


class _OfValues(MedTransform):
    """A transform of values, which leaves masks as they are."""

    def apply_segmentation(self, segmentation: Array) -> Array:
        return segmentation


class ZeroMeanNormalization(_OfValues):
    """Mean 0 and standard deviation 1, of each image on its own.

    An image of one value becomes 0.

    Parameters
    ----------
    axis : int or sequence of int, optional
        Of the image, over which both are taken. Default: all.
    """

    def __init__(self, axis: int | Sequence[int] | None = None) -> None:
        self.axis = axis if axis is None or isinstance(axis, int) else tuple(axis)

    def apply_image(self, img: Array) -> Array:
        values = np.asarray(img, np.float64)
        spread = values.std(axis=self.axis, keepdims=True)
        centred = values - values.mean(axis=self.axis, keepdims=True)
        found: Array = np.divide(centred, np.where(spread > 0, spread, 1)).astype(np.float32)
        return found


class AffineNormalization(_OfValues):
    """``(image - bias) / scale``.

    Parameters
    ----------
    scale, bias : float or sequence of float
        One number, or one per channel.
    """

    def __init__(
        self, scale: float | Sequence[float] = 1.0, bias: float | Sequence[float] = 0.0
    ) -> None:
        self.scale, self.bias = scale, bias
        if not np.all(np.isfinite(scale)) or not np.all(scale):
            raise UsageError(f"scale={scale!r} must be finite and not 0")

    def apply_image(self, img: Array) -> Array:
        values = np.asarray(img, np.float64)
        found: Array = (values - np.asarray(self.bias)) / np.asarray(self.scale)
        return found.astype(np.float32)


class Windowing(_OfValues):
    """Windows of values, each a channel: what lies below or above becomes the bound.

    Parameters
    ----------
    bounds : sequence of (low, high)
        Of each window. Without channels, or with one, an image becomes as many channels as there
        are windows; of c channels c times as many, those of the first window first.
    """

    def __init__(self, bounds: Sequence[tuple[float, float]]) -> None:
        self.bounds = tuple((float(low), float(high)) for low, high in bounds)
        if not self.bounds or any(not low < high for low, high in self.bounds):
            raise UsageError(f"bounds={bounds!r} are pairs (low, high) with low < high")

    def apply_image(self, img: Array) -> Array:
        return np.concatenate([np.clip(img, *pair) for pair in self.bounds], axis=-1)
