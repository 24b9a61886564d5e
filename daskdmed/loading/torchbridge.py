"""NumPy batches to torch tensors, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskdmed.core.errors import MissingExtraError, UsageError
from daskdmed.core.types import Array

if TYPE_CHECKING:
    import torch

    from daskdmed.loading.chunks import SmallChunks

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


def takes_smallchunks(tfms: Callable[..., Any]) -> bool:
    """Whether a transform asks for the whole batch and its small chunks."""
    return getattr(tfms, "needs_smallchunks", False) is True


def transform_batch(x: Any, tfms: Callable[..., Any], smallchunks: SmallChunks) -> Any:
    """Apply a transform to a whole batch.

    Parameters
    ----------
    x : torch.Tensor
        ``[batch, c, *spatial]``.
    tfms : callable
        ``tfms(x) -> x``; or, when it says ``needs_smallchunks = True``,
        ``tfms(x, smallchunks)`` -> x or (x, targets).
    smallchunks : SmallChunks
        Of the batch. Its `targets` are replaced when the transform returns some.
    """
    if not takes_smallchunks(tfms):
        return tfms(x)
    result = tfms(x, smallchunks)
    if isinstance(result, tuple):
        x, smallchunks.targets = result
        return x
    return result


class Preparation:
    """Small chunks to a tensor, and transforms in the background.

    Parameters
    ----------
    spatial_ndim : int
        Number of spatial axes.
    tfms : callable or None
        Applied to each sample; to the whole batch when it asks for the small chunks.
    """

    def __init__(self, spatial_ndim: int, tfms: Callable[[Any], Any] | None) -> None:
        self._spatial_ndim = spatial_ndim
        self._tfms = tfms

    def __call__(self, smallchunks: SmallChunks) -> Any:
        x = to_tensor(smallchunks.data, self._spatial_ndim)
        if self._tfms is None or not len(smallchunks):
            return x
        if takes_smallchunks(self._tfms):
            return transform_batch(x, self._tfms, smallchunks)
        return transform_each(x, self._tfms)


def in_dataloader_worker() -> bool:
    """Whether this is a worker process of a torch DataLoader."""
    return _torch.utils.data.get_worker_info() is not None
