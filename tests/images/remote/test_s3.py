"""Slides and volumes from a server that speaks as S3 does."""

from __future__ import annotations

import importlib.util
import logging
import pickle

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL, open_slide
from daskdmed.errors import (
    ChangedImageError,
    ImageNotFoundError,
    ImagePermissionError,
    RemoteError,
    UnsupportedImageError,
)
from daskdmed.images.filecache import cache
from daskdmed.images.remote.blocks import blocks
from daskdmed.images.remote.counting import count_requests

for needed in ("s3fs", "moto"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")
if importlib.util.find_spec("flask") is None:
    pytest.skip("moto[s3], flask and flask-cors are not installed", allow_module_level=True)

SECRET = "a-secret-of-sixteen"
WHOLE = ((0, 0), 0, (1024, 1024))


@pytest.fixture(scope="module")
def endpoint():
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def access(endpoint):
    return {
        "key": "an-access-key",
        "secret": SECRET,
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},
    }


@pytest.fixture(scope="module")
def bucket(access, slide):
    fs = fsspec.filesystem("s3", **access)
    fs.call_s3("create_bucket", Bucket="slides")
    fs.pipe_file("slides/a.tif", slide[0])
    return fs


@pytest.fixture(scope="module")
def local(slide, tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "a.tif"
    path.write_bytes(slide[0])
    return str(path)


def test_a_slide_from_s3(bucket, access, slide):
    with count_requests() as count:
        opened = open_slide("s3://slides/a.tif", storage_options=access)
    assert count.requests <= 3
    cache.clear()
    blocks.clear()
    opened = pickle.loads(pickle.dumps(opened))
    assert np.array_equal(opened.read_region(*WHOLE), slide[1])
    assert SECRET not in repr(opened) + repr(opened.key) + opened.token


def test_what_is_not_there_or_not_allowed(bucket, access):
    for name in ("slides/b.tif", "elsewhere/a.tif"):
        with pytest.raises(ImageNotFoundError, match="NoSuch"):
            open_slide(f"s3://{name}", storage_options=access)
    with pytest.raises(UnsupportedImageError, match="bucket"):
        open_slide("s3://slides", storage_options=access)


def test_an_object_that_is_replaced_is_an_error(bucket, access, slide, other):
    bucket.pipe_file("slides/c.tif", slide[0])
    opened = open_slide("s3://slides/c.tif", storage_options=access)
    blocks.clear()
    bucket.pipe_file("slides/c.tif", other[0])
    with pytest.raises(ChangedImageError, match="open it again"):
        opened.read_region(*WHOLE, tile_error="fill")
    again = open_slide("s3://slides/c.tif", storage_options=access)
    assert np.array_equal(again.read_region(*WHOLE), other[1])
    assert again.token != opened.token


@pytest.fixture
def failing(server):
    """An endpoint that answers every request with an error of S3's."""
    server.behave(always=503)
    return {
        "key": "an-access-key",
        "secret": SECRET,
        "client_kwargs": {
            "endpoint_url": server.url("").rstrip("/"),
            "region_name": "us-east-1",
        },
    }


def test_a_server_of_s3_that_fails_is_asked_as_often_as_told(failing, server):
    with dask.config.set({"daskdmed.images.remote.tries": 3}):
        with pytest.raises(RemoteError, match="3 tries") as caught:
            open_slide("s3://slides/a.tif", storage_options=failing)
    assert caught.value.tries == 3
    assert len(server.requests) == 3  # the client's own attempts do not multiply them
    assert SECRET not in str(caught.value)
    server.behave(always=403)
    with pytest.raises(ImagePermissionError, match="storage_options"):
        open_slide("s3://slides/a.tif", storage_options=failing)


def cohort(uri, options=None):
    return Dataset("d", [Patient("p", {"wsi": Record(uri, storage_options=options)})])


def batches(dataset, **more):
    loader = LightDL(
        dataset,
        smallchunk_size=64,
        batch_size=8,
        bigchunk_size=256,
        resident="2 MiB",
        smallchunks_per_bigchunk=8,
        epoch_length=3,
        seed=3,
        **more,
    )
    with loader:
        return [x.numpy() for x, _, _ in loader]


def test_a_loader_gives_the_same_from_s3_as_from_a_file(bucket, access, local):
    pytest.importorskip("torch")
    here, there = batches(cohort(local)), batches(cohort("s3://slides/a.tif", access))
    assert len(here) == 3
    # the ids of records are of their places, and what is drawn of them: the pixels are the same
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def mean(windows):
    return windows.mean(axis=(1, 2, 3), dtype=np.float64)


def heat(image, out, **more):
    result = daskdmed.heatmap(image, mean, kernel_size=64, stride=32, out=out, **more)
    return np.asarray(result)


def test_a_heatmap_is_the_same_from_s3_as_from_a_file(bucket, access, local, tmp_path):
    here = heat(local, tmp_path / "a.zarr")
    with count_requests() as count:
        there = heat(open_slide("s3://slides/a.tif", storage_options=access), tmp_path / "b.zarr")
    assert np.array_equal(here, there, equal_nan=True)
    assert count.requests <= 12


def test_all_windows_are_the_same_from_s3_as_from_a_file(bucket, access, local):
    pytest.importorskip("torch")

    def windows(dataset):
        with SlidingWindowDL(dataset, kernel_size=128, stride=128, batch_size=16) as loader:
            return [x.numpy() for x, *_ in loader]

    here, there = windows(cohort(local)), windows(cohort("s3://slides/a.tif", access))
    assert sum(map(len, here)) == 64
    assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))


def test_processes_of_a_cluster_read_with_the_options_of_the_slide(bucket, access, local, tmp_path):
    from distributed import Client, LocalCluster

    lazy = open_slide("s3://slides/a.tif", storage_options=access).to_dask(chunks=512)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        assert np.array_equal(
            lazy.compute(), open_slide(local).to_dask(chunks=512).compute(scheduler="sync")
        )
        pytest.importorskip("torch")
        record = cohort("s3://slides/a.tif", access)
        here = batches(cohort(local))
        assert all(
            np.array_equal(a, b) for a, b in zip(here, batches(record, client=client), strict=True)
        )


def test_ome_zarr_from_s3(bucket, access, files, values):
    for name, data in files.items():
        bucket.pipe_file(f"slides/{name}", data)
    opened = open_slide("s3://slides/i.zarr", storage_options=access)
    cache.clear()
    opened = pickle.loads(pickle.dumps(opened))
    assert opened.backend == "zarr"
    expected = values.transpose(1, 2, 0)
    assert np.array_equal(opened.read_region((0, 0), 0, (96, 64)), expected)
    lazy = opened.to_dask(chunks=32)
    assert isinstance(lazy, da.Array)
    assert np.array_equal(lazy.compute(scheduler="threads"), expected)
