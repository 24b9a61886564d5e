"""Sample types and devices: from stored integers to what a network takes."""

from __future__ import annotations

from collections.abc import Sequence

from daskdmed.core.errors import UsageError
from daskdmed.core.intensity import full_scale
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Params, Tensor, Transform
from daskdmed.transforms.blocks import blocks_of


class ToFloat(Transform):
    """Integers to floating point; unsigned ones of 8 and 16 bits divided by their largest value.

    The scale on which modules in `heatmap`, `predict` and `infer` see the same image.

    Parameters
    ----------
    dtype : torch.dtype, default torch.float32
        Floating point type of the result.
    scale : float, optional
        Divide by this instead. Default: 255 for uint8, 65535 for uint16, 1 for all others
        (Hounsfield units stay what they are).

    Raises
    ------
    UsageError
        `dtype` is no floating point type, or `scale` is 0.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, *, scale: float | None = None) -> None:
        super().__init__()
        if not dtype.is_floating_point:
            raise UsageError(f"ToFloat gives floating point samples, not {dtype}")
        if scale is not None and not scale:
            raise UsageError("ToFloat cannot divide by scale=0")
        self.dtype, self.scale = dtype, scale

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        scale = self.scale if self.scale is not None else full_scale(x.dtype) or 1.0
        if scale == 1.0:
            return x.to(self.dtype)
        by: float | Tensor = scale
        if x.device.type != "cpu" and self.dtype in (torch.float32, torch.float64):
            # by a number GPUs multiply with its reciprocal, and are off by the last bit
            by = torch.full((), scale, dtype=self.dtype, device=x.device)
        out = torch.empty_like(x, dtype=self.dtype)
        for part in blocks_of(x):
            out[part].copy_(x[part]).div_(by)
        return out


class Normalize(Transform):
    """``(x - mean) / std`` for each channel, after `ToFloat`, in one go.

    Parameters
    ----------
    mean, std : float or sequence of float
        In units of `ToFloat`: [0, 1] for uint8. One for all channels, or one a channel.
    dtype : torch.dtype, default torch.float32
        Floating point type of the result.

    Raises
    ------
    UsageError
        A std that is not positive, or not as many numbers as channels.
    """

    def __init__(
        self,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.mean, self.std = _numbers(mean), _numbers(std)
        if not dtype.is_floating_point:
            raise UsageError(f"Normalize gives floating point samples, not {dtype}")
        if min(self.std) <= 0:
            raise UsageError(f"std must be positive, got {std!r}")
        self.dtype = dtype

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        white = full_scale(x.dtype) or 1.0
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, std = (
            torch.tensor(v, dtype=torch.float64).mul(white).to(x.device, self.dtype).reshape(shape)
            for v in (self.mean, self.std)
        )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[1]):
                raise UsageError(f"{name} has {len(values)} numbers for {x.shape[1]} channels")
        out = torch.empty_like(x, dtype=self.dtype)
        for part in blocks_of(x):
            out[part].copy_(x[part]).sub_(mean).div_(std)
        return out


class ToDevice(Transform):
    """Move the batch, and its targets, to a device.

    Put it first, and what follows runs there on integers, a quarter of the bytes.

    Parameters
    ----------
    device : str or torch.device
        ``"cuda"``, ``"cuda:1"``, ``"cpu"``...
    """

    def __init__(self, device: str | torch.device) -> None:
        super().__init__()
        self.device = torch.device(device)

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        return x.to(self.device, non_blocking=True)

    def on_target(self, target: Tensor, params: Params, axes: tuple[int, ...]) -> Tensor:
        return target.to(self.device, non_blocking=True)


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in ([value] if isinstance(value, int | float) else value))
