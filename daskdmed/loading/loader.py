"""What all loaders have in common: their life, batches, saved states, how they look.

A loader makes batches ahead in a thread (`daskdmed.loading.prefetch`) and knows where it
stands (`daskdmed.loading.progress`). Not covered: loops over it (`daskdmed.loading.loops`),
which small chunks there are and how they come into memory, which is what makes a `LightDL` or
a `SlidingWindowDL`.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from daskdmed.cohort.patient import Patient
from daskdmed.core import buffers, html, live, memory, processes
from daskdmed.core.checks import check_count
from daskdmed.core.errors import LoaderClosedError, UsageError
from daskdmed.core.shared import mapping
from daskdmed.loading import torchbridge
from daskdmed.loading.delivery import Delivery
from daskdmed.loading.loops import C, Loops
from daskdmed.loading.prefetch import Prefetcher
from daskdmed.loading.progress import Share
from daskdmed.loading.ranks import RankLike, others_unseen, resolve
from daskdmed.loading.stats import Meter, Stats
from daskdmed.loading.watched import WatchedLoader
from daskdmed.persistence.cluster import (
    ClientLike,
    Cluster,
    WorkersLike,
    check_dashboard,
    check_workers_asked,
    connect,
)

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger("daskdmed.loading")

#: how many loaders of this process have a name
_named = itertools.count()
#: what plans, memory and what was made ahead depend on
_FIXED = ("batch_size", "tfms", "rank", "world_size")


class Loader(Loops[C]):
    """An iterable of batches; a context manager. Arguments as of `LightDL`."""

    def __init__(
        self,
        batch_size: int,
        tfms: Callable[[Any], Any] | None,
        batch_tfms: Callable[[Any], Any] | None,
        rank: RankLike,
        world_size: int | None,
        client: ClientLike,
        workers: WorkersLike = None,
        delivery: Delivery | None = None,
        dashboard: str | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        #: how events call it
        self.name = f"{type(self).__name__}-{next(_named)}"
        self.batch_size = check_count("batch_size", batch_size)
        self.tfms, self.batch_tfms = tfms, batch_tfms
        self._asked, self._share = (rank, world_size), resolve(rank, world_size)
        self._told = False
        check_workers_asked(client, workers)
        self._client, self._workers = client, workers
        self._dashboard = check_dashboard(dashboard, client)
        self._cluster: Cluster | None = None
        self._feed: Prefetcher | None = None
        self._delivery = delivery or Delivery()
        self._prepare = torchbridge.Preparation(tfms, self._delivery, collate)
        #: a batch that its transform did not survive
        self._held: Any = None
        #: the state that was loaded, until a batch was taken
        self._loaded: Mapping[str, Any] | None = None
        self._closer: weakref.finalize[..., Any] | None = None
        self._account: weakref.finalize[..., Any] | None = None
        self._closed = False
        self._process = os.getpid()
        self._meter = Meter(self.name)
        self._watched = WatchedLoader(self)
        self._is_shown = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and "_share" in self.__dict__:
            raise UsageError(
                f"{name} of a {type(self).__name__} cannot be changed to {value!r}: what it read "
                f"and made ahead depends on it; make another loader with {name}="
            )
        if name == "epoch_length" and value is not None:
            value = check_count(name, value)
        super().__setattr__(name, value)

    # -- what makes a kind of loader --------------------------------------------------

    @abstractmethod
    def _begin(self) -> Prefetcher:
        """Begin to make batches: pairs of a batch and of what `Preparation.ahead` gave."""

    @abstractmethod
    def _took(self, batch: Any) -> None:
        """Note that the consumer has a batch."""

    @abstractmethod
    def _deal(self) -> None:
        """Deal the work to `rank` and `world_size` as they are now; no batch was taken."""

    @abstractmethod
    def _parameters(self) -> dict[str, Any]:
        """What batches depend on."""

    @abstractmethod
    def stats(self) -> Stats:
        """Counters so far; cheap."""

    @abstractmethod
    def _counters(self) -> dict[str, Any]:
        """Those of `stats` that are plain numbers."""

    @abstractmethod
    def _failures(self) -> tuple[Any, ...]:
        """What was left out."""

    @abstractmethod
    def _shown(self) -> dict[str, Any]:
        """What else those who show it must know, in plain values."""

    @abstractmethod
    def _cells(self) -> list[live.Cell]:
        """The big chunks in memory or being read."""

    @abstractmethod
    def _place(self, visit: int) -> live.Place | None:
        """Where one of these lies."""

    # -- which part of the work is ours -------------------------------------------------

    @property
    def _dealt(self) -> Share:
        return Share(self.batch_size, *self._share)

    @property
    def rank(self) -> int:
        """Which of the training processes this is."""
        self._look_for_others()
        return self._share[0]

    @property
    def world_size(self) -> int:
        """How many training processes share the work."""
        self._look_for_others()
        return self._share[1]

    def _look_for_others(self) -> None:
        """Take notice of a process group that was initialised after the loader was made."""
        if self._asked[0] not in (None, "auto") or self._closed:
            return
        share = resolve(*self._asked)
        if share == self._share or share[1] == 1:
            return
        if not self._progress.fresh and self._loaded is None:
            raise UsageError(
                f"torch.distributed's process group (rank {share[0]} of {share[1]}) was "
                f"initialised after this {type(self).__name__} had given batches as rank "
                f"{self._share[0]} of {self._share[1]}: initialise it first, or give rank= and "
                "world_size=, or make the loader anew"
            )
        loaded = self._loaded
        self._stop()
        self._share = share
        self._deal()
        if loaded is not None:
            self._progress.restore(loaded, self._parameters())
            self._loaded = loaded

    def _tell_of_others(self) -> None:
        """Say once, with the first batch, that other processes get the same."""
        others, self._told = None if self._told else others_unseen(), True
        if others and self._asked[0] is None and self._share[1] == 1:
            logger.warning(
                "%s in the environment, but no process group is initialised: every process gets "
                'the same batches. Initialise torch.distributed first, or give rank="auto"',
                others,
            )

    # -- life -------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to read, before the first batch is asked for. Idempotent."""
        self._check_open()
        self._look_for_others()
        if self._feed is None:
            self._meter.start(self._progress.batches)
            self._delivery.begin()
            try:
                self._feed = self._begin()
            except BaseException:
                self._give_back()
                raise
            self._own(self._feed)
            self._show()
        return self

    def _connect(self) -> Cluster:
        return connect(
            self._client, self._workers, world_size=self._share[1], dashboard=self._dashboard
        )

    def _show(self) -> None:
        """Have the loader shown on the dashboard of its cluster, if that has one."""
        if not self._is_shown:
            self._is_shown = True
            live.add(self._watched)
            live.show(None if self._cluster is None else self._cluster.shown_by, self._watched)

    def _claim(self, budget: int, cluster: Cluster | None, shared: str = "") -> None:
        """Enter the budget into the account of this process, and of the user's cluster.

        BudgetError: all loaders and runs together exceed half of the memory.
        """
        if self._account is None:
            own = cluster is None or cluster.own
            client = None if own or cluster is None else cluster.client
            here = own or (cluster is not None and cluster.in_process)
            self._account = memory.claim(
                self, self.name, budget, client=client, here=here, shared=shared
            )

    def _give_back(self) -> None:
        share, self._account = self._account, None
        if share is not None:
            share()

    def _own(self, feed: Prefetcher | None) -> None:
        """Close this, and the cluster, when the loader is closed or forgotten."""
        if self._closer is not None:
            self._closer.detach()
        self._closer = weakref.finalize(self, _close, feed, self._cluster)
        processes.close_at_exit(self._closer)

    def _stop(self) -> None:
        """Make no more batches, but leave the cluster to those that may come."""
        self._check_open()
        self._held = self._loaded = None
        if self._feed is not None:
            self._feed.close()
            self._feed = None
            self._own(None)

    def _check_open(self) -> None:
        if self._closed:
            raise LoaderClosedError("the loader is closed; make a new one")
        processes.check_owner(self._process, f"the loader {self.name}")

    def pause(self) -> None:
        """Stop making batches until `resume`; a few that are ready can still be taken."""
        self._running().pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running().resume()

    def close(self) -> None:
        """Stop, let go of all memory, close the in-process cluster. Idempotent."""
        self._closed, self._held = True, None
        live.remove(self._watched)
        if self._closer is not None:
            self._closer()
        self._give_back()

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
        """The next batch of the present pass, without a loop; waits so many seconds at most.

        Returns
        -------
        x : torch.Tensor
            ``[batch, channels, *spatial]``, after `tfms` and `batch_tfms`; of a loader with a
            `device`, there.
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
        if self._progress.over:  # also where a state says so
            self._check_open()
            raise StopIteration
        feed = self._running()
        self._tell_of_others()
        began = time.perf_counter()
        try:
            while True:
                batch, prepared = self._held or feed.get(timeout)
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
        self._held = batch, prepared
        x = self._prepare.finish(prepared, chunks)
        self._held = self._loaded = None
        self._took(batch)
        self._meter.took(len(chunks), waited)
        if self.batch_tfms is not None:
            x = torchbridge.transform_batch(x, self.batch_tfms, chunks)
        return x, chunks.patients, chunks

    # -- state ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the batch after the last one taken.

        Made of plain values (and of those that a stateful collector keeps): save it as JSON,
        or beside the model's weights. With ``rotation="adaptive"`` what follows is valid but
        not identical.

        The stream of small chunks depends on neither `batch_size` nor ranks, and the state says
        how far all ranks have got in it when each has taken as many batches as this one: save
        it between two steps of the training, on one rank or on all.
        """
        self._look_for_others()
        return self._progress.saved(self._parameters())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was saved, here or on another machine.

        At any time: what was made ahead is dropped, and the next batch is the one after the
        state; a loop that is going on goes on from there. Otherwise the first loop gives what
        is left of the one that was interrupted; when nothing is, a whole one.

        With another number of ranks, or another `batch_size`, the loaders go on with the first
        small chunk that no rank has had: together they give all that were left, none twice.
        All of them load states of the same step, each that of any rank. `epoch_length` is of
        batches as they are now, and what the interrupted loop has had counts by small chunks:
        300 batches of 16 on 2 ranks are 150 of 16 on 4.

        Parameters
        ----------
        state : mapping
            What `state_dict` gave, also after a round trip through JSON. Versions 3 and 4.

        Raises
        ------
        StateError
            The state is damaged, or of another dataset or other parameters; names the
            differences. Or only the rank that saved it can go on from it, because nobody else
            knows what it had: big chunks of it ended early (or windows were left out), or its
            collector remembers. Or only batches of its size can, because quotas make them up.
            The loader stays as it was.
        LoaderClosedError
            The loader is closed.

        Notes
        -----
        Of several ranks, each knows only which of its own big chunks ended early. Where those
        of others did, these are a few small chunks further than the state says, which come
        again with another number of ranks.
        """
        self._check_open()
        self._look_for_others()
        self._progress.restore(state, self._parameters())
        self._stop()
        self._loaded = state

    # -- looking at it ----------------------------------------------------------------

    @property
    def dashboard_link(self) -> str | None:
        """Where the loader is shown in a browser; None before `start`, and without a dashboard."""
        return None if self._cluster is None or self._closed else self._cluster.page

    def watch(self, *, interval: float = 1.0) -> None:
        """Show what goes on in a notebook, live: a picture that changes until the loader is closed.

        It stands where it is called, and changes while other cells run. Called again, the new
        picture takes over. ``loader`` as the last line of a cell is the same picture once.

        Parameters
        ----------
        interval : float
            Seconds between changes.

        Raises
        ------
        UsageError
            This is no notebook: print ``loader.stats()`` there, or open `dashboard_link`.
        LoaderClosedError
            The loader is closed.
        """
        self._check_open()
        live.monitor("picture").watch(self._watched, interval)

    @property
    def _ready(self) -> int:
        return 0 if self._feed is None else self._feed.ready

    @property
    def _life(self) -> str:
        return "closed" if self._closed else "running" if self._feed else "not started"

    def _repr_html_(self) -> str:
        name, _, rest = repr(self)[1:-1].partition(": ")
        try:
            picture = live.monitor("picture").picture_of(self._watched)
        except Exception as error:  # a picture that fails hides no loader
            logger.debug("no picture of %s: %s", self.name, error)
            picture = ""
        link: str | html.Html = ""
        if self.dashboard_link:
            at = html.safe(self.dashboard_link)
            link = html.Html(f'<a href="{at}" target="_blank">{at}</a>')
        rows = html.facts(self.stats().rows())
        return html.page(html.title(name, rest, link), html.Html(picture), rows)

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
    mapping.clear()
