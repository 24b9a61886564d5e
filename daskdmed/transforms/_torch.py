"""torch, or an error that names the extra."""

from __future__ import annotations

from daskdmed.errors import MissingExtraError

try:
    import torch as torch
except ImportError as _error:
    raise MissingExtraError(
        'transforms work on torch tensors and torch is not installed; pip install "daskdmed[torch]"'
    ) from _error
