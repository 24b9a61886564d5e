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
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daskdmed.core import buffers
from daskdmed.core.errors import UsageError
from daskdmed.core.fingerprint import fingerprint
from daskdmed.core.intensity import full_scale
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.inference.models.outputs import Output, as_numbers, check_output
from daskdmed.inference.models.programs import Program, is_program, is_scripted
from daskdmed.inference.models.torchrun import (
    BatchLimit,
    autocast_dtype,
    cpu_threads,
    device_of,
    evaluation,
    input_dtype,
    is_training,
    precision,
)
from daskdmed.inference.models.values import Cells, Layout, as_window_values

if TYPE_CHECKING:
    import torch

Model: TypeAlias = Callable[..., Any]
Transform: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class BatchForm:
    """How windows lie in the array that a model gets."""

    shape: tuple[int, ...]  # of one window in a batch
    dtype: np.dtype[Any]
    scaled: bool  # samples are brought to the scale of networks on the way
    channels_first: bool  # the channel axis, the last one of a window, is the first one here
    channel_added: bool  # windows have no channel axis, and get one of length 1

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


def check_model(model: Any) -> None:
    """Refuse what is no model, and say how to make one of it."""
    known = is_program(model) or isinstance(model, Program)
    if known or (callable(model) and not isinstance(model, type)):
        return
    hint = ""
    if isinstance(model, type):
        hint = f"; this is the class itself, make an instance of it: {model.__name__}(...)"
    elif isinstance(model, Mapping):
        hint = (
            "; a state_dict or checkpoint holds weights only: build the module, load_state_dict "
            "them, and give the module"
        )
    raise UsageError(
        "model must be a torch.nn.Module, a path of a program, or a callable, got "
        f"{'None' if model is None else type(model).__name__}{hint}"
    )


