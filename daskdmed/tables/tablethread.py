"""The thread behind a `StreamWriter`: rows into groups, groups into files, files complete.

Not covered: names and refusals (`daskdmed.tables.writer`), file formats
(`daskdmed.tables.formats`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    """One thread that takes work in order, with a bounded number of bytes before it.

    Knows nothing of the object that users hold.
    """

    def __init__(self, limit: int, paths: dict[str, Path]) -> None:
        self._limit, self._paths = limit, paths
        self._pool = ThreadPoolExecutor(1, "daskdmed-writer")
        self._thread: int | None = None
        self._change = threading.Condition()
        self._bytes = self._waiting = 0
        self._error: BaseException | None = None
        self._closed = self._aborted = False
        self._open: dict[str, OpenTable] = {}
        self._like: WindowTable | None = None

    def put(self, item: Rows | Expect | Finish) -> None:
        """Hand over work; waits while the buffer is full."""
        with self._change:
            # one item is always taken, however large
            while self._waiting and self._bytes + item.nbytes > self._limit and not self._error:
                self._change.wait()
            self._raise()
            if self._closed:
                raise StoreError("the writer is closed; make a new one")
            self._waiting += 1
            self._bytes += item.nbytes
            self._pool.submit(self._take, item)

    def drain(self) -> None:
        """Wait until nothing is left to do."""
        if not self._closed:
            self._pool.submit(lambda: None).result()
        self._raise()

    def close(self) -> None:
        """Complete all tables and end the thread; raises what went wrong."""
        with self._change:
            if self._closed:
                return
            self._closed = True
        self._pool.submit(self._guarded, self._finish_all)
        self._pool.shutdown()
        self._raise()

    def abort(self) -> None:
        """Discard what is not complete and end the thread."""
        with self._change:
            if self._closed:
                return
            self._closed = self._aborted = True
        # the garbage collector may call this in the thread itself
        self._pool.shutdown(wait=self._thread != threading.get_ident(), cancel_futures=True)
        self._discard()

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

    def _take(self, item: Rows | Expect | Finish) -> None:
        with self._change:
            self._waiting -= 1
        self._guarded(self._do, item)
        with self._change:
            self._bytes -= item.nbytes
            self._change.notify_all()

    def _guarded(self, work: Callable[..., None], *given: Any) -> None:
        """Do a piece of work, unless something went wrong before."""
        self._thread = threading.get_ident()
        if self._error is not None or self._aborted:
            return
        try:
            work(*given)
        except BaseException as error:  # raised where rows are handed over, whatever it is
            logger.warning("writing rows failed: %s", error)
            self._error = error
            self._discard()

    def _finish_all(self) -> None:
        for key in list(self._open):
            self._finish(key)

    def _discard(self) -> None:
        for table in self._open.values():
            table.abort()
        self._open.clear()

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
    kinds = [(t.ndim, t.value_shape, t.values.dtype) for t in (first, table)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"results of one stream must agree: the first were {first.values.dtype} of shape "
            f"{first.value_shape} ({first.ndim} spatial axes), now {table.values.dtype} of "
            f"shape {table.value_shape} ({table.ndim} spatial axes)"
        )
