"""`StreamWriter`: rows of windows to disk, from a thread of its own.

One table per patient, or one for all. What is written lies under a temporary name until it
is complete, so that a file under its final name is whole. A bounded buffer makes a fast
producer wait for the disk, and what goes wrong there is raised where rows are handed over.

Not covered: the columns (`daskdmed.windows.streams.rows`), the file formats
(`daskdmed.windows.streams.formats`).
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np

from daskdmed.errors import DaskdmedError, StoreError, UsageError
from daskdmed.persistence.budget import to_bytes
from daskdmed.types import PathLike
from daskdmed.windows.streams.formats import FORMATS, Sink, recover, sink_for
from daskdmed.windows.streams.rows import ImageGrid, WindowTable
from daskdmed.windows.streams.tabulate import tabulate

if TYPE_CHECKING:
    from daskdmed.windows.streams.collector import ProcessedPiece

logger = logging.getLogger("daskdmed.windows")

TableFormat = Literal["parquet", "csv", "zarr"]

#: rows and bytes of a row group (Parquet) or chunk (Zarr), at most
_GROUP_ROWS, _GROUP_BYTES = 16384, 32 << 20
#: bytes of incomplete groups of all open tables; beyond it the largest is written
_OPEN_BYTES = 256 << 20


class StreamWriter:
    """Writes `ProcessedPiece` as rows: Parquet, CSV or Zarr, one table per patient or one.

    A context manager: complete on leaving, discarded when left by an exception.

    Parameters
    ----------
    out : path
        A folder for one table per patient (``<patient id>.parquet``), made when missing.
        With a suffix (".parquet", ".csv", ".zarr") or ``per_patient=False`` one table.
    format : {"parquet", "csv", "zarr"}, optional
        By the suffix of `out`, else "parquet". "csv" has the seed's rows: y, x, H, W,
        level, kernel_size, downsample, C, h, w, values.
    per_patient : bool, optional
        By default whether `out` has none of these suffixes.
    overwrite : bool
        Replace tables that are there, each when the new one is complete.
    resume : bool
        Leave tables that are there: `finished` names their patients, to be left out of the
        dataset with ``dataset.filter``.
    part : str
        Added to file names; ranks that share a folder give each its own.
    buffer : int or str, default "64 MiB"
        Rows that wait for the disk; `write` waits when it is full.

    Raises
    ------
    UsageError
        An unknown format, or a URL.
    StoreError
        The one table is there already, or the folder cannot be made.
    MissingExtraError
        Parquet without pyarrow.
    """

    def __init__(
        self,
        out: PathLike,
        *,
        format: TableFormat | None = None,
        per_patient: bool | None = None,
        overwrite: bool = False,
        resume: bool = False,
        part: str = "",
        buffer: int | str = "64 MiB",
    ) -> None:
        if "://" in str(out):
            raise UsageError(f"out={str(out)!r}: tables of windows are written to local paths")
        if overwrite and resume:
            raise UsageError("overwrite= and resume= exclude each other: replace, or go on")
        path = Path(out).absolute()
        known = path.suffix[1:] if path.suffix[1:] in FORMATS else None
        self.format = format or known or "parquet"
        if self.format not in FORMATS:
            raise UsageError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
        self.per_patient = known is None if per_patient is None else bool(per_patient)
        if self.per_patient and known:
            raise UsageError(
                f"out={path.name!r} names one table; give a folder for one per patient"
            )
        FORMATS[self.format].check()
        self.path, self.part = path, part
        self.overwrite, self.resume = overwrite, resume
        folder = path if self.per_patient else path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: cannot make this folder: {error}") from error
        if not self.per_patient:
            self._check_free(self._path_of(""))
        #: patient id -> table, of those that are complete ("" for the one table)
        self.paths: dict[str, Path] = {}
        self._checked: set[str] = set()
        self._work = _Work(to_bytes(buffer), self.paths)
        self._closer = weakref.finalize(self, self._work.abort)

    # -- names ------------------------------------------------------------------------

    def _path_of(self, patient: str) -> Path:
        part = f"-{self.part}" if self.part else ""
        if not self.per_patient:
            stem = self.path.stem if self.path.suffix[1:] == self.format else self.path.name
            return self.path.with_name(f"{stem}{part}.{self.format}")
        name = quote(patient, safe=" ()[]+,=@")
        name = "%2E" + name[1:] if name.startswith(".") else name
        return self.path / f"{name}{part}.{self.format}"

    def _check_free(self, path: Path) -> None:
        recover(path)
        if path.exists() and not self.overwrite:
            raise StoreError(
                f"{path} is there already; give overwrite=True to replace it"
                + (
                    ", or resume=True and leave its patient out (StreamWriter.finished)"
                    if self.per_patient
                    else ", or another out="
                )
            )

    def finished(self, patient: Any) -> bool:
        """Whether a patient (or id) has a complete table; for ``dataset.filter``."""
        path = self._path_of(str(getattr(patient, "id", patient)))
        recover(path)
        return path.exists()

    # -- rows -------------------------------------------------------------------------

    def expect(self, images: Iterable[ImageGrid]) -> None:
        """Announce images, so that those without any row have a table too.

        Raises
        ------
        StoreError
            A table of one of them is there already.
        """
        grids = list(images)
        for image in grids:
            self._claim(image.patient)
        self._work.put(
            _Expect([(self._key(i.patient), self._sink_of(i.patient), i) for i in grids])
        )

    def write(self, pieces: Sequence[ProcessedPiece]) -> None:
        """Hand over rows; waits while the buffer is full.

        Raises
        ------
        UsageError
            Results differ in shape or type, or are no numbers.
        StoreError
            An earlier row could not be written (chained), or the writer is closed.
        """
        for patient, table in tabulate(pieces, by_patient=self.per_patient).items():
            self._claim(patient)
            self._work.put(_Rows(self._key(patient), self._sink_of(patient), table))

    def finish(self, patient: Any) -> None:
        """Complete the table of a patient, no row of whom follows. For one table: nothing."""
        if self.per_patient:
            self._work.put(_Finish(str(getattr(patient, "id", patient))))

    def _key(self, patient: str) -> str:
        return patient if self.per_patient else ""

    def _sink_of(self, patient: str) -> tuple[str, Path, bool]:
        return self.format, self._path_of(patient), not self.per_patient

    def _claim(self, patient: str) -> None:
        key = self._key(patient)
        if key not in self._checked:
            if self.per_patient:
                self._check_free(self._path_of(key))
            self._checked.add(key)

    # -- end --------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until all rows handed over so far have left the buffer.

        Raises
        ------
        StoreError
            One could not be written.
        """
        self._work.drain()

    def close(self) -> None:
        """Write what is left, and give every table its final name. Idempotent.

        Raises
        ------
        StoreError
            Something could not be written; tables that are not complete are discarded.
        """
        self._work.close()
        self._closer.detach()

    def abort(self) -> None:
        """Discard tables that are not complete. Idempotent."""
        self._work.abort()
        self._closer.detach()

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        what = "one table per patient" if self.per_patient else "one table"
        return f"<StreamWriter: {what}, {self.format}, {self.path}, {len(self.paths)} complete>"


