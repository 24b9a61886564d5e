"""What became of one input: it was read, or refused as it should be; anything else is a finding.

Each kind of input is opened as users do, and everything is asked of it that costs little: facts,
whole levels where they are small, regions inside and across the border, pictures beside it, lazy
arrays, shapes. What was read is kept for `reference`.

Not covered: processes, time and memory (`campaign`).
"""

from __future__ import annotations

import logging
import math
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import daskdmed
from daskdmed import errors
from daskdmed.cohort.annotations.annotation import LARGEST_COORDINATE
from daskdmed.cohort.annotations.patches import PatchCoordinates
from daskdmed.cohort.tissue.files import read_mask
from daskdmed.core.region import Region
from daskdmed.images import filecache
from daskdmed.images.lazy import to_dask
from daskdmed.images.resample import LONGEST
from daskdmed.images.volumes.dicom import catalog
from daskdmed.store.results.finished import open_heatmap
from tests.fuzz import zarrs
from tests.fuzz.draw import Draw
from tests.fuzz.seeds import Seed

T = TypeVar("T")
_ROOT = str(Path(daskdmed.__file__).parent)
#: whole levels are read up to so many bytes, of larger ones some regions
_WHOLE = 1 << 21
#: thumbnails of images of more bytes would read them whole
_PICTURED = 1 << 25
_SIDE = 96
#: how opening may end
_OPENING = (errors.CorruptImageError, errors.UnsupportedImageError, errors.UsageError)
#: how reading what is open may end
_READING = (errors.TileError, errors.CorruptImageError, errors.UnsupportedImageError)


class Finding(Exception):
    """What must not happen: `kind` is a word, the text says more."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass
class Trial:
    """One input while it is judged."""

    seed: Seed
    path: Path
    draw: Draw
    #: names of errors that were raised as they should be
    refused: list[str] = field(default_factory=list)
    #: level -> pixels, of levels read whole
    levels: dict[int, Any] = field(default_factory=dict)
    opened: Any = None

    def attempt(self, kinds: tuple[type[Exception], ...], action: Callable[..., T], *args: Any,
                **options: Any) -> T | None:  # fmt: skip
        """The result of a step; None where it was refused by one of these errors, named."""
        try:
            return action(*args, **options)
        except (Finding, KeyboardInterrupt, SystemExit):
            raise
        except errors.DaskdmedError as error:
            if isinstance(error, errors.ImageNotFoundError) and self.seed.missing:
                self.refused.append("ImageNotFoundError")
                return None
            if not isinstance(error, kinds):
                raise Finding(f"kind: {type(error).__name__}", _story(error)) from error
            names = {self.path.name, *self.seed.files}
            if not any(Path(name).name in str(error) for name in names):
                raise Finding("nameless", _story(error)) from error
            self.refused.append(type(error).__name__)
            return None
        except BaseException as error:  # also panics of Rust
            raise Finding(f"untyped: {type(error).__name__}", _story(error)) from error

    def expect(self, truth: bool, what: str) -> None:
        if not truth:
            raise Finding("facts", what)


def _story(error: BaseException) -> str:
    """The error, and the lines of this library that it passed last."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(_ROOT)]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in own[:-5:-1])
    return f"{type(error).__name__}: {str(error)[:600]} [{where}]"


class _Listener(logging.Handler):
    """Writes nothing, and makes sure that what is logged can be written."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def quiet() -> None:
    """Nothing is logged to the terminal in this process."""
    logging.getLogger().handlers[:] = [_Listener()]


@contextmanager
def no_own_warnings() -> Iterator[None]:
    """A warning from this library's lines is a finding; what others warn of is theirs."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    for one in found:
        if one.filename.startswith(_ROOT):
            where = f"{Path(one.filename).name}:{one.lineno}"
            raise Finding("warning", f"{one.category.__name__}: {one.message} [{where}]")


