"""Datasets whose pixels say where they are."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from daskdmed import Dataset, Patient, Record


def coordinate_array(height=1500, width=1300, number=0, chunks=512):
    """(y, x, 3) uint8: y mod 251, x mod 241, and the patient's number."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([y % 251, x % 241, np.full_like(y, number)], -1).astype("u1")
    return da.from_array(pixels, chunks=(chunks, chunks, 3))


def coordinate_dataset(n=4, **kwargs):
    return Dataset(
        "coordinates",
        [
            Patient(
                f"p{i}", {"wsi": Record(array=coordinate_array(number=i, **kwargs))}, {"y": i % 2}
            )
            for i in range(n)
        ],
    )


def assert_true_to_place(x, smallchunks):
    """Every crop holds the pixels of the place that it claims."""
    data = np.moveaxis(np.asarray(x), 1, -1)
    for row, chunk in zip(data, smallchunks, strict=True):
        y, x0 = chunk.origin
        h, w = row.shape[:2]
        assert np.array_equal(
            row[..., 0], np.broadcast_to(((y + np.arange(h)) % 251)[:, None], (h, w))
        )
        assert np.array_equal(
            row[..., 1], np.broadcast_to(((x0 + np.arange(w)) % 241)[None], (h, w))
        )
        assert (row[..., 2] == int(str(chunk.patient.id)[1:])).all()
        assert chunk.location == (x0, y)
        assert np.array_equal(chunk.data, row)
        big = chunk.bigchunk
        assert all(
            o <= c and c + s <= o + e
            for o, e, c, s in zip(big.origin, big.shape, chunk.origin, (h, w), strict=True)
        )


SMALL = {
    "smallchunk_size": 64,
    "batch_size": 16,
    "bigchunk_size": 512,
    "resident": "8 MiB",
    "smallchunks_per_bigchunk": 20,
}


def collect(loader, n):
    """The first n batches: pixels, patient ids and origins."""
    out = []
    for _ in range(n):
        x, patients, chunks = next(loader)
        out.append((x.numpy().copy(), [p.id for p in patients], chunks.origins.copy()))
    return out


def assert_same_batches(a, b):
    assert len(a) == len(b)
    for (xa, pa, oa), (xb, pb, ob) in zip(a, b, strict=True):
        assert pa == pb
        assert np.array_equal(oa, ob)
        assert np.array_equal(xa, xb)


@pytest.fixture(scope="session")
def dataset():
    return coordinate_dataset()
