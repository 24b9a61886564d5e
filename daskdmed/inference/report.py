"""What a run over several images did: ``run.json`` and ``run.csv`` beside its results.

One row per image: what became of it and why, how many windows, in how many seconds. Written
when the first image begins and again every few seconds that an image begins or ends, so that a
run that is killed has told how far it was.

Not covered: progress on the screen (`daskdmed.core.progress`).
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import functools
import importlib.metadata
import io
import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daskdmed import __version__
from daskdmed.cohort.sources import Image, Images, LeftOut
from daskdmed.core.errors import DatasetError, StoreError
from daskdmed.core.files import new_file, sweep_partials, write_failure
from daskdmed.core.places import filesystem, is_remote, local_path
from daskdmed.core.types import PathLike
from daskdmed.inference.models.window import WindowModel
from daskdmed.inference.resultjob import ResultJob

#: names of the files
JSON, CSV = "run.json", "run.csv"
#: seconds between two times that a report is written
_EVERY = 5.0
_COLUMNS = (
    "patient", "record", "state", "windows", "seconds", "windows_per_second", "reason", "result",
)  # fmt: skip
#: entries of an argument that are written one by one; masks of a cohort have many more
_MOST = 16
#: arguments of a call that are no parameters of its results
_NOT_SAID = (
    "image", "dataset", "model", "out", "client", "progress", "compute", "settings", "folder",
    "place", "devices",
)  # fmt: skip


class RunReport:
    """The report of one run. `out` is its folder; without one nothing is written.

    The state of an image is "done", "done before" (its numbers are those of the report that
    was there), "skipped", "stopped" (begun, and not ended), or "not begun". Images of other runs
    in that folder keep their rows.
    """

    def __init__(
        self,
        out: PathLike | None,
        kind: str,
        images: Images,
        left_out: LeftOut,
        model: WindowModel,
        said: Mapping[str, Any],
    ) -> None:
        self._out = None if out is None else local_path(out) or str(out).rstrip("/")
        self._model = model
        self._left_out, self._began, self._written = left_out, time.time(), 0.0
        self._rows = {image.key: _row(image) for image in images}
        self._before = {row["patient"]: row for row in self._earlier()}
        self._facts: dict[str, Any] = {
            "format": "daskdmed-run",
            "version": 1,
            "kind": kind,
            "state": "running",
            "error": "",
            "began": _when(self._began),
            "model": "",
            "seed": None,  # nothing is drawn: the same arguments give the same bits
            "parameters": {k: _plain(v) for k, v in said.items() if k not in _NOT_SAID},
            "versions": {
                "daskdmed": __version__,
                "python": platform.python_version(),
                **{name: _version(name) for name in ("dask", "numpy", "torch", "zarr")},
            },
        }

    @contextlib.contextmanager
    def told(self) -> Iterator[RunReport]:
        """Write the report when the run ends, whatever ends it."""
        try:
            yield self
        except BaseException as error:
            notes = "; ".join([str(error), *getattr(error, "__notes__", ())])
            self._facts |= {"state": "stopped", "error": f"{type(error).__name__}: {notes}"}
            with contextlib.suppress(StoreError):  # what ended the run is what counts
                self._write()
            raise
        self._facts["state"] = "finished"
        self._write()

    def began(self, key: str, job: ResultJob) -> None:
        """The work on an image begins."""
        start, row = time.perf_counter(), self._rows[key]
        row |= {"state": "stopped", "windows": job.windows, "result": str(job.location)}
        before, part = job.was_done, job.goes_on
        job.ended = lambda: self._ended(key, start, before=before, part=part)
        self._write_at_times()

    def _ended(self, key: str, start: float, *, before: bool, part: bool) -> None:
        """An image is complete; with `before` it was so when the run began, or `part` of it."""
        row, seconds = self._rows[key], time.perf_counter() - start
        if before:
            known = self._before.get(key, {})
            row |= {name: known.get(name) for name in ("seconds", "windows_per_second")}
            row["state"] = "done before"
        else:
            speed = None if part else round(row["windows"] / max(seconds, 1e-9), 1)
            row |= {"state": "done", "seconds": round(seconds, 3), "windows_per_second": speed}
        self._write_at_times()

    def _write_at_times(self) -> None:
        if time.time() - self._written > _EVERY:
            with contextlib.suppress(StoreError):  # said at the end, if it still cannot be written
                self._write()

    def _earlier(self) -> list[dict[str, Any]]:
        """Rows of the report that is there, if any."""
        if self._out is None:
            return []
        try:
            with _reading(f"{self._out}/{JSON}") as file:
                rows = json.load(file)["images"]
            return [{name: row[name] for name in _COLUMNS} for row in rows]
        except (OSError, ValueError, LookupError, TypeError):
            return []

    def _fingerprint(self) -> str:
        try:
            return self._model.fingerprint
        except Exception:  # a module whose weights are made at its first call, and had none
            return ""

    def _write(self) -> None:
        if self._out is None:
            return
        for failure in self._left_out.failures:
            row = self._rows.get(failure.patient)
            if row is not None and not row["state"].startswith("done"):
                row |= {"state": "skipped", "reason": failure.reason}
        self._facts["model"] = self._fingerprint()
        # parts of a cohort may be given to several runs, which share the folder
        others = [row for row in self._earlier() if row["patient"] not in self._rows]
        now, rows = time.time(), [*self._rows.values(), *others]
        done = [row for row in self._rows.values() if row["state"] == "done"]
        facts = {
            **self._facts,
            "written": _when(now),
            "seconds": round(now - self._began, 3),
            "windows": sum(row["windows"] for row in done),
            "images": rows,
        }
        table = io.StringIO()
        writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _put(f"{self._out}/{JSON}", json.dumps(facts, indent=1), self._began)
        _put(f"{self._out}/{CSV}", table.getvalue(), self._began)
        self._written = now


def _row(image: Image) -> dict[str, Any]:
    try:
        record = image.record_name
    except DatasetError:
        record = image.request.title
    row = dict.fromkeys(_COLUMNS)
    return row | {"patient": image.key, "record": record, "state": "not begun", "reason": ""}


def _reading(place: str) -> Any:
    if not is_remote(place):
        return open(place, encoding="utf-8")
    fs, inner = filesystem(place)
    return fs.open(inner, "r")


def _put(place: str, text: str, began: float) -> None:
    """Write a file as a whole."""
    if not is_remote(place):
        with new_file(place, overwrite=True) as path:
            path.write_text(text, encoding="utf-8")
        sweep_partials(Path(place), began)
        return
    fs, inner = filesystem(place)
    try:
        fs.pipe_file(inner, text.encode())
    except OSError as error:
        raise write_failure(place, error) from error


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """Parameters as JSON has them, others as text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, Mapping)) and len(value) > _MOST:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    named = callable(value) or hasattr(value, "shape")
    return type(value).__name__ if named else str(value)
