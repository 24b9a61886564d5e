"""PyDmed's ``pydmed.lightdl``: big chunks, small chunks, and the dataloader.

``from ... import *`` gives what PyDmed's does, with ``np, random, time, os, plt, torch``.
Not covered: how a script's hooks are called (`daskdmed.compat.pydmed._calls`), and what makes the
batches (`daskdmed.LightDL`).
"""

from __future__ import annotations

import logging
import math
import operator
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch

from daskdmed.cohort.dataset import Dataset as OurDataset
from daskdmed.cohort.patient import Patient as OurPatient
from daskdmed.cohort.record import Record as OurRecord
from daskdmed.compat.pydmed._calls import Book, Collect, Load
from daskdmed.compat.pydmed._collate import batch_of
from daskdmed.compat.pydmed._hooks import (
    BigChunk,
    BigChunkLoader,
    Info,
    SmallChunk,
    SmallChunkCollector,
)
from daskdmed.compat.pydmed._numbers import Numbers
from daskdmed.compat.pydmed.utils.data import Dataset, Patient
from daskdmed.core import memory
from daskdmed.core.errors import LoaderClosedError, StoreError, UsageError
from daskdmed.core.types import Array
from daskdmed.loading.lightdl import LightDL as OurLightDL
from daskdmed.persistence.policy import Situation

try:
    import matplotlib.pyplot as plt
except ImportError:  # scripts that draw say that it is missing
    plt = None

__all__ = [
    "PYDMEDRESERVED_DLRETURNEDLASTINSTANCE",
    "PYDMEDRESERVED_HALTDL",
    "BigChunk",
    "BigChunkLoader",
    "LightDL",
    "SmallChunk",
    "SmallChunkCollector",
    "get_default_constglobinf",
    "np",
    "os",
    "plt",
    "random",
    "time",
    "torch",
]
_log = logging.getLogger("daskdmed.compat.pydmed")
#: first element of what `LightDL.schedule` returns to end the stream
PYDMEDRESERVED_HALTDL = "PYDMEDRESERVED_HALTDL"
#: what `LightDL.get` gives when there is nothing more
PYDMEDRESERVED_DLRETURNEDLASTINSTANCE = "PYDMEDRESERVED_DL_RETURNED_LAST_INSTANCE"
#: of the machine's memory, for the big chunks of one dataloader; a script has two or three
_MEMORY_SHARE = 0.15
#: small chunks of a patient that `LightDL.visualize` remembers
_REMEMBERED = 10_000
_DRAWS = 512


def get_default_constglobinf() -> Info:
    """The settings of a dataloader, to be changed; hooks find them in ``self.const_global_info``.

    "num_bigchunkloaders"
        Big chunks in memory at a time that small chunks are drawn from; at most one of a patient.
    "smallchunks_per_bigchunk", "seed", "bytes_of_bigchunk"
        Not PyDmed's: small chunks after which a big chunk makes room for another, the seed of
        everything random, and the most that a loader makes (None: a part of this machine's memory).
    "maxlength_queue_smallchunk", "maxlength_queue_lightdl", "interval_resched", "core-assignment"
        PyDmed's queues, seconds and processes; there are none here, and nothing depends on them.
    """
    return {
        "num_bigchunkloaders": 10,
        "maxlength_queue_smallchunk": 100,
        "maxlength_queue_lightdl": 10000,
        "interval_resched": 10,
        "core-assignment": {"lightdl": None, "smallchunkloaders": None, "bigchunkloaders": None},
        "smallchunks_per_bigchunk": _DRAWS,
        "seed": 0,
        "bytes_of_bigchunk": None,
    }


class _Queue:
    """PyDmed's ``queue_lightdl``, as far as scripts ask it."""

    def __init__(self, owner: LightDL) -> None:
        self._owner = owner

    def qsize(self) -> int:
        """Small chunks that are ready to be taken."""
        return self._owner._ready()

    def empty(self) -> bool:
        """Whether there are none."""
        return not self.qsize()


