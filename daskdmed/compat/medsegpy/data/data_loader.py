"""Loaders over scans: batches by number, and whole scans for inference.

They differ in what an element is: a slice, a slice among its neighbours, or a patch of a volume.
Elements are numbers into the window grids of scans; nothing is held for each.

Not covered: what scans are (`daskdmed.compat.medsegpy.data.scans`), and what predicts them
(`daskdmed.compat.medsegpy.data.inference`).
"""

from __future__ import annotations

import bisect
import functools
import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.data.base import DATA_LOADER_REGISTRY, DataLoader
from daskdmed.compat.medsegpy.data.data_utils import PatchGrid, outside
from daskdmed.compat.medsegpy.data.inference import Plan, inferred
from daskdmed.compat.medsegpy.data.scans import Classes, Scan, scans_of
from daskdmed.compat.medsegpy.data.transforms.transform_gen import build_preprocessing
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.randomness import seed_key
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView
from daskdmed.images.context import with_context
from daskdmed.tiling.grid import per_axis

#: of numpy.pad
_PAD_MODES = ("constant", "edge", "reflect", "symmetric", "wrap", "empty")


class Sample(NamedTuple):
    """An element: (*extent, channels), (*extent, classes) or None, and the image before any
    transform."""

    x: Array
    y: Array | None
    raw: Array


