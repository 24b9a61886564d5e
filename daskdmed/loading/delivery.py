"""How batches come to where the training loop wants them: pinned memory, another device.

A batch is made in host memory, pinned where that is asked for, and copied ahead on a stream
of its own; the stream on which the training loop computes waits for the copy, the loop itself
does not. Devices without streams get plain copies.

Needs torch. Not covered: big chunks that lie on the device (`daskdmed.loading.ondevice`), and
what is done to a batch before it is sent (`daskdmed.loading.torchbridge`).
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch

from daskdmed.core import buffers
from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

if TYPE_CHECKING:
    from daskdmed.loading.chunks import SmallChunks

#: what users call a device: "cuda", "cuda:1", ``torch.device("cpu")``
DeviceLike: TypeAlias = "str | torch.device"


def device_of(device: DeviceLike | int | None) -> torch.device | None:
    """A device that batches can be on; without an index that of the day, see `Delivery.begin`.

    UsageError: torch knows no such device, has none of it here, or it holds no values.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f'device={device!r} is no device of torch ({reason}); give "cuda", "cuda:1", "cpu" or '
            "a torch.device"
        ) from error
    if found.type == "meta":
        raise UsageError(
            f"device={device!r} has no memory, so that batches would have no pixels; give the "
            "device of the model's values"
        )
    module: Any = getattr(torch, found.type, None)
    if not (hasattr(module, "is_available") and module.is_available()):
        raise UsageError(
            f"device={device!r}: torch {torch.__version__} finds no {found.type} device here; "
            'give device="cpu" or None, or install a torch and a driver that do'
        )
    count = module.device_count() if hasattr(module, "device_count") else 1
    if (found.index or 0) >= count:
        raise UsageError(f"device={device!r}: there are {count} {found.type} devices, from 0 on")
    return found


def _pinning(pin_memory: bool | None) -> bool | None:
    """What `pin_memory` comes to here; warns where nothing can be pinned, as PyTorch does."""
    if pin_memory is not None and not isinstance(pin_memory, bool):
        raise UsageError(f"pin_memory must be True, False or None, got {pin_memory!r}")
    if pin_memory and not _can_pin():
        warnings.warn(
            "pin_memory=True, but torch finds no accelerator here: batches are in memory that is "
            "not pinned",
            stacklevel=4,
        )
        return False
    return pin_memory


def _can_pin() -> bool:
    """Whether there is an accelerator that memory can be pinned for; makes no CUDA context."""
    if torch.cuda.is_available():
        return True
    accelerator = getattr(torch, "accelerator", None)  # from torch 2.6 on
    if accelerator is None or not accelerator.is_available():
        return False
    return bool(accelerator.current_accelerator().type != "mps")


def pinned_bytes(nbytes: int) -> torch.Tensor:
    """Pinned memory. torch keeps what is let go of, for the next that asks for as much."""
    # the device is said: torch's default device may be another
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in pinned memory: itself where it is, or lies on another device."""
    if tensor.device.type != "cpu" or tensor.is_pinned():
        return tensor
    return tensor.pin_memory()


class Lane:
    """Work on a device that has no streams: everything is done when it was asked for."""

    #: whether copies may go on when they have been asked for
    asynchronous = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def work(self) -> contextlib.AbstractContextManager[Any]:
        """What is asked for in its block is done in the lane's own order."""
        return contextlib.nullcontext()

    def follow(self) -> None:
        """What comes waits for what this thread has asked of the device outside of the lane."""

    def mark(self) -> Any:
        """An event that comes once all work so far is done; None: it is."""
        return None

    def hand_over(self, event: Any, *tensors: torch.Tensor) -> None:
        """Let what this thread asks of the device from now on wait for an event, without
        waiting itself; tensors that were made in the lane may then be used, and forgotten."""


class StreamLane(Lane):
    """Work on a stream of its own, beside the stream on which the training loop computes."""

    asynchronous = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._module: Any = getattr(torch, device.type)
        self._stream = self._module.Stream(device)

    def work(self) -> contextlib.AbstractContextManager[Any]:
        # with what is allocated: the stream's own memory
        return self._module.stream(self._stream)  # type: ignore[no-any-return]

    def follow(self) -> None:
        self._stream.wait_stream(self._module.current_stream(self.device))

    def mark(self) -> Any:
        event = self._module.Event()
        event.record(self._stream)
        return event

    def hand_over(self, event: Any, *tensors: torch.Tensor) -> None:
        current = self._module.current_stream(self.device)
        current.wait_event(event)
        for tensor in tensors:
            # or the lane's next batch could be put where the loop still computes on this one
            if tensor.device.type != "cpu":
                tensor.record_stream(current)


def lane_of(device: torch.device) -> Lane:
    streams = device.type != "cpu" and hasattr(getattr(torch, device.type), "Stream")
    return StreamLane(device) if streams else Lane(device)


