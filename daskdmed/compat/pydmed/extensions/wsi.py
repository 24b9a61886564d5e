"""PyDmed's ``pydmed.extensions.wsi``: sliding windows over slides, and heatmaps from rows of text.

Not covered: collecting what a model makes of the windows
(`daskdmed.compat.pydmed.streamcollector`). New code gets a heatmap with `daskdmed.heatmap`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.patient import Patient as OurPatient
from daskdmed.cohort.record import Record
from daskdmed.compat.pydmed.lightdl import (
    BigChunkLoader,
    LightDL,
    SmallChunk,
    SmallChunkCollector,
)
from daskdmed.compat.pydmed.utils.data import Patient
from daskdmed.core.errors import StoreError, UsageError
from daskdmed.core.types import Array
from daskdmed.loading.sliding.loader import SlidingWindowDL as OurSlidingWindowDL

__all__ = [
    "DefaultWSIxyWHvaltoRasterPoints",
    "SlidingWindowBigChunkLoader",
    "SlidingWindowDL",
    "SlidingWindowSmallChunkCollector",
    "Tensor3DtoPdmcsvrow",
    "default_func_patient_to_fnameimage",
    "pdmcsvtoarray",
]
#: numbers of a row before its values
_FACTS = 10


def default_func_patient_to_fnameimage(patient_input: Patient) -> str:
    """The file of the record "H&E", or of "wsi", which `Dataset.create_onetoone` makes."""
    records = patient_input.dict_records
    name = "H&E" if "H&E" in records or "wsi" not in records else "wsi"
    if name not in records:
        raise UsageError(
            f'{patient_input!r} has no record "H&E" or "wsi"; give func_patient_to_fnameimage='
        )
    return str(os.path.join(records[name].rootdir, records[name].relativedir))


class SlidingWindowBigChunkLoader(BigChunkLoader):
    """Stands for the reading of a `SlidingWindowDL`, which is daskdmed's own."""


class SlidingWindowSmallChunkCollector(SmallChunkCollector):
    """Stands for the windows of a `SlidingWindowDL`, which are daskdmed's own."""