class WindowLoader(DataLoader):
    """What the loaders here share: elements are windows of scans.

    ``loader[i]`` is (x, y), arrays of float32: batch x rows x columns [x slices] x channels, and
    the same x classes; with ``is_test`` (x, y, x before any transform). Where there are no masks
    y is NaN.
    """

    #: whether dicts are slices in files
    sliced: ClassVar[bool]
    #: whether all scans lie in one file
    _singlefile = False

    def __init__(
        self,
        cfg: Config,
        dataset_dicts: Sequence[dict[str, Any]],
        is_test: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        batch_size: int = 1,
    ) -> None:
        super().__init__(cfg, dataset_dicts, is_test, shuffle, drop_last, batch_size)
        self._scans = self._make_scans()
        self._classes = Classes(cfg.CATEGORIES, cfg.INCLUDE_BACKGROUND)
        self._preprocessing = build_preprocessing(cfg)
        self._pad_mode = _pad_mode(cfg.IMG_PAD_MODE)
        self._plan = self._make_plan()

    @abstractmethod
    def _make_plan(self) -> Plan:
        """What an element is, checked."""

    def _make_scans(self) -> list[Scan]:
        return scans_of(
            self._dataset_dicts,
            sliced=self.sliced,
            singlefile=self._singlefile,
            preload=bool(self._cfg.PRELOAD_DATA),
        )

    # -------------------------------------------------------------- elements
    @functools.cached_property
    def _grids(self) -> list[PatchGrid]:
        return [self._plan.grid(_extent(scan)) for scan in self._scans]

    @functools.cached_property
    def _ends(self) -> list[int]:
        """Number of the element behind the last one of each scan."""
        return list(itertools.accumulate(len(grid) for grid in self._grids))

    def _num_elements(self) -> int:
        return self._ends[-1]

    def num_scans(self) -> int:
        return len(self._scans)

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import loader_html

        return loader_html(self, self._scans, self._classes)

    def clear_cached_data(self) -> None:
        """Let go of scans that ``cfg.PRELOAD_DATA`` keeps in memory; they are read again."""
        self._scans = self._make_scans()

    def _sample(self, element: int) -> Sample:
        at = bisect.bisect_right(self._ends, element)
        scan, grid = self._scans[at], self._grids[at]
        region = grid.region(element - (self._ends[at] - len(grid)))
        plan = self._plan
        view = with_context(scan.view, plan.context, plan.edge) if plan.context else scan.view
        _check_extent(scan, grid)
        raw = self._shaped(self._read(view, region), channels=view.channel_shape)
        y = None
        if scan.masks is not None:
            masks = self._read(scan.masks, region)
            masks = masks if scan.masks.channel_shape else masks[..., None]
            y = self._shaped(self._classes.of(masks), channels=(0,))
        place = [seed_key(self.seed), self._epoch, element]
        x, y = self._preprocessing.apply(raw, y, np.random.default_rng(place))
        return Sample(x, y, raw)

    def _read(self, view: ImageView, region: Region) -> Array:
        """Voxels of a region; what lies outside is made by the mode of padding."""
        shape = view.spatial_shape
        values = view.read(region.clip(shape))
        pad = outside(region, shape)
        if pad is None:
            return values
        ends = (*pad, *[(0, 0)] * len(view.channel_shape))
        mode: Any = self._pad_mode
        padded: Array = np.pad(values, ends, mode)
        return padded

    def _shaped(self, values: Array, channels: Sequence[int]) -> Array:
        """(*extent, channels), as the network wants it."""
        values = values if channels or not self._plan.channel_axis else values[..., None]
        flat = [a for a in self._plan.flat if values.shape[a] == 1]
        return values.squeeze(tuple(flat)) if flat else values

    def __getitem__(self, idx: int) -> tuple[Array, ...]:
        samples = [self._sample(element) for element in self._elements(idx)]
        x = _stacked([s.x for s in samples], "images")
        y = _stacked(_labels(samples), "masks")
        return (x, y, _stacked([s.raw for s in samples], "images")) if self._is_test else (x, y)

    # ------------------------------------------------------------- inference
    def inference(
        self, model: Any, **kwargs: Any
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Every scan in the order of their ids, predicted when it is asked for.

        The loader is not changed, whatever `shuffle`, `drop_last` and `is_test` are; iterations
        may be left, and run side by side. Scans need no masks. Arrays are lazy; a prediction is
        held in memory until it is let go, or in `out`.

        Parameters
        ----------
        model : Model, torch.nn.Module or callable
            A `daskdmed.compat.medsegpy.modeling.Model`; a torch module, which gets batch x
            channels x rows x columns; or what has ``predict_on_batch``, or is called, with
            batch x rows x columns x channels, one batch at a time.
        steps, max_queue_size, workers, use_multiprocessing, verbose
            Of keras. `verbose` shows a progress bar. Batches are read and made by as many threads
            as Dask has, whatever the next three say; `steps` would leave scans unfinished, and is
            refused.
        **kwargs
            Of `daskdmed.infer`: `out`, `overlap`, `blend`, `client`, `ahead`, `on_error`...

        Yields
        ------
        (dict, dict)
            Input: "x", rows x columns x slices [x channels] as they are in the files, "scan_id",
            "subject_id" where it is known, and whatever begins with "scan" in the first dict.
            Output: "y_pred" and "y_true" (None without masks), rows x columns x slices x classes,
            and "time_elapsed" in seconds.

        Raises
        ------
        UsageError
            No such keyword, or no model.
        """
        return inferred(
            sorted(self._scans, key=lambda scan: scan.scan_id),
            model,
            self._plan,
            self._classes,
            self._preprocessing.fixed(),
            {"batch_size": self._batch_size, **kwargs},
        )


@DATA_LOADER_REGISTRY.register()
class DefaultDataLoader(WindowLoader):
    """Slices in files, one after the other. See `DataLoader`.

    A slice is rows x columns, or x channels; its masks rows x columns x 1 x masks.
    """

    sliced = True

    def _make_plan(self) -> Plan:
        return Plan(kernel=(1, -1, -1), flat=(0,))


@DATA_LOADER_REGISTRY.register()
class S25dDataLoader(DefaultDataLoader):
    """Slices in files, each among its neighbours as channels; the masks are those of the slice.

    The last number of ``cfg.IMG_SIZE`` is how many slices are seen, an odd one. Beyond the first
    and the last slice lies what ``cfg.IMG_PAD_MODE`` says: "edge", "reflect" or "constant" (0).
    """

    def _make_plan(self) -> Plan:
        reach = _reach(self._cfg.IMG_SIZE)
        return Plan((1, -1, -1), flat=(0,), context=(reach, 0, 0), edge=_edge(self._pad_mode))


@DATA_LOADER_REGISTRY.register()
class PatchDataLoader(WindowLoader):
    """Patches of whole scans in HDF5 files. See `DataLoader`.

    ``cfg.IMG_SIZE`` is the extent of a patch: (rows, columns) or (rows, columns, 1) gives planes,
    batch x rows x columns x 1; (rows, columns, slices, 1) volumes with an axis of channels behind;
    (rows, columns, slices) the slices in the place of channels. -1 is the whole of an axis. Every
    voxel lies in a patch, unless ``cfg.IMG_STRIDE`` is larger than these.

    Parameters
    ----------
    cfg, dataset_dicts, is_test, shuffle, drop_last, batch_size
        As of `DataLoader`.
    use_singlefile : bool
        Whether all scans lie in one file, ``singlefile_path`` of the dicts, in groups that are
        called as their ``file_name`` and ``sem_seg_file``.
    """

    sliced = False

    def __init__(
        self,
        cfg: Config,
        dataset_dicts: Sequence[dict[str, Any]],
        is_test: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        batch_size: int = 1,
        use_singlefile: bool = False,
    ) -> None:
        self._singlefile = use_singlefile
        super().__init__(cfg, dataset_dicts, is_test, shuffle, drop_last, batch_size)

    def _make_plan(self) -> Plan:
        size = tuple(int(n) for n in self._cfg.IMG_SIZE)
        if len(size) not in (2, 3, 4) or any(n < 1 and n != -1 for n in size):
            raise GeometryError(
                f"cfg.IMG_SIZE={self._cfg.IMG_SIZE!r} is (rows, columns), or with slices, or with "
                "slices and channels; of a patch, -1 being the whole of an axis"
            )
        rows, columns, slices = (*size, 1)[:3]
        flat = (2,) if slices == 1 and len(size) < 4 else ()
        return Plan(
            (rows, columns, slices),
            flat,
            pad=_or_none(self._cfg.IMG_PAD_SIZE, "IMG_PAD_SIZE"),
            pad_mode=self._pad_mode,
            stride=_or_none(self._cfg.IMG_STRIDE, "IMG_STRIDE"),
            channel_axis=bool(flat) or len(size) == 4,
        )


@DATA_LOADER_REGISTRY.register()
class N5dDataLoader(PatchDataLoader):
    """Planes of whole scans in HDF5 files, each among its neighbours as channels.

    The last number of ``cfg.IMG_SIZE`` is how many slices are seen, an odd one; masks and
    predictions are those of the slice in the middle. Every slice is one, also the first and the
    last: what lies beyond them is as of `S25dDataLoader`.
    """

    def _make_plan(self) -> Plan:
        size = self._cfg.IMG_SIZE
        if len(size) != 3:
            raise GeometryError(f"cfg.IMG_SIZE={size!r} is (rows, columns, slices to be seen)")
        stride = _or_none(self._cfg.IMG_STRIDE, "IMG_STRIDE")
        pad = _or_none(self._cfg.IMG_PAD_SIZE, "IMG_PAD_SIZE")
        return Plan(
            (int(size[0]), int(size[1]), 1),
            flat=(2,),
            # slices beyond the ends are seen as neighbours, and are no planes themselves
            pad=None if pad is None else (pad[0], pad[1], 0),
            pad_mode=self._pad_mode,
            stride=stride,
            context=(0, 0, _reach(size)),
            edge=_edge(self._pad_mode),
        )


# ------------------------------------------------------------------------ small things
def _extent(scan: Scan) -> tuple[int, ...]:
    """Of a scan as it lies on the disk; where a dict says it, no file is opened."""
    said = scan.dicts[0].get("image_size")
    if said is not None and not scan.sliced and len(said) >= 3:
        return tuple(int(n) for n in said[:3])
    return scan.view.spatial_shape


def _check_extent(scan: Scan, grid: PatchGrid) -> None:
    if scan.view.spatial_shape != grid.shape:
        raise GeometryError(
            f"scan {scan.scan_id!r} is {scan.view.spatial_shape}, its dict says image_size="
            f"{grid.shape}"
        )


def _labels(samples: Sequence[Sample]) -> list[Array]:
    """Masks of every sample, NaN where there are none."""
    known = [s.y for s in samples if s.y is not None]
    empty = np.full(known[0].shape if known else (*samples[0].x.shape[:-1], 1), np.nan)
    return [empty if s.y is None else s.y for s in samples]


def _stacked(arrays: Sequence[Array], what: str) -> Array:
    shapes = {a.shape for a in arrays}
    if len(shapes) > 1:
        raise GeometryError(
            f"{what} of a batch have different shapes, {sorted(shapes)}: crop them to one "
            "(RandomCrop), or take patches (PatchDataLoader)"
        )
    return np.stack(arrays).astype(np.float32)


def _reach(size: Sequence[int]) -> int:
    """Neighbours on each side of a slice."""
    window = int(size[-1]) if len(size) == 3 else 0
    if window < 1 or window % 2 == 0:
        raise GeometryError(
            f"cfg.IMG_SIZE={tuple(size)!r} is (rows, columns, slices to be seen), an odd number "
            "of these"
        )
    return window // 2


def _pad_mode(mode: str) -> str:
    # the word that MedSegPy takes
    mode = "wrap" if mode == "warp" else mode
    if mode not in _PAD_MODES:
        raise UsageError(f"cfg.IMG_PAD_MODE={mode!r} is one of {', '.join(_PAD_MODES)}")
    return mode


def _edge(mode: str) -> Any:
    if mode not in ("constant", "edge", "reflect"):
        raise UsageError(
            f"cfg.IMG_PAD_MODE={mode!r}: slices beyond the ends are made by constant, edge or "
            "reflect"
        )
    return mode


def _or_none(value: Any, name: str) -> tuple[int, ...] | None:
    """One number per axis, missing ones as of one slice; None for ()."""
    if np.ndim(value) and not len(value):
        return None
    if np.ndim(value) and len(value) == 2:
        value = (*value, 0 if name == "IMG_PAD_SIZE" else 1)
    return per_axis(tuple(value)[:3] if np.ndim(value) else value, 3, f"cfg.{name}")


__all__ = [
    "DATA_LOADER_REGISTRY",
    "DataLoader",
    "DefaultDataLoader",
    "N5dDataLoader",
    "PatchDataLoader",
    "S25dDataLoader",
]
