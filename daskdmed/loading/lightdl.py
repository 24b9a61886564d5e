"""`LightDL`, the loader that users hold.

It checks what it is given, opens the dataset, plans the rotation, and hands over to a
`Session`. Sampling itself is in `daskdmed.loading.local` and `daskdmed.loading.remote`;
the rotation in `daskdmed.persistence`.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dask.base import tokenize

from daskdmed.cohort.dataset import Dataset
from daskdmed.cohort.record import Patient
from daskdmed.core.errors import (
    GeometryError,
    LoaderClosedError,
    MissingExtraError,
    UsageError,
)
from daskdmed.core.randomness import seed_key
from daskdmed.core.types import LevelLike, MppLike, PowerLike
from daskdmed.loading import torchbridge
from daskdmed.loading.chunks import SmallChunks
from daskdmed.loading.collectors import (
    BigChunkLoader,
    CollectorFunction,
    SmallChunkCollector,
    as_chooser,
    as_collector,
    is_stateful,
)
from daskdmed.loading.continuing import Continuing
from daskdmed.loading.diversity import Diversity
from daskdmed.loading.engine import Engine, Sampling
from daskdmed.loading.local import LocalEngine
from daskdmed.loading.planning import Planning
from daskdmed.loading.progress import Progress, epoch_seed
from daskdmed.loading.quotas import Quota, as_quotas
from daskdmed.loading.ranks import RankLike, resolve
from daskdmed.loading.remote import RemoteEngine
from daskdmed.loading.sampling import CropSpec
from daskdmed.loading.session import Session
from daskdmed.loading.stats import LoaderStats
from daskdmed.persistence import catalogue as catalogues
from daskdmed.persistence.budget import allot, check_memory, to_bytes
from daskdmed.persistence.catalogue import Catalogue, Geometry, Request
from daskdmed.persistence.cluster import Cluster, connect
from daskdmed.persistence.policy import PolicyLike, as_policy
from daskdmed.persistence.ranks import Ranks
from daskdmed.persistence.reading import RegionChooser
from daskdmed.persistence.resident import JobFactory, ResidentSet
from daskdmed.persistence.sources import AreaSource, TissueLike, Wish

if TYPE_CHECKING:
    import torch
    from distributed import Client
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    _Base = torch.utils.data.IterableDataset[Any]
else:
    try:
        from torch.utils.data import IterableDataset as _Base
    except ImportError as error:
        raise MissingExtraError('LightDL needs torch; pip install "daskdmed[torch]"') from error

#: batches made ahead of the consumer, at most this many bytes of them
_AHEAD_BYTES = 64 << 20
_AHEAD_BATCHES = 4

#: what a loader yields
Item = tuple[Any, list[Patient], SmallChunks]


class LightDL(Continuing, _Base):
    """Batches of small chunks cropped from rotating big chunks.

    A context manager, an iterator, and a `torch.utils.data.IterableDataset` for
    ``DataLoader(loader, batch_size=None, num_workers=0)``. It starts with the first batch
    asked for (or `start`), makes batches ahead in a thread, and is closed by `close`, by
    leaving its ``with`` block, or when it is forgotten.

    Parameters
    ----------
    dataset : Dataset
        Patients and their records.
    smallchunk_size : int or tuple of int, default 224
        Extent of a small chunk in pixels at the resolution asked for. One number: two
        spatial axes, (y, x). A tuple, one number per spatial axis, in array order:
        ``(32, 64, 64)`` for a (z, y, x) array.
    batch_size : int, default 64
        Small chunks per batch.
    level, mpp, power
        Resolution, mutually exclusive: a pyramid level, micrometers per pixel, objective
        power. Each a value or a function of the patient.
    record : str, optional
        Name of the record to draw from; not needed when patients have one.
    target : str, optional
        Name of a record of the same size (a mask), cropped at the same places and resident
        beside its big chunk: ``smallchunks.targets``.
    bigchunk_size : int or tuple of int, default 4096
        Largest extent of a big chunk; edges lie on the storage tile grid.
    resident : int or str, default "2 GiB"
        Bytes for all big chunks in memory, those being read included. Never exceeded.
    smallchunks_per_bigchunk : int, default 512
        Draws from a big chunk before it leaves memory. More: faster, less varied.
    rotation : {"deterministic", "adaptive"}
        "deterministic": batches are a function of dataset, parameters and seed alone.
        "adaptive": when the next big chunk is late, draw more from those that are there
        instead of waiting, and count how often (`LoaderStats.late_draws`).
    bigchunk_loader : BigChunkLoader or callable, optional
        Chooses the region or regions of a record that a visit holds.
    smallchunk_collector : SmallChunkCollector or callable, optional
        Chooses each crop. Default: uniform.
    policy : Policy or callable, optional
        Chooses whose big chunk comes next. Default: every record once per cycle.
    tfms : callable, optional
        Applied to each uint8 sample tensor (c, *spatial) in the background. A transform of
        `daskdmed.transforms` is applied to the whole batch, in the background too.
    batch_tfms : callable, optional
        Applied to the whole batch in the consumer's thread, on the consumer's device. One
        with an attribute ``needs_smallchunks = True`` (those of `daskdmed.transforms`) is
        called as ``batch_tfms(x, smallchunks)`` and may return ``(x, targets)``, which
        replaces ``smallchunks.targets``; others are called as ``batch_tfms(x)``.
    seed : int, default 0
        Everything random follows from it.
    epoch_length : int, optional
        Batches per iteration, at most. Default: endless, or as many as a finite plan (a
        policy that ends, such as ``OnePass``) has. The next iteration goes on where the last
        one stopped; after the end of a finite plan it begins the next epoch, see `set_epoch`.
    drop_last : bool, default True
        Drop the short last batch of a finite plan, and with several ranks those last batches
        of it that not every rank would get one of.
    on_error : {"raise", "skip"}
        What an unreadable slide or big chunk does: reach ``next`` as an error that names
        patient, record and region, or be left out and reported by `stats`.
    rank, world_size : int
        Which batches of the one global plan are ours, for several training processes: batch
        ``b`` is rank ``b % world_size``'s. Not given: those of `torch.distributed` when a
        process group has been initialised, otherwise 0 of 1; ``rank="auto"``: also from the
        variables RANK and WORLD_SIZE that ``torchrun`` sets. Ranks with one cluster (`client`)
        share its big chunks, see `daskdmed.persistence.ranks`.
    feedback_lag : int, optional
        Batches after which `feedback` counts, with a stateful collector. Default 4. Fewer:
        sooner, but fewer batches are made ahead.
    client : distributed.Client, optional
        Where big chunks live. None: threads of this process.
    pad : bool, default False
        Surround images smaller than a small chunk with background instead of refusing them.
    tissue : bool, str, callable or mapping, optional
        Draw from tissue only: a method of `daskdmed.tissue_mask` ("otsu" for True), a function
        from a thumbnail to a mask, or a mapping patient id -> mask. Big chunks are then
        visited in proportion to their tissue, and small chunks drawn exactly, without
        repetition within a visit. A collector of your own still crops where it likes.
    min_tissue : float, default 0.5
        Fraction of a small chunk that must be tissue.
    annotations : str, optional
        Name of the record that holds annotations; not needed when one record does.
    labels : str, sequence of str, or mapping, optional
        Classes of annotations that small chunks are centred in. A mapping gives each its
        share of a batch, as in `Quota`.
    quotas : sequence of Quota, optional
        Guaranteed shares of every batch, by labels of patients and classes of annotations.
        What they leave is drawn from everybody.
    target_level, target_mpp : optional
        Resolution of the target, as `level` and `mpp`, when it is another than the image's.
        The image must have a whole number of pixels per pixel of the target.
    target_classes : optional
        Classes of a target that is made of annotations or of a label map: `Categories`, or
        what these are made of. Superclasses and a background channel are theirs.
    target_channels : bool, default False
        One channel of zeros and ones per class, instead of a map of class numbers.

    Raises
    ------
    UsageError, DatasetError, GeometryError, ResolutionError
        An argument is wrong; the message names it, and the patient where it is one.
    BudgetError
        `resident` holds fewer than two big chunks, or exceeds half of the workers' memory.

    Notes
    -----
    ``x`` is a tensor ``[batch, channels, *spatial]`` of the records' sample type, in
    channels-last memory. Rotation is that of PyDmed (big chunks in memory, small chunks
    from those), by draws instead of by seconds.

    Examples
    --------
    >>> with LightDL(dataset, batch_size=64) as loader:  # doctest: +SKIP
    ...     for x, patients, smallchunks in loader:
    ...         ...
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        smallchunk_size: int | tuple[int, ...] = 224,
        batch_size: int = 64,
        level: LevelLike = 0,
        mpp: MppLike | None = None,
        power: PowerLike | None = None,
        record: str | None = None,
        target: str | None = None,
        bigchunk_size: int | tuple[int, ...] = 4096,
        resident: int | str = "2 GiB",
        smallchunks_per_bigchunk: int = 512,
        rotation: Literal["deterministic", "adaptive"] = "deterministic",
        bigchunk_loader: BigChunkLoader | type[BigChunkLoader] | RegionChooser | None = None,
        smallchunk_collector: SmallChunkCollector
        | type[SmallChunkCollector]
        | CollectorFunction
        | None = None,
        policy: PolicyLike | None = None,
        tfms: Callable[[Any], Any] | None = None,
        batch_tfms: Callable[[Any], Any] | None = None,
        seed: int = 0,
        epoch_length: int | None = None,
        drop_last: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
        rank: RankLike = None,
        world_size: int | None = None,
        feedback_lag: int | None = None,
        client: Client | None = None,
        pad: bool = False,
        tissue: TissueLike | None = None,
        min_tissue: float = 0.5,
        annotations: str | None = None,
        labels: str | Sequence[str] | Mapping[str, float] | None = None,
        quotas: Sequence[Quota] | None = None,
        target_level: LevelLike | None = None,
        target_mpp: MppLike | None = None,
        target_classes: Any = None,
        target_channels: bool = False,
    ) -> None:
        super().__init__()
        _check_choice("rotation", rotation, ("deterministic", "adaptive"))
        _check_choice("on_error", on_error, ("raise", "skip"))
        _check_positive("batch_size", batch_size)
        _check_positive("smallchunks_per_bigchunk", smallchunks_per_bigchunk)
        if epoch_length is not None:
            _check_positive("epoch_length", epoch_length)
        if sum(v is not None and v != 0 for v in (level, mpp, power)) > 1:
            raise UsageError("level, mpp and power exclude each other; give one")
        self.dataset = dataset
        self.batch_size = batch_size
        self.epoch_length = epoch_length
        self.seed = int(seed)
        self.rotation = rotation
        self.drop_last = drop_last
        self.on_error: Literal["raise", "skip"] = on_error
        self.rank, self.world_size = resolve(rank, world_size)
        self.smallchunks_per_bigchunk = smallchunks_per_bigchunk
        self.tfms, self.batch_tfms = tfms, batch_tfms
        self._geometry = Geometry.of(smallchunk_size, bigchunk_size, pad=pad)
        self._request = Request(
            record,
            target,
            level,
            mpp,
            power,
            target_level,
            target_mpp,
            target_classes,
            target_channels,
        )
        shares, classes = as_quotas(quotas, labels)
        self._budget = to_bytes(resident)
        self._chooser = as_chooser(bigchunk_loader)
        self._collect = as_collector(smallchunk_collector)
        self._client = client
        self._catalogue = catalogues.build(
            dataset, self._request, self._geometry, on_error=on_error
        )
        self._allotment = allot(self._budget, self._catalogue.block_bytes)
        self._crop = _crop_spec(self._catalogue, self._geometry)
        wish = Wish(tissue, min_tissue, annotations)
        self._planning = Planning(
            self._catalogue,
            self._allotment,
            wish,
            AreaSource(self._catalogue, wish, self._geometry.smallchunk, on_error=on_error),
            shares,
            classes,
            as_policy(policy),
            batch_size=batch_size,
            draws_per_visit=smallchunks_per_bigchunk,
            seed=self.seed,
        )
        self._diversity = Diversity(self._catalogue, self._geometry.smallchunk)
        self._session: Session | None = None
        self._closer: weakref.finalize[[], LightDL] | None = None
        self._closed = False
        self._progress = Progress(is_stateful(self._collect), feedback_lag)
        self._began = 0.0
        self._wait = 0.0
        self._first: float | None = None

    # -- life -----------------------------------------------------------------------

    def start(self) -> LightDL:
        """Begin to read, before the first batch is asked for. Idempotent."""
        if self._closed:
            raise LoaderClosedError("the loader is closed; make a new one")
        if self._session is None:
            cluster = self._cluster or connect(self._client)
            try:
                engine = self._engine(cluster)
            except BaseException:
                cluster.close()
                raise
            crop_bytes = self._crop.nbytes * self.batch_size
            ahead = max(1, min(_AHEAD_BATCHES, _AHEAD_BYTES // crop_bytes))
            self._session = Session(
                cluster,
                engine,
                torchbridge.Preparation(self._geometry.ndim, self.tfms),
                ahead=ahead,
                drop_last=self.drop_last,
            )
            self._close_with(self._session.close)
            self._cluster = None
            self._began = self._began or self._session.started
        return self

    def _engine(self, cluster: Cluster) -> Engine:
        check_memory(self._budget, cluster.memory_limit)
        progress = self._progress
        plan, classes = self._epoch_planning().plan()
        plan.skip_to(progress.cursor.position)
        key = seed_key(epoch_seed(self.seed, progress.epoch))
        factory = JobFactory(self._catalogue, self._chooser, self._geometry.bigchunk, key)
        residents = ResidentSet(
            cluster.client,
            plan,
            factory,
            self._allotment,
            in_process=cluster.in_process,
            ranks=self._ranks(cluster),
        )
        sampling = Sampling(
            crop=self._crop,
            batch_size=self.batch_size,
            draws_per_visit=self.smallchunks_per_bigchunk,
            key=key,
            collect=self._collect,
            adaptive=self.rotation == "adaptive",
            on_error=self.on_error,
            rank=self.rank,
            world_size=self.world_size,
            even=self.drop_last,
            areas=self._planning.areas if self._planning.restricted else None,
            classes=classes,
            free_regions=self._chooser is not None,
            composed=bool(self._planning.quotas),
        )
        begin = (residents, self._catalogue, sampling, progress.cursor, progress.keeper())
        if cluster.in_process:
            return LocalEngine(*begin)
        return RemoteEngine(*begin, workers=cluster.workers)

    def _ranks(self, cluster: Cluster) -> Ranks | None:
        """The other ranks, when there are some and they can be on the same cluster."""
        if self.world_size == 1 or self._client is None:
            return None
        shared = {**self._parameters(), "rank": None, "epoch": self._progress.epoch}
        return Ranks(cluster.client, tokenize(shared), self.rank, self.world_size)

    def pause(self) -> None:
        """Stop making batches until `resume`; a few that are ready can still be taken."""
        self.start()._running_session().pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running_session().resume()

    def close(self) -> None:
        """Stop, let go of all memory, close the in-process cluster. Idempotent."""
        self._closed = True
        if self._closer is not None:
            self._closer()

    def __enter__(self) -> LightDL:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _running_session(self) -> Session:
        if self._session is None or not self._session.running:
            raise LoaderClosedError("the loader is not running; call start(), or make a new one")
        return self._session

    # -- batches --------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Item:
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
        smallchunks : SmallChunks
            Location, level, mpp, patient, record and big chunk of each.

        Raises
        ------
        StopIteration
            The plan is finite and over.
        TimeoutError
            None came in time.
        LoaderError
            A slide or big chunk could not be read; names patient, record and region.
        """
        self.start()
        began = time.perf_counter()
        session = self._running_session()
        try:
            batch, x = session.get(timeout)
        except StopIteration:
            self._progress.over = True
            raise
        now = time.perf_counter()
        self._wait += now - began
        if self._first is None:
            self._first = now - session.started
        self._progress.take(batch.cursor)
        chunks = batch.smallchunks
        self._diversity.add(chunks)
        if self.batch_tfms is not None:
            x = torchbridge.transform_batch(x, self.batch_tfms, chunks)
        return x, chunks.patients, chunks

    def __iter__(self) -> Iterator[Item]:
        if torchbridge.in_dataloader_worker():
            raise UsageError(
                "LightDL reads in Dask workers, not in processes of a DataLoader: use "
                "DataLoader(loader, batch_size=None, num_workers=0)"
            )
        return self._iterate()

    def _iterate(self) -> Iterator[Item]:
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

    def __next__(self) -> Item:
        return self.get()

    def _parameters(self) -> dict[str, Any]:
        """What batches depend on."""
        return {
            # by name and shape: on another machine the same files have other paths and times
            "dataset": tokenize([e.summary for e in self._catalogue.entries]),
            "patients": len(self._catalogue.entries),
            "smallchunk_size": list(self._geometry.smallchunk),
            "bigchunk_size": list(self._geometry.bigchunk),
            "batch_size": self.batch_size,
            "slots": self._allotment.slots,
            "smallchunks_per_bigchunk": self.smallchunks_per_bigchunk,
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
            "feedback_lag": self._progress.lag,
            **self._planning.parameters(),
        }

    # -- looking at it --------------------------------------------------------------

    def plot_coverage(
        self, patient: Patient | str, *, ax: Axes | None = None, alpha: float = 0.6
    ) -> Figure:
        """Draw where small chunks of a patient came from so far, over the thumbnail.

        Parameters
        ----------
        patient : Patient or str
            Whose.
        ax : matplotlib.axes.Axes, optional
            Draw here instead of in a new figure.
        alpha : float
            Opacity, 0 to 1.

        Raises
        ------
        UsageError
            No such patient in this loader.
        MissingExtraError
            matplotlib is not installed.
        """
        name = str(patient.id) if isinstance(patient, Patient) else str(patient)
        return self._diversity.plot(name, self._planning.areas, ax=ax, alpha=alpha)

    def stats(self) -> LoaderStats:
        """Counters so far; cheap."""
        session = self._session
        engine = session.engine if session is not None else None
        residents = engine.residents if engine is not None else None
        running = session is not None and session.running
        now = LoaderStats(
            batches=self._progress.batches,
            patches=self._progress.batches * self.batch_size,
            seconds=time.perf_counter() - self._began if self._began else 0.0,
            wait_seconds=self._wait,
            first_batch_seconds=self._first,
            visits_admitted=residents.visits_admitted if residents else 0,
            visits_evicted=residents.visits_evicted if residents else 0,
            reads=residents.units_read if residents else 0,
            resident_visits=residents.resident_visits if residents else 0,
            resident_bytes=residents.resident_bytes if residents else 0,
            budget_bytes=self._budget,
            late_draws=engine.late_draws if engine else 0,
            batches_ready=session.batches_ready if session is not None and running else 0,
            diversity=self._diversity.stats(self._planning.areas),
            failed=(
                *self._catalogue.failures,
                *self._planning.areas.failures,
                *(engine.failures if engine else ()),
            ),
        )
        return now if self._past is None else now.after(self._past)

    def __repr__(self) -> str:
        size = "x".join(map(str, self._geometry.smallchunk))
        state = "closed" if self._closed else "running" if self._session else "not started"
        return (
            f"<LightDL: {len(self._catalogue.entries)} patients, {self.batch_size} x {size}, "
            f"{self._allotment.slots} big chunks resident, {state}>"
        )

    def _repr_html_(self) -> str:
        import html

        return f"<div><b>{html.escape(repr(self))}</b>{self.stats()._repr_html_()}</div>"

    def __reduce__(self) -> Any:
        raise UsageError(
            "LightDL cannot be pickled (a DataLoader with num_workers > 0 does that): use "
            "DataLoader(loader, batch_size=None, num_workers=0); parallelism lives in Dask"
        )


def _crop_spec(catalogue: Catalogue, geometry: Geometry) -> CropSpec:
    target = catalogue.entries[0].target
    return CropSpec(
        size=geometry.smallchunk,
        channels=catalogue.channels,
        dtype=catalogue.dtype,
        target_channels=None if target is None else target.shape[target.spatial_ndim :],
        target_dtype=None if target is None else target.dtype,
        target_ratio=_common_ratio(catalogue),
    )


def _common_ratio(catalogue: Catalogue) -> tuple[int, ...]:
    """Pixels of the image per pixel of the target; empty when it is one."""
    ratios = {entry.target_ratio: entry for entry in catalogue.entries}
    if len(ratios) > 1:
        named = [f"{e.patient.id}: {r}" for r, e in list(ratios.items())[:3]]
        raise GeometryError(
            f"targets of a batch must agree in resolution, but differ ({', '.join(named)} "
            "pixels of the image per pixel of the target); give target_mpp="
        )
    ratio = next(iter(ratios))
    return () if set(ratio) == {1} else ratio


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_positive(name: str, value: int) -> None:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise UsageError(f"{name} must be an integer >= 1, got {value!r}")
