"""From a block of windows to batches of pixels.

The pixels of a block are read once, padded with the background, and cut into batches. Where
windows lie side by side a batch is a strided view, so that nothing is copied; where they
were shifted, or a model wants its own layout, they are copied once. Where they overlap, those
that share no pixel make up batches, out of pixels that are each group's own.

Not covered: where windows lie (`daskdmed.tiling.grid`), what models do with batches
(`daskdmed.inference.models`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from daskdmed.core import buffers, lending
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.images.parts import Boxes, read_parts
from daskdmed.tiling.grid import WindowBlock, WindowGrid

#: makes the array that windows are copied into: (number of windows) -> array
Allocate = Callable[[int], Array]
#: copies windows (n, *kernel[, c]) into a part of such an array
Convert = Callable[[Array, Array], None]


def read_block(
    view: ImageView, block: WindowBlock, grid: WindowGrid, keep: Array | None = None
) -> Array:
    """Pixels that the windows of a block span; the background of the view outside the image, and
    possibly under no window that is kept."""
    region = Region(block.region.origin, block.extent)
    boxes = kept_boxes(view, block, grid, keep)
    return view.read_padded(region) if boxes is None else read_parts(view, region, boxes)


def kept_boxes(
    view: ImageView, block: WindowBlock, grid: WindowGrid, keep: Array | None
) -> Boxes | None:
    """The pixels of the windows of a block that are kept, where the storage tiles under no other
    can be left out; None to read everything."""
    if not view.cheap_to_cut or keep is None or keep.all():
        return None
    where = np.nonzero(keep)
    origins = [
        np.asarray(o)[i] + first
        for o, i, first in zip(block.origins, where, block.region.origin, strict=True)
    ]
    return Boxes.at(np.stack(origins, axis=-1), grid.kernel_size)


@dataclass(frozen=True)
class Windows:
    """The windows of one block, over its pixels; where `keep` is False they are left out."""

    pixels: Array
    block: WindowBlock
    grid: WindowGrid
    keep: Array | None = None

    def row(self, lead: tuple[int, ...], begin: int, stop: int, step: int = 1) -> Array:
        """Neighbouring windows along the last axis, or every `step`-th, (n, *kernel[, c]).

        A strided view where the windows are regular, else a copy.
        """
        kernel, ndim = self.grid.kernel_size, self.grid.ndim
        at = [self.block.origins[axis][i] for axis, i in enumerate(lead)]
        last = self.block.origins[-1]
        if not self.block.regular:
            cut = [
                self.pixels[tuple(slice(a, a + k) for a, k in zip((*at, x), kernel, strict=True))]
                for x in last[begin:stop:step]
            ]
            return np.stack(cut)
        place, steps = (*at, last[begin]), self.pixels.strides
        shape = (-(-(stop - begin) // step), *kernel, *self.pixels.shape[ndim:])
        strides = (step * self.grid.stride[-1] * steps[ndim - 1], *steps)
        if not self.pixels.flags.c_contiguous:  # a part of the tiles that were read
            corner = self.pixels[tuple(slice(a, None) for a in place)]
            return np.lib.stride_tricks.as_strided(corner, shape, strides)
        # the same at a tenth of the cost; NumPy checks bounds against the buffer
        offset = sum(a * s for a, s in zip(place, steps, strict=False))
        return np.ndarray(shape, self.pixels.dtype, self.pixels, offset, strides)

    def on_pixels_of_their_own(self, memory: lending.Memory | None) -> Windows:
        """The same windows over pixels that somebody else may write into: lent by the memory that
        holds them, or else copied."""
        if memory is not None:
            pixels = memory.lend(self.pixels)
        else:
            pixels = buffers.empty(self.pixels.shape, self.pixels.dtype)
            np.copyto(pixels, self.pixels)
        return Windows(pixels, self.block, self.grid, self.keep)

    def runs(self, longest: int) -> Iterator[tuple[tuple[int, ...], int, int]]:
        """Stretches of kept windows along the last axis: (leading index, begin, stop)."""
        columns = self.block.shape[-1]
        for lead in itertools.product(*(range(n) for n in self.block.shape[:-1])):
            stretches = [(0, columns)] if self.keep is None else _stretches(self.keep[lead])
            for a, b in stretches:
                for begin in range(a, b, longest):
                    yield lead, begin, min(begin + longest, b)

    def views(self, batch_size: int) -> Iterator[tuple[slice, Array]]:
        """Batches without copying: (flat positions in the block, windows).

        A batch holds neighbours along the last axis, at most `batch_size` of them.
        """
        for lead, begin, stop in self.runs(batch_size):
            yield self.positions(lead, begin, stop), self.row(lead, begin, stop)

    def positions(self, lead: tuple[int, ...], begin: int, stop: int, step: int = 1) -> slice:
        """Flat positions in the block of the windows of a `row`."""
        first = 0
        for i, n in zip(lead, self.block.shape[:-1], strict=True):
            first = first * n + i
        first *= self.block.shape[-1]
        return slice(first + begin, first + stop, step)

    def apart(self, phase: tuple[int, ...], batch_size: int) -> Iterator[tuple[slice, Array]]:
        """As `views`, of every n-th window along each axis, as many as `WindowGrid.phases` says,
        from the `phase`-th on: no two of them share a pixel. Of blocks that are regular and kept
        as a whole."""
        *rows, columns = (
            range(*along) for along in zip(phase, self.block.shape, self.grid.phases, strict=True)
        )
        pixels, step, many = self.pixels, columns.step, columns.step * batch_size
        if not pixels.flags.c_contiguous:
            for lead, begin in itertools.product(itertools.product(*rows), columns[::batch_size]):
                span = (lead, begin, min(begin + many, columns.stop), step)
                yield self.positions(*span), self.row(*span)
            return
        # as `row` does, for the many small batches that there are
        *along, apart = (n * s for n, s in zip(self.grid.stride, pixels.strides, strict=False))
        inner = (*self.grid.kernel_size, *pixels.shape[self.grid.ndim :])
        strides = (step * apart, *pixels.strides)
        for lead in itertools.product(*rows):
            offset = sum(i * n for i, n in zip(lead, along, strict=True))
            for begin in columns[::batch_size]:
                where = self.positions(lead, begin, min(begin + many, columns.stop), step)
                shape = (-((where.start - where.stop) // step), *inner)
                place = offset + begin * apart
                yield where, np.ndarray(shape, pixels.dtype, pixels, place, strides)


def _stretches(keep: Array) -> list[tuple[int, int]]:
    """Half-open intervals in which a vector is True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], keep.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
