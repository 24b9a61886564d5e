"""The result of one image as work to do: its store, the blocks that are left, its end.

Heatmaps and dense predictions derive from it. Not covered: what a block is, and who computes
(`daskdmed.core.work`).
"""

from __future__ import annotations

from typing import Any

import dask.array as da
from dask.base import tokenize

from daskdmed.core.work import Index, Job
from daskdmed.store.location import Location
from daskdmed.store.results.resumable import LEVEL, ResultSpec, open_result

#: cells per axis of a chunk of the returned Dask array
_RESULT_CHUNK = 2048


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
        if self._place != self.location:
            self.location.replace(self._place)
        return stored(self.location, self.store.spec)

    def state(self) -> str:
        """How far it is, and how to go on."""
        kept = f"{self.store.finished} of {self.store.total} {self.unit} are done"
        if self.location.in_memory:
            return f"{kept}; give out= to keep them when a run stops"
        return f"{kept} and kept in {self.location}; call again with resume=True to go on"


def stored(location: Location, spec: ResultSpec) -> da.Array:
    """A result that is complete, lazy."""
    array: Any = location.open("r")[LEVEL]
    chunks = [
        min(n, max(_RESULT_CHUNK // c, 1) * c) for n, c in zip(spec.shape, spec.chunks, strict=True)
    ]
    # a store object has no name that says which one it is
    which = str(location) if isinstance(location.target, str) else id(location.target)
    name = f"{spec.kind}-{tokenize(which, spec)}"
    return da.from_array(array, chunks=tuple(chunks), name=name, lock=False)
