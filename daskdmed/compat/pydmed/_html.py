"""What PyDmed's objects look like in a notebook: as those of daskdmed that they stand for.

Not covered: dataloaders, which show what makes their batches (`daskdmed.compat.pydmed.lightdl`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.cohort import html as cohort
from daskdmed.cohort.dataset import Dataset as OurDataset
from daskdmed.cohort.patient import Patient as OurPatient
from daskdmed.cohort.record import Record as OurRecord
from daskdmed.cohort.sources import Results
from daskdmed.core.html import (
    Html,
    beside,
    facts,
    in_a_word,
    page,
    soft,
    table,
    title,
    whole_or,
)
from daskdmed.images.shown import Plane
from daskdmed.loading.pictured import pictures

if TYPE_CHECKING:
    from daskdmed.compat.pydmed._hooks import BigChunk, SmallChunk
    from daskdmed.compat.pydmed.streamcollector import StreamCollector
    from daskdmed.compat.pydmed.utils.data import Dataset, Patient, Record

#: of a chunk: longer side of its picture, bytes that it takes, and what is said of it
_SIDE, _BYTES, _FACTS = 256, 40_000, 16
#: patients of a dataset whose labels are counted, and those shown of one that has no files
_COUNTED, _ROWS = 20_000, 10


# ------------------------------------------------------------------------- who and where
def _our_record(record: Record) -> OurRecord:
    path = os.path.join(record.rootdir, record.relativedir)
    return OurRecord(path, facts=record.dict_infos or {})


def _our_patient(patient: Patient) -> OurPatient:
    """Files are records, and what is a word or a number a label; DatasetError without a file."""
    given = patient.dict_records.items()
    records = {str(n): _our_record(one) for n, one in given if hasattr(one, "relativedir")}
    labels = {str(n): v for n, v in given if isinstance(v, (str, int, float, np.generic))}
    return OurPatient(str(patient.int_uniqueid), records, labels)


def record_html(record: Record) -> str:
    """Its picture, and the facts about it."""
    return whole_or(
        lambda: cohort.record_html(_our_record(record)), lambda: page(title(repr(record)))
    )


def patient_html(patient: Patient) -> str:
    """Its files with their pictures, and its labels."""
    return whole_or(
        lambda: cohort.patient_html(_our_patient(patient)),
        lambda: page(title(f"Patient {patient.int_uniqueid}"), facts(_brief(patient.dict_records))),
    )


def dataset_html(dataset: Dataset) -> str:
    """Labels counted, and the first and last patients; of many, or without files, the first."""
    name, patients = dataset.str_dsname, dataset.list_patients

    def ours() -> str:
        return cohort.dataset_html(OurDataset(name, [_our_patient(p) for p in patients]))

    def plainly() -> str:
        rows = [
            (str(p.int_uniqueid), ", ".join(map(str, p.dict_records))) for p in patients[:_ROWS]
        ]
        left = len(patients) - len(rows)
        more = soft(f"and {left:,} more") if left else ""
        shown = table(("patient", "what there is of it"), rows)
        return page(title(name, f"{len(patients):,} patients"), shown, more)

    return plainly() if len(patients) > _COUNTED else whole_or(ours, plainly)


# ------------------------------------------------------------------------- chunks
def bigchunk_html(chunk: BigChunk) -> str:
    """What a loader made."""
    return _chunk("Big chunk", chunk, chunk.dict_info_of_bigchunk)


def smallchunk_html(chunk: SmallChunk) -> str:
    """What a collector made."""
    return _chunk("Small chunk", chunk, chunk.dict_info_of_smallchunk)


def _chunk(name: str, chunk: BigChunk | SmallChunk, info: Mapping[Any, Any] | None) -> str:
    whose = None if chunk.patient is None else f"of patient {chunk.patient.int_uniqueid}"
    heading = title(name, whose, "without data" if chunk.data is None else in_a_word(chunk.data))
    told = facts(_brief(info or {}))
    return whole_or(
        lambda: page(heading, beside(_picture(chunk.data), told)), lambda: page(heading, told)
    )


def _picture(data: Any) -> Html:
    """Of an array (y, x[, c]); of anything else none."""
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "biuf" or not data.size:
        return Html("")
    if data.ndim not in (2, 3):
        return Html("")
    (pixels,) = pictures([data], 2, _SIDE, [None])
    height, width = data.shape[:2]
    return Plane(pixels, (height, width)).html(_SIDE, "its data", most=_BYTES)


# ------------------------------------------------------------------------- what was collected
def collector_html(collector: StreamCollector) -> str:
    """What came of each patient, once it has collected."""
    found = collector._final
    if found is not None:
        return Results({str(p.int_uniqueid): value for p, value in found.items()})._repr_html_()
    said = "has collected" if collector._done else "has not collected yet"
    name = type(collector).__name__
    return page(title(name, f"{collector.str_collectortype}, {said}", repr(collector.lightdl)))


# ------------------------------------------------------------------------- small things
def _brief(given: Mapping[Any, Any]) -> list[tuple[str, str]]:
    rows = [(str(name), in_a_word(value)) for name, value in list(given.items())[:_FACTS]]
    left = len(given) - len(rows)
    return [*rows, ("", f"and {left:,} more")] if left > 0 else rows