@dataclass(frozen=True)
class WindowModel:
    """A model with the conversion in front of it and behind it; see `daskdmed.heatmap`."""

    model: Any
    batch_tfms: Transform | None = None
    device: Any = None
    autocast: Any = None
    channels_last: bool = False
    output: Output | None = None
    #: axes of windows that have one pixel are dropped, and put back in maps
    squeeze: bool = False
    limit: BatchLimit = field(default_factory=BatchLimit, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_model(self.model)
        check_output(self.output)
        if is_program(self.model):
            object.__setattr__(self, "model", Program.of(self.model))
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

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the model, its transform, and which of its outputs is meant."""
        model = _uncompiled(self.model)
        parts: Any = model if self.batch_tfms is None else (model, self.batch_tfms)
        parts = parts if self.output is None else (parts, "output", self.output)
        return fingerprint((parts, "squeeze") if self.squeeze else parts)

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
        """The same in a form that can be pickled: scripted and compiled modules cannot."""
        if is_scripted(self.model):
            return replace(self, model=Program.of(self.model))
        return replace(self, model=_uncompiled(self.model))

    @property
    def _module(self) -> Any:
        """The module whose mode matters; None for callables and exported programs."""
        fixed = isinstance(self.model, Program) or hasattr(self.model, "daskdmed_batch")
        return self.model if self.is_torch and not fixed else None

    def in_evaluation(self) -> WindowModel:
        """The same model in evaluation mode for good; a copy where it is not in that mode."""
        if self._module is None or not is_training(self._module):
            return self
        return replace(self, model=copy.deepcopy(self._module).eval())

    @contextlib.contextmanager
    def ready(self, workers: int = 1) -> Iterator[None]:
        """Evaluation mode and a fair share of CPU threads per worker; both are put back."""
        with evaluation(self._module), cpu_threads(workers if self.is_torch else 0):
            yield

    def form(self, kernel: tuple[int, ...], like: Any) -> BatchForm:
        """How windows are laid into a batch.

        `like` has shape and dtype as the pixels: spatial axes, then at most one of channels.
        """
        channels = tuple(like.shape[len(kernel) :])
        inner = (channels or (1,)) if self.is_torch else channels
        scaled = self._scales_on_cpu
        first = scaled and not self.channels_last
        return BatchForm(
            shape=(*inner, *kernel) if first else (*kernel, *inner),
            dtype=self._scaled_dtype if scaled else np.dtype(like.dtype),
            scaled=scaled,
            channels_first=first,
            channel_added=len(inner) > len(channels),
        )

    @property
    def _scales_on_cpu(self) -> bool:
        return self.is_torch and self.batch_tfms is None and self.device_type == "cpu"

    @property
    def _scaled_dtype(self) -> np.dtype[Any]:
        """Half precision begins as float32, which NumPy divides faster, and is cast by torch."""
        wide = str(input_dtype(self.model)) == "torch.float64"
        return np.dtype(np.float64 if wide else np.float32)

    @property
    def device_type(self) -> str:
        """Where a module runs; a program that is not loaded yet says so by `device` only."""
        if self.device is not None:
            return str(self.device).split(":")[0]
        return str(device_of(self.model).type) if hasattr(self.model, "parameters") else "cpu"

    def __call__(self, batch: Array, spatial_ndim: int = 2) -> Array:
        """Real numbers as the model gives them for a batch, in smaller ones when memory runs out.

        The batch is as `form` lays it out, or windows as they are for a callable; among its axes
        of space those of one pixel may be dropped. Raises UsageError where the output is no
        array of numbers.
        """
        if not self.squeeze:
            return self.limit.run(self._call, batch)
        lead = 2 if self._scales_on_cpu and not self.channels_last else 1
        dropped = [a for a in range(spatial_ndim) if batch.shape[lead + a] == 1]
        flat = batch.squeeze(tuple(lead + a for a in dropped))
        values = self.limit.run(self._call, flat)
        kept = spatial_ndim - len(dropped)
        if values.ndim <= kept:  # no maps
            return values
        # k maps have their channel axis where the input has it
        first = 2 if values.ndim > kept + 1 and self.is_torch else 1
        return np.expand_dims(values, tuple(first + a for a in dropped))

    def _call(self, batch: Array) -> Array:
        if not self.is_torch:
            given = batch if self.batch_tfms is None else self.batch_tfms(batch)
            return as_numbers(self.model(given), len(batch), self.output, module=False)
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

        device, kind = device_of(self.model), input_dtype(self.model)
        with precision(self.autocast, device):
            tensor: Any = torch.from_numpy(batch)
            if not self._scales_on_cpu:
                # channels-last memory seen as channels first, as the loader gives it
                tensor = torch.movedim(tensor, -1, 1).to(device)
                if self.batch_tfms is None:
                    tensor = scaled_tensor(tensor, self.channels_last, kind)
                else:
                    tensor = self.batch_tfms(tensor).to(device)
            elif self.channels_last:
                tensor = torch.movedim(tensor, -1, 1)
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor = tensor.to(kind)
            return as_numbers(self.model(tensor), len(batch), self.output, module=True)

    def values(self, batch: Array, spatial_ndim: int) -> Array:
        """Values of the windows of one batch, see `as_window_values`."""
        return as_window_values(self(batch, spatial_ndim), len(batch), spatial_ndim)

    def maps(self, windows: Sequence[Array], layout: Layout, where: Callable[[int], str]) -> Array:
        """Maps (n, max(k, 1), *cells) of windows (*kernel[, c]), see `Layout.arrange`."""
        return layout.arrange(self._on(windows, len(layout.cells)), len(windows), where)

    def _on(self, windows: Sequence[Array], spatial_ndim: int) -> Array:
        first = windows[0]
        batch = self.form(first.shape[:spatial_ndim], first).stack(windows)
        return self(batch, spatial_ndim)

    def layout(self, view: ImageView, kernel_size: tuple[int, ...], batch_size: int) -> Layout:
        """Shape of the values of a window, learnt from windows of background.

        A slide is full of background, so that every model must take it; no pixel is read.
        What the model raises gets a note.
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

        For `fits` and `wanted` see `Layout.of_maps`. What the model raises gets a note.
        """
        with _trying([window]):
            values = self._on([window], spatial_ndim)
        first = self.is_torch
        layout = Layout.of_maps(
            values.shape, 1, spatial_ndim, fits, channels_first=first, wanted=wanted
        )
        return layout, layout.arrange(values, 1, lambda i: "the one that it was tried on")[0]


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
    """Copy samples into floats, on the scale of `daskdmed.core.intensity`."""
    full = full_scale(source.dtype)
    if full is None:
        target[...] = source
        return
    by = target.dtype.type(full)
    if target.strides[-1] != target.itemsize and target.shape[-1] <= 4:
        # channels become planes: one at a time has long runs, and takes a third of the time
        for channel in range(target.shape[-1]):
            np.divide(source[..., channel], by, out=target[..., channel])
    else:
        np.divide(source, by, out=target)


def scaled_tensor(tensor: torch.Tensor, channels_last: bool, kind: Any = None) -> torch.Tensor:
    """Samples as float32 on the scale of `daskdmed.core.intensity`, where the tensor is.

    `kind` is the type that they shall have in the end: double precision is computed as such.
    """
    full = full_scale(tensor.dtype)
    tensor = tensor.double() if str(kind) == "torch.float64" else tensor.float()
    if not channels_last:
        tensor = tensor.contiguous()
    # what had to be cast is a copy already
    return tensor if full is None else tensor.div_(full)


def _uncompiled(model: Any) -> Any:
    """The module inside of one that ``torch.compile`` made."""
    return getattr(model, "_orig_mod", model)
