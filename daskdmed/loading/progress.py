"""Where a loader stands: after which batch of which epoch, with which patient states.

What `LightDL.state_dict` saves, and what the next session begins with. Not covered: what
the plan was made from, which must be the same for a saved state to mean anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from daskdmed.core.errors import StateError, UsageError
from daskdmed.loading.batch import Cursor
from daskdmed.loading.feedback import DEFAULT_LAG, Mailbox
from daskdmed.loading.patientstate import Snapshot, StateKeeper, from_lists, pack, unpack

_VERSION = 2


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's plan; epoch 0 has the seed itself."""
    if epoch == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} epoch {epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Progress:
    """The state of a loader as of the batch last taken.

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
        if lag is not None and not stateful:
            raise UsageError(
                "feedback_lag= needs a smallchunk_collector that declares stateful = True"
            )
        if lag is not None and (isinstance(lag, bool) or int(lag) != lag or lag < 1):
            raise UsageError(f"feedback_lag must be an integer >= 1, got {lag!r}")
        self.lag = int(lag or DEFAULT_LAG) if stateful else None
        self.mailbox = None if self.lag is None else Mailbox(self.lag)
        self.cursor = Cursor()
        self.epoch = 0
        #: batches taken, in all epochs
        self.batches = 0
        #: batches taken of the present iteration
        self.iterated = 0
        #: whether the plan of this epoch has ended
        self.over = False

    def take(self, cursor: Cursor) -> None:
        """Note that a batch was taken."""
        self.cursor = cursor
        self.batches += 1
        if self.mailbox is not None:
            self.mailbox.take()

    def begin(self, epoch: int) -> None:
        """Go to the first batch of an epoch. Patients keep their states."""
        states = self.cursor.states
        states = None if states is None else states.between_plans()
        self.cursor = Cursor(batches=self.batches, states=states)
        self.epoch = epoch
        self.iterated = 0
        self.over = False

    def keeper(self) -> StateKeeper | None:
        """The states for an engine that goes on from here."""
        if self.mailbox is None:
            return None
        self.mailbox.reopen()
        return StateKeeper(self.cursor.states or Snapshot(), self.mailbox)

    # -- saving -----------------------------------------------------------------------

    def to_dict(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values, as far as the user's states and feedback are."""
        state: dict[str, Any] = {
            "version": _VERSION,
            "epoch": self.epoch,
            "position": self.cursor.position,
            "ended": {str(k): v for k, v in self.cursor.ended.items()},
            "batches": self.batches,
            "iterated": self.iterated,
            "over": self.over,
            "parameters": dict(parameters),
        }
        if self.mailbox is not None:
            posted, messages = self.mailbox.under_way()
            rows = [[m.serial, m.batch, m.patient, unpack(m.payload)] for m in messages]
            state["states"] = (self.cursor.states or Snapshot()).to_dict()
            state["feedback"] = {"posted": posted, "under_way": rows}
        return state

    def load(self, state: Any, parameters: Mapping[str, Any]) -> None:
        """The inverse of `to_dict`.

        Raises
        ------
        StateError
            Of another version or of other parameters, or damaged.
        """
        if not isinstance(state, Mapping) or state.get("version") != _VERSION:
            version = state.get("version") if isinstance(state, Mapping) else None
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

    def _load(self, state: Mapping[str, Any]) -> None:
        ended = {int(k): int(v) for k, v in state["ended"].items()}
        batches = int(state["batches"])
        states, mailbox = None, None
        if self.lag is not None:
            states = Snapshot.from_dict(state["states"])
            feedback = state["feedback"]
            messages = from_lists(feedback["under_way"])
            mailbox = Mailbox(self.lag, batches, int(feedback["posted"]), messages)
        self.cursor = Cursor(int(state["position"]), ended, batches, states)
        self.epoch, self.batches = int(state["epoch"]), batches
        self.iterated, self.over = int(state["iterated"]), bool(state["over"])
        self.mailbox = mailbox


def packed_feedback(patient: str, payload: Any) -> bytes:
    """What is posted: nothing that the caller does to `payload` later changes it.

    Raises
    ------
    StateError
        It cannot be pickled.
    """
    return pack(payload, f"feedback to patient {patient!r}")
