"""Functions of one sample, on every sample of a batch, each call with numbers of its own.

A function draws from generators that it holds itself (albumentations', MONAI's), or from the
global ones of torch, NumPy and `random`. Those are the process's, not the thread's: who seeds
them beside the training loop changes the loop's numbers, and no lock that the loop does not
take can help. So functions that use them are called in the loop's own thread, between two of
its draws, and the generators get their state back (`lent_generators`).

Needs torch. Not covered: where the seeds come from (`daskdmed.core.randomness`).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from daskdmed.core.errors import UsageError

_CPU = torch.device("cpu")
#: what `as_sample` takes for samples
_SAMPLES = (torch.Tensor, np.ndarray, np.generic, int, float, list, tuple)
#: of functions that hold generators; one for all, since two may have parts in common
_seeding = threading.RLock()


def holds_generators(function: Any) -> bool:
    """Whether a function has random numbers of its own that can be seeded."""
    return hasattr(function, "set_random_seed") or hasattr(function, "set_random_state")


@contextmanager
def seeded(function: Any, seed: int) -> Iterator[None]:
    """For one call: the generators that a function holds itself are seeded, and the caller's."""
    if not holds_generators(function):
        yield
        return
    with _seeding:  # loaders that share a function call it in a thread each
        if hasattr(function, "set_random_seed"):  # albumentations
            function.set_random_seed(seed=seed)
        else:  # MONAI
            function.set_random_state(seed=seed)
        yield


def reseed_global(seed: int, device: torch.device = _CPU) -> None:
    """Seed the global generators; in the consumer's thread, where they are lent."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 what functions use
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@contextmanager
def lent_generators(device: torch.device = _CPU) -> Iterator[None]:
    """Give the global generators their state back at the end."""
    own, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)  # noqa: NPY002


def generator_states() -> tuple[Any, ...]:
    """Of the global generators; equal when nothing was drawn."""
    _, words, *place = np.random.get_state()  # noqa: NPY002
    torchs = torch.default_generator.get_state().numpy()
    return random.getstate(), np.asarray(words).tobytes(), place, torchs.tobytes()


def on_each(function: Any, call: Callable[[int], Any], count: int) -> torch.Tensor:
    """``call(0)``, ``call(1)``... as a batch; `function` is what the user gave.

    Raises
    ------
    UsageError
        A result is no sample, or they differ in shape.
    """
    results = [_as_sample(call(i), function) for i in range(count)]
    shapes = {tuple(r.shape) for r in results}
    if len(shapes) > 1:
        raise UsageError(
            f"the transform {function!r} gave samples of differing shapes {sorted(shapes)}, which "
            "make no batch; let it crop or resize to one shape"
        )
    return torch.stack(results)


def _as_sample(result: Any, function: Any) -> torch.Tensor:
    # MONAI's tensors know where they were; a batch does not
    result = result.as_tensor() if hasattr(result, "as_tensor") else result
    why = ""
    if isinstance(result, _SAMPLES):
        try:
            return torch.as_tensor(result)
        except (TypeError, ValueError, RuntimeError) as error:
            why = f" ({error})"
    raise UsageError(
        f"the transform {function!r} gave {_described(result)}{why}; it must give a tensor or an "
        "array for each sample: let it return its result, end with PILToTensor() where it makes "
        "images of PIL, and take what it needs out of a dict"
    )


def _described(result: Any) -> str:
    kind = type(result)
    return "None" if result is None else f"an object of type {kind.__module__}.{kind.__qualname__}"
