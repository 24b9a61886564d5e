"""PyDmed's ``pydmed.streamcollector``: what becomes of the batches of a dataloader.

Not covered: the files (`daskdmed.compat.pydmed.utils.output`). New code uses `daskdmed.heatmap`, or
the `StreamCollector` of `daskdmed.tables`, which writes Parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daskdmed.compat.pydmed.lightdl import (
    PYDMEDRESERVED_DLRETURNEDLASTINSTANCE,
    LightDL,
    SmallChunk,
)
from daskdmed.compat.pydmed.utils.data import Patient
from daskdmed.compat.pydmed.utils.output import StreamWriter
from daskdmed.core.errors import UsageError

__all__ = ["ProcessedPiece", "StatCollector", "Statistic", "StreamCollector"]
_KINDS = ("saveall", "accum", "stream_to_file")


class ProcessedPiece:
    """What was made of a small chunk: `data`, or `stat` by its older name; never both."""

    def __init__(self, source_smallchunk: SmallChunk, data: Any = None, stat: Any = None) -> None:
        if data is not None and stat is not None:
            raise UsageError("ProcessedPiece: give data= or stat=, not both")
        self.stat = data if stat is None else stat
        source_smallchunk.data = None
        self.source_smallchunk = source_smallchunk


class StreamCollector:
    """Takes the batches of a dataloader and keeps, folds or writes what becomes of them.

    Parameters
    ----------
    lightdl : LightDL
        Started and ended here.
    str_collectortype : str
        "saveall": everything is kept, by patient. "accum": folded, see `accum_statistics`.
        "stream_to_file...": text, written as it comes.
    flag_visualizestats : bool
        PyDmed's, which did nothing with it; True is refused.
    kwargs_streamwriter : dict, optional
        Of `StreamWriter`, for "stream_to_file": "rootpath" or "fname_tosave".

    Raises
    ------
    UsageError, StoreError
        An argument is wrong; or what `StreamWriter` raises.
    """

    def __init__(
        self,
        lightdl: LightDL,
        str_collectortype: str,
        flag_visualizestats: bool = False,
        kwargs_streamwriter: dict[str, Any] | None = None,
    ) -> None:
        if not str_collectortype.startswith(_KINDS):
            raise UsageError(
                f"str_collectortype must be one of {', '.join(_KINDS)}, got {str_collectortype!r}"
            )
        if flag_visualizestats:
            raise UsageError("flag_visualizestats=True: nothing is drawn; look at get_finalstats()")
        self.lightdl = lightdl
        self.str_collectortype = str_collectortype
        self._writer: StreamWriter | None = None
        if str_collectortype.startswith("stream_to_file"):
            patients = lightdl.dataset.list_patients
            self._writer = StreamWriter(list_patients=patients, **(kwargs_streamwriter or {}))
        self._kept: dict[Patient, list[Any]] = {}
        self._folded: dict[Patient, Any] = {}
        self._final: dict[Patient, Any] | None = None
        self._done = False

    # -- what a subclass writes ---------------------------------------------------------

    def process_pieceofstream(
        self, returnvalue_of_collatefunction: Any
    ) -> Sequence[ProcessedPiece]:
        """Make pieces of what the dataloader's ``get`` gave."""
        older = getattr(self, "get_statistics", None)
        if older is None:
            raise NotImplementedError(f"{type(self).__name__} has no process_pieceofstream")
        made: Sequence[ProcessedPiece] = older(returnvalue_of_collatefunction)
        return made

    def get_flag_finishcollecting(self) -> bool:
        """Whether to stop; asked after each batch. By default at the end of the stream."""
        return not self.lightdl.is_dl_running() and self.lightdl.queue_lightdl.qsize() == 0

    def accum_statistics(self, prev_accum: Any, new_stat: Any, patient: Patient) -> Any:
        """Fold a piece into what a patient has so far, None at first; for "accum"."""
        raise NotImplementedError(f"{type(self).__name__} has no accum_statistics")

    def collate_stats_onfinishcollecting(
        self, patient: Patient, list_collectedstats: list[Any]
    ) -> Any:
        """What a patient's pieces come to in the end; for "saveall"."""
        return list_collectedstats

    # -- collecting ---------------------------------------------------------------------

    def start_collecting(self) -> None:
        """Take batches until the stream ends, or `get_flag_finishcollecting` says so.

        Then the files are complete, and the dataloader has ended. What a hook or a method raises
        comes out here, after the same.
        """
        if self._done:
            raise UsageError("this collector has collected already; make a new one")
        self._done = True
        try:
            self.lightdl.start()
            while True:
                taken = self.lightdl.get()
                if isinstance(taken, str) and taken == PYDMEDRESERVED_DLRETURNEDLASTINSTANCE:
                    break
                for piece in self.process_pieceofstream(taken):
                    self._dispatch(piece)
                if self.get_flag_finishcollecting():
                    break
        finally:
            if self._writer is not None:
                self._writer.flush_and_close()
            self.lightdl.pause_loading()
        if self.str_collectortype == "saveall":
            self._final = {
                patient: self.collate_stats_onfinishcollecting(patient, kept)
                for patient, kept in self._kept.items()
            }
        elif self.str_collectortype == "accum":
            self._final = self._folded

    def _dispatch(self, piece: ProcessedPiece) -> None:
        patient = piece.source_smallchunk.patient
        if patient is None:
            raise UsageError("a piece's small chunk has no patient; give SmallChunk(patient=)")
        if self._writer is not None:
            if not isinstance(piece.stat, str):
                raise UsageError(
                    f"{type(self).__name__} streams to files, whose rows are text: a piece has "
                    f"data of type {type(piece.stat).__name__}"
                )
            self._writer.write(patient, piece.stat)
        elif self.str_collectortype == "accum":
            before = self._folded.get(patient)
            self._folded[patient] = self.accum_statistics(before, piece.stat, patient)
        else:
            self._kept.setdefault(patient, []).append(piece.stat)

    def get_finalstats(self) -> dict[Patient, Any] | None:
        """Patient -> result of "saveall" and "accum"; None of streams. UsageError: not yet."""
        if not self._done:
            raise UsageError("nothing was collected yet; call start_collecting() first")
        return self._final

    def _repr_html_(self) -> str:
        from daskdmed.compat.pydmed._html import collector_html

        return collector_html(self)


StatCollector = StreamCollector
Statistic = ProcessedPiece
