"""Big chunks on the device: the same batches, bit for bit, as from host memory.

On a GPU where there is one. Otherwise on the CPU, which has no memory of its own: only when told so
are big chunks copied and gathered there as on a GPU.
"""

from __future__ import annotations

import itertools
import types

import dask
import dask.array as da
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from daskdmed import Dataset, LightDL, Patient, Quota, Record
from daskdmed.core.region import Region
from daskdmed.loading import delivery, ondevice
from daskdmed.loading.delivery import StreamLane
from daskdmed.policies import OnePass
from tests.loading.clusters import assert_nothing_is_left, tcp_cluster
from tests.loading.conftest import assert_true_to_place, coordinate_array, coordinate_dataset
from tests.loading.contract import threads
from tests.waiting import until

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
FLAT = {
    "record": "wsi",
    "smallchunk_size": 24,
    "batch_size": 6,
    "bigchunk_size": 64,
    "resident": "200 kB",
    "smallchunks_per_bigchunk": 8,
}
DEEP = {
    "record": "ct",
    "smallchunk_size": (4, 10, 12),
    "batch_size": 4,
    "bigchunk_size": 20,
    "resident": "300 kB",
    "smallchunks_per_bigchunk": 5,
}


@pytest.fixture(autouse=True)
def on_the_device():
    with dask.config.set({"daskdmed.device-residents": True}):
        yield


@pytest.fixture(scope="module")
def client():
    """Threads of this process, for all loaders."""
    with (
        LocalCluster(
            processes=False, threads_per_worker=2, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster, set_as_default=False) as made,
    ):
        yield made


def bad(block, block_info=None):
    if block_info[0]["array-location"][0][0] == 64:
        raise OSError("a bad disk")
    return block


@pytest.fixture(scope="module")
def flat():
    """Slides of 130 x 150 pixels with masks: as large, with channels, of fewer pixels."""
    patients = []
    for i in range(3):
        pixels = coordinate_array(130, 150, i, chunks=64)
        labels = da.from_array(np.arange(130 * 150, dtype="u2").reshape(130, 150), chunks=64)
        records = {
            "wsi": pixels,
            "mask": da.stack([pixels[..., 1], pixels[..., 0]], -1),
            "labels": labels,
            "small": labels[:130:2, ::2].rechunk(32),
            "bad": pixels.map_blocks(bad, dtype="u1", meta=np.empty((0, 0, 0), "u1")),
        }
        made = {name: Record(array=array) for name, array in records.items()}
        patients.append(Patient(f"p{i}", made, {"grade": i % 2}))
    return Dataset("slides", patients)


@pytest.fixture(scope="module")
def deep():
    """Volumes of 24 x 40 x 36 voxels of signed values, with labels."""
    patients = []
    for i in range(2):
        values = np.random.default_rng(i).integers(-1000, 3000, (24, 40, 36)).astype("i2")
        records = {"ct": values, "labels": values > 1000}
        made = {n: Record(array=da.from_array(v, chunks=16)) for n, v in records.items()}
        patients.append(Patient(f"v{i}", made))
    return Dataset("scans", patients)


def regions(count):
    """A big-chunk loader that takes as many parts of a big chunk, one over the other."""

    def chosen(read, context, rng):
        y, x = (min(o, e - 32) for o, e in zip(context.region.origin, context.shape, strict=True))
        return [Region((y + i % 2, x), (31, 25 + i % 7)) for i in range(count)]

    return chosen


def batches_of(data, options, count=8):
    with LightDL(data, **options) as loader:
        return list(itertools.islice(loader, count)), loader._engine._elsewhere


