"""Big chunks in the memory of a device, and batches of small chunks gathered from them there.

`furnish` says whether that can be, and what keeps them in host memory otherwise. A batch may be
of both: what the device has no room for, or another machine has cropped, is brought.

Needs torch. Not covered: the memory and how it is read (`daskdmed.loading.arena`), which visits
are drawn from (`daskdmed.loading.engine`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import dask
import numpy as np
import torch
from dask.system import CPU_COUNT
from dask.utils import format_bytes

from daskdmed.core.types import Array
from daskdmed.loading.arena import ALIGN, Arena, Gather, Lying, Stage, aligned, lying
from daskdmed.loading.batch import Batch, BatchBuilder, Cursor
from daskdmed.loading.chunks import Provenance
from daskdmed.loading.copying import Copier
from daskdmed.loading.delivery import Delivery, StreamLane
from daskdmed.loading.drawtable import DrawTable
from daskdmed.loading.sampling import CropSpec, Ended, VisitSampler
from daskdmed.persistence.budget import Allotment

if TYPE_CHECKING:
    from daskdmed.loading.engine import Engine

logger = logging.getLogger("daskdmed.loading")

#: bytes that are copied to the device at a time, while the next are brought together
STAGE_BYTES = 16 << 20
#: as numbers, which one array can be made of for a batch: first byte and steps of the image's
#: pixels, the same of the target's, the piece's origin
_Piece: TypeAlias = tuple[int, ...]


def _flat(lies: Lying) -> tuple[int, ...]:
    return (lies.first, *lies.steps)


class OnDevice:
    """Visits whose pixels lie in an arena, and batches of small chunks gathered from them."""

    def __init__(
        self, arena: Arena, delivery: Delivery, crop: CropSpec, slots: int, draws: int
    ) -> None:
        self.delivery = delivery
        self._arena = arena
        self._axes = len(crop.size)
        self._image = Gather(crop.size, crop.channels, crop.dtype, crop.around)
        self._target: Gather | None = None
        if crop.target_channels is not None and crop.target_dtype is not None:
            self._target = Gather(crop.target_size, crop.target_channels, crop.target_dtype)
        self._ratio = crop.ratio
        #: of each visit its slot, and of each piece where it lies
        self._visits: dict[int, tuple[int, list[_Piece]]] = {}
        self.table = DrawTable(slots, draws, self._axes, 3 * self._axes + 2)

    def __contains__(self, number: int) -> bool:
        return number in self._visits

    @property
    def name(self) -> str:
        return str(self.delivery.device)

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes

    def admit(self, sampler: VisitSampler) -> bool:
        """Take the pixels of a visit over; False: they stay where they are."""
        if sampler.failure is not None:
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
        lies = (lying(f, a, self._axes) for f, a in zip(firsts, arrays, strict=True))
        pieces = []
        for at, piece in enumerate(sampler.pieces):
            image = target = next(lies)
            if piece.target is not None:
                target = next(lies)
            pieces.append((*_flat(image), *_flat(target), *sampler.frame(at)))
        number = sampler.facts.number
        self._visits[number] = slot, pieces
        if len(pieces) == 1:
            self.table.note(slot, number, pieces[0], *sampler.places(self.table.draws))
        sampler.hollow()
        return True

    def evict(self, number: int) -> None:
        """Have the slot of a visit filled anew. Idempotent."""
        slot, _ = self._visits.pop(number, (None, []))
        if slot is not None:
            self.table.forget(slot)
            self._arena.free(slot)

    def piece(self, number: int, at: int) -> _Piece:
        """Where a piece of a visit lies."""
        return self._visits[number][1][at]

    def gather(self, pieces: Array, starts: Array) -> tuple[Any, Any]:
        """Small chunks (n, *size, *channels) and targets, in the lane's work.

        `pieces` (n, facts): where the pieces lie; `starts` (n, axes): the first pixel in each.
        """
        n = self._axes
        images = self._boxes(self._image, pieces[:, : n + 1], starts)
        if self._target is None:
            return images, None
        origins = pieces[:, 2 * n + 2 :]
        at = (origins + starts) // self._ratio - origins // self._ratio
        return images, self._boxes(self._target, pieces[:, n + 1 : 2 * n + 2], at)

    def _boxes(self, gather: Gather, lies: Array, starts: Array) -> torch.Tensor:
        places = torch.from_numpy(gather.places(lies, starts))
        return gather.take(self._arena.flat, self.delivery.bring(places))

    def close(self) -> None:
        """Let go of the device's memory. Idempotent."""
        self._visits.clear()
        self._arena.close()


def why_not(delivery: Delivery, allotment: Allotment, *, tfms: bool, collector: bool) -> str:
    """What keeps big chunks in host memory; empty where they can be on the device."""
    asked = dask.config.get("daskdmed.device-residents", None)
    device, lane = delivery.device, delivery.lane
    if device is None or lane is None:
        return "no device was asked for"
    if asked is False:
        return "daskdmed.device-residents is False"
    if tfms:
        return "tfms and collate are given small chunks of host memory"
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
    module = getattr(torch, device.type)
    if not hasattr(module, "mem_get_info"):
        return None
    free, _ = module.mem_get_info(device)
    # and what torch keeps for who asks next: of the epoch before this one, for instance
    kept = module.memory_reserved(device) - module.memory_allocated(device)
    return int(free + kept)


