"""`Resize`: batches of planes at another size, as a network with a fixed input wants them.

Not covered: reading at another resolution, which is cheaper and needs no transform (``mpp=`` and
``spacing=`` of whatever reads), volumes, random scales (`PerSample` takes those of other
libraries).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from daskdmed.core.errors import UsageError
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Params, Tensor, Transform
from daskdmed.transforms.blocks import blocks_of

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic"]
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


class Resize(Transform):
    """Planes at another size, averaged where they shrink (as Pillow and torchvision do).

    Parameters
    ----------
    size : int or (int, int)
        Of the result, (height, width); one number for squares.
    interpolation : {"bilinear", "bicubic", "nearest"}, default "bilinear"
        Between pixels. Targets take the nearest pixel always: classes are never blended.
    crop : int or (int, int), optional
        Keep this much of the middle of the result only, (height, width), as the evaluation of
        many networks does.

    Notes
    -----
    The type of the samples stays; integers are rounded. Batches that have the size already
    are given as they are.

    Raises
    ------
    UsageError
        A size that is not positive, a crop that is larger than it, an unknown interpolation,
        or a batch of volumes.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        interpolation: Interpolation = "bilinear",
        *,
        crop: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.size = _pair("size", size)
        self.crop = None if crop is None else _pair("crop", crop)
        if interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}"
            )
        if self.crop is not None and any(c > s for c, s in zip(self.crop, self.size, strict=True)):
            raise UsageError(f"crop={self.crop} does not lie within size={self.size}")
        self.interpolation = interpolation

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        if x.ndim != 4:
            raise UsageError(
                f"Resize takes planes [batch, channels, y, x], got {tuple(x.shape)}; volumes are "
                "resampled where they are read: give spacing="
            )
        if tuple(x.shape[2:]) != self.size:
            if self.interpolation == "nearest":
                x = self._nearest(x, (2, 3)).contiguous(memory_format=torch.channels_last)
            else:
                x = self._between(x)
        return self._middle(x, (2, 3))

    def on_target(self, target: Tensor, params: Params, axes: tuple[int, ...]) -> Tensor:
        """The nearest pixels of targets."""
        return self._middle(self._nearest(target, axes), axes)

    def _between(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], *self.size)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        whole = not x.dtype.is_floating_point
        for part in blocks_of(x):
            made = torch.nn.functional.interpolate(
                x[part].float() if whole else x[part],
                self.size,
                mode=self.interpolation,
                align_corners=False,
                antialias=True,
            )
            if whole:
                limits = torch.iinfo(x.dtype)
                made = made.round_().clamp_(limits.min, limits.max)
            out[part].copy_(made)
        return out

    def _nearest(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        for axis, size in zip(axes, self.size, strict=True):
            given = x.shape[axis]
            if given != size:
                at = (torch.arange(size, dtype=torch.float64) + 0.5) * (given / size)
                x = x.index_select(axis, at.long().to(x.device))
        return x

    def _middle(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        if self.crop is None:
            return x
        for axis, size, kept in zip(axes, self.size, self.crop, strict=True):
            # as torchvision has it, where one pixel has to be on one side
            x = x.narrow(axis, round((size - kept) / 2), kept)
        return x


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v > 0 for v in pair):
        raise UsageError(
            f"{name} must be a positive whole number, or (height, width) of them, got {value!r}"
        )
    return pair
