"""Some channels of a level: of planes that are stored one by one only those are decoded.

Not covered: how they are decoded (`daskdmed.images.tiff.decode`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import overload

from daskdmed.core.buffers import empty
from daskdmed.core.region import Region
from daskdmed.core.types import Array
from daskdmed.images.tiff.decode import Canvas, LevelPlan, Reading, read_level


def read_some(
    plan: LevelPlan | Canvas, channels: tuple[int, ...], job: Reading, region: Region, out: Array
) -> None:
    """Fill `out` with channels of a region; the background of `job` is that of all channels."""
    given = _given(plan)
    # in the order in which they are wanted: mostly that is all there is to do
    planes = list(dict.fromkeys(channel // given for channel in channels))
    stored = tuple(plane * given + i for plane in planes for i in range(given))
    values = out
    if stored != channels:
        values = empty((*region.shape, len(stored)), out.dtype)
    part = _planes(plan, planes)
    read_level(part, replace(job, background=job.background[list(stored)]), region, values)
    if values is not out:
        for target, channel in enumerate(channels):
            out[..., target] = values[..., stored.index(channel)]


def _given(plan: LevelPlan | Canvas) -> int:
    """Channels of each stored plane."""
    return plan.decoder.given if isinstance(plan, LevelPlan) else _given(plan.parts[0][1])


@overload
def _planes(plan: LevelPlan, planes: list[int]) -> LevelPlan: ...
@overload
def _planes(plan: Canvas, planes: list[int]) -> Canvas: ...
def _planes(plan: LevelPlan | Canvas, planes: list[int]) -> LevelPlan | Canvas:
    """The same of some of its stored planes."""
    shape = (*plan.shape[:2], len(planes) * _given(plan))
    if isinstance(plan, Canvas):
        parts = tuple((corner, _planes(part, planes)) for corner, part in plan.parts)
        return replace(plan, shape=shape, parts=parts)
    return replace(
        plan,
        shape=shape,
        tiles=plan.tiles.of(planes),
        finer=None if plan.finer is None else _planes(plan.finer, planes),
    )
