"""Colours as numbers: stain vectors, optical density, CIELAB.

Blocks are float32 tensors [b, 3, pixels]. Matrices are those that `skimage.color` uses
too, which the tests compare with.
"""

from __future__ import annotations

import numpy as np

from daskdmed.core.types import Array
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Tensor

#: optical density (natural logarithm) of haematoxylin, eosin and DAB in R, G, B: Ruifrok and
#: Johnston, Anal. Quant. Cytol. Histol. 23 (2001), in their later normalisation
HED_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])

#: ITU-R BT.601: how bright R, G and B look
LUMA = (0.299, 0.587, 0.114)

#: linear sRGB to CIE XYZ, and its white under D65 (IEC 61966-2-1)
_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
#: where the cube root of CIELAB gives way to a line
_KNEE = 0.008856
_LINEAR_TO_XYZ = _XYZ / _WHITE[:, None]
_XYZ_TO_LINEAR = np.linalg.inv(_LINEAR_TO_XYZ)
#: (f(x), f(y), f(z)) - (0, 16/116, 0) to (L, a, b)
_TO_LAB = np.array([[0.0, 116.0, 0.0], [500.0, -500.0, 0.0], [0.0, 200.0, -200.0]])
_FROM_LAB = np.linalg.inv(_TO_LAB)


def matmul(matrix: Array, block: Tensor) -> Tensor:
    """One 3 x 3 matrix for all colours."""
    m = torch.from_numpy(matrix).to(block.device, block.dtype)
    return torch.matmul(m, block)


def log_intensity(block: Tensor, white: float) -> Tensor:
    """ln(I / I0), the negative optical density, of samples in [0, white].

    Black has no logarithm; it is taken for a millionth of white, as skimage does.
    """
    return block.div_(white).clamp_(min=1e-6).log_()


def _power(positive: Tensor, exponent: float) -> Tensor:
    """A power, in place; torch's own takes five times as long."""
    return positive.log_().mul_(exponent).exp_()


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to CIELAB under D65 (L* in [0, 100])."""
    curve = _power(rgb.add(0.055).div_(1.055), 2.4)
    linear = torch.where(rgb > 0.04045, curve, rgb / 12.92)
    xyz = matmul(_LINEAR_TO_XYZ, linear)
    f = torch.where(xyz > _KNEE, _power(xyz.clamp(min=_KNEE), 1 / 3), 7.787 * xyz + 16 / 116)
    lab = matmul(_TO_LAB, f)
    lab[:, 0] -= 16.0
    return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIELAB to sRGB, colours outside it clipped to [0, 1]."""
    shifted = lab.clone()
    shifted[:, 0] += 16.0
    f = matmul(_FROM_LAB, shifted)
    xyz = torch.where(f > _KNEE ** (1 / 3), f * f * f, (f - 16 / 116) / 7.787)
    linear = matmul(_XYZ_TO_LINEAR, xyz)
    curve = _power(linear.clamp(min=0.0031308), 1 / 2.4).mul_(1.055).sub_(0.055)
    return torch.where(linear > 0.0031308, curve, linear * 12.92).clamp_(0, 1)


def shift_hue(block: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of colours [b, 3, pixels] by fractions of the circle [b, 1], as in HSV."""
    red, green, blue = block.unbind(1)
    value, low = block.amax(1), block.amin(1)
    chroma = value - low
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant += 6 * turns
    out = torch.empty_like(block)
    # each channel is the same trapezoid of the hue, a third of the circle apart
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = torch.remainder(sextant + offset, 6.0)
        out[:, channel] = value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
    return out
