"""Transforms of whole batches, seeded by the small chunk.

For ``LightDL(batch_tfms=...)`` or ``LightDL(tfms=...)`` (the latter in the background), and
by themselves on any tensor ``[batch, channels, *spatial]``, on any device. Each random
parameter is a function of the transform's seed, its place in a `Compose`, and the key of
the small chunk: not of the batch, the worker or what was drawn before.

Not covered: resizing and elastic deformation (`PerSample` takes those of other libraries),
and anything at the level of a whole slide.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS: dict[str, str] = {
    "ColorJitter": "daskdmed.transforms.colour",
    "Compose": "daskdmed.transforms.compose",
    "HEDJitter": "daskdmed.transforms.colour",
    "MacenkoNormalizer": "daskdmed.transforms.macenko",
    "Normalize": "daskdmed.transforms.convert",
    "PerSample": "daskdmed.transforms.adapters",
    "RandomFlip": "daskdmed.transforms.geometric",
    "RandomRotate90": "daskdmed.transforms.geometric",
    "ReinhardNormalizer": "daskdmed.transforms.reinhard",
    "Samples": "daskdmed.transforms.keyed",
    "ToDevice": "daskdmed.transforms.convert",
    "ToFloat": "daskdmed.transforms.convert",
    "Transform": "daskdmed.transforms.base",
}

__all__ = sorted(_EXPORTS)

if TYPE_CHECKING:
    from daskdmed.transforms.adapters import PerSample as PerSample
    from daskdmed.transforms.base import Transform as Transform
    from daskdmed.transforms.colour import ColorJitter as ColorJitter
    from daskdmed.transforms.colour import HEDJitter as HEDJitter
    from daskdmed.transforms.compose import Compose as Compose
    from daskdmed.transforms.convert import Normalize as Normalize
    from daskdmed.transforms.convert import ToDevice as ToDevice
    from daskdmed.transforms.convert import ToFloat as ToFloat
    from daskdmed.transforms.geometric import RandomFlip as RandomFlip
    from daskdmed.transforms.geometric import RandomRotate90 as RandomRotate90
    from daskdmed.transforms.keyed import Samples as Samples
    from daskdmed.transforms.macenko import MacenkoNormalizer as MacenkoNormalizer
    from daskdmed.transforms.reinhard import ReinhardNormalizer as ReinhardNormalizer


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'daskdmed.transforms' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
