"""What the fork server of `forked` imports and draws before it forks."""

from __future__ import annotations

import functools
import importlib

import daskdmed
from daskdmed.samples import _plan

for module in ("torch", "distributed", "tifffile", "zarr"):
    importlib.import_module(module)
for name in ("LightDL", "SlidingWindowDL", "heatmap", "predict", "infer"):
    getattr(daskdmed, name)

_plan.synthetic_textures = functools.lru_cache(maxsize=None)(_plan.synthetic_textures.__wrapped__)
for seed in (0, 1):
    _plan.synthetic_textures(seed, 1024, 0.5)
