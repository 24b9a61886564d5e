"""Every entry point takes the same images, and refuses the same in the same words."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

import daskdmed
from daskdmed import Dataset, Patient, Record, open_slide
from daskdmed.errors import DatasetError, UsageError
from daskdmed.samples import make_slide


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("matrix") / "one.ome.tif"
    return make_slide(path, size=(192, 128), levels=1).path


@pytest.fixture(scope="module")
def pixels(path):
    return open_slide(path).to_dask().compute()


def given(kind, path, pixels, client):
    """The same picture as users may have it, and the ids that it gets."""
    record = Record(path)
    patients = [Patient("p", {"wsi": record}), Patient("q", {"wsi": record})]
    lazy = da.from_array(pixels, chunks=(64, 192, 3))
    return {
        "dataset": lambda: (Dataset("d", patients), ["p", "q"]),
        "patient": lambda: (patients[0], ["p"]),
        "patients": lambda: (patients, ["p", "q"]),
        "record": lambda: (record, ["one"]),
        "slide": lambda: (open_slide(path), ["one"]),
        "view": lambda: (open_slide(path).view(), ["one"]),
        "path": lambda: (path, ["one"]),
        "text": lambda: (str(path), ["one"]),
        "dask": lambda: (lazy, ["image"]),
        "numpy": lambda: (pixels, ["image"]),
        "zarr": lambda: (zarr.array(pixels), ["image"]),
        "persisted": lambda: (client.persist(lazy), ["image"]),
        "list": lambda: ([pixels, record, lazy], ["0", "one", "2"]),
    }[kind]()


KINDS = [
    "dataset", "patient", "patients", "record", "slide", "view", "path", "text", "dask", "numpy",
    "zarr", "persisted", "list",
]  # fmt: skip


def lightdl(source, client=None):
    sizes = {
        "smallchunk_size": 32,
        "bigchunk_size": 64,
        "smallchunks_per_bigchunk": 4,
        "resident": 400_000,
    }
    with daskdmed.LightDL(source, batch_size=12, client=client, **sizes) as loader:
        x, patients, _ = loader.get()
        assert x.shape == (12, 3, 32, 32)
        assert {p.key for p in patients} <= set(loader.dataset.ids)
        return dict.fromkeys(loader.dataset.ids)


def advise(source, client=None):
    found = daskdmed.advise(
        source,
        smallchunk_size=32,
        bigchunk_sizes=[64],
        draws=[4],
        blocks=1,
        threads=1,
        resident=400_000,
    )
    assert found.choices[0].bigchunk_size == (64, 64)
    return


def sliding(source, client=None):
    found: dict[str, list[float]] = {}
    with daskdmed.SlidingWindowDL(source, kernel_size=64, client=client) as loader:
        for x, patients, _ in loader:
            for patient, window in zip(patients, x):
                found.setdefault(patient.key, []).append(float(window.float().mean()))
    return found


#: of every image of a collection
MANY = [lightdl, sliding, advise]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "persisted"])
@pytest.mark.parametrize("entry", MANY)
def test_all_take_the_same_images(entry, kind, path, pixels, client):
    source, ids = given(kind, path, pixels, client)
    found = entry(source, client)
    if found is not None:
        assert list(found) == ids
        for values in found.values():
            if values is not None:
                np.testing.assert_array_equal(values, next(iter(found.values())))


@pytest.mark.parametrize(
    ("nonsense", "error", "words"),
    [
        (None, UsageError, "got None"),
        (5, UsageError, "got 5"),
        ({"p": "slide.svs"}, UsageError, "got dict"),
        ("", UsageError, "got ''"),
        ([5], UsageError, "got item 0 of the list, 5"),
        ([], DatasetError, "got an empty list"),
        (Dataset("d", []), DatasetError, "dataset 'd' has no patients; check the folder"),
    ],
)
@pytest.mark.parametrize("entry", MANY)
def test_all_refuse_the_same_in_the_same_words(entry, nonsense, error, words):
    with pytest.raises(error, match=words) as caught:
        entry(nonsense)
    if not isinstance(nonsense, Dataset):
        assert str(caught.value).startswith("images are given as a Dataset, a Patient, a Record,")
