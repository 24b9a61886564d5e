"""`StreamCollector`: what is done with a stream of batches, and what is kept of it.

The seed's shape: a loader gives batches, `process_pieceofstream` makes pieces of each, and
the pieces are kept, folded into one value per patient, or streamed to disk. Runs in the
calling thread; loading and writing happen beside it.

Not covered: writing (`daskdmed.tables.writer`), loading.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from daskdmed.core import events, progress
from daskdmed.core.errors import StoreError, UsageError
from daskdmed.inference.models.outputs import Output, one_output
from daskdmed.loading.chunks import SmallChunk
from daskdmed.tables.writer import StreamWriter

Mode = Literal["keep", "accumulate", "stream"]

#: stands for pixels that are not kept
_NO_PIXELS = np.empty((0,), np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedPiece:
    """What was made of one small chunk.

    Parameters
    ----------
    source_smallchunk : SmallChunk
        Where it came from. Its pixels are let go, so that keeping pieces keeps no batches;
        their extent along each spatial axis is `size`.
    data : number, array or tensor
        The result. Anything may be kept or folded; what is streamed to disk has the same
        shape and type for all windows.
    """

    source_smallchunk: SmallChunk
    data: Any
    size: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.source_smallchunk, SmallChunk):
            raise UsageError(
                "source_smallchunk must be a small chunk of the batch (batch[2][i]), got "
                f"{type(self.source_smallchunk).__name__}"
            )
        pixels = self.source_smallchunk.data
        size = tuple(pixels.shape[: len(self.source_smallchunk.origin)])
        object.__setattr__(self, "size", size)
        bare = replace(self.source_smallchunk, data=_NO_PIXELS, target=None)
        object.__setattr__(self, "source_smallchunk", bare)

    @classmethod
    def of_batch(
        cls, smallchunks: Iterable[SmallChunk], values: Any, output: Output | None = None
    ) -> list[ProcessedPiece]:
        """One piece for each small chunk of a batch.

        Parameters
        ----------
        smallchunks : SmallChunks
            Third part of a batch.
        values : array or tensor, shape (n, ...)
            One result for each.
        output : int or str, optional
            Which one of several such outputs.

        Raises
        ------
        UsageError
            Their numbers differ, or there are several outputs and none is named.
        """
        chunks = list(smallchunks)
        n = len(chunks)
        if output is not None or not isinstance(values, list) or len(values) != n:
            values = one_output(values, n, output)
        elif n and all(getattr(value, "shape", ())[:1] == (n,) for value in values):
            raise UsageError(
                f"a list of {n} arrays with {n} rows each, for {n} small chunks, may be a result "
                "for each of them or so many outputs: stack the results to one array (np.stack), "
                "or name the output, for example output=0"
            )
        if len(chunks) != len(values):
            raise UsageError(f"{len(values)} results for {len(chunks)} small chunks")
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = (values.float() if "bfloat16" in str(values.dtype) else values).numpy()
        return [cls(c, v) for c, v in zip(chunks, values, strict=True)]


class StreamCollector(ABC):
    """Makes pieces of the batches of a loader, and keeps, folds or streams them.

    Parameters
    ----------
    loader : SlidingWindowDL, LightDL or iterable of batches
        Where batches come from. It is neither started before `start_collecting` nor closed.
    mode : {"keep", "accumulate", "stream"}, optional
        "keep": all pieces of each patient, in memory. "accumulate": one value per patient,
        see `accumulate`. "stream": rows on disk by `writer`, nothing in memory. Default:
        "stream" with a writer, else "keep".
    writer : StreamWriter, optional
        Closed when collecting ends, aborted when it fails.
    progress : bool
        Show a progress bar over batches.

    Raises
    ------
    UsageError
        An unknown mode, "stream" without a writer, or a writer without "stream".

    Examples
    --------
    >>> class Brightness(StreamCollector):
    ...     def process_pieceofstream(self, batch):
    ...         x, patients, windows = batch
    ...         return ProcessedPiece.of_batch(windows, x.float().mean((1, 2, 3)))
    """

    def __init__(
        self,
        loader: Any,
        *,
        mode: Mode | None = None,
        writer: StreamWriter | None = None,
        progress: bool = False,
    ) -> None:
        mode = mode or ("keep" if writer is None else "stream")
        if mode not in get_args(Mode):
            raise UsageError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if (mode == "stream") != (writer is not None):
            raise UsageError(
                f"mode={mode!r} {'needs' if writer is None else 'takes no'} writer=; "
                "rows on disk are mode='stream' with a StreamWriter"
            )
        self.loader = loader
        self.mode: Mode = mode
        self.writer = writer
        self.progress = progress
        #: whether the loader has come to its end
        self.stream_ended = False
        self._results: dict[str, Any] = {}
        self._finished = False

    # -- what users write -------------------------------------------------------------

    @abstractmethod
    def process_pieceofstream(self, batch: Any) -> Sequence[ProcessedPiece]:
        """Make pieces of one batch, ``(x, patients, smallchunks)``.

        Usually one per small chunk; fewer or none leave out windows, which are then holes in
        a map.
        """

    def accumulate(self, previous: Any, piece: ProcessedPiece, patient: str) -> Any:
        """Fold one piece into what a patient has so far, None at first; for "accumulate"."""
        raise UsageError(
            f"mode='accumulate' needs {type(self).__name__}.accumulate(previous, piece, patient)"
        )

    def get_flag_finishcollecting(self) -> bool:
        """Whether collecting is over; asked after every batch and at the end of the stream.

        By default when the loader has come to its end. Override it to stop sooner, which
        an endless loader needs; what has been written by then is completed as it is.
        """
        return self.stream_ended

    # -- collecting -------------------------------------------------------------------

    def start_collecting(self) -> dict[str, Any]:
        """Take batches until it is over.

        Returns
        -------
        dict
            Patient id -> list of pieces ("keep"), or folded value ("accumulate"); for
            "stream" patient id -> path of its table.

        Raises
        ------
        UsageError, StoreError, Exception
            The collector has been used before, a piece is none, the table cannot be written,
            or what the loader or `process_pieceofstream` raises; nothing half-written is left
            under the final names.
        """
        if self._finished:
            raise UsageError("this collector has collected already; make a new one")
        self._finished = True
        try:
            self._collect()
        except BaseException as error:
            if self.writer is not None:
                if isinstance(error, Exception):
                    # tables that are over are whole: what was handed over is written first
                    with contextlib.suppress(StoreError):
                        self.writer.flush()
                self.writer.abort()
            raise
        if self.writer is not None:
            self.writer.close()
            return dict(self.writer.paths)
        return self._results

    @property
    def results(self) -> dict[str, Any]:
        """What has been kept or folded so far, by patient id."""
        return self._results

    def _collect(self) -> None:
        tally = _Tally(self.loader, self.writer)
        with _told(self.loader, "stream", self.progress) as advance:
            for batch in self.loader:
                pieces = self.process_pieceofstream(batch)
                self._dispatch(pieces)
                tally.count(batch[2])
                del batch
                advance()
                if self.get_flag_finishcollecting():
                    return
        self.stream_ended = True
        self.get_flag_finishcollecting()

    def _dispatch(self, pieces: Sequence[ProcessedPiece]) -> None:
        for piece in pieces:
            if not isinstance(piece, ProcessedPiece):
                raise UsageError(
                    f"{type(self).__name__}.process_pieceofstream must return a list of "
                    f"ProcessedPiece, got an item of type {type(piece).__name__}"
                )
        if self.writer is not None:
            self.writer.write(pieces)
            return
        for piece in pieces:
            patient = str(piece.source_smallchunk.patient.id)
            if self.mode == "keep":
                self._results.setdefault(patient, []).append(piece)
            else:
                before = self._results.get(patient)
                self._results[patient] = self.accumulate(before, piece, patient)


class _Tally:
    """Tells the writer which images there are, and when the windows of a patient are over."""

    def __init__(self, loader: Any, writer: StreamWriter | None) -> None:
        self._writer = writer
        self._left: dict[str, int] = {}
        if writer is None or not hasattr(loader, "windows_of"):
            return
        if loader.position:
            raise UsageError(
                f"the loader stands behind window {loader.position} of its pass, and a table "
                "written from there would lack the windows before: call rewind(), or make a new "
                "loader without the patients whose tables are complete (StreamWriter.finished)"
            )
        windows_of = loader.windows_of
        for (patient, _), count in windows_of.items():
            self._left[patient] = self._left.get(patient, 0) + count
        if loader.world_size > 1 and not writer.part:
            raise UsageError(
                f"{loader.world_size} ranks write tables of the same patients: give each its "
                f"own files with StreamWriter(..., part='rank-{loader.rank}')"
            )
        alone = loader.world_size == 1
        writer.expect([i for i in loader.images if alone or windows_of.get((i.patient, i.record))])

    def count(self, smallchunks: Any) -> None:
        if self._writer is None or not self._left:
            return
        for patient in smallchunks.patients:
            key = str(patient.id)
            self._left[key] -= 1
            if not self._left[key]:
                self._writer.finish(key)


@contextlib.contextmanager
def _told(loader: Any, name: str, show: bool) -> Iterator[Callable[[], None]]:
    """Batches as events, and as a progress bar; gives what to call after each."""
    run, numbers = uuid.uuid4().hex, itertools.count()
    with progress.bar(run, name, show, unit="batch"):
        total = 0
        with contextlib.suppress(TypeError):  # an endless loader has no length
            total = len(loader)
        if events.listening():
            events.emit(events.RunStarted(run, name, "", total=total, done=0))

        def advance() -> None:
            number = next(numbers)
            if events.listening():
                events.emit(events.BlockDone(run, name, "", index=(number,)))

        yield advance
        if events.listening():
            done = next(numbers)
            events.emit(events.RunFinished(run, name, "", total=total, done=done))


class _FunctionCollector(StreamCollector):
    """A collector made of functions."""

    def __init__(
        self,
        loader: Any,
        process: Callable[[Any], Any],
        fold: Callable[[Any, ProcessedPiece, str], Any] | None,
        output: Output | None,
        **options: Any,
    ) -> None:
        super().__init__(loader, **options)
        self._process, self._fold, self._output = process, fold, output

    def process_pieceofstream(self, batch: Any) -> Sequence[ProcessedPiece]:
        """The user's function; an array of values stands for one piece per small chunk."""
        made = self._process(batch)
        if isinstance(made, (list, tuple)) and all(isinstance(p, ProcessedPiece) for p in made):
            return made
        return ProcessedPiece.of_batch(batch[2], made, self._output)

    def accumulate(self, previous: Any, piece: ProcessedPiece, patient: str) -> Any:
        """The user's function."""
        assert self._fold is not None
        return self._fold(previous, piece, patient)