def judge(seed: Seed, path: Path, draw: Draw) -> Trial:
    """Open an input and read it; raises a `Finding`."""
    trial = Trial(seed, path, draw)
    try:
        with no_own_warnings():
            OPENERS[seed.opener](trial, **seed.options)
    finally:
        filecache.cache.clear()
        catalog._read.cache_clear()
    return trial


def outcome(trial: Trial) -> str:
    """One word or two for reports."""
    if trial.opened is None:
        return f"refused, {trial.refused[0]}" if trial.refused else "refused"
    return "read in part" if trial.refused else "read"


# -------------------------------------------------------------------- images
def _slide(trial: Trial, **options: Any) -> None:
    slide = trial.attempt(_OPENING, daskdmed.open_slide, trial.path, **options)
    if slide is None:
        return
    if trial.opened is not None:  # another image of the same file
        _others(trial, slide)
        return
    trial.opened = slide
    trial.attempt((), _slide_facts, trial, slide)
    for level in range(slide.level_count):
        _pixels(trial, level, slide.view)
    _across(trial, slide)
    for name in slide.associated_images:
        image = trial.attempt(_READING, slide.associated_images.__getitem__, name)
        trial.expect(image is None or image.ndim == 3, f"associated image {name!r} {image!r:.80}")
    if slide.levels[0].shape[0] * slide.levels[0].shape[1] * slide.dtype.itemsize < _PICTURED:
        long = max(slide.levels[0].shape[:2]) > LONGEST
        kinds = (*_READING, errors.GeometryError) if long else _READING
        small = trial.attempt(kinds, slide.get_thumbnail, (24, 24))
        trial.expect(small is None or max(small.shape[:2]) <= 24, "thumbnail too large")
    trial.attempt((), slide._repr_html_)
    for name, there in (("image", slide.images), ("plane", slide.planes)):
        if there and not options:
            _slide(trial, **{name: trial.draw.choice(there)})


def _others(trial: Trial, slide: Any) -> None:
    """Of another image or plane: a region of its first level."""
    view = slide.view()
    trial.attempt(_READING, view.read, _region(trial, view))


def _slide_facts(trial: Trial, slide: Any) -> None:
    for name in ("mpp", "power"):
        value = np.ravel(getattr(slide, name) or 1.0)
        trial.expect(np.isfinite(value).all() and value.min() > 0, f"{name} {value}")
    profile = trial.attempt(_READING, getattr, slide, "icc_profile")
    trial.expect(profile is None or isinstance(profile, bytes), f"a profile {profile!r:.50}")
    names = [str(channel.name) for channel in slide.channels or ()]
    trial.expect(len(names) in (0, slide.levels[0].shape[-1]), f"channels {names}")
    facts = slide.properties
    trial.expect(all(isinstance(v, str) for v in facts.values()), "properties that are no text")
    channels = {level.shape[-1] for level in slide.levels}
    trial.expect(channels == {len(slide.background)}, f"{channels} channels, {slide.background}")
    _levels_shrink(trial, slide)
    _travels(trial, slide)


def _levels_shrink(trial: Trial, image: Any) -> None:
    for level in image.levels:
        sizes = (*level.shape, *level.tile_shape, *level.downsample)
        trial.expect(all(math.isfinite(n) and n > 0 for n in sizes), f"level {level}")
        trial.expect(min(level.downsample) >= 0.5, f"a level is larger than the first: {level}")


def _travels(trial: Trial, image: Any) -> None:
    trial.expect(pickle.loads(pickle.dumps(image)) == image, "a pickled image is another")
    trial.expect(bool(repr(image)) and bool(image.token), "no name")


