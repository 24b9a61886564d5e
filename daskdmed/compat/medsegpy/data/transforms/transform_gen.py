"""Random transforms, and what a configuration names as its preprocessing.

A `TransformGen` draws a `MedTransform`, which is then applied to the image and to its masks alike.
What is drawn follows from the generator that is handed in: loaders give one for each element of
each epoch.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.data.transforms import transform
from daskdmed.compat.medsegpy.data.transforms.transform import (
    CropTransform,
    MedTransform,
    TransformList,
)
from daskdmed.core.checks import check_choice
from daskdmed.core.errors import GeometryError, UsageError, listing, meant
from daskdmed.core.types import Array

Rng: TypeAlias = np.random.Generator


class TransformGen(ABC):
    """Draws transforms."""

    @abstractmethod
    def get_transform(self, img: Array, rng: Rng | None = None) -> MedTransform:
        """A transform for an image. Everything random comes from `rng`, where it is given."""


class RandomCrop(TransformGen):
    """A crop at a random place.

    Parameters
    ----------
    crop_type : {"relative_range", "relative", "absolute"}
        What `crop_size` is: the least fraction of the image, of which one up to 1 is drawn; a
        fraction; or voxels.
    crop_size : sequence of float
        One number for each axis that is cropped, rows first.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        check_choice("crop_type", crop_type, ("relative_range", "relative", "absolute"))
        self.crop_type = crop_type
        self.crop_size = tuple(float(n) for n in crop_size)
        whole = all(n == int(n) and n >= 1 for n in self.crop_size)
        if crop_type == "absolute" and not whole:
            raise GeometryError(f"crop_size={crop_size!r} is whole voxels, at least 1")
        if crop_type != "absolute" and not all(0 < n <= 1 for n in self.crop_size):
            raise GeometryError(f"crop_size={crop_size!r} is fractions in (0, 1]")

    def get_transform(self, img: Array, rng: Rng | None = None) -> CropTransform:
        """A `CropTransform` that lies in the image."""
        rng = rng or np.random.default_rng()
        size = self.get_crop_size(img.shape[: len(self.crop_size)], rng)
        if len(size) > img.ndim or any(n > m for n, m in zip(size, img.shape, strict=False)):
            raise GeometryError(f"a crop of {size} is larger than the image, {img.shape}")
        origin = [int(rng.integers(m - n + 1)) for n, m in zip(size, img.shape, strict=False)]
        return CropTransform(origin, size)

    def get_crop_size(self, image_size: Sequence[int], rng: Rng | None = None) -> tuple[int, ...]:
        """Voxels along each axis, in an image of so many."""
        if self.crop_type == "absolute":
            return tuple(int(n) for n in self.crop_size)
        share: Sequence[float] = self.crop_size
        if self.crop_type == "relative_range":
            share = [n + (rng or np.random.default_rng()).random() * (1 - n) for n in share]
        return tuple(max(int(s * n + 0.5), 1) for s, n in zip(share, image_size, strict=True))


Step: TypeAlias = MedTransform | TransformGen


def apply_transform_gens(
    transform_gens: Sequence[Step], img: Array, rng: Rng | None = None
) -> tuple[Array, TransformList]:
    """Apply transforms and random ones in order.

    Returns
    -------
    (ndarray, TransformList)
        The image, and what was applied: for the masks.
    """
    applied = []
    for step in transform_gens:
        one = step if isinstance(step, MedTransform) else _drawn(step, img, rng)
        img = one.apply_image(img)
        applied.append(one)
    return img, TransformList(applied)


def _drawn(step: Any, img: Array, rng: Rng | None) -> MedTransform:
    if not hasattr(step, "get_transform"):
        raise UsageError(f"a transform is a MedTransform or a TransformGen, not {step!r}")
    if "rng" in inspect.signature(step.get_transform).parameters:
        found = step.get_transform(img, rng=rng)
    else:  # one that was written for MedSegPy
        found = step.get_transform(img)
    if not isinstance(found, MedTransform):
        raise UsageError(f"{type(step).__name__}.get_transform gives no MedTransform: {found!r}")
    return found


class Preprocessing:
    """What is done with every image before a network sees it."""

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self.steps = tuple(steps)

    def apply(
        self, img: Array, masks: Array | None, rng: Rng | None = None
    ) -> tuple[Array, Array | None]:
        """Of an image (..., channels) and its masks."""
        found, applied = apply_transform_gens(self.steps, np.asarray(img, np.float32), rng)
        return found, None if masks is None else applied.apply_segmentation(masks)

    def fixed(self) -> TransformList:
        """The same for inference, where nothing is random.

        Raises
        ------
        UsageError
            Something is.
        """
        drawn = [s for s in self.steps if not isinstance(s, MedTransform)]
        if drawn:
            raise UsageError(
                f"the preprocessing draws at random ({', '.join(type(s).__name__ for s in drawn)})"
                ": leave that out of cfg.PREPROCESSING for inference"
            )
        return TransformList(s for s in self.steps if isinstance(s, MedTransform))

    def __len__(self) -> int:
        return len(self.steps)


def build_preprocessing(cfg: Config) -> Preprocessing:
    """The transforms that ``cfg.PREPROCESSING`` names, with the keywords of
    ``cfg.PREPROCESSING_ARGS``; or is, where it holds transforms.

    Raises
    ------
    UsageError
        No transform of a name, not as many keywords as names, or keywords that it does not take.
    """
    names, keywords = list(cfg.PREPROCESSING), list(cfg.PREPROCESSING_ARGS)
    if keywords and len(keywords) != len(names):
        raise UsageError(
            f"cfg.PREPROCESSING has {len(names)} entries, cfg.PREPROCESSING_ARGS {len(keywords)}; "
            "give {} for a transform without keywords"
        )
    keywords = keywords or [{}] * len(names)
    return Preprocessing([_step(n, dict(k)) for n, k in zip(names, keywords, strict=True)])


def _step(name: Any, keywords: dict[str, Any]) -> Step:
    if not isinstance(name, str):
        return cast(Step, name)  # applying it says when it is none
    known = _known()
    if name not in known:
        raise UsageError(
            f"no transform {name!r}{meant(name, known)}; there are {listing(sorted(known))}, "
            "others are given as objects: cfg.PREPROCESSING = [MyTransform()]"
        )
    try:
        made: Step = known[name](**keywords)
    except TypeError as error:
        raise UsageError(f"{name} does not take {keywords}: {error}") from error
    return made


def _known() -> dict[str, type[Any]]:
    """Transforms that can be named."""
    names = [n for n, v in vars(transform).items() if isinstance(v, type) and _public(n, v)]
    return {n: getattr(transform, n) for n in names} | {"RandomCrop": RandomCrop}


def _public(name: str, cls: type) -> bool:
    return name[0] != "_" and issubclass(cls, MedTransform) and cls is not MedTransform
