"""The thread behind a `StreamWriter`: rows into groups, groups into files, files complete.

Not covered: names and refusals (`daskdmed.tables.writer`), file formats
(`daskdmed.tables.formats`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from daskdmed.core.errors import DaskdmedError, StoreError, UsageError
from daskdmed.tables.formats import FORMATS, TableFile
from daskdmed.tables.rows import WindowTable
from daskdmed.tiling.imagegrid import ImageGrid

logger = logging.getLogger("daskdmed.tables")

#: rows and bytes of a row group of Parquet, at most
_GROUP_ROWS, _GROUP_BYTES = 16384, 32 << 20
#: bytes of incomplete groups of all open tables; beyond it the largest is written
_OPEN_BYTES = 256 << 20


class Rows:
    """Rows of one table, and where that table lies."""

    def __init__(self, key: str, path: Path, table: WindowTable) -> None:
        self.key, self.path, self.table = key, path, table
        self.nbytes = table_bytes(table)


class Expect:
    """Images that have a table even without rows."""

    nbytes = 0

    def __init__(self, images: list[tuple[str, Path, ImageGrid]]) -> None:
        self.images = images


class Finish:
    """A table of which no row follows."""

    nbytes = 0

    def __init__(self, key: str) -> None:
        self.key = key


def table_bytes(table: WindowTable) -> int:
    """Bytes of the rows of a table, text counted as one pointer."""
    return int(table.values.nbytes + sum(c.nbytes for c in table.columns.values()))


class OpenTable:
    """A table that is being written: its file, and rows that make no whole group yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TableFile | None = None
        self._waiting: list[WindowTable] = []
        self._rows = 0
        self._group = 0
        self.nbytes = 0
        self.images: dict[tuple[str, str], ImageGrid] = {}

    def add(self, table: WindowTable) -> None:
        """Take rows, and write the groups that are whole."""
        if self._file is None:
            per_row = max(table_bytes(table) // max(len(table), 1), 1)
            self._group = max(1, min(_GROUP_ROWS, _GROUP_BYTES // per_row))
            self._file = self._open(table)
        self._file.know(table.images)
        self._waiting.append(table)
        self._rows += len(table)
        self.nbytes += table_bytes(table)
        if self._rows >= self._group:
            self.flush(whole=True)

    def flush(self, *, whole: bool = False) -> None:
        """Write what waits; with `whole` only as many rows as make whole groups."""
        if not self._rows or self._file is None:
            return
        table = WindowTable.concatenate(self._waiting)
        stop = len(table) // self._group * self._group if whole else len(table)
        for first in range(0, stop, self._group):
            self._file.append(rows_of(table, first, min(first + self._group, stop)))
        rest = rows_of(table, stop, len(table))
        self._waiting = [rest] if len(rest) else []
        self._rows, self.nbytes = len(rest), table_bytes(rest)

    def finish(self, empty_like: WindowTable | None) -> Path:
        """Complete the table under its final name."""
        if self._file is None:
            ndim = next(iter(self.images.values())).grid.ndim
            like = empty_like if empty_like is not None else WindowTable.empty(ndim)
            self._file = self._open(like)
        self.flush()
        return self._file.finish()

    def _open(self, like: WindowTable) -> TableFile:
        file = FORMATS[self._path.suffix[1:]](self._path, like)
        file.know(self.images.values())
        return file

    def abort(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            self._file.abort()
        self._waiting.clear()


def rows_of(table: WindowTable, first: int, stop: int) -> WindowTable:
    """A stretch of rows, without images."""
    columns: Mapping[str, np.ndarray[Any, Any]] = {
        name: column[first:stop] for name, column in table.columns.items()
    }
    return WindowTable(columns, table.values[first:stop])


class TableThread:
    """The queue and the thread. Knows nothing of the object that users hold."""

    def __init__(self, limit: int, paths: dict[str, Path]) -> None:
        self._limit = limit
        self._paths = paths
        self._queue: deque[Rows | Expect | Finish] = deque()
        self._bytes = 0
        self._busy = False
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._state: Literal["open", "closing", "aborting", "closed"] = "open"
        self._open: dict[str, OpenTable] = {}
        self._like: WindowTable | None = None
        self._thread: threading.Thread | None = None

    def put(self, item: Rows | Expect | Finish) -> None:
        """Hand over work; waits while the buffer is full."""
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
        """Wait until nothing is left to do."""
        with self._change:
            while (self._queue or self._busy) and self._error is None:
                self._change.wait()
            self._raise()

    def close(self) -> None:
        """Complete all tables and end the thread; raises what went wrong."""
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
        """Discard what is not complete and end the thread."""
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

    def _do(self, item: Rows | Expect | Finish) -> None:
        if isinstance(item, Finish):
            self._finish(item.key)
            return
        if isinstance(item, Expect):
            for key, path, image in item.images:
                table = self._open.setdefault(key, OpenTable(path))
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
            self._open[item.key] = OpenTable(item.path)
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
    """Refuse rows whose values or axes differ from those before."""
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