def _pixels(trial: Trial, level: int, make: Callable[..., Any]) -> None:
    """Pixels of a level: all of a small one, kept; else of some regions."""
    view = trial.attempt((), make, level=level)
    assert view is not None
    lazy = trial.attempt((errors.GeometryError,), to_dask, view)
    trial.expect(lazy is None or lazy.shape == view.shape, "a lazy array of another shape")
    is_small = math.prod(view.shape) * view.dtype.itemsize <= _WHOLE
    boxes = [Region.of(view.spatial_shape)] if is_small else [_region(trial, view) for _ in "abc"]
    for box in boxes:
        found = trial.attempt(_READING, view.read, box)
        if found is None:  # then it can be had with what is broken painted
            painted = make(level=level, tile_error="fill")
            found = trial.attempt(_READING, painted.read, box)
        elif is_small:
            trial.levels[level] = found
        if found is not None:
            shape = (*box.shape, *view.channel_shape)
            trial.expect(found.shape == shape and found.dtype == view.dtype, "another shape")


def _region(trial: Trial, view: Any) -> Region:
    """Somewhere within a view, small enough that storage tiles are most of the cost."""
    depth = _SIDE if view.spatial_ndim == 2 else 8
    shape = tuple(min(n, depth) for n in view.spatial_shape)
    origin = tuple(
        trial.draw.choice((0, n - m, trial.draw.below(n - m + 1)))
        for n, m in zip(view.spatial_shape, shape, strict=True)
    )
    return Region(origin, shape)


def _across(trial: Trial, slide: Any) -> None:
    """A region across the border is what was read, and background around it."""
    for level, whole in trial.levels.items():
        shape = (9, min(whole.shape[1], 40))
        part = trial.attempt(_READING, slide.read_region, (-3, -2), level, shape[::-1])
        if part is None:
            raise Finding("pixels", f"level {level} is read whole, and not in part")
        down = slide.levels[level].downsample
        y, x = (math.floor(0.5 - d / s) for d, s in zip((2, 3), down, strict=True))
        expected = np.broadcast_to(np.asarray(slide.background, whole.dtype), part.shape).copy()
        inside = whole[: max(0, shape[0] + y), : max(0, shape[1] + x)]
        expected[-y : len(inside) - y, -x : inside.shape[1] - x] = inside
        if not _same(part, expected) and _reproducible(slide, level, whole):
            raise Finding("pixels", f"a region of level {level} differs from the whole")


def _reproducible(slide: Any, level: int, whole: Any) -> bool:
    """Blosc leaves memory as it was where its blocks are damaged: other values each time."""
    filecache.cache.clear()
    return any(_same(slide.view(level=level).read(Region.of(whole.shape[:2])), whole) for _ in "ab")


def _same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _volume(trial: Trial, **options: Any) -> None:
    volume = trial.attempt(_OPENING, daskdmed.open_volume, trial.path, **options)
    if volume is None:
        return
    trial.opened = volume
    trial.attempt((), _volume_facts, trial, volume)
    for level in range(len(volume.levels)):
        _pixels(trial, level, volume.view)
    if volume.space is not None and 0 in trial.levels:
        turned = trial.attempt((), volume.view, orientation="RAS")
        values = turned.read(Region.of(turned.spatial_shape))
        trial.expect(values.size == trial.levels[0].size, "turned, it has other voxels")
        _coarser(trial, volume)
    trial.attempt((), volume._repr_html_)


def _coarser(trial: Trial, volume: Any) -> None:
    """The volume at twice its spacing."""
    steps = [2 * s for s in volume.space.spacing]
    kinds = (errors.ResolutionError, errors.GeometryError)
    view = trial.attempt(kinds, volume.view, spacing=steps)
    if view is not None:
        trial.attempt(_READING, view.read, Region.of(view.spatial_shape))


def _volume_facts(trial: Trial, volume: Any) -> None:
    space = volume.space
    if space is not None:
        trial.expect(np.isfinite(space.affine).all(), f"a place without end {space.affine}")
        trial.expect(tuple(space.shape) == volume.shape, "a space of another shape")
    steps = np.asarray(volume.spacing or (1, 1, 1), float)
    trial.expect(np.isfinite(steps).all() and steps.min() > 0, f"spacing {steps}")
    trial.expect(all(isinstance(v, str) for v in volume.properties.values()), "properties")
    _levels_shrink(trial, volume)
    _travels(trial, volume)


