"""What a model is given, and what it gives back.

Two kinds of model: a ``torch.nn.Module`` gets float tensors, channels first; any other
callable gets the windows as the array they are. Both give one value per window, or k.

Not covered: which windows make a batch (`daskdmed.windows.extract`), and how a model comes
to the workers of a cluster (`daskdmed.windows.run`).
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daskdmed.errors import UsageError
from daskdmed.images import buffers
from daskdmed.types import Array, ImageView
from daskdmed.windows.extract import Windows
from daskdmed.windows.fingerprint import fingerprint

if TYPE_CHECKING:
    import torch

Model: TypeAlias = Callable[..., Any]
Transform: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class WindowModel:
    """A model with the conversion in front of it and behind it.

    Parameters
    ----------
    model : torch.nn.Module or callable
        See `daskdmed.windows.heatmap.heatmap`.
    batch_tfms : callable, optional
        What becomes of a batch before the model sees it.
    device : str or torch.device, optional
        Where a module runs. Default: where its parameters are.
    """

    model: Model
    batch_tfms: Transform | None = None
    device: Any = None

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise UsageError(
                f"model must be a torch.nn.Module or a callable, got {type(self.model).__name__}"
            )
        if self.device is not None and not self.is_torch:
            raise UsageError(
                "device= moves a torch.nn.Module; this model is a plain callable, which "
                "chooses its device itself"
            )

    @property
    def is_torch(self) -> bool:
        """Whether the model is a ``torch.nn.Module``."""
        module = sys.modules.get("torch")
        return module is not None and isinstance(self.model, module.nn.Module)

    @property
    def fingerprint(self) -> str:
        """Digest of the model and its transform."""
        parts = (self.model, self.batch_tfms)
        return fingerprint(parts if self.batch_tfms is not None else self.model)

    def place(self) -> WindowModel:
        """The model on its device, as a copy when it has to move."""
        if self.device is None or not self.is_torch:
            return self
        import torch

        wanted = torch.device(self.device)
        if _device(self.model) == wanted:
            return self
        return replace(self, model=copy.deepcopy(self.model).to(wanted))  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def ready(self, workers: int = 1) -> Iterator[None]:
        """Evaluation mode and a fair share of CPU threads per worker; both are put back."""
        if not self.is_torch:
            yield
            return
        import torch

        modules = list(self.model.modules())  # type: ignore[attr-defined]
        modes = [module.training for module in modules]
        threads = torch.get_num_threads()
        self.model.eval()  # type: ignore[attr-defined]
        torch.set_num_threads(max(1, min(threads, (os.cpu_count() or 1) // max(workers, 1))))
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for module, training in zip(modules, modes, strict=True):
                module.training = training

    def outputs(self, windows: Windows, batch_size: int) -> Iterator[tuple[Array, Array]]:
        """Results of all kept windows of a block: (flat positions, values (n,) or (n, k))."""
        for where, batch in self._batches(windows, batch_size):
            yield where, self(batch)

    def _batches(self, windows: Windows, batch_size: int) -> Iterator[tuple[Array, Array]]:
        kernel, dtype = windows.grid.kernel_size, windows.pixels.dtype
        channels = windows.pixels.shape[len(kernel) :]
        if self._scales_on_cpu:
            channels_first = channels or (1,)

            def allocate(n: int) -> Array:
                return buffers.empty((n, *channels_first, *kernel), np.float32)

            def convert(target: Array, source: Array) -> None:
                to = np.moveaxis(target, 1, -1)
                scale_into(to if channels else to[..., 0], source)

            return windows.copies(batch_size, allocate, convert)
        if windows.separate and not self.is_torch:
            return windows.views(batch_size)
        inner = (channels or (1,)) if self.is_torch else channels

        def copy_into(target: Array, source: Array) -> None:
            np.copyto(target, source if len(inner) == len(channels) else source[..., None])

        return windows.copies(
            batch_size, lambda n: buffers.empty((n, *kernel, *inner), dtype), copy_into
        )

    @property
    def _scales_on_cpu(self) -> bool:
        if not self.is_torch or self.batch_tfms is not None:
            return False
        return bool(_device(self.model).type == "cpu")

    def __call__(self, batch: Array) -> Array:
        """Run the model on one batch.

        Parameters
        ----------
        batch : ndarray
            As `outputs` makes it.

        Returns
        -------
        ndarray of float32
            (n,) or (n, k).

        Raises
        ------
        UsageError
            The model's output is no such array.
        """
        if not self.is_torch:
            given = batch if self.batch_tfms is None else self.batch_tfms(batch)
            return as_values(self.model(given), len(batch))
        import torch

        with torch.inference_mode():
            tensor = torch.from_numpy(batch)
            device = _device(self.model)
            if not self._scales_on_cpu:
                # channels-last memory seen as channels first, as the loader gives it
                tensor = torch.movedim(tensor, -1, 1).to(device)
                if self.batch_tfms is None:
                    tensor = _scaled_tensor(tensor)
                else:
                    tensor = self.batch_tfms(tensor).to(device)
            return as_values(self.model(tensor), len(batch))

    def probe(self, view: ImageView, kernel_size: tuple[int, ...], batch_size: int) -> int:
        """Values per window, learnt from background windows; 0 stands for one plain value.

        A slide is full of background, so that every model must take it; no pixel is read.

        Raises
        ------
        UsageError
            The model's output is no (n,) or (n, k) array.
        Exception
            Whatever the model raises, with a note.
        """
        n = min(2, batch_size)
        channels = tuple(view.shape[view.spatial_ndim :])
        inner = (channels or (1,)) if self.is_torch else channels
        batch = np.empty((n, *kernel_size, *inner), view.dtype)
        batch[...] = np.asarray(view.background, view.dtype)
        if self._scales_on_cpu:
            scaled = np.empty(batch.shape, np.float32)
            scale_into(scaled, batch)
            batch = np.moveaxis(scaled, -1, 1).copy()
        try:
            values = self(batch)
        except Exception as error:
            error.add_note(f"while trying the model on {n} windows of background")
            raise
        return values.shape[1] if values.ndim == 2 else 0


def as_values(result: Any, n: int) -> Array:
    """A model's output as float32 (n,) or (n, k).

    (n, 1) is one value per window; trailing axes of length 1, which networks without a
    flatten leave, are dropped.

    Raises
    ------
    UsageError
        Another shape, not numeric, or complex.
    """
    if hasattr(result, "detach"):
        result = result.detach()
        if not result.is_floating_point() or result.element_size() < 4:
            result = result.float()
        result = result.cpu()
    if isinstance(result, dict) or (isinstance(result, tuple) and len(result) != n):
        raise UsageError(
            f"the model returned a {type(result).__name__} of {len(result)}; a heatmap takes one "
            "array, (n,) or (n, k): wrap the model in a function that picks the output"
        )
    values = np.asarray(result)
    if values.dtype.kind not in "fiub":
        raise UsageError(
            f"the model returned {type(result).__name__} of dtype {values.dtype}; a heatmap "
            "takes real numbers"
        )
    shape = values.shape
    while values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (1, 2) or values.shape[0] != n:
        raise UsageError(
            f"the model returned shape {shape} for {n} windows; a heatmap takes ({n},) or "
            f"({n}, k): average maps over their pixels, or keep the batch axis"
        )
    return values.astype(np.float32, copy=False)


def scale_into(target: Array, source: Array) -> None:
    """uint8 / 255 and uint16 / 65535 as float32; other types are cast as they are."""
    full = _full_scale(source.dtype)
    if full is None:
        target[...] = source
    else:
        np.divide(source, np.float32(full), out=target)


def _full_scale(dtype: np.dtype[Any]) -> int | None:
    return int(np.iinfo(dtype).max) if dtype in (np.uint8, np.uint16) else None


def _scaled_tensor(tensor: torch.Tensor) -> torch.Tensor:
    kind = str(tensor.dtype).removeprefix("torch.")
    full = {"uint8": 255.0, "uint16": 65535.0}.get(kind)
    tensor = tensor.float().contiguous()
    return tensor if full is None else tensor.div_(full)


def _device(model: Any) -> Any:
    """Where a module's first parameter or buffer is; the CPU when it has none."""
    import itertools

    import torch

    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")