class SlidingWindowDL(LightDL):
    """Every window of every slide, each once.

    Parameters
    ----------
    intorfunc_opslevel : int or callable
        Level of the pyramid, or ``f(patient) -> level``.
    kernel_size, stride : int
        Side of the square windows and their distance, in pixels of the level, in both directions.
        The last of a row or column is moved inside, so that every pixel is covered where `stride`
        is at most `kernel_size`.
    mininterval_loadnewbigchunk : float
        Least seconds between the beginnings of reads, to spare a shared disk.
    tfms_onsmallchunkcollection : callable or None
        Applied to each window (y, x, c); gives a tensor (c, y, x).
    func_patient_to_fnameimage : callable, optional
        ``f(patient) -> path``; default `default_func_patient_to_fnameimage`.
    *args, **kwargs
        Of `LightDL`. The two classes are `SlidingWindowBigChunkLoader` and
        `SlidingWindowSmallChunkCollector`.

    Notes
    -----
    Windows of ``const_global_info["num_bigchunkloaders"]`` slides come by turns. What an alpha
    channel hides is white. Small chunks say "x" of their window, big chunks "y", in pixels of the
    level, as PyDmed's do.
    """

    def __init__(
        self,
        intorfunc_opslevel: int | Callable[[Patient], int],
        kernel_size: int,
        stride: int,
        mininterval_loadnewbigchunk: float,
        tfms_onsmallchunkcollection: Callable[[Any], Any] | None,
        func_patient_to_fnameimage: Callable[[Patient], str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.intorfunc_opslevel = intorfunc_opslevel
        self.kernel_size, self.stride = int(kernel_size), int(stride)
        self.mininterval_loadnewbigchunk = float(mininterval_loadnewbigchunk)
        self.tfms_onsmallchunkcollection = tfms_onsmallchunkcollection
        self.func_patient_to_fnameimage = (
            func_patient_to_fnameimage or default_func_patient_to_fnameimage
        )
        super().__init__(*args, **kwargs)

    def _make_loader(self) -> Any:
        for kind, own in (
            (self.type_bigchunkloader, SlidingWindowBigChunkLoader),
            (self.type_smallchunkcollector, SlidingWindowSmallChunkCollector),
        ):
            if kind is not own:
                raise UsageError(
                    f"SlidingWindowDL reads by itself: give {own.__name__}, or write a LightDL "
                    f"with {kind!r}"
                )
        path_of = self.func_patient_to_fnameimage
        return OurSlidingWindowDL(
            Dataset(
                self.dataset.str_dsname,
                [
                    OurPatient(name, records={"wsi": Record(path_of(patient))})
                    for name, patient in self._patients.items()
                ],
            ),
            kernel_size=self.kernel_size,
            stride=self.stride,
            level=self._level_of,
            edge="shift",
            order="interleaved",
            slides_at_once=self._slots(),
            min_interval=self.mininterval_loadnewbigchunk,
            batch_size=self.batch_size,
        )

    def _level_of(self, patient: Any) -> int:
        given = self.intorfunc_opslevel
        return int(given(self._patients[patient.id]) if callable(given) else given)

    def _collated(self, taken: tuple[Any, Any, Any]) -> Any:
        windows = taken[2]
        chunks = [self._smallchunk(window) for window in windows]
        return super()._collated((chunks, None, None))

    def _smallchunk(self, window: Any) -> SmallChunk:
        patient = self._patients[window.patient.id]
        data = window.data
        if self.tfms_onsmallchunkcollection is not None:
            data = np.moveaxis(np.asarray(self.tfms_onsmallchunkcollection(data)), 0, -1)
        at_x, at_y = _Axis.along(window, 1), _Axis.along(window, 0)
        level = window.level
        scale = float(window.bigchunk.downsample[0])
        small = {
            "x": at_x.first,
            "y": 0,
            "patch_levelidx": level,
            "kernel_size": self.kernel_size,
            "flag_auxlastcol": at_x.moved,
            "vertbar_overlaptheprevpatch": at_x.overlap,
        }
        big = {
            "W": at_x.extent,
            "H": self.kernel_size,
            "x": 0,
            "y": at_y.first,
            "WSI_W": at_x.extent,
            "WSI_H": at_y.extent,
            "downsample_of_patchlevel": scale,
            "num_bigrows": at_y.of,
            "idx_bigrow": at_y.number,
            "flag_from_auxbigrow": at_y.moved,
            "horizbar_overlaptheprevpatch": at_y.overlap,
        }
        return SmallChunk(data, small, big, patient)


class _Axis(NamedTuple):
    """Where a window lies along one axis of its level."""

    first: int
    extent: int
    number: int
    of: int
    #: whether it was moved inside, and pixels that it then shares with the one before beyond what
    #: the stride leaves
    moved: bool
    overlap: int

    @classmethod
    def along(cls, window: Any, axis: int) -> _Axis:
        grid = window.image.grid
        first, index = int(window.origin[axis]), int(window.index[axis])
        moved = index * int(grid.stride[axis]) - first
        return cls(
            first,
            int(grid.shape[axis]),
            index,
            int(grid.counts[axis]),
            moved > 0,
            max(0, moved),
        )


def Tensor3DtoPdmcsvrow(np_input: Array, smalchunk_input: SmallChunk) -> str:
    """What a model made of a window, (c, h, w), as a row of text.

    ``y, x, H, W, level, kernel_size, downsample, c, h, w,`` and c * h * w values: the window's
    place in pixels of its level, the level's height and width, and the values in C order.
    """
    values = np.asarray(np_input)
    if values.ndim != 3:
        raise UsageError(f"Tensor3DtoPdmcsvrow takes an array (c, h, w), got {values.shape}")
    big, small = smalchunk_input.dict_info_of_bigchunk, smalchunk_input.dict_info_of_smallchunk
    if big is None or small is None or "WSI_H" not in big or "kernel_size" not in small:
        raise UsageError("Tensor3DtoPdmcsvrow takes a small chunk of a SlidingWindowDL")
    facts = (
        big["y"],
        small["x"],
        big["WSI_H"],
        big["WSI_W"],
        small["patch_levelidx"],
        small["kernel_size"],
        big["downsample_of_patchlevel"],
        *values.shape,
    )
    return ", ".join(map(str, facts)) + "," + ", ".join(map(str, values.ravel().tolist())) + "\n"


class DefaultWSIxyWHvaltoRasterPoints:
    """Where the values of a window lie in the map."""

    def func_WSIxyWHval_to_rasterpoints(
        self,
        x: int,
        y: int,
        W: int,
        H: int,
        patch_levelidx: int,
        kernel_size: int,
        downsample_of_patchlevel: float,
        c: int,
        h: int,
        w: int,
        val: Array,
    ) -> dict[str, Array]:
        """``{"(x,y)": (c,) values}``: points of the map that a window (c, h, w) covers.

        A point is ``kernel_size / h`` pixels high and ``kernel_size / w`` wide.
        """
        left, top = _nearest(x * w / kernel_size), _nearest(y * h / kernel_size)
        return {f"({left + j},{top + i})": val[:, i, j] for i in range(h) for j in range(w)}


class _Row(NamedTuple):
    y: int
    x: int
    H: int
    W: int
    level: int
    kernel_size: int
    downsample: float
    c: int
    h: int
    w: int


def pdmcsvtoarray(
    fname_pdmcsv: str | os.PathLike[str],
    func_WSIxyWHval_to_rasterpoints: Callable[..., dict[str, Array]] | None = None,
    scale_upsampleraster: float = 1.0,
) -> Array:
    """The map of a slide from its rows, (rows, columns, c) float64.

    Parameters
    ----------
    fname_pdmcsv : path
        A file of `Tensor3DtoPdmcsvrow`.
    func_WSIxyWHval_to_rasterpoints : callable, optional
        That of `DefaultWSIxyWHvaltoRasterPoints` by default.
    scale_upsampleraster : float
        The map has so many times as many points, interpolated linearly.

    Returns
    -------
    ndarray
        As large as the slide needs; NaN where no window came, and for values that are no numbers.
        Where windows overlap, the mean of what they gave.

    Raises
    ------
    StoreError
        A row is damaged, or rows are of different slides or models; names the line.
    """
    place = func_WSIxyWHval_to_rasterpoints
    place = place or DefaultWSIxyWHvaltoRasterPoints().func_WSIxyWHval_to_rasterpoints
    sums: Array | None = None
    first: _Row | None = None
    for number, row, values in _rows(fname_pdmcsv):
        if sums is None or first is None:
            first = row
            shape = (_points(row.H, row.h, row), _points(row.W, row.w, row))
            sums, counts = np.zeros((*shape, row.c)), np.zeros((*shape, 1))
        if row[2:] != first[2:]:
            raise StoreError(
                f"{fname_pdmcsv}, line {number}: {row[2:]} where {first[2:]} was before"
            )
        for name, value in place(row.x, row.y, row.W, row.H, *row[4:], values).items():
            j, i = map(int, name.strip("() ").split(","))
            if 0 <= i < sums.shape[0] and 0 <= j < sums.shape[1]:
                sums[i, j] += value
                counts[i, j] += 1
    if sums is None:
        raise StoreError(f"{fname_pdmcsv}: there are no rows in it")
    found: Array = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return found if scale_upsampleraster == 1 else _enlarged(found, scale_upsampleraster)


def _nearest(value: float) -> int:
    """Halves go up, of places and of extents: what was moved inside ends where the map does."""
    return math.floor(value + 0.5)


def _points(extent: int, size: int, row: _Row) -> int:
    return max(size, _nearest(extent * size / row.kernel_size))


def _rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, _Row, Array]]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.split(",")
            try:
                facts = [float(cell) for cell in cells[:_FACTS]]
                row = _Row(*(v if i == 6 else int(v) for i, v in enumerate(facts)))  # type: ignore[arg-type]
                values = np.array([_number(cell) for cell in cells[_FACTS:]])
                yield number, row, values.reshape(row.c, row.h, row.w)
            except (ValueError, TypeError) as error:
                raise StoreError(
                    f"{path}, line {number} is no row of Tensor3DtoPdmcsvrow ({error}); was it "
                    "cut off, as by a run that was killed?"
                ) from error


def _number(cell: str) -> float:
    text = cell.strip()
    return np.nan if text == "None" else float(text)


def _enlarged(values: Array, scale: float) -> Array:
    """Interpolated linearly between the middles of points; NaN stays where it is."""
    for axis in (0, 1):
        count = values.shape[axis]
        at = (np.arange(round(count * scale)) + 0.5) / scale - 0.5
        at = np.clip(at, 0, count - 1)
        below = np.floor(at).astype(np.int64)
        above = np.minimum(below + 1, count - 1)
        part = (at - below).reshape((-1,) + (1,) * (values.ndim - 1 - axis))
        low, high = values.take(below, axis), values.take(above, axis)
        values = np.where(part > 0, low * (1 - part) + high * part, low)
    return values
