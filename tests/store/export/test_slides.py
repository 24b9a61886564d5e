"""Slides as OME-Zarr: the same pixels, read once, written once, whatever happens meanwhile."""

from __future__ import annotations

import errno
import inspect
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import tifffile
import zarr

import daskdmed
from daskdmed import events
from daskdmed.errors import (
    GeometryError,
    ImageNotFoundError,
    ResolutionError,
    SampleNotAvailableError,
    StoreError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.view import SlideView
from daskdmed.samples import fetch, make_slide
from daskdmed.store.export import slideplan
from daskdmed.store.ngff.reduction import reduce_block

SIZE = (1300, 1050)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of a small slide."""
    monkeypatch.setattr(slideplan, "_BLOCK_SIDE", 512)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "made.svs"
    make_slide(path, SIZE, tile=128, levels=2, mpp=0.25, power=40)
    return daskdmed.open_slide(path)


def pixels(slide, level=0):
    return slide.read_region((0, 0), level, slide.level_dimensions[level])


def contents(path):
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(pathlib.Path(path).rglob("*"))
        if p.is_file()
    }


def convert(slide, path, **options):
    """In many blocks, though the slide is small."""
    return slide.to_ome_zarr(path, **{"shards": 256, **options})


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_the_converted_slide_is_the_slide(slide, tmp_path, version):
    out = tmp_path / "a.ome.zarr"
    shards = {"shards": None if version == "0.4" else 256}
    found = convert(slide, out, version=version, **shards)
    assert found.backend == "zarr"
    assert found.level_dimensions[: slide.level_count] == slide.level_dimensions
    assert (found.mpp, found.power, found.background) == ((0.25, 0.25), 40.0, slide.background)
    assert found.properties["openslide.objective-power"] == "40"
    for level in range(slide.level_count):
        np.testing.assert_array_equal(pixels(found, level), pixels(slide, level))
    group = zarr.open_group(out, mode="r")
    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    assert sorted(group) == ["0", "1"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]
    assert group["0"].shards == (None if version == "0.4" else (3, 256, 256))
    assert group["0"].chunks == (3, 128, 128)
    # and it is found under the public name too
    other = daskdmed.store.slide_to_ome_zarr(slide.uri, tmp_path / "b.zarr", pyramid="none")
    np.testing.assert_array_equal(pixels(other), pixels(slide))


def test_validators_and_other_readers(slide, tmp_path):
    v05 = pytest.importorskip("ome_zarr_models.v05")
    v04 = pytest.importorskip("ome_zarr_models.v04")
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    for version, model, shards in (("0.5", v05, 256), ("0.4", v04, None)):
        out = tmp_path / f"{version}.ome.zarr"
        convert(slide, out, version=version, shards=shards)
        image = model.Image.from_zarr(zarr.open_group(out, mode="r"))
        attributes = image.ome_attributes if version == "0.5" else image.attributes
        datasets = attributes.multiscales[0].datasets
        assert [d.coordinateTransformations[0].scale[1] for d in datasets] == pytest.approx(
            [0.25, 0.25 * SIZE[1] / (SIZE[1] // 4)], rel=1e-2
        )
        (node,) = list(Reader(parse_url(str(out)))())
        for level, data in enumerate(node.data):
            expected = pixels(slide, level).transpose(2, 0, 1)
            np.testing.assert_array_equal(np.asarray(data), expected)
        assert node.metadata["contrast_limits"] == [[0, 255]] * 3


@pytest.mark.parametrize(
    "options",
    [{}, {"shards": 128}, {"chunks": 64}, {"shards": False}, {"compressor": None}, {"shards": 512}],
)
def test_every_tile_is_read_once_and_every_object_written_once(
    slide, tmp_path, options, monkeypatch
):
    reads, lock = [], threading.Lock()
    read = SlideView.read

    def counted(self, region, out=None):
        with lock:
            reads.append((self.level, region))
        return read(self, region, out)

    monkeypatch.setattr(SlideView, "read", counted)
    written = []
    store = zarr.storage.LocalStore
    put = store.set

    async def counted_set(self, key, value):
        written.append(key)
        return await put(self, key, value)

    monkeypatch.setattr(store, "set", counted_set)
    convert(slide, tmp_path / "a.zarr", **options)
    for level in range(slide.level_count):
        tile = slide.levels[level].tile_shape
        seen = []
        for number, region in reads:
            if number == level:
                rows, columns = (
                    range(o // t, -(-s // t)) for o, s, t in zip(region.origin, region.stop, tile)
                )
                seen += [(r, c) for r in rows for c in columns]
        shape = slide.levels[level].shape
        assert len(seen) == len(set(seen)) == math.prod(-(-n // t) for n, t in zip(shape, tile))
    objects = [key for key in written if "/c/" in key and not key.startswith("done")]
    assert len(objects) == len(set(objects))
    assert objects


@pytest.mark.parametrize(
    ("level", "pyramid", "expected"),
    [
        (None, "auto", [1300, 325]),
        (None, "copy", [1300, 325]),
        (None, "build", [1300, 650]),
        (None, "none", [1300]),
        (1, "auto", [325]),
    ],
)
def test_levels(slide, tmp_path, level, pyramid, expected):
    found = convert(slide, tmp_path / "a.zarr", level=level, pyramid=pyramid)
    assert [w for w, _ in found.level_dimensions] == expected
    np.testing.assert_array_equal(pixels(found), pixels(slide, level or 0))
    if pyramid == "build":
        exact = reduce_block(pixels(slide), (2, 2, 1), "mean")
        np.testing.assert_array_equal(pixels(found, 1), exact)
    if level == 1:
        assert found.mpp == pytest.approx((1.0, 1.0), rel=5e-3)
        assert found.power == pytest.approx(10, rel=5e-3)
        # the finest level lies half of its pixel from the corner of the slide
        ome = zarr.open_group(tmp_path / "a.zarr").attrs["ome"]
        steps = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        down = slide.levels[1].downsample[0]
        assert steps[1]["translation"][1] == pytest.approx((down - 1) / 2 * 0.25)


def test_another_resolution(slide, tmp_path):
    found = convert(slide, tmp_path / "a.zarr", mpp=0.5)
    expected = slide.view(mpp=0.5)
    assert found.mpp == pytest.approx((0.5, 0.5))
    np.testing.assert_array_equal(pixels(found), expected.read(_whole(expected)))
    bare = convert(slide.with_mpp((0.4, 0.5)), tmp_path / "b.zarr")
    assert bare.mpp == (0.4, 0.5)


def _whole(view):
    from daskdmed.core.region import Region

    return Region((0, 0), view.shape[:2])


@pytest.mark.parametrize(
    ("name", "channels"), [("CMU-1-Small-Region.svs", 3), ("small_vectra.qptiff", None)]
)
def test_real_slides(tmp_path, name, channels):
    try:
        real = daskdmed.open_slide(fetch(name))
    except (SampleNotAvailableError, UsageError):
        path = pathlib.Path(os.environ.get("DASKDMED_DATA_DIR", ".")) / name
        if not path.exists():
            pytest.skip(f"{name} is not there")
        real = daskdmed.open_slide(path)
    found = real.to_ome_zarr(tmp_path / "a.ome.zarr")
    assert found.level_count >= real.level_count
    for level in range(real.level_count):
        np.testing.assert_array_equal(pixels(found, level), pixels(real, level))
    assert found.mpp == pytest.approx(real.mpp)
    assert found.power == real.power
    assert channels is None or set(found.associated_images) == set(real.associated_images) != set()
    for picture in real.associated_images:
        np.testing.assert_array_equal(
            found.associated_images[picture], real.associated_images[picture]
        )
    v05 = pytest.importorskip("ome_zarr_models.v05")
    v05.Image.from_zarr(zarr.open_group(tmp_path / "a.ome.zarr", mode="r"))
    bare = real.to_ome_zarr(tmp_path / "b.ome.zarr", associated=False, pyramid="none")
    assert not bare.associated_images


def test_strips_and_a_file_without_resolution(tmp_path):
    path = tmp_path / "strips.tif"
    values = np.random.default_rng(0).integers(0, 60_000, (700, 900), np.uint16)
    tifffile.imwrite(path, values, rowsperstrip=1, compression="zlib")
    try:
        strips = daskdmed.open_slide(path)
    except UnsupportedImageError:
        pytest.skip("no backend reads strips")
    found = convert(strips, tmp_path / "a.zarr", compressor="blosc")
    np.testing.assert_array_equal(pixels(found)[..., 0], values)
    assert found.mpp == strips.mpp
    assert found.dtype == np.uint16


SCRIPT = """
import itertools, os, signal, sys, daskdmed
from daskdmed.images.view import SlideView
from daskdmed.store.export import slideplan
from daskdmed.store.results import donemap
donemap._FLUSH_EVERY = 0
slideplan._BLOCK_SIDE = 512
last, reads, read = int(sys.argv[3]), itertools.count(1), SlideView.read

def deadly(self, region, out=None):
    if next(reads) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, region, out)

