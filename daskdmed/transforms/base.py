"""What a transform is: parameters from keys, then pixels from parameters.

The two steps are apart so that a transform can be replayed: `Transform.draw` gives the
parameters of a batch, `Transform.replay` applies given parameters to images and targets.
Not covered: any particular transform.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from daskdmed.core.checks import check_seed
from daskdmed.core.errors import UsageError
from daskdmed.core.randomness import salt_of
from daskdmed.core.types import Array
from daskdmed.transforms._torch import torch
from daskdmed.transforms.keyed import Samples

#: name -> array, one row per small chunk; plain arrays, so that ``np.savez(**params)`` works
Params: TypeAlias = dict[str, Array]
Tensor: TypeAlias = torch.Tensor


class Transform(ABC):
    """A transform of whole batches.

    Called as ``transform(x, smallchunks)``, which is what `LightDL` does, or
    ``transform(x, keys, targets)``. Subclasses give `parameters` (what is random),
    `on_image`, and `on_target` where pixels move.

    Parameters
    ----------
    seed : int, default 0
        Two transforms of the same kind and place with different seeds draw differently.
    """

    #: tells `LightDL` to call it with the batch's small chunks
    needs_smallchunks = True

    @property
    def uses_global_generators(self) -> bool:
        """Whether it draws from the generators that it shares with the training loop."""
        return False

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = check_seed(seed)
        self._salt = salt_of(type(self).__name__, self.seed)

    # -- what subclasses give ---------------------------------------------------------

    def parameters(self, samples: Samples) -> Params:
        """Parameters of each small chunk; none by default.

        `samples` gives uniform numbers of each small chunk, and patient ids. Each array has
        ``samples.size`` rows.
        """
        return {}

    @abstractmethod
    def on_image(self, x: Tensor, params: Params) -> Tensor:
        """Transform images ``[batch, channels, *spatial]``, without writing into them."""

    def on_target(self, target: Tensor, params: Params, axes: tuple[int, ...]) -> Tensor:
        """Transform targets the same way; unchanged by default, right where no pixel moves.

        First axis the batch; `axes` are the spatial ones, in array order.
        """
        return target

    def on_both(
        self, x: Tensor, target: Tensor, params: Params, axes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Transform images and their targets; one by one, where nothing joins them."""
        return self.on_image(x, params), self.on_target(target, params, axes)

    # -- what users call --------------------------------------------------------------

    def draw(self, source: Any) -> Params:
        """Parameters for `replay`, of small chunks or of integer keys ``[batch, k]``.

        The same whenever and wherever it is called. Names of the members of a `Compose` begin
        with their place.
        """
        return self.parameters(Samples.of(source).at(self._salt))

    def replay(self, params: Mapping[str, Array], x: Tensor, targets: Any = None) -> Any:
        """Apply given parameters.

        Parameters
        ----------
        params : mapping
            From `draw`.
        x : Tensor
            ``[batch, channels, *spatial]``.
        targets : ndarray or Tensor, optional
            Array ``(batch, *spatial[, channels])``, tensor ``[batch, *spatial]`` or
            ``[batch, channels, *spatial]``. The spatial extent may differ from that of
            `x` (another resolution of the same place).

        Returns
        -------
        Tensor, or (Tensor, targets)
            The latter when targets were given; they keep type and layout (but become a
            tensor, channels first, on another device than the CPU).

        Raises
        ------
        UsageError
            `x` is no batch of images, or parameters or targets are of another batch.
        """
        x = as_batch(x)
        given = dict(params)
        for name, values in given.items():
            if len(values) != len(x):
                raise UsageError(
                    f"parameter {name!r} has {len(values)} rows for a batch of {len(x)}"
                )
        if targets is None:
            return self.on_image(x, given)
        return self._replay_both(targets, given, x)

    def __call__(self, x: Tensor, keys: Any = None, targets: Any = None) -> Any:
        """Draw and apply; `x` and `targets` as for `replay`.

        `keys` are small chunks, whose targets are transformed along, or integers ``[batch, k]``;
        not needed where nothing is random.
        """
        x = as_batch(x)
        samples = Samples.of(keys, len(x))
        if targets is None:
            targets = getattr(keys, "targets", None)
        return self.replay(self.parameters(samples.at(self._salt)), x, targets)

    def _replay_both(self, targets: Any, params: Params, x: Tensor) -> tuple[Tensor, Any]:
        spatial_ndim = x.ndim - 2
        is_array = not isinstance(targets, torch.Tensor)
        tensor = _as_tensor(targets) if is_array else targets
        channels = tensor.ndim - 1 - spatial_ndim
        if channels not in (0, 1) or len(tensor) != len(x):
            raise UsageError(
                f"targets of shape {tuple(tensor.shape)} do not go with images of shape "
                f"{tuple(x.shape)}: expected {len(x)} label maps with {spatial_ndim} spatial "
                "axes, and at most one axis of channels"
            )
        first = 2 if channels and not is_array else 1
        axes = tuple(range(first, first + spatial_ndim))
        image, moved = self.on_both(x, tensor, params, axes)
        if not is_array:
            return image, moved
        if moved.device.type == "cpu":
            return image, moved.numpy()
        return image, moved.movedim(-1, 1) if channels else moved

    def __repr__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "seed"}
        arguments = [f"{name}={value!r}" for name, value in shown.items()]
        if self.seed:
            arguments.append(f"seed={self.seed}")
        return f"{type(self).__name__}({', '.join(arguments)})"


def _as_tensor(array: Array) -> Tensor:
    """Sharing memory where torch can: not if it is read-only, or runs backwards."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = np.array(array)
    return torch.from_numpy(array)


def as_batch(x: Any) -> Tensor:
    """`x`, if it is a tensor ``[batch, channels, *spatial]``."""
    if not isinstance(x, torch.Tensor) or x.ndim < 3:
        shape = getattr(x, "shape", None)
        raise UsageError(
            "transforms take a tensor [batch, channels, *spatial], got "
            f"{type(x).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}; "
            "torch.from_numpy(a).movedim(-1, 1) makes one of an array (batch, y, x, channels)"
        )
    return x


def on_device(values: Array, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Parameters as a tensor beside the images."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device, dtype)


def check_probability(name: str, p: float) -> float:
    """`p` in [0, 1]."""
    if not 0.0 <= p <= 1.0:
        raise UsageError(f"{name} must be a probability in [0, 1], got {p!r}")
    return float(p)
