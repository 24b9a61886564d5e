"""What a model is given, and how it is run: the one adapter over all that users give.

Two kinds of model: a ``torch.nn.Module`` (or a program in a file) gets float tensors,
channels first, on the scale of `daskdmed.core.intensity`; any other callable gets the
windows as the array they are, channels last.

Not covered: which windows make a batch (`daskdmed.tiling.strips`,
`daskdmed.inference.dense.sweep`), what comes back (`daskdmed.inference.models.values`), and
how a model comes to the workers of a cluster (`daskdmed.inference.models.shipped`).
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.errors import UsageError
from daskdmed.core.fingerprint import fingerprint
from daskdmed.core.intensity import full_scale
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.inference.models.programs import Program, is_program, is_scripted
from daskdmed.inference.models.torchrun import BatchLimit, autocast_dtype, device_of, precision
from daskdmed.inference.models.values import Cells, Layout, as_numbers, as_window_values

if TYPE_CHECKING:
    import torch

Model: TypeAlias = Callable[..., Any]
Transform: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class BatchForm:
    """How windows lie in the array that a model gets.

    Parameters
    ----------
    shape : tuple of int
        Of one window in a batch.
    dtype : dtype
        Of a batch.
    scaled : bool
        Whether samples are brought to the scale of networks on the way.
    channels_first : bool
        Whether the channel axis, the last one of a window, is the first one here.
    channel_added : bool
        Whether windows have no channel axis, and get one of length 1.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scaled: bool
    channels_first: bool
    channel_added: bool

    def allocate(self, n: int) -> Array:
        """Room for `n` windows."""
        return buffers.empty((n, *self.shape), self.dtype)

    def convert(self, target: Array, source: Array) -> None:
        """Copy windows (n, *kernel[, c]) into a part of a batch."""
        to = np.moveaxis(target, 1, -1) if self.channels_first else target
        to = to[..., 0] if self.channel_added else to
        if self.scaled:
            scale_into(to, source)
        else:
            np.copyto(to, source)

    def stack(self, windows: Sequence[Array]) -> Array:
        """A batch of windows (*kernel[, c]) of one shape."""
        batch = self.allocate(len(windows))
        for i, window in enumerate(windows):
            self.convert(batch[i : i + 1], window[None])
        return batch


