"""NumPy batches to torch tensors without a copy, the user's transforms on them, and off they go.

Not covered: how they get to a device (`daskdmed.loading.delivery`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from daskdmed.core import buffers
from daskdmed.core.errors import MissingExtraError, UsageError
from daskdmed.core.randomness import fold, mix, salt_of, stream
from daskdmed.core.types import Array

if TYPE_CHECKING:
    import torch

    from daskdmed.loading.chunks import SmallChunks

try:
    import torch as _torch
except ImportError as _error:
    raise MissingExtraError(
        'LightDL gives torch tensors and torch is not installed; pip install "daskdmed[torch]"'
    ) from _error
from daskdmed.core import samplewise
from daskdmed.loading.delivery import Delivery, Parcel

_SALT = np.uint64(salt_of("tfms"))


def to_tensor(data: Array | torch.Tensor, spatial_ndim: int) -> torch.Tensor:
    """(batch, *spatial[, c]) -> (batch, c, *spatial), sharing memory, channels last in it."""
    one = data.ndim == spatial_ndim + 1
    if isinstance(data, np.ndarray):
        # by NumPy: torch lets go of the GIL even for a view, and waits to have it back
        return _torch.from_numpy(data[:, None] if one else np.moveaxis(data, -1, 1))
    return data.unsqueeze(1) if one else data.movedim(-1, 1)


def check_collate(collate: Any, *, target: str | None, squeeze: bool) -> None:
    """Refuse what makes no sense for batches of objects."""
    if collate is None:
        return
    if not callable(collate):
        raise UsageError(f"collate must be a function of a list of small chunks, got {collate!r}")
    if target is not None or squeeze:
        given = f"target={target!r}" if target is not None else "squeeze=True"
        raise UsageError(
            f"{given} and collate= cannot be given together: with collate= small chunks are "
            "objects that the collector makes; have it put the target into them, or leave "
            "collate= out"
        )


def takes_smallchunks(tfms: Callable[..., Any]) -> bool:
    """Whether a transform asks for the whole batch and its small chunks."""
    return getattr(tfms, "needs_smallchunks", False) is True


def transform_batch(x: Any, tfms: Callable[..., Any], smallchunks: SmallChunks) -> Any:
    """Apply a transform to a whole batch, and to its targets when it gives some."""
    asks = takes_smallchunks(tfms)
    result = tfms(x, smallchunks) if asks else tfms(x)
    if asks and isinstance(result, tuple):
        before = smallchunks.targets
        result, smallchunks.targets = result
        smallchunks.moved |= smallchunks.targets is not before
    if result is None:
        raise UsageError(f"the transform {tfms!r} gave None; let it return the batch")
    return result


class Prepared(NamedTuple):
    """A batch as the background leaves it: on its way, or with something left to do.

    `copied`: to be called before anybody looks at pixels.
    """

    x: Any
    parcel: Parcel | None = None
    copied: Callable[[], None] | None = None


class Preparation:
    """Small chunks to a tensor, and ``tfms=`` on it: in the background where that can be.

    `delivery` takes the result to where it is wanted. With a `collate`, small chunks are objects,
    and a batch is what it makes of a list of them.

    A function that draws from the global generators is called in the consumer's thread
    (see `daskdmed.core.samplewise`), seeded by each small chunk. Whether it does shows the
    first batch, which is transformed there in any case. So are those that were made before it
    was: one thread at a time calls the function.
    """

    def __init__(
        self,
        tfms: Callable[..., Any] | None,
        delivery: Delivery | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self._tfms, self._collate = tfms, collate
        self._delivery = delivery or Delivery()
        self._turn = threading.Lock()
        #: whether a batch is what was cropped
        self._as_is = tfms is None and collate is None
        #: whether `tfms` can run beside the training loop; None: not known yet
        self._beside: bool | None = None
        if tfms is None:
            self._beside = True
        elif hasattr(tfms, "uses_global_generators"):  # the transforms of this package know
            self._beside = not tfms.uses_global_generators

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Memory for a batch, pinned where the batch itself is what is sent."""
        give = buffers.empty if self._tfms is not None else self._delivery.empty
        return give(shape, dtype)

    def ahead(self, smallchunks: SmallChunks, copied: Callable[[], None] | None = None) -> Prepared:
        """In the background: the tensor, transformed and sent where that can be.

        `copied` waits for the pixels (None: they are there); it is not called where nobody looks at
        them here.
        """
        as_is = self._as_is and self._delivery.as_is
        if copied is not None and not as_is:
            copied()
        if self._collate is not None:
            x: Any = list(smallchunks.made)
        else:
            x = to_tensor(smallchunks.made, smallchunks.spatial_ndim)
        if as_is:
            return Prepared(None, Parcel(x), copied)
        if not isinstance(smallchunks.made, np.ndarray):
            return Prepared(None, self._delivery.sent(x))  # there it is, and there are no tfms
        if not self._beside or not len(smallchunks):
            return Prepared(x)
        with self._turn:
            x = self._transformed(x, smallchunks)
        return Prepared(None, self._delivery.send(x, smallchunks))

    def finish(self, prepared: Prepared, smallchunks: SmallChunks) -> Any:
        """In the consumer's thread: what is left to do."""
        x, parcel, copied = prepared
        if copied is not None:
            copied()
        if parcel is None:
            parcel = self._delivery.send(self._finished(x, smallchunks), smallchunks)
        return self._delivery.receive(parcel, smallchunks)

    def _finished(self, x: Any, smallchunks: SmallChunks) -> Any:
        if self._beside:
            with self._turn:
                return self._transformed(x, smallchunks)
        used: list[bool] = []
        with samplewise.lent_generators():
            x = self._transformed(x, smallchunks, used)
        if self._beside is None:
            self._beside = not any(used)
        return x

    def _transformed(self, x: Any, smallchunks: SmallChunks, used: list[bool] | None = None) -> Any:
        """What `tfms` makes of a batch; with `used`, on seeded global generators.

        It then tells of each call whether these were used, until that is known.
        """
        tfms = self._tfms
        if tfms is None:
            return self._collated(x)
        seeds = None
        if used is not None or samplewise.holds_generators(tfms):
            state = mix(fold(smallchunks.keys) ^ _SALT)
            # of 32 bits, which every library takes
            seeds = (stream(state, 1)[:, 0] >> np.uint64(32)).tolist()

        def call(number: int, function: Callable[..., Any], *arguments: Any) -> Any:
            if seeds is None:
                return function(*arguments)
            with samplewise.seeded(tfms, seeds[number]):
                if used is not None:
                    samplewise.reseed_global(seeds[number])
                if used is None or self._beside is not None:
                    return function(*arguments)
                before = samplewise.generator_states()
                result = function(*arguments)
                used.append(samplewise.generator_states() != before)
                return result

        if takes_smallchunks(tfms):
            return self._collated(call(0, transform_batch, x, tfms, smallchunks))
        if self._collate is not None:
            return self._collated([call(i, tfms, one) for i, one in enumerate(x)])
        return samplewise.on_each(tfms, lambda i: call(i, tfms, x[i]), len(x))

    def _collated(self, x: Any) -> Any:
        """A batch of objects, as `collate` makes it."""
        if self._collate is None:
            return x
        batch = self._collate(x)
        if self._delivery.device is not None and not isinstance(batch, _torch.Tensor):
            raise UsageError(
                f"collate={self._collate!r} gave {type(batch).__name__}, and only a tensor is "
                f"brought to device={str(self._delivery.device)!r}; leave device= out, and move "
                "the batch in batch_tfms"
            )
        return batch


def in_dataloader_worker() -> bool:
    """Whether this is a worker process of a torch DataLoader."""
    return _torch.utils.data.get_worker_info() is not None


def in_accelerate() -> bool:
    """Whether accelerate, which would deal batches to processes itself, asks."""
    frame = sys._getframe(1) if "accelerate" in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == "accelerate.data_loader":
            asks = type(frame.f_locals.get("self")).__name__
            if frame.f_code.co_name == "prepare_data_loader" or asks in (
                "DataLoaderDispatcher",
                "IterableDatasetShard",
            ):
                return True
        frame = frame.f_back
    return False
