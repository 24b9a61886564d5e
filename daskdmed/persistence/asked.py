"""Whether the classes that were asked for can be drawn from, before anything is read.

What nobody has is an error; what some patients lack, or cannot be at the centre of a small
chunk, is told once. Not covered: where small chunks lie (`daskdmed.persistence.where`,
`daskdmed.persistence.labelmaps`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from daskdmed.cohort.annotations.undrawn import check_annotated
from daskdmed.core.errors import UsageError, listing, meant
from daskdmed.persistence.labelmaps import Classes
from daskdmed.persistence.where import AreaSource

logger = logging.getLogger("daskdmed.loading")


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for classes: its name, and the records that it means."""

    title: str
    members: tuple[int, ...]
    classes: Classes


def check_asked(areas: AreaSource, asked: Iterable[Asked]) -> None:
    """Say what of the classes asked for cannot be drawn.

    UsageError: nobody has what was asked for, or nothing of it can be drawn; names it.
    LoaderError: under ``on_error="raise"``, annotations or a label map cannot be read.
    """
    drawn: list[Asked] = []
    for one in asked:
        if areas.maps.meant(one.classes):
            _check_map(areas, one)
        else:
            drawn.append(one)
    if drawn:
        _check_drawn(areas, drawn)


def _check_map(areas: AreaSource, asked: Asked) -> None:
    entries = areas.catalogue.entries
    if areas.anywhere:
        raise UsageError(
            f"{asked.title}: classes of a label map are looked up in the big chunks of the grid, "
            "and bigchunk_loader= chooses others: leave one of them away"
        )
    for member, failure in areas.maps.check(asked.title, asked.members, asked.classes):
        if failure.error is not None:
            lost = areas.failed(entries[member], failure.error)
            areas.no_weights(member, asked.classes, lost)
        else:
            areas.failures.append(failure)


def _check_drawn(areas: AreaSource, asked: Sequence[Asked]) -> None:
    entries = areas.catalogue.entries
    for one in asked:
        _check_names(areas, one)
    wanted = list(dict.fromkeys((m, one.classes) for one in asked for m in one.members))
    with ThreadPoolExecutor(min(16, len(wanted) or 1)) as pool:
        found = dict(zip(wanted, pool.map(lambda w: areas.undrawn(*w), wanted), strict=True))
    for (record, classes), result in found.items():
        if isinstance(result, Exception):
            areas.no_weights(record, classes, areas.failed(entries[record], result))
    said: set[str] = set()
    for one in asked:
        labels = one.classes.labels
        held = [found[m, one.classes] for m in one.members]
        tables = [h for h in held if not isinstance(h, Exception)]
        for at, label in enumerate(labels):
            total = sum(table[at][0] for table in tables)
            lost = [note for table in tables for note in table[at][1]]
            _tell(areas, one.title, label, total, lost, said)
        if one.members and not any(t[at][0] for t in tables for at in range(len(labels))):
            _absent(areas, one)


def _check_names(areas: AreaSource, asked: Asked) -> None:
    classes = asked.classes
    numbers = [x for x in classes.labels if not isinstance(x, str)]
    if numbers:
        raise UsageError(
            f"{asked.title}: labels {listing(numbers)} are numbers of a label map; say which "
            f"record is one, of='seg' (of={classes.of!r} is none)"
        )
    if classes.at != "centre":
        raise UsageError(
            f"{asked.title}: at={classes.at!r} is for label maps; small chunks are centred in the "
            "classes of annotations"
        )
    patients = [entry.patient for entry in areas.catalogue.entries]
    check_annotated(patients, classes.of or areas.annotations)


def _tell(
    areas: AreaSource, title: str, label: str, total: int, lost: list[str], said: set[str]
) -> None:
    if not lost:
        return
    many = f"none of the {total}" if len(lost) == total else f"{len(lost)} of the {total} do not"
    message = (
        f"{title}: annotations of the class {label!r} have to lie where a small chunk of "
        f"{areas.size} pixels can be centred, and {many}: {'; '.join(lost[:10])}"
        f"{'; ...' if len(lost) > 10 else ''}; make smallchunk_size smaller, ask for a finer "
        "resolution, or leave them out (Annotations.select)"
    )
    if len(lost) == total:
        raise UsageError(message)
    if message not in said:
        said.add(message)
        logger.warning("%s", message)


def _absent(areas: AreaSource, asked: Asked) -> None:
    entries, classes = areas.catalogue.entries, asked.classes
    there = sorted({x for m in asked.members for x in areas.drawn(entries[m], classes).labels})
    raise UsageError(
        f"{asked.title}: none of {len(asked.members)} patients has an annotation of "
        f"{listing(classes.labels)}; the classes there are "
        f"{there[:20]}{meant(str(classes.labels[0]), there)}"
    )
