"""The two places where users say what is loaded and what is cropped.

A *big-chunk loader* chooses the region or regions of a record that a visit holds. A
*small-chunk collector* chooses each crop. Both are pure functions of what they are given
and of an explicit generator, are tried without any cluster (call them), and may be classes
or plain functions. They run in the workers: what they need must pickle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.loading.chunks import BigChunk
from daskdmed.persistence.content import Content
from daskdmed.persistence.reading import LoadContext, RegionChooser


@dataclass(frozen=True, slots=True)
class CollectContext:
    """What a collector is told about a draw.

    Parameters
    ----------
    patient, record : str
        Patient id and name of the record.
    labels : mapping
        Labels of the patient.
    smallchunk_size : tuple of int
        Extent of a crop per spatial axis, array order.
    visit : int
        Number of the visit in the plan.
    nth : int
        How many visits the record had before.
    draw : int
        How many draws this visit had before (0 at the first).
    remembered : dict, optional
        What `state` gives; None for collectors that do not declare that they use it.
    messages : tuple
        What `feedback` gives.
    """

    patient: str
    record: str
    labels: Mapping[str, Any]
    smallchunk_size: tuple[int, ...]
    visit: int
    nth: int
    draw: int
    remembered: dict[str, Any] | None = None
    messages: tuple[Any, ...] = ()

    @property
    def state(self) -> dict[str, Any]:
        """What was remembered about this patient; change it in place.

        Empty at the patient's first visit. A visit works on a copy of its own, taken when
        the visit is admitted, and leaves it behind for visits that are admitted after it
        has left. Survives eviction, is part of the loader's ``state_dict``, and must pickle
        (for a ``state_dict`` in JSON: be JSON). With several ranks each has its own.

        Raises
        ------
        UsageError
            The collector does not declare ``stateful = True``.
        """
        return self._declared("state")

    @property
    def feedback(self) -> tuple[Any, ...]:
        """What `LightDL.feedback` said about this patient and this visit has not seen yet.

        Given at one draw only; keep in `state` what is needed longer. Oldest first.

        Raises
        ------
        UsageError
            The collector does not declare ``stateful = True``.
        """
        self._declared("feedback")
        return self.messages

    def _declared(self, name: str) -> dict[str, Any]:
        if self.remembered is None:
            raise UsageError(
                f"the collector uses context.{name} without declaring it: write stateful = True "
                "in its class, or decorate the function with daskdmed.stateful"
            )
        return self.remembered


#: what a collector may return, see `SmallChunkCollector.extract_smallchunk`
Collected: TypeAlias = "Sequence[int] | Array | tuple[Array, Sequence[int]] | None"


class BigChunkLoader(ABC):
    """Chooses which region or regions of a record one visit holds, or makes what it holds."""

    @abstractmethod
    def extract_bigchunk(
        self,
        read: Callable[[Region], Array],
        context: LoadContext,
        rng: np.random.Generator,
    ) -> Region | Sequence[Region] | Array | tuple[Array, Region] | Content | Any:
        """Choose what a visit holds, or make it.

        Parameters
        ----------
        read : callable
            ``read(Region) -> ndarray`` gives pixels of the record at the loader's
            resolution, for a look before choosing.
        context : LoadContext
            Patient, record, image shape, and the big chunk that the grid proposes.
        rng : numpy.random.Generator
            Keyed by seed and visit; the only randomness to use.

        Returns
        -------
        Region or sequence of Region
            Is read. Inside the image, together at most as many pixels as ``bigchunk_size``.
        ndarray or (ndarray, Region)
            Pixels of ``context.region``, or of another, made in a way of the loader's own (with a
            stain that was normalised over the whole big chunk): shape ``(*region.shape,
            [channels])``, type and channels of the record. Drawn from as those that are read.
        Content or any other object
            What collectors find in ``bigchunk.data``: features, a graph of cells, a list of
            crops. A collector of your own makes small chunks of it. Counts with its size, which
            may not be more than that of the pixels of ``bigchunk_size``. An ndarray that is not
            of pixels has to be wrapped in a `Content`.
        None
            Nothing: the visit is over.
        """


class SmallChunkCollector(ABC):
    """Chooses each crop of a big chunk.

    Attributes
    ----------
    stateful : bool
        Whether ``context.state`` and ``context.feedback`` are used. Draws of a stateful
        collector are made in order, batch by batch; on a cluster that costs a round trip
        a batch. Nothing is kept in `self` between draws.
    """

    stateful: ClassVar[bool] = False

    @abstractmethod
    def extract_smallchunk(
        self, bigchunk: BigChunk, context: CollectContext, rng: np.random.Generator
    ) -> Collected:
        """Choose the crop of one draw.

        Parameters
        ----------
        bigchunk : BigChunk
            Pixels in `data`, and with ``LightDL(target=...)`` those of the target in `target`,
            shared and read-only; without the slices that ``context=`` adds. When a visit holds
            several regions, one of them, chosen with probability proportional to its pixels.
        context : CollectContext
            Patient, record, labels, crop size, draw number.
        rng : numpy.random.Generator
            Keyed by seed, visit and draw; the only randomness to use.

        Returns
        -------
        sequence of int, ndarray, (ndarray, sequence of int), or None
            First pixel of the crop within the big chunk (array order): the library crops.
            Or the crop itself, shape ``(*smallchunk_size, [channels])`` (all channels that
            ``context=`` makes) and the dtype of the big chunk, with or without its first pixel.
            Or None, which ends the visit. With ``LightDL(collate=...)`` any object, which is the
            small chunk.
        """


class UniformCollector(SmallChunkCollector):
    """Every position of the big chunk with equal probability; the default.

    Positions of all draws of a visit are made at once, see
    `daskdmed.loading.sampling.VisitSampler`.
    """

    def extract_smallchunk(
        self, bigchunk: BigChunk, context: CollectContext, rng: np.random.Generator
    ) -> tuple[int, ...]:
        room = np.subtract(bigchunk.shape, context.smallchunk_size) + 1
        return tuple(int(v) for v in rng.integers(room))


CollectorFunction: TypeAlias = Callable[[BigChunk, CollectContext, np.random.Generator], Any]
CollectorLike: TypeAlias = SmallChunkCollector | type[SmallChunkCollector] | CollectorFunction
ChooserLike: TypeAlias = BigChunkLoader | type[BigChunkLoader] | RegionChooser

_Function = TypeVar("_Function", bound=Callable[..., Any])


def stateful(function: _Function) -> _Function:
    """Declare that a collector function uses ``context.state`` or ``context.feedback``."""
    function.stateful = True  # type: ignore[attr-defined]
    return function


def is_stateful(collector: CollectorFunction | None) -> bool:
    """Whether a collector declares that it uses ``context.state`` or ``context.feedback``."""
    owner = getattr(collector, "__self__", None)
    if isinstance(owner, SmallChunkCollector):
        return bool(owner.stateful)
    return bool(getattr(collector, "stateful", False))


def as_collector(collector: CollectorLike | None) -> CollectorFunction | None:
    """The function behind a collector, None for the default."""
    if isinstance(collector, type) and issubclass(collector, SmallChunkCollector):
        collector = collector()
    if collector is None or type(collector) is UniformCollector:
        return None
    function = getattr(collector, "extract_smallchunk", collector)
    if callable(function):
        return function
    raise UsageError(
        f"smallchunk_collector={collector!r} is neither a SmallChunkCollector nor a function "
        "f(bigchunk, context, rng)"
    )


def as_chooser(loader: ChooserLike | None) -> RegionChooser | None:
    """The function behind a big-chunk loader, None for the grid."""
    if isinstance(loader, type) and issubclass(loader, BigChunkLoader):
        loader = loader()
    function = getattr(loader, "extract_bigchunk", loader)
    if function is None or callable(function):
        return function
    raise UsageError(
        f"bigchunk_loader={loader!r} is neither a BigChunkLoader nor a function "
        "f(read, context, rng)"
    )
