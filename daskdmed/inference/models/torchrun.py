"""Running torch on batches: CPU threads, memory that runs out, mixed precision.

Not covered: what a batch is made of (`daskdmed.inference.models.window`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

logger = logging.getLogger("daskdmed.inference")
_lock = threading.Lock()
#: torch's own number of threads while some of our threads use another
_before: dict[str, int] = {}
_users = 0
#: modules that run in evaluation mode: how many runs use each, and the mode that it was in
_evaluating: dict[int, tuple[int, bool]] = {}


@contextlib.contextmanager
def evaluation(model: Any) -> Iterator[None]:
    """Within this block a module and all within it are in evaluation mode.

    Runs may share a module, or parts of it: each part is put back into the mode that it was
    in when the last of them ends.
    """
    parts = [] if model is None else list(model.modules())
    with _lock:
        for part in parts:
            count, training = _evaluating.get(id(part), (0, part.training))
            _evaluating[id(part)] = count + 1, training
        for part in parts:
            _set_mode(part, False)
    try:
        yield
    finally:
        with _lock:
            for part in parts:
                count, training = _evaluating[id(part)]
                if count > 1:
                    _evaluating[id(part)] = count - 1, training
                    continue
                del _evaluating[id(part)]
                _set_mode(part, training)
            # a part that sets its mode itself sets that of parts within it, which others may use
            for part in parts:
                if id(part) in _evaluating:
                    _set_mode(part, False)


def _set_mode(part: Any, training: bool) -> None:
    if part.training == training:
        return
    if getattr(type(part), "train", None) is sys.modules["torch"].nn.Module.train:
        part.training = training
    else:  # some do more than to note it, such as to merge weights
        part.train(training)


def is_training(model: Any) -> bool:
    """Whether a part of a module is in training mode, or will be again when runs have ended."""
    with _lock:
        return any(_evaluating.get(id(m), (0, m.training))[1] for m in model.modules())


@contextlib.contextmanager
def cpu_threads(workers: int) -> Iterator[None]:
    """Within this block the calling thread's share of the CPUs is torch's, not all of them.

    Several threads that each run torch on all CPUs are slower than each on its share.
    torch's number of threads is put back by each thread that leaves, so that nothing is
    left behind; it never becomes more than it was. `workers` are the threads of this process
    that run the model; 0: none does.
    """
    global _users
    torch = sys.modules.get("torch")
    if torch is None or workers < 1:
        yield
        return
    from dask.system import CPU_COUNT

    # also makes torch set up this thread now: later it would take the global number then
    current = torch.get_num_threads()
    with _lock:
        if not _users:
            _before["threads"] = current
        _users += 1
        before = _before["threads"]
    torch.set_num_threads(max(1, min(before, CPU_COUNT // workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
        with _lock:
            _users -= 1


class BatchLimit:
    """How many windows fit into the memory of the device, learnt when they did not.

    Shared by the threads of a process; a copy in another process begins anew.
    """

    def __init__(self) -> None:
        self._most: int | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BatchLimit], tuple[()]]:
        return BatchLimit, ()

    def of(self, batch_size: int) -> int:
        """The batch size to use."""
        return batch_size if self._most is None else min(self._most, batch_size)

    def halve(self, failed: int) -> int:
        """A batch of `failed` windows did not fit; what to try."""
        with self._lock:
            wanted = max(failed // 2, 1)
            self._most = wanted if self._most is None else min(self._most, wanted)
            return wanted

    def run(self, call: Callable[[Array], Array], batch: Array) -> Array:
        """Call a model on a batch, in halves when memory runs out (raised for one window)."""
        parts = [batch]
        results: list[Array] = []
        while parts:
            part = parts.pop(0)
            size = self.of(len(part))
            if size < len(part):
                parts[:0] = [part[a : a + size] for a in range(0, len(part), size)]
                continue
            try:
                results.append(call(part))
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    error.add_note("the device has no room for a single window")
                    raise
            # outside of the handler: the traceback held the tensors that filled the memory
            free_cache()
            size = self.halve(len(part))
            logger.warning(
                "%d windows do not fit into the memory of the device; going on with %d",
                len(part),
                size,
            )
            parts.insert(0, part)
        return results[0] if len(results) == 1 else np.concatenate(results)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says that a device's memory is full."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    kinds = [torch.cuda.OutOfMemoryError, getattr(torch, "OutOfMemoryError", None)]
    return isinstance(error, tuple(k for k in kinds if k is not None))


def free_cache() -> None:
    """Give memory that torch keeps for later back to the device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def autocast_dtype(autocast: Any) -> Any:
    """The dtype of ``autocast=``: None when off, else a dtype or "default"; or UsageError."""
    import torch

    if autocast is None or autocast is False:
        return None
    if autocast is True:
        return "default"
    kind = getattr(torch, autocast, None) if isinstance(autocast, str) else autocast
    if isinstance(kind, torch.dtype) and kind.is_floating_point:
        return kind
    raise UsageError(
        f"autocast must be True, False, or a floating-point dtype such as 'bfloat16', "
        f"got {autocast!r}"
    )


@contextlib.contextmanager
def precision(autocast: Any, device: Any) -> Iterator[None]:
    """Inference mode, with autocast when it is asked for."""
    import torch

    kind = autocast_dtype(autocast)
    with torch.inference_mode():
        if kind is None:
            yield
            return
        dtype = None if kind == "default" else kind
        with torch.autocast(device.type, dtype=dtype):
            yield


def device_of(model: Any) -> Any:
    """Where a module's first parameter or buffer is; the CPU when it has none."""
    import torch

    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def input_dtype(model: Any) -> Any:
    """The type that a module wants its batches in: that of its first weights, else float32."""
    import torch

    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            return tensor.dtype
    return torch.float32
