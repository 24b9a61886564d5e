"""Feedback on its way from the training loop to the collectors.

What the loop learns about a patient (a loss, an attention map) is posted under the number
of the batch from which on it counts: ``taken + lag``, where ``taken`` batches have been
taken when it is posted. Batches are not begun before all feedback that counts for them can
have been posted, so that the same feedback at the same batches gives the same batches,
whatever the speed of anything.

Not covered: which visit reads it when (`daskdmed.loading.patientstate`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from daskdmed.core.errors import LoaderClosedError

#: batches between a feedback and the first batch that it can change: as many as are made
#: ahead, so that waiting for feedback does not slow the loader down
DEFAULT_LAG = 4


class Message(NamedTuple):
    """One feedback, with a pickled payload."""

    #: position among all feedback of the loader
    serial: int
    #: number of the first batch that it counts for
    batch: int
    patient: str
    payload: bytes


class Mailbox:
    """Feedback that was posted and does not count yet for the batch last taken.

    Used by two threads: the consumer posts and takes, the engine collects.
    """

    def __init__(
        self, lag: int, taken: int = 0, posted: int = 0, messages: Iterable[Message] = ()
    ) -> None:
        self.lag = lag
        self._taken = taken
        self._posted = posted
        self._messages = deque(messages)
        self._change = threading.Condition()
        self._open = True

    # -- the consumer's side ----------------------------------------------------------

    def post(self, patient: str, payload: bytes) -> int:
        """Leave a message; gives the number of the first batch that it counts for."""
        with self._change:
            message = Message(self._posted, self._taken + self.lag, patient, payload)
            self._messages.append(message)
            self._posted += 1
            return message.batch

    def take(self) -> None:
        """Note that one more batch has been taken."""
        with self._change:
            # what counted for the batch just taken is in that batch's cursor
            while self._messages and self._messages[0].batch <= self._taken:
                self._messages.popleft()
            self._taken += 1
            self._change.notify_all()

    def under_way(self) -> tuple[int, list[Message]]:
        """Messages posted so far, and those that no batch taken so far can have seen."""
        with self._change:
            return self._posted, list(self._messages)

    # -- the engine's side ------------------------------------------------------------

    def collect(self, batch: int, after: int) -> list[Message]:
        """Messages later than number `after` that count for a batch that is about to begin.

        Waits until none can be missing, or raises `LoaderClosedError`.
        """
        with self._change:
            while self._open and batch >= self._taken + self.lag:
                self._change.wait()
            if not self._open:
                raise LoaderClosedError("the loader was closed while it waited for feedback")
            return [m for m in self._messages if m.serial > after and m.batch <= batch]

    def interrupt(self) -> None:
        """Wake the engine for good; it gets `LoaderClosedError`."""
        with self._change:
            self._open = False
            self._change.notify_all()

    def reopen(self) -> None:
        """Serve another engine, after the last one has ended."""
        with self._change:
            self._open = True
