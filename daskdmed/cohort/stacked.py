"""Several records of a patient as one image: their channels, one after the other.

T1 and T2 of a scan, the stains of a section, images and what was computed from them: they lie on
the same pixels and are looked at together. Not covered: which records (`daskdmed.cohort.image`),
whether they lie at the same places (`daskdmed.cohort.alike`).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.cohort.alike import check_alike
from daskdmed.core.buffers import empty
from daskdmed.core.errors import UsageError
from daskdmed.core.region import Region
from daskdmed.core.space import Space
from daskdmed.core.types import Array
from daskdmed.core.view import FailedTile, ImageView

if TYPE_CHECKING:
    import dask.array as da


@dataclass(frozen=True, eq=False)
class StackedView(ImageView):
    """The channels of `sources` in their order; an image without a channel axis counts as one.

    `dtype` is the smallest that holds the values of all. `packed` are the shapes of what is
    delivered of each source to a view that was detached, None for one that needs nothing.
    """

    sources: tuple[ImageView, ...]
    names: tuple[str, ...]
    dtype: np.dtype[Any]
    packed: tuple[tuple[int, ...] | None, ...] = ()

    @classmethod
    def of(cls, named: Mapping[str, ImageView]) -> StackedView:
        """Of views of records by name.

        GeometryError: they do not lie at the same places. UsageError: integers and floats.
        """
        (first, view), *others = named.items()
        for name, other in others:
            check_alike(f"record {first!r}", view, f"record {name!r}", other)
        dtypes = {name: one.dtype for name, one in named.items()}
        common = np.result_type(*dtypes.values())
        if any((d.kind == "f") != (common.kind == "f") for d in dtypes.values()):
            shown = ", ".join(f"{name!r} {dtype}" for name, dtype in dtypes.items())
            raise UsageError(
                f"record= stacks channels of one kind of numbers, got {shown}: what their values "
                "mean beside each other is yours to say, for example with Record(array="
                "x.astype('float32') / 1000)"
            )
        return cls(tuple(named.values()), tuple(named), common)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial axes of the sources, and their channels together."""
        return (*self.sources[0].spatial_shape, sum(map(_channels, self.sources)))

    @property
    def spatial_ndim(self) -> int:
        return self.sources[0].spatial_ndim

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """The storage tile of the first."""
        return self.sources[0].tile_shape

    @property
    def tile_origin(self) -> tuple[int, ...]:
        """Of the first, too."""
        return self.sources[0].tile_origin

    @property
    def downsample(self) -> tuple[float, ...]:
        return self.sources[0].downsample

    @property
    def mpp(self) -> tuple[float, float] | None:
        return next((s.mpp for s in self.sources if s.mpp is not None), None)

    @property
    def space(self) -> Space | None:
        return next((s.space for s in self.sources if s.space is not None), None)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        return next((s.spacing for s in self.sources if s.spacing is not None), None)

    @property
    def name(self) -> str:
        return " + ".join(source.name for source in self.sources)

    @property
    def background(self) -> Array:
        """What lies outside each; an error where nobody says it of one."""
        values = [np.asarray(s.background, self.dtype).reshape(-1) for s in self.sources]
        return np.concatenate(values)

    @functools.cached_property
    def token(self) -> str:
        """Of the content of all, not of their names."""
        facts = (self.dtype.str, *(source.token for source in self.sources))
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    @property
    def cheap_to_cut(self) -> bool:
        return all(source.cheap_to_cut for source in self.sources)

    @property
    def cheap_in_parts(self) -> bool:
        return all(source.cheap_in_parts for source in self.sources)

    @property
    def failed_tiles(self) -> tuple[FailedTile, ...]:
        return tuple(tile for source in self.sources for tile in source.failed_tiles)

    def as_labels(self) -> StackedView:
        return replace(self, sources=tuple(source.as_labels() for source in self.sources))

    def __repr__(self) -> str:
        return f"StackedView({', '.join(self.names)}: shape={self.shape}, dtype={self.dtype})"

    # ------------------------------------------------------------------ its pixels
    def _read(self, region: Region, out: Array | None) -> Array:
        if out is None:
            out = empty((*region.shape, *self.channel_shape), self.dtype)
        start = 0
        for source in self.sources:
            stop = start + _channels(source)
            place = out[..., start:stop] if source.channel_shape else out[..., start]
            if source.dtype == self.dtype:
                source.read(region, place)
            else:
                np.copyto(place, source.read(region))
            start = stop
        return out

    # ------------------------------------------------------------------ how it travels
    @property
    def remote(self) -> Any:
        """The client of those that are persisted, which must be one."""
        clients = [s.remote for s in self.sources if s.remote is not None]
        if any(client is not clients[0] for client in clients):
            raise UsageError(
                f"records {', '.join(map(repr, self.names))} are persisted on several clusters; "
                "persist them on one to stack their channels"
            )
        return clients[0] if clients else None

    def narrowed(self, region: Region) -> StackedView:
        return replace(self, sources=tuple(source.narrowed(region) for source in self.sources))

    def detached(self, region: Region) -> StackedView:
        """Without what is persisted; the rest is narrowed to the region, as nobody delivers it."""
        if self.remote is None:
            return replace(self, sources=tuple(s.detached(region) for s in self.sources))
        sources = [
            s.narrowed(region) if s.remote is None else s.detached(region) for s in self.sources
        ]
        packed = [None if s.remote is None else s.delivery(region).shape for s in self.sources]
        return replace(self, sources=tuple(sources), packed=tuple(packed))

    def attached(self, values: Array) -> StackedView:
        sources, start = [], 0
        for source, shape in zip(self.sources, self.packed, strict=True):
            if shape is None:
                sources.append(source)
                continue
            stop = start + math.prod(shape)
            own = values[start:stop].reshape(shape).astype(source.dtype, copy=False)
            sources.append(source.attached(own))
            start = stop
        return replace(self, sources=tuple(sources), packed=())

    def delivery(self, region: Region) -> da.Array:
        """Flat, because the axes of sources need not lie alike before they are turned."""
        import dask.array as da

        parts = [s.delivery(region) for s in self.sources if s.remote is not None]
        return da.concatenate([part.reshape(-1).astype(self.dtype) for part in parts])


def _channels(view: ImageView) -> int:
    return math.prod(view.channel_shape)


__all__ = ["StackedView"]
