"""What a batch is made of: shares for patients with a label and for classes of annotations.

`Quota` is what users write; `strata_of` turns quotas into the strata that
`daskdmed.persistence.strata` plans with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from daskdmed.core.errors import UsageError
from daskdmed.core.frozen import missing
from daskdmed.persistence.catalogue import Catalogue
from daskdmed.persistence.strata import Stratum
from daskdmed.persistence.where import AreaSource

if TYPE_CHECKING:
    from daskdmed.cohort.record import Patient

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
    labels : str or sequence of str, optional
        Classes of annotations in which the centre of each small chunk must lie.
    name : str, optional
        For messages and `LoaderStats`.

    Raises
    ------
    UsageError
        The share is neither a positive int nor a float in (0, 1).

    Examples
    --------
    Eight small chunks of each batch in tumour, half of the batch from patients of grade 3:

    >>> quotas = [Quota(8, labels="Tumor"), Quota(0.5, patients={"grade": 3})]
    """

    share: int | float
    patients: Patients | None = None
    labels: str | Sequence[str] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        share = self.share
        whole = isinstance(share, int) and not isinstance(share, bool) and share > 0
        if not whole and not (isinstance(share, float) and 0 < share < 1):
            raise UsageError(
                f"the share of a quota is an int (small chunks of each batch) or a float in "
                f"(0, 1), got {share!r}"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of annotations, empty when the quota asks for none."""
        return as_classes(self.labels)

    @property
    def title(self) -> str:
        """Name, or what the quota asks for."""
        if self.name:
            return self.name
        parts = [*self.classes]
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


def as_classes(labels: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of classes as a tuple."""
    if labels is None:
        return ()
    names: tuple[Any, ...] = (labels,) if isinstance(labels, str) else tuple(labels)
    if not names or not all(isinstance(n, str) and n for n in names):
        raise UsageError(f"labels= names classes of annotations, got {labels!r}")
    return names


def as_quotas(
    quotas: Sequence[Quota] | None, labels: str | Sequence[str] | Mapping[str, float] | None
) -> tuple[tuple[Quota, ...], tuple[str, ...]]:
    """Quotas, and the classes that everything is drawn from, from what users give."""
    listed: tuple[Any, ...] = tuple(quotas or ())
    wrong = [q for q in listed if not isinstance(q, Quota)]
    if wrong:
        raise UsageError(f"quotas= is a sequence of daskdmed.Quota, got {wrong[0]!r}")
    if isinstance(labels, Mapping):
        return (*listed, *(Quota(s, labels=n) for n, s in labels.items())), ()
    return listed, as_classes(labels)


def strata_of(
    quotas: Sequence[Quota],
    catalogue: Catalogue,
    areas: AreaSource,
    batch_size: int,
    rest: tuple[str, ...] = (),
) -> tuple[list[Stratum], list[tuple[str, ...]]]:
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


def asked_classes(
    quotas: Sequence[Quota], catalogue: Catalogue, rest: tuple[str, ...]
) -> list[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """Who asks for classes of annotations: its name, the records that it means, the classes."""
    entries = list(enumerate(catalogue.entries))
    asked = [
        (q.title, tuple(n for n, e in entries if q.admits(e.patient)), q.classes)
        for q in quotas
        if q.classes
    ]
    return [*asked, ("labels=", tuple(n for n, _ in entries), rest)] if rest else asked


def _stratum(
    name: str,
    share: float,
    members: tuple[int, ...],
    areas: AreaSource,
    classes: tuple[str, ...],
) -> Stratum:
    return Stratum(name, share, members, **areas.choice(classes))
