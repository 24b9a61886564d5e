"""Arrays in the memory of a device, and boxes gathered from them there, by index.

An `Arena` is one flat piece of memory in slots. A box is a number of rows of contiguous bytes in
it (its pixels along the last spatial axis), so that a batch of boxes from any arrays is one gather
of rows at places that a `Gather` computes there from where each box begins.

Needs torch. Not covered: whose arrays these are, and for how long (`daskdmed.loading.ondevice`),
and the order of work on a device (`daskdmed.loading.delivery`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from daskdmed.core.types import Array
from daskdmed.images.context import Context
from daskdmed.loading.copying import Copier
from daskdmed.loading.delivery import Lane, pinned_bytes

#: arrays in a slot begin at multiples of this many bytes: whole values of every type
ALIGN = 16
#: what some threads copy at a time, of a piece
_BANDS, _BAND_BYTES = 16, 64 << 10
#: integers as wide as values: rows are moved, never computed with, and torch cannot index all types
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def aligned(nbytes: int) -> int:
    """Bytes up to where the next array in a slot begins."""
    return -(-nbytes // ALIGN) * ALIGN


class Lying(NamedTuple):
    """Where an array lies in an arena: its first byte, and the bytes from one pixel to the next
    along each spatial axis."""

    first: int
    steps: tuple[int, ...]


def lying(first: int, array: Array, axes: int) -> Lying:
    """Where an array lies that was put at a byte, in C order."""
    steps = [array.itemsize * math.prod(array.shape[axis + 1 :]) for axis in range(axes)]
    return Lying(first, tuple(steps))


def parts_of(array: Array, most: int) -> Iterator[Array]:
    """An array in parts of at most so many bytes where axes allow it, in C order."""
    if array.nbytes <= most or not array.ndim:
        yield array
        return
    each = array.nbytes // len(array)
    if each > most:
        for part in array:
            yield from parts_of(part, most)
        return
    step = most // each
    for first in range(0, len(array), step):
        yield array[first : first + step]


class Stage:
    """Host memory through which arrays go to a device, two pieces in turn."""

    def __init__(self, lane: Lane, nbytes: int, *, pin: bool, copier: Copier) -> None:
        self.nbytes = nbytes
        self._lane, self._copier = lane, copier
        memory = [pinned_bytes(nbytes) if pin else _plain_bytes(nbytes) for _ in range(2)]
        #: each piece, and what comes when the device has what it held last
        self._pieces: list[tuple[torch.Tensor, Any]] = [(piece, None) for piece in memory]

    def upload(self, array: Array, there: torch.Tensor) -> None:
        """Copy an array, however it lies, to as many bytes of the device.

        It can be changed or let go of when this returns, though the device may not have it yet.
        """
        at = 0
        for part in parts_of(array, self.nbytes):
            piece, event = self._pieces.pop(0)
            if event is not None:
                event.synchronize()
            self._bring_together(part, piece.numpy())
            with self._lane.work():
                whole = there[at : at + part.nbytes]
                whole.copy_(piece[: part.nbytes], non_blocking=self._lane.asynchronous)
                self._pieces.append((piece, self._lane.mark()))
            at += part.nbytes

    def close(self) -> None:
        """Stop the threads. Idempotent."""
        self._copier.close()

    def _bring_together(self, part: Array, out: Array) -> None:
        at = 0
        for band in parts_of(part, max(part.nbytes // _BANDS, _BAND_BYTES)):
            values = out[at : at + band.nbytes].view(band.dtype).reshape(band.shape)
            self._copier.add(values, band)
            at += band.nbytes
        self._copier.flush()


def _plain_bytes(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu")


class Arena:
    """Slots of one size in the memory of a device."""

    def __init__(self, lane: Lane, slots: int, slot_bytes: int, stage: Stage) -> None:
        self.slot_bytes = aligned(slot_bytes)
        self._stage = stage
        self._free = list(range(slots))[::-1]
        with lane.work():
            self.flat = torch.empty(slots * self.slot_bytes, dtype=torch.uint8, device=lane.device)

    @property
    def nbytes(self) -> int:
        return self.flat.numel()

    def put(self, arrays: Sequence[Array]) -> tuple[int, list[int]] | None:
        """Arrays into a free slot: its number, and their first bytes; None where it has no room.

        What lay there before may still be gathered from: the lane does one after the other.
        """
        firsts = [0, *itertools.accumulate(aligned(a.nbytes) for a in arrays)]
        if firsts.pop() > self.slot_bytes or not self._free:
            return None
        slot = self._free.pop()
        begin = slot * self.slot_bytes
        for array, first in zip(arrays, firsts, strict=True):
            if array.nbytes:
                there = self.flat[begin + first : begin + first + array.nbytes]
                self._stage.upload(array, there)
        return slot, [begin + first for first in firsts]

    def free(self, slot: int) -> None:
        self._free.append(slot)

    def close(self) -> None:
        """Let go of all memory. Idempotent."""
        self._stage.close()
        self._free.clear()
        self.flat = self.flat.new_empty(0)


@dataclass(frozen=True)
class Gather:
    """Boxes of one size and type, from arrays in an arena.

    `size`: spatial extent; `channels`: shape behind it. `around`: what lies around boxes in their
    arrays, and becomes channels (`channels` counts them).
    """

    size: tuple[int, ...]
    channels: tuple[int, ...]
    dtype: np.dtype[Any]
    around: Context | None = None
    #: of each device, what is the same for all boxes
    _made: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def _each(self) -> int:
        """Values of one pixel in the arrays."""
        count = 1 if self.around is None else self.around.count
        return math.prod(self.channels) // count

    @property
    def _word(self) -> int:
        """Bytes of what is moved as one."""
        return min(self.dtype.itemsize, 8)

    @property
    def row(self) -> int:
        """Bytes that lie side by side in a box."""
        return self.size[-1] * self._each * self.dtype.itemsize

    def places(self, lies: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> Array:
        """Where boxes begin and how they lie, in words: (boxes, 1 + axes).

        `lies` (boxes, 1 + axes): where their arrays lie, see `Lying`; `starts` (boxes, axes):
        first pixel of each (with `around`: of what lies around it).
        """
        places = lies // self._word
        places[:, 0] += (starts * places[:, 1:]).sum(axis=1)
        return places

    def take(self, flat: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Boxes (n, *size, *channels) from the bytes of an arena; `places` lie beside it."""
        words = flat.view(_WORDS[self._word])
        wide = self.row // self._word
        # every place where a row may begin, one value apart: rows overlap, nothing is copied
        every = words.as_strided((words.numel() - wide + 1, wide), (1, 1))
        index = self._index(places)
        values = every.index_select(0, index.reshape(-1)).view(torch_dtype(self.dtype))
        boxes = values.view(*index.shape[:-1], *self.size, self._each)
        if self.around is not None:
            boxes = boxes.movedim(1, -2).contiguous()
        return boxes.view(len(index), *self.size, *self.channels)

    def _index(self, places: torch.Tensor) -> torch.Tensor:
        """Where the rows of boxes begin, in words: (boxes, [offsets,] rows)."""
        firsts, steps = places[:, 0], places[:, 1:]
        rows, shifts = self._grids(places.device)
        index = firsts[:, None] + (steps[:, :-1, None] * rows).sum(1)
        if shifts is None:
            return index
        return index[:, None, :] + (steps[:, :, None] * shifts).sum(1)[:, :, None]

    def _grids(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of the rows of a box, (axes - 1, rows), and of what lies around it, on a device."""
        if device not in self._made:
            rows = torch.from_numpy(_grid(self.size[:-1])).to(device)
            around = None
            if self.around is not None:
                around = torch.from_numpy(_grid([2 * k + 1 for k in self.around.around])).to(device)
            self._made[device] = rows, around
        return self._made[device]


def _grid(shape: Sequence[int]) -> Array:
    """(axes, count): every place in a box, in C order."""
    return np.indices(tuple(shape), np.int64).reshape(len(shape), math.prod(shape))


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """torch's name of a type of NumPy's. TypeError: it has none."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
