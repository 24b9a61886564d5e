"""Which files make a slide: pyramids of a folder, their levels, and the images beside them.

A level is all files of one size: the parts of a concatenation, and optical paths or focal planes
in files of their own. Files of one size that are stored in another way than the first are left
out, and the log says so.

Not covered: reading (`daskdmed.images.dicomwsi.backend`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError, listing
from daskdmed.images.dicomwsi.decoders import decoder_of
from daskdmed.images.dicomwsi.frames import places_of
from daskdmed.images.dicomwsi.instance import Instance, OpticalPath
from daskdmed.images.readers import (
    ASSOCIATED_NAMES,
    Planes,
    choose_image,
    choose_planes,
    say_choice,
)
from daskdmed.images.source import LocalSource
from daskdmed.images.tiff.decode import LevelPlan
from daskdmed.images.tiff.tables import TileTable

_log = logging.getLogger("daskdmed.images")
#: bytes between two files of a level, as its offsets count: never read with one call
_APART = 2 * (LocalSource.run + LocalSource.gap)
#: tiles of a level; more would be damage
_MOST_TILES = 2**26
_NAMES = {**ASSOCIATED_NAMES, "localizer": "macro"}


@dataclass(frozen=True, slots=True)
class Level:
    """A level, or an image beside the slide: where its tiles are, in which files."""

    plan: LevelPlan
    #: of each file, and what offsets of tiles count from
    files: tuple[tuple[Instance, int], ...]


@dataclass(slots=True)
class Pyramid:
    """All files of one slide; the first of `volumes` are those of the largest level."""

    name: str
    volumes: list[Instance]
    others: list[Instance]


def choose(uri: str, found: Sequence[Instance], image: str) -> tuple[Pyramid, tuple[str, ...]]:
    """The slide that is meant, and the names of all that are there."""
    pyramids = _pyramids(found)
    if not pyramids:
        kinds = sorted({i.flavor for i in found})
        raise UnsupportedImageError.of(
            uri, f"no level of a whole slide is there, only {', '.join(kinds)}"
        )
    slides = {p.volumes[0].container or p.volumes[0].series for p in pyramids}
    names = [p.name for p in pyramids]
    if len(slides) > 1 and not image:
        raise UnsupportedImageError.of(
            uri,
            f"{len(slides)} slides are there: image= names one of {listing(names)}, or name a "
            "file of one",
        )
    areas = [p.volumes[0].size[0] * p.volumes[0].size[1] for p in pyramids]
    spacing = [p.volumes[0].mpp[0] if p.volumes[0].mpp else None for p in pyramids]
    number = choose_image(uri, image, names, areas, spacing)
    if not image:
        say_choice(uri, names[number], names[:number] + names[number + 1 :])
    return pyramids[number], tuple(names) if len(names) > 1 else ()


def _pyramids(found: Sequence[Instance]) -> list[Pyramid]:
    groups: dict[tuple[str, str], list[Instance]] = {}
    for instance in found:
        if _role(instance) == "":
            groups.setdefault((instance.series, instance.pyramid), []).append(instance)
    named = [(i[0].description or i[0].container or i[0].series) for i in groups.values()]
    pyramids = []
    for number, ((series, pyramid), volumes) in enumerate(groups.items()):
        name = named[number] if named.count(named[number]) == 1 else f"{series} {pyramid}".strip()
        own = [i for i in found if _role(i) and i.series == series]
        # labels may have a series of their own
        same = [i for i in found if _role(i) and i.container == volumes[0].container]
        alone = [i for i in found if _role(i)] if len(groups) == 1 else []
        volumes.sort(key=lambda i: (-i.size[0] * i.size[1], i.first, i.pixels.path))
        pyramids.append(Pyramid(name, volumes, own or same or alone))
    return pyramids


def _role(instance: Instance) -> str:
    """Which image beside the slide it is; "" for a part of it."""
    return _NAMES.get(instance.flavor.lower(), "")


def associated(pyramid: Pyramid) -> dict[str, Level]:
    """Name -> label, macro, thumbnail; the largest of each."""
    found: dict[str, Level] = {}
    ordered = sorted(pyramid.others, key=lambda i: -i.size[0] * i.size[1])
    for instance in ordered:
        name = _role(instance)
        try:
            if name not in found:
                found[name] = make_level([instance], -1, instance.paths[:1], 0)
        except (UnsupportedImageError, CorruptImageError) as error:
            # a label that cannot be read is no reason to refuse the slide
            _log.warning("associated image %r is left out: %s", name, error)
    return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Stack:
    """What the levels have in common: channels, and the plane that is read."""

    paths: tuple[OpticalPath, ...]
    planes: Planes


def stack_of(uri: str, pyramid: Pyramid, plane: str) -> Stack:
    """The optical paths that are channels, and which focal plane is read."""
    first = pyramid.volumes[0]
    same = [i for i in pyramid.volumes if i.size == first.size]
    paths = list(dict.fromkeys(p for i in same for p in i.paths))
    if first.samples > 1 and len(paths) > 1:
        _log.warning(
            "%s: reads the colours of the optical path %r, not of %s",
            *(uri, paths[0].identifier, listing([p.identifier for p in paths[1:]])),
        )
        paths = paths[:1]
    depth = max(i.focal_planes for i in same)
    return Stack(tuple(paths), choose_planes(uri, plane, {"z": depth}, {"z": 0}))


def levels_of(uri: str, pyramid: Pyramid, stack: Stack) -> list[Level]:
    """The levels, largest first; those of other samples than the first are left out."""
    found: list[Level] = []
    for size in dict.fromkeys(i.size for i in pyramid.volumes):
        files = [i for i in pyramid.volumes if i.size == size]
        level = make_level(files, len(found), stack.paths, stack.planes.at.get("z", 0))
        first = found[0].plan if found else level.plan
        if (level.plan.shape[2], level.plan.dtype) != (first.shape[2], first.dtype):
            _log.warning("%s: the level of %s has other channels and is left out", uri, size)
            continue
        found.append(level)
    return found


def make_level(
    files: Sequence[Instance], number: int, paths: Sequence[OpticalPath], plane: int
) -> Level:
    """A level of some files: one channel per path (or colours), in one focal plane."""
    first = files[0]
    kept = _alike(files)
    white = 255 if first.samples == 3 else 0
    decoder, dtype = decoder_of(first, (white,) * first.samples)
    within = first.samples if decoder.stored < first.samples else 1
    cells = first.grid[0] * first.grid[1]
    if cells > _MOST_TILES:
        raise CorruptImageError.of(first.pixels.path, f"a level of {cells} tiles")
    offsets = np.zeros((len(paths) * within, cells), np.int64)
    counts = np.zeros_like(offsets)
    placed, base = [], 0
    for file in kept:
        _enter(file, base, paths, plane, within, offsets, counts)
        placed.append((file, base))
        base += file.pixels.size + _APART
    _check_complete(kept, counts)
    plan = LevelPlan(
        level=number,
        shape=(*first.size, decoder.given * len(offsets)),
        tile=first.tile,
        grid=first.grid,
        tiles=TileTable(offsets, counts),
        decoder=decoder,
        dtype=dtype,
    )
    return Level(plan, tuple(placed))


def _alike(files: Sequence[Instance]) -> list[Instance]:
    """Files stored as the first one, each once."""

    def kind(i: Instance) -> tuple[object, ...]:
        p = i.pixels
        stored = p.syntax, p.allocated, p.signed, p.floating
        return i.tile, i.samples, i.photometric, i.planar, *stored

    kept: dict[str, Instance] = {}
    for file in files:
        if kind(file) != kind(files[0]) or file.uid in kept:
            why = "is there twice" if file.uid in kept else "is stored in another way"
            _log.warning("%s: left out, as a file of this size %s", file.pixels.path, why)
            continue
        kept[file.uid] = file
    return list(kept.values())


def _enter(
    file: Instance,
    base: int,
    paths: Sequence[OpticalPath],
    plane: int,
    within: int,
    offsets: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> None:
    """Enter the frames of a file where they belong."""
    source = LocalSource(file.pixels.path)
    try:
        at, length = places_of(file.pixels, file.samples, source)
    finally:
        source.close()
    places = _in_order(file) if file.places is None else file.places
    rows, columns = file.grid
    optical, depth, row, column = places.T
    if not ((row >= 0) & (row < rows) & (column >= 0) & (column < columns)).all() or (
        optical.max() >= len(file.paths)
    ):
        raise CorruptImageError.of(
            file.pixels.path,
            f"frames outside the {file.size[1]} x {file.size[0]} pixels of the level, or of more "
            f"than its {len(file.paths)} optical paths; fetch the file again",
        )
    names = [path.identifier for path in paths]
    own = [names.index(p.identifier) if p.identifier in names else -1 for p in file.paths]
    channel = np.asarray(own, np.int64)[optical]
    wanted = (depth == plane) & (channel >= 0)
    cell = row * columns + column
    size = length // within
    for part in range(within):
        index = channel[wanted] * within + part, cell[wanted]
        offsets[index] = base + at[wanted] + part * size[wanted]
        counts[index] = size[wanted]


def _in_order(file: Instance) -> npt.NDArray[np.int64]:
    """(optical path, focal plane, row, column) of frames that are all there, in order."""
    number = file.first + np.arange(file.pixels.frames, dtype=np.int64)
    rest, cell = np.divmod(number, file.grid[0] * file.grid[1])
    optical, depth = np.divmod(rest, file.focal_planes)
    row, column = np.divmod(cell, file.grid[1])
    return np.stack([optical, depth, row, column], axis=1)


def _check_complete(files: Sequence[Instance], counts: npt.NDArray[np.int64]) -> None:
    """Only where frames have places of their own may some be missing."""
    missing = int((counts == 0).sum())
    if missing and all(file.places is None for file in files):
        first = files[0]
        names = listing([os.path.basename(f.pixels.path) for f in files])
        raise CorruptImageError.of(
            first.pixels.path,
            f"{missing} of the {counts.size} frames of the level of {first.size[1]} x "
            f"{first.size[0]} pixels are in none of its files ({names}); one of them, or a part "
            "of a concatenation, is missing",
        )
