"""Random colours: brightness, contrast, saturation, hue, and the amount of each stain.

Not covered: making stains alike (`daskdmed.transforms.macenko`, `reinhard`).
"""

from __future__ import annotations

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Params, Tensor, Transform, check_probability, on_device
from daskdmed.transforms.blocks import colourwise
from daskdmed.transforms.colourspace import HED_STAINS, LUMA, log_intensity, shift_hue
from daskdmed.transforms.keyed import Samples

#: one number for both sides, or (lowest, highest)
Range = float | tuple[float, float]


class ColorJitter(Transform):
    """Random brightness, contrast, saturation and hue of RGB images.

    Parameters
    ----------
    brightness, contrast, saturation : float or (float, float), default 0
        A factor, uniform in [max(0, 1 - v), 1 + v], or in the range given. 1 is no change.
    hue : float or (float, float), default 0
        A shift, uniform in [-v, v] or in the range given, as a fraction of the colour
        circle, in [-0.5, 0.5].
    p : float, default 1.0
        Probability that a small chunk is changed at all.
    seed : int, default 0
        See `Transform`.

    Notes
    -----
    Meanings are torchvision's: brightness scales towards black, contrast towards the mean
    grey of the image, saturation towards the grey of the pixel, hue turns HSV's. The order
    is fixed, the first three are one linear map, and samples are clipped and rounded at
    its end (torchvision does so after each step). Parameters: ``brightness``,
    ``contrast``, ``saturation``, ``hue``, float64 [batch].

    Raises
    ------
    UsageError
        A range is empty or out of bounds.
    """

    def __init__(
        self,
        brightness: Range = 0.0,
        contrast: Range = 0.0,
        saturation: Range = 0.0,
        hue: Range = 0.0,
        *,
        p: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.brightness = _range("brightness", brightness, 1.0, 0.0, np.inf)
        self.contrast = _range("contrast", contrast, 1.0, 0.0, np.inf)
        self.saturation = _range("saturation", saturation, 1.0, 0.0, np.inf)
        self.hue = _range("hue", hue, 0.0, -0.5, 0.5)
        self.p = check_probability("p", p)

    def parameters(self, samples: Samples) -> Params:
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        low, high = zip(*ranges, (0.0, 1.0), strict=True)
        drawn = samples.uniform(5, low, high)
        drawn[drawn[:, 4] >= self.p, :4] = (1.0, 1.0, 1.0, 0.0)
        names = ("brightness", "contrast", "saturation", "hue")
        return {name: drawn[:, column] for column, name in enumerate(names)}

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        b, c, s = (params[n] for n in ("brightness", "contrast", "saturation"))
        grey = np.tile(np.array(LUMA), (3, 1))
        matrix = s[:, None, None] * np.eye(3) + (1 - s)[:, None, None] * grey
        rows = [
            on_device((b * c)[:, None, None] * matrix, x),
            on_device((1 - c) * b, x, torch.float64),
            on_device(params["hue"][:, None], x),
        ]
        turned = bool(np.any(params["hue"]))
        luma = torch.tensor(LUMA, dtype=torch.float64, device=x.device)

        def change(
            block: Tensor, white: float, matrix: Tensor, pull: Tensor, hue: Tensor
        ) -> Tensor:
            # in float64 sums of integers are exact, so that they do not depend on the batch
            mean = block.mean(-1, dtype=torch.float64) @ luma
            offset = (pull * mean).to(block.dtype)[:, None, None].expand(-1, 3, 1)
            block = torch.baddbmm(offset, matrix, block)
            return shift_hue(block.clamp_(0, white), hue) if turned else block

        return colourwise(x, change, rows, who="ColorJitter")


class HEDJitter(Transform):
    """Random amounts of haematoxylin, eosin and DAB.

    Colours are separated into stains (Ruifrok and Johnston 2001), the amount of each stain
    is multiplied by a random factor and shifted by a random bias, and the stains are put
    together again (Tellez et al., IEEE Trans. Med. Imaging 37, 2018).

    Parameters
    ----------
    alpha : float or (float, float), default 0.05
        Factor of each stain, uniform in [1 - v, 1 + v] or in the range given. Tellez et
        al. (Med. Image Anal. 58, 2019) call 0.05 light and 0.2 strong.
    beta : float or (float, float), default 0.05
        Bias of each stain, uniform in [-v, v] or in the range given, in units of optical
        density ``-ln(I / I0)``. `skimage.color.rgb2hed` divides those by ln(10**6) = 13.8.
    stains : ndarray (3, 3), optional
        Optical density of each stain (rows) in R, G and B, instead of H, E and DAB.
    p : float, default 1.0
        Probability that a small chunk is changed at all.
    seed : int, default 0
        See `Transform`.

    Notes
    -----
    Negative amounts (colours that no mixture of the stains gives) are kept, so that
    factors of 1 and biases of 0 give the image back. Parameters: ``alpha`` and ``beta``,
    float64 [batch, 3].

    Raises
    ------
    UsageError
        A range is empty, or `stains` are linearly dependent.
    """

    def __init__(
        self,
        alpha: Range = 0.05,
        beta: Range = 0.05,
        *,
        stains: Array | None = None,
        p: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.alpha = _range("alpha", alpha, 1.0, 0.0, np.inf)
        self.beta = _range("beta", beta, 0.0, -np.inf, np.inf)
        self.p = check_probability("p", p)
        self._stains = HED_STAINS if stains is None else np.array(stains, np.float64)
        if self._stains.shape != (3, 3) or np.linalg.cond(self._stains) > 1e6:
            raise UsageError("stains must be three independent rows of optical density in R, G, B")
        self._separate = np.linalg.inv(self._stains)

    def parameters(self, samples: Samples) -> Params:
        low = [self.alpha[0]] * 3 + [self.beta[0]] * 3 + [0.0]
        high = [self.alpha[1]] * 3 + [self.beta[1]] * 3 + [1.0]
        drawn = samples.uniform(7, low, high)
        drawn[drawn[:, 6] >= self.p, :6] = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
        return {"alpha": drawn[:, :3], "beta": drawn[:, 3:6]}

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        """Change the stains: a linear map of optical densities for each image."""
        # density (as a row) @ separate @ diag(alpha) @ stains; blocks hold columns
        linear = np.einsum("ij,nj,jk->nki", self._separate, params["alpha"], self._stains)
        shift = -(params["beta"] @ self._stains)
        rows = [on_device(linear, x), on_device(shift[:, :, None], x)]

        def change(block: Tensor, white: float, linear: Tensor, shift: Tensor) -> Tensor:
            logs = log_intensity(block, white)
            return torch.baddbmm(shift, linear, logs).exp_().mul_(white)

        return colourwise(x, change, rows, who="HEDJitter")


def _range(
    name: str, value: Range, centre: float, lowest: float, highest: float
) -> tuple[float, float]:
    if isinstance(value, int | float):
        low, high = max(centre - value, lowest), centre + value
    else:
        low, high = value
    if not lowest <= low <= high <= highest:
        raise UsageError(
            f"{name}={value!r} makes the range [{low}, {high}], which must not be empty and "
            f"must lie in [{lowest}, {highest}]"
        )
    return float(low), float(high)
