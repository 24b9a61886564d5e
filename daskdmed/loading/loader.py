"""What all loaders have in common: their life, batches, saved states, how they look.

A loader makes batches ahead in a thread (`daskdmed.loading.prefetch`) and knows where it
stands (`daskdmed.loading.progress`). Not covered: which small chunks there are and how they
come into memory, which is what makes a `LightDL` or a `SlidingWindowDL`.
"""

from __future__ import annotations

import html
import itertools
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from daskdmed.cohort.record import Patient
from daskdmed.core import buffers
from daskdmed.core.checks import check_count
from daskdmed.core.errors import LoaderClosedError, MissingExtraError, UsageError
from daskdmed.loading import torchbridge
from daskdmed.loading.chunks import SmallChunks
from daskdmed.loading.prefetch import Prefetcher
from daskdmed.loading.progress import Progress
from daskdmed.loading.ranks import RankLike, resolve
from daskdmed.loading.stats import Meter, Stats
from daskdmed.persistence.cluster import Cluster

if TYPE_CHECKING:
    from typing import Self

    import torch
    from distributed import Client

    _Base = torch.utils.data.IterableDataset[Any]
else:
    try:
        from torch.utils.data import IterableDataset as _Base
    except ImportError as error:
        raise MissingExtraError('loaders need torch; pip install "daskdmed[torch]"') from error

#: how many loaders of this process have a name
_named = itertools.count()
#: what describes the small chunks of a batch
C = TypeVar("C", bound=SmallChunks)


