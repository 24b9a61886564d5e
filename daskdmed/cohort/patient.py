"""`Patient`: an id, named records, and labels.

A value without handles, as its records are. Not covered: collections of patients
(`daskdmed.cohort.dataset`).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskdmed.cohort.record import Record
from daskdmed.core.errors import DatasetError
from daskdmed.core.frozen import FrozenMapping, missing, plain

#: the record that `Patient.record` takes when a patient has several and none is named
DEFAULT_RECORD = "wsi"


@dataclass(frozen=True, eq=False, repr=False)
class Patient:
    """An id, named records and labels.

    Parameters
    ----------
    id : str or int
        Unique within a dataset (compared as text: 1 and "1" are the same id).
    records : mapping of str to Record
        At least one. Each record's `name` becomes its key here.
    labels : mapping, optional
        What is known of the patient: {"grade": 2, "site": "A"}. A value that is missing
        (None, NaN, pandas' NA) is no label.

    Raises
    ------
    DatasetError
        The id is neither text nor an integer, there is no record, or one is not a `Record`.
    """

    id: str | int
    records: Mapping[str, Record]
    labels: Mapping[str, Any] = field(default_factory=FrozenMapping)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _clean_id(self.id))
        given: Any = self.records
        if not isinstance(given, Mapping) or not given:
            raise DatasetError(
                f"patient {self.id!r} has no records; give a mapping that is not empty: "
                "Patient(id, {'wsi': Record('slide.svs')})"
            )
        for name, record in given.items():
            if not isinstance(record, Record):
                raise DatasetError(
                    f"patient {self.id!r}: record {name!r} is a {type(record).__name__}; "
                    "wrap it as Record(uri) or Record(array=x)"
                )
            if not isinstance(name, str) or not name:
                raise DatasetError(f"patient {self.id!r}: the record name {name!r} is not a text")
        named = {k: r if r.name == k else r.renamed(k) for k, r in given.items()}
        object.__setattr__(self, "records", FrozenMapping(named))
        labels = {str(k): plain(v) for k, v in self.labels.items() if not missing(v)}
        object.__setattr__(self, "labels", FrozenMapping(labels))

    @property
    def key(self) -> str:
        """The id as text, which is what uniqueness and equality go by."""
        return str(self.id)

    @functools.cached_property
    def token(self) -> str:
        """Deterministic name of id, records and labels; patients are equal when it is."""
        from dask.base import tokenize

        return str(tokenize(self.key, [r.token for r in self.records.values()], self.labels))

    def record(self, name: str | None = None) -> Record:
        """One of the records; without a name the only image, or of several that named "wsi"."""
        names = list(self.records)
        if name is None:
            # what was drawn on an image is no image: it does not count where one is asked for
            names = [n for n, r in self.records.items() if not r.is_annotations] or names
            if len(names) > 1 and DEFAULT_RECORD not in self.records:
                raise DatasetError(
                    f"patient {self.id!r} has {len(names)} records and none is named "
                    f"{DEFAULT_RECORD!r}; say which with record=, one of {names}"
                )
            name = names[0] if len(names) == 1 else DEFAULT_RECORD
        if name not in self.records:
            raise DatasetError(f"patient {self.id!r} has no record {name!r}; it has {names}")
        return self.records[name]

    def __eq__(self, other: object) -> bool:
        return self.token == other.token if isinstance(other, Patient) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "Patient", self.token

    def __repr__(self) -> str:
        return f"Patient({self.id!r}, records={list(self.records)}, labels={dict(self.labels)})"

    def _repr_html_(self) -> str:
        from daskdmed.cohort.html import patient_html

        return patient_html(self)


# every batch holds patients, and training frameworks (Lightning) take the dataclasses in a batch
# apart to look for tensors, and refuse frozen ones: to them a patient is one plain object
del Patient.__dataclass_fields__


def _clean_id(value: Any) -> str | int:
    if isinstance(value, str) and value:
        return str(value)
    if not isinstance(value, (bool, np.bool_)) and hasattr(value, "__index__"):
        return operator.index(value)
    raise DatasetError(f"a patient's id is a text that is not empty, or an integer; got {value!r}")
