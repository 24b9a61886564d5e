"""Who holds how much memory: one account for all loaders and runs of a process, or of a cluster.

All are checked together against half of the memory that there is: the other half is needed for
decoding, batches and the model. One by one, a loader for training, one for validation and a
heatmap beside them could take more than all of it.

What counts: in a process, all that is held for its threads, times the processes of this machine
where ``torchrun`` says how many these are (LOCAL_WORLD_SIZE); on a cluster, what all its clients
hold, by a table on its scheduler, and what ranks share once. Processes that have neither in
common know nothing of each other. Not covered: how much a loader needs
(`daskdmed.persistence.budget`).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dask.utils import format_bytes

from daskdmed.core.errors import BudgetError

if TYPE_CHECKING:
    from distributed import Client

_here: dict[str, int] = {}
_lock = threading.RLock()


def _in_child() -> None:
    """What the parent of a forked process holds is counted there."""
    global _lock
    _lock = threading.RLock()
    _here.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def claim(
    owner: object,
    holder: str,
    nbytes: int,
    *,
    client: Client | None = None,
    here: bool = False,
    shared: str = "",
    asked: str = "",
    alone: bool = True,
) -> weakref.finalize[..., Any]:
    """Enter a share of the memory of this process (`here`) and of a client's cluster.

    Call the result to give it back, which also happens when `owner` is collected. A holder that
    is entered again replaces its share. What is `shared` under one name counts once. `asked`
    says what it is for; `alone`: it is checked even if there is no other.

    Raises
    ------
    BudgetError
        All holders together exceed half of the memory.
    """
    asked = asked or f"resident={format_bytes(nbytes)}"
    if here:
        with _lock:
            others = dict(_here)  # at once: shares are given back by any thread, at any time
            others.pop(holder, None)
            if others or alone:
                check_memory(asked, nbytes, machine_memory(), others, processes_here())
            _here[holder] = nbytes
    try:
        if client is not None:
            granted, limit, found = client.run_on_scheduler(
                _accountant(), client.id, holder, nbytes, shared, alone, callback_timeout=60
            )
            if not granted:
                check_memory(asked, nbytes, limit, dict(found))
    except BaseException:
        _here.pop(holder, None)
        raise
    share = weakref.finalize(owner, _give_back, holder, client)
    share.atexit = False
    return share


def machine_memory() -> int:
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def processes_here() -> int:
    """Processes of this machine that do the same, as ``torchrun`` says."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(given), 1) if given.isdecimal() else 1


def _give_back(holder: str, client: Client | None) -> None:
    _here.pop(holder, None)
    if client is not None and client.status == "running":
        with contextlib.suppress(Exception):  # lost: the scheduler forgets clients that are gone
            told = client.run_on_scheduler(
                _accountant(), client.id, holder, None, callback_timeout=5
            )
            if inspect.isawaitable(told):  # collected by the client's own loop, which cannot wait
                client.loop.add_callback(lambda: told)


def check_memory(
    asked: str,
    nbytes: int,
    limit: int | None,
    others: Mapping[str, int] | None = None,
    processes: int = 1,
) -> None:
    """Raise BudgetError when a share, and those of others, exceed half of the memory there is."""
    held = sum((others or {}).values())
    together = (nbytes + held) * processes
    if not limit or 2 * together <= limit:
        return
    if others:
        beside = ", ".join(f"{name} {format_bytes(n)}" for name, n in others.items())
        asked += f" together with what others hold ({beside})"
    if processes > 1:
        asked += f" in each of {processes} processes of this machine (LOCAL_WORLD_SIZE)"
    if together != nbytes:
        asked += f", in all {format_bytes(together)},"
    most = max(limit // 2 // processes - held, 0)
    raise BudgetError(
        f"{asked} exceeds half of the workers' memory ({format_bytes(limit)} in all); the other "
        "half is needed for decoding, batches and the model: ask for at most "
        f"{format_bytes(most)}, {'close one of the others, ' if others else ''}or add workers"
    )


def _accountant() -> Callable[..., Any]:
    """What keeps the account of a cluster. Nested, so that its scheduler needs no daskdmed."""

    def account(
        client: str,
        holder: str,
        nbytes: int | None,
        shared: str = "",
        alone: bool = True,
        *,
        dask_scheduler: Any,
    ) -> Any:
        """Whether a share is granted (None: it is given back), the memory, and other shares."""
        shares = vars(dask_scheduler).setdefault("_daskdmed_shares", {})
        for key in [k for k in shares if k[0] not in dask_scheduler.clients]:
            del shares[key]
        if nbytes is None:
            shares.pop((client, holder), None)
            return None
        others = {}
        for (whose, name), (size, plan) in shares.items():
            if (whose, name) != (client, holder) and not (plan and plan == shared):
                label = name if whose == client else f"{name} of {whose}"
                others[plan or label] = [label, size]
        limits = [worker.memory_limit for worker in dask_scheduler.workers.values()]
        limit = sum(limits) if all(limits) else 0
        together = nbytes + sum(size for _, size in others.values())
        granted = not limit or 2 * together <= limit or not (others or alone)
        if granted:
            shares[client, holder] = (nbytes, shared)
        return granted, limit, list(others.values())

    return account
