"""A batch of what ``tfms`` made of small chunks.

Not covered: the random numbers of ``tfms`` (`daskdmed.compat.pydmed._numbers`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from daskdmed.compat.pydmed._hooks import SmallChunk
from daskdmed.core import buffers
from daskdmed.core.errors import UsageError


def batch_of(made: list[Any], chunks: list[SmallChunk]) -> Any:
    """What `LightDL.default_collate` gives, of what ``tfms`` made of each small chunk."""
    if not all(isinstance(one, np.ndarray) for one in made):
        made = [_tensor(one) for one in made]
    shapes = {tuple(one.shape) for one in made}
    if len(shapes) > 1:
        raise UsageError(
            f"small chunks of differing shapes {sorted(shapes)} make no batch; let tfms bring "
            "them to one, or give collate_func="
        )
    for chunk in chunks:
        chunk.data = None  # the batch has it
    return _stacked(made), [chunk.patient for chunk in chunks], chunks


def _stacked(made: list[Any]) -> torch.Tensor:
    """By NumPy where that can be: torch would start threads for so little."""
    tensors = [one for one in made if isinstance(one, torch.Tensor)]
    if any(one.requires_grad or one.device.type != "cpu" for one in tensors):
        return torch.stack(tensors)
    try:
        arrays = [one.numpy() for one in tensors] if tensors else made
    except TypeError:  # a type that NumPy does not know
        return torch.stack(tensors)
    # memory of a batch that is gone: touching fresh pages takes as long as copying
    out = buffers.empty((len(arrays), *arrays[0].shape), np.result_type(*arrays))
    return torch.from_numpy(np.stack(arrays, out=out))


def _tensor(data: Any) -> torch.Tensor:
    """Of an array as torch takes it: it has to be writable, and no mirror image."""
    if isinstance(data, np.ndarray) and (
        not data.flags.writeable or min(data.strides, default=0) < 0
    ):
        data = data.copy()
    return torch.as_tensor(data)
