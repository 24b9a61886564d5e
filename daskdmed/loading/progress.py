"""Where a loader stands, and what it saves of that.

`Progress` is one format of saved states, with one check of whether a state fits; `DrawProgress`
is the progress of `LightDL`: after which batch of which epoch, with which patient states. A
state fits loaders with other numbers of ranks and other batch sizes too, as far as what it
tells is enough to know which small chunks nobody has had. Not covered: what batches were made
from, which must be the same for a state to mean anything (the loader's ``parameters``).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daskdmed.core.checks import check_count
from daskdmed.core.errors import StateError, UsageError
from daskdmed.loading.batch import Cursor
from daskdmed.loading.feedback import DEFAULT_LAG, Mailbox
from daskdmed.loading.patientstate import Snapshot, StateKeeper, from_lists, pack, to_lists

_VERSION = 4
#: parameters that say how the stream of small chunks is dealt, not what it is
_DEALT = ("batch_size", "rank", "world_size")
#: what parameters whose values say little are about
_ABOUT = {
    "dataset": "patients, names of records, or shapes of images differ",
    "images": "patients, names of records, or shapes of images differ",
    "slots": "resident= holds another number of big chunks",
    "quotas": "quotas differ",
}


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's plan; epoch 0 has the seed itself."""
    if epoch == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} epoch {epoch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True, slots=True)
class Share:
    """How a stream is dealt: `batch_size` at a time to one of `world_size` ranks after another."""

    batch_size: int
    rank: int
    world_size: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Share:
        """Of a loader's parameters."""
        return cls(*(int(parameters[name]) for name in _DEALT))

    @property
    def together(self) -> int:
        """Small chunks of a batch of every rank."""
        return self.batch_size * self.world_size

    def batches(self, count: int, *, even: bool) -> int:
        """Batches of this rank of so many small chunks; `even`: as many as every rank has."""
        whole, rest = divmod(count, self.batch_size)
        if even:
            return whole // self.world_size
        dealt = whole + bool(rest)
        return dealt // self.world_size + (self.rank < dealt % self.world_size)

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size} with batch_size={self.batch_size}"


