"""Macenko's stain normalisation, of a whole batch at a time.

Source: Macenko et al., "A method for normalizing histology slides for quantitative
analysis", ISBI 2009. Not covered: more than two stains.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Tensor
from daskdmed.transforms.normalizer import LEAST_PIXELS, StainNormalizer

#: stains and concentrations that the authors' own code normalises to
_REFERENCE = {
    "stains": np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]]),
    "high": np.array([1.9705, 1.0308]),
}
#: squared sine of the angle between two stains that are still two
_LEAST_SINE2 = 1e-4
#: a stain whose 99th percentile is below this is not there
_LEAST_HIGH = 0.05


class MacenkoNormalizer(StainNormalizer):
    """Bring haematoxylin and eosin to a target's colours and strength.

    The optical densities of coloured pixels span a plane; the extreme directions in it are
    the two stains. Concentrations of both are scaled so that their 99th percentile is the
    target's, and mixed again with the target's stains.

    Parameters
    ----------
    background : float, default 240
        Transmitted light, on a scale to 255.
    threshold : float, default 0.15
        Least optical density in each of R, G and B of a coloured pixel.
    percentile : float, default 1
        The stains are this percentile of the directions, and 100 less it.
    per : {"image", "patient"}, default "image"
        See `StainNormalizer`.

    Notes
    -----
    Without `fit`, the target is the reference of the authors' code. Optical density is
    ``-ln((I + 1) / background)``, on a scale to 255. An image stays as it is when fewer
    than 32 pixels are coloured, or its stains cannot be told apart, or one
    of them is not there (99th percentile of its concentration below 0.05).
    Statistics: ``stains`` (3, 2), columns haematoxylin and eosin, and ``high`` (2,).

    Examples
    --------
    >>> normalise = MacenkoNormalizer().fit(reference_image)  # doctest: +SKIP
    >>> loader = LightDL(dataset, batch_tfms=normalise)  # doctest: +SKIP
    """

    statistics = ("stains", "high")

    def __init__(
        self,
        *,
        background: float = 240.0,
        threshold: float = 0.15,
        percentile: float = 1.0,
        per: Literal["image", "patient"] = "image",
    ) -> None:
        super().__init__(per=per)
        if background <= 0:
            raise UsageError(f"background must be positive, got {background!r}")
        if not 0 <= percentile < 50:
            raise UsageError(f"percentile must be in [0, 50), got {percentile!r}")
        self.background = float(background)
        self.threshold = float(threshold)
        self.percentile = float(percentile)
        self._target = dict(_REFERENCE)

    def represent(self, block: Tensor, white: float) -> Tensor:
        scaled = block * (255 / white)
        return scaled.add_(1).div_(self.background).log_().neg_()

    def estimate(self, colours: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        density = colours
        coloured = (density >= self.threshold).all(1)
        count = coloured.sum(-1)
        plane = _plane(density, coloured, count)
        # float64 to the end: a sum that depends on the batch must not show in a sample
        along = torch.einsum("bkc,bcp->bkp", plane.to(density.dtype), density)
        angle = torch.atan2(along[:, 1], along[:, 0])
        share = self.percentile / 100
        first, second = (
            _tail(angle, coloured, count, share, top=top).to(torch.float64) for top in (False, True)
        )
        sides = [
            torch.cos(phi)[:, None] * plane[:, 0] + torch.sin(phi)[:, None] * plane[:, 1]
            for phi in (first, second)
        ]
        # haematoxylin takes more of the red
        ordered = (sides[0][:, :1] > sides[1][:, :1])[..., None]
        stains = torch.where(
            ordered, torch.stack(sides, dim=-1), torch.stack(sides[::-1], dim=-1)
        ).nan_to_num_()
        usable = (count >= LEAST_PIXELS) & (_sine2(stains) > _LEAST_SINE2)
        unmix = torch.linalg.pinv(torch.where(usable[:, None, None], stains, _any(stains)))
        amounts = torch.matmul(unmix.to(density.dtype), density)
        pixels = torch.ones_like(coloured)
        whole = torch.full_like(count, density.shape[-1])
        high = torch.stack(
            [_tail(amounts[:, k], pixels, whole, 0.01, top=True) for k in (0, 1)], dim=-1
        ).to(torch.float64)
        usable &= (high > _LEAST_HIGH).all(-1)
        return (stains, high), usable

    def bring(
        self, colours: Tensor, source: tuple[Tensor, ...], target: tuple[Tensor, ...]
    ) -> Tensor:
        """Unmix, scale and mix: one linear map of densities for each image."""
        (stains, high), (wanted, wanted_high) = source, target
        usable = _sine2(stains) > _LEAST_SINE2
        unmix = torch.linalg.pinv(torch.where(usable[:, None, None], stains, _any(stains)))
        scale = wanted_high / high.clamp(min=_LEAST_HIGH)
        linear = (wanted * scale[:, None, :]) @ unmix
        mixed = torch.matmul(linear.to(colours.dtype), colours)
        return mixed.neg_().exp_().mul_(self.background / 255)


def _plane(density: Tensor, coloured: Tensor, count: Tensor) -> Tensor:
    """Second and first principal direction of coloured pixels, float64 [b, 2, 3]."""
    weight = coloured[:, None].to(torch.float64)
    n = count.clamp(min=2).to(torch.float64)[:, None, None]
    exact = density.to(torch.float64) * weight
    mean = exact.sum(-1, keepdim=True) / n
    centred = exact.sub_(mean).mul_(weight)
    covariance = centred @ centred.mT / (n - 1)
    _, vectors = torch.linalg.eigh(covariance)
    plane = vectors[:, :, 1:].mT
    # towards the pixels, so that no direction is near the cut of the angle
    ahead = torch.matmul(plane, mean) < 0
    return torch.where(ahead, -plane, plane)


def _tail(values: Tensor, mask: Tensor, count: Tensor, share: float, *, top: bool) -> Tensor:
    """Percentile near one end, of the masked values of each row, linearly interpolated.

    Only that end is sorted: a percent of the pixels instead of all.
    """
    edge = -float("inf") if top else float("inf")
    kept = values.masked_fill(~mask, edge)
    position = share * (count - 1).clamp(min=0).to(torch.float64)
    most = min(values.shape[-1], int(share * (values.shape[-1] - 1)) + 2)
    ends = kept.topk(most, dim=-1, largest=top).values
    below = position.floor().to(torch.int64)
    above = torch.minimum(below + 1, (count - 1).clamp(min=0)).clamp(max=most - 1)
    low, high = (ends.gather(-1, i[:, None])[:, 0] for i in (below, above))
    return torch.lerp(low, high, (position - below).to(values.dtype))


def _sine2(stains: Tensor) -> Tensor:
    """Squared sine of the angle between two columns."""
    unit = torch.nn.functional.normalize(stains, dim=-2)
    return 1 - (unit[:, :, 0] * unit[:, :, 1]).sum(-1) ** 2


def _any(stains: Tensor) -> Tensor:
    """Stains to compute on with where there are none; the result is not used."""
    return torch.from_numpy(_REFERENCE["stains"]).to(stains)
