"""Big chunks in the memory of a device, and small chunks gathered from them there, by index.

An `Arena` is one flat piece of memory in slots, one for each visit. A small chunk is a number
of rows of contiguous bytes in it (its pixels along the last spatial axis), so that a batch from
any visits is one gather of rows at computed places: a `Gather` computes them on the host, and
the device reads nothing else.

Needs torch. Not covered: which visits are there and for how long (`daskdmed.loading.engine`),
and the order of work on a device (`daskdmed.loading.delivery`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, NamedTuple

import dask
import numpy as np
import numpy.typing as npt
import torch
from dask.utils import format_bytes

from daskdmed.core.types import Array
from daskdmed.images.context import Context
from daskdmed.loading.batch import BatchBuilder
from daskdmed.loading.copying import Copier
from daskdmed.loading.delivery import Delivery, Lane, StreamLane, pinned_bytes
from daskdmed.loading.sampling import CropSpec, Ended, VisitSampler
from daskdmed.persistence.budget import Allotment

#: arrays in a slot begin at multiples of this many bytes: whole values of every type
ALIGN = 16
#: bytes that are copied to the device at a time, while the next are brought together
STAGE_BYTES = 16 << 20
#: what some threads copy at a time, of a piece
_BANDS, _BAND_BYTES = 16, 64 << 10
#: integers as wide as values: rows are moved, never computed with, and torch cannot index all types
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def aligned(nbytes: int) -> int:
    """Bytes up to where the next array in a slot begins."""
    return -(-nbytes // ALIGN) * ALIGN


class Lying(NamedTuple):
    """Where an array lies in an arena, or a box in it: its first byte, and the bytes from one
    pixel to the next along each spatial axis."""

    first: int
    steps: tuple[int, ...]

    def at(self, start: tuple[int, ...]) -> Lying:
        """A box that begins at a pixel of the array."""
        return Lying(self.first + sum(map(mul, start, self.steps)), self.steps)


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
                there[at : at + part.nbytes].copy_(piece[: part.nbytes], non_blocking=True)
                self._pieces.append((piece, self._lane.mark()))
            at += part.nbytes

    def _bring_together(self, part: Array, out: Array) -> None:
        at = 0
        for band in parts_of(part, max(part.nbytes // _BANDS, _BAND_BYTES)):
            values = out[at : at + band.nbytes].view(band.dtype).reshape(band.shape)
            self._copier.add(values, band)
            at += band.nbytes
        self._copier.flush()


def _plain_bytes(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8)


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

    def index(self, firsts: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> Array:
        """Where the rows of boxes begin, in words: (boxes, [offsets,] rows).

        `firsts`: (boxes,) byte of each box's first pixel (with `around`: of the first that lies
        around it); `steps`: (boxes, axes), of the arrays, see `Lying`.
        """
        rows = _grid(self.size[:-1])
        places = firsts[:, None] + steps[:, :-1] @ rows
        if self.around is not None:
            shifts = steps @ _grid([2 * k + 1 for k in self.around.around])
            places = places[:, None, :] + shifts[:, :, None]
        words: Array = places // self._word
        return words

    def take(self, flat: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Boxes (n, *size, *channels) from the bytes of an arena; `index` lies beside it."""
        words = flat.view(_WORDS[self._word])
        wide = self.row // self._word
        # every place where a row may begin, one value apart: rows overlap, nothing is copied
        every = words.as_strided((words.numel() - wide + 1, wide), (1, 1))
        values = every.index_select(0, index.reshape(-1)).view(torch_dtype(self.dtype))
        boxes = values.view(*index.shape[:-1], *self.size, self._each)
        if self.around is not None:
            boxes = boxes.movedim(1, -2)
        return boxes.reshape(len(index), *self.size, *self.channels)


