"""Stores of window results: created, found again, and resumed.

The parameters of a run are kept with its result, and a run with others is refused. Which
blocks are done is in `daskdmed.store.results.donemap`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.base import tokenize

from daskdmed import __version__
from daskdmed.core.errors import StoreError
from daskdmed.core.files import write_failure
from daskdmed.images.ngff.metadata import axis_names
from daskdmed.store.location import Location, damage_named
from daskdmed.store.ngff.levels import create_level
from daskdmed.store.results.donemap import DONE, DoneMap, progress_of
from daskdmed.store.results.georeference import Georeference

#: name of the result array within the group
LEVEL = "0"
_FORMAT = 1
#: cells along an axis of a block of a result as a Dask array
_LAZY_BLOCK = 2048


@dataclass(frozen=True)
class ResultSpec:
    """What a result store holds.

    `kind` is "heatmap" or "predict", `outputs` are values per window (0 for one plain value,
    without a channel axis), a block of `block_windows` is a chunk of the array. `image` is a name
    for people, `parameters` everything that the values depend on, in JSON types. Cells that are not
    computed have the `fill_value`.
    """

    kind: str
    counts: tuple[int, ...]
    outputs: int
    block_windows: tuple[int, ...]
    georeference: Georeference
    image: str
    parameters: Mapping[str, Any]
    dtype: str = "float32"
    fill_value: float = float("nan")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result array, the channel (if any) first."""
        return (*((self.outputs,) if self.outputs else ()), *self.counts)

    @property
    def chunks(self) -> tuple[int, ...]:
        """One block per chunk, all channels together."""
        return (*((self.outputs,) if self.outputs else ()), *self.block_windows)

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(-(-n // b) for n, b in zip(self.counts, self.block_windows, strict=True))

    @property
    def axes(self) -> tuple[str, ...]:
        return axis_names(len(self.counts), bool(self.outputs))

    def attributes(self) -> dict[str, Any]:
        """Attributes of the group: OME-Zarr's where it can describe the result, and own ones."""
        image = self.georeference.image(LEVEL, channels=bool(self.outputs), name=self.kind)
        return {
            **({} if image is None else image.attributes()),
            "daskdmed": {
                "kind": self.kind,
                "format": _FORMAT,
                "version": __version__,
                "path": LEVEL,
                "image": self.image,
                "georeference": self.georeference.to_json(),
                "parameters": _plain(self.parameters),
            },
        }


class ResultStore(DoneMap):
    """An open result store: the array, and which of its blocks are done."""

    def __init__(self, group: zarr.Group, spec: ResultSpec) -> None:
        self.spec = spec
        if LEVEL not in group:
            if DONE in group:
                raise StoreError(f"blocks are marked as done, and the array {LEVEL!r} is missing")
            create_level(
                group,
                LEVEL,
                shape=spec.shape,
                chunks=spec.chunks,
                dtype=spec.dtype,
                fill_value=spec.fill_value,
                axes=spec.axes,
            )
        self.array: Any = group[LEVEL]
        there, wanted = (self.array.shape, self.array.dtype), (spec.shape, np.dtype(spec.dtype))
        if there != wanted:
            raise StoreError(f"its array is {there}, the result needs {wanted}")
        super().__init__(group, spec.blocks)


def open_result(
    location: Location, spec: ResultSpec, *, resume: bool, overwrite: bool
) -> tuple[ResultStore, Location]:
    """Create a result store, or go on with the one that is there; where it is written is the second
    value, to be put in place by ``location.replace(written)``.

    `resume` goes on with what a run with the same parameters left, `overwrite` replaces it: it
    stays until the new one is finished (store objects other than paths and URLs are emptied at
    once). Both: go on with an interrupted replacement.
    """
    place = location
    if location.holds_group():
        if overwrite and not isinstance(location.target, str):
            return _create(place, spec, replace=True), place
        if overwrite:
            place = location.staging
            if not (resume and place.holds_group()):
                try:
                    place.remove()
                except OSError as error:
                    raise write_failure(place, error) from error
                return _create(place, spec), place
        elif not resume:
            raise StoreError(_occupied(location))
        group = place.open()
        _check_same(group, spec, place)
        place.sweep()
        with damage_named(place):
            return ResultStore(group, spec), place
    return _create(place, spec), place


def lazy_result(location: Location, spec: ResultSpec) -> da.Array:
    """A stored result as a Dask array, always of the same name; blocks are whole chunks of the
    store, about `_LAZY_BLOCK` cells along each axis."""
    array: Any = location.open("r")[LEVEL]
    # a store object has no name that says which one it is
    which = str(location) if isinstance(location.target, str) else id(location.target)
    return lazy_array(array, name=f"{spec.kind}-{tokenize(which, spec)}")


def lazy_array(array: Any, *, name: str | None = None) -> da.Array:
    """A Zarr array as a Dask array; blocks are whole objects of the store, not too small ones."""
    chunks = tuple(
        min(n, max(_LAZY_BLOCK // c, 1) * c)
        for n, c in zip(array.shape, array.shards or array.chunks, strict=True)
    )
    return da.from_array(array, chunks=chunks, name=name, lock=False)


def _create(place: Location, spec: ResultSpec, *, replace: bool = False) -> ResultStore:
    try:
        group = zarr.create_group(
            place.store, zarr_format=3, attributes=spec.attributes(), overwrite=replace
        )
        return ResultStore(group, spec)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{place}: cannot create the result store ({type(error).__name__}: {error}); "
            "check that the folder exists, may be written and has room"
        ) from error


def _occupied(location: Location) -> str:
    group = location.open("r")
    own: Any = group.attrs.get("daskdmed")
    state = "a Zarr group that this library did not write"
    if isinstance(own, dict):
        state = f"a {own.get('kind', 'result')}"
        if DONE in group:
            state += " with {} of {} blocks done".format(*progress_of(group))
    return (
        f"{location} holds {state}; resume=True goes on with it (same parameters), "
        "overwrite=True replaces it, or give another out="
    )


def _check_same(group: zarr.Group, spec: ResultSpec, place: Location) -> None:
    own: Any = group.attrs.get("daskdmed")
    if not isinstance(own, dict) or "parameters" not in own or own.get("kind") != spec.kind:
        raise StoreError(
            f"{place} holds no {spec.kind} of this library, nothing to resume; "
            "overwrite=True replaces it, or give another out="
        )
    hint = "A model whose fingerprint changes though it computes the same can define "
    check_parameters(place, own["parameters"], spec.parameters, hint + "__dask_tokenize__.")


def check_parameters(
    place: Location, stored: Mapping[str, Any], wanted: Mapping[str, Any], hint: str = ""
) -> None:
    """That a run was begun with the same parameters; else an error with a line for each that
    differs."""
    wanted = _plain(wanted)
    lines = []
    for name in sorted({*stored, *wanted}):
        old, new = stored.get(name), wanted.get(name)
        if old != new:
            lines.append(f"{name}: the store has {old!r}, this call {new!r}")
    if lines:
        raise StoreError(
            f"{place} was begun with other parameters, and is not resumed:\n  "
            + "\n  ".join(lines)
            + "\nGive the same ones, or overwrite=True to begin anew."
            + (f" ({hint})" if hint else "")
        )


def _plain(value: Any) -> Any:
    """What comes back when a value is stored as JSON."""
    return json.loads(json.dumps(value))
