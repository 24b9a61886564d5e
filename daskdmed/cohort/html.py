"""What records, patients and datasets look like in a notebook.

Short whatever their size, and quick: a picture is drawn where it costs next to nothing, a word
says why where it is not. What is drawn is a matter of what there is and not of the clock, so that
a page is the same on any machine. Not covered: slides and volumes (`daskdmed.images.html`),
annotations (`daskdmed.cohort.annotations.html`).
"""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskdmed.core.errors import listing
from daskdmed.core.html import (
    COLOURS,
    Html,
    bar,
    below,
    beside,
    file_name,
    join,
    page,
    safe,
    soft,
    table,
    times,
    title,
)
from daskdmed.core.places import local_path
from daskdmed.images.shown import Plane, slide_plane, view_plane, volume_plane

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.table import Annotations
    from daskdmed.cohort.dataset import Dataset
    from daskdmed.cohort.patient import Patient
    from daskdmed.cohort.record import Record
    from daskdmed.images.protocols import SlideInfo

logger = logging.getLogger("daskdmed.cohort")
#: patients shown at either end of a dataset, and values of a label, bins of its numbers
_EDGE_ROWS, _VALUES, _BINS = 5, 8, 16
#: records of a patient that are shown
_RECORDS = 12
#: longer side of a record's picture, and of one in a dataset; bytes that it takes at most
_SIDE, _SMALL, _BYTES = 150, 64, 8000
#: files that are opened for a page; the picture of each costs `daskdmed.images.shown.CHEAP` at most
_FILES = 12
#: bytes of a file of annotations that is read for a picture
_DRAWN_BYTES = 2**20


# ------------------------------------------------------------------------- a record
@dataclass(frozen=True)
class Look:
    """What is seen of a record: its picture or outline, what is said of it, what it says of its
    channels, and how many it has. `plane` is None where not even its size is known."""

    plane: Plane | None
    said: tuple[str, ...]
    info: SlideInfo | None = None
    channels: int | None = None


class Onlooker:
    """Looks at the records of a page; after so many files no more are opened."""

    def __init__(self, side: int, *, folders: bool = False) -> None:
        self._side, self._folders = side, folders
        self._left = _FILES

    def look(self, record: Record, orientation: str | None = None) -> Look:
        """What a record looks like; of volumes in an orientation. Never an error."""
        try:
            return self._look(record, orientation)
        # whatever is wrong with a file is told when it is used; a notebook shows what there is
        except Exception as error:
            logger.debug("%r: not shown: %s", record, error)
            return Look(None, (f"cannot be read: {_brief(error)}",))

    def _look(self, record: Record, orientation: str | None) -> Look:
        if record.array is not None:
            return self._array(record, orientation)
        if record.is_annotations:
            return self._drawn(record)
        path = local_path(str(record.uri))
        if path is None:
            return Look(None, ("behind a URL, not opened here",))
        if not os.path.exists(path):
            return Look(None, ("there is no such file",))
        if os.path.isdir(path) and not self._folders and not path.rstrip("/").endswith(".zarr"):
            return Look(None, ("a folder, not opened here",))
        if not self._left:
            return Look(None, ("not opened here",))
        self._left -= 1
        return self._file(record, orientation)

    def _file(self, record: Record, orientation: str | None) -> Look:
        from daskdmed.images.slide import Slide

        opened = record.open()
        if isinstance(opened, Slide):
            width, height = opened.dimensions
            mpp = "" if opened.mpp is None else f", {opened.mpp[0]:.4g} \u00b5m/px"
            power = "" if opened.power is None else f", {opened.power:g}x"
            said = [f"{width:,} x {height:,} pixels{mpp}{power}"]
            plane = slide_plane(opened, self._side)
        else:
            steps = opened.spacing
            mm = "" if steps is None else f" of {times(f'{s:.4g}' for s in steps)} mm"
            said = [f"{times(opened.shape)} voxels{mm}"]
            plane = volume_plane(opened, self._side, orientation=orientation)
        said += [f"{opened.dtype}, {opened.backend}"]
        named = opened.channels
        if isinstance(named, tuple):
            said += [f"channels {listing(named)}"]
        return Look(plane, tuple(said), opened.info, opened.levels[0].shape[-1])

    def _array(self, record: Record, orientation: str | None) -> Look:
        array = record.array
        lies = f"{times(array.shape)}, {array.dtype}"
        if array.ndim not in (2, 3, 4):
            return Look(None, (lies,))
        axes = record.spatial_ndim or (3 if array.ndim == 4 else 2)
        if record.space is None:
            orientation = None
        view = record.view(spatial_ndim=axes, orientation=orientation)
        channels = math.prod(view.channel_shape)
        return Look(view_plane(view, self._side), (lies,), channels=channels)

    def _drawn(self, record: Record) -> Look:
        drawn = record._drawn
        if drawn is None:
            path = local_path(str(record.uri))
            if path is None:
                return Look(None, ("annotations behind a URL, not read here",))
            if not os.path.exists(path):
                return Look(None, ("there is no such file",))
            if os.path.getsize(path) > _DRAWN_BYTES:
                return Look(None, ("annotations, not read here",))
            drawn = record.annotations()
        named = [f"{n:,} {'unnamed' if k is None else k}" for k, n in drawn.counts.items()]
        more = f" and {len(named) - _VALUES} more" if len(named) > _VALUES else ""
        return Look(_painted(drawn), (f"annotations: {', '.join(named[:_VALUES])}{more}",))


