"""Zarr behind URLs: asked again where that helps, and told from another image."""

from __future__ import annotations

import json
import pickle

import dask
import numpy as np
import pytest

from daskdmed import open_slide, open_volume
from daskdmed.errors import ChangedImageError, ImageNotFoundError, ImagePermissionError, RemoteError
from daskdmed.images.filecache import cache
from daskdmed.images.remote.counting import count_requests

WHOLE = ((0, 0), 0, (96, 64))


@pytest.fixture
def uri(server, files):
    server.files |= files
    return server.url("i.zarr")


def test_a_zarr_over_http(uri, server, values):
    opened = open_slide(uri)
    assert opened.mpp == (0.5, 0.5)
    cache.clear()
    opened = pickle.loads(pickle.dumps(opened))
    with count_requests() as count:
        assert np.array_equal(opened.read_region(*WHOLE), values.transpose(1, 2, 0))
    assert count.fetched > values.nbytes * 0.9
    with pytest.raises(ImageNotFoundError):
        open_slide(server.url("none.zarr"))


@pytest.mark.parametrize("failure", [503, "cut"])
def test_what_passes_is_tried_again(uri, server, values, failure):
    opened = open_slide(uri)
    server.behave(next=[failure] * 3)
    with count_requests() as count:
        assert np.array_equal(opened.read_region(*WHOLE), values.transpose(1, 2, 0))
    assert count.retries == 3
    server.behave(next=[failure] * 2)
    cache.clear()
    assert open_slide(uri) == opened


def test_what_lasts_is_an_error_and_no_chunk_is_painted_over(uri, server):
    opened = open_slide(uri)
    server.behave(always=503)
    with dask.config.set({"daskdmed.images.remote.tries": 2}):
        with pytest.raises(RemoteError, match="2 tries"):
            opened.read_region(*WHOLE, tile_error="fill")
        assert len(server.requests) <= 2 * 6
        cache.clear()
        with pytest.raises(RemoteError, match="2 tries"):
            open_slide(uri)


def test_options_are_for_metadata_and_chunks(uri, server, values):
    token = "Bearer 0123456789"
    server.behave(token=token)
    with pytest.raises(ImagePermissionError):
        open_slide(uri)
    opened = open_slide(uri, storage_options={"headers": {"Authorization": token}})
    assert np.array_equal(opened.read_region(*WHOLE), values.transpose(1, 2, 0))
    server.behave(always=403)
    with pytest.raises(OSError, match="403") as caught:
        opened.read_region(*WHOLE)
    assert "0123456789" not in str(caught.value)


def test_an_image_that_is_replaced_is_an_error(uri, server, files):
    opened = open_slide(uri)
    opened.read_region(*WHOLE)
    about = json.loads(files["i.zarr/zarr.json"])
    about["attributes"]["other"] = "image"
    server.files["i.zarr/zarr.json"] = json.dumps(about).encode()
    with dask.config.set({"daskdmed.images.remote.check-interval": 0}):
        with pytest.raises(ChangedImageError, match="open it again"):
            opened.read_region(*WHOLE)
    cache.clear()
    with pytest.raises(ChangedImageError):
        opened.read_region(*WHOLE)


def test_a_volume_of_zarr_over_http(uri, server, values):
    volume = open_volume(server.url("i.zarr"), dataset="s0", time=None)
    assert np.array_equal(volume.read((0, 0, 0), volume.shape)[0], values.transpose(1, 2, 0))
