"""Models that give a map per window: what they are given, and which shape they give back.

A ``torch.nn.Module`` gets float tensors, channels first, and gives (n, k, *cells); any other
callable gets the windows as the array they are, channels last. The shape is learnt from a
trial and then required of every batch.

Not covered: models that give values per window (`daskdmed.inference.models.window`), and what
becomes of the maps (`daskdmed.inference.dense.sweep`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from daskdmed.core.errors import BudgetError, UsageError
from daskdmed.core.types import Array, ImageView
from daskdmed.images import buffers
from daskdmed.inference.models.torchrun import device_of, precision
from daskdmed.inference.models.window import WindowModel, scale_into

Cells: TypeAlias = tuple[int, ...]
#: bytes that one batch of windows may take as float32
_BATCH_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Layout:
    """Shape of what a model gives for n windows.

    Parameters
    ----------
    outputs : int
        k, or 0 without a channel axis.
    cells : tuple of int
        Extent of the map.
    channels_last : bool
        Where the channel axis is, if there is one.
    """

    outputs: int
    cells: Cells
    channels_last: bool = False

    def shape(self, n: int) -> tuple[int, ...]:
        """As the model gives it."""
        if not self.outputs:
            return (n, *self.cells)
        k = (self.outputs,)
        return (n, *self.cells, *k) if self.channels_last else (n, *k, *self.cells)


@dataclass(frozen=True)
class MapModel:
    """A model, the conversion in front of it, and the layout of its output.

    Parameters
    ----------
    wrapped : WindowModel
        Placement, evaluation mode and fingerprint are its.
    layout : Layout, optional
        None before the trial.
    """

    wrapped: WindowModel
    layout: Layout | None = None

    def place(self) -> MapModel:
        """The model on its device, as a copy when it has to move."""
        return replace(self, wrapped=self.wrapped.place())

    def portable(self) -> MapModel:
        """The same model in a form that can be pickled."""
        return replace(self, wrapped=self.wrapped.portable())

    def raw(self, windows: Sequence[Array], spatial_ndim: int) -> Array:
        """What the model gives for windows of one shape.

        Parameters
        ----------
        windows : sequence of ndarray
            Each (*kernel[, c]), not changed.
        spatial_ndim : int
            Number of axes that are space.

        Returns
        -------
        ndarray
            Real numbers, in the layout of the model.
        """
        wrapped = self.wrapped
        if not wrapped.is_torch:
            batch = np.stack(windows)
            given = batch if wrapped.batch_tfms is None else wrapped.batch_tfms(batch)
            return _as_array(wrapped.model(given))
        batch = self._batch(windows, spatial_ndim)
        fixed = getattr(wrapped.model, "daskdmed_batch", None)
        if fixed is not None and len(batch) != fixed:
            return self._in_batches_of(int(fixed), batch)
        return wrapped.limit.run(self._forward, batch)

    def _batch(self, windows: Sequence[Array], spatial_ndim: int) -> Array:
        """Windows for a module in one array: scaled and channels first where that is left to
        the CPU, else as they are with the channels last."""
        first = windows[0]
        channels = first.shape[spatial_ndim:] or (1,)
        added = first.ndim == spatial_ndim
        if not self._scales_on_cpu:
            batch = np.stack(windows)
            return batch[..., None] if added else batch
        scaled = buffers.empty((len(windows), *channels, *first.shape[:spatial_ndim]), np.float32)
        for target, window in zip(scaled, windows, strict=True):
            to = np.moveaxis(target, 0, -1)
            scale_into(to[..., 0] if added else to, window)
        return scaled

    @property
    def _scales_on_cpu(self) -> bool:
        wrapped = self.wrapped
        return wrapped.batch_tfms is None and device_of(wrapped.model).type == "cpu"

    def _in_batches_of(self, fixed: int, batch: Array) -> Array:
        """For an exported program that takes one number of windows only."""
        values = []
        for a in range(0, len(batch), fixed):
            part = batch[a : a + fixed]
            full = np.concatenate([part, np.repeat(part[:1], fixed - len(part), axis=0)])
            values.append(self._forward(full)[: len(part)])
        return np.concatenate(values)

    def _forward(self, batch: Array) -> Array:
        import torch

        wrapped = self.wrapped
        device = device_of(wrapped.model)
        with precision(wrapped.autocast, device):
            tensor = torch.from_numpy(batch)
            if not self._scales_on_cpu:
                # channels-last memory seen as channels first, as the loader gives it
                tensor = torch.movedim(tensor, -1, 1).to(device)
                if wrapped.batch_tfms is not None:
                    tensor = wrapped.batch_tfms(tensor).to(device)
                else:
                    full = {"uint8": 255.0, "uint16": 65535.0}.get(str(batch.dtype))
                    tensor = tensor.float().contiguous()
                    tensor = tensor if full is None else tensor.div_(full)
            if wrapped.channels_last and tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            return _as_array(wrapped.model(tensor))

    def __call__(self, windows: Sequence[Array], spatial_ndim: int) -> Array:
        """Maps of windows of one shape, float32 (n, max(k, 1), *cells).

        Raises
        ------
        UsageError
            Another shape than in the trial, or values that are not finite.
        """
        assert self.layout is not None
        values = self.raw(windows, spatial_ndim)
        wanted = self.layout.shape(len(windows))
        if values.shape != wanted and not (
            self.layout.outputs == 0 and values.shape == _with_channel(wanted, values.shape)
        ):
            raise UsageError(
                f"the model returned shape {values.shape} for {len(windows)} windows, where "
                f"{wanted} follows from its first output; it must give the same for all batches"
            )
        return arranged(values, self.layout)

    def trial(
        self,
        windows: Sequence[Array],
        spatial_ndim: int,
        fits: Callable[[Cells], bool],
        wanted: str,
    ) -> tuple[MapModel, Array]:
        """Learn the layout from windows of one shape.

        Parameters
        ----------
        windows, spatial_ndim
            As in `raw`.
        fits : callable
            Which extents of a map are acceptable.
        wanted : str
            The same in words, for the error.

        Returns
        -------
        model : MapModel
            With its layout.
        values : ndarray
            As `__call__` gives them.

        Raises
        ------
        UsageError
            The output has no such shape.
        Exception
            Whatever the model raises, with a note.
        """
        try:
            values = self.raw(windows, spatial_ndim)
        except Exception as error:
            error.add_note(
                f"while trying the model on {len(windows)} window(s) of shape {windows[0].shape}"
            )
            raise
        layout = find_layout(
            values.shape, len(windows), spatial_ndim, fits, self.wrapped.is_torch, wanted
        )
        return replace(self, layout=layout), arranged(values, layout)


def arranged(values: Array, layout: Layout) -> Array:
    """Output of a model as float32 (n, max(k, 1), *cells), all of it finite."""
    if not layout.outputs:
        values = values.reshape(len(values), 1, *layout.cells)
    elif layout.channels_last:
        values = np.moveaxis(values, -1, 1)
    values = values.astype(np.float32, copy=False)
    # a sum is finite only when every part is, short of an overflow; then look closely
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(values.sum(dtype=np.float64))
    if suspicious and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise UsageError(
            f"the model returned {bad} of {values.size} values that are NaN or infinite; blending "
            "would spread them over their neighbours, and NaN means 'not computed' in a result: "
            "use float32 instead of half precision, or replace them within the model"
        )
    return values


def _with_channel(plain: tuple[int, ...], found: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a plain map with one channel, first or last as it was found."""
    n, *cells = plain
    return (n, 1, *cells) if found[1:2] == (1,) else (n, *cells, 1)


