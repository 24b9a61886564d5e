"""Transforms of other libraries, image by image, seeded by the small chunk.

Not covered: transforms of other libraries that take batches; those go straight into
``batch_tfms=``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from daskdmed.core import samplewise
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
        What it takes: a tensor ``[channels, *spatial]`` (torchvision, MONAI), an array
        ``(*spatial, channels)``, or ``function(image=array)["image"]``. "auto" knows
        albumentations and takes everything else for "tensor".
    keys : (str, str), optional
        For dictionary transforms (MONAI's ``RandFlipd(["image", "label"])``): the function
        takes and gives a dict, with the image under the first key and, where the batch has
        targets, the target under the second, as a tensor with an axis of channels each. Both
        go in one call, and what happens to which the function says; `joint` is not needed.
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
    with a function that uses them it runs in the consumer's thread, as ``tfms=`` too.

    Raises
    ------
    UsageError
        `function` is not callable, or its results make no batch.

    Examples
    --------
    >>> from monai.transforms import Compose, RandFlipd, RandGaussianNoised  # doctest: +SKIP
    >>> function = Compose(
    ...     [RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image")]
    ... )  # doctest: +SKIP
    >>> augment = PerSample(function, keys=("image", "label"))  # doctest: +SKIP
    >>> loader = LightDL(dataset, target="label", batch_tfms=augment)  # doctest: +SKIP
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        style: Literal["auto", "tensor", "array", "albumentations"] = "auto",
        keys: tuple[str, str] | None = None,
        joint: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if not callable(function):
            raise UsageError(f"PerSample takes a function of one image, not {function!r}")
        if style not in _STYLES:
            raise UsageError(f"style must be one of {', '.join(_STYLES)}, got {style!r}")
        if keys is not None:
            _check_keys(keys, style, joint)
        self.function = function
        self.keys = keys
        self.style = style
        self.joint = joint
        library = type(function).__module__.split(".")[0]
        self._style = style
        if style == "auto":
            self._style = "albumentations" if library == "albumentations" else "tensor"
        self._masks = library == "torchvision"

    def parameters(self, samples: Samples) -> Params:
        return {"seed": (samples.bits(1)[:, 0] >> np.uint64(32)).astype(np.int64)}

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        if self.keys is not None:
            key = self.keys[0]
            return self._each(
                lambda i: self._out_of(self.function({key: x[i].clone()}), key), params, x
            )
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
            `joint` was not given, or the function takes both (`keys`).
        """
        if self.keys is not None:
            raise UsageError(
                f"PerSample(keys={self.keys!r}) transforms a target with its image only: "
                "call on_both, or replay with targets"
            )
        if self.joint is None:
            raise UsageError(
                "PerSample cannot know whether its function moves pixels, and this batch has "
                "targets: give joint=True (transform them too) or joint=False (leave them)"
            )
        if not self.joint:
            return target
        labels = target.ndim == len(axes) + 1
        planar = _channels_first(target, axes)
        moved = self._each(lambda i: self._call_on_mask(planar[i], labels), params, target)
        return _as_it_was(moved, target, axes)

    def on_both(
        self, x: Tensor, target: Tensor, params: Params, axes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Both in one call, where the function takes a dict."""
        if self.keys is None:
            return super().on_both(x, target, params, axes)
        image, label = self.keys
        planar = _channels_first(target, axes)
        moved: list[Any] = []

        def call(i: int) -> Any:
            given = self.function({image: x[i].clone(), label: planar[i].clone()})
            moved.append(self._out_of(given, label))
            return self._out_of(given, image)

        images = self._each(call, params, x)
        targets = samplewise.on_each(self.function, moved.__getitem__, len(moved))
        return images, _as_it_was(targets.to(target.device), target, axes)

    def _alone(self, image: Tensor) -> Any:
        """What a dictionary transform makes of an image without a target."""
        assert self.keys is not None
        key = self.keys[0]
        return self._out_of(self.function({key: image}), key)

    def _out_of(self, result: Any, key: str) -> Any:
        """What a dictionary transform gave under a key."""
        if isinstance(result, Mapping) and key in result:
            return result[key]
        what = f"a dict of {sorted(map(str, result))}" if isinstance(result, Mapping) else ""
        raise UsageError(
            f"the transform {self.function!r} gave {what or type(result).__name__}; with "
            f"keys={self.keys!r} it must give a dict with {key!r}. One that gives a list of "
            "crops (RandCropByPosNegLabeld): leave it out, quotas= of LightDL draw these"
        )

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

    @property
    def uses_global_generators(self) -> bool:
        """Whether the function holds no random numbers of its own that can be seeded."""
        return not samplewise.holds_generators(self.function)

    def _each(self, call: Callable[[int], Any], params: Params, x: Tensor) -> Tensor:
        """Results of seeded calls, as a batch."""
        seeds = params["seed"].tolist()
        if not self.uses_global_generators:

            def seeded(i: int) -> Any:
                with samplewise.seeded(self.function, seeds[i]):
                    return call(i)

            return samplewise.on_each(self.function, seeded, len(seeds)).to(x.device)

        def lent(i: int) -> Any:
            samplewise.reseed_global(seeds[i], x.device)
            return call(i)

        with samplewise.lent_generators(x.device):
            return samplewise.on_each(self.function, lent, len(seeds)).to(x.device)


def _check_keys(keys: Any, style: str, joint: bool | None) -> None:
    texts = isinstance(keys, tuple | list) and all(isinstance(k, str) for k in keys)
    if not texts or len(set(keys)) != 2:
        raise UsageError(
            f"keys are the names of the image and of the target in the dict that the function "
            f'takes, such as ("image", "label"), got {keys!r}'
        )
    if style not in ("auto", "tensor") or joint is not None:
        raise UsageError(
            f"with keys= the function takes a dict of tensors and says itself what happens to "
            f"the target: leave style={style!r} and joint={joint!r} out"
        )


def _channels_first(target: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Targets [batch, channels, *spatial]; those of label maps have one channel."""
    if target.ndim == len(axes) + 1:
        return target[:, None]
    return target.movedim(-1, 1) if axes[0] == 1 else target


def _as_it_was(planar: Tensor, target: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The inverse of `_channels_first`."""
    if target.ndim == len(axes) + 1:
        return planar[:, 0]
    return planar.movedim(1, -1) if axes[0] == 1 else planar


def _array(image: Tensor) -> Any:
    """A contiguous array of one's own."""
    return np.array(image.cpu().numpy(), order="C")


def _planar(array: Any) -> Tensor:
    """(*spatial, channels) to a tensor [channels, *spatial]."""
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 0)
