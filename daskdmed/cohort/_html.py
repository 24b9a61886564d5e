"""What a dataset looks like in a notebook: first and last patients, counts of each label."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daskdmed.cohort.dataset import Dataset
    from daskdmed.cohort.record import Patient

_EDGE_ROWS = 5
_VALUES = 8


def dataset_html(dataset: Dataset) -> str:
    """An HTML table, short whatever the size of the dataset."""
    names = dataset.label_names
    head = "".join(f"<th>{_text(n)}</th>" for n in ("patient", "records", *names))
    patients = dataset.patients
    if len(patients) > 2 * _EDGE_ROWS + 1:
        rows = [_row(p, names) for p in patients[:_EDGE_ROWS]]
        rows.append(f'<tr><td colspan="{2 + len(names)}">&hellip;</td></tr>')
        rows += [_row(p, names) for p in patients[-_EDGE_ROWS:]]
    else:
        rows = [_row(p, names) for p in patients]
    counts = "".join(f"<li><b>{_text(n)}</b>: {_counts(dataset, n)}</li>" for n in names)
    return (
        f"<div><b>{_text(dataset.name)}</b>: {len(patients)} patients"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        + (f"<ul>{counts}</ul>" if counts else "")
        + "</div>"
    )


def _row(patient: Patient, names: list[str]) -> str:
    records = "<br>".join(f"{_text(n)}: {_text(_where(r))}" for n, r in patient.records.items())
    labels = "".join(f"<td>{_text(patient.labels.get(n, ''))}</td>" for n in names)
    return f"<tr><td>{_text(patient.id)}</td><td>{records}</td>{labels}</tr>"


def _where(record: Any) -> str:
    if record.array is None:
        return str(record.uri) if record.uri is not None else repr(record.annotations())
    return f"{record.array.dtype} {tuple(record.array.shape)}"


def _counts(dataset: Dataset, name: str) -> str:
    counted = Counter(_text(v) for v in dataset.labels(name, "missing"))
    shown = ", ".join(f"{value} &times; {n}" for value, n in counted.most_common(_VALUES))
    return shown + (f" and {len(counted) - _VALUES} more values" if len(counted) > _VALUES else "")


def _text(value: Any) -> str:
    return escape(str(value))
