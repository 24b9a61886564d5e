"""Which of several training processes this one is.

Not covered: how ranks that share a cluster share big chunks, which is
`daskdmed.persistence.ranks`.
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from daskdmed.core.checks import check_count
from daskdmed.core.errors import UsageError

#: a number, "auto", or None
RankLike: TypeAlias = int | Literal["auto"] | None


def resolve(rank: RankLike, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks, as of now.

    A number is taken as it is, and needs `world_size`. None is the process group of
    `torch.distributed` when one has been initialised, otherwise the only rank, whatever the
    environment says; "auto" also looks at the variables RANK and WORLD_SIZE that ``torchrun``
    sets.
    """
    if rank is None or rank == "auto":
        if world_size is not None:
            raise UsageError(
                f'world_size={world_size!r} without a rank: give both, or neither (or rank="auto")'
            )
        found = _process_group() or (_environment() if rank == "auto" else None)
        rank, world_size = found or (0, 1)
    elif world_size is None:
        if rank == 0 and not isinstance(rank, bool):
            world_size = 1
        else:
            raise UsageError(f"rank={rank!r} without world_size: give both")
    rank, world_size = check_count("rank", rank, 0), check_count("world_size", world_size)
    if rank >= world_size:
        raise UsageError(f"rank must be in [0, world_size={world_size}), got {rank}")
    return rank, world_size


def on_this_machine(world_size: int) -> int:
    """How many of the ranks run on this machine, as ``torchrun`` says; all, if it does not."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(max(int(given), 1), world_size) if given.isdecimal() else world_size


def others_unseen() -> str:
    """What the environment says of other processes, to a loader that knows of none."""
    others = os.environ.get("WORLD_SIZE", "1")
    return "" if others in ("", "1") else f"WORLD_SIZE={others}"


def _process_group() -> tuple[int, int] | None:
    import torch.distributed as group

    if not (group.is_available() and group.is_initialized()):
        return None
    return group.get_rank(), group.get_world_size()


def _environment() -> tuple[int, int] | None:
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and world_size is None:
        return None
    try:
        return int(rank or ""), int(world_size or "")
    except ValueError as error:
        raise UsageError(
            f'rank="auto" found RANK={rank!r} and WORLD_SIZE={world_size!r} in the environment, '
            "which must be two numbers; give rank= and world_size="
        ) from error
