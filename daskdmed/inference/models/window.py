"""What a model is given, and how it is run.

Two kinds of model: a ``torch.nn.Module`` (or a program in a file) gets float tensors,
channels first; any other callable gets the windows as the array they are.

Not covered: which windows make a batch (`daskdmed.tiling.strips`), what comes back
(`daskdmed.inference.models.values`), and how a model comes to the workers of a cluster
(`daskdmed.inference.cluster`).
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.fingerprint import fingerprint
from daskdmed.core.types import Array, ImageView
from daskdmed.images import buffers
from daskdmed.inference.models.programs import Program, is_program, is_scripted
from daskdmed.inference.models.torchrun import BatchLimit, autocast_dtype, device_of, precision
from daskdmed.inference.models.values import Layout, as_values, as_window_values
from daskdmed.tiling import strips as stripping
from daskdmed.tiling.extract import Allocate, Convert, Windows
from daskdmed.tiling.grid import WindowGrid
from daskdmed.tiling.strips import Strip

if TYPE_CHECKING:
    import torch

Model: TypeAlias = Callable[..., Any]
Transform: TypeAlias = Callable[[Any], Any]


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

    def outputs(self, windows: Windows, batch_size: int) -> Iterator[tuple[Array, Array]]:
        """Results of all kept windows of a block: (flat positions, values as in `stream`)."""
        strip = Strip(0, windows)
        return self.stream([strip], strip.count, windows.grid, windows.pixels, batch_size)

    def stream(
        self,
        strips: Iterable[Strip],
        total: int,
        grid: WindowGrid,
        like: Any,
        batch_size: int,
    ) -> Iterator[tuple[Array, Array]]:
        """Results of the windows of some strips of one block.

        Parameters
        ----------
        strips : iterable of Strip
            In order; a strip's memory may be used again when the next is asked for.
        total : int
            Windows that they keep.
        grid : WindowGrid
            Of the windows.
        like : ndarray or ImageView
            Shape and dtype as the pixels: spatial axes, then at most one of channels.
        batch_size : int
            Windows per call at most.

        Yields
        ------
        positions : ndarray of int
            Flat positions in the block.
        values : ndarray of float32
            See `daskdmed.inference.models.values.as_window_values`.
        """

        def size() -> int:
            return self.limit.of(batch_size)

        separate = not grid.overlapping and grid.edge != "shift"
        if separate and not self.is_torch:
            batches = stripping.views(strips, size)
        else:
            allocate, convert = self._copying(grid.kernel_size, like)
            batches = stripping.copies(strips, total, size, allocate, convert)
        for where, batch in batches:
            values = self(batch, grid.ndim)
            del batch  # so that its memory can be used for the next
            yield where, values

    def _copying(self, kernel: tuple[int, ...], like: Any) -> tuple[Allocate, Convert]:
        """How windows become a batch."""
        channels = tuple(like.shape[len(kernel) :])
        inner = (channels or (1,)) if self.is_torch else channels
        added = len(inner) > len(channels)
        dtype = np.dtype(np.float32) if self._scales_on_cpu else np.dtype(like.dtype)
        first = self._scales_on_cpu and not self.channels_last
        shape = (*inner, *kernel) if first else (*kernel, *inner)

        def allocate(n: int) -> Array:
            return buffers.empty((n, *shape), dtype)

        def convert(target: Array, source: Array) -> None:
            to = np.moveaxis(target, 1, -1) if first else target
            to = to[..., 0] if added else to
            if self._scales_on_cpu:
                scale_into(to, source)
            else:
                np.copyto(to, source)

        return allocate, convert

    @property
    def _scales_on_cpu(self) -> bool:
        if not self.is_torch or self.batch_tfms is not None:
            return False
        return bool(device_of(self.model).type == "cpu")

    def __call__(self, batch: Array, spatial_ndim: int = 2) -> Array:
        """Run the model on one batch, in smaller ones when memory runs out.

        Parameters
        ----------
        batch : ndarray
            As `stream` makes it.
        spatial_ndim : int
            Axes of a window.

        Returns
        -------
        ndarray of float32
            See `daskdmed.inference.models.values.as_window_values`.

        Raises
        ------
        UsageError
            The model's output is no such array.
        """
        return self.limit.run(lambda part: self._call(part, spatial_ndim), batch)

    def _call(self, batch: Array, spatial_ndim: int) -> Array:
        if not self.is_torch:
            given = batch if self.batch_tfms is None else self.batch_tfms(batch)
            return as_window_values(self.model(given), len(batch), spatial_ndim)
        fixed = getattr(self.model, "daskdmed_batch", None)
        if fixed is None or len(batch) == fixed:
            return self._forward(batch, spatial_ndim)
        # an exported program may take one number of windows only: fill up, and cut off
        values = []
        for a in range(0, len(batch), fixed):
            part = batch[a : a + fixed]
            full = np.concatenate([part, np.repeat(part[:1], fixed - len(part), axis=0)])
            values.append(self._forward(full, spatial_ndim)[: len(part)])
        return np.concatenate(values)

    def _forward(self, batch: Array, spatial_ndim: int) -> Array:
        import torch

        device = device_of(self.model)
        with precision(self.autocast, device):
            tensor = torch.from_numpy(batch)
            if not self._scales_on_cpu:
                # channels-last memory seen as channels first, as the loader gives it
                tensor = torch.movedim(tensor, -1, 1).to(device)
                if self.batch_tfms is None:
                    tensor = _scaled_tensor(tensor, self.channels_last)
                else:
                    tensor = self.batch_tfms(tensor).to(device)
            elif self.channels_last:
                tensor = torch.movedim(tensor, -1, 1)
            return as_window_values(self.model(tensor), len(batch), spatial_ndim)

    def probe(self, view: ImageView, kernel_size: tuple[int, ...], batch_size: int) -> int:
        """Values per window (0 for one plain value), for models that give no maps.

        See `layout`.
        """
        found = self.layout(view, kernel_size, batch_size)
        if found.cells:
            raise UsageError(f"the model gave {found}; one value or k values are needed here")
        return found.outputs

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
        n = min(2, batch_size)
        channels = tuple(view.shape[view.spatial_ndim :])
        background = np.empty((n, *kernel_size, *channels), view.dtype)
        background[...] = np.asarray(view.background, view.dtype)
        batch = background
        if self.is_torch:
            allocate, convert = self._copying(kernel_size, view)
            batch = allocate(n)
            convert(batch, background)
        try:
            values = self(batch, len(kernel_size))
        except Exception as error:
            error.add_note(f"while trying the model on {n} windows of background")
            raise
        return Layout.of(values, len(kernel_size))


def scale_into(target: Array, source: Array) -> None:
    """uint8 / 255 and uint16 / 65535 as float32; other types are cast as they are."""
    full = _full_scale(source.dtype)
    if full is None:
        target[...] = source
    elif target.strides[-1] != target.itemsize and target.shape[-1] <= 4:
        # channels become planes: one at a time has long runs, and takes a third of the time
        for channel in range(target.shape[-1]):
            np.divide(source[..., channel], np.float32(full), out=target[..., channel])
    else:
        np.divide(source, np.float32(full), out=target)


def _full_scale(dtype: np.dtype[Any]) -> int | None:
    return int(np.iinfo(dtype).max) if dtype in (np.uint8, np.uint16) else None


def _scaled_tensor(tensor: torch.Tensor, channels_last: bool = False) -> torch.Tensor:
    kind = str(tensor.dtype).removeprefix("torch.")
    full = {"uint8": 255.0, "uint16": 65535.0}.get(kind)
    tensor = tensor.float()
    if not channels_last:
        tensor = tensor.contiguous()
    # what had to be cast is a copy already
    return tensor if full is None else tensor.div_(full)


__all__ = ["Model", "Transform", "WindowModel", "as_values", "scale_into"]
