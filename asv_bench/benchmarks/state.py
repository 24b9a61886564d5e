"""What remembering patients costs: a collector with states, and with feedback, beside one without.

The limit is the same collector without states: what is on top of it is pickling states, one
snapshot a batch, and on a cluster a round trip a batch.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import inputs
import scenarios

from benchmarks import Once, requires

BATCH = 64


def anywhere(bigchunk, context, rng):
    """A collector that keeps nothing."""
    return tuple(int(v) for v in rng.integers(512, size=2))


def counting(bigchunk, context, rng):
    """A collector that keeps a little."""
    context.state["draws"] = context.state.get("draws", 0) + 1
    for told in context.feedback:
        context.state["told"] = told
    return anywhere(bigchunk, context, rng)


counting.stateful = True


class PatientStates(Once):
    """Patches per second of 224 x 224, in-process and behind TCP."""

    params = [["nothing", "state", "feedback"], ["in-process", "tcp"]]
    param_names = ["kept", "where"]

    def setup(self, kept: str, where: str) -> None:
        requires("torch")
        self._stack = ExitStack()
        self._client = None
        if where == "tcp":
            self._client = self._stack.enter_context(scenarios.local_cluster(processes=False))
        self._paths = inputs.slides("mixed", 2)

    def teardown(self, kept: str, where: str) -> None:
        self._stack.close()

    def track_patches(self, kept: str, where: str) -> float:
        from daskdmed import Dataset, LightDL, Patient, Record

        patients = [Patient(str(i), {"wsi": Record(p)}) for i, p in enumerate(self._paths)]
        with LightDL(
            Dataset("state", patients),
            batch_size=BATCH,
            bigchunk_size=1024,
            resident="64 MiB",
            smallchunk_collector=anywhere if kept == "nothing" else counting,
            client=self._client,
        ) as loader:
            next(loader)
            batches, began = 0, time.perf_counter()
            while batches < 2 or time.perf_counter() - began < inputs.seconds():
                _, who, _ = next(loader)
                batches += 1
                if kept == "feedback":
                    for patient in {p.id for p in who}:
                        loader.feedback(patient, [0.5] * 16)
            return batches * BATCH / (time.perf_counter() - began)

    track_patches.unit = "patches/s"