def on_device(delivery: Delivery, crop: CropSpec, allotment: Allotment, draws: int) -> OnDevice:
    """Room for the visits that are drawn from at a time, of so many draws each."""
    lane, each = delivery.lane, slot_bytes(allotment)
    assert lane is not None
    stage = Stage(lane, min(each, STAGE_BYTES), pin=delivery.pins, copier=Copier(CPU_COUNT))
    arena = Arena(lane, allotment.slots, each, stage)
    return OnDevice(arena, delivery, crop, allotment.slots, draws)


def furnish(engine: Engine, delivery: Delivery, *, tfms: bool) -> str:
    """Have an engine make its batches where they are wanted, before the first; closes it where that
    fails.

    Says what keeps big chunks in host memory; nothing where they are on the device.
    """
    try:
        why = _furnish(engine, delivery, tfms=tfms)
    except BaseException:
        engine.close()
        raise
    if why and delivery.device is not None:
        logger.info("big chunks stay in host memory: %s", why)
    return why


def _furnish(engine: Engine, delivery: Delivery, *, tfms: bool) -> str:
    made, allotment = engine.sampling, engine.residents.allotment
    on_host = tfms or made.crop.objects
    why = why_not(delivery, allotment, tfms=on_host, collector=made.collect is not None)
    if not why:
        try:
            there = on_device(delivery, made.crop, allotment, made.draws_per_visit)
        except torch.cuda.OutOfMemoryError as error:  # of any accelerator, whatever its name says
            why = str(error).splitlines()[0]
        else:
            engine.use(DeviceBuilder(made.batch_size, made.crop, made.key, there), there)
    if why and not on_host:  # with tfms it is what they give that is pinned
        engine.use(BatchBuilder(made.batch_size, made.crop, made.key, delivery.empty))
    return why


class DeviceBuilder(BatchBuilder):
    """Makes batches on the device: small chunks of visits there are gathered, others brought."""

    def __init__(self, size: int, crop: CropSpec, key: int, there: OnDevice) -> None:
        self._there = there
        super().__init__(size, crop, key, there.delivery.empty)

    def _reset(self) -> None:
        super()._reset()
        #: rows that are to be gathered: number, visit, piece, first pixel in it; one by one, and
        #: those before them together
        self._single: list[tuple[int, int, _Piece, tuple[int, ...]]] = []
        self._waiting: list[tuple[Array, Array, Array, Array]] = []
        #: rows that were, with their targets
        self._gathered: list[tuple[Array, torch.Tensor, torch.Tensor | None]] = []

    def take(
        self, sampler: VisitSampler, draw: int, copier: Copier
    ) -> tuple[int, tuple[int, ...]] | Ended:
        number = sampler.facts.number
        if number not in self._there:
            return super().take(sampler, draw, copier)
        placed = sampler.place(draw)
        if isinstance(placed, Ended):
            return placed
        at, start, origin = placed
        self._single.append((len(self), number, self._there.piece(number, at), start))
        return at, origin

    def add_all(self, provenances: Sequence[Provenance], visits: Array, draws: Array) -> bool:
        found = self._there.table.find(visits, draws)
        if found is None:
            return False
        self._put_together()
        rows = np.arange(len(self), len(self) + len(visits))
        self._waiting.append((rows, visits, found.facts, found.starts))
        self.commit_all(provenances, np.zeros_like(draws), found.origins, draws)
        return True

    def _put_together(self) -> None:
        if self._single:
            rows, visits, pieces, starts = (np.array(c) for c in zip(*self._single, strict=True))
            self._waiting.append((rows, visits, pieces, starts))
            self._single.clear()

    def settle(self, gone: Collection[int]) -> None:
        self._put_together()
        if any(np.isin(visits, list(gone)).any() for _, visits, *_ in self._waiting):
            with self._there.delivery.work():
                self._gather()

    def _gather(self) -> None:
        self._put_together()
        if self._waiting:
            rows, _, pieces, starts = map(np.concatenate, zip(*self._waiting, strict=True))
            self._gathered.append((rows, *self._there.gather(pieces, starts)))
            self._waiting.clear()

    def finish(self, cursor: Cursor, copied: Callable[[], None]) -> Batch:
        copied()  # rows of the host go to the device with the others
        return super().finish(cursor, copied)

    def pixels(self) -> tuple[Any, Any]:
        crop = self._crop
        with self._there.delivery.work():
            self._gather()
            data, targets = self._together(len(self))
            if targets is not None:
                targets = crop.squeezed(targets)
                targets = targets.movedim(-1, 1) if crop.target_channels else targets
            return crop.squeezed(data), targets

    def _together(self, count: int) -> list[torch.Tensor | None]:
        """What was gathered and what is brought, in the order of rows."""
        rows: Array = np.concatenate(
            [np.zeros(0, np.int64), *(part for part, *_ in self._gathered)]
        )
        parts = zip(*((data, targets) for _, data, targets in self._gathered), strict=True)
        gathered = [None if p[0] is None else p[0] if len(p) == 1 else torch.cat(p) for p in parts]
        if len(rows) == count:
            return gathered
        bring = self._there.delivery.bring
        brought = [None if a is None else bring(torch.from_numpy(a[:count])) for a in self._rows()]
        for whole, some in zip(brought, gathered, strict=False):
            if whole is not None and some is not None:
                _bytes(whole).index_copy_(0, bring(torch.from_numpy(rows)), _bytes(some))
        return brought


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    """(rows, bytes of each): torch cannot index values of all types."""
    return rows.view(len(rows), -1).view(torch.uint8)