def _painted(drawn: Annotations) -> Plane | None:
    from daskdmed.cohort.annotations.html import label_colours, picture

    bounds = drawn.bounds
    if bounds is None:
        return None
    extent = max(bounds[3] - bounds[1], 1.0), max(bounds[2] - bounds[0], 1.0)
    return Plane(picture(drawn, label_colours(drawn), bounds), extent)


def _brief(error: Exception, most: int = 160) -> str:
    told = str(error) or type(error).__name__
    return told if len(told) <= most else told[:most] + "..."


def _figure(look: Look, side: int, alt: str) -> Html:
    """The picture of a record, where there is one."""
    if look.plane is None or look.plane.pixels is None:
        return Html("")
    return look.plane.html(side, alt, most=_BYTES)


def place_of(record: Record) -> Html:
    """Where a record is, in a word: the name of its file."""
    if record.uri is not None:
        return file_name(record.uri)
    if record.array is None:
        return safe("annotations in memory")
    return safe(f"{record.array.dtype} {tuple(record.array.shape)}")


def record_html(record: Record) -> str:
    """One record: its picture and what is known of it."""
    return page(_card(record, Onlooker(192, folders=True), 192))


def _card(record: Record, eye: Onlooker, side: int) -> Html:
    look = eye.look(record)
    own = [f"{n}: {v}" for n, v in list(record.facts.items())[:6]]
    words = [look.plane.words] if look.plane is not None and look.plane.words else []
    where = "" if record.array is not None else _soft_inline(place_of(record))
    name = join([record.name or "Record", " ", where])
    return beside(_figure(look, side, record.name), below(title(name, *look.said, *words, *own)))


def _soft_inline(value: Any) -> Html:
    return Html(f'<span class="dkm-soft">{safe(value)}</span>')


# ------------------------------------------------------------------------- a patient
def patient_html(patient: Patient) -> str:
    """Labels, and every record with its picture."""
    eye = Onlooker(_SIDE, folders=True)
    shown = list(patient.records.values())[:_RECORDS]
    cards = [Html(f'<div style="margin-top:8px">{_card(r, eye, _SIDE)}</div>') for r in shown]
    left = len(patient.records) - len(shown)
    more = soft(f"and {left:,} more records") if left else ""
    return page(title(f"Patient {patient.id}", labels_text(patient, 12)), *cards, more)


def labels_text(patient: Patient, most: int = 2) -> str:
    """Labels of a patient in a line."""
    told = [f"{name}: {_brief_value(v)}" for name, v in list(patient.labels.items())[:most]]
    return ", ".join(told) + (", ..." if len(patient.labels) > most else "")


def _brief_value(value: Any) -> str:
    told = f"{value:.4g}" if isinstance(value, float) else str(value)
    return told if len(told) <= 40 else told[:40] + "..."