def strides(tensor):
    """Along axes that have some length."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def assert_the_same(data, options, threads, count=8, client=None):
    """`threads`: whose big chunks the host has; the device those of `client`, when it is given."""
    host = {**options, "client": threads}
    there, device = batches_of(data, {**host, "device": DEVICE, "client": client or threads}, count)
    here, none = batches_of(data, host, count)
    assert device is not None
    assert none is None
    assert len(there) == len(here) > 0
    for (x, patients, chunks), (x0, patients0, chunks0) in zip(there, here, strict=True):
        assert isinstance(chunks.made, torch.Tensor)
        assert (x.dtype, x.shape, strides(x)) == (x0.dtype, x0.shape, strides(x0))
        assert str(x.device) == DEVICE
        assert torch.equal(x.cpu(), x0)
        assert patients == patients0
        assert np.array_equal(chunks.keys, chunks0.keys)
        assert np.array_equal(chunks.origins, chunks0.origins)
        assert np.array_equal(chunks.data, chunks0.data)
        assert repr(chunks) == repr(chunks0)
        if chunks0.targets is None:
            assert chunks.targets is None
        else:
            targets = torch.from_numpy(chunks0.targets)
            if targets.ndim == x.ndim:
                targets = targets.movedim(-1, 1)
            assert strides(chunks.targets) == strides(targets)
            assert torch.equal(chunks.targets.cpu(), targets)


class TestTheSame:
    @pytest.mark.parametrize(
        "options",
        [
            {"target": "mask"},
            {"target": "labels"},
            {"target": "small", "tissue": {f"p{i}": np.eye(9, dtype=bool) for i in range(3)}},
            {"target": "labels", "bigchunk_loader": regions(3)},
            {"record": "bad", "target": "labels", "on_error": "skip"},
            {"quotas": [Quota(0.5, patients={"grade": 1})], "record": "bad", "on_error": "skip"},
            {"policy": OnePass(), "drop_last": False, "batch_size": 70, "target": "labels"},
        ],
        ids=lambda options: "-".join(options),
    )
    def test_of_slides(self, flat, options, client):
        assert_the_same(flat, {**FLAT, **options}, client)

    def test_of_a_rank(self, flat):
        assert_the_same(flat, {**FLAT, "target": "mask", "rank": 1, "world_size": 2}, None)

    @pytest.mark.parametrize(
        "options",
        [
            {"target": "labels"},
            {"smallchunk_size": (1, 10, 12), "context": (1, 0, 1), "target": "labels"},
            {"smallchunk_size": (1, 10, 1), "context": 2, "squeeze": True, "target": "labels"},
        ],
        ids=lambda options: "-".join(options),
    )
    def test_of_volumes(self, deep, options, client):
        assert_the_same(deep, {**DEEP, **options}, client)

    def test_on_a_stream(self, flat, client, monkeypatch):
        monkeypatch.setattr(delivery, "lane_of", StreamLane)
        assert_the_same(flat, {**FLAT, "target": "mask"}, client, count=3)

    def test_beside_another_default_device(self, flat, client):
        with torch.device("meta"):
            assert_the_same(flat, {**FLAT, "target": "mask"}, client, count=2)

    @pytest.mark.parametrize("room", ["none", "for two"])
    def test_what_there_is_no_room_for_is_brought(self, flat, room, client, monkeypatch):
        if room == "none":
            monkeypatch.setattr(ondevice.Arena, "put", lambda arena, arrays: None)
        else:
            put = ondevice.Arena.put

            def of_two(arena, arrays):
                return (
                    put(arena, arrays)
                    if len(arena._free) > arena.nbytes // arena.slot_bytes - 2
                    else None
                )

            monkeypatch.setattr(ondevice.Arena, "put", of_two)
        assert_the_same(flat, {**FLAT, "target": "labels"}, client)

    @pytest.mark.parametrize("shared", [True, False])
    def test_of_worker_processes(self, flat, shared, client, monkeypatch):
        """What they share goes to the device; elsewhere they crop, and rows are brought."""
        options, taken, put = {**FLAT, "target": "labels"}, [], ondevice.Arena.put
        monkeypatch.setattr(ondevice.Arena, "put", lambda *a: taken.append(a) or put(*a))
        with tcp_cluster(2, shared=shared) as (cluster, processes):
            assert_the_same(flat, options, client, client=processes)
            assert_nothing_is_left(cluster)
        assert bool(taken) == shared

    def test_no_row_is_asked_for_by_itself(self, flat, client, monkeypatch):
        """Where each visit has one piece and gives all its draws."""
        monkeypatch.setattr(ondevice.DeviceBuilder, "take", None)
        quotas = [Quota(0.5, patients={"grade": 1})]
        for options in ({"target": "labels"}, {"quotas": quotas}):
            with LightDL(flat, **FLAT, **options, device=DEVICE, client=client) as loader:
                assert len(list(itertools.islice(loader, 12))) == 12

    def test_drawn_beyond_the_plan(self, client):
        options = {**FLAT, "rotation": "adaptive", "device": DEVICE, "client": client}
        with LightDL(coordinate_dataset(3, height=130, width=150, chunks=64), **options) as loader:
            for x, _, chunks in itertools.islice(loader, 6):
                assert_true_to_place(x.cpu(), chunks)


class TestWhere:
    """Where big chunks are, and why."""

    @pytest.fixture
    def loader(self, flat, client):
        return lambda **options: LightDL(
            flat, **{**FLAT, "device": DEVICE, "client": client, **options}
        )

    @pytest.mark.parametrize(
        ("options", "config", "why"),
        [
            ({"tfms": lambda x: x}, True, "tfms and collate are given small chunks of host memory"),
            ({"smallchunk_collector": lambda big, context, rng: (0, 0)}, True, "the collector"),
            ({}, False, "daskdmed.device-residents is False"),
        ],
        ids=["tfms", "collector", "not wanted"],
    )
    def test_on_the_host(self, loader, caplog, options, config, why):
        caplog.set_level("INFO", "daskdmed.loading")
        with (
            dask.config.set({"daskdmed.device-residents": config}),
            loader(**options) as loading,
        ):
            next(loading)
            assert loading.stats().resident_on == "host"
            assert f"resident on host, batches on {DEVICE}, running" in repr(loading)
        assert f"big chunks stay in host memory: {why}" in caplog.text

    def test_a_cpu_has_no_memory_of_its_own(self, loader, caplog):
        caplog.set_level("INFO", "daskdmed.loading")
        wanted = dask.config.set({"daskdmed.device-residents": None})
        with wanted, loader(device="cpu") as loading:
            assert loading.stats().resident_on == "host"
        assert "host memory is where cpu has its own" in caplog.text

    def test_on_the_device(self, loader):
        loading = loader()
        assert f"resident on host, batches on {DEVICE}, not started" in repr(loading)
        with loading:
            next(loading)
            assert loading.stats().resident_on == DEVICE
            assert f"({DEVICE})" in str(loading.stats())
            assert f"resident on {DEVICE}, batches on {DEVICE}, running" in repr(loading)

    @pytest.mark.parametrize("share", [0.49, 0.51])
    def test_no_more_than_half_of_what_is_free(self, loader, share, monkeypatch, caplog):
        caplog.set_level("INFO", "daskdmed.loading")
        with loader() as loading:
            needed = loading._engine._elsewhere.nbytes
            assert 0.5 * 200e3 < needed <= 200e3
        monkeypatch.setattr(delivery, "lane_of", StreamLane)
        monkeypatch.setattr(ondevice, "_free_bytes", lambda device: round(needed / share))
        with dask.config.set({"daskdmed.device-residents": None}), loader() as loading:
            assert (loading.stats().resident_on == DEVICE) == (share < 0.5)
        assert ("more than half of what is free on" in caplog.text) == (share > 0.5)

    def test_a_device_whose_memory_is_full(self, loader, monkeypatch, caplog):
        def full(*args, **kwargs):
            raise torch.cuda.OutOfMemoryError("there are 3 bytes\nand more lines")

        monkeypatch.setattr(ondevice, "Arena", full)
        caplog.set_level("INFO", "daskdmed.loading")
        with loader() as loading:
            next(loading)
            assert loading.stats().resident_on == "host"
        assert "host memory: there are 3 bytes\n" in caplog.text

    def test_what_lies_there_is_not_kept_on_the_host(self, loader):
        with loader(epoch_length=4) as loading:
            residents, device = loading._engine.residents, loading._engine._elsewhere
            for _ in loading:
                pass
            assert 0 < len(device._visits) <= residents.allotment.slots

            def only_there():
                """Units whose pixels are on the device, and in no worker's memory."""
                units = list(residents._units.values())
                there = {u for u in units if u.waiting_for <= u.elsewhere}
                assert all(u.ticket is None and u.future is None for u in there)
                here = {k for keys in residents.client.has_what().values() for k in keys}
                wanted = {u.key for u in units if u not in there}
                return there and not ({u.key for u in there} - wanted) & here

            until(only_there)
            assert residents.resident_bytes >= len(device._visits) * residents.allotment.block_bytes

    def test_what_is_free(self, monkeypatch):
        """Also what torch keeps for who asks next, such as the big chunks of an epoch before."""
        sizes = {"mem_get_info": (100, 900), "memory_reserved": 50, "memory_allocated": 20}
        answers = {name: lambda device, n=n: n for name, n in sizes.items()}
        monkeypatch.setattr(torch, "xpu", types.SimpleNamespace(**answers))
        assert ondevice._free_bytes(torch.device("xpu", 1)) == 130
        assert ondevice._free_bytes(torch.device("cpu")) is None

    def test_an_error_there_closes_what_was_begun(self, loader, monkeypatch):
        def broken(*args, **kwargs):
            raise RuntimeError("the device has fallen off the bus")

        before = threads()
        monkeypatch.setattr(ondevice, "Arena", broken)
        loading = loader()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="fallen off"):
                loading.start()
        until(lambda: threads() <= before)
        loading.close()

    def test_closing_gives_the_memory_back(self, loader):
        with loader() as loading:
            next(loading)
            device = loading._engine._elsewhere
        assert device.nbytes == 0
        assert not device._visits