class Loader(_Base, Generic[C]):
    """An iterable of batches; a context manager.

    Parameters
    ----------
    batch_size : int
        Small chunks per batch.
    tfms, batch_tfms : callable or None
        Applied in the background and by the consumer.
    rank, world_size
        As `daskdmed.loading.ranks.resolve` takes them.
    client : distributed.Client or None
        The user's.
    """

    #: batches per iteration, None: as many as there are
    epoch_length: int | None = None
    _progress: Progress

    def __init__(
        self,
        batch_size: int,
        tfms: Callable[[Any], Any] | None,
        batch_tfms: Callable[[Any], Any] | None,
        rank: RankLike,
        world_size: int | None,
        client: Client | None,
    ) -> None:
        super().__init__()
        #: how events call it
        self.name = f"{type(self).__name__}-{next(_named)}"
        self.batch_size = check_count("batch_size", batch_size)
        self.tfms, self.batch_tfms = tfms, batch_tfms
        self.rank, self.world_size = resolve(rank, world_size)
        self._client = client
        self._cluster: Cluster | None = None
        self._feed: Prefetcher | None = None
        self._closer: weakref.finalize[..., Any] | None = None
        self._closed = False
        self._meter = Meter(self.name)

    # -- what makes a kind of loader --------------------------------------------------

    @abstractmethod
    def _begin(self) -> Prefetcher:
        """Begin to make batches: pairs of a batch (with `smallchunks`) and its tensor."""

    @abstractmethod
    def _took(self, batch: Any) -> None:
        """Note that the consumer has a batch."""

    @abstractmethod
    def _begin_iteration(self) -> None:
        """Note that a ``for`` begins."""

    @abstractmethod
    def _parameters(self) -> dict[str, Any]:
        """What batches depend on."""

    @abstractmethod
    def stats(self) -> Stats:
        """Counters so far; cheap."""

    # -- life -------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to read, before the first batch is asked for. Idempotent."""
        self._check_open()
        if self._feed is None:
            self._meter.start(self._progress.batches)
            self._feed = self._begin()
            self._own(self._feed)
        return self

    def _own(self, feed: Prefetcher | None) -> None:
        """Close this, and the cluster, when the loader is closed or forgotten."""
        if self._closer is not None:
            self._closer.detach()
        self._closer = weakref.finalize(self, _close, feed, self._cluster)

    def _stop(self) -> None:
        """Make no more batches, but leave the cluster to those that may come."""
        self._check_open()
        if self._feed is not None:
            self._feed.close()
            self._feed = None
            self._own(None)

    def _check_open(self) -> None:
        if self._closed:
            raise LoaderClosedError("the loader is closed; make a new one")

    def pause(self) -> None:
        """Stop making batches until `resume`; a few that are ready can still be taken."""
        self._running().pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running().resume()

    def close(self) -> None:
        """Stop, let go of all memory, close the in-process cluster. Idempotent."""
        self._closed = True
        if self._closer is not None:
            self._closer()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _running(self) -> Prefetcher:
        feed = self.start()._feed
        assert feed is not None
        return feed

    # -- batches ----------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> tuple[Any, list[Patient], C]:
        """The next batch.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait, for ever by default.

        Returns
        -------
        x : torch.Tensor
            ``[batch, channels, *spatial]``, after `tfms` and `batch_tfms`.
        patients : list of Patient
            Of each small chunk.
        smallchunks : SmallChunks or WindowChunks
            Location, level, mpp, patient, record and big chunk of each; of windows the index
            in their grid too.

        Raises
        ------
        StopIteration
            There are no more.
        TimeoutError
            None came in time.
        LoaderError
            Something could not be read; names patient, record and region.
        LoaderClosedError
            The loader is closed.
        """
        feed = self._running()
        began = time.perf_counter()
        try:
            while True:
                batch, x = feed.get(timeout)
                chunks: C = batch.smallchunks
                if len(chunks):  # otherwise all of them failed
                    break
                self._took(batch)
        except StopIteration:
            self._progress.over = True
            raise
        finally:
            waited = time.perf_counter() - began
            self._meter.waited(waited)
        self._took(batch)
        self._meter.took(len(chunks), waited)
        if self.batch_tfms is not None:
            x = torchbridge.transform_batch(x, self.batch_tfms, chunks)
        return x, chunks.patients, chunks

    def __iter__(self) -> Iterator[tuple[Any, list[Patient], C]]:
        if torchbridge.in_dataloader_worker():
            raise UsageError(
                f"{type(self).__name__} reads in threads or Dask workers, not in processes of a "
                "DataLoader: use DataLoader(loader, batch_size=None, num_workers=0)"
            )
        return self._iterate()

    def _iterate(self) -> Iterator[tuple[Any, list[Patient], C]]:
        self._begin_iteration()
        progress = self._progress
        while self.epoch_length is None or progress.iterated < self.epoch_length:
            try:
                item = self.get()
            except StopIteration:
                return
            progress.iterated += 1
            yield item
            del item

    def __next__(self) -> tuple[Any, list[Patient], C]:
        return self.get()

    # -- state ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the batch after the last one taken.

        Made of plain values (and of those that a stateful collector keeps): save it as JSON,
        or beside the model's weights. With ``rotation="adaptive"`` what follows is valid but
        not identical.
        """
        return self._progress.saved(self._parameters())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which a state was saved, here or on another machine.

        Call it before the first batch is taken. The first iteration then gives what is left of
        the one that was interrupted; after the last batch of an iteration, a whole one.

        Raises
        ------
        StateError
            The state is damaged, of another dataset, or of other parameters; names the
            differences.
        UsageError
            The loader has already started.
        """
        if self._feed is not None:
            raise UsageError("load_state_dict must be called before the loader starts")
        self._progress.restore(state, self._parameters())

    # -- looking at it ----------------------------------------------------------------

    @property
    def _ready(self) -> int:
        return 0 if self._feed is None else self._feed.ready

    @property
    def _life(self) -> str:
        return "closed" if self._closed else "running" if self._feed else "not started"

    def _repr_html_(self) -> str:
        return f"<div><b>{html.escape(repr(self))}</b>{self.stats()._repr_html_()}</div>"

    def __reduce__(self) -> Any:
        raise UsageError(
            f"{type(self).__name__} cannot be pickled (a DataLoader with num_workers > 0 does "
            "that): use DataLoader(loader, batch_size=None, num_workers=0); parallelism lives in "
            "Dask"
        )


def _close(feed: Prefetcher | None, cluster: Cluster | None) -> None:
    if feed is not None:
        feed.close()
    if cluster is not None:
        cluster.close()
    buffers.clear()
