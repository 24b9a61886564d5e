"""Whole scans predicted, as loaders give them: `daskdmed.infer` in MedSegPy's form.

Not covered: batches for training (`daskdmed.compat.medsegpy.data.data_loader`).
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.patient import Patient
from daskdmed.cohort.record import Record
from daskdmed.compat.medsegpy.data.data_utils import PatchGrid
from daskdmed.compat.medsegpy.data.scans import Classes, Scan
from daskdmed.compat.medsegpy.data.transforms.transform import TransformList
from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.types import Array
from daskdmed.images.lazy import to_dask
from daskdmed.inference.infer import infer

if TYPE_CHECKING:
    import torch

#: of keras' generators, with the values at which they change nothing here
_KERAS = ("steps", "max_queue_size", "workers", "use_multiprocessing", "verbose")
_BLOCK = 128


@dataclass(frozen=True)
class Plan:
    """What an element of a loader is, in the axes in which scans lie on the disk.

    `kernel`: its extent, -1 for the whole of an axis; `flat`: axes of one voxel that are left out;
    `context`, `edge`: neighbours that become channels, see `daskdmed.images.context`;
    `channel_axis`: whether images without channels get one.
    """

    kernel: tuple[int, int, int]
    flat: tuple[int, ...] = ()
    pad: tuple[int, ...] | None = None
    pad_mode: str = "edge"
    stride: tuple[int, ...] | None = None
    context: tuple[int, int, int] | None = None
    edge: Any = "reflect"
    channel_axis: bool = True

    def grid(self, shape: Sequence[int]) -> PatchGrid:
        """Windows of a scan of this extent."""
        return PatchGrid.of(shape, self.kernel, self.pad, self.stride)


def inferred(
    scans: Sequence[Scan],
    model: Any,
    plan: Plan,
    classes: Classes,
    transforms: TransformList,
    options: Mapping[str, Any],
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What `daskdmed.compat.medsegpy.data.DataLoader.inference` gives; arguments are checked now,
    scans are read when they are asked for."""
    told = dict(options)
    if told.pop("steps", None) is not None:
        raise UsageError(
            "steps= ends inference after so many batches, in the middle of a scan; take as many "
            "scans as you want: itertools.islice(loader.inference(model), n)"
        )
    told["progress"] = bool(told.pop("verbose", 0)) or told.get("progress", False)
    for name in _KERAS:
        told.pop(name, None)
    called, more = as_model(model, plan, transforms)
    told = {**more, **told}
    unknown = sorted(set(told) & {"kernel_size", "record", "target", "layout", "squeeze"})
    if unknown:
        raise UsageError(f"{', '.join(unknown)} of infer is said by the configuration of a loader")
    return _each(scans, called, plan, classes, told)


