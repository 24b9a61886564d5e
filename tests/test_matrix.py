"""Every entry point takes the same images, and refuses the same in the same words."""

from __future__ import annotations

from uuid import uuid4

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

import daskdmed
from daskdmed import Dataset, Patient, Record, open_slide, open_volume
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


VOXELS = np.random.default_rng(0).integers(0, 255, (8, 12, 16), dtype=np.uint8)
CUBE = (4, 6, 8)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("matrix") / "scan.npy"
    np.save(path, VOXELS)
    return path


def given_volume(kind, path):
    """The same volume as users may have it, and the ids that it gets."""
    record = Record(path, spacing=(3, 1, 1))
    return {
        "dataset": lambda: (Dataset("d", [Patient("p", {"wsi": record})]), ["p"]),
        "record": lambda: (record, ["scan"]),
        "volume": lambda: (record.open(), ["scan"]),
        "opened": lambda: (open_volume(path), ["scan"]),
        "view": lambda: (open_volume(path).view(), ["scan"]),
        "path": lambda: (path, ["scan"]),
        "list": lambda: ([open_volume(path), VOXELS], ["scan", "1"]),
        "array": lambda: (Record(array=VOXELS, spacing=(3, 1, 1)), ["image"]),
    }[kind]()


def lightdl_3d(source):
    sizes = {"smallchunk_size": CUBE, "batch_size": 2, "resident": "1 MiB"}
    with daskdmed.LightDL(source, **sizes) as loader:
        x, _, _ = loader.get()
        assert x.shape == (2, 1, *CUBE)
        return dict.fromkeys(loader.dataset.ids)


def sliding_3d(source):
    found: dict[str, list[float]] = {}
    with daskdmed.SlidingWindowDL(source, kernel_size=CUBE) as loader:
        for x, patients, _ in loader:
            for patient, window in zip(patients, x, strict=True):
                found.setdefault(patient.key, []).append(float(window.float().mean()))
    return {key: np.reshape(means, (2, 2, 2)) for key, means in found.items()}


def means_3d(windows):
    return windows.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


def infer_3d(source):
    scans = daskdmed.infer(source, lambda w: w, kernel_size=CUBE)
    return {inputs["patient_id"]: block_means(outputs["y_pred"]) for inputs, outputs in scans}


def block_means(array):
    return np.asarray(array).reshape(2, 4, 2, 6, 2, 8).mean((1, 3, 5))


def predict_3d(source):
    found = by_id(daskdmed.predict(source, lambda w: w, kernel_size=CUBE), source)
    return {key: block_means(values) for key, values in found.items()}


def advise_3d(source):
    found = daskdmed.advise(source, smallchunk_size=CUBE, draws=[4], blocks=1, threads=1)
    return dict.fromkeys(id_ for id_ in ids_of(source) if found.choices)


def ids_of(source):
    return [image.key for image in images_of(source)]


def tissue_masks_3d(source):
    found = daskdmed.tissue_masks(source, method=lambda p: p > 100, spatial_ndim=3)
    return {key: block_means(mask.data.astype(float)) for key, mask in found.items()}


VOLUMES = {
    "lightdl": lightdl_3d,
    "sliding": sliding_3d,
    "advise": advise_3d,
    "heatmap": lambda s: by_id(daskdmed.heatmap(s, means_3d, kernel_size=CUBE), s),
    "predict": predict_3d,
    "infer": infer_3d,
    "tissue_masks": tissue_masks_3d,
}


@pytest.mark.parametrize(
    "kind", ["dataset", "record", "volume", "opened", "view", "path", "list", "array"]
)
@pytest.mark.parametrize("entry", VOLUMES)
def test_all_take_volumes_where_they_take_images(entry, kind, scan):
    source, ids = given_volume(kind, scan)
    found = VOLUMES[entry](source)
    assert list(found) == ids
    values = VOXELS > 100 if entry == "tissue_masks" else VOXELS
    for means in found.values():
        if means is not None:
            np.testing.assert_allclose(means, block_means(values), rtol=1e-5)


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
