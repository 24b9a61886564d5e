"""Transforms of an image and its masks, and the preprocessing that a configuration names."""

from __future__ import annotations

from daskdmed.compat.medsegpy.data.transforms.transform import (
    AffineNormalization,
    CropTransform,
    FlipTransform,
    MedTransform,
    NoOpTransform,
    TransformList,
    Windowing,
    ZeroMeanNormalization,
)
from daskdmed.compat.medsegpy.data.transforms.transform_gen import (
    Preprocessing,
    RandomCrop,
    TransformGen,
    apply_transform_gens,
    build_preprocessing,
)

__all__ = [
    "AffineNormalization",
    "CropTransform",
    "FlipTransform",
    "MedTransform",
    "NoOpTransform",
    "Preprocessing",
    "RandomCrop",
    "TransformGen",
    "TransformList",
    "Windowing",
    "ZeroMeanNormalization",
    "apply_transform_gens",
    "build_preprocessing",
]
