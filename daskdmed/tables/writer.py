"""`StreamWriter`: rows of windows to disk, from a thread of its own.

One table per patient, or one for all. What is written lies under a temporary name until it
is complete, so that a file under its final name is whole. A bounded buffer makes a fast
producer wait for the disk, and what goes wrong there is raised where rows are handed over.

Not covered: the columns (`daskdmed.tables.rows`), the file formats
(`daskdmed.tables.formats`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from daskdmed.core.errors import StoreError, UsageError
from daskdmed.core.places import local_path
from daskdmed.core.types import PathLike
from daskdmed.persistence.budget import to_bytes
from daskdmed.store.location import file_name
from daskdmed.tables.formats import FORMATS, require_pyarrow
from daskdmed.tables.tablethread import Expect, Finish, Rows, TableThread
from daskdmed.tables.tabulate import tabulate
from daskdmed.tiling.imagegrid import ImageGrid

if TYPE_CHECKING:
    from daskdmed.tables.collector import ProcessedPiece


TableFormat = Literal["parquet", "csv"]


class StreamWriter:
    """Writes `ProcessedPiece` as rows: Parquet or CSV, one table per patient or one.

    A context manager: complete on leaving, discarded when left by an exception.

    Parameters
    ----------
    out : path
        A folder for one table per patient (``<patient id>.parquet``), made when missing.
        With a suffix (".parquet", ".csv") or ``per_patient=False`` one table.
    format : {"parquet", "csv"}, optional
        By the suffix of `out`, else "parquet". Both have the same columns.
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
        pyarrow is not installed.
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
        place = local_path(out)
        if place is None:
            raise UsageError(f"out={str(out)!r}: tables of windows are written to local paths")
        if overwrite and resume:
            raise UsageError("overwrite= and resume= exclude each other: replace, or go on")
        path = Path(place)
        known = path.suffix[1:] if path.suffix[1:] in FORMATS else None
        self.format = format or known or "parquet"
        if self.format not in FORMATS:
            raise UsageError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
        self.per_patient = known is None if per_patient is None else bool(per_patient)
        if self.per_patient and known:
            raise UsageError(
                f"out={path.name!r} names one table; give a folder for one per patient"
            )
        require_pyarrow()
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
        self._work = TableThread(to_bytes(buffer), self.paths)
        self._closer = weakref.finalize(self, self._work.abort)

    # -- names ------------------------------------------------------------------------

    def _path_of(self, patient: str) -> Path:
        part = f"-{self.part}" if self.part else ""
        if not self.per_patient:
            stem = self.path.stem if self.path.suffix[1:] == self.format else self.path.name
            return self.path.with_name(f"{stem}{part}.{self.format}")
        return self.path / f"{file_name(patient)}{part}.{self.format}"

    def _check_free(self, path: Path) -> None:
        if path.is_dir():
            raise StoreError(f"{path} is a folder; give another out=")
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
        return self._path_of(str(getattr(patient, "id", patient))).exists()

    def expect(self, images: Iterable[ImageGrid]) -> None:
        """Announce images, so that those without any row have a table too."""
        grids = list(images)
        for image in grids:
            self._claim(image.patient)
        self._work.put(Expect([(self._key(i.patient), self._path_of(i.patient), i) for i in grids]))

    def write(self, pieces: Sequence[ProcessedPiece]) -> None:
        """Hand over rows; waits while the buffer is full.

        UsageError where results are no numbers or differ in shape or type, StoreError where an
        earlier row could not be written (chained), or the writer is closed.
        """
        for patient, table in tabulate(pieces, by_patient=self.per_patient).items():
            self._claim(patient)
            self._work.put(Rows(self._key(patient), self._path_of(patient), table))

    def finish(self, patient: Any) -> None:
        """Complete the table of a patient, no row of whom follows. For one table: nothing."""
        if self.per_patient:
            self._work.put(Finish(str(getattr(patient, "id", patient))))

    def _key(self, patient: str) -> str:
        return patient if self.per_patient else ""

    def _claim(self, patient: str) -> None:
        key = self._key(patient)
        if key not in self._checked:
            if self.per_patient:
                self._check_free(self._path_of(key))
            self._checked.add(key)

    def flush(self) -> None:
        """Wait until all rows handed over so far have left the buffer, or could not be written."""
        self._work.drain()

    def close(self) -> None:
        """Write what is left, and give every table its final name. Idempotent.

        StoreError where something could not be written; tables that are not complete are
        discarded.
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
