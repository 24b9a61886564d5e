"""Crops from resident big chunks: the same code next to the data and in the loader.

`VisitSampler` crops the draws of one visit. A crop depends on (seed, visit, draw) and the pixels
alone, so it does not matter which process makes it, or when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import add
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import GeometryError, LoaderError, UsageError
from daskdmed.core.randomness import Purpose, generator
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array
from daskdmed.images.context import Context
from daskdmed.loading.chunks import BigChunk
from daskdmed.loading.collectors import CollectContext, CollectorFunction
from daskdmed.loading.copying import Copier
from daskdmed.loading.patientstate import VisitState
from daskdmed.loading.positions import Position, Positions
from daskdmed.persistence.areas import Area, Chosen
from daskdmed.persistence.reading import Loaded, Piece, ReadFailure, pieces_of

#: gives an array of a shape and type
Empty: TypeAlias = Callable[[Sequence[int], npt.DTypeLike], Array]


@dataclass(frozen=True, slots=True)
class CropSpec:
    """Shape and type of all crops of a loader; `target_channels` is None without target.

    `target_ratio`: pixels of the image per pixel of the target along each axis; empty for one.
    `around`: what lies around a small chunk in big chunks, and becomes `channels` of it. `squeeze`:
    spatial axes of length 1 are dropped from batches. `objects`: rows of a batch hold whatever the
    collector gives, one object each.
    """

    size: tuple[int, ...]
    channels: tuple[int, ...]
    dtype: np.dtype[Any]
    target_channels: tuple[int, ...] | None = None
    target_dtype: np.dtype[Any] | None = None
    target_ratio: tuple[int, ...] = ()
    around: Context | None = None
    squeeze: bool = False
    objects: bool = False

    def rows(self, count: int, empty: Empty) -> tuple[Array, Array | None]:
        """Memory for so many small chunks, and for their targets."""
        if self.objects:
            return np.empty((count, 1), object), None
        targets = None
        if self.target_shape is not None and self.target_dtype is not None:
            targets = empty((count, *self.target_shape), self.target_dtype)
        return empty((count, *self.shape), self.dtype), targets

    @property
    def dropped(self) -> tuple[int, ...]:
        """Spatial axes that batches do not have."""
        return tuple(a for a, s in enumerate(self.size) if s == 1) if self.squeeze else ()

    def squeezed(self, rows: Any) -> Any:
        """Rows of a batch, an array or a tensor, without these axes, in place."""
        if self.objects:
            return rows[:, 0]
        return rows.squeeze(tuple(axis + 1 for axis in self.dropped))

    @property
    def ratio(self) -> tuple[int, ...]:
        return self.target_ratio or (1,) * len(self.size)

    @property
    def target_size(self) -> tuple[int, ...]:
        return tuple(s // r for s, r in zip(self.size, self.ratio, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.size, *self.channels)

    @property
    def target_shape(self) -> tuple[int, ...] | None:
        return None if self.target_channels is None else (*self.target_size, *self.target_channels)

    @property
    def nbytes(self) -> int:
        n = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if self.target_shape is not None and self.target_dtype is not None:
            n += int(np.prod(self.target_shape, dtype=np.int64)) * self.target_dtype.itemsize
        return n


@dataclass(frozen=True, slots=True)
class VisitFacts:
    """What a worker must know about a visit to crop from it. Small and picklable.

    `nth`: how many visits its record had before; `key`: from the loader's seed; `region`: the
    grid's big chunk; `area`: where small chunks may lie, or do, or why nobody knows; None for
    anywhere; `space`: of the whole image; `held`: of how many draws all pixels are there, None for
    any; `apart`: and nothing else is, these lie one behind the other along the first axis.
    """

    number: int
    nth: int
    key: int
    patient: str
    record: str
    labels: Mapping[str, Any]
    region: Region
    downsample: tuple[float, ...]
    level: int | None
    mpp: tuple[float, float] | None
    area: Area | Chosen | ReadFailure | None = None
    space: Space | None = None
    held: int | None = None
    apart: bool = False


class Ended(NamedTuple):
    """A visit that gives no more draws, and why (None: its collector said so)."""

    error: BaseException | None


class VisitSampler:
    """Crops the draws of one visit.

    `expected`: draws for which positions are made at first; more are made when asked for.
    `collect`: the user's collector, with its `state` when it declares ``stateful = True``; None for
    uniform positions. `positions`: those of the visit, where somebody has made them.
    """

    def __init__(
        self,
        loaded: Loaded,
        facts: VisitFacts,
        crop: CropSpec,
        collect: CollectorFunction | None,
        expected: int,
        state: VisitState | None = None,
        positions: Positions | None = None,
    ) -> None:
        pieces = pieces_of(loaded, facts.region)
        if isinstance(facts.area, ReadFailure):
            pieces = facts.area
        self.facts = facts
        self.state = state
        self.failure = pieces if isinstance(pieces, ReadFailure) else None
        self.pieces: list[Piece] = [] if isinstance(pieces, ReadFailure) else pieces
        self._crop = crop
        self._collect = collect
        self._axes = len(crop.size)
        self._shares: Array | None = None
        if self.failure is None:
            self._check_pieces()
        #: of the only piece, and of its target, where a small chunk is nothing but a box of it
        self._boxes: Array | None = None
        self._target_boxes: Array | None = None
        #: of the first draws what `place` says, once one of them is cropped from here as a box
        self._quick: list[Position] | None = None
        if self.failure is None:
            self._positions = positions or self._make_positions(expected)
            self._look_at_boxes()

    def _make_positions(self, expected: int) -> Positions:
        facts, crop = self.facts, self._crop
        assert not isinstance(facts.area, ReadFailure)  # which is this visit's failure
        regions = [Region(piece.origin, self._extent(piece)) for piece in self.pieces]
        where = (facts.area, facts.key, facts.number, expected)
        return Positions(regions, crop.size, crop.ratio, *where)

    def _look_at_boxes(self) -> None:
        crop = self._crop
        if len(self.pieces) != 1 or crop.around is not None or crop.objects:
            return
        piece = self.pieces[0]
        if piece.shape is not None or (piece.target is not None and crop.target_ratio):
            return
        self._boxes = _boxes(piece.data, crop.size)
        if piece.target is not None:
            self._target_boxes = _boxes(piece.target, crop.size)

    def _located(self) -> list[Position]:
        """Of the first draws, as many as are known, what `place` says of them."""
        if self._collect is not None:
            return []
        known = self._positions.known()[: self.facts.held]
        if not self.facts.apart:
            return known
        return [(0, self._apart(draw), found[2]) for draw, found in enumerate(known)]

    def _check_pieces(self) -> None:
        for piece in self.pieces:
            if piece.shape is not None:
                if self._collect is None:
                    self.failure = ReadFailure(
                        UsageError(
                            f"the big-chunk loader gave an object ({type(piece.data).__name__}), "
                            "of which only a collector can make small chunks; give "
                            "smallchunk_collector="
                        ),
                        self.facts.region,
                    )
                continue
            extent = self._extent(piece)
            if any(e < s for e, s in zip(extent, self._crop.size, strict=True)):
                self.failure = ReadFailure(
                    GeometryError(
                        f"a region of {extent} pixels holds no small chunk of {self._crop.size}; "
                        "choose larger regions in the big-chunk loader"
                    ),
                    self.facts.region,
                )

    def _extent(self, piece: Piece) -> tuple[int, ...]:
        """Of a piece, without what lies around it."""
        if self.facts.apart:
            return self.facts.region.shape
        if piece.shape is not None:
            return piece.shape
        extent: tuple[int, ...] = piece.data.shape[: self._axes]
        around = self._crop.around
        if around is None:
            return extent
        return tuple(e - 2 * k for e, k in zip(extent, around.around, strict=True))

    def bigchunks(self) -> tuple[BigChunk, ...]:
        return tuple(self._bigchunk(piece) for piece in self.pieces)

    def _bigchunk(
        self, piece: Piece, data: Array | None = None, target: Array | None = None
    ) -> BigChunk:
        facts, extent = self.facts, self._extent(piece)
        return BigChunk(
            data=data,
            origin=piece.origin,
            shape=extent,
            patient=facts.patient,
            record=facts.record,
            visit=facts.number,
            downsample=facts.downsample,
            level=facts.level,
            mpp=facts.mpp,
            space=None if facts.space is None else facts.space.crop(piece.origin, extent),
            target=target,
        )

    def take(
        self, draw: int, out: Array, target_out: Array | None, copier: Copier | None = None
    ) -> tuple[int, tuple[int, ...]] | Ended:
        """Crop one draw into `out`, at once or (with a `copier`) when that is flushed.

        Gives piece and first pixel in the frame of the view; or the end of the visit.
        """
        if self._quick is None:
            self._quick = [] if self._boxes is None else self._located()
        if copier is not None and draw < len(self._quick) and self._boxes is not None:
            at, start, origin = self._quick[draw]
            copier.add(out, self._boxes[start], self.facts.number)
            if target_out is not None and self._target_boxes is not None:
                copier.add(target_out, self._target_boxes[start], self.facts.number)
            return at, origin
        if self._collect is not None and self.failure is None and self.pieces:
            return self._take_collected(draw, out, target_out)
        placed = self.place(draw)
        if isinstance(placed, Ended):
            return placed
        at, start, origin = placed
        if self._crop.objects:
            out[0] = self.pieces[at].data[self._box(start)].copy()
        else:
            self._copy(at, start, out, target_out, copier)
        return at, origin

    def place(self, draw: int) -> Position | Ended:
        """Where one draw lies, where no collector has a say: number of the piece, first pixel in
        its array, and the same in the frame of the view."""
        if self.failure is not None:
            return Ended(self.failure.error)
        if not self.pieces:  # the big-chunk loader found nothing
            return Ended(None)
        found, held = self._positions.of(draw), self.facts.held
        if found is None:
            return Ended(None)
        if held is not None and draw >= held:
            return Ended(
                LoaderError(
                    f"draw {draw} of a big chunk that was read for {held} draws; this is an error "
                    "of daskdmed's, please report it"
                )
            )
        return (0, self._apart(draw), found[2]) if self.facts.apart else found

    def _apart(self, draw: int) -> tuple[int, ...]:
        """First pixel of a draw among those that are kept one behind the other."""
        return draw * self._crop.size[0], *(0,) * (self._axes - 1)

    def places(self, count: int) -> tuple[Array, Array]:
        """Of the first draws, so many at most, what `place` says of them: first pixel in the array
        of the only piece and in the frame of the view, (draws, axes); none where draws have to be
        asked for one by one."""
        facts = self.facts
        if self.failure is not None or len(self.pieces) != 1:
            count = 0
        origins = self._positions.first(count if facts.held is None else min(count, facts.held))
        if not facts.apart:
            return origins - np.array(self.pieces[0].origin), origins
        starts = np.zeros_like(origins)
        starts[:, 0] = np.arange(len(origins)) * self._crop.size[0]
        return starts, origins

    def origin(self, at: int, start: tuple[int, ...]) -> tuple[int, ...]:
        """A pixel of a piece in the frame of the view."""
        return tuple(map(add, self.pieces[at].origin, start))

    def frame(self, at: int) -> tuple[int, ...]:
        """Where the pixels of a piece begin, as those of its target are counted."""
        return (0,) * self._axes if self.facts.apart else self.pieces[at].origin

    def hollow(self) -> None:
        """Forget the pixels, which are cropped from elsewhere; places stay what they are."""
        self._boxes = self._target_boxes = None
        self.pieces = [
            replace(
                piece,
                data=_shape_of(piece.data),
                target=None if piece.target is None else _shape_of(piece.target),
            )
            for piece in self.pieces
        ]

    def _copy(
        self,
        at: int,
        start: tuple[int, ...],
        out: Array | None,
        target_out: Array | None,
        copier: Copier | None = None,
    ) -> None:
        piece = self.pieces[at]
        copies = [] if out is None else self._image_copies(piece.data, start, out)
        if target_out is not None and piece.target is not None:
            copies.append((target_out, piece.target[self._target_box(at, start)]))
        for target, source in copies:
            if copier is None:
                target[...] = source
            else:
                copier.add(target, source, self.facts.number)

    def _image_copies(
        self, data: Array, start: tuple[int, ...], out: Array
    ) -> list[tuple[Array, Array]]:
        """What is copied where, of the pixels of a piece and those around it."""
        around = self._crop.around
        if around is None:
            return [(out, data[self._box(start)])]
        size = zip(start, self._crop.size, around.around, strict=True)
        return list(around.beside(data[tuple(slice(o, o + s + 2 * k) for o, s, k in size)], out))

    def _box(self, start: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(o, o + s) for o, s in zip(start, self._crop.size, strict=True))

    def _target_box(self, at: int, start: tuple[int, ...]) -> tuple[slice, ...]:
        """The same pixels in the target; its own are whole where `start` allows it."""
        crop = self._crop
        if not crop.target_ratio:
            return self._box(start)
        first = (
            (o + s) // r - o // r
            for o, s, r in zip(self.frame(at), start, crop.target_ratio, strict=True)
        )
        return tuple(slice(f, f + s) for f, s in zip(first, crop.target_size, strict=True))

    # -- user collectors --------------------------------------------------------------

    def _take_collected(
        self, draw: int, out: Array, target_out: Array | None
    ) -> tuple[int, tuple[int, ...]] | Ended:
        facts = self.facts
        rng = generator(facts.key, Purpose.COLLECT, facts.number, draw)
        at = 0
        if len(self.pieces) > 1:
            if self._shares is None:
                self._shares = np.cumsum(self._positions.rooms.prod(axis=1))
            mark = rng.random() * self._shares[-1]
            at = int(np.searchsorted(self._shares, mark, side="right"))
        piece = self.pieces[at]
        context = CollectContext(
            patient=facts.patient,
            record=facts.record,
            labels=facts.labels,
            smallchunk_size=self._crop.size,
            visit=facts.number,
            nth=facts.nth,
            draw=draw,
            remembered=None if self.state is None else self.state.state,
            messages=() if self.state is None else self.state.read(),
        )
        assert self._collect is not None
        try:
            answer = self._collect(self._shown(piece), context, rng)
            if answer is None:
                return Ended(None)
            start = self._accept(answer, at, out, target_out)
        except Exception as error:  # user code: carried to the consumer with its place
            return Ended(error)
        return at, self.origin(at, start)

    def _shown(self, piece: Piece) -> BigChunk:
        """A piece as collectors see it: read only, without what lies around it."""
        data, around = piece.data, self._crop.around
        if piece.shape is not None:
            return self._bigchunk(piece, data)
        if around is not None:
            extent = zip(around.around, self._extent(piece), strict=True)
            data = data[tuple(slice(k, k + e) for k, e in extent)]
        target = None if piece.target is None else _read_only(piece.target)
        return self._bigchunk(piece, _read_only(data), target)

    def _accept(
        self, answer: Any, at: int, out: Array, target_out: Array | None
    ) -> tuple[int, ...]:
        """Copy what a collector returned; give its first pixel within the piece."""
        if self._crop.objects:
            out[0] = answer
            return (0,) * self._axes
        data = None
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], np.ndarray):
            data, answer = answer
        elif isinstance(answer, np.ndarray) and answer.shape != (self._axes,):
            data, answer = answer, (0,) * self._axes
        start = tuple(int(v) for v in answer)
        extent = self._extent(self.pieces[at])
        fits = len(start) == self._axes and all(
            o >= 0 and o + s <= e for o, s, e in zip(start, self._crop.size, extent, strict=False)
        )
        if not fits:
            raise GeometryError(
                f"the collector returned first pixel {start}, but a crop of {self._crop.size} "
                f"must lie inside the big chunk of {extent} pixels"
            )
        if data is None:
            if self.pieces[at].shape is not None:
                raise UsageError(
                    f"the collector returned first pixel {start}, but the big chunk is an object "
                    f"({type(self.pieces[at].data).__name__}); return the crop itself, or give "
                    "collate= and return any object"
                )
            self._copy(at, start, out, target_out)
            return start
        if data.shape != self._crop.shape or data.dtype != self._crop.dtype:
            raise UsageError(
                f"the collector returned a crop of shape {data.shape} {data.dtype}, expected "
                f"{self._crop.shape} {self._crop.dtype}; convert in tfms or batch_tfms instead"
            )
        out[...] = data
        self._copy(at, start, None, target_out)
        return start


def _boxes(data: Array, size: tuple[int, ...]) -> Array:
    """Every box of a size in an array, by its first pixel, without copying any: one index finds
    it, where slices would have to be made for each axis."""
    axes = len(size)
    rooms = (extent - s + 1 for extent, s in zip(data.shape, size, strict=False))
    shape = (*rooms, *size, *data.shape[axes:])
    strides = (*data.strides[:axes], *data.strides)
    return np.lib.stride_tricks.as_strided(data, shape, strides, writeable=False)


def _shape_of(data: Array) -> Array:
    """An array of the same shape and type that takes no memory."""
    return np.broadcast_to(np.zeros((), data.dtype), data.shape)


def _read_only(data: Array) -> Array:
    view = data.view()
    view.flags.writeable = False
    return view
