"""Colour arithmetic over a batch, a few images at a time.

A batch of 64 patches is 38 MB of float32. Done in one go every step of a transform goes to
main memory and back; done in blocks that fit the cache only the first and the last do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from daskdmed.core.errors import UsageError
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Tensor

#: bytes of float32 samples of a block
_CPU_BLOCK = 2 << 20
_DEVICE_BLOCK = 1 << 30


def blocks_of(x: Tensor) -> Iterator[slice]:
    """Slices of a batch, each of a block."""
    sample = 4 * max(1, x[:1].numel())
    step = max(1, (_CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK) // sample)
    for start in range(0, len(x), step):
        yield slice(start, min(start + step, len(x)))


def white_of(x: Tensor, who: str) -> float:
    """Value of the brightest sample: 255, 65535, or 1 for floating point."""
    if x.shape[1] != 3:
        raise UsageError(
            f"{who} is for RGB images, [batch, 3, *spatial], got {tuple(x.shape)}; "
            "leave it out for other data"
        )
    if x.dtype.is_floating_point:
        return 1.0
    if x.dtype not in (torch.uint8, torch.uint16):
        raise UsageError(
            f"{who} takes uint8, uint16, or floating point samples in [0, 1], got {x.dtype}"
        )
    return 255.0 if x.dtype is torch.uint8 else 65535.0


def colourwise(
    x: Tensor, function: Callable[..., Tensor], rows: Sequence[Tensor] = (), *, who: str
) -> Tensor:
    """``function(block, white, *rows)`` on a batch, which is left as it is.

    The block is float32 [b, 3, pixels] in [0, white], the function's own to write into; its
    result may leave that range. Of `rows` it gets those of its block. Gives what is like `x`
    in shape, type and layout, rounded where that is integer; `who` is for messages.
    """
    white = white_of(x, who)
    out = torch.empty_like(x)
    for part in blocks_of(x):
        source = x[part]
        block = torch.empty(source.shape, dtype=torch.float32, device=x.device).copy_(source)
        result = function(block.flatten(2), white, *(r[part] for r in rows)).clamp_(0, white)
        if not x.dtype.is_floating_point:
            result = result.round_()
        out[part].copy_(result.reshape(source.shape))
    return out
