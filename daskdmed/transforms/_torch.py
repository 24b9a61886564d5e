"""torch, or an error that names the extra."""

from __future__ import annotations

from daskdmed.core.errors import MissingExtraError

try:
    import torch as torch
except ImportError as _error:
    raise MissingExtraError(
        'transforms work on torch tensors and torch is not installed; pip install "daskdmed[torch]"'
    ) from _error


def settle() -> None:
    """Call elementary functions once, on one number, before threads do.

    MKL (2024.2, of current builds of torch) chooses its kernels at the first call. When
    several threads make that call at once, one of them may get a kernel of half the digits,
    and the first batch of a process would differ from the same batch elsewhere.
    """
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for function in (torch.exp, torch.log, torch.sqrt, torch.sin, torch.cos):
            function(one)


settle()
