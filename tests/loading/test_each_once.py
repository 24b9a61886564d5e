"""`EachOnce`: each position of a grid once per epoch."""

from __future__ import annotations

from collections import Counter

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import Dataset, LightDL, Patient, Quota, Record
from daskdmed.errors import GeometryError, UsageError
from daskdmed.policies import EachOnce
from tests.loading.conftest import assert_same_batches, collect


def volume(number, depth):
    z = np.arange(depth, dtype=np.uint8)[:, None, None]
    return np.broadcast_to(z + 50 * number, (depth, 10, 12)).copy()


@pytest.fixture(scope="module")
def volumes():
    """Three volumes of 7, 12 and 9 slices."""
    depths = (7, 12, 9)
    return Dataset(
        "x", [Patient(f"p{i}", {"t1": Record(array=volume(i, d))}) for i, d in enumerate(depths)]
    )


SLICES = {
    "smallchunk_size": (1, 10, 12),
    "bigchunk_size": (4, 10, 12),
    "resident": 6 * 480,
    "batch_size": 8,
    "drop_last": False,
}
EVERY = Counter({(f"p{i}", z, 0, 0): 1 for i, d in enumerate((7, 12, 9)) for z in range(d)})


def met(batches):
    """How often each position came, and how many small chunks each batch had."""
    found, sizes = Counter(), []
    for _, patients, chunks in batches:
        sizes.append(len(patients))
        found.update((p.id, *o) for p, o in zip(patients, chunks.origins.tolist(), strict=True))
    return found, sizes


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_each_slice_comes_once_in_every_epoch(volumes, batch_size):
    with LightDL(volumes, **{**SLICES, "batch_size": batch_size}, policy=EachOnce(1)) as loader:
        orders = []
        for _ in range(2):
            batches = list(loader)
            found, sizes = met(batches)
            assert found == EVERY
            assert len(sizes) == len(loader)
            assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
            assert sum(sizes) == 28
            for x, patients, chunks in batches:
                first = x.numpy()[:, 0, 0, 0, 0]
                numbers = np.array([int(p.id[1:]) for p in patients])
                assert np.array_equal(first, chunks.origins[:, 0] + 50 * numbers)
            orders.append([tuple(o) for _, _, c in batches for o in c.origins.tolist()])
        assert orders[0] != orders[1]  # shuffled anew
        assert loader.stats().reads <= 2 * 8  # each of 2 + 3 + 3 big chunks once an epoch


def test_slices_of_several_files_come_mixed(volumes):
    with LightDL(volumes, **SLICES, policy=EachOnce(1)) as loader:
        _, patients, chunks = next(loader)
    assert len({(p.id, c.bigchunk.origin) for p, c in zip(patients, chunks, strict=True)}) > 2
    assert chunks.origins[:, 0].tolist() != sorted(chunks.origins[:, 0].tolist())


def test_a_short_last_batch_is_dropped_when_asked(volumes):
    options = {**SLICES, "drop_last": True}
    with LightDL(volumes, **options, policy=EachOnce(1)) as loader:
        found, sizes = met(loader)
        assert sizes == [8, 8, 8]
        assert len(loader) == 3
    assert max(found.values()) == 1


@pytest.mark.parametrize("taken", [1, 3])
def test_a_state_goes_on_in_the_middle_of_an_epoch(volumes, taken):
    with LightDL(volumes, **SLICES, policy=EachOnce(1)) as loader:
        first = [batch for _, batch in zip(range(taken), loader, strict=False)]
        state = loader.state_dict()
    resumed = LightDL(volumes, **SLICES, policy=EachOnce(1))
    resumed.load_state_dict(state)
    with resumed:
        assert met([*first, *resumed])[0] == EVERY
        assert met(resumed)[0] == EVERY
    with pytest.raises(UsageError, match="each_once: saved"):
        LightDL(volumes, **SLICES, policy=EachOnce(2)).load_state_dict(state)


def test_ranks_and_workers_divide_one_epoch(volumes):
    with LightDL(volumes, **SLICES, policy=EachOnce(1)) as loader:
        whole = collect(loader, 4)
    halves = []
    for rank in range(2):
        with LightDL(volumes, **SLICES, policy=EachOnce(1), rank=rank, world_size=2) as loader:
            halves.append(list(loader))
            assert len(halves[-1]) == len(loader)
    assert met([*halves[0], *halves[1]])[0] == EVERY
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        LightDL(volumes, **SLICES, policy=EachOnce(1), client=client) as loader,
    ):
        assert_same_batches(collect(loader, 4), whole)


