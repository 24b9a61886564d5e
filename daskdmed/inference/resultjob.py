"""The result of one image as work to do: its store, the blocks that are left, its end.

Heatmaps and dense predictions derive from it. Not covered: what a block is, and who computes
(`daskdmed.core.work`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import dask.array as da

from daskdmed.cohort.sources import Image, Images, LeftOut, Results
from daskdmed.core.work import Index, Job, run
from daskdmed.store.location import Location
from daskdmed.store.results.resumable import ResultSpec, lazy_result, open_result

T = TypeVar("T")


class ResultJob(Job):
    """What is left of one result.

    Parameters
    ----------
    location : Location
        Where the result shall be.
    spec : ResultSpec
        What it shall hold.
    resume, overwrite : bool
        See `open_result`.

    Attributes
    ----------
    store : ResultStore
        Where blocks are written until the result is complete.

    Raises
    ------
    StoreError
        See `open_result`.
    """

    unit = "blocks"

    def __init__(
        self, location: Location, spec: ResultSpec, *, resume: bool, overwrite: bool
    ) -> None:
        self.name, self.image, self.location = spec.kind, spec.image, location
        self._began = time.time()
        self.store, self._place = open_result(location, spec, resume=resume, overwrite=overwrite)

    def mark(self, index: Index, result: Any) -> None:
        """A block was written."""
        self.store.mark(index)

    def flush(self) -> None:
        """Record what is done."""
        self.store.flush()

    def finish(self) -> da.Array:
        """Put the result in its place.

        Returns
        -------
        dask.array.Array
            The result, lazy.
        """
        self.store.flush()
        self._place.sweep(before=self._began)
        if self._place != self.location:
            self.location.replace(self._place)
        return lazy_result(self.location, self.store.spec)

    def state(self) -> str:
        """How far it is, and how to go on."""
        kept = f"{self.store.finished} of {self.store.total} {self.unit} are done"
        if self.location.in_memory:
            return f"{kept}; give out= to keep them when a run stops"
        return f"{kept} and kept in {self.location}; call again with resume=True to go on"


def each_usable(
    images: Images, left_out: LeftOut, make: Callable[[Image], T]
) -> Iterator[tuple[str, T]]:
    """Something made of every image that can be used, by the id of its patient."""
    for one in images:
        made: list[T] = []
        with contextlib.nullcontext() if images.single else left_out.of(one):
            made.append(make(one))
        for usable in made:
            yield one.key, usable


def run_each(jobs: Iterable[tuple[str, ResultJob]], **how: Any) -> dict[str, da.Array]:
    """Do named jobs, see `daskdmed.core.work.run`; their results by name."""
    names: list[str] = []

    def listed() -> Iterator[ResultJob]:
        for name, job in jobs:
            names.append(name)
            yield job

    return dict(zip(names, run(listed(), **how), strict=True))


def given_back(images: Images, found: dict[str, da.Array], left_out: LeftOut) -> Any:
    """What the caller gets: the result of a single image, or all of them by patient id."""
    if images.single:
        return found[images[0].key]
    results: Results[da.Array] = Results(found)
    results.failures = tuple(left_out.failures)
    return results
