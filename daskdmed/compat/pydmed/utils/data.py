"""PyDmed's ``pydmed.utils.data``: patients, their records, and datasets of patients.

Splits are disjoint and complete, leave the dataset as it is, and follow `random`'s generator
(``random.seed``). Not covered: opening images, which is the business of big-chunk loaders.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable, Hashable, Sequence
from functools import total_ordering
from pathlib import Path
from typing import Any

from daskdmed.compat.pydmed.utils.minimath import lcm
from daskdmed.core.errors import DatasetError, UsageError

#: under which a patient that was repeated keeps the one that it is a copy of
ORIGINAL = "TODO:packagename reserved, original patient"
#: more patients than this come from numbers without a common divisor, not from a wish
_MOST = 1_000_000


@total_ordering
class Patient:
    """An id, and a dict of records and whatever else is known: ``{"H&E": Record(...), "HER2": 2}``.

    Patients are equal and sorted by their ids.
    """

    def __init__(self, int_uniqueid: int, dict_records: dict[str, Any]) -> None:
        self.int_uniqueid = int_uniqueid
        self.dict_records = dict_records

    def __hash__(self) -> int:
        return hash(self.int_uniqueid)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patient) and self.int_uniqueid == other.int_uniqueid

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Patient):
            return NotImplemented
        return self.int_uniqueid < other.int_uniqueid

    def __repr__(self) -> str:
        return f"Patient({self.int_uniqueid!r}, {sorted(map(str, self.dict_records))})"

    def _repr_html_(self) -> str:
        from daskdmed.compat.pydmed._html import patient_html

        return patient_html(self)


class Record:
    """A file, ``rootdir + relativedir``, and a dict of facts about it."""

    def __init__(self, rootdir: str, relativedir: str, dict_infos: dict[str, Any] | None) -> None:
        self.rootdir = rootdir
        self.relativedir = relativedir
        self.dict_infos = dict_infos

    def __repr__(self) -> str:
        return f"Record({self.rootdir!r}, {self.relativedir!r})"

    def _repr_html_(self) -> str:
        from daskdmed.compat.pydmed._html import record_html

        return record_html(self)


class Dataset:
    """A name and patients, of which no two have the same id.

    DatasetError: an element is no `Patient`, or two are the same.
    """

    def __init__(self, str_dsname: str, list_patients: Sequence[Patient]) -> None:
        ids = set()
        for patient in list_patients:
            if not isinstance(patient, Patient):
                raise DatasetError(
                    f"dataset {str_dsname!r}: list_patients holds a {type(patient).__name__}, "
                    "expected a Patient"
                )
            if patient.int_uniqueid in ids:
                raise DatasetError(
                    f"dataset {str_dsname!r} has two patients with the id "
                    f"{patient.int_uniqueid!r}; give each its own"
                )
            ids.add(patient.int_uniqueid)
        self.str_dsname = str_dsname
        self.list_patients = list(list_patients)

    def __repr__(self) -> str:
        return f"Dataset({self.str_dsname!r}, {len(self.list_patients)} patients)"

    def _repr_html_(self) -> str:
        from daskdmed.compat.pydmed._html import dataset_html

        return dataset_html(self)

    @staticmethod
    def balance_by_repeat(
        ds: Dataset,
        func_getlabel_of_patient: Callable[[Patient], Hashable],
        newlen_each_class: int | None = None,
    ) -> Dataset:
        """A dataset in which classes have equally many patients, by repeating them.

        `newlen_each_class` for each class, by default the least common multiple of what they have:
        patients are repeated in order, as often as it takes. A copy has an id of its own and the
        original under `ORIGINAL`. In new code, ``LabelBalanced`` of `daskdmed.policies` or quotas
        balance without copies. UsageError: that would be more than a million patients.
        """
        classes = _by_label(ds, func_getlabel_of_patient)
        wanted = newlen_each_class or lcm(len(members) for members in classes.values())
        if wanted * len(classes) > _MOST:
            raise UsageError(
                f"dataset {ds.str_dsname!r}: balance_by_repeat would make {wanted} patients of "
                f"each of {len(classes)} classes; give newlen_each_class="
            )
        digits = max(len(str(p.int_uniqueid)) for p in ds.list_patients)
        repeated = []
        for members in classes.values():
            for number in range(wanted):
                copy, at = divmod(number, len(members))
                repeated.append(_copied(members[at], copy, digits))
        return Dataset(ds.str_dsname, repeated)

    @staticmethod
    def splits_from(dataset: Dataset, percentage_partitions: Sequence[float]) -> list[Dataset]:
        """Random disjoint parts of so many percent, together all of it.

        UsageError: percentages that are not positive, or do not sum up to 100.
        """
        parts = Dataset._split_list(
            random.sample(dataset.list_patients, len(dataset.list_patients)), percentage_partitions
        )
        return [Dataset(dataset.str_dsname, part) for part in parts]

    @staticmethod
    def labelbalanced_splits_from(
        dataset: Dataset,
        percentage_partitions: Sequence[float],
        func_getlabel_of_patient: Callable[[Patient], Hashable],
        verbose: bool = False,
    ) -> list[Dataset]:
        """As `splits_from`, within each label, so that parts have about the same shares of labels.

        What cannot be divided goes to the parts that lack most so far, over all labels. `verbose`
        prints how many patients of each label each part has.
        """
        shares = _shares(percentage_partitions)
        parts: list[list[Patient]] = [[] for _ in shares]
        for label, members in _by_label(dataset, func_getlabel_of_patient).items():
            lots = random.sample(members, len(members))
            sizes = _sizes(len(lots), shares, [len(part) for part in parts])
            for part, chosen in zip(parts, _cut(lots, sizes), strict=True):
                part.extend(chosen)
            if verbose:
                print(f"label {label!r}: {sizes}")  # noqa: T201 what it is for
        return [Dataset(dataset.str_dsname, part) for part in parts]

    @staticmethod
    def _split_list(
        list_input: Sequence[Any], percentage_partitions: Sequence[float]
    ) -> list[list[Any]]:
        shares = _shares(percentage_partitions)
        return _cut(list_input, _sizes(len(list_input), shares, [0] * len(shares)))

    @staticmethod
    def create_onetoone(
        str_dsname: str,
        rootdir: str | os.PathLike[str],
        imgsprefix: str,
        func_get_patientrecords: Callable[[str], dict[str, Any]],
        func_get_wsiinfos: Callable[[str], dict[str, Any]],
    ) -> Dataset:
        """A patient for each file below a folder, sorted by name, numbered from 0.

        Parameters
        ----------
        str_dsname, rootdir : str
            Name of the dataset, and the folder.
        imgsprefix : str
            Ending of the files, "svs".
        func_get_patientrecords : callable
            ``f(file name)`` gives a dict of what else there is of the patient, labels too.
        func_get_wsiinfos : callable
            ``f(file name)`` gives the facts of the record, which is called "wsi".
        """
        root = Path(rootdir)
        names = sorted(str(p.relative_to(root)) for p in root.rglob(f"*.{imgsprefix.lstrip('.')}"))
        if not names:
            raise DatasetError(f"{root}: there are no files *.{imgsprefix} below this folder")
        patients = []
        for number, name in enumerate(names):
            path = str(root / name)
            record = Record(os.path.join(root, ""), name, func_get_wsiinfos(path))
            patients.append(Patient(number, {"wsi": record, **func_get_patientrecords(path)}))
        return Dataset(str_dsname, patients)


def _by_label(
    dataset: Dataset, label_of: Callable[[Patient], Hashable]
) -> dict[Hashable, list[Patient]]:
    found: dict[Hashable, list[Patient]] = {}
    for patient in dataset.list_patients:
        found.setdefault(label_of(patient), []).append(patient)
    return found


def _copied(patient: Patient, copy: int, digits: int) -> Patient:
    if not copy:
        return patient
    records = {**patient.dict_records, ORIGINAL: patient}
    return Patient(copy * 10**digits + patient.int_uniqueid, records)


def _shares(percentages: Sequence[float]) -> list[float]:
    if not percentages or min(percentages) < 0 or not math.isclose(sum(percentages), 100):
        raise UsageError(
            f"percentage_partitions must be positive and sum up to 100, got {percentages!r}"
        )
    return [p / 100 for p in percentages]


def _sizes(count: int, shares: Sequence[float], had: Sequence[int]) -> list[int]:
    """How many of `count` each part gets; what is left goes where most is lacking so far."""
    sizes = [int(count * share) for share in shares]
    total = count + sum(had)
    for _ in range(count - sum(sizes)):
        lacking = [s * total - h - n for s, h, n in zip(shares, had, sizes, strict=True)]
        sizes[lacking.index(max(lacking))] += 1
    return sizes


def _cut(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [list(items[a:b]) for a, b in itertools.pairwise(ends)]
