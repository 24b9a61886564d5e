"""A value per pixel: overlapping windows blended, labels written as OME-Zarr, no seams.

python examples/dense_prediction.py
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import daskdmed
from daskdmed import samples

OUTPUT = Path("output/dense_prediction")
QUICK = bool(os.environ.get("DASKDMED_QUICK"))


class TissueNet(nn.Module):
    """Colour against grey, smoothed: two channels per pixel, background and tissue."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.AvgPool2d(9, stride=1, padding=4, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        saturation = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
        tissue = torch.sigmoid(60 * (self.smooth(saturation) - 0.08))
        return torch.cat([1 - tissue, tissue], 1)


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    made = samples.make_slide(OUTPUT / "slide.tif", 1024 if QUICK else 4096)
    slide = daskdmed.open_slide(made.path)
    network = TissueNet()

    # windows of 256 pixels, a quarter overlapping, blended with Gaussian weights
    soft = daskdmed.predict(
        slide, network, kernel_size=256, overlap=0.25, out=OUTPUT / "soft.zarr", overwrite=True
    )
    print("probabilities", soft)

    # labels: one byte per pixel, nothing else is kept
    labels = daskdmed.predict(
        slide,
        network,
        kernel_size=256,
        overlap=0.25,
        post="argmax",
        out=OUTPUT / "labels.zarr",
        overwrite=True,
    )
    print("labels", labels.dtype, labels.shape, f"tissue {float(labels.mean()):.1%}")

    # the network is convolutional and sees 9 pixels: run it once over large pieces
    exact = daskdmed.predict(slide, network, kernel_size=512, receptive_field=9, output_stride=1)
    print(f"tissue in the exact dense mode {float((exact[1] > 0.5).mean()):.1%}")
    inner = np.s_[1, 100:140, 100:140]
    difference = float(np.abs(exact[inner].compute() - soft[inner].compute()).max())
    print(f"largest difference far from window borders {difference:.1e}")

    # what a mask leaves out is not computed, what it lets through is not changed
    thumbnail = slide.get_thumbnail((64, 64)).astype(int)
    mask = thumbnail.max(axis=2) - thumbnail.min(axis=2) > 15
    masked = daskdmed.predict(slide, network, kernel_size=256, mask=mask)
    kept = np.isfinite(masked[1].compute())
    print(f"inside the mask: {kept.mean():.1%} of the pixels")


if __name__ == "__main__":
    main()