@dataclass(frozen=True)
class WindowModel:
    """A model with the conversion in front of it and behind it.

    Parameters
    ----------
    model : torch.nn.Module, callable, path or exported program
        See `daskdmed.inference.heatmap.heatmap`.
    batch_tfms : callable, optional
        What becomes of a batch before the model sees it.
    device : str or torch.device, optional
        Where a module runs. Default: where its parameters are.
    autocast : bool, str or torch.dtype, optional
        Run a module with mixed precision.
    channels_last : bool
        Give a module its weights and batches with the channels last in memory.
    limit : BatchLimit
        How many windows fit into memory.
    """

    model: Any
    batch_tfms: Transform | None = None
    device: Any = None
    autocast: Any = None
    channels_last: bool = False
    limit: BatchLimit = field(default_factory=BatchLimit, compare=False, repr=False)

    def __post_init__(self) -> None:
        if is_program(self.model):
            object.__setattr__(self, "model", Program.of(self.model))
        if not callable(self.model) and not isinstance(self.model, Program):
            raise UsageError(
                f"model must be a torch.nn.Module, a path of a program, or a callable, got "
                f"{type(self.model).__name__}"
            )
        if self.is_torch:
            autocast_dtype(self.autocast)
            return
        for name, given in (
            ("device=", self.device is not None),
            ("autocast=", bool(self.autocast)),
            ("channels_last=", self.channels_last),
        ):
            if given:
                raise UsageError(
                    f"{name} is for a torch.nn.Module; this model is a plain callable, which "
                    "chooses its device, precision and memory layout itself"
                )

    @property
    def is_torch(self) -> bool:
        """Whether the model is a ``torch.nn.Module`` or becomes one."""
        if isinstance(self.model, Program):
            return True
        module = sys.modules.get("torch")
        return module is not None and isinstance(self.model, module.nn.Module)

    @property
    def fingerprint(self) -> str:
        """Digest of the model and its transform."""
        parts = (self.model, self.batch_tfms)
        return fingerprint(parts if self.batch_tfms is not None else self.model)

    def place(self) -> WindowModel:
        """The model ready to be called: loaded, and on its device (a copy when it moves)."""
        if not self.is_torch:
            return self
        if isinstance(self.model, Program):
            return replace(self, model=self._arranged(self.model.load(self.device)))
        import torch

        wanted = None if self.device is None else torch.device(self.device)
        moves = wanted is not None and device_of(self.model) != wanted
        if not moves and not self.channels_last:
            return self
        model: Any = copy.deepcopy(self.model)
        return replace(self, model=self._arranged(model.to(wanted) if moves else model))

    def _arranged(self, model: Any) -> Any:
        if not self.channels_last:
            return model
        import torch

        return model.to(memory_format=torch.channels_last)

    def portable(self) -> WindowModel:
        """The same model in a form that can be pickled: scripted modules cannot."""
        if is_scripted(self.model):
            return replace(self, model=Program.of(self.model))
        return self

    def in_evaluation(self) -> WindowModel:
        """The same model in evaluation mode for good; a copy where it is not in that mode."""
        module: Any = self.model
        if not self.is_torch or isinstance(module, Program) or hasattr(module, "daskdmed_batch"):
            return self
        if not any(part.training for part in module.modules()):
            return self
        return replace(self, model=copy.deepcopy(module).eval())

    @contextlib.contextmanager
    def ready(self, workers: int = 1) -> Iterator[None]:
        """Evaluation mode and a fair share of CPU threads per worker; both are put back."""
        if not self.is_torch:
            yield
            return
        import torch
        from dask.system import CPU_COUNT

        exported = isinstance(self.model, Program) or hasattr(self.model, "daskdmed_batch")
        modules = [] if exported else list(self.model.modules())
        modes = [module.training for module in modules]
        threads = torch.get_num_threads()
        if modules:
            self.model.eval()
        torch.set_num_threads(max(1, min(threads, CPU_COUNT // max(workers, 1))))
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for module, training in zip(modules, modes, strict=True):
                if module.training != training:
                    module.training = training

    def form(self, kernel: tuple[int, ...], like: Any) -> BatchForm:
        """How windows are laid into a batch.

        Parameters
        ----------
        kernel : tuple of int
            Extent of a window.
        like : ndarray or ImageView
            Shape and dtype as the pixels: spatial axes, then at most one of channels.
        """
        channels = tuple(like.shape[len(kernel) :])
        inner = (channels or (1,)) if self.is_torch else channels
        scaled = self._scales_on_cpu
        first = scaled and not self.channels_last
        return BatchForm(
            shape=(*inner, *kernel) if first else (*kernel, *inner),
            dtype=np.dtype(np.float32) if scaled else np.dtype(like.dtype),
            scaled=scaled,
            channels_first=first,
            channel_added=len(inner) > len(channels),
        )

    @property
    def _scales_on_cpu(self) -> bool:
        return self.is_torch and self.batch_tfms is None and self.device_type == "cpu"

    @property
    def device_type(self) -> str:
        """Where a module runs; a program that is not loaded yet says so by `device` only."""
        if self.device is not None:
            return str(self.device).split(":")[0]
        return str(device_of(self.model).type) if hasattr(self.model, "parameters") else "cpu"

    def __call__(self, batch: Array) -> Array:
        """Run the model on one batch, in smaller ones when memory runs out.

        Parameters
        ----------
        batch : ndarray
            As `form` lays it out, or windows as they are for a callable.

        Returns
        -------
        ndarray
            Real numbers, as the model gives them.

        Raises
        ------
        UsageError
            The model's output is no array of numbers.
        """
        return self.limit.run(self._call, batch)

    def _call(self, batch: Array) -> Array:
        if not self.is_torch:
            given = batch if self.batch_tfms is None else self.batch_tfms(batch)
            return as_numbers(self.model(given), len(batch), module=False)
        fixed = getattr(self.model, "daskdmed_batch", None)
        if fixed is None or len(batch) == fixed:
            return self._forward(batch)
        # an exported program may take one number of windows only: fill up, and cut off
        values = []
        for a in range(0, len(batch), fixed):
            part = batch[a : a + fixed]
            full = np.concatenate([part, np.repeat(part[:1], fixed - len(part), axis=0)])
            values.append(self._forward(full)[: len(part)])
        return np.concatenate(values)

    def _forward(self, batch: Array) -> Array:
        import torch

        device = device_of(self.model)
        with precision(self.autocast, device):
            tensor = torch.from_numpy(batch)
            if not self._scales_on_cpu:
                # channels-last memory seen as channels first, as the loader gives it
                tensor = torch.movedim(tensor, -1, 1).to(device)
                if self.batch_tfms is None:
                    tensor = scaled_tensor(tensor, self.channels_last)
                else:
                    tensor = self.batch_tfms(tensor).to(device)
            elif self.channels_last:
                tensor = torch.movedim(tensor, -1, 1)
            return as_numbers(self.model(tensor), len(batch), module=True)

    def values(self, batch: Array, spatial_ndim: int) -> Array:
        """Values of the windows of one batch, see `as_window_values`."""
        return as_window_values(self(batch), len(batch), spatial_ndim)

    def maps(self, windows: Sequence[Array], layout: Layout) -> Array:
        """Maps of windows of one shape, each (*kernel[, c]), which are not changed.

        Returns
        -------
        ndarray of float32
            (n, max(k, 1), *cells).

        Raises
        ------
        UsageError
            Another shape than `layout`, or values that are not finite.
        """
        return layout.arrange(self._on(windows, len(layout.cells)), len(windows))

    def _on(self, windows: Sequence[Array], spatial_ndim: int) -> Array:
        first = windows[0]
        return self(self.form(first.shape[:spatial_ndim], first).stack(windows))

    def layout(self, view: ImageView, kernel_size: tuple[int, ...], batch_size: int) -> Layout:
        """Shape of the values of a window, learnt from windows of background.

        A slide is full of background, so that every model must take it; no pixel is read.

        Raises
        ------
        UsageError
            The model's output is not of a shape that a heatmap takes.
        Exception
            Whatever the model raises, with a note.
        """
        windows = [background_window(view, kernel_size)] * min(2, batch_size)
        with _trying(windows, "of background"):
            values = self._on(windows, len(kernel_size))
            values = as_window_values(values, len(windows), len(kernel_size))
        return Layout.of(values, len(kernel_size))

    def layout_of_maps(
        self, window: Array, spatial_ndim: int, fits: Callable[[Cells], bool], wanted: str
    ) -> tuple[Layout, Array]:
        """Shape of the map of a window, learnt from one, and that map (max(k, 1), *cells).

        Parameters
        ----------
        window : ndarray
            (*kernel[, c]).
        spatial_ndim, fits, wanted
            See `Layout.of_maps`.

        Raises
        ------
        UsageError
            The output has no such shape.
        Exception
            Whatever the model raises, with a note.
        """
        with _trying([window]):
            values = self._on([window], spatial_ndim)
        first = self.is_torch
        layout = Layout.of_maps(
            values.shape, 1, spatial_ndim, fits, channels_first=first, wanted=wanted
        )
        return layout, layout.arrange(values, 1)[0]


def background_window(view: ImageView, shape: Sequence[int]) -> Array:
    """A window (*shape[, c]) of the view's background to try a model on; no pixel is read."""
    window = np.zeros((*shape, *view.channel_shape), view.dtype)
    with contextlib.suppress(UsageError):  # where nothing is known to be empty, 0 will do
        window[...] = view.background
    return window


@contextlib.contextmanager
def _trying(windows: Sequence[Array], what: str = "") -> Iterator[None]:
    """Say on what a model was tried."""
    try:
        yield
    except Exception as error:
        shown = f"{len(windows)} window(s) {what}".rstrip()
        error.add_note(f"while trying the model on {shown}, each of shape {windows[0].shape}")
        raise


def scale_into(target: Array, source: Array) -> None:
    """Copy samples into float32, on the scale of `daskdmed.core.intensity`."""
    full = full_scale(source.dtype)
    if full is None:
        target[...] = source
    elif target.strides[-1] != target.itemsize and target.shape[-1] <= 4:
        # channels become planes: one at a time has long runs, and takes a third of the time
        for channel in range(target.shape[-1]):
            np.divide(source[..., channel], np.float32(full), out=target[..., channel])
    else:
        np.divide(source, np.float32(full), out=target)


def scaled_tensor(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Samples as float32 on the scale of `daskdmed.core.intensity`, where the tensor is."""
    full = full_scale(tensor.dtype)
    tensor = tensor.float()
    if not channels_last:
        tensor = tensor.contiguous()
    # what had to be cast is a copy already
    return tensor if full is None else tensor.div_(full)


__all__ = [
    "BatchForm",
    "Model",
    "Transform",
    "WindowModel",
    "background_window",
    "scale_into",
    "scaled_tensor",
]
