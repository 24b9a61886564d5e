"""The images of a dataset: which record of each patient, at which resolution, under which mask.

Everything that can be known without opening a slide is checked for all patients before the
first is computed. Not covered: computing (`daskdmed.inference.execute`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.record import Patient, Record
from daskdmed.core.errors import DatasetError, StoreError, UsageError
from daskdmed.core.resolution import Resolution
from daskdmed.core.types import PathLike
from daskdmed.inference.inputs import as_location
from daskdmed.store.location import Location, result_path

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class PatientImage:
    """One image of a dataset.

    Parameters
    ----------
    patient : Patient
        Whose.
    record : Record
        Which.
    resolution : Resolution
        At which it is read.
    location : Location
        Where its result goes.
    mask : object
        As the user gave it: asked for when the patient's turn comes.
    """

    patient: Patient
    record: Record
    resolution: Resolution
    location: Location
    mask: Any

    def mask_of(self) -> Any:
        """Its mask, or None."""
        if callable(self.mask):
            return self.mask(self.patient)
        return None if self.mask is None else self.mask[self.patient.key]


def images_of(
    dataset: Dataset,
    *,
    record: str | None,
    level: Any,
    mpp: Any,
    power: Any,
    out: PathLike | None,
    mask: Any,
    client: Client | None,
    replaces: bool,
) -> list[PatientImage]:
    """The images of all patients, in order.

    Parameters
    ----------
    dataset : Dataset
        At least one patient.
    record : str, optional
        Name of the record, see `Patient.record`.
    level, mpp, power
        Values, or functions of the patient that give them (or None).
    out : path or URL, optional
        Folder; each patient's store is ``<id>/<record>.zarr`` in it, other characters than
        those that file names may have are percent-encoded. Default: memory.
    mask : mapping or callable, optional
        ``{id: mask}`` for all patients, or ``mask(patient)``; None is no mask.
    client : distributed.Client, optional
        Its workers must be able to write there.
    replaces : bool
        Whether stores that are there may be gone on with or replaced.

    Raises
    ------
    DatasetError
        No patients, or a record that is missing.
    StoreError
        Stores are there already.
    UsageError, ResolutionError
        A mask that fits no dataset, or a resolution that is none.
    """
    if not len(dataset):
        raise DatasetError(f"dataset {dataset.name!r} has no patients")
    masks = _masks(mask, dataset)
    if out is not None and not isinstance(out, (str, os.PathLike)):
        raise UsageError(
            f"out= of a dataset is a folder or URL for one store per patient, got "
            f"{type(out).__name__}"
        )
    images = []
    for patient in dataset:
        one = patient.record(record)
        place = None if out is None else result_path(out, patient.key, one.name)
        resolution = resolution_of(patient, level, mpp, power)
        images.append(PatientImage(patient, one, resolution, as_location(place, client), masks))
    if not replaces:
        there = [i.patient.key for i in images if i.location.holds_group()]
        if there:
            shown = ", ".join(repr(k) for k in there[:10]) + (" ..." if len(there) > 10 else "")
            raise StoreError(
                f"{out} holds results of {len(there)} of {len(images)} patients already: {shown}; "
                "resume=True goes on with them (same parameters) and makes the others, "
                "overwrite=True replaces them, or give another out="
            )
    return images


def resolution_of(patient: Patient, level: Any, mpp: Any, power: Any) -> Resolution:
    """The resolution of one patient, from values or functions of the patient."""
    found = [v(patient) if callable(v) else v for v in (level, mpp, power)]
    return Resolution.of(*found)


def _masks(mask: Any, dataset: Dataset) -> Any:
    if mask is None or (callable(mask) and not hasattr(mask, "shape")):
        return mask
    if not isinstance(mask, Mapping):
        raise UsageError(
            f"mask= of a dataset is {{id: mask}} or a function of the patient, got "
            f"{type(mask).__name__}: one array cannot lie over several images"
        )
    by_text = {str(key): value for key, value in mask.items()}
    missing = [key for key in dataset.ids if key not in by_text]
    if missing:
        raise UsageError(
            f"mask= has no entry for {len(missing)} of {len(dataset)} patients: {missing[:10]}; "
            "give None for a patient without a mask"
        )
    return by_text
