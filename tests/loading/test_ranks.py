"""Several training processes: one plan, one resident set, and nobody waits for the dead."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from daskdmed import LightDL
from daskdmed.errors import LoaderError, UsageError
from daskdmed.loading.ranks import resolve
from daskdmed.persistence import ranks as ranks_module
from daskdmed.persistence.ranks import Ranks
from tests.loading.clusters import tcp_cluster
from tests.loading.conftest import assert_same_batches, collect
from tests.loading.rank_process import PARAMETERS, counting_dataset
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def local():
    with tcp_cluster(2) as (cluster, _):
        yield cluster


@pytest.fixture
def client(local):
    with Client(local, set_as_default=False) as client:
        yield client


def waits(loader):
    """Whether a rank waits for slower ones."""
    return loader._engine.residents._ranks.waits


def reads(log):
    return Counter(log.read_text().splitlines())


def single(tmp_path, patients=4):
    """(patients, origins) of all batches of the plan, by one rank."""
    dataset = counting_dataset(tmp_path / "single", patients)
    with LightDL(dataset, **PARAMETERS) as loader:
        return [([p.id for p in who], chunks.origins) for _, who, chunks in loader]


def assert_same(a, b):
    assert len(a) == len(b)
    for (pa, oa), (pb, ob) in zip(a, b, strict=True):
        assert pa == pb
        assert np.array_equal(oa, ob)


def big_chunks(client):
    return {k for held in client.has_what().values() for k in held if "big-chunk" in str(k)}


def assert_released(client):
    until(lambda: not big_chunks(client))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_of_unequal_speed_read_each_big_chunk_once(local, client, tmp_path, world_size):
    """The first takes what there is; the others a batch each when it has to wait for them."""
    dataset, log = counting_dataset(tmp_path / f"unequal-{world_size}", 2), f"unequal-{world_size}"
    options = {**PARAMETERS, "world_size": world_size}
    with contextlib.ExitStack() as stack:
        loaders = []
        for rank in range(world_size):
            own = stack.enter_context(Client(local, set_as_default=False))
            loaders.append(stack.enter_context(LightDL(dataset, **options, rank=rank, client=own)))
        taken = [[] for _ in loaders]

        def take(rank):
            if len(taken[rank]) < len(loaders[rank]):
                _, who, chunks = next(loaders[rank])
                taken[rank].append(([p.id for p in who], chunks.origins))

        most, ahead, fast = 0, 0, loaders[0]
        while len(taken[0]) < len(fast):
            until(lambda: fast.stats().batches_ready or waits(fast))
            if fast.stats().batches_ready:
                take(0)
            else:
                for rank in range(1, world_size):
                    take(rank)
            most = max(most, len(big_chunks(client)))
            ahead = max(ahead, len(taken[0]) - len(taken[-1]))
        for _ in range(len(fast)):
            for rank in range(1, world_size):
                take(rank)
        capacity = fast._assembly.planning.allotment.capacity
    read = reads(tmp_path / log)
    whole = single(tmp_path, 2)
    for rank, batches in enumerate(taken):
        assert_same(batches, whole[: len(whole) // world_size * world_size][rank::world_size])
    assert len(read) == 2 * 9
    assert set(read.values()) == {1}, "each big chunk is read once for all ranks"
    assert most <= capacity, "all ranks together hold what one of them may"
    assert 0 < ahead < len(taken[0]), "the fast ones do not run away"
    assert_released(client)


def test_another_number_of_ranks_goes_on(local, tmp_path):
    """With other batches, on the same cluster, from the state of the last rank."""
    dataset = counting_dataset(tmp_path / "elastic", 2)
    stream, state = [], None
    for world_size, size in [(2, 16), (3, 10), (1, 14)]:
        options = {**PARAMETERS, "batch_size": size, "world_size": world_size}
        with contextlib.ExitStack() as stack:
            ranks = []
            for rank in range(world_size):
                own = stack.enter_context(Client(local, set_as_default=False))
                ranks.append(LightDL(dataset, **options, rank=rank, client=own))
                if state is not None:
                    ranks[-1].load_state_dict(state)
                stack.enter_context(ranks[-1])
            for _ in range(2):
                for loader in ranks:
                    _, who, chunks = next(loader)
                    places = zip(who, chunks.origins.tolist(), strict=True)
                    stream += [(p.id, place) for p, place in places]
            state = loader.state_dict()
    whole = single(tmp_path, 2)
    places = [(p, o.tolist()) for who, origins in whole for p, o in zip(who, origins, strict=True)]
    assert stream == places[: len(stream)]


@pytest.mark.cluster
def test_a_killed_rank_leaves_the_others_running(local, client, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks_module, "JOIN_LIMIT", 1e6)
    log, job = tmp_path / "killed", tmp_path / "job.json"
    parameters = {"address": local.scheduler_address, "log": str(log), "patients": 2, "batches": 3}
    job.write_text(json.dumps(parameters))
    command = [sys.executable, "-m", "tests.loading.rank_process", job]
    dataset = counting_dataset(log, 2)
    with (
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
        LightDL(dataset, **PARAMETERS, rank=0, world_size=2, client=client) as loader,
    ):
        batches = []
        for line in other.stdout:  # one a batch; then it stands still
            _, who, chunks = next(loader)
            batches.append(([p.id for p in who], chunks.origins))
            if line.strip() == "3":
                break
        other.kill()
        for _, who, chunks in loader:
            batches.append(([p.id for p in who], chunks.origins))
        allotment = loader._assembly.planning.allotment
    whole, read = single(tmp_path, 2), reads(log)
    assert_same(batches, whole[: len(whole) // 2 * 2][0::2])
    # what the dead rank alone had read ahead is gone with it
    assert sum(read.values()) - len(read) <= allotment.capacity - allotment.slots
    assert len(read) == 2 * 9
    assert_released(client)


def test_a_rank_that_stands_still_is_left_behind(client, local, monkeypatch, caplog, tmp_path):
    """It can still go on later: what it missed is read again."""
    monkeypatch.setattr(ranks_module, "STALL_LIMIT", 0.1)
    dataset = counting_dataset(tmp_path / "stalled", 2)
    small = {**PARAMETERS, "resident": "6 MiB"}
    options = {**small, "world_size": 2}
    with (
        Client(local.scheduler_address, set_as_default=False) as second,
        LightDL(dataset, **options, rank=0, client=client) as fast,
        LightDL(dataset, **options, rank=1, client=second) as slow,
    ):
        first = collect(slow, 1)
        quick = collect(fast, len(fast))
        assert "left behind" in caplog.text
        rest = collect(slow, len(slow) - 1)
    with LightDL(dataset, **small) as loader:
        whole = collect(loader, len(quick) * 2)
    assert_same_batches(quick, whole[0::2])
    assert_same_batches(first + rest, whole[1::2])
    assert_released(client)


def test_a_rank_that_never_comes_is_not_waited_for(client, monkeypatch, tmp_path):
    monkeypatch.setattr(ranks_module, "JOIN_LIMIT", 0.1)
    dataset = counting_dataset(tmp_path / "alone", 2)
    options = {**PARAMETERS, "resident": "4 MiB"}
    with LightDL(dataset, **options, rank=1, world_size=3, client=client) as loader:
        assert len(collect(loader, len(loader))) == len(loader)
        # and closing while it waits is no trouble
    monkeypatch.setattr(ranks_module, "JOIN_LIMIT", 1e6)
    with LightDL(dataset, **options, rank=1, world_size=3, client=client) as loader:
        next(loader)
        until(lambda: waits(loader))
        with pytest.raises(TimeoutError, match=r"rank 1, in turn \d+, waits for ranks \[0, 2\]"):
            while True:
                loader.get(timeout=0.01)
    assert_released(client)


@pytest.mark.parametrize("resident", ["1.6 MiB", "8 MiB"])
def test_ranks_that_wait_for_each_other_after_every_step(client, local, tmp_path, resident):
    """As gradients are synchronised, over two epochs, with two big chunks in memory or ten."""
    dataset = counting_dataset(tmp_path / "in-step", 2)
    options = {**PARAMETERS, "resident": resident}
    with LightDL(dataset, **options) as loader:
        steps = len(loader) // 2
        whole = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            whole.append(collect(loader, steps * 2))
    (tmp_path / "in-step").unlink()
    with (
        Client(local.scheduler_address, set_as_default=False) as second,
        LightDL(dataset, **options, rank=0, world_size=2, client=client) as a,
        LightDL(dataset, **options, rank=1, world_size=2, client=second) as b,
    ):
        for epoch in range(2):
            for loader in (a, b):
                loader.set_epoch(epoch)
                loader.start()
            batches = []
            for _ in range(steps):
                for loader in (a, b):
                    x, who, chunks = loader.get()
                    batches.append((x.numpy().copy(), [p.id for p in who], chunks.origins.copy()))
            assert_same_batches(batches, whole[epoch])
    reads = Counter((tmp_path / "in-step").read_text().splitlines())
    assert len(reads) == 2 * 9
    # once in each epoch; or once for both, where one is still in memory when the next begins
    assert set(reads.values()) <= {1, 2}
    assert_released(client)


def test_what_ranks_know_of_each_other(client, local, monkeypatch):
    monkeypatch.setattr(ranks_module, "JOIN_LIMIT", 1e6)
    with Client(local.scheduler_address, set_as_default=False) as second:
        a = Ranks(client, "plan", 0, 2)
        a.join(5)
        a.finished(5)
        a.tell()
        assert a.slowest == 5, "rank 1 may still come"
        b = Ranks(second, "plan", 1, 2)
        b.join(5)
        a.finished(6)
        a.tell()
        assert a.slowest == 5
        b.finished(5)
        b.tell()
        a.begin_to_wait()
        assert "rank 0, in turn 7, waits for ranks [1], in turn 5 of the plan" in a.describe()
        a.look()
        assert a.slowest == b.slowest == 6
        elsewhere = Ranks(second, "another plan", 1, 2)
        elsewhere.join(0)
        a.look()
        assert a.slowest == 6
    # the second client is gone without a word
    until(lambda: (a.look(), a.slowest != 6)[1])
    assert a.slowest == 7
    a.leave()
    client.close()
    with pytest.raises(LoaderError, match="rank 0 of 2 cannot meet the others"):
        a.tell()
    a.leave()


# -- which rank -------------------------------------------------------------------------------


def test_which_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert resolve(None, None) == resolve("auto", None) == resolve(0, None) == (0, 1)
    assert resolve(2, 3) == (2, 3)
    assert resolve(np.int64(1), 2) == (1, 2)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match="RANK='1' and WORLD_SIZE=None"):
        resolve("auto", None)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolve("auto", None) == (1, 4)
    assert resolve(None, None) == (0, 1), "the environment alone surprises nobody"
    assert resolve(0, 1) == (0, 1)
    for rank, world_size, message in [
        (3, 3, r"in \[0, world_size=3\)"),
        (1, None, "without world_size"),
        (None, 2, "without a rank"),
        ("auto", 2, "without a rank"),
        (-1, 2, "rank must be an integer >= 0"),
        (0, 0, "world_size must be an integer >= 1"),
        (0.5, 2, "rank must be"),
        ("first", 2, "rank must be"),
    ]:
        with pytest.raises(UsageError, match=message):
            resolve(rank, world_size)


GROUP = """
import json, sys, torch.distributed as group
import numpy as np
from daskdmed import SlidingWindowDL
from daskdmed.loading.ranks import resolve
early = SlidingWindowDL(np.zeros((40, 50, 3), "u1"), kernel_size=10, block_windows=2)
group.init_process_group(
    "gloo", init_method=f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2
)
with early as loader:
    windows = [w.index for _, _, windows in loader for w in windows]
print(json.dumps([resolve(None, None), resolve("auto", None), windows]))
group.destroy_process_group()
"""


def test_the_process_group_of_torch(tmp_path):
    """Loaders know their rank by it, those too that were there before; windows come once."""
    import torch.distributed

    if not torch.distributed.is_gloo_available():
        pytest.skip("no gloo")
    command = [sys.executable, "-c", GROUP, str(tmp_path / "group")]
    ranks = [
        subprocess.Popen([*command, str(r)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for r in range(2)
    ]
    found = [json.loads(process.communicate()[0]) for process in ranks]
    assert [f[:2] for f in found] == [[[0, 2]] * 2, [[1, 2]] * 2]
    windows = [tuple(index) for f in found for index in f[2]]
    assert sorted(windows) == [(i, j) for i in range(4) for j in range(5)]
    assert all(f[2] for f in found)
    assert os.environ.get("RANK") is None
