"""`LightDL`, random small chunks of rotating big chunks as batches.

It begins and ends what makes them, and knows epochs and feedback; what all loaders have in common
is in `daskdmed.loading.loader`. Not covered: its arguments (`daskdmed.loading.arguments`),
sampling (`daskdmed.loading.local`, `daskdmed.loading.remote`), the rotation
(`daskdmed.persistence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from daskdmed.cohort.patient import Patient
from daskdmed.cohort.sources import Failure, ImagesLike
from daskdmed.core import live
from daskdmed.core.checks import check_count
from daskdmed.core.errors import UsageError
from daskdmed.core.types import (
    LevelLike,
    MppLike,
    OnError,
    OnTileError,
    PowerLike,
    RecordLike,
    SpacingLike,
)
from daskdmed.images.channels import ChannelsLike
from daskdmed.images.context import ContextEdge, ContextLike
from daskdmed.loading.arguments import Arguments
from daskdmed.loading.batch import Batch
from daskdmed.loading.chunks import SmallChunks
from daskdmed.loading.collectors import ChooserLike, CollectorLike, is_stateful
from daskdmed.loading.delivery import Delivery, DeviceLike
from daskdmed.loading.diversity import Diversity
from daskdmed.loading.engine import Engine
from daskdmed.loading.loader import Loader
from daskdmed.loading.ondevice import furnish
from daskdmed.loading.prefetch import Prefetcher
from daskdmed.loading.progress import DrawProgress
from daskdmed.loading.quotas import Labels, Quota
from daskdmed.loading.ranks import RankLike
from daskdmed.loading.stats import LoaderStats
from daskdmed.loading.torchbridge import Preparation
from daskdmed.persistence.cluster import ClientLike, WorkersLike
from daskdmed.persistence.policy import PolicyLike
from daskdmed.persistence.where import TissueLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class LightDL(Loader[SmallChunks]):
    """Batches of small chunks cropped from rotating big chunks.

    A context manager, an iterator, and a `torch.utils.data.IterableDataset` for
    ``DataLoader(loader, batch_size=None, num_workers=0)``. It starts with the first batch
    asked for (or `start`), makes batches ahead in a thread, and is closed by `close`, by
    leaving its ``with`` block, or when it is forgotten.

    Each loop over it (``for``, ``iter``) begins anew, wherever the last one was left: one
    over a finite plan with the next epoch, one with ``restart=True`` with the same batches.
    Only where a loop is less than a plan, an endless one or one longer than `epoch_length`,
    the next loop goes on in it: it gives other small chunks, and no big chunk is read for
    it. After `load_state_dict`, the first loop gives what is left of the one that was saved.
    ``next`` and `get` take batches without a loop: they go on in the present epoch, and a
    loop after them gives the rest of it.

    Parameters
    ----------
    dataset : Dataset, Patient, Record, Slide, view, path, URL, array, or list of these
        Patients and their records; bare images become patients, see `daskdmed.cohort.sources`.
    smallchunk_size : int or tuple of int, default 224
        Pixels of a small chunk at the resolution asked for: one number for two spatial axes,
        or one per spatial axis, in array order; ``(32, 64, 64)`` for a (z, y, x) array.
    batch_size : int, default 64
        Small chunks per batch.
    level, mpp, power, spacing
        Resolution, mutually exclusive: a pyramid level, micrometers per pixel, objective
        power; of volumes millimeters per voxel along (z, y, x), one number for all three or
        one for each, None for an axis that stays as it is: ``spacing=(None, 1, 1)``. Each a
        value or a function of the patient. Values are averaged over the areas of voxels, or
        interpolated where voxels become smaller; labels are never blended.
    orientation : str, optional
        Where the axes of volumes grow to, as nibabel, ITK and MONAI write it, x first: "RAS"
        gives (z, y, x) arrays with z to superior, y to anterior, x to the right. Default: as
        each file stores it. Nothing is interpolated for it; `spacing` and all sizes are in
        the order of the result.
    channels : str, int or sequence of these, optional
        Names (`Slide.channels`) or numbers of the channels that small chunks have, in this order;
        of files that store them one by one no others are read. Default: all that the record has,
        which says it for itself: ``Record(uri, channels=["DAPI", 2])``.
    record : str or sequence of str, optional
        Name of the record to draw from; not needed when patients have one. Of several, whose
        pixels must lie at the same places, the channels are stacked in this order, in the
        smallest type that holds the values of each; integers are not mixed with floats. Their
        small chunks name them as one, "t1+t2".
    target : str, optional
        Name of a record of the same size (a mask), cropped at the same places and resident
        beside its big chunk: ``smallchunks.targets``. Where both say how they lie in the
        patient (`daskdmed.Space`), they must lie alike after `orientation` and `spacing`,
        which are asked of both; where one does not say, equal shapes are enough.
    target_level, target_mpp : optional
        Resolution of the target, as `level` and `mpp`, when it is another than the image's.
        The image must have a whole number of pixels per pixel of the target.
    target_classes : optional
        Classes of a target that is made of annotations or of a label map: `Categories`, or
        what these are made of. Superclasses and a background channel are theirs.
    target_channels : bool, default False
        One channel of zeros and ones per class, instead of a map of class numbers.
    context : int or tuple of int, optional
        Of volumes: how many slices on either side of each become channels, along the first
        axis or along each: with ``smallchunk_size=(1, 224, 224), context=1`` the wanted slice
        is the middle of three (the channels of one slice side by side), and `target` has it
        alone. Big chunks are read with the slices around them.
    context_edge : {"reflect", "edge", "constant"}
        What stands for slices beyond the ends of a volume, as in ``numpy.pad``: the volume
        mirrored at its first and last slice, these themselves, or the background.
    squeeze : bool, default False
        Drop spatial axes along which small chunks have length 1, so that 2-D networks get
        ``[batch, channels, y, x]`` of a volume; also those of targets.
    bigchunk_size : int or tuple of int, optional
        Largest extent of a big chunk; its first pixels lie on the storage tile grid. Default:
        4096 per axis of two, 256 per axis of three.
    resident : int or str, default "2 GiB"
        Bytes for all big chunks in memory, those being read included. Never exceeded.
    smallchunks_per_bigchunk : int, default 512
        Draws from a big chunk before it leaves memory. More: faster, less varied.
    rotation : {"deterministic", "adaptive"}
        "deterministic": batches are a function of dataset, parameters and seed alone.
        "adaptive": when the next big chunk is late, draw more from those that are there
        instead of waiting, and count how often (`LoaderStats.late_draws`).
    bigchunk_loader : BigChunkLoader or callable, optional
        Chooses the region or regions of a record that a visit holds, or gives what it holds:
        pixels of the region made in a way of its own, or any object.
    smallchunk_collector : SmallChunkCollector or callable, optional
        Chooses each crop, or makes it: with `collate` it may be any object. Default: uniform.
    policy : Policy or callable, optional
        Chooses whose big chunk comes next, see `daskdmed.policies`. Default: every record once
        per cycle, for ever. ``EachOnce(stride)``: each slice or position once per epoch.
    tfms : callable, optional
        Applied to each uint8 sample tensor ``(c, *spatial)``, in the background; a transform of
        `daskdmed.transforms` to the whole batch. A function that draws from the global
        generators of torch, NumPy or `random` shows it in the first batch: it is called in
        the consumer's thread, seeded by each small chunk, and the generators get their state
        back.
    batch_tfms : callable, optional
        Applied to the whole batch in the consumer's thread, on the consumer's device. One
        with an attribute ``needs_smallchunks = True`` (those of `daskdmed.transforms`) is
        called as ``batch_tfms(x, smallchunks)`` and may return ``(x, targets)``, which
        replaces ``smallchunks.targets``; others are called as ``batch_tfms(x)``, and draw from
        the global generators as the training loop itself does.
    collate : callable, optional
        ``collate(list) -> x`` makes a batch of small chunks that are objects: whatever the
        collector gave, after `tfms`, which is then called with each of them as it is (an array
        ``(*spatial, c)`` without a collector). As `torch.utils.data.default_collate`, or a
        function that batches graphs. ``smallchunks[i].data`` is the object. In the background,
        as `tfms` is. Not with `target` and `squeeze`; with `device` it has to give a tensor.
    seed : int, default 0
        Everything random follows from it.
    epoch_length : int, optional
        Batches per loop, at most. Default: endless, or as many as a finite plan (a policy
        that ends, such as ``OnePass``) has.
    restart : bool, default False
        Whether each loop begins with the first batch of the epoch: to validate on the same
        small chunks every time. Their big chunks are read again.
    drop_last : bool, default True
        Drop the short last batch of a finite plan, and with several ranks those last batches
        of it that not every rank would get one of.
    on_error : {"raise", "skip"}
        What an unreadable slide or big chunk does: reach ``next`` as an error that names
        patient, record and region, or be left out and reported by `stats`.
    tile_error : {"raise", "fill"}
        What a storage tile that cannot be decoded becomes: an error (see `on_error`), or
        background and a warning.
    rank, world_size : int
        Which batches of the one global plan are ours, for several training processes: batch
        ``b`` is rank ``b % world_size``'s. Not given: those of `torch.distributed` when a
        process group has been initialised by the first batch, otherwise 0 of 1;
        ``rank="auto"``: also from the variables RANK and WORLD_SIZE that ``torchrun`` sets.
        Ranks with one cluster (`client`) share its big chunks, see `daskdmed.persistence.ranks`.
    feedback_lag : int, optional
        Batches after which `feedback` counts, with a stateful collector. Default 4. Fewer:
        sooner, but fewer batches are made ahead.
    client : distributed.Client or "shared", optional
        Where big chunks live: on the workers of a cluster. "shared": in reading processes of
        this machine that all loaders use which say so, in this process or another, as many as
        `workers` says, 2 by default; the first starts them, and they end when nobody uses them.
        None: as `workers` says.
    workers : int or "threads", optional
        Where big chunks live when no client is given: "threads" of this process, the default,
        or so many reading processes of this machine, which leave the process that trains its
        interpreter. Loaders of one process that ask for as many have them in common, and so
        have the ranks of one machine. They end with the last loader, however it ends.
    device : str or torch.device, optional
        Where batches come to: ``"cuda"``, ``"cuda:1"``, ``"cpu"``; without an index the device
        that is current when the loader starts. They are made ahead, on a stream of their own,
        and are there for whatever is computed on the current stream: `x`, what `batch_tfms`
        gets, and ``smallchunks.targets``, then a tensor ``[batch, [channels], *spatial]``. None:
        batches stay in host memory. `tfms` run before, on the host.
        On a GPU big chunks are kept, too, in place of in host memory: each is copied once, and
        batches are gathered from them. Not so where `tfms` or a collector look at pixels on the
        host, or where the big chunks that are drawn from at a time would take more than half of
        the memory that is free when the loader starts: then batches are copied.
        ``stats().resident_on`` says where they are, and the log why.
    pin_memory : bool, optional
        Whether batches (and targets) lie in pinned host memory, from which ``x.to(device,
        non_blocking=True)`` and `device` copy while the loop computes. Default: where `device`
        is a GPU, or this process uses CUDA by the time a batch is made. Without an accelerator
        True warns and does nothing, as in a `torch.utils.data.DataLoader`.
    dashboard : str, optional
        Address of a dashboard for the threads or processes that the loader starts, where
        `dashboard_link` says that it is shown: ":8787" for that port of this machine, ":0" for any
        free one. None: no dashboard. The cluster of a `client` that has a dashboard shows it there.
    pad : bool, default False
        Surround images smaller than a small chunk with background instead of refusing them.
    tissue : bool, str, callable or mapping, optional
        Draw from tissue only: a method of `daskdmed.tissue_mask` ("otsu" for True), a function
        from a thumbnail to a mask, a mapping patient id -> mask, or the name of a record that
        is a label map, whose classes are tissue, all but 0. An array lies over the image as it
        is read, in its `orientation`. Big chunks are then visited in proportion to their
        tissue, and small chunks drawn exactly, without repetition within a visit. A collector
        of your own still crops where it likes.
    min_tissue : float, default 0.5
        Fraction of a small chunk that must be tissue.
    annotations : str, optional
        Name of the record that holds annotations, or a label map; not needed when one record
        has annotations.
    labels : str, int, sequence of these, or mapping, optional
        Classes that small chunks are centred in: names of annotations, numbers of a label map.
        A mapping gives each its share of a batch, as in `Quota`.
    quotas : sequence of Quota, optional
        Guaranteed shares of every batch, by labels of patients, classes of annotations, and
        classes of label maps. What they leave is drawn from everybody.

    Raises
    ------
    UsageError, DatasetError, GeometryError, ResolutionError
        An argument is wrong; the message names it, and the patient where it is one.
    BudgetError
        `resident` holds fewer than two big chunks, or exceeds half of the workers' memory.

    Notes
    -----
    ``x`` is a tensor ``[batch, channels, *spatial]`` of the records' sample type, in
    channels-last memory. Values are those of the file (Hounsfield units of CT stay what they
    are, also negative ones): bring them to floats with ``batch_tfms=ToFloat()`` of
    `daskdmed.transforms`, the scale on which modules in `heatmap`, `predict` and `infer` see
    them. Rotation is that of PyDmed (big chunks in memory, small chunks from those), by draws
    instead of by seconds.

    Examples
    --------
    >>> with LightDL(dataset, batch_size=64) as loader:  # doctest: +SKIP
    ...     for x, patients, smallchunks in loader:
    ...         ...
    """

    def __init__(
        self,
        dataset: ImagesLike,
        *,
        smallchunk_size: int | tuple[int, ...] = 224,
        batch_size: int = 64,
        level: LevelLike = 0,
        mpp: MppLike | None = None,
        power: PowerLike | None = None,
        spacing: SpacingLike | None = None,
        orientation: str | None = None,
        channels: ChannelsLike | None = None,
        record: RecordLike | None = None,
        target: str | None = None,
        bigchunk_size: int | tuple[int, ...] | None = None,
        resident: int | str = "2 GiB",
        smallchunks_per_bigchunk: int = 512,
        rotation: Literal["deterministic", "adaptive"] = "deterministic",
        bigchunk_loader: ChooserLike | None = None,
        smallchunk_collector: CollectorLike | None = None,
        policy: PolicyLike | None = None,
        tfms: Callable[[Any], Any] | None = None,
        batch_tfms: Callable[[Any], Any] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        seed: int = 0,
        epoch_length: int | None = None,
        restart: bool = False,
        drop_last: bool = True,
        on_error: OnError = "raise",
        rank: RankLike = None,
        world_size: int | None = None,
        feedback_lag: int | None = None,
        client: ClientLike = None,
        workers: WorkersLike = None,
        device: DeviceLike | None = None,
        pin_memory: bool | None = None,
        dashboard: str | None = None,
        pad: bool = False,
        tissue: TissueLike | None = None,
        min_tissue: float = 0.5,
        annotations: str | None = None,
        labels: Labels | Mapping[str, float] | Mapping[int, float] | None = None,
        quotas: Sequence[Quota] | None = None,
        target_level: LevelLike | None = None,
        target_mpp: MppLike | None = None,
        target_classes: Any = None,
        target_channels: bool = False,
        context: ContextLike | None = None,
        context_edge: ContextEdge = "reflect",
        squeeze: bool = False,
        tile_error: OnTileError = "raise",
    ) -> None:
        said = dict(locals())
        delivery = Delivery(device, pin_memory)
        super().__init__(
            batch_size,
            tfms,
            batch_tfms,
            rank,
            world_size,
            client,
            workers,
            delivery,
            dashboard,
            collate,
        )
        told = Arguments(said)
        self.dataset = told.images.dataset
        self.epoch_length = epoch_length
        self.restart = restart
        self._drop_last = drop_last
        self._assembly = told.assembly(self.batch_size, *self._share)
        self._catalogue, self._areas = told.catalogue, told.areas
        self._diversity = Diversity(told.catalogue, told.geometry.smallchunk)
        self._progress: DrawProgress = DrawProgress(is_stateful(told.collect), feedback_lag)
        self._engine: Engine | None = None
        #: draws of the plan of an epoch
        self._draws: dict[int, int | None] = {}

    # -- life and batches -------------------------------------------------------------

    def _begin(self) -> Prefetcher:
        cluster = self._cluster or self._connect()
        try:
            ranks = None if cluster.own else self._assembly.ranks(cluster, self._progress)
            self._claim(self._assembly.budget, cluster, "" if ranks is None else ranks.plan)
            engine = self._assembly.engine(cluster, self._progress, self._meter, ranks)
            furnish(engine, self._delivery, tfms=self.tfms is not None)
        except BaseException:
            if self._cluster is None:
                cluster.close()
            raise
        self._cluster, self._engine = cluster, engine
        return Prefetcher(
            _prepared(engine, self._prepare, self._drop_last),
            self._assembly.sampling.crop.nbytes * self.batch_size,
            meter=self._meter,
            interrupt=engine.interrupt,
            close=engine.close,
            describe=engine.residents.describe,
        )

    def _stop(self) -> None:
        super()._stop()
        self._engine = None

    def _took(self, batch: Batch) -> None:
        self._progress.take(batch.cursor, len(batch.smallchunks), self._dealt)
        self._diversity.add(batch.smallchunks)

    def _deal(self) -> None:
        rank, world_size = self._share
        dealt = replace(self._assembly.sampling, rank=rank, world_size=world_size)
        self._assembly = replace(self._assembly, sampling=dealt)

    def _begins_anew(self) -> bool:
        whole = self._whole()
        short = self.epoch_length is not None and whole is not None and self.epoch_length < whole
        return self.restart or (whole is not None and not short)

    def _next_pass(self, *, again: bool) -> None:
        self._go_to(self._progress.epoch + (not again and not self.restart))

    def _go_to(self, epoch: int) -> None:
        self._stop()
        self._progress.begin(epoch)

    def _parameters(self) -> dict[str, Any]:
        return self._assembly.parameters(self._progress)

    # -- epochs -----------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per loop, at most.

        A finite plan has fewer when the collector ends visits, or big chunks cannot be read.
        Where the state of another number of ranks or another batch size was loaded, an epoch
        has the batches that were taken then, and those that what is left makes now.
        `TypeError`: the loader is endless, or nobody can know where its policy ends.
        """
        self._look_for_others()
        progress = self._progress
        whole = self._whole(progress.base)
        whole = None if whole is None else progress.before + whole
        if whole is None and self.epoch_length is None:
            raise TypeError(
                "this loader is endless (or has a policy of your own, which may end anywhere); "
                "give epoch_length= for it to have a length"
            )
        return min(n for n in (whole, self.epoch_length) if n is not None)

    def _whole(self, base: int = 0) -> int | None:
        """Our batches of the present epoch from a draw on; None when nobody knows its end."""
        self._look_for_others()
        epoch = self._progress.epoch
        if epoch not in self._draws:
            self._draws = {epoch: self._assembly.draws(epoch)}
        draws = self._draws[epoch]
        left = None if draws is None else max(0, draws - base)
        return None if left is None else self._dealt.batches(left, even=self._drop_last)

    @property
    def epoch(self) -> int:
        """Number of the present epoch, see `set_epoch`."""
        return self._progress.epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next loop is of.

        Every epoch has a plan of its own, made from the seed and its number: another order of
        big chunks, other crops. Within an epoch batches are a function of dataset, parameters,
        seed and epoch. The next loop begins at its first batch, also when it is the present
        one; `get` goes there too, but goes on in the present one. After `load_state_dict`, the
        epoch of the state leaves the loader where it is, so that a training script that
        calls this at the start of every epoch can be resumed in the middle of one: the next
        loop is the rest of the saved one, or empty when nothing was left. States of
        patients go on from epoch to epoch. `UsageError`: not a number from 0.
        """
        check_count("epoch", epoch, 0)
        self._check_open()
        progress = self._progress
        if epoch != progress.epoch or (progress.over and not progress.resumed):
            self._go_to(int(epoch))
        progress.chosen = True

    # -- feedback -----------------------------------------------------------------------

    def feedback(self, patient: Patient | str | int, payload: Any) -> int:
        """Tell the collector something about a patient: a loss, an attention map.

        With ``n`` batches taken so far, it counts for batches ``n + feedback_lag`` and later:
        every visit of the patient that is in memory by then sees it in ``context.feedback``
        at its next draw. When there is none it is kept for those that are admitted next; of
        feedback that no draw has seen, the last 64 per patient are kept. The same feedback at
        the same batches gives the same batches, on any cluster, and after
        `load_state_dict`. With several ranks, it is for this rank's draws.

        Parameters
        ----------
        patient : Patient, str or int
            The patient or its id.
        payload : object
            Anything that pickles (for a `state_dict` in JSON: that JSON can hold).

        Returns
        -------
        int
            Number of the first batch, counted from 0, that can differ for it.

        Raises
        ------
        UsageError, StateError
            No such patient, or a collector that does not listen; or it cannot be pickled.
        """
        self._check_open()
        name = str(patient.id if isinstance(patient, Patient) else patient)
        if not self._diversity.knows(name):
            raise UsageError(
                f"feedback to patient {name!r}: the loader has no such patient (it has "
                f"{len(self._catalogue.entries)})"
            )
        return self._progress.post(name, payload)

    # -- looking at it ----------------------------------------------------------------

    def plot_coverage(
        self, patient: Patient | str, *, ax: Axes | None = None, alpha: float = 0.6
    ) -> Figure:
        """Draw where small chunks of a patient came from so far, over the thumbnail.

        On `ax`, or in a new figure; `alpha` is the opacity, 0 to 1. `UsageError`: there is no
        such patient.
        """
        name = str(patient.id) if isinstance(patient, Patient) else str(patient)
        return self._diversity.plot(name, self._areas, ax=ax, alpha=alpha)

    def stats(self) -> LoaderStats:
        """Counters so far; cheap."""
        return LoaderStats(
            **self._counters(),
            diversity=self._diversity.stats(self._areas),
            failed=self._failures(),
        )

    def _counters(self) -> dict[str, Any]:
        meter, residents = self._meter, self._engine and self._engine.residents
        small = math.prod(self._assembly.geometry.smallchunk)
        return dict(
            batches=self._progress.batches,
            patches=self._progress.smallchunks // self._share[1],
            **meter.counters(),
            pixels_drawn=self._progress.batches * self.batch_size * small,
            visits_admitted=meter.visits_admitted,
            visits_evicted=meter.visits_evicted,
            reads=meter.reads,
            resident_visits=residents.resident_visits if residents else 0,
            resident_on=self._engine.resident_on if self._engine else "host",
            resident_bytes=residents.resident_bytes if residents else 0,
            budget_bytes=self._assembly.budget,
            late_draws=meter.late_draws,
            batches_ready=self._ready,
        )

    def _shown(self) -> dict[str, Any]:
        ranks = {} if self._engine is None else self._engine.residents.ranks()
        planning, epoch = self._assembly.planning, self._progress.epoch
        # where positions of a grid are given once, big chunks differ in how many they have
        draws = planning.draws_per_visit if planning.lattice is None else -1
        return {"unit": "patches", "epoch": epoch, "draws": draws, "ranks": ranks}

    def _cells(self) -> list[live.Cell]:
        return [] if self._engine is None else self._engine.cells()

    def _place(self, visit: int) -> live.Place | None:
        return None if self._engine is None else self._engine.residents.place(visit)

    def _failures(self) -> tuple[Failure, ...]:
        return (*self._catalogue.failures, *self._areas.failures, *self._meter.failures)

    def __repr__(self) -> str:
        size = "x".join(map(str, self._assembly.geometry.smallchunk))
        on, device = self._engine and self._engine.resident_on, self._delivery.device
        there = "" if device is None else f" on {on or 'host'}, batches on {device}"
        return (
            f"<LightDL: {len(self._catalogue.entries)} patients, {self.batch_size} x {size}, "
            f"{self._assembly.planning.allotment.slots} big chunks resident{there}, {self._life}>"
        )


def _prepared(
    engine: Engine, prepare: Preparation, drop_last: bool
) -> Generator[tuple[Batch, Any], None, None]:
    """Batches and their tensors."""
    for batch in engine.batches():
        if not drop_last or len(batch.smallchunks) == engine.sampling.batch_size:
            yield batch, prepare.ahead(batch.smallchunks, batch.copied)
        del batch  # no reference while the next one is made
