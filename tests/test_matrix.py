"""Every entry point takes the same images, and refuses the same in the same words."""

from __future__ import annotations

from uuid import uuid4

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

import daskdmed
from daskdmed import Dataset, Patient, Record, open_slide
from daskdmed.cohort.sources import images_of
from daskdmed.errors import DatasetError, UsageError
from daskdmed.samples import make_slide
from daskdmed.store.export.slides import slide_to_ome_zarr


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


def second_name(path):
    other = path.with_name("two.ome.tif")
    if not other.exists():
        other.hardlink_to(path)
    return other


def given(kind, path, pixels, client):
    """The same picture as users may have it, and the ids that it gets."""
    record = Record(path)
    patients = [Patient("p", {"wsi": record}), Patient("q", {"wsi": record})]
    lazy = da.from_array(pixels, chunks=(64, 192, 3))
    return {
        "dataset": lambda: (Dataset("d", patients), ["p", "q"]),
        "patient": lambda: (patients[0], ["p"]),
        "patients": lambda: (patients, ["p", "q"]),
        "paths": lambda: ([path, second_name(path)], ["one", "two"]),
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
    "dataset", "patient", "patients", "paths", "record", "slide", "view", "path", "text", "dask",
    "numpy", "zarr", "persisted", "list",
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


def brightness(windows):
    return windows.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


def by_id(found, source):
    """Results of a collection have ids; that of one image is bare."""
    return found if isinstance(found, dict) else {id_of(source): found}


def id_of(source):
    return images_of(source)[0].key


def heatmap(source, client=None):
    return by_id(daskdmed.heatmap(source, brightness, kernel_size=64), source)


def predict(source, client=None):
    found = daskdmed.predict(source, lambda w: w.mean(axis=-1), kernel_size=64, post="uint8")
    return by_id(found, source)


def infer(source, client=None):
    scans = daskdmed.infer(source, lambda w: w.mean(axis=-1) / 255, kernel_size=64, post="uint8")
    return {inputs["patient_id"]: outputs["y_pred"] for inputs, outputs in scans}


def tissue_masks(source, client=None):
    found = daskdmed.tissue_masks(source, downsample=8, cache=False, client=client)
    return {key: mask.data for key, mask in found.items()}


def tissue_mask(source, client=None):
    return by_id(daskdmed.tissue_mask(source, downsample=8, cache=False).data, source)


def overlay(source, client=None):
    return by_id(daskdmed.plot.overlay(source, np.eye(4)).axes[0].images[0].get_array(), source)


def to_ome_zarr(source, client=None):
    slide = slide_to_ome_zarr(source, f"memory://{uuid4().hex}.ome.zarr")
    return by_id(slide.to_dask(), source)


#: of every image of a collection
MANY = [lightdl, sliding, advise, heatmap, predict, infer, tissue_masks]
#: of one image
ONE = [tissue_mask, overlay, to_ome_zarr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", MANY)
def test_all_take_the_same_images(entry, kind, path, pixels, client):
    source, ids = given(kind, path, pixels, client)
    found = entry(source, client)
    if found is None:
        return
    assert list(found) == ids
    first = next(iter(found.values()))
    for values in found.values():
        np.testing.assert_array_equal(np.asarray(values), np.asarray(first))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ONE)
def test_what_takes_one_image_takes_each_of_these(entry, kind, path, pixels, client):
    source, ids = given(kind, path, pixels, client)
    if len(ids) > 1:
        with pytest.raises(UsageError, match=f"takes one image, got {len(ids)}"):
            entry(source)
    elif entry is to_ome_zarr and kind in ("view", "dask", "numpy", "zarr", "persisted"):
        with pytest.raises(UsageError, match="copies the levels of a slide"):
            entry(source)
    else:
        assert list(entry(source)) == ids


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
@pytest.mark.parametrize("entry", MANY + ONE)
def test_all_refuse_the_same_in_the_same_words(entry, nonsense, error, words):
    with pytest.raises(error, match=words) as caught:
        entry(nonsense)
    if not isinstance(nonsense, Dataset):
        assert str(caught.value).startswith("images are given as a Dataset, a Patient, a Record,")