class _Rows:
    def __init__(self, key: str, sink: tuple[str, Path, bool], table: WindowTable) -> None:
        self.key, self.sink, self.table = key, sink, table
        self.nbytes = table_bytes(table)


class _Expect:
    nbytes = 0

    def __init__(self, images: list[tuple[str, tuple[str, Path, bool], ImageGrid]]) -> None:
        self.images = images


class _Finish:
    nbytes = 0

    def __init__(self, key: str) -> None:
        self.key = key


def table_bytes(table: WindowTable) -> int:
    """Bytes of the rows of a table, text counted as one pointer."""
    return int(table.values.nbytes + sum(c.nbytes for c in table.columns.values()))


class _Open:
    """A table that is being written: its sink, and rows that make no whole group yet."""

    def __init__(self, sink: tuple[str, Path, bool]) -> None:
        self._what = sink
        self._sink: Sink | None = None
        self._waiting: list[WindowTable] = []
        self._rows = 0
        self._group = 0
        self.nbytes = 0
        self.images: dict[tuple[str, str], ImageGrid] = {}

    def add(self, table: WindowTable) -> None:
        """Take rows, and write the groups that are whole."""
        if self._sink is None:
            per_row = max(table_bytes(table) // max(len(table), 1), 1)
            self._group = max(1, min(_GROUP_ROWS, _GROUP_BYTES // per_row))
            self._sink = self._make_sink(table)
        self._sink.know(table.images)
        self._waiting.append(table)
        self._rows += len(table)
        self.nbytes += table_bytes(table)
        if self._rows >= self._group:
            self.flush(whole=True)

    def flush(self, *, whole: bool = False) -> None:
        """Write what waits; with `whole` only as many rows as make whole groups."""
        if not self._rows or self._sink is None:
            return
        table = WindowTable.concatenate(self._waiting)
        stop = len(table) // self._group * self._group if whole else len(table)
        for first in range(0, stop, self._group):
            self._sink.append(rows_of(table, first, min(first + self._group, stop)))
        rest = rows_of(table, stop, len(table))
        self._waiting = [rest] if len(rest) else []
        self._rows, self.nbytes = len(rest), table_bytes(rest)

    def finish(self, empty_like: WindowTable | None) -> Path:
        """Complete the table under its final name."""
        if self._sink is None:
            ndim = next(iter(self.images.values())).grid.ndim
            like = empty_like if empty_like is not None else WindowTable.empty(ndim)
            self._sink = self._make_sink(rows_of(like, 0, 0))
        self.flush()
        return self._sink.finish()

    def _make_sink(self, like: WindowTable) -> Sink:
        format, path, several = self._what
        sink = sink_for(format, path, several, like=like, group_rows=max(self._group, 1))
        sink.know(self.images.values())
        return sink

    def abort(self) -> None:
        """Remove what was written."""
        if self._sink is not None:
            self._sink.abort()
        self._waiting.clear()


def rows_of(table: WindowTable, first: int, stop: int) -> WindowTable:
    """A stretch of rows, without images."""
    columns: Mapping[str, np.ndarray[Any, Any]] = {
        name: column[first:stop] for name, column in table.columns.items()
    }
    return WindowTable(columns, table.values[first:stop])


class _Work:
    """The queue and the thread. Knows nothing of the object that users hold."""

    def __init__(self, limit: int, paths: dict[str, Path]) -> None:
        self._limit = limit
        self._paths = paths
        self._queue: deque[_Rows | _Expect | _Finish] = deque()
        self._bytes = 0
        self._busy = False
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._state: Literal["open", "closing", "aborting", "closed"] = "open"
        self._open: dict[str, _Open] = {}
        self._like: WindowTable | None = None
        self._thread: threading.Thread | None = None

    def put(self, item: _Rows | _Expect | _Finish) -> None:
        with self._change:
            self._start()
            # one item is always taken, however large
            while self._queue and self._bytes + item.nbytes > self._limit:
                self._raise()
                self._change.wait()
            self._raise()
            if self._state != "open":
                raise StoreError("the writer is closed; make a new one")
            self._queue.append(item)
            self._bytes += item.nbytes
            self._change.notify_all()

    def drain(self) -> None:
        with self._change:
            while (self._queue or self._busy) and self._error is None:
                self._change.wait()
            self._raise()

    def close(self) -> None:
        with self._change:
            if self._state == "closed":
                return
            if self._state == "open":
                self._start()
                self._state = "closing"
                self._change.notify_all()
        self._join()
        self._raise()

    def abort(self) -> None:
        with self._change:
            if self._state == "closed":
                return
            self._state = "aborting"
            self._queue.clear()
            self._change.notify_all()
        self._join()

    def _start(self) -> None:
        if self._thread is None and self._state == "open":
            self._thread = threading.Thread(target=self._work, name="daskdmed-writer", daemon=True)
            self._thread.start()

    def _join(self) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._state = "closed"

    def _raise(self) -> None:
        if self._error is None:
            return
        if isinstance(self._error, DaskdmedError):
            raise self._error
        raise StoreError(
            f"rows could not be written: {type(self._error).__name__}: {self._error}; tables "
            "that were not complete are discarded"
        ) from self._error

    # -- in the thread ----------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._loop()
            if self._state == "closing":
                for key in list(self._open):
                    self._finish(key)
        except BaseException as error:  # raised where rows are handed over, whatever it is
            logger.warning("writing rows failed: %s", error)
            with self._change:
                self._error = error
                self._queue.clear()
                self._bytes = 0
        finally:
            for table in self._open.values():
                table.abort()
            self._open.clear()
            with self._change:
                self._busy = False
                self._change.notify_all()

    def _loop(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                while not self._queue and self._state == "open":
                    self._change.wait()
                if self._state == "aborting" or not self._queue:
                    return
                item = self._queue.popleft()
                self._busy = True
            self._do(item)
            with self._change:
                self._bytes = max(self._bytes - item.nbytes, 0)
            del item

    def _do(self, item: _Rows | _Expect | _Finish) -> None:
        if isinstance(item, _Finish):
            self._finish(item.key)
            return
        if isinstance(item, _Expect):
            for key, sink, image in item.images:
                table = self._open.setdefault(key, _Open(sink))
                table.images.setdefault((image.patient, image.record), image)
            return
        if self._like is None:
            self._like = rows_of(item.table, 0, 0)
        check_alike(self._like, item.table)
        if item.key in self._paths:
            raise StoreError(
                f"{self._paths[item.key]} is complete, and more rows of it came; finish a "
                "patient after its last row"
            )
        if item.key not in self._open:
            self._open[item.key] = _Open(item.sink)
        self._open[item.key].add(item.table)
        held = sum(table.nbytes for table in self._open.values())
        if held > _OPEN_BYTES:
            max(self._open.values(), key=lambda t: t.nbytes).flush()

    def _finish(self, key: str) -> None:
        table = self._open.get(key)
        if table is not None:
            self._paths[key] = table.finish(self._like)
            del self._open[key]


def check_alike(first: WindowTable, table: WindowTable) -> None:
    """Refuse rows whose values or axes differ from those before.

    Raises
    ------
    UsageError
        Says how they differ.
    """
    same = (first.ndim, first.value_shape, first.values.dtype) == (
        table.ndim,
        table.value_shape,
        table.values.dtype,
    )
    if not same:
        raise UsageError(
            f"results of one stream must agree: the first were {first.values.dtype} of shape "
            f"{first.value_shape} ({first.ndim} spatial axes), now {table.values.dtype} of "
            f"shape {table.value_shape} ({table.ndim} spatial axes)"
        )
