"""Reinhard's colour transfer, of a whole batch at a time.

Source: Reinhard et al., "Color transfer between images", IEEE Comput. Graph. Appl. 21
(2001); in CIELAB, as is usual in pathology, instead of the authors' l-alpha-beta.
"""

from __future__ import annotations

from typing import Literal

from daskdmed.core.errors import UsageError
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Tensor
from daskdmed.transforms.colourspace import lab_to_rgb, rgb_to_lab
from daskdmed.transforms.normalizer import LEAST_PIXELS, StainNormalizer

#: spread, in units of L*, a* and b*, below which an image is of a single colour
_LEAST_SPREAD = 1e-2


class ReinhardNormalizer(StainNormalizer):
    """Bring mean and standard deviation of L*, a* and b* to those of a target.

    Parameters
    ----------
    luminosity : float or None, default 0.8
        Statistics are of pixels with ``L* / 100`` below this: tissue. None: of all pixels,
        as published, with which patches that differ in background come out different.
    per : {"image", "patient"}, default "image"
        See `StainNormalizer`.

    Notes
    -----
    An image stays as it is when fewer than 32 pixels are tissue, or those are all of one
    lightness. `fit` must be called first. Statistics: ``mean`` and ``std``, (3,) each.
    """

    statistics = ("mean", "std")

    def __init__(
        self,
        *,
        luminosity: float | None = 0.8,
        per: Literal["image", "patient"] = "image",
    ) -> None:
        super().__init__(per=per)
        if luminosity is not None and not 0 < luminosity <= 1:
            raise UsageError(f"luminosity must be in (0, 1] or None, got {luminosity!r}")
        self.luminosity = luminosity

    def represent(self, block: Tensor, white: float) -> Tensor:
        return rgb_to_lab(block / white)

    def estimate(self, colours: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        lab = colours
        exact = lab.to(torch.float64)
        if self.luminosity is None:
            tissue = torch.ones_like(lab[:, :1], dtype=torch.bool)
        else:
            tissue = lab[:, :1] < 100 * self.luminosity
        count = tissue.sum(-1)
        n = count.clamp(min=1)
        mean = (exact * tissue).sum(-1) / n
        spread = (exact - mean[..., None]).mul_(tissue)
        std = (spread.square_().sum(-1) / n).sqrt()
        usable = (count[:, 0] >= LEAST_PIXELS) & (std[:, 0] > _LEAST_SPREAD)
        return (mean, std), usable

    def bring(
        self, colours: Tensor, source: tuple[Tensor, ...], target: tuple[Tensor, ...]
    ) -> Tensor:
        (mean, std), (wanted, wanted_std) = source, target
        # a channel without spread is shifted only
        scale = torch.where(std > _LEAST_SPREAD, wanted_std / std.clamp(min=_LEAST_SPREAD), 1.0)
        offset = wanted - mean * scale
        lab = colours * scale.to(colours.dtype)[..., None]
        return lab_to_rgb(lab.add_(offset.to(lab.dtype)[..., None]))
