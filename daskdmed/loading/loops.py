"""Loops over a loader: where each begins, and where it ends.

A loop begins anew, wherever the last one was left: with a pass, or where the plan goes on, or
with what an interrupted one has left (docs/frameworks.md has the table). Not covered: how a
batch is made (`daskdmed.loading.loader`), and what is known of a loop when a state is loaded
(`daskdmed.loading.progress`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from daskdmed.cohort.patient import Patient
from daskdmed.core.errors import MissingExtraError, UsageError
from daskdmed.loading import torchbridge
from daskdmed.loading.chunks import SmallChunks
from daskdmed.loading.progress import Progress, Share

if TYPE_CHECKING:
    import torch

    _Base = torch.utils.data.IterableDataset[Any]
else:
    try:
        from torch.utils.data import IterableDataset as _Base
    except ImportError as error:
        raise MissingExtraError('loaders need torch; pip install "daskdmed[torch]"') from error

#: what describes the small chunks of a batch
C = TypeVar("C", bound=SmallChunks)


class Loops(_Base, Generic[C]):
    """What can be looped over, one loop at a time."""

    #: batches per loop, None: as many as there are
    epoch_length: int | None = None
    _progress: Progress
    #: the loop that is going on
    _loop: object = None

    @abstractmethod
    def get(self, timeout: float | None = None) -> tuple[Any, list[Patient], C]:
        """The next batch of the present pass. StopIteration: there are no more."""

    @property
    @abstractmethod
    def _dealt(self) -> Share:
        """How small chunks are dealt to ranks and batches."""

    @abstractmethod
    def _begins_anew(self) -> bool:
        """Whether a loop after another one begins a pass, instead of going on in it."""

    @abstractmethod
    def _next_pass(self, *, again: bool) -> None:
        """Go to the first batch of the pass that comes next, or of the same one again."""

    def __iter__(self) -> Iterator[tuple[Any, list[Patient], C]]:
        if torchbridge.in_dataloader_worker():
            raise UsageError(
                f"{type(self).__name__} reads in threads or Dask workers, not in processes of a "
                "DataLoader: use DataLoader(loader, batch_size=None, num_workers=0)"
            )
        self._refuse_accelerate()
        return self._iterate()

    @property
    def generator(self) -> Any:
        """What accelerate looks for when it is about to deal out the items of a dataset."""
        self._refuse_accelerate()
        raise AttributeError("generator")

    def _refuse_accelerate(self) -> None:
        # in every process, and before these wait for each other
        if torchbridge.in_accelerate():
            raise UsageError(
                f"accelerate would deal the batches of this {type(self).__name__} to processes, "
                "which it does itself: give prepare() the loader and no DataLoader around it, "
                "and move batches with x.to(accelerator.device)"
            )

    def _iterate(self) -> Iterator[tuple[Any, list[Patient], C]]:
        loop = self._loop = object()
        anew = self._begin_loop()
        while not self._is_over():
            if self._loop is not loop:
                raise UsageError(
                    f"another loop over this {type(self).__name__} has begun, and it can be at "
                    "one place only: make a loader for each"
                )
            try:
                item = self.get()
            except StopIteration:
                if anew:
                    return
                # nothing was left of the pass: the one after it is meant
                self._next_pass(again=False)
                anew = True
                continue
            anew = True
            self._progress.iterated += self._dealt.together
            # a state that was loaded meanwhile is gone on with by this loop
            self._progress.looped, self._progress.resumed = True, False
            yield item
            del item

    def _is_over(self) -> bool:
        """Whether a loop has all its small chunks, by batches of whatever size."""
        length = self.epoch_length
        return length is not None and self._progress.iterated >= length * self._dealt.together

    def _begin_loop(self) -> bool:
        """Go to where a loop begins; whether that is all it gives, however little it is."""
        progress = self._progress
        resumed, progress.resumed = progress.resumed, False
        chosen, progress.chosen = progress.chosen, False
        if resumed and (chosen or not self._is_over()):
            return chosen
        begun = not progress.fresh
        if progress.over or (begun and (chosen or (progress.looped and self._begins_anew()))):
            self._next_pass(again=chosen)
        self._progress.iterated = 0
        return self._progress.fresh

    def __next__(self) -> tuple[Any, list[Patient], C]:
        return self.get()
