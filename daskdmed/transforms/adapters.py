"""Transforms of other libraries, image by image, seeded by the small chunk.

Not covered: transforms of other libraries that take batches; those go straight into
``batch_tfms=``.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Params, Tensor, Transform
from daskdmed.transforms.keyed import Samples

_STYLES = ("auto", "tensor", "array", "albumentations")


class PerSample(Transform):
    """Apply a function of one image to each image of the batch.

    Before each call the random numbers of the function are seeded by the small chunk: those
    it holds itself (albumentations, MONAI), or else the global ones of torch, NumPy and
    `random`, which get their state back afterwards.

    Parameters
    ----------
    function : callable
        Takes one image and gives one. All results of a batch must have the same shape.
    style : {"auto", "tensor", "array", "albumentations"}, default "auto"
        What it takes: a tensor [channels, *spatial] (torchvision, MONAI), an array
        (*spatial, channels), or ``function(image=array)["image"]``. "auto" knows
        albumentations and takes everything else for "tensor".
    joint : bool, optional
        What to do with targets, which must be said where there are any: leave them (right
        if no pixel moves), or transform them with the same random numbers. Then
        albumentations gets a ``mask``, torchvision a ``Mask``, and other functions are
        called with the target as they were with the image: right for those that only move
        pixels.
    seed : int, default 0
        See `Transform`.

    Notes
    -----
    A loop in Python over images: use the transforms of this package where there is one.
    Parameters: ``seed``, int64 [batch]. Global random numbers are shared with all threads:
    give functions that use them to ``batch_tfms=`` rather than ``tfms=``, which runs in
    the background.

    Raises
    ------
    UsageError
        `function` is not callable, or its results make no batch.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        style: Literal["auto", "tensor", "array", "albumentations"] = "auto",
        joint: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not callable(function):
            raise UsageError(f"PerSample takes a function of one image, not {function!r}")
        if style not in _STYLES:
            raise UsageError(f"style must be one of {', '.join(_STYLES)}, got {style!r}")
        self.function = function
        self.style = style
        self.joint = joint
        library = type(function).__module__.split(".")[0]
        self._style = style
        if style == "auto":
            self._style = "albumentations" if library == "albumentations" else "tensor"
        self._masks = library == "torchvision"

    def parameters(self, samples: Samples) -> Params:
        """A seed for each small chunk."""
        return {"seed": (samples.bits(1)[:, 0] >> np.uint64(32)).astype(np.int64)}

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        """Call the function with each image."""
        if self._style == "tensor":
            # a copy each: functions may write into what they get, and the loader's stays
            return self._each(lambda i: self.function(x[i].clone()), params, x)
        last = x.movedim(1, -1)
        if self._style == "array":
            return self._each(lambda i: _planar(self.function(_array(last[i]))), params, x)
        return self._each(
            lambda i: _planar(self.function(image=_array(last[i]))["image"]), params, x
        )

    def on_target(self, target: Tensor, params: Params, axes: tuple[int, ...]) -> Tensor:
        """Leave the target, or call the function with each.

        Raises
        ------
        UsageError
            `joint` was not given.
        """
        if self.joint is None:
            raise UsageError(
                "PerSample cannot know whether its function moves pixels, and this batch has "
                "targets: give joint=True (transform them too) or joint=False (leave them)"
            )
        if not self.joint:
            return target
        labels = target.ndim == len(axes) + 1
        if labels:
            planar = target[:, None]
        else:
            planar = target.movedim(-1, 1) if axes[0] == 1 else target
        moved = self._each(lambda i: self._call_on_mask(planar[i], labels), params, target)
        if labels:
            return moved[:, 0]
        return moved.movedim(1, -1) if axes[0] == 1 else moved

    def _call_on_mask(self, target: Tensor, labels: bool) -> Any:
        """The function on one target [channels, *spatial]."""
        if self._style == "tensor":
            if not self._masks:
                return self.function(target.clone())
            mask = importlib.import_module("torchvision.tv_tensors").Mask(target.clone())
            return self.function(mask).as_subclass(torch.Tensor)
        array = _array(target[0] if labels else target.movedim(0, -1))
        if self._style == "array":
            moved = self.function(array)
        else:
            blank = np.zeros((*target.shape[1:], 3), np.uint8)
            moved = self.function(image=blank, mask=array)["mask"]
        return _planar(moved[..., None] if labels else moved)

    def _each(self, call: Callable[[int], Any], params: Params, x: Tensor) -> Tensor:
        """Results of seeded calls, as a batch."""
        results = []
        with _global_state(x.device):
            for i, seed in enumerate(params["seed"].tolist()):
                _reseed(self.function, int(seed), x.device)
                result = call(i)
                # MONAI's tensors know where they were; a batch does not
                results.append(torch.as_tensor(getattr(result, "as_tensor", lambda r=result: r)()))
        shapes = {tuple(r.shape) for r in results}
        if len(shapes) > 1:
            raise UsageError(
                f"{self.function!r} gave images of differing shapes {sorted(shapes)}, which "
                "make no batch; let it crop or resize to one shape"
            )
        return torch.stack(results).to(x.device)


def _array(image: Tensor) -> Any:
    """A contiguous array of one's own."""
    return np.array(image.cpu().numpy(), order="C")


def _planar(array: Any) -> Tensor:
    """(*spatial, channels) to a tensor [channels, *spatial]."""
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)


@contextmanager
def _global_state(device: torch.device) -> Iterator[None]:
    """Give the global generators their state back at the end."""
    own, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 what functions use
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)  # noqa: NPY002


def _reseed(function: Any, seed: int, device: torch.device) -> None:
    """Seed what a function draws from."""
    for method, arguments in (
        ("set_random_seed", {"seed": seed}),  # albumentations
        ("set_random_state", {"seed": seed}),  # MONAI
    ):
        if hasattr(function, method):
            getattr(function, method)(**arguments)
            return
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