SlideView.read = deadly
slide = daskdmed.open_slide(sys.argv[1])
slide.to_ome_zarr(sys.argv[2], shards=256, pyramid="build", resume=True)
"""


def test_killed_conversions_resume_to_the_identical_store(slide, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    whole, broken = tmp_path / "whole.zarr", tmp_path / "broken.zarr"
    convert(slide, whole, pyramid="build")
    staging = tmp_path / ".broken.zarr.new"
    # once amid the first blocks, and once when some are known to be done
    for last in ("2", "6"):
        job = subprocess.run([sys.executable, str(script), slide.uri, str(broken), last])
        assert job.returncode == -signal.SIGKILL
        assert not broken.exists()
    done = zarr.open_group(staging, mode="r")["done"][...]
    assert 0 < done.sum() < done.size
    with pytest.raises(StoreError, match="interrupted conversion .* resume=True"):
        convert(slide, broken, pyramid="build")
    with pytest.raises(StoreError, match=r"begun with other parameters(.|\n)*compressor"):
        convert(slide, broken, pyramid="build", resume=True, compressor=None)
    convert(slide, broken, pyramid="build", resume=True)
    assert contents(broken) == contents(whole)
    assert not staging.exists()
    before = contents(broken)
    convert(slide, broken, pyramid="build", resume=True)  # nothing to do
    assert contents(broken) == before


def test_killed_at_the_last_step(slide, tmp_path):
    """Metadata written, map not yet dropped; and dropped, not yet in place."""
    whole, out = tmp_path / "whole.zarr", tmp_path / "a.zarr"
    convert(slide, whole)
    for leave_map in (True, False):
        convert(slide, out, overwrite=True)
        os.rename(out, tmp_path / ".a.zarr.new")
        if leave_map:
            group = zarr.open_group(tmp_path / ".a.zarr.new")
            group.create_array("done", shape=(3,), dtype="uint8")
        convert(slide, out, resume=True)
        assert contents(out) == contents(whole)


class Full:
    """A disk that is full from the n-th object on."""

    def __init__(self, monkeypatch, room, number=errno.ENOSPC):
        self.room = room
        put = zarr.storage.LocalStore.set

        async def limited(store, key, value):
            if self.room <= 0:
                raise OSError(number, os.strerror(number))
            self.room -= 1
            return await put(store, key, value)

        monkeypatch.setattr(zarr.storage.LocalStore, "set", limited)


@pytest.mark.parametrize("room", [0, 1, 3, 6, 14, 35])
def test_a_full_disk(slide, tmp_path, room, monkeypatch):
    whole, out = tmp_path / "whole.zarr", tmp_path / "a.zarr"
    convert(slide, whole)
    needed = len(contents(whole)) + 1
    assert room < needed
    with monkeypatch.context() as limited:
        Full(limited, room)
        with pytest.raises(StoreError, match="No space left on device.*disk is full") as caught:
            convert(slide, out)
        if room > 10:
            assert "resume=True" in str(caught.value)
    assert not out.exists()
    convert(slide, out, resume=True)
    assert contents(out) == contents(whole)


def test_a_full_disk_leaves_what_was_to_be_replaced(slide, tmp_path, monkeypatch):
    out = tmp_path / "a.zarr"
    convert(slide, out, pyramid="none")
    before = contents(out)
    with monkeypatch.context() as limited:
        Full(limited, 9)
        with pytest.raises(StoreError, match="disk is full"):
            convert(slide, out, overwrite=True)
        assert contents(out) == before
    convert(slide, out, overwrite=True, resume=True)
    assert len(contents(out)) > len(before)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_targets_that_cannot_be_written(slide, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StoreError, match="cannot be written"):
        convert(slide, tmp_path / "file" / "a.zarr")
    with pytest.raises(StoreError, match="is a file, no Zarr group"):
        convert(slide, tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "precious"
    Full(monkeypatch, 0, errno.EROFS)
    with pytest.raises(StoreError, match="file system is read-only"):
        convert(slide, tmp_path / "a.zarr")


def test_what_is_there_stays_unless_it_shall_be_replaced(slide, tmp_path):
    out = tmp_path / "a.zarr"
    convert(slide, out)
    before = contents(out)
    with pytest.raises(StoreError, match="overwrite=True"):
        convert(slide, out)
    with pytest.raises(StoreError, match="other parameters"):
        convert(slide, out, resume=True, pyramid="none")
    assert contents(out) == before
    zarr.create_group(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="overwrite=True"):
        convert(slide, tmp_path / "foreign.zarr", resume=True)
    found = convert(slide, out, overwrite=True, pyramid="none")
    assert found.level_count == 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_urls(slide):
    import fsspec

    url = "memory://converted/a.ome.zarr"
    found = convert(slide, url)
    np.testing.assert_array_equal(pixels(found), pixels(slide))
    with pytest.raises(StoreError, match="overwrite=True"):
        convert(slide, url)
    found = convert(slide, url, overwrite=True, pyramid="none")
    assert found.level_count == 1
    np.testing.assert_array_equal(pixels(found), pixels(slide))
    fs = fsspec.filesystem("memory")
    assert [p for p in fs.find("/converted") if "/." in p] == []
    fs.rm("/converted", recursive=True)


def test_an_unfinished_store_at_a_url_is_no_slide(slide, monkeypatch):
    import fsspec

    url = "memory://unfinished/a.ome.zarr"
    reads = iter(range(100))
    read = SlideView.read

    def fails(self, region, out=None):
        if next(reads) > 5:
            raise TileError("a tile is torn", uri=self.uri, tile=(1, 2))
        return read(self, region, out)

    with monkeypatch.context() as patch:
        patch.setattr(SlideView, "read", fails)
        with pytest.raises(TileError, match="torn") as caught:
            convert(slide, url)
    assert "resume=True" in " ".join(caught.value.__notes__)
    with pytest.raises(UnsupportedImageError, match="not finished"):
        daskdmed.open_slide(url)
    found = convert(slide, url, resume=True)
    np.testing.assert_array_equal(pixels(found), pixels(slide))
    fsspec.filesystem("memory").rm("/unfinished", recursive=True)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"level": 7}, ResolutionError, "no level 7"),
        ({"level": 1, "mpp": 1}, ResolutionError, "exclude each other"),
        ({"mpp": 1, "pyramid": "copy"}, UsageError, "cannot be copied"),
        ({"pyramid": "some"}, UsageError, "pyramid must be"),
        ({"version": "0.3"}, UsageError, "version must be"),
        ({"version": "0.4", "shards": 256}, UsageError, "no shards"),
        ({"chunks": 100, "shards": 250}, GeometryError, r"\(300, 300\) would be"),
        ({"chunks": 0}, UsageError, "chunks must be"),
        ({"chunks": 2}, GeometryError, "at least 16"),
        ({"chunks": (1, 2, 3)}, UsageError, "chunks must be"),
        ({"shards": "big"}, UsageError, "shards must be"),
        ({"compressor": "jpeg"}, UsageError, "compressor must be"),
        ({"tile_error": "ignore"}, UsageError, "tile_error must be"),
    ],
)
def test_wrong_arguments(slide, tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        slide.to_ome_zarr(tmp_path / "a.zarr", **options)
    assert list(tmp_path.iterdir()) == []


def test_objects_that_no_memory_holds(monkeypatch):
    class Level:
        tile_shape = (256, 256)
        shape = (100_000, 100_000, 3)
        downsample = (1.0, 1.0)
        dtype = np.dtype(np.uint8)
        level, token = 0, "x"

    class Huge:
        mpp, level_count, levels = None, 1, (Level,)
        info = types.SimpleNamespace(is_rgb=True)

        def view(self, **keywords):
            return Level()

    keywords = {"level": None, "mpp": None, "pyramid": "auto", "tile_error": "raise"}
    for chunks, shards in ((None, 40_960), (50_000, None)):
        with pytest.raises(GeometryError, match="GiB in each thread"):
            slideplan.plan_levels(Huge(), chunks=chunks, shards=shards, sharded=True, **keywords)
    levels = slideplan.plan_levels(Huge(), chunks=None, shards=None, sharded=True, **keywords)
    assert [level.shape[1] for level in levels][-1] <= 1024
    assert levels[0].shards == (3, 4096, 4096)
    assert levels[0].blocks == 25 * 25
    assert sum(1 for _ in levels[0].regions()) == 625
    wide = type("Strips", (Level,), {"tile_shape": (1, 100_000)})
    monkeypatch.setattr(Huge, "view", lambda self, **keywords: wide())
    (strips, *_) = slideplan.plan_levels(Huge(), chunks=None, shards=None, sharded=True, **keywords)
    # rows are read whole, once, a bounded number at a time
    assert strips.block[1] >= 100_000
    assert strips.block[0] * 100_000 * 3 < 2**27


def test_the_method_has_the_options_of_the_function():
    method = inspect.signature(daskdmed.Slide.to_ome_zarr).parameters
    function = inspect.signature(daskdmed.store.slide_to_ome_zarr).parameters
    assert {n: p.default for n, p in list(method.items())[1:]} == {
        n: p.default for n, p in list(function.items())[1:]
    }


def test_wrong_places(slide, tmp_path):
    with pytest.raises(UsageError, match="must be a path or a URL"):
        slide.to_ome_zarr(zarr.storage.MemoryStore())
    with pytest.raises(ImageNotFoundError):
        daskdmed.store.slide_to_ome_zarr(tmp_path / "nothing.svs", tmp_path / "a.zarr")


@pytest.mark.cluster
def test_a_killed_worker(slide, tmp_path):
    from distributed import Client, LocalCluster

    here, there = tmp_path / "here.zarr", tmp_path / "there.zarr"
    convert(slide, here)
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        pids = list(client.run(os.getpid).values())

        def kill(event):
            if isinstance(event, events.BlockDone) and len(pids) == 2:
                os.kill(pids.pop(), signal.SIGKILL)

        unsubscribe = events.subscribe(kill)
        convert(slide, there, client=client)
        unsubscribe()
    assert len(pids) == 1
    assert contents(here) == contents(there)


@pytest.mark.cluster
def test_a_cluster_writes_the_same_store(slide, tmp_path):
    from distributed import Client, LocalCluster

    here, there = tmp_path / "here.zarr", tmp_path / "there.zarr"
    convert(slide, here, pyramid="build")
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        convert(slide, there, pyramid="build", client=client)
        assert contents(here) == contents(there)
        shown = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
        assert "to-ome-zarr" in shown
        with pytest.raises(UsageError, match="all of them see"):
            convert(slide, "memory://a.zarr", client=client)


# ---------------------------------------------------------------------------- channels, labels
def stained(path, count=4, **more):
    """An OME-TIFF with names, colours and wavelengths."""
    values = np.random.default_rng(0).integers(1, 999, (count, 300, 280)).astype(np.uint16)
    said = {
        "Name": [f"stain {i}" for i in range(count)],
        "Color": [65535, 16711935, -16776961, -1][:count],
        "EmissionWavelength": [461.5, 519, 570, 670][:count],
        "EmissionWavelengthUnit": ["nm"] * count,
    }
    tifffile.imwrite(
        path, values, tile=(128, 128), photometric="minisblack", compression="zlib",
        metadata={"axes": "CYX", "Channel": said}, **more,
    )  # fmt: skip
    return values


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_known_of_channels_goes_along(tmp_path, version):
    values = stained(tmp_path / "a.ome.tif")
    slide = daskdmed.open_slide(tmp_path / "a.ome.tif")
    found = slide.to_ome_zarr(tmp_path / "a.zarr", version=version)
    for mine, theirs in zip(found.channels, slide.channels, strict=True):
        assert (mine.name, mine.color, mine.wavelength) == (
            theirs.name, theirs.color, theirs.wavelength,
        )  # fmt: skip
        assert mine.window is not None
    np.testing.assert_array_equal(pixels(found, 0), np.moveaxis(values, 0, -1))
    models = pytest.importorskip(f"ome_zarr_models.v{version.replace('.', '')}")
    image = models.Image.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
    omero = (image.attributes if version == "0.4" else image.ome_attributes).omero
    shown = omero["channels"] if isinstance(omero, dict) else omero.model_dump()["channels"]
    assert [c["label"] for c in shown] == [c.name for c in slide.channels]
    # each channel can be read without the others
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group["0"].chunks[0] == 1
    assert (group["0"].shards or (1,))[0] == (4 if version == "0.5" else 1)
    some = slide.with_channels(["stain 2", 0]).to_ome_zarr(tmp_path / "b.zarr", version=version)
    assert some.channels == ("stain 2", "stain 0")
    np.testing.assert_array_equal(pixels(some, 0), np.moveaxis(values[[2, 0]], 0, -1))


def test_three_stains_are_no_colours(tmp_path):
    stained(tmp_path / "a.ome.tif", 3)
    found = daskdmed.open_slide(tmp_path / "a.ome.tif").to_ome_zarr(tmp_path / "a.zarr")
    assert found.channels == ("stain 0", "stain 1", "stain 2")
    assert not found.info.is_rgb
    assert [c.color for c in found.channels] == ["0000FF", "00FF00", "FF0000"]


def test_labels_stay_labels(tmp_path):
    labels = np.random.default_rng(1).choice(np.array([0, 7, 200], np.uint8), (1100, 300))
    tifffile.imwrite(
        tmp_path / "a.tif", labels, tile=(128, 128), photometric="palette", metadata=None,
        colormap=np.zeros((3, 256), np.uint16),
    )  # fmt: skip
    found = daskdmed.open_slide(tmp_path / "a.tif").to_ome_zarr(
        tmp_path / "a.zarr", pyramid="build"
    )
    assert found.is_labels
    assert found.level_count > 1
    for level in range(found.level_count):
        step = 2**level
        np.testing.assert_array_equal(pixels(found, level)[..., 0], labels[::step, ::step])
    again = found.to_ome_zarr(tmp_path / "b.zarr")
    assert again.is_labels
    v05 = pytest.importorskip("ome_zarr_models.v05")
    v05.Image.from_zarr(zarr.open_group(tmp_path / "a.zarr", mode="r"))
