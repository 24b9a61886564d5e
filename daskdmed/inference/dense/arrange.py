"""Laying out the windows of a dense prediction: what the user says, and what the model gives.

The model is tried on background (windows) or on noise (dense mode); its map decides how many
pixels make a cell, and with that where windows, chunks and bands lie.

Not covered: running them (`daskdmed.inference.dense.predict`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from daskdmed.core.errors import BudgetError, GeometryError, UsageError
from daskdmed.core.view import ImageView
from daskdmed.inference.dense.blend import Blend, BlendMode
from daskdmed.inference.dense.convolutional import dense_axes, find_field
from daskdmed.inference.dense.mosaic import MosaicPlan, blended_axis, choose_mosaic
from daskdmed.inference.models.values import Cells, Layout
from daskdmed.inference.models.window import WindowModel, background_window
from daskdmed.tiling.grid import OverlapLike, PerAxis, per_axis, stride_of

#: of windows, when nothing is said
_OVERLAP = 0.25
#: bytes that one batch of windows may take as float32
_BATCH_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Mosaic:
    """What the trial of the model decided."""

    layout: Layout  # what the model gives for a window
    plan: MosaicPlan  # windows, chunks and bands
    blend: Blend | None  # weights; None in dense mode
    #: extent of a cell and distance between cells, in pixels
    place: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class WindowChoice:
    """What the user said about windows. Make it with `WindowChoice.of`."""

    view: ImageView
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    #: whether the stride was given as such, and must not be rounded to whole cells
    exact_stride: bool
    receptive_field: tuple[int, ...] | None  # these two for the exact dense mode
    output_stride: tuple[int, ...] | None

    @classmethod
    def of(
        cls,
        view: ImageView,
        kernel_size: PerAxis,
        stride: PerAxis | None,
        overlap: OverlapLike | None,
        receptive_field: PerAxis | None,
        output_stride: PerAxis | None,
    ) -> WindowChoice:
        """Check and normalise the keywords of `predict`."""
        ndim = view.spatial_ndim
        if 0 in view.shape:
            raise GeometryError(f"an image of shape {view.shape} has no pixels")
        kernel = per_axis(kernel_size, ndim, "kernel_size")
        if min(kernel) < 1:
            raise GeometryError(f"kernel_size must be at least 1 along every axis, got {kernel}")
        if (receptive_field is None) != (output_stride is None):
            raise UsageError(
                "receptive_field and output_stride declare a fully convolutional model together; "
                f"got receptive_field={receptive_field!r} and output_stride={output_stride!r}"
            )
        if receptive_field is not None and output_stride is not None:
            if stride is not None or overlap is not None:
                raise UsageError(
                    "receptive_field= runs the model over pieces that need no blending: leave "
                    "stride and overlap away"
                )
            reach = per_axis(receptive_field, ndim, "receptive_field")
            return cls(
                view, kernel, kernel, True, reach, per_axis(output_stride, ndim, "output_stride")
            )
        if stride is None and overlap is None:
            overlap = _OVERLAP
        steps = stride_of(kernel, stride, overlap)
        if not all(1 <= s <= k for s, k in zip(steps, kernel, strict=True)):
            raise GeometryError(
                f"stride={steps} must lie between 1 and kernel_size={kernel}, or pixels "
                "would get no prediction"
            )
        return cls(view, kernel, steps, stride is not None, None, None)

    def check_bytes(self, batch_size: int) -> None:
        """Refuse windows that cannot be meant, before memory is asked for."""
        channels = math.prod(self.view.channel_shape)
        one = 4 * channels * math.prod(self.kernel_size)
        if one * batch_size > _BATCH_BYTES:
            raise BudgetError(
                f"a batch of {batch_size} windows of {self.kernel_size} pixels x {channels} "
                f"channels takes {one * batch_size / 2**30:.1f} GiB as float32 (the limit is "
                f"{_BATCH_BYTES / 2**30:g} GiB), one window {one / 2**30:.2f} GiB; give a "
                "smaller kernel_size or batch_size, or a coarser level"
            )

    def try_model(
        self,
        model: WindowModel,
        blend: BlendMode,
        sigma_scale: float | Sequence[float],
        chunks: PerAxis | None,
    ) -> Mosaic:
        """Learn what the model gives, and lay out the windows."""
        if self.receptive_field is not None and self.output_stride is not None:
            return self._try_dense(model, self.receptive_field, self.output_stride, chunks)
        Blend.of(blend, self.kernel_size, sigma_scale=sigma_scale)  # before the model runs

        def fits(cells: Cells) -> bool:
            return all(c >= 1 and k % c == 0 for k, c in zip(self.kernel_size, cells, strict=True))

        window = background_window(self.view, self.kernel_size)
        layout, _ = model.layout_of_maps(
            window, len(self.kernel_size), fits, f"{self.kernel_size} pixels / a whole number"
        )
        reduction = tuple(k // c for k, c in zip(self.kernel_size, layout.cells, strict=True))
        steps = self._in_cells(reduction)
        axes = tuple(
            blended_axis(n, k, s, r)
            for n, k, s, r in zip(self.view.shape, self.kernel_size, steps, reduction, strict=False)
        )
        pitch = [s // r for s, r in zip(steps, reduction, strict=True)]
        plan = choose_mosaic(axes, max(layout.outputs, 1), pitch=pitch, chunk=self._chunks(chunks))
        weights = Blend.of(blend, self.kernel_size, reduction=reduction, sigma_scale=sigma_scale)
        return Mosaic(layout, plan, weights, (reduction, reduction))

    def _in_cells(self, reduction: tuple[int, ...]) -> tuple[int, ...]:
        """The stride in whole cells."""
        if self.exact_stride and any(s % r for s, r in zip(self.stride, reduction, strict=True)):
            raise GeometryError(
                f"stride={self.stride} is no multiple of the {reduction} pixels per output cell "
                "of this model; windows would lie between cells"
            )
        return tuple(max(s // r * r, r) for s, r in zip(self.stride, reduction, strict=True))

    def _try_dense(
        self,
        model: WindowModel,
        receptive_field: tuple[int, ...],
        output_stride: tuple[int, ...],
        chunks: PerAxis | None,
    ) -> Mosaic:
        field = find_field(model, self.view, receptive_field, output_stride)
        ndim = len(self.kernel_size)
        axes = dense_axes(self.view.shape[:ndim], self.kernel_size, field)
        kernel = tuple(axis.kernel_size for axis in axes)
        if field.padded:
            expected = tuple(k // u for k, u in zip(kernel, field.unit, strict=True))
        else:
            expected = tuple(
                (k - r) // s + 1
                for k, r, s in zip(kernel, receptive_field, output_stride, strict=True)
            )
        window = background_window(self.view, kernel)
        layout, _ = model.layout_of_maps(
            window, ndim, lambda cells: cells == expected, f"{expected} cells"
        )
        pitch = [max(axis.stops[0] - axis.starts[0], 1) for axis in axes]
        plan = choose_mosaic(axes, max(layout.outputs, 1), pitch=pitch, chunk=self._chunks(chunks))
        place = (field.unit if field.padded else receptive_field, field.unit)
        return Mosaic(layout, plan, None, place)

    def _chunks(self, chunks: PerAxis | None) -> tuple[int, ...] | None:
        if chunks is None:
            return None
        wanted = per_axis(chunks, len(self.kernel_size), "chunks")
        if min(wanted) < 1:
            raise GeometryError(f"chunks must be at least 1 along every axis, got {wanted}")
        return wanted
