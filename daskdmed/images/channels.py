"""Some channels of an image: by name or number, of any view.

Views of files read no more than these where they are stored one by one; of others they are taken
from what is read. Not covered: how channels are shown (`daskdmed.images.composite`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from daskdmed.core.buffers import empty
from daskdmed.core.errors import UsageError, listing
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.core.view import ImageView, ViewOver
from daskdmed.images.protocols import ChannelInfo

if TYPE_CHECKING:
    import dask.array as da

#: names of channels, or their numbers from 0, in the order in which they are wanted
ChannelsLike: TypeAlias = "str | int | Sequence[str | int]"


def as_channels(given: Any) -> tuple[str | int, ...]:
    """What users write, as names and numbers; UsageError for anything else."""
    wanted = (given,) if isinstance(given, str) or hasattr(given, "__index__") else given
    try:
        found = tuple(str(w) if isinstance(w, str) else w.__index__() for w in wanted)
    except (TypeError, AttributeError):
        found = ()
    if not found or any(isinstance(w, bool) for w in wanted):
        raise UsageError(
            f"channels= are names or numbers of channels, ['DAPI', 2] for instance, got {given!r}"
        )
    return found


def channel_numbers(
    name: str, given: ChannelsLike, known: Sequence[ChannelInfo], count: int
) -> tuple[int, ...]:
    """Which of the `count` channels of an image are meant, each once.

    UsageError: one that is not there, or is named twice; a name that several have.
    """
    numbers = []
    for wanted in as_channels(given):
        found = [wanted] if isinstance(wanted, int) else [
            i for i, channel in enumerate(known) if channel.name == wanted
        ]  # fmt: skip
        if len(found) != 1 or not 0 <= found[0] < count:
            several = f"has {len(found)} channels" if len(found) > 1 else "has no channel"
            raise UsageError(f"{name} {several} {wanted!r}; there are {_shown(known, count)}")
        numbers.append(found[0])
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"{name}: channels={list(as_channels(given))} takes a channel twice")
    return tuple(numbers)


def _shown(known: Sequence[ChannelInfo], count: int) -> str:
    if any(channel.name for channel in known):
        return listing([f"{i} {channel.name}" for i, channel in enumerate(known)])
    return f"{count} without names, 0 to {count - 1}" if count > 1 else "one without a name, 0"


def pick(view: ImageView, numbers: tuple[int, ...]) -> ImageView:
    """An image of some of its channels; of one without such an axis itself, for channel 0."""
    count = view.channel_shape[0] if view.channel_shape else 1
    if numbers == tuple(range(count)):
        return view
    picked: Any = getattr(view, "picked", None)
    found: ImageView = PickedView(view, numbers) if picked is None else picked(numbers)
    return found


def with_channels(view: ImageView, channels: ChannelsLike) -> ImageView:
    """The same of channels as users write them, by number where nobody knows names."""
    count = view.channel_shape[0] if view.channel_shape else 1
    return pick(view, channel_numbers(view.name, channels, (), count))


def composed(before: tuple[int, ...] | None, numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of a file, by their numbers among those that were picked before."""
    return numbers if before is None else tuple(before[n] for n in numbers)


def take(values: Array, numbers: tuple[int, ...], out: Array | None = None) -> Array:
    """Some channels, the last axis, of an array."""
    if out is None:
        return values[..., list(numbers)]
    for target, number in enumerate(numbers):
        out[..., target] = values[..., number]
    return out


def read_groups(
    channels: tuple[int, ...], chunk: int, read: Callable[[int, int, Array], None], out: Array
) -> None:
    """Channels of an array with so many in a chunk: what lies in chunks together is read at once.

    `read` fills an array with the channels from the first to before the second number.
    """
    groups: dict[int, dict[int, int]] = {}
    for place, channel in enumerate(channels):
        groups.setdefault(channel // chunk, {})[place] = channel
    for group in groups.values():
        first, stop = min(group.values()), max(group.values()) + 1
        if len(group) == 1:
            (place,) = group
            read(first, stop, out[..., place : place + 1])
            continue
        values = empty((*out.shape[:-1], stop - first), out.dtype)
        read(first, stop, values)
        for place, channel in group.items():
            out[..., place] = values[..., channel - first]


@dataclass(frozen=True, eq=False, repr=False)
class PickedView(ViewOver):
    """Some channels of a view that cannot read them alone."""

    source: ImageView
    numbers: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.source.spatial_shape, len(self.numbers))

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.source.dtype

    @property
    def background(self) -> Array:
        return take(self.source.background, self.numbers)

    @property
    def token(self) -> str:
        facts = repr((self.source.token, "channels", self.numbers))
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    @property
    def cheap_to_cut(self) -> bool:
        return self.source.cheap_to_cut

    def picked(self, numbers: tuple[int, ...]) -> PickedView:
        """Fewer of them."""
        return replace(self, numbers=composed(self.numbers, numbers))

    def as_labels(self) -> PickedView:
        return replace(self, source=self.source.as_labels())

    def narrowed(self, region: Region) -> PickedView:
        return replace(self, source=self.source.narrowed(region))

    def detached(self, region: Region) -> PickedView:
        return replace(self, source=self.source.detached(region))

    def attached(self, values: Array) -> PickedView:
        return replace(self, source=self.source.attached(values))

    def delivery(self, region: Region) -> da.Array:
        return self.source.delivery(region)

    def _read(self, region: Region, out: Array | None) -> Array:
        return take(self.source.read(region), self.numbers, out)
