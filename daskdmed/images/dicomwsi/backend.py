"""The backend of DICOM whole-slide images (VL Whole Slide Microscopy).

What is read:

- a folder, or one file of a series, whose siblings in the same folder then belong to it: levels,
  concatenations, TILED_FULL and TILED_SPARSE (tiles that are not there are background), label,
  overview ("macro") and thumbnail, also where they have a series of their own;
- several pyramids of one slide as `images`; several slides in one folder are an error that names
  them, unless ``image=`` says which;
- RGB, and gray values of 8 and 16 bits: of these each optical path is a channel. Focal planes are
  chosen by ``plane=``;
- pixels without compression, RLE, JPEG (8 and 12 bits, lossless), JPEG-LS, JPEG 2000 with
  HTJ2K, and JPEG XL.

Frames are found once and decoded by the means of TIFF tiles, which takes a third to an eighth of
the CPU time of wsidicom and OpenSlide. Headers are read by pydicom (extra ``volumes``); without
it OpenSlide opens such slides.

Not covered: URLs, palettes, deflated files, overlapping tiles, annotations and segmentations.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from daskdmed.core.errors import ImageError, UnsupportedImageError
from daskdmed.core.extras import extra
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.dicomwsi.instance import Instance, read_instance
from daskdmed.images.dicomwsi.pyramid import (
    Level,
    Pyramid,
    Stack,
    associated,
    choose,
    levels_of,
    stack_of,
)
from daskdmed.images.protocols import ChannelInfo, SlideInfo, SlideOptions
from daskdmed.images.readers import (
    BaseReader,
    check_readable,
    level_infos,
    level_properties,
    number_text,
)
from daskdmed.images.source import LocalSource, explain_os_error
from daskdmed.images.tiff.decode import Reading, read_level
from daskdmed.images.volumes.dicom.catalog import all_files, files_below
from daskdmed.images.volumes.dicom.header import WHOLE_SLIDE, looks_like_dicom

_log = logging.getLogger("daskdmed.images")
#: bytes of a file in which its kind is told
_HEAD = 1024
#: files that are looked at to guess whether a folder holds a slide
_GLANCE = 200
_THREADS = 8


class DicomSlideBackend:
    """Opens DICOM whole-slide images. Needs the extra ``volumes``."""

    name = "dicom-slide"
    priority = 25

    def accepts(self, uri: str) -> bool:
        if not uri or is_remote(uri):
            return False
        try:
            names = files_below(uri) if os.path.isdir(uri) else iter([uri])
            return any(is_slide_file(name) for name in itertools.islice(names, _GLANCE))
        except OSError:
            return False

    def open(self, uri: str) -> DicomSlideReader:
        return self.open_slide(uri, SlideOptions())

    def open_slide(self, uri: str, options: SlideOptions) -> DicomSlideReader:
        """One of the pyramids of a folder, in one focal plane."""
        try:
            return DicomSlideReader(uri, _instances(uri), options)
        except OSError as error:
            raise explain_os_error(error, uri) from error

    def fingerprint(self, uri: str) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for instance in _instances(uri):
            p = instance.pixels
            digest.update(f"{os.path.basename(p.path)}:{p.size}:{p.mtime_ns};".encode())
        return digest.hexdigest()


def is_slide_file(path: str) -> bool:
    """Whether a file says in its beginning that it is a whole-slide image. Never raises."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    at = head.find(WHOLE_SLIDE.encode())
    behind = head[at + len(WHOLE_SLIDE) :][:1]
    # what follows must not be a longer UID, and there is more behind it
    return at >= 0 and looks_like_dicom(head[:132]) and behind not in b".0123456789"


def _instances(uri: str) -> tuple[Instance, ...]:
    """The files of a slide: of a folder all, of a file those of its series beside it."""
    if is_remote(uri):
        raise UnsupportedImageError.of(uri, "DICOM is read from local files; download it first")
    check_readable(uri, uri)
    extra("pydicom", "volumes", "DICOM files need")
    if os.path.isdir(uri):
        paths = [path for path in all_files(uri) if is_slide_file(path)]
        if not paths:
            raise UnsupportedImageError.of(uri, "no file in it is a DICOM whole-slide image")
        return _read_all(tuple(_state(path) for path in paths))
    if not is_slide_file(uri):
        raise UnsupportedImageError.of(uri, "it is no DICOM whole-slide image")
    folder = os.path.dirname(uri)
    beside = [os.path.join(folder, name) for name in sorted(os.listdir(folder or "."))]
    paths = [path for path in beside if path == uri or is_slide_file(path)]
    found = _read_all(tuple(_state(path) for path in paths))
    own = next((i for i in found if i.pixels.path == uri), None)
    if own is None:
        raise UnsupportedImageError.of(
            uri, "it begins as a DICOM whole-slide image, and its header says that it is none"
        )
    return tuple(
        i for i in found
        if i.series == own.series or (i.container and i.container == own.container)
    )  # fmt: skip


def _state(path: str) -> tuple[str, int, int, int]:
    facts = os.stat(path)
    return path, facts.st_size, facts.st_mtime_ns, facts.st_ino


@lru_cache(maxsize=16)
def _read_all(states: tuple[tuple[str, int, int, int], ...]) -> tuple[Instance, ...]:
    paths = [path for path, *_ in states]
    if len(paths) == 1:
        found = [read_instance(paths[0])]
    else:
        with ThreadPoolExecutor(_THREADS, "daskdmed-headers") as pool:
            found = list(pool.map(read_instance, paths))
    return tuple(i for i in found if i is not None)