# -------------------------------------------------------------------- what lies beside images
def _annotations(trial: Trial, **options: Any) -> None:
    kinds = (errors.AnnotationError, errors.UsageError)
    found = trial.attempt(kinds, daskdmed.read_annotations, trial.path, **options)
    strict = trial.attempt(
        kinds, daskdmed.read_annotations, trial.path, on_invalid="raise", **options
    )
    left = trial.attempt(kinds, daskdmed.read_annotations, trial.path, on_invalid="skip", **options)
    trial.expect(strict is None or found is not None, "wrong only where all is repaired")
    trial.expect(found is None or left is not None, "wrong only where all may be left out")
    if found is None:
        return
    trial.opened, trial.refused = found, []
    bounds = np.array([a.geometry.bounds for a in found]).reshape(-1, 4)
    reach = np.abs(bounds).max(initial=0)
    trial.expect(
        bool(np.isfinite(bounds).all()) and reach <= 4 * LARGEST_COORDINATE, f"bounds {reach}"
    )
    trial.expect(all(a.geometry.is_valid for a in found), "an invalid shape")
    try:
        text = found.to_geojson()
    except errors.AnnotationError:  # of properties that JSON cannot hold
        return
    again = daskdmed.read_annotations(text)
    trial.expect(len(again) == len(found), f"{len(found)} written, {len(again)} read again")
    labels = [a.label for a in again] == [a.label for a in found]
    trial.expect(labels, "labels change when they are written")


def _manifest(trial: Trial) -> None:
    dataset = trial.attempt((errors.DatasetError,), daskdmed.Dataset.from_manifest, trial.path)
    if dataset is None:
        return
    trial.opened = dataset
    for patient in dataset:
        trial.expect(bool(patient.records) and bool(repr(patient)), "a patient without records")
    copy = trial.path.with_name("again.json")
    if trial.attempt((errors.DatasetError,), _written, dataset, copy) is not None:
        again = daskdmed.Dataset.from_manifest(copy)
        trial.expect([p.id for p in again] == [p.id for p in dataset], "written, it is another")


def _written(dataset: Any, path: Path) -> Path:
    try:
        dataset.to_manifest(path)
    except errors.DatasetError as error:  # names the patient, not the file
        raise errors.DatasetError(f"{path.parent}: {error}") from error
    return path


def _mask(trial: Trial, shape0: tuple[int, ...]) -> None:
    kinds = (*_OPENING, errors.TileError)
    found = trial.attempt(kinds, read_mask, trial.path, "slide", shape0)
    if found is not None:
        trial.opened = found
        data = np.asarray(getattr(found, "data", found))
        trial.expect(data.dtype == bool and data.ndim == 2, f"a mask {data.dtype} {data.shape}")


def _patches(trial: Trial) -> None:
    found = trial.attempt((errors.AnnotationError,), PatchCoordinates.read, trial.path)
    if found is not None:
        trial.opened = found
        trial.expect(found.coords.shape == (len(found), 2), f"coords {found.coords.shape}")
        boxes = trial.attempt((errors.AnnotationError,), found.to_annotations)
        trial.expect(boxes is None or len(boxes) == len(found), "other boxes")


def _result(trial: Trial) -> None:
    kinds = (errors.StoreError, *_OPENING)
    found = trial.attempt(kinds, open_heatmap, trial.path)
    if found is None:
        return
    trial.opened = found
    if math.prod(found.array.shape) * found.dtype.itemsize <= _WHOLE:
        trial.attempt(kinds, found.read, Region.of(found.counts))
    trial.attempt(kinds, found.lazy)
    again = trial.attempt(kinds, zarrs.write_result, trial.path, resume=True)
    trial.expect(again is None or again.shape == found.array.shape, "resumed, it is another")


OPENERS: Mapping[str, Callable[..., None]] = {
    "slide": _slide,
    "volume": _volume,
    "annotations": _annotations,
    "manifest": _manifest,
    "mask": _mask,
    "patches": _patches,
    "result": _result,
}