def grid_by_hand(shape, size, stride, edge):
    axes = []
    for n, s, step in zip(shape, size, stride, strict=True):
        at = list(range(0, n - s + 1, step))
        if edge == "shift" and at[-1] != n - s:
            at.append(n - s)
        axes.append(at)
    return {(y, x) for y in axes[0] for x in axes[1]}


@pytest.mark.parametrize(("stride", "edge"), [((8, 3), "shift"), (5, "drop"), (20, "shift")])
def test_patches_of_a_grid_with_any_stride(stride, edge):
    data = Dataset("x", [Patient("p", {"wsi": Record(array=da.zeros((61, 47, 3), dtype="u1"))})])
    options = {"smallchunk_size": 8, "bigchunk_size": 20, "resident": "16 KiB", "batch_size": 7}
    expected = grid_by_hand((61, 47), (8, 8), np.broadcast_to(stride, 2), edge)
    policy = EachOnce(stride, edge=edge, passes=2)
    with LightDL(data, **options, policy=policy, drop_last=False) as loader:
        found, _ = met(loader)
        assert len(loader) == -(-2 * len(expected) // 7)
    assert found == Counter({("p", *place): 2 for place in expected})


def test_with_tissue_and_with_classes_only_those_that_may_be_drawn():
    labels = np.zeros((12, 10, 12), np.uint8)
    labels[3:6, 5, 6] = 1
    labels[8] = 2
    records = {"t1": Record(array=volume(0, 12)), "seg": Record(array=labels)}
    data = Dataset("x", [Patient("p0", records)])
    options = {**SLICES, "record": "t1", "policy": EachOnce(1)}
    with LightDL(data, **options, labels=[1], annotations="seg", target="seg") as loader:
        found, _ = met(loader)
        assert len(loader) == 1
    assert sorted(found) == [("p0", z, 0, 0) for z in (3, 4, 5)]
    mask = np.zeros((12, 10, 12), bool)
    mask[2:7] = True
    with LightDL(data, **options, tissue={"p0": mask}, min_tissue=0.9) as loader:
        found, _ = met(loader)
    assert sorted(found) == [("p0", z, 0, 0) for z in range(2, 7)]


def test_with_slices_around_each():
    data = Dataset("x", [Patient("p0", {"t1": Record(array=volume(0, 12))})])
    with LightDL(data, **SLICES, policy=EachOnce(1), context=1, squeeze=True) as loader:
        slices = {}
        for x, _, chunks in loader:
            slices.update(zip(chunks.origins[:, 0].tolist(), x.numpy()[:, :, 0, 0], strict=True))
    padded = np.pad(np.arange(12), 1, mode="reflect")
    assert {z: v.tolist() for z, v in slices.items()} == {
        z: padded[z : z + 3].tolist() for z in range(12)
    }


def test_what_contradicts_it_is_refused(volumes):
    for name, value in {
        "smallchunk_collector": lambda bigchunk, context, rng: (0, 0, 0),
        "bigchunk_loader": lambda read, context, rng: context.region,
        "quotas": [Quota(4, {"y": 1})],
        "rotation": "adaptive",
    }.items():
        with pytest.raises(UsageError, match=f"leave {name}= away"):
            LightDL(volumes, **SLICES, policy=EachOnce(1), **{name: value})
    for stride in (0, -1, 1.5, (), "1"):
        with pytest.raises(UsageError, match="stride is a positive integer"):
            EachOnce(stride)
    with pytest.raises(UsageError, match="edge is"):
        EachOnce(1, edge="pad")
    with pytest.raises(GeometryError, match="stride of EachOnce"):
        LightDL(volumes, **SLICES, policy=EachOnce((1, 1)))


def test_a_coarser_target_needs_whole_pixels():
    records = {
        "wsi": Record(array=np.zeros((64, 64, 3), np.uint8)),
        "mask": Record(array=np.arange(256, dtype=np.uint8).reshape(16, 16)),
    }
    data = Dataset("x", [Patient("p", records)])
    options = {"smallchunk_size": 8, "bigchunk_size": 32, "resident": "64 KiB", "target": "mask"}
    with pytest.raises(GeometryError, match="one pixel per"):
        LightDL(data, **options, policy=EachOnce(6))
    with LightDL(data, **options, batch_size=64, policy=EachOnce(8)) as loader:
        _, _, chunks = next(loader)
    assert len(chunks) == 64
    for origin, target in zip(chunks.origins // 4, chunks.targets, strict=True):
        assert target[0, 0] == origin[0] * 16 + origin[1]
