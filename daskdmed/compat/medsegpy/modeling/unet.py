"""A small U-Net (Ronneberger et al. 2015) over planes or volumes, for any extent of these."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from daskdmed.core.checks import check_choice
from daskdmed.core.errors import UsageError


class UNet(nn.Module):
    """Convolutions at several resolutions, and their results side by side.

    Images are padded to a multiple of what the network halves, and cut to their extent again. Axes
    that are too short to be halved as often as others are halved less often.

    Parameters
    ----------
    channels, classes : int
        Of the input and the output.
    filters : sequence of int
        Of each resolution, the finest first.
    extent : sequence of int
        Of the images that it is meant for, which decides how often each axis is halved; -1 for any.
    activation : {"sigmoid", "softmax", ""}
        What is done with the output.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        filters: Sequence[int],
        extent: Sequence[int] = (-1, -1),
        activation: str = "sigmoid",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ("sigmoid", "softmax", ""))
        axes = len(extent)
        if axes not in (2, 3) or not len(filters):
            raise UsageError(f"a U-Net has 2 or 3 axes, and filters; got {axes} and {filters!r}")
        self.activation = activation
        self.steps = _halvings(extent, len(filters) - 1)
        #: what the extent must be a multiple of
        self.multiple = tuple(2 ** sum(s[a] == 2 for s in self.steps) for a in range(axes))
        # one class or the other, which torch's types know nothing of
        kinds: Any = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
        if axes == 3:
            kinds = (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)
        convolution, transposed, norm = kinds

        def block(before: int, behind: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for n in (before, behind):
                layers += [convolution(n, behind, 3, padding=1), nn.ReLU()]
            return nn.Sequential(*layers, norm(behind))

        pairs = list(itertools.pairwise(filters))
        self.first = block(channels, filters[0])
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(
            transposed(b, a, step, stride=step)
            for (a, b), step in zip(pairs, self.steps, strict=True)
        )
        self.join = nn.ModuleList(block(2 * a, a) for a, _ in pairs)
        self.last = convolution(filters[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """batch x channels x rows x columns [x slices] to batch x classes x the same."""
        extent = x.shape[2:]
        lack = [-n % m for n, m in zip(extent, self.multiple, strict=True)]
        ends = [n for missing in reversed(lack) for n in (0, missing)]
        found = [self.first(nn.functional.pad(x, ends) if any(lack) else x)]
        pool = (nn.functional.max_pool2d, nn.functional.max_pool3d)[len(extent) - 2]
        for step, down in zip(self.steps, self.down, strict=True):
            found.append(down(pool(found[-1], step)))
        y: torch.Tensor = found.pop()
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            y = join(torch.cat([found.pop(), up(y)], 1))
        y = self.last(y)[(..., *(slice(0, n) for n in extent))]
        if self.activation == "sigmoid":
            return y.sigmoid()
        return y.softmax(1) if self.activation == "softmax" else y


def _halvings(extent: Sequence[int], times: int) -> list[tuple[int, ...]]:
    """By how much each axis is divided, resolution by resolution; an axis of 2 is not halved."""
    sizes = [2**31 if n == -1 else int(n) for n in extent]
    steps = []
    for _ in range(times):
        step = tuple(2 if n > 2 else 1 for n in sizes)
        sizes = [-(-n // s) for n, s in zip(sizes, step, strict=True)]
        steps.append(step)
    return steps
