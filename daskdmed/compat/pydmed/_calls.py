"""Calls of a script's hooks: its loaders and collectors, as daskdmed calls them.

Not covered: which patient comes when (`daskdmed.compat.pydmed.lightdl`), and what random numbers
they get (`daskdmed.compat.pydmed._numbers`).
"""

from __future__ import annotations

import inspect
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from dask.sizeof import sizeof

from daskdmed.compat.pydmed._numbers import Numbers, aside
from daskdmed.compat.pydmed.utils.data import Patient
from daskdmed.core.errors import LoaderClosedError, UsageError
from daskdmed.persistence.content import Content

#: what `get_status` gives before any was set
NO_STATUS = "TODO:packagename reserverd: empty cache"


class Book:
    """What is known of patients across their visits: checkpoints, statuses, messages."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        #: visits of each patient that are over
        self._over: Counter[int] = Counter()
        self._checkpoints: dict[int, Any] = {}
        self._statuses: dict[int, Any] = {}
        self._messages: dict[int, Any] = {}

    def begin(self, patient: Patient) -> Any:
        """A visit of a patient is loaded: it takes the last message sent to it, or None."""
        with self._changed:
            return self._messages.pop(patient.int_uniqueid, None)

    def send(self, patient: Patient, message: Any) -> None:
        """Leave a message for the next visit that is loaded."""
        with self._changed:
            self._messages[patient.int_uniqueid] = message

    def end(self, patient: Patient) -> None:
        """A visit of a patient is over."""
        with self._changed:
            self._over[patient.int_uniqueid] += 1
            self._changed.notify_all()

    def checkpoint(self, patient: Patient, visits: int = 0) -> Any:
        """A patient's checkpoint once so many visits are over.

        LoaderClosedError: they never are.
        """
        with aside(), self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._over[patient.int_uniqueid] >= visits
            )
            if self._closed:
                raise LoaderClosedError("the dataloader was closed")
            return self._checkpoints.get(patient.int_uniqueid)

    def set_checkpoint(self, patient: Patient, checkpoint: Any) -> None:
        with self._changed:
            self._checkpoints[patient.int_uniqueid] = checkpoint

    def status(self, patient: Patient) -> Any:
        with self._changed:
            return self._statuses.get(patient.int_uniqueid, NO_STATUS)

    def set_status(self, patient: Patient, status: Any) -> None:
        with self._changed:
            self._statuses[patient.int_uniqueid] = status

    def close(self) -> None:
        """Wake those who wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Held:
    """What a loader made, and the message that it was given."""

    def __init__(self, bigchunk: Any, message: Any) -> None:
        self.bigchunk, self.message = bigchunk, message

    def __sizeof__(self) -> int:
        return nbytes(self.bigchunk)


def nbytes(bigchunk: Any) -> int:
    """Bytes of what a loader made: an array, a `BigChunk`, a list of these, or anything."""
    if isinstance(bigchunk, list | tuple):
        return sum(map(nbytes, bigchunk))
    data = getattr(bigchunk, "data", None)
    # of an array `data` is a buffer
    if data is None or isinstance(bigchunk, np.ndarray):
        return int(sizeof(bigchunk))
    return nbytes(data)


class Load:
    """A script's big-chunk loader class as daskdmed calls it. `most`: bytes of what it may make."""

    def __init__(
        self, kind: type[Any], patients: Mapping[str, Patient], owner: Any, most: int
    ) -> None:
        self._kind, self._patients, self._owner, self._most = kind, patients, owner, most
        self._name = uuid.uuid4().hex

    def __dask_tokenize__(self) -> str:
        return self._name  # nobody shares what a script's own classes make

    def __call__(self, read: Any, context: Any, rng: np.random.Generator) -> Content:
        patient = self._patients[context.patient]
        message = self._owner.book.begin(patient)
        hook = self._kind(patient, const_global_info=self._owner.const_global_info)
        hook._owner, hook._visits = self._owner, context.nth
        with Numbers(rng):
            made = hook.extract_bigchunk(message)
        size = nbytes(made)
        if size > self._most:
            raise UsageError(
                f"{self._kind.__name__}.extract_bigchunk gave {size} bytes, and memory was "
                f"reckoned with {self._most} a big chunk: set "
                f"const_global_info['bytes_of_bigchunk'] = {size}"
            )
        return Content(Held(made, message))


class _Tenure:
    """One stay of a patient: its collector and its numbers."""

    def __init__(self, hook: Any, numbers: Numbers) -> None:
        self.hook, self.numbers = hook, numbers


class Collect:
    """A script's small-chunk collector class as daskdmed calls it; in one thread.

    `draws`: small chunks after which a visit is over. `wrap`: what makes a `SmallChunk` of an
    answer that is none.
    """

    def __init__(
        self, kind: type[Any], patients: Mapping[str, Patient], owner: Any, draws: int, wrap: Any
    ) -> None:
        self._kind, self._patients, self._owner = kind, patients, owner
        self._draws, self._wrap = draws, wrap
        self._counts = counts_calls(kind)
        self._tenures: dict[int, _Tenure] = {}

    def __call__(self, bigchunk: Any, context: Any, rng: np.random.Generator) -> Any:
        patient, held = self._patients[context.patient], bigchunk.data
        tenure = self._tenures.get(context.visit)
        if tenure is None:
            hook = self._kind(patient, const_global_info=self._owner.const_global_info)
            hook._owner, hook.bigchunk = self._owner, held.bigchunk
            tenure = self._tenures[context.visit] = _Tenure(hook, Numbers(rng))
        arguments: tuple[Any, ...] = (held.bigchunk, held.message)
        if self._counts:
            arguments = (context.draw, *arguments)
        answer = None
        try:
            with tenure.numbers:
                answer = tenure.hook.extract_smallchunk(*arguments)
        finally:
            if answer is None or context.draw + 1 == self._draws:
                del self._tenures[context.visit]
                self._owner.book.end(patient)
        return None if answer is None else self._wrap(answer, patient)


def counts_calls(kind: type[Any]) -> bool:
    """Whether ``extract_smallchunk`` of a class is told how often it was called.

    PyDmed's documents have both ``(self, bigchunk, message)`` and ``(self, call_count, bigchunk,
    message)``. UsageError: it has neither.
    """
    parameters = list(inspect.signature(kind.extract_smallchunk).parameters.values())[1:]
    free = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if free or len(needed) == 3:
        return True
    if len(needed) == 2:
        return False
    raise UsageError(
        f"{kind.__name__}.extract_smallchunk takes {len(needed)} arguments; write "
        "extract_smallchunk(self, call_count, bigchunk, last_message_fromroot)"
    )
