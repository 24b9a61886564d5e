"""A model as a value in Dask graphs: on its device once in every process that calls it.

Not covered: what the model is given (`daskdmed.inference.models.window`).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from daskdmed.core.errors import UsageError
from daskdmed.inference.models.window import WindowModel


class Shipped:
    """A model in evaluation mode that is placed where it is first asked for.

    `placed` is the same on its device, for this process. With several `devices` the threads
    of a process take them in turn, each its own. `name` is unique: of two models that say
    they are equal, each is itself.
    """

    def __init__(
        self,
        model: WindowModel,
        placed: WindowModel | None = None,
        devices: Sequence[Any] = (),
    ) -> None:
        self._model, self._devices = model, tuple(devices)
        self._placed: dict[int, WindowModel] = {} if placed is None else {0: placed}
        self.name = uuid.uuid4().hex
        self._bytes: bytes | None = None
        self._lock = threading.Lock()
        self._mine, self._threads = threading.local(), 0

    def get(self) -> WindowModel:
        """The model, ready to be called by this thread."""
        with self._lock:
            number = 0
            if len(self._devices) > 1:
                if not hasattr(self._mine, "number"):
                    self._mine.number = self._threads % len(self._devices)
                    self._threads += 1
                number = self._mine.number
            if number not in self._placed:
                model = self._model
                if number:
                    model = replace(model, device=self._devices[number])
                self._placed[number] = model.place()
            return self._placed[number]

    def pack(self) -> None:
        """Serialise the model as it is now, once; UsageError where it cannot be pickled."""
        from distributed.protocol import pickle

        try:
            self._bytes = pickle.dumps((self._model.portable(), None, self._devices))
        except Exception as error:
            raise UsageError(
                f"the model cannot be sent to the workers ({type(error).__name__}: {error}); "
                "make it picklable, or leave client= away to run in this process"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        if self._bytes is not None:
            return _unpacked, (self._bytes,)
        return Shipped, (self._model.portable(), None, self._devices)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "daskdmed.model", self._model.fingerprint


def _unpacked(content: bytes) -> Shipped:
    from distributed.protocol import pickle

    shipped = Shipped(*pickle.loads(content))
    shipped._bytes = content
    return shipped


def devices_of(device: Any, name: str = "device") -> tuple[Any, ...]:
    """One device or several as users give them by that name; (None,) for none."""
    if not isinstance(device, (list, tuple)):
        return (device,)
    if not device or None in device:
        raise UsageError(f"{name}={device!r} must be a device such as 'cuda:0', or several")
    return tuple(device)
