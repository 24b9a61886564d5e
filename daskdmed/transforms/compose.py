"""Several transforms, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import groupby

from daskdmed.core.errors import UsageError
from daskdmed.core.randomness import salt_of
from daskdmed.transforms.base import Params, Tensor, Transform
from daskdmed.transforms.geometric import Geometric, Turns, turn
from daskdmed.transforms.keyed import Samples


class Compose(Transform):
    """Apply transforms in order.

    Geometric ones that follow each other are applied as one: flips and turns together
    move each pixel once.

    Parameters
    ----------
    transforms : sequence of Transform
        Wrap anything else in `PerSample`. The place of each in the sequence is part of its
        seed, so that a transform may be listed twice.
    seed : int, default 0
        Changes all of them.

    Raises
    ------
    UsageError
        A member is not a `Transform`.

    Examples
    --------
    >>> from daskdmed.transforms import Compose, HEDJitter, RandomFlip, RandomRotate90, ToFloat
    >>> augment = Compose([RandomFlip(), RandomRotate90(), HEDJitter(), ToFloat()])
    >>> with LightDL(dataset, batch_tfms=augment) as loader:  # doctest: +SKIP
    ...     x, patients, smallchunks = next(loader)
    >>> params = augment.draw(smallchunks)  # doctest: +SKIP
    >>> again = augment.replay(params, raw)  # doctest: +SKIP
    """

    def __init__(self, transforms: Sequence[Transform], *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        for member in transforms:
            if not isinstance(member, Transform):
                raise UsageError(
                    f"Compose takes transforms of whole batches, not {member!r}; wrap a "
                    "function of one image in PerSample"
                )
        self.transforms = list(transforms)

    @property
    def uses_global_generators(self) -> bool:
        return any(member.uses_global_generators for member in self.transforms)

    def parameters(self, samples: Samples) -> Params:
        """Parameters of all members, each name preceded by the member's place."""
        params = {}
        for place, member in enumerate(self.transforms):
            own = samples.at(salt_of(place)).at(member._salt)
            for name, values in member.parameters(own).items():
                params[f"{place}.{name}"] = values
        return params

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        for run in self._runs(params):
            fused = _fused(run, x.ndim - 2)
            if fused is not None:
                x = turn(x, fused, range(2, x.ndim))
                continue
            for member, own in run:
                x = member.on_image(x, own)
        return x

    def on_target(self, target: Tensor, params: Params, axes: tuple[int, ...]) -> Tensor:
        for run in self._runs(params):
            fused = _fused(run, len(axes))
            if fused is not None:
                target = turn(target, fused, axes)
                continue
            for member, own in run:
                target = member.on_target(target, own, axes)
        return target

    def on_both(
        self, x: Tensor, target: Tensor, params: Params, axes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        for run in self._runs(params):
            fused = _fused(run, x.ndim - 2)
            if fused is not None:
                x, target = turn(x, fused, range(2, x.ndim)), turn(target, fused, axes)
                continue
            for member, own in run:
                x, target = member.on_both(x, target, own, axes)
        return x, target

    def _runs(self, params: Params) -> Iterator[list[tuple[Transform, Params]]]:
        """Members with their parameters, geometric ones in a row together."""
        members = []
        for place, member in enumerate(self.transforms):
            prefix = f"{place}."
            own = {k[len(prefix) :]: v for k, v in params.items() if k.startswith(prefix)}
            members.append((member, own))
        for _, run in groupby(members, lambda m: isinstance(m[0], Geometric)):
            yield list(run)

    def __repr__(self) -> str:
        members = ", ".join(map(repr, self.transforms))
        return f"Compose([{members}]{f', seed={self.seed}' if self.seed else ''})"


def _fused(run: list[tuple[Transform, Params]], spatial_ndim: int) -> Turns | None:
    """One turn for a run of geometric transforms, None for another run."""
    turns = [t.turns(own, spatial_ndim) for t, own in run if isinstance(t, Geometric)]
    return reduce(Turns.then, turns) if turns else None