def _each(
    scans: Sequence[Scan], model: Any, plan: Plan, classes: Classes, options: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for kernel, alike in itertools.groupby(scans, lambda scan: _kernel(scan, plan)):
        group = {scan.scan_id: scan for scan in alike}
        patients = [Patient(key, {"image": _padded(s, plan)}) for key, s in group.items()]
        found = infer(
            Dataset("scans", patients),
            model,
            record="image",
            kernel_size=kernel,
            squeeze=bool(plan.flat),
            **({} if plan.context is None else _context(plan)),
            **_windows(group.values(), plan, options),
            **options,
        )
        for inputs, outputs in found:
            scan = group[inputs["patient_id"]]
            given = {"x": scan.image(), **scan.facts}
            y_pred = _classes_last(outputs["y_pred"])
            inner = zip(plan.grid(scan.view.spatial_shape).before, scan.view.spatial_shape,
                        strict=True)  # fmt: skip
            y_pred = y_pred[tuple(slice(b, b + n) for b, n in inner)]
            result = {
                "y_pred": scan.shown(y_pred),
                "y_true": scan.truth(classes),
                "time_elapsed": outputs["time_elapsed"],
            }
            del inputs, outputs, y_pred
            yield given, result
            del given, result


def _kernel(scan: Scan, plan: Plan) -> tuple[int, ...]:
    """Of windows of a scan."""
    return plan.grid(scan.view.spatial_shape).grid.kernel_size


def _windows(scans: Iterable[Scan], plan: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    """How windows lie, unless the user says so: none is left out, whatever the stride is."""
    if "overlap" in options or "stride" in options:
        return {}
    grids = [plan.grid(scan.view.spatial_shape) for scan in scans]
    steps = zip(grids[0].grid.stride, grids[0].grid.kernel_size, strict=True)
    found: dict[str, Any] = {"stride": tuple(min(s, k) for s, k in steps)}
    if "blend" not in options and not any(grid.overlapping for grid in grids):
        found["blend"] = "constant"  # values of the model as they are, to the last bit
    return found


def _context(plan: Plan) -> dict[str, Any]:
    return {"context": plan.context, "context_edge": plan.edge}


def _padded(scan: Scan, plan: Plan) -> Record:
    """The image of a scan with what is added around it."""
    around = plan.grid(scan.view.spatial_shape).around
    if not any(itertools.chain(*around)):
        return scan.record
    array = to_dask(scan.view, _BLOCK)
    pad = (*around, *[(0, 0)] * (array.ndim - 3))
    return Record(array=da.pad(array, pad, mode=plan.pad_mode), spatial_ndim=3, background=0)


def _classes_last(y_pred: da.Array) -> da.Array:
    return y_pred[..., None] if y_pred.ndim == 3 else da.moveaxis(y_pred, 0, -1)


# -------------------------------------------------------------------------- models
def as_model(model: Any, plan: Plan, transforms: TransformList) -> tuple[Any, dict[str, Any]]:
    """A model as `daskdmed.infer` takes it, and what it must be told of it.

    Torch modules stay what they are, so that daskdmed decides on threads and devices; of others one
    batch is computed at a time.
    """
    module = getattr(model, "module", model)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(module, torch.nn.Module) and not transforms.moves_voxels:
        return module, {"batch_tfms": _OfTensors(transforms)}
    if torch is not None and isinstance(model, torch.nn.Module):
        from daskdmed.compat.medsegpy.modeling.model import Model

        model = Model(model)
    predict = getattr(model, "predict_on_batch", model)
    if not callable(predict) or isinstance(model, type):
        raise UsageError(
            "a model is a torch.nn.Module, has predict_on_batch(x), or is called with batches; "
            f"got {type(model).__name__}"
        )
    # images without channels get an axis for them, unless slices stand in their place
    return _OfArrays(predict, transforms, 4 if plan.flat else 5, plan.channel_axis), {}


@dataclass(frozen=True)
class _OfTensors:
    """Preprocessing of a batch of windows, batch x channels x rows..."""

    transforms: TransformList

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        import torch

        if not len(self.transforms):
            return batch.float().contiguous()
        arrays = batch.float().movedim(1, -1).cpu().numpy()
        found = np.stack([self.transforms.apply_image(a) for a in arrays])
        return torch.from_numpy(found.astype(np.float32)).movedim(-1, 1).to(batch.device)


class _OfArrays:
    """A function of batch x rows x columns [x slices] x channels, called by one thread at a time:
    models of other frameworks expect that."""

    def __init__(
        self,
        predict: Callable[[Array], Any],
        transforms: TransformList,
        axes: int,
        channel_axis: bool,
    ) -> None:
        self.predict, self.transforms = predict, transforms
        self.axes, self.channel_axis = axes, channel_axis
        self._lock = threading.Lock()

    def __call__(self, batch: Array) -> Array:
        x = np.asarray(batch, np.float32)
        if x.ndim < self.axes and self.channel_axis:
            x = x[..., None]
        x = np.stack([self.transforms.apply_image(one) for one in x])
        with self._lock:
            found = np.asarray(self.predict(x))
        if len(found) != len(x):
            raise GeometryError(f"the model gives {found.shape} for a batch of shape {x.shape}")
        return np.stack([self.transforms.undo(one) for one in found])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
