"""What a batch is made of: shares for patients with a label, for classes of annotations and of
label maps.

`Quota` is what users write; `strata_of` turns quotas into the strata that
`daskdmed.persistence.strata` plans with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.frozen import missing
from daskdmed.persistence.asked import Asked
from daskdmed.persistence.catalogue import Catalogue
from daskdmed.persistence.labelmaps import At, Classes
from daskdmed.persistence.strata import Stratum
from daskdmed.persistence.where import ANYWHERE, AreaSource

if TYPE_CHECKING:
    from daskdmed.cohort.patient import Patient

#: classes of annotations by name, or of a label map by number
Labels: TypeAlias = "str | int | Sequence[str] | Sequence[int]"
#: which patients: labels that must be equal, or a function
Patients: TypeAlias = "Mapping[str, Any] | Callable[[Patient], bool]"


@dataclass(frozen=True)
class Quota:
    """A share of every batch.

    Parameters
    ----------
    share : int or float
        An int: so many small chunks of each batch, always. A float in (0, 1): this fraction
        of a batch, rounded up in some batches and down in others so that the mean is right.
    patients : mapping or callable, optional
        Whom they come from: labels that must be equal (``{"grade": 3}``), or a function of
        the patient. Everybody by default.
    labels : str, int, or sequence of these, optional
        Classes of annotations (names) in which the centre of each small chunk must lie, or
        classes of a label map (numbers) that its middle pixel must have.
    name : str, optional
        For messages and `LoaderStats`.
    of : str, optional
        Name of the record that holds these classes: a label map on the image's grid, or on one
        with a whole number of pixels of the image per pixel of it; or annotations. Default: what
        `LightDL` calls ``annotations=``, or the only annotations of each patient.
    at : {"centre", "any"}
        For label maps: the middle pixel of each small chunk (``size // 2`` along each axis) has
        one of the classes, or some pixel of it has. Each place where that is so is drawn alike.

    Raises
    ------
    UsageError
        The share is neither a positive int nor a float in (0, 1), or `at` is not known.

    Notes
    -----
    Label maps are looked at once, big chunk by big chunk, when the loader is made. A patient
    whose label map has none of the classes, or who has no such record, gives nothing to the
    quota; that is told in the log and by ``stats().failed``. That nobody has one is an error.

    Examples
    --------
    Eight small chunks of each batch in tumour, half of the batch from patients of grade 3:

    >>> quotas = [Quota(8, labels="Tumor"), Quota(0.5, patients={"grade": 3})]

    A third of each batch centred in organs 1 and 2 of a label volume:

    >>> quotas = [Quota(1 / 3, labels=[1, 2], of="seg")]
    """

    share: int | float
    patients: Patients | None = None
    labels: Labels | None = None
    name: str = ""
    of: str | None = None
    at: At = "centre"

    def __post_init__(self) -> None:
        share = self.share
        whole = isinstance(share, int) and not isinstance(share, bool) and share > 0
        if not whole and not (isinstance(share, float) and 0 < share < 1):
            raise UsageError(
                f"the share of a quota is an int (small chunks of each batch) or a float in "
                f"(0, 1), got {share!r}"
            )
        if self.at not in get_args(At):
            raise UsageError(f"at= is one of {get_args(At)}, got {self.at!r}")
        if self.labels is None and (self.of is not None or self.at != "centre"):
            raise UsageError("of= and at= of a quota say where its labels= are: give these too")

    @property
    def classes(self) -> Classes:
        """Classes that are asked for; empty when it is none."""
        return Classes(as_classes(self.labels), self.of, self.at)

    @property
    def title(self) -> str:
        """Name, or what the quota asks for."""
        if self.name:
            return self.name
        parts = [str(label) for label in self.classes.labels]
        if self.of is not None:
            parts = [f"{self.of} {', '.join(parts)}"]
        if isinstance(self.patients, Mapping):
            parts += [f"{k}={v}" for k, v in self.patients.items()]
        elif self.patients is not None:
            parts.append(getattr(self.patients, "__name__", "patients"))
        return ", ".join(parts) or "all"

    def admits(self, patient: Patient) -> bool:
        """Whether a patient's records belong to it."""
        if self.patients is None:
            return True
        if isinstance(self.patients, Mapping):
            labels, asked = patient.labels, self.patients.items()
            # a value that is missing asks for those without the label
            return all(k not in labels if missing(v) else labels.get(k) == v for k, v in asked)
        return bool(self.patients(patient))


def as_classes(labels: Labels | None) -> tuple[str, ...] | tuple[int, ...]:
    """Names or numbers of classes as a tuple."""
    if labels is None:
        return ()
    given: Any = (labels,) if np.ndim(labels) == 0 else tuple(labels)  # type: ignore[arg-type]
    if given and all(isinstance(n, str) and n for n in given):
        return tuple(given)
    if given and all(hasattr(n, "__index__") and not isinstance(n, bool) for n in given):
        return tuple(int(n) for n in given)
    raise UsageError(
        "labels= names classes of annotations, or gives the numbers of classes of a label map; "
        f"got {labels!r}"
    )


def as_quotas(
    quotas: Sequence[Quota] | None,
    labels: Labels | Mapping[str, float] | Mapping[int, float] | None,
    of: str | None = None,
) -> tuple[tuple[Quota, ...], Classes]:
    """Quotas, and the classes that everything is drawn from, from what users give.

    `of` is the record that holds classes where nothing else is said.
    """
    listed: tuple[Any, ...] = tuple(quotas or ())
    wrong = [q for q in listed if not isinstance(q, Quota)]
    if wrong:
        raise UsageError(f"quotas= is a sequence of daskdmed.Quota, got {wrong[0]!r}")
    rest = Classes()
    if isinstance(labels, Mapping):
        listed += tuple(Quota(s, labels=n) for n, s in labels.items())
    elif labels is not None:
        rest = Classes(as_classes(labels), of)
    return tuple(
        replace(q, of=of) if q.labels is not None and not q.of else q for q in listed
    ), rest


def strata_of(
    quotas: Sequence[Quota],
    catalogue: Catalogue,
    areas: AreaSource,
    batch_size: int,
    rest: Classes = ANYWHERE,
) -> tuple[list[Stratum], list[Classes]]:
    """Strata of a batch, and the classes of each.

    What the quotas leave of a batch is drawn from everybody.
    """
    strata, classes = [], []
    for quota in quotas:
        share = quota.share if isinstance(quota.share, int) else quota.share * batch_size
        members = tuple(
            number for number, entry in enumerate(catalogue.entries) if quota.admits(entry.patient)
        )
        strata.append(_stratum(quota.title, share, members, areas, quota.classes or rest))
        classes.append(quota.classes or rest)
    asked = sum(s.share for s in strata)
    if asked > batch_size + 1e-6:
        shares = ", ".join(f"{s.name}: {s.share:g}" for s in strata)
        raise UsageError(
            f"quotas ask for {asked:g} small chunks of a batch of {batch_size} ({shares}); ask "
            "for less or make batches larger"
        )
    if asked < batch_size - 1e-6:
        everyone = tuple(range(len(catalogue.entries)))
        strata.append(_stratum("all others", batch_size - asked, everyone, areas, rest))
        classes.append(rest)
    return strata, classes


def asked_classes(quotas: Sequence[Quota], catalogue: Catalogue, rest: Classes) -> list[Asked]:
    """Who asks for classes."""
    entries = list(enumerate(catalogue.entries))
    asked = [
        Asked(q.title, tuple(n for n, e in entries if q.admits(e.patient)), q.classes)
        for q in quotas
        if q.classes
    ]
    return [*asked, Asked("labels=", tuple(n for n, _ in entries), rest)] if rest else asked


def _stratum(
    name: str,
    share: float,
    members: tuple[int, ...],
    areas: AreaSource,
    classes: Classes,
) -> Stratum:
    return Stratum(name, share, members, **areas.choice(classes))