def find_layout(
    shape: tuple[int, ...],
    n: int,
    spatial_ndim: int,
    fits: Callable[[Cells], bool],
    channels_first: bool,
    wanted: str,
) -> Layout:
    """What the axes of an output are.

    A callable's channels may be last, as in its input, or first; where both would do, the
    map of nearly the shape of the window decides, and then "last".

    Raises
    ------
    UsageError
        Nothing fits.
    """
    found: list[Layout] = []
    if shape[:1] == (n,) and 0 not in shape:
        if len(shape) == spatial_ndim + 1 and fits(shape[1:]):
            found.append(Layout(0, shape[1:]))
        elif len(shape) == spatial_ndim + 2:
            if not channels_first and fits(shape[1:-1]):
                found.append(Layout(shape[-1], shape[1:-1], channels_last=True))
            if fits(shape[2:]):
                found.append(Layout(shape[1], shape[2:]))
    if not found:
        raise UsageError(
            f"the model returned shape {shape} for {n} window(s); dense prediction takes (n, "
            f"*map) or a channel axis beside it (first for a module), with a map of {wanted}; "
            "for one value per window use heatmap"
        )
    # the larger map: (n, 64, 64, 2) is two values per pixel and not 64 of (64, 2) cells
    layout = max(found, key=lambda f: math.prod(f.cells))
    return layout if layout.outputs != 1 else Layout(0, layout.cells)


def _as_array(result: Any) -> Array:
    """A model's output as an array of real numbers.

    Raises
    ------
    UsageError
        Several outputs, or no real numbers.
    """
    if isinstance(result, (dict, tuple, list)):
        raise UsageError(
            f"the model returned a {type(result).__name__} of {len(result)}; dense prediction "
            "takes one array: wrap the model in a function (or module) that picks the output"
        )
    if hasattr(result, "detach"):
        result = result.detach()
        if not result.is_floating_point() or result.element_size() < 4:
            result = result.float()
        result = result.cpu()
    values = np.asarray(result)
    if values.dtype.kind not in "fiub":
        raise UsageError(
            f"the model returned {type(result).__name__} of dtype {values.dtype}; dense "
            "prediction takes real numbers"
        )
    return values


def background_window(view: ImageView, shape: Sequence[int]) -> Array:
    """A window (*shape[, c]) of the view's background; no pixel is read."""
    channels = tuple(view.shape[view.spatial_ndim :])
    window = np.empty((*shape, *channels), view.dtype)
    window[...] = np.asarray(view.background, view.dtype)
    return window


def check_batch_bytes(view: ImageView, kernel: Sequence[int], batch_size: int) -> None:
    """Refuse windows that cannot be meant, before memory is asked for.

    Raises
    ------
    BudgetError
        A batch takes more than 8 GiB as float32.
    """
    channels = math.prod(view.shape[view.spatial_ndim :])
    one = 4 * channels * math.prod(kernel)
    if one * batch_size > _BATCH_BYTES:
        raise BudgetError(
            f"a batch of {batch_size} windows of {tuple(kernel)} pixels x {channels} channels "
            f"takes {one * batch_size / 2**30:.1f} GiB as float32 (the limit is "
            f"{_BATCH_BYTES / 2**30:g} GiB), one window {one / 2**30:.2f} GiB; give a smaller "
            "kernel_size or batch_size, or a coarser level"
        )
