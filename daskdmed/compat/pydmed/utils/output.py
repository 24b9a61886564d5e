"""PyDmed's ``pydmed.utils.output``: rows of text into one file, or one of each patient."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from daskdmed.compat.pydmed.utils.data import Patient
from daskdmed.core.errors import StoreError, UsageError

#: files that are open at a time; others are opened again when a row comes
_OPEN = 64


class StreamWriter:
    """Writes rows as they come: what was written is in the files after `flush_and_close`.

    Parameters
    ----------
    list_patients : list of Patient, optional
        Whose files are made at once, empty ones too; others when their first row comes.
    rootpath : str, optional
        An empty folder that is there; each patient has ``patient_<id>.csv`` in it.
    fname_tosave : str, optional
        In its place one file for all, ``*.csv``.
    waiting_time_before_flush : float, optional
        PyDmed's; nothing has to be waited for here.

    Raises
    ------
    UsageError, StoreError
        Both or neither of them are given, the file is no ``.csv``, or the folder is not there or
        not empty.
    """

    def __init__(
        self,
        list_patients: Sequence[Patient] | None = None,
        rootpath: str | None = None,
        fname_tosave: str | None = None,
        waiting_time_before_flush: float = 3,
    ) -> None:
        if (rootpath is None) == (fname_tosave is None):
            raise UsageError("StreamWriter: give rootpath= or fname_tosave=, one of them")
        self._folder = None if rootpath is None else Path(rootpath)
        self._file = None if fname_tosave is None else Path(fname_tosave)
        if self._file is not None and self._file.suffix != ".csv":
            raise UsageError(f"fname_tosave={fname_tosave!r} must end in .csv")
        if self._folder is not None:
            if not self._folder.is_dir():
                raise StoreError(f"{self._folder}: this folder is not there; make it first")
            if any(self._folder.iterdir()):
                raise StoreError(f"{self._folder}: this folder is not empty; give an empty one")
        self._open: OrderedDict[Path, IO[str]] = OrderedDict()
        self._closed = False
        for patient in list_patients or ():
            self._of(patient)

    def start(self) -> None:
        """PyDmed's; there is no process to start."""

    def _path(self, patient: Patient) -> Path:
        if self._file is not None:
            return self._file
        assert self._folder is not None
        return self._folder / f"patient_{patient.int_uniqueid}.csv"

    def _of(self, patient: Patient) -> IO[str]:
        path = self._path(patient)
        file = self._open.pop(path, None)
        if file is None:
            try:
                file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise StoreError(f"{path}: cannot be written: {error}") from error
            if len(self._open) >= _OPEN:
                self._open.popitem(last=False)[1].close()
        self._open[path] = file
        return file

    def write(self, patient: Patient, str_towrite: str) -> None:
        """Append text to the file of a patient. StoreError: it is closed, or the disk is full."""
        if self._closed:
            raise StoreError(f"a row of {patient!r} comes after flush_and_close()")
        file = self._of(patient)
        try:
            file.write(str_towrite)
        except OSError as error:
            raise StoreError(f"{self._path(patient)}: cannot be written: {error}") from error

    def flush_and_close(self) -> None:
        """Write out what is left and close the files. Idempotent. StoreError: the disk is full."""
        self._closed = True
        while self._open:
            path, file = self._open.popitem()
            try:
                file.close()
            except OSError as error:
                raise StoreError(f"{path}: cannot be written: {error}") from error