# ------------------------------------------------------------------------- a dataset
def dataset_html(dataset: Dataset) -> str:
    """Labels counted, and the first and last patients."""
    names, patients = dataset.label_names, dataset.patients
    records = Counter(name for p in patients for name in p.records)
    said = f"{len(patients):,} patients, {sum(records.values()):,} records"
    kinds = ", ".join(f"{n:,} {name}" for name, n in records.most_common(_VALUES))
    counted = [_label(dataset, name) for name in names[:_VALUES]]
    if len(names) > _VALUES:
        counted.append(soft(f"and {len(names) - _VALUES} more labels"))
    cut = len(patients) > 2 * _EDGE_ROWS + 1
    first = patients[:_EDGE_ROWS] if cut else patients
    eye = Onlooker(_SMALL)
    rows = [_row(p, names, eye) for p in first]
    if cut:
        left = f"{len(patients) - 2 * _EDGE_ROWS:,} more"
        rows.append(("", safe(left), *[""] * (len(names[:_VALUES]) + 1)))
        rows += [_row(p, names, None) for p in patients[-_EDGE_ROWS:]]
    head = ("", "patient", "records", *names[:_VALUES])
    return page(
        title(dataset.name, f"{said}: {kinds}" if kinds else said),
        beside(*counted),
        table(head, rows) if rows else "",
    )


def _row(patient: Patient, names: Sequence[str], eye: Onlooker | None) -> tuple[Any, ...]:
    shown: list[Html] = []
    for record in patient.records.values() if eye is not None else ():
        look = eye.look(record) if eye is not None and len(shown) < 2 else None
        shown += [] if look is None else [_figure(look, _SMALL, record.name)]
    listed = list(patient.records.items())
    told = [join([name, ": ", place_of(r)]) for name, r in listed[:_VALUES]]
    told += [safe("...")] if len(listed) > _VALUES else []
    labels = [_brief_value(patient.labels.get(n, "")) for n in names[:_VALUES]]
    return beside(*shown), str(patient.id), join(told, "<br>"), *labels


def _label(dataset: Dataset, name: str) -> Html:
    """The values of one label: how often each is, or how numbers lie."""
    values = dataset.labels(name, "missing")
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    known = sum(v != "missing" for v in values)
    heading = Html(f'<div style="margin-top:6px">{safe(name)}</div>')
    counted_well = all(map(math.isfinite, numbers)) and len(set(numbers)) > _VALUES
    if counted_well and len(numbers) == known:
        return below(heading, _histogram(numbers), _missing(len(values) - known))
    counted = Counter(str(v) for v in values)
    most = max(counted.values(), default=1)
    rows = [
        (Html(f"{safe(_brief_value(v))} &times; {n:,}"), bar(n / most, COLOURS[3][0], 100))
        for v, n in counted.most_common(_VALUES)
    ]
    lines = "".join(f"<tr><td>{said}</td><td>{drawn}</td></tr>" for said, drawn in rows)
    left = len(counted) - _VALUES
    more = soft(f"and {left:,} more values") if left > 0 else ""
    return below(heading, Html(f"<table><tbody>{lines}</tbody></table>"), more)


def _missing(count: int) -> Html | str:
    return soft(f"missing of {count:,}") if count else ""


def _histogram(numbers: Sequence[float]) -> Html:
    """Bars, and the numbers that people ask for."""
    low, high = min(numbers), max(numbers)
    width = (high - low) / _BINS or 1.0
    bins = Counter(min(int((v - low) / width), _BINS - 1) for v in numbers)
    tallest = max(bins.values())
    drawn = "".join(
        f'<rect x="{10 * i}" y="{40 - 40 * n / tallest:.1f}" width="9" '
        f'height="{40 * n / tallest:.1f}" fill="{COLOURS[3][0]}"/>'
        for i, n in sorted(bins.items())
    )
    told = f"{low:.4g} to {high:.4g}, median {statistics.median(numbers):.4g}"
    return below(
        Html(f'<svg width="{10 * _BINS}" height="40" style="margin-top:5px">{drawn}</svg>'),
        soft(told),
    )
