"""PyDmed's own metric, patches a second that `LightDL.get` gives, in the setting of its authors.

Hooks of a script's own, through `daskdmed.compat.pydmed`: five big chunks of 5000 x 5000 at a time,
of 20 patients, of which small chunks of 224 x 224 x 3 are cropped; batches of 10 without
transforms. Big chunks are ready-made, so that nothing is measured but the way of a small chunk
from its hook to the script. Beside it, on the same arrays in the same round, what bounds it:
NumPy that copies crops, and `daskdmed.LightDL` that crops by itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import inputs
import numpy as np
from limits import gather_rate
from scenarios import median_of

import daskdmed

#: patches per second of PyDmed 3b7f4a7 in this setting on two cores: the best of what was seen
ORIGINAL = 229
PATIENTS, LOADERS, SIDE, CROP, BATCH, DRAWS = 20, 5, 5000, 224, 10, 512


@dataclass(frozen=True)
class Hooks:
    """Patches per second, ratios to limits of the same round, and seconds to the first batch.

    `cpu`: microseconds of CPU per patch, of all threads together.
    """

    rate: float
    to_gather: float
    to_plain: float
    first: float
    cpu: float

    @property
    def to_original(self) -> float:
        """How many times as fast as the original."""
        return self.rate / ORIGINAL


def measure(seconds: float, rounds: int = 3) -> Hooks:
    """All of it, in interleaved rounds."""
    # written all over: pages that never were are one page of zeros, which stays in the cache
    big = np.full((min(SIDE, inputs.side()),) * 2 + (3,), 1, np.uint8)

    def once(seed: int) -> tuple[float, ...]:
        gather = gather_rate(CROP, BATCH, len(big), LOADERS)
        plain = _plain(big, seconds, seed)
        rate, first, cpu = _hooks(big, seconds, seed)
        return rate, rate / gather, rate / plain, first, cpu

    return Hooks(*median_of(rounds, once))


def _script(big: np.ndarray, seed: int) -> Any:
    """A script's dataloader, as PyDmed's tutorial writes it."""
    from daskdmed.compat.pydmed.lightdl import (
        BigChunk,
        BigChunkLoader,
        LightDL,
        SmallChunk,
        SmallChunkCollector,
        get_default_constglobinf,
    )
    from daskdmed.compat.pydmed.utils.data import Dataset, Patient

    room = len(big) - CROP

    class Loader(BigChunkLoader):
        def extract_bigchunk(self, last_message_fromroot: Any) -> Any:
            return BigChunk(data=big, dict_info_of_bigchunk={"x": 0, "y": 0}, patient=self.patient)

    class Collector(SmallChunkCollector):
        def extract_smallchunk(
            self, call_count: int, bigchunk: Any, last_message_fromroot: Any
        ) -> Any:
            x, y = np.random.randint(0, room), np.random.randint(0, room)  # noqa: NPY002
            return SmallChunk(
                data=bigchunk.data[y : y + CROP, x : x + CROP, :],
                dict_info_of_smallchunk={"x": x, "y": y},
                dict_info_of_bigchunk=bigchunk.dict_info_of_bigchunk,
                patient=bigchunk.patient,
            )

    settings = get_default_constglobinf()
    settings.update(num_bigchunkloaders=LOADERS, smallchunks_per_bigchunk=DRAWS, seed=seed)
    patients = Dataset("benchmark", [Patient(i, {}) for i in range(PATIENTS)])
    return LightDL(patients, Loader, Collector, settings, BATCH, None)


def _hooks(big: np.ndarray, seconds: float, seed: int) -> tuple[float, float, float]:
    """(patches per second in the steady state, seconds to the first batch, CPU per patch)."""
    loader = _script(big, seed)
    began = time.perf_counter()
    loader.start()
    try:
        loader.get()
        first = time.perf_counter() - began
        for _ in range(2 * DRAWS // BATCH):  # until big chunks rotate
            loader.get()
        used = time.process_time()
        rate, patches = _rate(loader.get, seconds)
        return rate, first, (time.process_time() - used) / patches * 1e6
    finally:
        loader.pause_loading()


def _plain(big: np.ndarray, seconds: float, seed: int) -> float:
    """Patches per second of daskdmed's own cropping."""
    records = {"wsi": daskdmed.Record(array=big)}
    data = daskdmed.Dataset(
        "benchmark", [daskdmed.Patient(f"patient-{i}", records) for i in range(PATIENTS)]
    )
    with daskdmed.LightDL(
        data,
        smallchunk_size=CROP,
        batch_size=BATCH,
        bigchunk_size=len(big),
        smallchunks_per_bigchunk=DRAWS,
        resident=(LOADERS + 2) * big.nbytes,
        seed=seed,
    ) as loader:
        for _ in range(2 * DRAWS // BATCH):
            loader.get()
        return _rate(loader.get, seconds)[0]


def _rate(get: Any, seconds: float) -> tuple[float, int]:
    began, patches = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        patches += len(get()[0])
    return patches / (time.perf_counter() - began), patches