def run_stream(
    loader: Any,
    process: Callable[[Any], Any] | type[StreamCollector],
    writer: StreamWriter | None = None,
    *,
    fold: Callable[[Any, ProcessedPiece, str], Any] | None = None,
    output: Output | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Take all batches of a loader, process them, and keep, fold or write the results.

    Parameters
    ----------
    loader, writer, progress
        As for `StreamCollector`.
    process : callable or class
        ``f((x, patients, smallchunks))`` gives a list of `ProcessedPiece`, or one value
        (number, vector, map) per small chunk as an array or tensor. Or a subclass of
        `StreamCollector`.
    fold : callable, optional
        ``fold(previous, piece, patient)``: accumulate instead of keeping all pieces.
    output : int or str, optional
        Which one, of a function that returns several values per small chunk, such as a model's
        (logits, features): by position, key or name, as for `daskdmed.heatmap`.

    Returns
    -------
    dict
        By patient id: pieces, folded value, or path of the table.

    Raises
    ------
    UsageError, StoreError
        `writer` and `fold` together, results that do not fit the batch, or a table that cannot
        be written.

    Examples
    --------
    >>> with SlidingWindowDL(dataset, kernel_size=224) as loader:  # doctest: +SKIP
    ...     run_stream(loader, lambda b: model(b[0]), StreamWriter("features"))
    """
    if writer is not None and fold is not None:
        raise UsageError("writer= and fold= are two modes: give one of them")
    mode: Mode = "stream" if writer is not None else "keep" if fold is None else "accumulate"
    if isinstance(process, type):
        if not issubclass(process, StreamCollector) or fold is not None:
            raise UsageError(
                f"process={process!r} must be a function or a subclass of StreamCollector; "
                "a subclass folds in its method accumulate"
            )
        if output is not None:
            raise UsageError("output= is for functions; a subclass picks the output itself")
        return process(loader, writer=writer, progress=progress).start_collecting()
    given: Any = process
    if not callable(given) or hasattr(given, "state_dict"):
        raise UsageError(
            f"process= must be callable with a batch (x, patients, smallchunks), got "
            f"{type(given).__name__}; of a module make one: lambda batch: model(batch[0].float() "
            "/ 255), or see daskdmed.tables.features"
        )
    return _FunctionCollector(
        loader, process, fold, output, mode=mode, writer=writer, progress=progress
    ).start_collecting()
