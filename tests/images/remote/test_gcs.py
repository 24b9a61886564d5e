"""Slides from a server that speaks as Google's storage does: its JSON API, as it is described."""

from __future__ import annotations

import json
import pickle
from urllib.parse import quote

import dask
import numpy as np
import pytest
from zarr.core.sync import sync

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record, open_slide
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

gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
WHOLE = ((0, 0), 0, (1024, 1024))
SECRET = "a-secret-of-sixteen"


def objects(bucket, files):
    """What the API answers, by its paths: the contents of objects, and facts about them."""
    found = {}
    for name, data in files.items():
        place, at = f"b/{bucket}/o", quote(name, safe="")
        facts = {"name": name, "bucket": bucket, "size": str(len(data)), "generation": "1"}
        found[f"download/storage/v1/{place}/{at}?alt=media"] = data
        found[f"storage/v1/{place}/{at}"] = json.dumps(facts).encode()
    return found


@pytest.fixture(autouse=True)
def _plain_buckets(monkeypatch):
    """The kind of a bucket is asked by gRPC, which the server here does not speak."""
    if not hasattr(gcsfs.GCSFileSystem, "_get_bucket_type"):  # older ones do not ask
        return

    async def plain(fs, bucket):
        from gcsfs.extended_gcsfs import BucketType

        return BucketType.NON_HIERARCHICAL

    monkeypatch.setattr(gcsfs.GCSFileSystem, "_get_bucket_type", plain)


@pytest.fixture
def google(server, slide):
    server.files = objects("slides", {"a/b c.tif": slide[0]})
    server.behave(generation=True)
    return server


@pytest.fixture
def access(google):
    return {"token": "anon", "project": "p", "endpoint_url": google.url("").rstrip("/")}


def content(name):
    return f"download/storage/v1/b/slides/o/{quote(name, safe='')}?alt=media"


def test_a_slide_from_google(google, access, slide):
    with count_requests() as count:
        opened = open_slide("gs://slides/a/b c.tif", storage_options=access)
    assert count.requests == len(google.requests) <= 3
    cache.clear()
    blocks.clear()
    opened = pickle.loads(pickle.dumps(opened))
    assert np.array_equal(opened.read_region(*WHOLE), slide[1])
    # nothing is asked but for ranges of the object
    assert {path for path, _ in google.requests} == {f"/{content('a/b c.tif')}"}
    assert all(span for _, span in google.requests)
    assert open_slide("gcs://slides/a/b c.tif", storage_options=access).dimensions == (1024, 1024)


def test_credentials_are_sent_and_not_shown(google, access, slide):
    credentials = pytest.importorskip("google.oauth2.credentials").Credentials(SECRET)
    google.behave(generation=True, token=f"Bearer {SECRET}")
    with pytest.raises(ImagePermissionError, match="storage_options"):
        open_slide("gs://slides/a/b c.tif", storage_options=access)
    opened = open_slide("gs://slides/a/b c.tif", storage_options={**access, "token": credentials})
    assert np.array_equal(opened.read_region(*WHOLE), slide[1])
    assert SECRET not in repr(opened) + repr(opened.key) + opened.token


def test_what_is_not_there(access):
    for name in ("slides/b.tif", "elsewhere/a.tif"):
        with pytest.raises(ImageNotFoundError, match="no such file"):
            open_slide(f"gs://{name}", storage_options=access)
    with pytest.raises(UnsupportedImageError, match="bucket"):
        open_slide("gs://slides", storage_options=access)


def test_an_object_that_is_replaced_is_an_error(google, access, other):
    opened = open_slide("gs://slides/a/b c.tif", storage_options=access)
    blocks.clear()
    google.files[content("a/b c.tif")] = other[0]
    with pytest.raises(ChangedImageError, match="open it again"):
        opened.read_region(*WHOLE, tile_error="fill")
    again = open_slide("gs://slides/a/b c.tif", storage_options=access)
    assert np.array_equal(again.read_region(*WHOLE), other[1])
    assert again.token != opened.token


def test_a_server_that_fails_is_asked_as_often_as_told(google, access):
    google.behave(always=503)
    with dask.config.set({"daskdmed.images.remote.tries": 3}):
        with pytest.raises(RemoteError, match="3 tries") as caught:
            open_slide("gs://slides/a/b c.tif", storage_options=access)
    assert caught.value.tries == 3
    assert len(google.requests) == 3  # the client's own attempts do not multiply them


def test_a_loader_and_a_heatmap_give_the_same_as_from_a_file(access, slide, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "a.tif"
    path.write_bytes(slide[0])
    told = (str(path), None), ("gs://slides/a/b c.tif", access)
    found = []
    for number, (uri, options) in enumerate(told):
        record = Record(uri, storage_options=options)
        with LightDL(
            Dataset("d", [Patient("p", {"wsi": record})]),
            smallchunk_size=64, batch_size=8, bigchunk_size=256, resident="2 MiB", epoch_length=2,
            smallchunks_per_bigchunk=8,
        ) as loader:  # fmt: skip
            batches = [x.numpy() for x, *_ in loader]
        heat = daskdmed.heatmap(
            record, lambda x: x.mean(axis=(1, 2, 3)), kernel_size=128, out=tmp_path / f"{number}"
        )
        found.append([*batches, np.asarray(heat)])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.fixture
def _closed_sessions():
    """gcsfs closes at exit what Zarr's event loop has opened, in another one, and tells of it."""
    yield
    for fs in gcsfs.GCSFileSystem._cache.values():
        if fs.asynchronous and fs._session is not None:
            sync(fs._session.close())


@pytest.mark.usefixtures("_closed_sessions")
def test_ome_zarr_from_google(google, access, files, values):
    google.files = objects("slides", files)
    opened = open_slide("gs://slides/i.zarr", storage_options=access)
    cache.clear()
    opened = pickle.loads(pickle.dumps(opened))
    assert opened.backend == "zarr"
    expected = values.transpose(1, 2, 0)
    assert np.array_equal(opened.read_region((0, 0), 0, (96, 64)), expected)