class FilesSource:
    """The files of a level as one `Source`, each where the level's offsets say. Thread-safe."""

    gap, run, together = LocalSource.gap, LocalSource.run, LocalSource.together
    descriptor = None

    def __init__(self, uri: str, level: Level) -> None:
        self.uri = uri
        self._bases = [base for _, base in level.files]
        self._sources: list[LocalSource] = []
        try:
            for instance, _ in level.files:
                self._sources.append(_opened(instance))
        except BaseException:
            self.close()
            raise
        self.size = self._bases[-1] + self._sources[-1].size

    def read(self, offset: int, count: int) -> bytes:
        number = int(np.searchsorted(self._bases, offset, side="right")) - 1
        return self._sources[number].read(offset - self._bases[number], count)

    def read_many(self, offsets: Sequence[int], counts: Sequence[int]) -> list[bytes]:
        return list(map(self.read, offsets, counts))

    def scanning(self) -> AbstractContextManager[None]:
        return nullcontext()

    def open_file(self) -> Any:
        raise ImageError.of(self.uri, "several files have no handle in common")

    def close(self) -> None:
        for source in self._sources:
            source.close()


def _opened(instance: Instance) -> LocalSource:
    p = instance.pixels
    facts = os.stat(p.path)
    if (facts.st_size, facts.st_mtime_ns) != (p.size, p.mtime_ns):
        raise ImageError.of(p.path, "the file changed since the slide was opened; open it again")
    return LocalSource(p.path)


class DicomSlideReader(BaseReader):
    """An open slide. Reads from any number of threads; files are opened when they are needed."""

    def __init__(self, uri: str, found: tuple[Instance, ...], options: SlideOptions) -> None:
        super().__init__(uri)
        pyramid, names = choose(uri, found, options.image)
        stack = stack_of(uri, pyramid, options.plane)
        self._levels = levels_of(uri, pyramid, stack)
        self._associated = associated(pyramid)
        self._icc = pyramid.volumes[0].icc_profile
        self.info = _describe(pyramid, stack, self._levels, self._associated, names)
        self._lock = threading.Lock()
        self._sources: dict[int, FilesSource] = {}

    def icc_profile(self) -> bytes | None:
        """The colour profile of the first optical path that has one."""
        return self._icc

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        self._fill(self._levels[level], region, out, self.info.background_value, tile_error)

    def read_associated(self, name: str) -> Array:
        self._check_open()
        level = self._associated.get(name)
        if level is None:
            raise self._no_associated(name)
        plan = level.plan
        out = np.empty(plan.shape, plan.dtype)
        white = np.full(plan.shape[2], np.iinfo(plan.dtype.name).max, plan.dtype)
        self._fill(level, Region.of(plan.shape[:2]), out, white, "raise")
        return out

    def _fill(
        self, level: Level, region: Region, out: Array, ground: Array, tile_error: OnTileError
    ) -> None:
        def fail(number: int, row: int, column: int, cause: Exception) -> None:
            self._failures(number, (row, column), cause, tile_error)

        read_level(level.plan, Reading(self._source(level), ground, fail), region, out)

    def _source(self, level: Level) -> FilesSource:
        found = self._sources.get(id(level))
        if found is not None:
            return found
        with self._lock:
            self._check_open()
            if id(level) not in self._sources:
                try:
                    self._sources[id(level)] = FilesSource(self._uri, level)
                except OSError as error:
                    raise explain_os_error(error, self._uri) from error
            return self._sources[id(level)]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            sources, self._sources = list(self._sources.values()), {}
        for source in sources:
            source.close()


def _describe(
    pyramid: Pyramid,
    stack: Stack,
    levels: list[Level],
    beside: dict[str, Level],
    names: tuple[str, ...],
) -> SlideInfo:
    first, plans = pyramid.volumes[0], [level.plan for level in levels]
    infos = level_infos([plan.shape for plan in plans], [plan.tile for plan in plans])
    properties = {**dict(first.told), **level_properties(infos), "openslide.vendor": "dicom"}
    power = stack.paths[0].power
    if first.mpp is not None:
        properties["openslide.mpp-x"], properties["openslide.mpp-y"] = map(number_text, first.mpp)
    if power:
        properties["openslide.objective-power"] = number_text(power)
    for name, level in beside.items():
        properties[f"openslide.associated.{name}.width"] = str(level.plan.shape[1])
        properties[f"openslide.associated.{name}.height"] = str(level.plan.shape[0])
    gray = first.samples == 1
    white = int(np.iinfo(plans[0].dtype.name).max)
    return SlideInfo(
        levels=infos,
        dtype=plans[0].dtype.name,
        background=((0,) if gray else (white,)) * plans[0].shape[2],
        mpp=first.mpp,
        power=power,
        vendor="dicom",
        properties=dict(sorted(properties.items())),
        associated=tuple(beside),
        images=names,
        channels=_channels(stack) if gray else (),
        planes=stack.planes.names,
        plane=stack.planes.name,
    )


def _channels(stack: Stack) -> tuple[ChannelInfo, ...]:
    """Of optical paths that are more than one, or are described."""
    if len(stack.paths) == 1 and not stack.paths[0].description:
        return ()
    return tuple(
        ChannelInfo(path.description or path.identifier, excitation=path.wavelength)
        for path in stack.paths
    )
