"""What collectors remember of a patient, and what they are told about it.

A visit of a collector that declares ``stateful = True`` begins with a copy of what the last
visit of its patient left behind, changes it draw by draw, and leaves it behind in turn.
Everything is kept pickled here: a state travels to where the draws are made and back, and
a snapshot of all of it goes with every batch.

Everything happens at numbered places of the plan, never "as soon as possible": visits load
when the turn that admits them begins, and feedback is delivered when the batch that it
counts for begins. Not covered: the way of feedback until then (`daskdmed.loading.feedback`).
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daskdmed.core.errors import StateError
from daskdmed.loading.feedback import Mailbox, Message
from daskdmed.persistence.plan import Turn

#: feedback that is kept for a patient while no visit of it has a draw; older is dropped
MOST_KEPT = 64

EMPTY = pickle.dumps({}, pickle.HIGHEST_PROTOCOL)


def pack(value: Any, what: str) -> bytes:
    """Pickle a value of the user's, or say of `what` that it cannot be."""
    with contextlib.suppress(Exception):  # cloudpickle can do more, and says what it cannot
        packed = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        if b"__main__" not in packed:
            return packed
    import cloudpickle  # type: ignore[import-untyped]

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # whatever an object does when it is pickled
        raise StateError(
            f"{what} cannot be pickled ({type(error).__name__}: {error}); it travels between "
            "processes and is saved by state_dict(): keep numbers, strings, lists, dicts and "
            "arrays in it, no locks, files or generators"
        ) from error


def unpack(packed: bytes) -> Any:
    """The value again, nobody else's."""
    return pickle.loads(packed)


class VisitState:
    """A visit's state where its draws are made, and feedback (`mail`) for the next of them."""

    def __init__(self, packed: bytes, mail: Sequence[bytes] = ()) -> None:
        self.state: dict[str, Any] = unpack(packed)
        self._mail = tuple(mail)

    def tell(self, mail: Sequence[bytes]) -> None:
        """Add feedback for the next draw."""
        if mail:
            self._mail += tuple(mail)

    def read(self) -> tuple[Any, ...]:
        """Feedback that was not read before."""
        mail, self._mail = self._mail, ()
        return tuple(unpack(m) for m in mail)

    def packed(self, patient: str) -> bytes:
        """The state as it is now."""
        return pack(self.state, f"context.state of patient {patient!r}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All states after a batch."""

    #: patient -> state as its last visit left it
    left: Mapping[str, bytes] = field(default_factory=dict)
    #: number of a visit -> (patient, state), of those that go on
    visits: Mapping[int, tuple[str, bytes]] = field(default_factory=dict)
    #: number of a visit -> feedback that its next draw will see
    unread: Mapping[int, tuple[Message, ...]] = field(default_factory=dict)
    #: patient -> feedback that no draw has seen yet
    unseen: Mapping[str, tuple[Message, ...]] = field(default_factory=dict)

    def between_plans(self) -> Snapshot:
        """What another plan begins with: all visits have left, in order."""
        left = dict(self.left)
        for number in sorted(self.visits):
            patient, state = self.visits[number]
            left[patient] = state
        return Snapshot(left=left, unseen=self.unseen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as far as the user's are."""
        return {
            "left": {p: unpack(s) for p, s in self.left.items()},
            "visits": {str(n): [p, unpack(s)] for n, (p, s) in self.visits.items()},
            "unread": {str(n): to_lists(m) for n, m in self.unread.items()},
            "unseen": {p: to_lists(m) for p, m in self.unseen.items()},
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Snapshot:
        """The inverse of `to_dict`."""
        return cls(
            {p: pack(s, f"state of patient {p!r}") for p, s in saved["left"].items()},
            {
                int(n): (p, pack(s, f"state of patient {p!r}"))
                for n, (p, s) in saved["visits"].items()
            },
            {int(n): from_lists(m) for n, m in saved["unread"].items()},
            {p: from_lists(m) for p, m in saved["unseen"].items()},
        )


def to_lists(messages: Sequence[Message]) -> list[list[Any]]:
    """Messages as plain values, as far as the user's are."""
    return [[m.serial, m.batch, m.patient, unpack(m.payload)] for m in messages]


def from_lists(rows: Sequence[Sequence[Any]]) -> tuple[Message, ...]:
    """Messages from their plain values."""
    return tuple(
        Message(int(serial), int(batch), patient, pack(payload, f"feedback to {patient!r}"))
        for serial, batch, patient, payload in rows
    )


class StateKeeper:
    """Keeps the states of an engine's visits; used by the engine's thread alone."""

    def __init__(self, snapshot: Snapshot, mailbox: Mailbox) -> None:
        self._left = dict(snapshot.left)
        self._visits = dict(snapshot.visits)
        self._unread = dict(snapshot.unread)
        self._unseen = dict(snapshot.unseen)
        self._mailbox = mailbox
        self._collected = -1
        self._batch = -1

    def begin_turn(self, turn: Turn, patients: Mapping[int, str]) -> None:
        """Visits that are gone leave their states behind; new ones load theirs.

        `patients`: visit number -> patient, of the turn's visits that have not ended.
        """
        here = {v.number for v in turn.resident}
        for number in sorted(n for n in self._visits if n not in here):
            self.leave(number)
        for number, patient in patients.items():
            if number not in self._visits:
                self._visits[number] = (patient, self._left.get(patient, EMPTY))
                if patient in self._unseen:
                    self._unread[number] = self._unseen[patient]

    def begin_batch(self, batch: int) -> None:
        """Deliver the feedback that counts from this batch on; waits for it if need be."""
        if batch == self._batch:
            return
        for message in self._mailbox.collect(batch, self._collected):
            self._collected = message.serial
            patient = message.patient
            self._unseen[patient] = (*self._unseen.get(patient, ()), message)[-MOST_KEPT:]
            for number, (whose, _) in self._visits.items():
                if whose == patient:
                    self._unread[number] = (*self._unread.get(number, ()), message)[-MOST_KEPT:]
        self._batch = batch

    def state_of(self, number: int) -> bytes:
        """A visit's state."""
        return self._visits[number][1]

    def read(self, number: int) -> tuple[bytes, ...]:
        """Feedback for a visit's next draw, which sees it: it is not given again."""
        messages = self._unread.pop(number, None)
        if messages is None:
            return ()
        patient = self._visits[number][0]
        seen = {m.serial for m in messages}
        left = tuple(m for m in self._unseen.get(patient, ()) if m.serial not in seen)
        if left:
            self._unseen[patient] = left
        else:
            self._unseen.pop(patient, None)
        return tuple(m.payload for m in messages)

    def keep(self, number: int, state: bytes) -> None:
        """Note a visit's state after some of its draws."""
        self._visits[number] = (self._visits[number][0], state)

    def leave(self, number: int) -> None:
        """A visit is over: the next visit of the patient begins with its state."""
        patient, state = self._visits.pop(number)
        self._left[patient] = state
        self._unread.pop(number, None)

    def snapshot(self) -> Snapshot:
        """As of now."""
        parts = (self._left, self._visits, self._unread, self._unseen)
        return Snapshot(*map(dict, parts))  # type: ignore[arg-type]

    def restore(self, snapshot: Snapshot) -> None:
        """Back to an earlier moment of the same batch."""
        self._left, self._visits = dict(snapshot.left), dict(snapshot.visits)
        self._unread, self._unseen = dict(snapshot.unread), dict(snapshot.unseen)

    def interrupt(self) -> None:
        """Wake the engine when it waits for feedback; see `Mailbox.interrupt`."""
        self._mailbox.interrupt()
