"""Neighbouring slices as channels: "2.5D" input of 2-D networks.

`Context` says how many slices on either side of each wanted one, reads them, and lays them
side by side as channels. `ContextView` is an image seen that way.

Not covered: which slices are wanted (`daskdmed.loading`, `daskdmed.inference`), and dropping
the axis of one slice for a network over planes (``squeeze=`` of those who make batches).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from daskdmed.core import buffers
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView, ViewOver
from daskdmed.images.parts import Parts, read_some

if TYPE_CHECKING:
    import dask.array as da

#: slices on either side of each wanted one: along the first axis, or one number per axis
ContextLike: TypeAlias = int | Sequence[int]
#: what lies beyond the ends of a volume, in the words of ``numpy.pad``
ContextEdge: TypeAlias = Literal["reflect", "edge", "constant"]


def context_of(context: ContextLike | None, axes: int) -> tuple[int, ...]:
    """Slices on each side along each axis, from what users write: a number is of the first axis
    of a volume, None is none. GeometryError for what is no context."""
    if context is None:
        return (0,) * axes
    given: tuple[Any, ...] = (context, *(0,) * (axes - 1))
    if isinstance(context, Sequence):
        given = tuple(context)
    numbers = all(hasattr(k, "__index__") and not isinstance(k, bool) and k >= 0 for k in given)
    if axes < 3 or len(given) != axes or not numbers:
        raise GeometryError(
            f"context={context!r} is whole numbers of neighbouring slices on each side, of the "
            f"first axis (1) or along each axis of a volume (1, 0, 0); this has {axes} axes"
        )
    return tuple(int(k) for k in given)


def neighbours(
    begin: int, stop: int, reach: int, size: int, edge: ContextEdge = "reflect"
) -> npt.NDArray[np.intp]:
    """Where on an axis of `size` the pixels from ``begin - reach`` to ``stop + reach`` are taken
    from, mirrored at the ends or the last ones."""
    at = np.arange(begin - reach, stop + reach)
    if edge == "edge":
        return np.clip(at, 0, size - 1)
    period = max(2 * (size - 1), 1)
    found: npt.NDArray[np.intp] = np.abs((at + size - 1) % period - (size - 1))
    return found


def with_context(
    view: ImageView, context: ContextLike | None, edge: ContextEdge = "reflect"
) -> ImageView:
    """A view whose channels are those of each slice and of its neighbours, the one before first,
    the channels of one slice side by side; itself without any."""
    wanted = None if context is None else Context.of(context, view.spatial_ndim, edge)
    return view if wanted is None else ContextView(view, wanted)


@dataclass(frozen=True)
class Context:
    """How many pixels before and behind along each spatial axis become channels.

    `edge`: beyond the ends of the image lies the image mirrored at its first and last slice
    ("reflect"), these themselves ("edge"), or the background ("constant").
    """

    around: tuple[int, ...]
    edge: ContextEdge = "reflect"

    @classmethod
    def of(
        cls, context: ContextLike | None, axes: int, edge: ContextEdge = "reflect"
    ) -> Context | None:
        """From what users give, a number is of the first axis; None where there is none."""
        if edge not in get_args(ContextEdge):
            raise UsageError(f"context_edge is one of {get_args(ContextEdge)}, got {edge!r}")
        around = context_of(context, axes)
        return cls(around, edge) if any(around) else None

    @property
    def count(self) -> int:
        """Pixels that lie side by side in the place of one."""
        return math.prod(2 * k + 1 for k in self.around)

    def grown(self, region: Region) -> Region:
        """A region with what lies around it, be that outside the image or not."""
        return region.pad(self.around, self.around)

    def needs(self, view: ImageView, region: Region) -> Region:
        """The pixels of an image that `read` of a region looks at."""
        return self.grown(region).clip(view.spatial_shape)

    def read(self, view: ImageView, region: Region, parts: Parts | None = None) -> Array:
        """The pixels of a region and those around it; the region may reach outside.

        With `parts` of what is around it too, no more is read.
        """
        grown = self.grown(region)
        if self.edge == "constant" or grown.within(view.spatial_shape):
            return read_some(view, grown, parts)
        first, stop, picked = list(grown.origin), list(grown.stop), {}
        for axis, k in enumerate(self.around):
            if k:
                begin, end = region.origin[axis], region.stop[axis]
                at = neighbours(begin, end, k, view.spatial_shape[axis], self.edge)
                first[axis], stop[axis] = int(at.min()), int(at.max()) + 1
                picked[axis] = at - first[axis]
        values = read_some(view, Region.between(first, stop), parts)
        for axis, at in picked.items():
            values = values.take(at, axis=axis)
        return values

    def beside(self, grown: Array, out: Array) -> Iterator[tuple[Array, Array]]:
        """Copies, (part of `out`, its source), that lay ``(*region[, c])`` and what is around it
        side by side as the channels of `out`: all of the first offset, then of the next."""
        axes = len(self.around)
        shape = out.shape[:axes]
        each = out.shape[-1] // self.count
        for i, offset in enumerate(itertools.product(*(range(2 * k + 1) for k in self.around))):
            part = grown[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))]
            yield out[..., i * each : (i + 1) * each], part if part.ndim > axes else part[..., None]


@dataclass(frozen=True, eq=False, repr=False)
class ContextView(ViewOver):
    """An image whose pixels have those around them as channels, the first offset first."""

    source: ImageView
    context: Context

    @property
    def shape(self) -> tuple[int, ...]:
        channels = math.prod(self.source.channel_shape) * self.context.count
        return (*self.source.spatial_shape, channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    @property
    def background(self) -> Array:
        return np.tile(np.reshape(self.source.background, -1), self.context.count)

    @functools.cached_property
    def token(self) -> str:
        name = repr((self.source.token, self.context))
        return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()

    def as_labels(self) -> ContextView:
        """The same over a map of labels."""
        return replace(self, source=self.source.as_labels())

    def narrowed(self, region: Region) -> ContextView:
        return replace(self, source=self.source.narrowed(self.context.needs(self.source, region)))

    def detached(self, region: Region) -> ContextView:
        return replace(self, source=self.source.detached(self.context.needs(self.source, region)))

    def attached(self, values: Array) -> ContextView:
        return replace(self, source=self.source.attached(values))

    def delivery(self, region: Region) -> da.Array:
        return self.source.delivery(self.context.needs(self.source, region))

    def _read(self, region: Region, out: Array | None) -> Array:
        if out is None:
            out = buffers.empty((*region.shape, *self.channel_shape), self.dtype)
        for part, source in self.context.beside(self.context.read(self.source, region), out):
            np.copyto(part, source)
        return out
