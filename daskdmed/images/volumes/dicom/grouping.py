"""Which slices make one volume, and which of the volumes is meant. Pure.

Slices of one volume share the series, the size in pixels, the orientation, the spacing and the
stack. Where slices then lie in the same places (echoes, time points, magnitude and phase, maps
computed from them), the element that tells them apart is looked for: each of its values is a
volume of its own.

Not covered: how a volume's slices are laid out (`daskdmed.images.volumes.dicom.geometry`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.images.volumes.dicom.frames import Frame, Vector
from daskdmed.images.volumes.dicom.geometry import SAME_PLACE

#: directions that differ by less are one: half a pixel over 500
SAME_DIRECTION = 1e-3
#: volumes listed in errors
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Group:
    """Slices of one volume, in no order."""

    frames: tuple[Frame, ...]
    #: what tells it apart from others of its series with the same places, as "FIELD_MAP"
    label: str = ""
    #: its number in its series, from 0, and how many there are
    number: int = 0
    siblings: int = 1
    #: made for planning, or a single slice beside a stack in its series
    minor: bool = False

    @property
    def names(self) -> set[str]:
        """What users may call its series."""
        series = self.frames[0].series
        number = "" if series.number is None else str(series.number)
        return {_plain(t) for t in (series.uid, number, series.description) if t}

    @property
    def own_names(self) -> set[str]:
        """What users may call it alone."""
        ways = [str(self.number), *([self.label] if self.label else [])]
        full = {f"{name}/{_plain(way)}" for name in self.names for way in ways}
        return full | ({_plain(self.label)} if self.label else set())

    def __str__(self) -> str:
        first = self.frames[0]
        size = f"{first.pixels.rows} x {first.pixels.columns}"
        count = len(self.frames)
        slices = f"{count} slice{'s' * (count > 1)} of {size} pixels"
        more = [first.series.modality, self.label, "localizer" if first.localizer else ""]
        return " ".join([repr(first.series.description), *filter(None, more), slices])


def _plain(text: str) -> str:
    return text.strip().casefold()


def group(frames: Sequence[Frame]) -> tuple[Group, ...]:
    """Volumes in the order of their series."""
    series = defaultdict(list)
    for frame in frames:
        series[frame.series.uid].append(frame)
    found: list[Group] = []
    for members in series.values():
        found += _of_series(members)

    def place(one: Group) -> tuple[int, str, int]:
        first = one.frames[0].series
        return (first.number if first.number is not None else 2**31, first.uid, one.number)

    return tuple(sorted(found, key=place))


def _of_series(frames: list[Frame]) -> list[Group]:
    volumes = [part for alike in _alike(frames) for part in _split(alike)]
    volumes.sort(key=lambda v: min((f.instance, f.index) for f in v[0]))
    most = max(len(v) for v, _ in volumes)
    return [
        Group(
            tuple(members), label, number, len(volumes),
            members[0].localizer or (len(members) == 1 and most >= 3),
        )
        for number, (members, label) in enumerate(volumes)
    ]  # fmt: skip


def _alike(frames: list[Frame]) -> list[list[Frame]]:
    """Slices of the same size, orientation and spacing."""
    exact = defaultdict(list)
    for frame in frames:
        p = frame.pixels
        kind = (p.rows, p.columns, p.floating, frame.localizer, frame.stack)
        exact[kind].append(frame)
    found: list[list[Frame]] = []
    for members in exact.values():
        near: list[list[Frame]] = []
        for frame in members:
            for other in near:
                if _same_plane(frame, other[0]):
                    other.append(frame)
                    break
            else:
                near.append([frame])
        found += near
    return found


def _same_plane(a: Frame, b: Frame) -> bool:
    return _near(a.axes, b.axes, SAME_DIRECTION, 0) and _near(a.spacing, b.spacing, 0, 1e-3)


def _near(a: Vector | None, b: Vector | None, absolute: float, relative: float) -> bool:
    if a is None or b is None:
        return a is b
    return all(abs(v - w) <= absolute + relative * abs(w) for v, w in zip(a, b, strict=True))


def places(frames: Sequence[Frame]) -> list[int]:
    """A number per slice, the same for slices in one place; of slices that have places."""
    position = np.array([frame.position for frame in frames], float)
    steps = next((f.spacing for f in frames if f.spacing), (1.0, 1.0))
    near = SAME_PLACE * min(steps)
    normal = np.cross(frames[0].axes[:3], frames[0].axes[3:])  # type: ignore[index]
    order = np.argsort(position @ normal, kind="stable")
    found, number = [0] * len(frames), 0
    for before, after in itertools.pairwise(order):
        if np.linalg.norm(position[after] - position[before]) > near:
            number += 1
        found[after] = number
    return found


def _split(frames: list[Frame]) -> list[tuple[list[Frame], str]]:
    """Volumes that lie in the same places, told apart by as few elements as possible."""
    if frames[0].axes is None or len(frames) == 1:
        return [(frames, "")]
    at = dict(zip(map(_key, frames), places(frames), strict=True))
    deepest = max(Counter(at.values()).values())
    if deepest == 1:
        return [(frames, "")]
    traits = {_key(frame): dict(frame.traits) for frame in frames}
    names = [name for name, _ in frames[0].traits]
    varied = [n for n in names if len({own.get(n) for own in traits.values()}) > 1]
    for count in (1, 2, 3):
        for chosen in itertools.combinations(varied, count):
            parts = defaultdict(list)
            for frame in frames:
                parts[tuple(traits[_key(frame)].get(n, "") for n in chosen)].append(frame)
            unique = all(len({at[_key(f)] for f in part}) == len(part) for part in parts.values())
            if unique and len(parts) == deepest:
                return [(part, _label(chosen, way, list(parts))) for way, part in parts.items()]
    return [(frames, "")]


def _key(frame: Frame) -> tuple[str, int]:
    return frame.pixels.path, frame.index


def _label(names: Sequence[str], values: tuple[str, ...], all_values: list[tuple[str, ...]]) -> str:
    """What is particular of a volume: of image types the words that others do not share."""
    said = []
    for axis, name in enumerate(names):
        value = values[axis]
        if name in ("ImageType", "FrameType"):
            words = [set(other[axis].split("\\")) for other in all_values]
            shared = set.intersection(*words)
            value = "-".join(w for w in value.split("\\") if w not in shared) or value
            said.append(value)
        else:
            said.append(f"{name}={value}")
    return " ".join(said)


def choose(uri: str, groups: Sequence[Group], series: str | None) -> tuple[Group, list[Group]]:
    """The volume that is meant, and those left out; an error that lists them where several are."""
    if series is None:
        meant = list(groups)
    else:
        wanted = _plain(str(series))
        meant = [g for g in groups if wanted in g.own_names]
        meant = meant or [g for g in groups if wanted in g.names]
        if not meant:
            raise UsageError(f"{uri} has no series={series!r}; there are:\n{_listed(groups)}")
    if len(meant) > 1:
        meant = [g for g in meant if not g.minor] or meant
    if len(meant) > 1:
        raise UsageError(
            f"{uri} holds {len(meant)} volumes; choose one by series=:\n{_listed(meant, groups)}"
        )
    return meant[0], [g for g in groups if g is not meant[0]]


def _listed(groups: Sequence[Group], among: Sequence[Group] | None = None) -> str:
    lines = [f"  series={name_of(g, among or groups)!r}: {g}" for g in groups[:_SHOWN]]
    if len(groups) > _SHOWN:
        lines.append(f"  and {len(groups) - _SHOWN} more")
    return "\n".join(lines)


def name_of(one: Group, groups: Sequence[Group]) -> str:
    """The shortest name that means this volume alone."""
    series = one.frames[0].series
    other = {name for g in groups if g.frames[0].series.uid != series.uid for name in g.names}
    number = "" if series.number is None else str(series.number)
    ways = [t for t in (number, series.description, series.uid) if t and _plain(t) not in other]
    name = ways[0] if ways else series.uid
    return f"{name}/{one.number}" if one.siblings > 1 else name
