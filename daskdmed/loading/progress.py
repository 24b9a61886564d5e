"""Where a loader stands, and what it saves of that.

`Progress` is one format of saved states, with one check of whether a state fits; `DrawProgress`
is the progress of `LightDL`: after which batch of which epoch, with which patient states.
Not covered: what batches were made from, which must be the same for a state to mean
anything (the loader's ``parameters``).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from daskdmed.core.checks import check_count
from daskdmed.core.errors import StateError, UsageError
from daskdmed.loading.batch import Cursor
from daskdmed.loading.feedback import DEFAULT_LAG, Mailbox
from daskdmed.loading.patientstate import Snapshot, StateKeeper, from_lists, pack, to_lists

_VERSION = 3


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's plan; epoch 0 has the seed itself."""
    if epoch == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} epoch {epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Progress(ABC):
    """The state of a loader as of the batch last taken."""

    def __init__(self) -> None:
        #: batches taken: of a pass over windows, or in all epochs
        self.batches = 0
        #: batches taken of the present loop
        self.iterated = 0
        #: whether a batch has been asked for and there were no more
        self.over = False
        #: whether a loop took batches of the present pass
        self.looped = False
        #: whether the next loop is the rest of one that was interrupted
        self.resumed = False
        #: whether the user said which epoch the next loop is of
        self.chosen = False

    @property
    @abstractmethod
    def fresh(self) -> bool:
        """Whether the next batch is the first of its pass."""

    @abstractmethod
    def _to_dict(self) -> dict[str, Any]:
        """Plain values, as far as those of users are."""

    @abstractmethod
    def _load(self, state: Mapping[str, Any]) -> None:
        """The inverse; changes nothing when it raises."""

    @abstractmethod
    def _of_another_rank(self, state: Mapping[str, Any], each: int, ranks: int) -> dict[str, Any]:
        """What this rank would have saved when another one saved `state`.

        `each` is the size of a batch. Raises `StateError` where nobody can know.
        """

    def saved(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The state, and what batches depend on."""
        return {"version": _VERSION, **self._to_dict(), "parameters": dict(parameters)}

    def restore(self, state: Any, parameters: Mapping[str, Any]) -> None:
        """The inverse of `saved`; ranks take as many batches each, so one may load another's."""
        version = state.get("version") if isinstance(state, Mapping) else None
        if version != _VERSION:
            raise StateError(f"this state has version {version!r}, expected {_VERSION}")
        try:
            theirs = dict(state["parameters"])
            differing = sorted(
                k for k in {*parameters, *theirs} if parameters.get(k) != theirs.get(k)
            )
            if differing == ["rank"]:
                each, ranks = parameters["batch_size"], parameters["world_size"]
                state = {**state, **self._of_another_rank(state, each, ranks)}
            elif differing:
                lines = [
                    f"{k}: saved {theirs.get(k)!r}, now {parameters.get(k)!r}" for k in differing
                ]
                raise StateError(f"the state belongs to another loader ({'; '.join(lines)})")
            self._load(state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(
                f"the state is damaged ({type(error).__name__}: {error}); save what "
                "state_dict() returns, whole"
            ) from error
        self.looped = self.resumed = True
        self.chosen = False


def only_its_own(why: str) -> StateError:
    """A state that no other rank can go on from."""
    return StateError(
        f"this state was saved by another rank, and {why}: save the state of each rank and load "
        "its own"
    )


class DrawProgress(Progress):
    """Where a `LightDL` stands."""

    def __init__(self, stateful: bool, lag: int | None = None) -> None:
        super().__init__()
        if lag is not None and not stateful:
            raise UsageError(
                "feedback_lag= needs a smallchunk_collector that declares stateful = True"
            )
        lag = DEFAULT_LAG if lag is None else check_count("feedback_lag", lag)
        self.lag = lag if stateful else None
        self.mailbox = None if self.lag is None else Mailbox(self.lag)
        self.cursor = Cursor()
        self.epoch = 0

    @property
    def fresh(self) -> bool:
        return not self.cursor.position and not self.over

    def take(self, cursor: Cursor) -> None:
        """Note that a batch was taken."""
        self.cursor = cursor
        self.batches += 1
        if self.mailbox is not None:
            self.mailbox.take()

    def post(self, patient: str, payload: Any) -> int:
        """Keep feedback for a patient; gives the first batch that can differ for it."""
        if self.mailbox is None:
            raise UsageError(
                "the collector does not listen to feedback: write stateful = True in its class, "
                "or decorate the function with daskdmed.stateful"
            )
        # nothing that the caller does to it later changes it
        return self.mailbox.post(patient, pack(payload, f"feedback to patient {patient!r}"))

    def begin(self, epoch: int) -> None:
        """Go to the first batch of an epoch. Patients keep their states."""
        states = self.cursor.states
        states = None if states is None else states.between_plans()
        self.cursor = Cursor(batches=self.batches, states=states)
        self.epoch = epoch
        self.iterated = 0
        self.over = self.looped = self.resumed = self.chosen = False

    def keeper(self) -> StateKeeper | None:
        """The states for an engine that goes on from here."""
        if self.mailbox is None:
            return None
        self.mailbox.reopen()
        return StateKeeper(self.cursor.states or Snapshot(), self.mailbox)

    def _to_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "position": self.cursor.position,
            "ended": {str(k): v for k, v in self.cursor.ended.items()},
            "batches": self.batches,
            "iterated": self.iterated,
            "over": self.over,
        }
        if self.mailbox is not None:
            posted, messages = self.mailbox.under_way()
            state["states"] = (self.cursor.states or Snapshot()).to_dict()
            state["feedback"] = {"posted": posted, "under_way": to_lists(messages)}
        return state

    def _load(self, state: Mapping[str, Any]) -> None:
        ended = {int(k): int(v) for k, v in state["ended"].items()}
        batches = int(state["batches"])
        states, mailbox = None, None
        if self.lag is not None:
            states = Snapshot.from_dict(state["states"])
            feedback = state["feedback"]
            messages = from_lists(feedback["under_way"])
            mailbox = Mailbox(self.lag, batches, int(feedback["posted"]), messages)
        cursor = Cursor(int(state["position"]), ended, batches, states)
        epoch, iterated, over = int(state["epoch"]), int(state["iterated"]), bool(state["over"])
        self.cursor, self.mailbox, self.batches = cursor, mailbox, batches
        self.epoch, self.iterated, self.over = epoch, iterated, over

    def _of_another_rank(self, state: Mapping[str, Any], each: int, ranks: int) -> dict[str, Any]:
        rank, position = int(state["parameters"]["rank"]), int(state["position"])
        if self.lag is not None:
            raise only_its_own("its collector remembers what that rank saw")
        if state["over"]:
            return {}
        together = each * ranks
        if state["ended"] or (position and position % together != (rank + 1) * each % together):
            raise only_its_own("big chunks of that rank ended early, so that it drew more")
        # all ranks have had their batch of the last round
        return {"position": -(-position // together) * together}