class Progress(ABC):
    """The state of a loader as of the batch last taken."""

    def __init__(self) -> None:
        #: batches taken, of whatever size: of a pass over windows, or in all epochs
        self.batches = 0
        #: small chunks that all ranks have taken of the present loop, of short batches as if whole
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
    def _deal_anew(self, state: Mapping[str, Any], then: Share, now: Share) -> dict[str, Any]:
        """What a loader of this share would have saved in the place of one of another.

        All ranks have taken as many batches as the one that saved `state`. Raises `StateError`
        where nobody can know which small chunks these were.
        """

    @staticmethod
    @abstractmethod
    def _of_version_3(state: Mapping[str, Any], then: Share) -> dict[str, Any]:
        """What states of the version before lack."""

    def saved(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The state, and what batches depend on."""
        return {"version": _VERSION, **self._to_dict(), "parameters": dict(parameters)}

    def restore(self, state: Any, parameters: Mapping[str, Any]) -> None:
        """The inverse of `saved`, also for other ranks and batch sizes; all or nothing."""
        version = state.get("version") if isinstance(state, Mapping) else None
        if version not in (3, _VERSION):
            raise StateError(
                f"this state has version {version!r}, and this daskdmed reads versions 3 and "
                f"{_VERSION}: load it with the release that saved it, or begin the epoch anew "
                "with set_epoch()"
            )
        try:
            theirs = dict(state["parameters"])
            _check_same(theirs, parameters)
            then, now = Share.of(theirs), Share.of(parameters)
            if version == 3:
                state = {**state, **self._of_version_3(state, then)}
            if then != now:
                state = {**state, **self._deal_anew(state, then, now)}
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


def _check_same(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a state of other batches, saying what differs."""
    names = sorted({*saved, *now} - {*_DEALT})
    lines = [
        f"{name}: saved {saved.get(name)!r}, now {now.get(name)!r}"
        + (f" ({_ABOUT[name]})" if name in _ABOUT else "")
        for name in names
        if saved.get(name) != now.get(name)
    ]
    if lines:
        raise StateError(
            f"the state belongs to another loader ({'; '.join(lines)}): make the loader with what "
            "was saved, only ranks and batch_size may differ"
        )


def only_its_own(why: str, then: Share, now: Share) -> StateError:
    """A state that no other rank, and no other number of them, can go on from."""
    return StateError(
        f"this state was saved by {then} and cannot be gone on with by {now}: {why}. Save the "
        f"state of each rank, and go on with batch_size={then.batch_size} and "
        f"world_size={then.world_size}, each rank from its own; or begin the epoch anew with "
        "set_epoch()"
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
        #: small chunks that all ranks have taken, in all epochs
        self.smallchunks = 0
        #: number of the first draw of the epoch that is dealt as now, and batches taken before
        self.base, self.before = 0, 0
        #: batches taken since, and whether the last of them was a short one
        self.taken, self.short = 0, False

    @property
    def fresh(self) -> bool:
        return not self.cursor.position and not self.over

    def take(self, cursor: Cursor, size: int, share: Share) -> None:
        """Note that a batch of so many small chunks was taken."""
        self.cursor = cursor
        self.batches += 1
        self.taken += 1
        self.short = size < share.batch_size
        self.smallchunks += size * share.world_size
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
        self.base = self.before = self.taken = self.iterated = 0
        self.over = self.looped = self.resumed = self.chosen = self.short = False

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
            "base": self.base,
            "before": self.before,
            "taken": self.taken,
            "short": self.short,
            "batches": self.batches,
            "smallchunks": self.smallchunks,
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
        batches, position = _counts(state, "batches", "position")
        states, mailbox = None, None
        if self.lag is not None:
            states = Snapshot.from_dict(state["states"])
            feedback = state["feedback"]
            messages = from_lists(feedback["under_way"])
            mailbox = Mailbox(self.lag, batches, int(feedback["posted"]), messages)
        cursor = Cursor(position, ended, batches, states)
        base, before, taken = _counts(state, "base", "before", "taken")
        epoch, iterated, smallchunks = _counts(state, "epoch", "iterated", "smallchunks")
        short, over = bool(state["short"]), bool(state["over"])
        self.cursor, self.mailbox, self.batches = cursor, mailbox, batches
        self.base, self.before, self.taken, self.short = base, before, taken, short
        self.epoch, self.iterated, self.over = epoch, iterated, over
        self.smallchunks = smallchunks

    def _deal_anew(self, state: Mapping[str, Any], then: Share, now: Share) -> dict[str, Any]:
        """Begin to deal at the first draw that is nobody's yet."""
        base, position, taken = _counts(state, "base", "position", "taken")
        self._check_remembered(state, then, now)
        if state["over"]:  # nothing is left of the epoch, however it is dealt
            return {"position": 0, "ended": {}, "base": 0, "before": 0, "taken": 0, "short": False}
        if position and then.batch_size != now.batch_size and "quotas" in state["parameters"]:
            raise StateError(
                f"this state was saved in the middle of an epoch, whose batches of "
                f"batch_size={then.batch_size} hold a share of each quota, so that batches of "
                f"{now.batch_size} would be others: go on with batch_size={then.batch_size} (the "
                "number of ranks may change), or begin an epoch with set_epoch()"
            )
        if then.world_size > 1 and taken:
            end = base + taken * then.together
            mine = end - (then.world_size - 1 - then.rank) * then.batch_size
            if state["ended"] or not (position == mine or (state["short"] and position < mine)):
                raise only_its_own(
                    f"rank {then.rank} has not drawn as planned (its collector ended big chunks "
                    'early, some could not be read, or rotation="adaptive"), so that it is not '
                    "known which small chunks the other ranks have had",
                    then,
                    now,
                )
            position = end
        before = int(state["before"]) + taken
        dealt = {"position": position, "base": position, "before": before, "taken": 0}
        return {**dealt, "short": False}

    def _check_remembered(self, state: Mapping[str, Any], then: Share, now: Share) -> None:
        """Memories of patients are those of one rank, if there are any yet."""
        same = (then.rank, then.world_size) == (now.rank, now.world_size)
        if self.lag is None or same:
            return
        if state["batches"] or state["feedback"]["posted"]:
            raise only_its_own(
                "its collector remembers (stateful = True) what the draws of that rank left "
                "behind, which is nothing that other ranks have seen",
                then,
                now,
            )

    @staticmethod
    def _of_version_3(state: Mapping[str, Any], then: Share) -> dict[str, Any]:
        """One epoch was dealt alike from its first draw on."""
        position = int(state["position"])
        last = position - (then.rank + 1) * then.batch_size
        rounds, beside = divmod(last, then.together)
        taken = -(-position // then.together)
        return {
            "base": 0,
            "before": 0,
            # where it is unknown, `position` contradicts it
            "taken": rounds + 1 if position and not beside else taken,
            "short": False,
            "smallchunks": int(state["batches"]) * then.together,
            "iterated": int(state["iterated"]) * then.together,
        }


def _counts(state: Mapping[str, Any], *names: str) -> tuple[int, ...]:
    """Numbers from 0 of a state."""
    found = tuple(int(state[name]) for name in names)
    for name, value in zip(names, found, strict=True):
        if value < 0:
            raise ValueError(f"{name} is {value}")
    return found
