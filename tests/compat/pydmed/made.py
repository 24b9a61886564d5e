"""What tests of PyDmed's names have in common: patients whose "slides" are arrays, and hooks."""

import random

import numpy as np

from daskdmed.compat.pydmed.lightdl import (
    BigChunk,
    BigChunkLoader,
    SmallChunk,
    SmallChunkCollector,
    get_default_constglobinf,
)
from daskdmed.compat.pydmed.utils.data import Dataset, Patient

SIDE = 200


def dataset(count=6, labels=2):
    """Each image holds its patient's number in channel 0, and places in the others."""
    patients = []
    for number in range(count):
        y, x = np.indices((SIDE, SIDE), dtype=np.uint8)
        image = np.stack([np.full_like(y, number), y, x], axis=-1)
        patients.append(Patient(number, {"H&E": image, "label": number % labels}))
    return Dataset("made", patients)


def settings(**changed):
    """Small ones."""
    return {
        **get_default_constglobinf(),
        "num_bigchunkloaders": 3,
        "smallchunks_per_bigchunk": 12,
        "bytes_of_bigchunk": 80_000,
        **changed,
    }


class Loader(BigChunkLoader):
    """A random 100 x 100 pixels, as in PyDmed's tutorial."""

    def extract_bigchunk(self, arg_msg):
        image = self.patient.dict_records["H&E"]
        x, y = np.random.randint(0, SIDE - 100), random.randrange(SIDE - 100)
        return BigChunk(
            data=image[y : y + 100, x : x + 100],
            dict_info_of_bigchunk={"x": int(x), "y": y},
            patient=self.patient,
        )


class Collector(SmallChunkCollector):
    """A random 16 x 16 pixels."""

    def extract_smallchunk(self, call_count, bigchunk, last_message_fromroot):
        x, y = np.random.randint(0, 84), np.random.randint(0, 84)
        return SmallChunk(
            data=bigchunk.data[y : y + 16, x : x + 16],
            dict_info_of_smallchunk={"x": int(x), "y": int(y), "call": call_count},
            dict_info_of_bigchunk=bigchunk.dict_info_of_bigchunk,
            patient=bigchunk.patient,
        )