class OnDevice:
    """Visits whose pixels lie in an arena, and batches of small chunks gathered from them.

    TypeError: torch has no such values.
    """

    def __init__(self, arena: Arena, delivery: Delivery, crop: CropSpec) -> None:
        self.delivery = delivery
        self._arena = arena
        self._axes = len(crop.size)
        self._image = Gather(crop.size, crop.channels, crop.dtype, crop.around)
        self._target: Gather | None = None
        if crop.target_channels is not None and crop.target_dtype is not None:
            self._target = Gather(crop.target_size, crop.target_channels, crop.target_dtype)
        #: of each visit its slot, and where the image and the target of each piece lie
        self._visits: dict[int, tuple[int, list[tuple[Lying, Lying | None]]]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._visits

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes

    def admit(self, sampler: VisitSampler) -> bool:
        """Take the pixels of a visit over; False: they stay where they are."""
        if not sampler.pieces:
            return False
        arrays = [
            array
            for piece in sampler.pieces
            for array in (piece.data, piece.target)
            if array is not None
        ]
        put = self._arena.put(arrays)
        if put is None:
            return False
        slot, firsts = put
        places = (lying(f, a, self._axes) for f, a in zip(firsts, arrays, strict=True))
        pieces = [
            (next(places), None if piece.target is None else next(places))
            for piece in sampler.pieces
        ]
        self._visits[sampler.facts.number] = slot, pieces
        sampler.hollow()
        return True

    def evict(self, number: int) -> None:
        """Have the slot of a visit filled anew. Idempotent."""
        slot, _ = self._visits.pop(number, (None, []))
        if slot is not None:
            self._arena.free(slot)

    def rows(
        self, sampler: VisitSampler, at: int, start: tuple[int, ...]
    ) -> tuple[Lying, Lying | None]:
        """Where a small chunk of a piece lies, and its target."""
        image, target = self._visits[sampler.facts.number][1][at]
        if target is None:
            return image.at(start), None
        return image.at(start), target.at(sampler.target_start(sampler.pieces[at], start))

    def gather(self, rows: Sequence[tuple[Lying, Lying | None]]) -> tuple[Any, Any]:
        """Small chunks (n, *size, *channels) and targets, in the lane's work."""
        images = self._gather(self._image, [image for image, _ in rows])
        if self._target is None:
            return images, None
        return images, self._gather(self._target, [t for _, t in rows if t is not None])

    def _gather(self, gather: Gather, rows: list[Lying]) -> torch.Tensor:
        firsts = np.array([row.first for row in rows], np.int64)
        steps = np.array([row.steps for row in rows], np.int64)
        index = torch.from_numpy(gather.index(firsts, steps))
        return gather.take(self._arena.flat, self.delivery.bring(index))

    def close(self) -> None:
        """Let go of the device's memory. Idempotent."""
        self._visits.clear()
        self._arena.flat = self._arena.flat.new_empty(0)


def why_not(
    delivery: Delivery, crop: CropSpec, allotment: Allotment, *, tfms: bool, collector: bool
) -> str:
    """What keeps big chunks in host memory; empty where they can be on the device."""
    asked = dask.config.get("daskdmed.device-residents", None)
    device, lane = delivery.device, delivery.lane
    if device is None or lane is None:
        return "no device was asked for"
    if asked is False:
        return "daskdmed.device-residents is False"
    if tfms:
        return "tfms are given small chunks of host memory"
    if collector:
        return "the collector looks at big chunks in host memory"
    if asked is None and not isinstance(lane, StreamLane):
        return f"host memory is where {device.type} has its own"
    free, needed = _free_bytes(device), allotment.slots * slot_bytes(allotment)
    if free is not None and 2 * needed > free and not asked:
        return (
            f"{allotment.slots} big chunks ({format_bytes(needed)}) are more than half of what is "
            f"free on {device} ({format_bytes(free)})"
        )
    return ""


def slot_bytes(allotment: Allotment) -> int:
    """Of a slot for any big chunk, and its target."""
    return aligned(allotment.block_bytes) + ALIGN


def _free_bytes(device: torch.device) -> int | None:
    """What nobody uses of a device's memory; None where torch cannot say."""
    ask = getattr(getattr(torch, device.type), "mem_get_info", None)
    return None if ask is None else int(ask(device)[0])


def on_device(delivery: Delivery, crop: CropSpec, allotment: Allotment, copier: Copier) -> OnDevice:
    """Room for the visits that are drawn from at a time."""
    lane = delivery.lane
    assert lane is not None
    each = slot_bytes(allotment)
    stage = Stage(lane, min(each, STAGE_BYTES), pin=delivery.pins, copier=copier)
    return OnDevice(Arena(lane, allotment.slots, each, stage), delivery, crop)


class DeviceBuilder(BatchBuilder):
    """Makes batches on the device: small chunks of visits there are gathered, others brought."""

    def __init__(self, size: int, crop: CropSpec, key: int, there: OnDevice) -> None:
        self._there = there
        super().__init__(size, crop, key, there.delivery.empty)

    def _reset(self) -> None:
        super()._reset()
        #: where rows are gathered from, the others are on the host
        self._from: dict[int, tuple[Lying, Lying | None]] = {}

    def take(
        self, sampler: VisitSampler, draw: int, copier: Copier
    ) -> tuple[int, tuple[int, ...]] | Ended:
        if sampler.facts.number not in self._there:
            return super().take(sampler, draw, copier)
        placed = sampler.place(draw)
        if isinstance(placed, Ended):
            return placed
        at, start = placed
        self._from[len(self)] = self._there.rows(sampler, at, start)
        return at, sampler.origin(at, start)

    def pixels(self) -> tuple[Any, Any]:
        crop, count, lane = self._crop, len(self), self._there.delivery.lane
        assert lane is not None
        with lane.work():
            data, targets = self._mixed(count)
            if targets is not None:
                targets = crop.squeezed(targets)
                targets = targets.movedim(-1, 1) if crop.target_channels else targets
            return crop.squeezed(data), targets

    def _mixed(self, count: int) -> tuple[Any, Any]:
        """What is gathered and what is brought, in the order of rows."""
        rows = list(self._from)
        gathered = self._there.gather(list(self._from.values())) if rows else (None, None)
        if len(rows) == count:
            return gathered
        bring = self._there.delivery.bring
        brought = [None if a is None else bring(torch.from_numpy(a[:count])) for a in self._rows()]
        for whole, some in zip(brought, gathered, strict=True):
            if whole is not None and some is not None:
                _bytes(whole).index_copy_(0, bring(torch.tensor(rows)), _bytes(some))
        return brought[0], brought[1]


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    """(rows, bytes of each): torch cannot index values of all types."""
    return rows.view(len(rows), -1).view(torch.uint8)


def _grid(shape: Sequence[int]) -> Array:
    """(axes, count): every place in a box, in C order."""
    return np.indices(tuple(shape), np.int64).reshape(len(shape), -1)


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """torch's name of a type of NumPy's. TypeError: it has none."""
    return torch.from_numpy(np.empty(0, dtype)).dtype