class Parcel(NamedTuple):
    """A batch that is on its way, or there."""

    x: Any
    event: Any = None


class Delivery:
    """Takes the batches of a loader to a device (None: they stay), through pinned memory.

    `pin_memory`: True, False, or None for where this process uses CUDA: memory cannot be pinned
    without making a CUDA context, and a process that has none may well be meant to have none.
    """

    def __init__(
        self, device: DeviceLike | int | None = None, pin_memory: bool | None = False
    ) -> None:
        self._asked = device_of(device)
        self._pin = _pinning(pin_memory)
        #: with its index, once batches are being made
        self.device = self._asked
        self.lane: Lane | None = None
        #: host memory that is being copied from, and what comes when it has been
        self._leaving: deque[tuple[Any, torch.Tensor]] = deque()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Find the device that is meant; in the consumer's thread, whose choice it is."""
        device = self._asked
        if device is None:
            return
        module = getattr(torch, device.type)
        if device.type != "cpu" and hasattr(module, "current_device"):
            index = cast("int | None", device.index)  # which torch's stubs do not know
            device = torch.device(device.type, module.current_device() if index is None else index)
        if self.lane is None or self.lane.device != device:
            self.device, self.lane = device, lane_of(device)

    @property
    def pins(self) -> bool:
        """Whether memory is pinned, as things are."""
        if self._pin is not None:
            return self._pin
        if self.device is not None:
            return self.device.type != "cpu" and isinstance(self.lane, StreamLane)
        return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]

    @property
    def as_is(self) -> bool:
        """Whether batches stay where they are, so that sending one does not look at it."""
        return self.lane is None and not self.pins

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Recycled memory for a batch, as `daskdmed.core.buffers.empty`, pinned if it is to be."""
        if not self.pins:
            return buffers.empty(shape, dtype)
        kind = np.dtype(dtype)
        values: Array = pinned_bytes(math.prod(shape) * kind.itemsize).numpy().view(kind)
        return values.reshape(tuple(shape))

    def work(self) -> contextlib.AbstractContextManager[Any]:
        """What is asked of the device in its block is done ahead of the loop, in order."""
        return contextlib.nullcontext() if self.lane is None else self.lane.work()

    def send(self, x: Any, smallchunks: SmallChunks) -> Parcel:
        """Begin to copy a batch and its targets; at once, in any thread."""
        targets = smallchunks.targets
        if self.lane is None:
            if self.pins and isinstance(targets, np.ndarray):
                smallchunks.targets = pinned(_tensor_of(targets)).numpy()
            return Parcel(self._pinned(x))
        if isinstance(x, torch.Tensor) and x.device.type != "cpu":
            self.lane.follow()  # a transform has put it there
        with self.lane.work():
            x = self.bring(x)
            if targets is not None:
                smallchunks.targets = self.bring(
                    targets_first(targets, smallchunks.spatial_ndim)
                    if isinstance(targets, np.ndarray)
                    else targets
                )
            return Parcel(x, self.lane.mark())

    def sent(self, x: torch.Tensor) -> Parcel:
        """A batch that was made in the lane."""
        return Parcel(x, None if self.lane is None else self.lane.mark())

    def receive(self, parcel: Parcel, smallchunks: SmallChunks) -> Any:
        """The tensor, for the thread that asks: what it computes from now on finds it whole."""
        if parcel.event is not None and self.lane is not None:
            made = (parcel.x, smallchunks.targets)
            tensors = [t for t in made if isinstance(t, torch.Tensor)]
            self.lane.hand_over(parcel.event, *tensors)
        return parcel.x

    def _pinned(self, x: Any) -> Any:
        return pinned(x) if self.pins and isinstance(x, torch.Tensor) else x

    def bring(self, x: Any) -> Any:
        """A tensor on the device, if it is one and there is a device; in the lane's work."""
        if self.lane is None or not isinstance(x, torch.Tensor) or x.device == self.device:
            return x
        host = self._pinned(x)
        there = host.to(self.device, non_blocking=self.lane.asynchronous)
        self._keep(host, self.lane.mark())
        return there

    def _keep(self, host: torch.Tensor, event: Any) -> None:
        """Keep host memory from being filled anew before it has been copied from."""
        if event is None:
            return
        with self._lock:
            self._leaving.append((event, host))
            while self._leaving and self._leaving[0][0].query():
                self._leaving.popleft()


def _tensor_of(values: Array) -> torch.Tensor:
    """Sharing memory where torch can."""
    plain = values.flags.writeable and all(stride >= 0 for stride in values.strides)
    return torch.from_numpy(values if plain else values.copy())


def targets_first(targets: Array, spatial_ndim: int) -> torch.Tensor:
    """(batch, *spatial[, c]) -> [batch, *spatial] or [batch, c, *spatial], channels last in it."""
    tensor = _tensor_of(targets)
    return tensor.movedim(-1, 1) if tensor.ndim == spatial_ndim + 2 else tensor
