from __future__ import annotations

import numpy as np
import pytest

from daskdmed import Dataset, Patient, Record
from daskdmed.cohort.sources import Request, images_of
from daskdmed.errors import DatasetError, GeometryError, LoaderError, UsageError
from daskdmed.persistence.catalogue import Geometry, Target, build


def dataset(*shapes):
    return Dataset(
        "d",
        [
            Patient(f"p{i}", {"x": Record(array=np.zeros(s, "u1"))}, {"y": i})
            for i, s in enumerate(shapes)
        ],
    )


GEOMETRY = Geometry.of(32, 100)


def test_entries_are_in_dataset_order_with_their_facts():
    catalogue = build(images_of(dataset((200, 300, 3), (64, 64, 3))), GEOMETRY)
    assert catalogue.population.blocks == (6, 1)
    assert catalogue.population.patients == ("p0", "p1")
    assert catalogue.population.labels[1]["y"] == 1
    assert catalogue.block_bytes == 100 * 100 * 3
    assert catalogue.channels == (3,)
    assert catalogue.dtype == np.uint8


def test_target_counts_in_bytes_and_must_match():
    patient = Patient(
        "a",
        {
            "x": Record(array=np.zeros((90, 90, 3), "u1")),
            "m": Record(array=np.zeros((90, 90), "u2")),
        },
    )
    catalogue = build(images_of(patient, Request("x")), GEOMETRY, target=Target("m"))
    assert catalogue.block_bytes == 90 * 90 * (3 + 2)


@pytest.mark.parametrize(
    ("small", "big", "error"),
    [
        (0, 10, UsageError),
        (1.5, 10, UsageError),
        (20, 10, GeometryError),
        ((4, 4), (8, 8, 8), UsageError),
    ],
)
def test_geometry_refuses(small, big, error):
    with pytest.raises(error, match="smallchunk_size|bigchunk_size"):
        Geometry.of(small, big)


def test_a_missing_record_names_the_patient():
    with pytest.raises((DatasetError, LoaderError), match="p0"):
        build(images_of(dataset((90, 90, 3)), Request("nope")), GEOMETRY)


def test_skipping_keeps_the_rest():
    catalogue = build(images_of(dataset((10, 10, 3), (90, 90, 3))), GEOMETRY, on_error="skip")
    assert [str(e.patient.id) for e in catalogue.entries] == ["p1"]
    assert catalogue.failures[0].patient == "p0"
    assert "(10, 10)" in catalogue.failures[0].message
