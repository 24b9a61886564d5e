"""Several training processes on one cluster: one resident set for all of them.

All ranks walk the turns of one plan and ask for the same big chunks under the same keys, so
that each is read once as long as somebody holds it. What is left to do is to keep them
close together: a rank that has finished a turn goes on holding what leaves with it until
every other rank has finished that turn too, *within the budget*. So no rank is further
ahead of the slowest than half of the budget's spare part, all ranks together hold no more
than one of them may, and each big chunk is read once. In training that synchronises
gradients, ranks are never that far apart, and nobody waits. The other half of the spare part
is for reading ahead; a budget of fewer than 12 big chunks has none to spare for that.

Nobody waits for ever, either: not for a rank whose process is gone (the scheduler knows its
clients), that has closed its loader, or that has not begun `JOIN_LIMIT` seconds after this
one; and when the slowest stands still for `STALL_LIMIT` seconds, it is left behind. What
such ranks miss they read again, and hold in addition; so does a rank that is in another
epoch already, whose plan is another one. What a dead rank alone had read ahead is lost.

Ranks meet in a table on the scheduler, asked once a turn. Ranks on different clusters, or
each with an in-process one, share nothing and do not wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskdmed.core.errors import LoaderError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("daskdmed.persistence")

#: seconds for which a rank is waited for that has not begun
JOIN_LIMIT = 5.0
#: seconds after which a rank that makes no progress is left behind
STALL_LIMIT = 60.0
#: seconds between looks at the table while waiting
POLL_EVERY = 0.02


class Ranks:
    """What one rank knows of the others that share a plan; for the thread that makes batches.

    `clock` tells seconds. `meeting`: how many of the ranks come to this scheduler, all unless said.
    """

    def __init__(
        self,
        client: Client,
        plan: str,
        rank: int,
        world_size: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        meeting: int | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._client = client
        self._clock = clock
        self._meeting = world_size if meeting is None else meeting
        self.plan = plan
        self._first = 0
        self._turn = 0
        self._others: dict[int, int] = {}
        self._joined = 0.0
        self._moved = 0.0
        self._left_behind: set[int] = set()
        self._missing: set[int] = set()
        #: whether this rank waits for slower ones
        self.waits = False

    def join(self, turn: int) -> None:
        self._joined = self._moved = self._clock()
        self._first = self._turn = turn
        self._ask(lambda: self._client.run_on_scheduler(_installer()))
        self._exchange()

    def finished(self, turn: int) -> None:
        """Note that a turn is finished; the others hear it with the next `tell`."""
        self._turn = turn + 1

    def tell(self) -> None:
        """Tell the others which turn this rank is in, and hear where they are."""
        self._exchange()

    def look(self) -> None:
        """Hear where the others are; leave those behind that keep everybody waiting."""
        before = self.slowest
        self._exchange()
        now = self._clock()
        if self.slowest != before:
            self._moved = now
        elif now - self._moved > STALL_LIMIT:
            late = {r for r, turn in self._others.items() if turn == before}
            self._left_behind |= late
            self._moved = now
            logger.warning(
                "ranks %s have made no progress for %.0f s and are left behind: what they "
                "need later is read again, in addition to the budget",
                sorted(late),
                STALL_LIMIT,
            )

    def begin_to_wait(self) -> None:
        """From here on somebody has to make progress."""
        self._moved, self.waits = self._clock(), True

    def describe(self) -> str:
        """Who is waited for, in words; for another thread than the one that makes batches."""
        slowest, others = self.slowest, dict(self._others)
        late = sorted(rank for rank, turn in others.items() if turn == slowest)
        where = f"in turn {slowest} of the plan" if late else "not there yet"
        return (
            f"rank {self.rank}, in turn {self._turn}, waits for ranks "
            f"{late or sorted(self._missing)}, {where} (they are left behind after "
            f"{STALL_LIMIT:.0f} s without progress)"
        )

    def now(self) -> dict[str, Any]:
        """Where everybody is, in plain values; for another thread."""
        slowest, others = self.slowest, dict(self._others)
        late = sorted(rank for rank, turn in others.items() if turn == slowest)
        waits_for = (late or sorted(self._missing)) if self.waits else []
        behind = sorted(self._left_behind)
        return {
            "plan": self.plan,
            "turn": self._turn,
            "waits_for": waits_for,
            "left_behind": behind,
        }

    @property
    def slowest(self) -> int:
        """First turn that some rank has yet to finish."""
        turns = [t for r, t in self._others.items() if r not in self._left_behind]
        if self._missing and self._clock() - self._joined < JOIN_LIMIT:
            turns.append(self._first)
        return min([self._turn, *turns])

    def leave(self) -> None:
        try:
            self._exchange(gone=True)
        except LoaderError as error:  # a lost connection says the same
            logger.debug("could not leave the table of ranks: %s", error)

    def _exchange(self, gone: bool = False) -> None:
        client = self._client
        answer = self._ask(
            lambda: client.sync(
                client.scheduler.daskdmed_ranks,
                plan=self.plan,
                rank=self.rank,
                client=client.id,
                turn=None if gone else self._turn,
            )
        )
        table: dict[int, int | None] = {int(rank): turn for rank, turn in answer}
        all_here = len({self.rank, *table}) >= self._meeting
        self._missing = set() if all_here else set(range(self.world_size)) - {self.rank, *table}
        self._others = {r: turn for r, turn in table.items() if turn is not None and r != self.rank}

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # whatever a lost connection raises
            raise LoaderError(
                f"rank {self.rank} of {self.world_size} cannot meet the others on the scheduler "
                f"({type(error).__name__}: {error}); make a new client, and a new loader from "
                "state_dict()"
            ) from error


def _installer() -> Callable[..., None]:
    """What prepares the scheduler.

    Nested functions are pickled with their code, so that the scheduler's process needs no
    daskdmed.
    """

    def install(dask_scheduler: Any) -> None:
        plans: dict[str, dict[int, tuple[str, int | None]]] = {}

        def exchange(plan: str, rank: int, client: str, turn: int | None) -> Any:
            """Note a rank's turn (None: it is gone); give everybody's."""
            table = plans.setdefault(plan, {})
            table[rank] = (client, turn)
            for other, (whose, at) in list(table.items()):
                if at is not None and whose not in dask_scheduler.clients:
                    table[other] = (whose, None)
            if all(at is None for _, at in table.values()):
                del plans[plan]
            return [[other, at] for other, (_, at) in table.items()]

        dask_scheduler.handlers.setdefault("daskdmed_ranks", exchange)

    return install
