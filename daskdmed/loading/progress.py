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
from daskdmed.loading.patientstate import Snapshot, StateKeeper, from_lists, pack, unpack

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
        #: batches taken of the present iteration
        self.iterated = 0
        #: whether the last batch has been asked for and was not there
        self.over = False

    @abstractmethod
    def _to_dict(self) -> dict[str, Any]:
        """Plain values, as far as those of users are."""

    @abstractmethod
    def _load(self, state: Mapping[str, Any]) -> None:
        """The inverse; changes nothing when it raises."""

    def saved(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The state, and what batches depend on."""
        return {"version": _VERSION, **self._to_dict(), "parameters": dict(parameters)}

    def restore(self, state: Any, parameters: Mapping[str, Any]) -> None:
        """The inverse of `saved`.

        Raises
        ------
        StateError
            Of another version or of other parameters, or damaged.
        """
        version = state.get("version") if isinstance(state, Mapping) else None
        if version != _VERSION:
            raise StateError(f"this state has version {version!r}, expected {_VERSION}")
        try:
            theirs = dict(state["parameters"])
            differing = sorted(
                k for k in {*parameters, *theirs} if parameters.get(k) != theirs.get(k)
            )
            if differing:
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


class DrawProgress(Progress):
    """Where a `LightDL` stands.

    Parameters
    ----------
    stateful : bool
        Whether the collector declares that it uses states and feedback.
    lag : int or None
        Batches between feedback and its effect, `DEFAULT_LAG` for None.

    Raises
    ------
    UsageError
        A lag below one, or one for a collector that does not listen.
    """

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
        #: whether the next iteration is the rest of one that was interrupted
        self.resumed = False

    def take(self, cursor: Cursor) -> None:
        """Note that a batch was taken."""
        self.cursor = cursor
        self.batches += 1
        if self.mailbox is not None:
            self.mailbox.take()

    def post(self, patient: str, payload: Any) -> int:
        """Keep feedback for a patient; gives the first batch that can differ for it.

        Raises
        ------
        UsageError
            The collector does not listen.
        StateError
            The payload cannot be pickled.
        """
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
        self.over = self.resumed = False

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
            rows = [[m.serial, m.batch, m.patient, unpack(m.payload)] for m in messages]
            state["states"] = (self.cursor.states or Snapshot()).to_dict()
            state["feedback"] = {"posted": posted, "under_way": rows}
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
        self.resumed = True
