"""`to_dask`: plain Dask arrays with values in the graph."""

from __future__ import annotations

import dataclasses
import pickle

import dask
import dask.array as da
import numpy as np
import pytest

from daskdmed.core.region import Region
from daskdmed.errors import TileError, UsageError
from daskdmed.images.filecache import cache
from daskdmed.images.lazy import align_chunk, to_dask
from daskdmed.images.opening import open_slide
from daskdmed.images.tiff import count_tiles


@pytest.fixture(scope="module")
def slide(make, tmp_path_factory):
    path = tmp_path_factory.mktemp("lazy") / "pyramid.tif"
    make.write_pyramid(path, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    return open_slide(path)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_pixels(slide, level, scheduler):
    array = slide.to_dask(level, chunks=300)
    expected = slide.read_region((0, 0), level, slide.level_dimensions[level])
    assert array.shape == expected.shape
    assert array.dtype == expected.dtype
    assert np.array_equal(array.compute(scheduler=scheduler), expected)
    assert np.array_equal(array[10:20, 30:500:7, 1].compute(), expected[10:20, 30:500:7, 1])


@pytest.mark.slow
def test_processes(slide):
    array = slide.to_dask(chunks=800)
    expected = slide.read_region((0, 0), 0, slide.dimensions)
    assert np.array_equal(array.compute(scheduler="processes", num_workers=2), expected)


@pytest.mark.cluster
def test_distributed(slide):
    from distributed import Client, LocalCluster

    expected = slide.read_region((0, 0), 0, slide.dimensions)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        array = slide.to_dask(chunks=800)
        assert np.array_equal(client.compute(array, sync=True), expected)
        assert np.array_equal(
            client.compute(slide.to_dask(mpp=1.2), sync=True).shape, (427, 640, 3)
        )


@pytest.mark.parametrize("mpp", [0.7, 1.0, 1.5, 4.0, 0.4])
def test_resampled_blocks_are_parts_of_the_whole(slide, mpp):
    view = slide.view(mpp=mpp)
    whole = view.read(Region((0, 0), view.shape[:2]))
    array = slide.to_dask(mpp=mpp, chunks=60)
    assert min(array.numblocks[:2]) > 1
    assert np.array_equal(array.compute(), whole)


def test_blocks_lie_on_the_tile_grid(slide):
    array = slide.to_dask(chunks=400)
    assert array.chunks == ((384, 384, 256), (320,) * 4 + (256,), (3,))
    assert slide.to_dask(chunks=(100, 480)).chunksize == (128, 480, 3)
    assert slide.to_dask(chunks=-1).numblocks == (1, 1, 1)
    assert slide.to_dask().numblocks == (1, 1, 1)
    assert align_chunk(4096, 240, 10**6) == 4080
    assert align_chunk(4096, 256, 10**6) == 4096
    assert align_chunk(10, 256, 10**6) == 256
    assert align_chunk(10, 256, 100) == 100
    for wrong in (0, -2, 1.5, (1, 2, 3), "big", (512, 0)):
        with pytest.raises(UsageError, match="chunks must be"):
            slide.to_dask(chunks=wrong)


def test_each_tile_is_decoded_once(slide):
    with count_tiles() as count:
        slide.to_dask(chunks=400).compute()
    assert count.tiles == 8 * 10
    assert dict(count.by_level) == {0: 80}


def test_names_are_deterministic(slide):
    again = open_slide(slide.uri)
    assert slide.to_dask().name == again.to_dask().name
    # the same blocks, so the same array
    assert slide.to_dask(chunks=400).name == slide.to_dask(chunks=(420, 460)).name
    names = {
        a.name
        for a in (
            slide.to_dask(),
            slide.to_dask(1),
            slide.to_dask(chunks=400),
            slide.to_dask(mpp=0.7),
            slide.to_dask(mpp=0.71),
            slide.to_dask(tile_error="fill"),
            open_slide(slide.uri, backend="openslide").to_dask(),
        )
    }
    assert len(names) == 7
    assert slide.to_dask().name.startswith("slide-")


def test_the_graph_holds_values_only(slide):
    array = slide.to_dask(chunks=400)
    data = pickle.dumps(array)
    assert len(data) < 20_000
    cache.clear()
    copy = pickle.loads(data)
    assert copy.name == array.name
    assert np.array_equal(copy[:50, :50].compute(), array[:50, :50].compute())


def test_building_reads_nothing_and_stays_symbolic(slide):
    view = dataclasses.replace(slide.view(), shape=(100_000, 100_000, 3), source_tile=(256, 256))
    with count_tiles() as count:
        array = to_dask(view)
    assert count.tiles == 0
    assert array.numblocks == (25, 25, 1)
    assert len(array.dask.layers) == 1
    (layer,) = array.dask.layers.values()
    assert not layer.is_materialized()
    assert len(dict(array.dask)) == 625


def test_one_task_per_block(slide):
    array = slide.to_dask(chunks=400)
    (optimised,) = dask.optimize(array)
    assert len(dict(optimised.dask)) == array.npartitions


def test_array_expressions_are_refused(slide, monkeypatch):
    monkeypatch.setattr(da, "array_expr_enabled", lambda: True, raising=False)
    with pytest.raises(UsageError, match="query-planning"):
        slide.to_dask()


def test_errors_name_file_and_tile(make, tmp_path):
    path = tmp_path / "bad.tif"
    make.write_pyramid(path, compression="deflate")
    offsets, counts = make.page_facts(path)
    make.damage(path, offsets[23], bytes(counts[23]))
    slide = open_slide(path)
    with pytest.raises(TileError, match=r"bad\.tif: tile \(2, 3\)"):
        slide.to_dask(chunks=400).compute()
    filled = slide.to_dask(chunks=400, tile_error="fill").compute()
    assert (filled[256:384, 480:640] == 255).all()
    error = pickle.loads(pickle.dumps(TileError("m", uri="u", level=2, tile=(1, 2))))
    assert (str(error), error.uri, error.level, error.tile) == ("m", "u", 2, (1, 2))