class LightDL:
    """Batches of the small chunks that a script's own classes load and collect.

    Parameters
    ----------
    dataset : Dataset
        Patients, see `daskdmed.compat.pydmed.utils.data`.
    type_bigchunkloader, type_smallchunkcollector : class
        Subclasses of `BigChunkLoader` and `SmallChunkCollector`. Loaders run in threads, ahead of
        the collectors, which run one at a time; each big chunk has a collector of its own.
    const_global_info : dict
        See `get_default_constglobinf`.
    batch_size : int
        Small chunks of what `get` gives.
    tfms : callable or None
        Applied to the `data` of each small chunk. None: what a tensor can be made of.
    flag_grabqueue_onunsched, flag_enable_sendgetmessage, flag_enable_setgetcheckpoint : bool
        PyDmed's: no small chunk that was made is thrown away here, and both work in any case.
    collate_func : callable, optional
        ``f(list_smallchunks, tfms)`` makes what `get` gives; default `default_collate`.
    fname_logfile : str, optional
        File that lines of `log` are appended to.

    Raises
    ------
    UsageError
        An argument is wrong, or a class has no hook of its own.

    Notes
    -----
    Every patient is visited once before any is again, as PyDmed has it, and a big chunk leaves
    after ``const_global_info["smallchunks_per_bigchunk"]`` small chunks instead of after seconds,
    so that batches do not depend on how fast the machine is. A subclass may override
    `initial_schedule` and `schedule`.
    """

    def __init__(
        self,
        dataset: Dataset,
        type_bigchunkloader: type[Any],
        type_smallchunkcollector: type[Any],
        const_global_info: Info,
        batch_size: int,
        tfms: Callable[[Any], Any] | None,
        flag_grabqueue_onunsched: bool = True,
        collate_func: Callable[[list[Any], Any], Any] | None = None,
        fname_logfile: str | None = None,
        flag_enable_sendgetmessage: bool = True,
        flag_enable_setgetcheckpoint: bool = True,
    ) -> None:
        if not dataset.list_patients:
            raise UsageError(f"dataset {dataset.str_dsname!r} has no patients")
        self.dataset = dataset
        self.type_bigchunkloader = type_bigchunkloader
        self.type_smallchunkcollector = type_smallchunkcollector
        self.const_global_info = const_global_info
        self.batch_size, self.tfms, self.collate_func = batch_size, tfms, collate_func
        self.queue_lightdl = _Queue(self)
        self.book = Book()
        self._patients = {str(p.int_uniqueid): p for p in dataset.list_patients}
        self._seen: dict[int, deque[SmallChunk]] = {}
        self._situation: Situation | None = None
        self._first: list[Patient] | None = None
        self._logfile = None if fname_logfile is None else Path(fname_logfile)
        self._logging = threading.Lock()
        self._loader: Any = self._make_loader()
        self._numbers = Numbers(np.random.default_rng(self._setting("seed", 0)))
        self._started = self._ended = False
        self.log(f"{type(self).__name__} of {dataset.str_dsname!r}: {self._loader!r}")

    # -- what makes the batches ---------------------------------------------------------

    def _setting(self, name: str, usual: int) -> int:
        value = self.const_global_info.get(name)
        if value is None:
            return usual
        try:
            number = operator.index(value)
        except TypeError:
            number = -1
        if number < int(name != "seed"):
            raise UsageError(f"const_global_info[{name!r}] must be a positive integer: {value!r}")
        return number

    def _make_loader(self) -> Any:
        kind: Any
        for kind, base, hook in (
            (self.type_bigchunkloader, BigChunkLoader, "extract_bigchunk"),
            (self.type_smallchunkcollector, SmallChunkCollector, "extract_smallchunk"),
        ):
            if not isinstance(kind, type) or not issubclass(kind, base):
                raise UsageError(f"give a subclass of {base.__name__}, got {kind!r}")
            if getattr(kind, hook) is getattr(base, hook):
                raise UsageError(f"{kind.__name__} must have a method {hook}")
        slots = self._slots()
        most = _capacity(slots)
        usual = int(memory.machine_memory() * _MEMORY_SHARE) // most
        side = math.isqrt(self._setting("bytes_of_bigchunk", usual) - 1) + 1
        draws = self._setting("smallchunks_per_bigchunk", _DRAWS)
        # nobody reads it: what is held is what the loaders make
        nothing = da.zeros((side, side), chunks=side, dtype=np.uint8)
        records = {
            name: OurPatient(name, records={"pydmed": OurRecord(array=nothing)})
            for name in self._patients
        }
        return OurLightDL(
            OurDataset(self.dataset.str_dsname, list(records.values())),
            smallchunk_size=min(224, side),
            bigchunk_size=side,
            batch_size=self.batch_size,
            smallchunks_per_bigchunk=draws,
            resident=most * side * side,
            bigchunk_loader=Load(self.type_bigchunkloader, self._patients, self, side * side),
            smallchunk_collector=Collect(
                self.type_smallchunkcollector, self._patients, self, draws, _smallchunk
            ),
            policy=self._admit,
            collate=list,
            drop_last=False,
            seed=self._setting("seed", 0),
        )

    def _admit(self, situation: Situation, rng: np.random.Generator) -> int | None:
        """The policy: what the script's own `schedule` says, else `_choose`."""
        loaded = set(situation.resident.tolist())
        names = {name: i for i, name in enumerate(situation.patients)}
        self._situation = situation
        try:
            with Numbers(rng):
                patient = self._asked(situation)
        finally:
            self._situation = None
        if isinstance(patient, str):  # PYDMEDRESERVED_HALTDL
            return None
        if patient is not None:
            index = names[str(patient.int_uniqueid)]
            if index not in loaded:
                return index
        free = [i for i in range(len(names)) if i not in loaded]
        return self._choose(situation, np.array(free), rng)

    def _asked(self, situation: Situation) -> Patient | str | None:
        """Whom a subclass wants to be loaded next."""
        kind = type(self)
        if kind.initial_schedule is not LightDL.initial_schedule:
            if self._first is None:
                self._first = list(self.initial_schedule())
            if situation.visit < len(self._first):
                return self._first[situation.visit]
        if kind.schedule is LightDL.schedule:
            return None
        if situation.visit < self._slots():
            return None
        remove, load = self.schedule()
        assert load is None or isinstance(load, Patient)
        if isinstance(remove, str) and remove == PYDMEDRESERVED_HALTDL:
            return PYDMEDRESERVED_HALTDL
        return load

    def _choose(self, situation: Situation, free: Array, rng: np.random.Generator) -> int:
        """The least visited of those that are not in memory."""
        counts = situation.counts[free]
        candidates = free[counts == counts.min()]
        return int(candidates[rng.integers(candidates.size)])

    # -- what a subclass may override -----------------------------------------------------

    def initial_schedule(self) -> list[Patient]:
        """Patients whose big chunks are loaded at first, by default any, each once."""
        patients = self.dataset.list_patients
        return random.sample(patients, self._slots())

    def schedule(self) -> tuple[Any, Any]:
        """``(patient_toremove, patient_toload)``, asked whenever a big chunk makes room.

        It is the oldest big chunk that leaves; `patient_toload` comes in its place, unless it is in
        memory already. ``(None, None)``: whoever is due. ``(PYDMEDRESERVED_HALTDL, None)``: nobody
        any more; the stream ends with the small chunks of those in memory.
        """
        waiting = self.get_list_waitingpatients()
        weights = [1e7 if not n else 1 / (1 + n) for n in map(self.get_schedcount_of, waiting)]
        loaded = self.get_list_loadedpatients()
        return (
            random.choice(loaded) if loaded else None,
            random.choices(waiting, weights)[0] if waiting else None,
        )

    def get_list_loadedpatients(self) -> list[Patient]:
        """Patients with a big chunk in memory; within `schedule`, those that stay."""
        if self._situation is not None:
            names = self._situation.patients
            return [self._patients[names[i]] for i in self._situation.resident.tolist()]
        if not self._is_running():
            return []
        places = (self._loader._place(number) for number, *_ in self._loader._cells())
        held = {place[0] for place in places if place is not None}
        return [patient for name, patient in self._patients.items() if name in held]

    def get_list_waitingpatients(self) -> list[Patient]:
        """The other ones."""
        loaded = set(self.get_list_loadedpatients())
        return [patient for patient in self.dataset.list_patients if patient not in loaded]

    def get_schedcount_of(self, patient: Patient) -> int:
        """How often a patient has been scheduled; for `schedule`, 0 elsewhere."""
        if self._situation is None:
            return 0
        at = list(self._situation.patients).index(str(patient.int_uniqueid))
        return int(self._situation.counts[at])

    def _slots(self) -> int:
        """Big chunks that small chunks are drawn from at a time."""
        return min(self._setting("num_bigchunkloaders", 10), len(self._patients))

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load. Nothing has to be waited for: `get` does."""
        if self._ended:
            raise LoaderClosedError("the dataloader has ended; make a new one")
        self._started = True
        self._loader.start()

    def get(self, timeout: float | None = None) -> Any:
        """The next batch, ``(x, list_patients, list_smallchunks)`` or what `collate_func` makes.

        `PYDMEDRESERVED_DLRETURNEDLASTINSTANCE` when there is none any more. LoaderError: a hook
        failed, with patient and cause. TimeoutError: none came within so many seconds.
        """
        if self._ended:
            return PYDMEDRESERVED_DLRETURNEDLASTINSTANCE
        self._started = True
        try:
            taken = self._loader.get(timeout)
        except StopIteration:
            self._ended = True
            return PYDMEDRESERVED_DLRETURNEDLASTINSTANCE
        return self._collated(taken)

    def _collated(self, taken: tuple[Any, Any, Any]) -> Any:
        chunks = taken[0]
        self._remember(chunks)
        collate = self.collate_func
        if collate is None and type(self).default_collate is not LightDL.default_collate:
            collate = self.default_collate
        # in this thread, as PyDmed does it: torch's numbers are those of the script
        if collate is not None:
            with self._numbers:
                return collate(chunks, self.tfms)
        if self.tfms is None:
            return self.default_collate(chunks, None)
        with self._numbers:
            made = [self.tfms(chunk.data) for chunk in chunks]
        return batch_of(made, chunks)  # nothing random: collectors need not wait for it

    @staticmethod
    def default_collate(
        list_smallchunks: list[SmallChunk], tfms: Callable[[Any], Any] | None
    ) -> Any:
        """``(x, list_patients, list_smallchunks)``: what `tfms` makes of each, stacked.

        The small chunks have no data any more.
        """
        made = [c.data if tfms is None else tfms(c.data) for c in list_smallchunks]
        return batch_of(made, list_smallchunks)

    def pause_loading(self) -> None:
        """End it, as PyDmed's does: nothing can be resumed. Idempotent."""
        self._ended = True
        self.book.close()
        self._loader.close()
        self.flush_log()

    def is_dl_running(self) -> bool:
        """Whether batches may come: after `start`, until the last was taken or `pause_loading`."""
        return self._is_running()

    def _is_running(self) -> bool:
        return self._started and not self._ended

    def _ready(self) -> int:
        ready = self._loader.stats().batches_ready if self._is_running() else 0
        return int(ready) * self.batch_size

    # -- talking to it ----------------------------------------------------------------------

    def send_message(self, patient: Patient, message: Any) -> None:
        """Tell the hooks of a patient something: ``last_message_fromroot`` when it is loaded next.

        The last one counts, once. Big chunks are loaded ahead: one that is being loaded by now does
        not hear of it. UsageError: there is no such patient.
        """
        if str(patient.int_uniqueid) not in self._patients:
            raise UsageError(f"send_message: {patient!r} is not in {self.dataset!r}")
        self.book.send(patient, message)

    def log(self, str_input: str) -> None:
        """Write a line to the log (`logging`, "daskdmed.compat.pydmed") and to `fname_logfile`."""
        _log.info("%s", str_input)
        if self._logfile is None:
            return
        line = f"{datetime.now().isoformat(timespec='seconds')} {str_input}"
        with self._logging:
            try:
                with self._logfile.open("a", encoding="utf-8") as file:
                    file.write(line if line.endswith("\n") else f"{line}\n")
            except OSError as error:
                raise StoreError(f"{self._logfile}: cannot be written: {error}") from error

    def flush_log(self) -> None:
        """PyDmed's: lines are in the file as soon as they are written."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.dataset.str_dsname!r}: {self._loader!r}>"

    def _repr_html_(self) -> str:
        shown: str = self._loader._repr_html_()
        return shown

    def _remember(self, chunks: list[SmallChunk]) -> None:
        for chunk in chunks:
            if chunk.patient is None:
                continue
            bare = SmallChunk(
                None, chunk.dict_info_of_smallchunk, chunk.dict_info_of_bigchunk, chunk.patient
            )
            key = chunk.patient.int_uniqueid
            self._seen.setdefault(key, deque(maxlen=_REMEMBERED)).append(bare)

    def visualize(
        self, func_visualize_one_patient: Callable[[Patient, list[SmallChunk]], Any]
    ) -> None:
        """Call ``f(patient, list_smallchunks)`` for each patient with what `get` gave of it so far.

        Without data, the last 10 000 of each.
        """
        for patient in self.dataset.list_patients:
            func_visualize_one_patient(patient, list(self._seen.get(patient.int_uniqueid, ())))


def _capacity(slots: int) -> int:
    """Big chunks that a budget must hold for so many to be drawn from; the rest are read ahead."""
    most = slots + 1
    while most - max(1, most // 4) < slots:
        most += 1
    return most


def _smallchunk(answer: Any, patient: Patient) -> SmallChunk:
    return answer if isinstance(answer, SmallChunk) else SmallChunk(answer, {}, {}, patient)
