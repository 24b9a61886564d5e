"""NumPy batches to torch tensors, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskdmed.errors import MissingExtraError, UsageError
from daskdmed.types import Array

if TYPE_CHECKING:
    import torch

try:
    import torch as _torch
except ImportError as _error:
    raise MissingExtraError(
        'LightDL gives torch tensors and torch is not installed; pip install "daskdmed[torch]"'
    ) from _error


def to_tensor(data: Array, spatial_ndim: int) -> torch.Tensor:
    """(batch, *spatial[, c]) -> (batch, c, *spatial), sharing memory.

    Parameters
    ----------
    data : ndarray
        Spatial axes behind the batch axis, channels last if there are any.
    spatial_ndim : int
        Number of spatial axes.

    Returns
    -------
    torch.Tensor
        Channels-last in memory, as the data lies. One channel is added when there is none.
    """
    tensor = _torch.from_numpy(data)
    if data.ndim == spatial_ndim + 1:
        return tensor.unsqueeze(1)
    return tensor.movedim(-1, 1)


def transform_each(tensor: torch.Tensor, tfms: Callable[[Any], Any]) -> torch.Tensor:
    """Apply a per-sample transform to each (c, *spatial) sample and stack the results.

    Raises
    ------
    UsageError
        The results cannot be stacked.
    """
    results = [_torch.as_tensor(tfms(sample)) for sample in tensor]
    shapes = {tuple(r.shape) for r in results}
    if len(shapes) > 1:
        raise UsageError(
            f"tfms gave samples of differing shapes {sorted(shapes)}, which make no batch; "
            "crop or resize to one shape"
        )
    return _torch.stack(results)


def in_dataloader_worker() -> bool:
    """Whether this is a worker process of a torch DataLoader."""
    return _torch.utils.data.get_worker_info() is not None
