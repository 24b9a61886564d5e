"""Several training processes: one plan, one resident set, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import LightDL
from daskdmed.errors import LoaderError, UsageError
from daskdmed.loading.ranks import resolve
from daskdmed.persistence import ranks as ranks_module
from daskdmed.persistence.ranks import Ranks
from tests.loading.conftest import assert_same_batches, collect, coordinate_dataset
from tests.loading.rank_process import PARAMETERS, counting_dataset
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def local():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="1 GiB", dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
def client(local):
    with Client(local, set_as_default=False) as client:
        yield client


class Run:
    """Rank processes that start together."""

    def __init__(self, folder, address, delays, patients):
        self.folder = folder
        self.job = {
            "folder": str(folder),
            "log": f"reads-{folder.name}",
            "address": address,
            "delays": delays,
            "world_size": len(delays),
            "patients": patients,
        }
        (folder / "job.json").write_text(json.dumps(self.job))
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.loading.rank_process", folder / "job.json", str(r)],
                cwd=ROOT,
                stderr=(folder / f"stderr-{r}").open("w"),
            )
            for r in range(len(delays))
        ]
        self.wait(lambda: all((folder / f"ready-{r}").exists() for r in range(len(delays))))
        (folder / "go").touch()

    def wait(self, condition):
        def come():
            failed = [r for r, p in enumerate(self.processes) if p.poll() not in (None, 0, -9)]
            assert not failed, (self.folder / f"stderr-{failed[0]}").read_text()
            return condition()

        until(come)

    def taken(self, rank):
        at = self.folder / f"at-{rank}"
        return int(at.read_text()) if at.exists() else 0

    def result(self, rank):
        with np.load(self.folder / f"rank-{rank}.npz") as saved:
            return list(zip(saved["patients"].tolist(), saved["origins"], strict=True))

    def reads(self):
        return Counter((self.folder / self.job["log"]).read_text().splitlines())

    def over(self):
        return all(p.poll() is not None for p in self.processes)

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def start(local, tmp_path):
    runs = []

    def start(delays, patients=4):
        runs.append(Run(tmp_path, local.scheduler_address, delays, patients))
        return runs[-1]

    yield start
    for run in runs:
        run.stop()


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


@pytest.mark.cluster
@pytest.mark.parametrize("delays", [[0.0, 0.12], [0.0, 0.1, 0.0, 0.02]])
def test_ranks_of_unequal_speed_read_each_big_chunk_once(start, client, tmp_path, delays):
    run = start(delays)
    most, ahead = 0, 0
    while not run.over():
        most = max(most, len(big_chunks(client)))
        taken = [run.taken(r) for r in range(len(delays))]
        ahead = max(ahead, max(taken) - min(taken))
        time.sleep(0.02)
    run.wait(run.over)
    whole = single(tmp_path)
    n = len(delays)
    for rank in range(n):
        assert_same(run.result(rank), whole[: len(whole) // n * n][rank::n])
    reads = run.reads()
    assert len(reads) == 4 * 9
    assert set(reads.values()) == {1}, "each big chunk is read once for all ranks"
    capacity = LightDL(coordinate_dataset(), **PARAMETERS)._assembly.planning.allotment.capacity
    assert most <= capacity, "all ranks together hold what one of them may"
    assert 0 < ahead < len(whole) // n, "the fast ones do not run away"
    assert_released(client)


@pytest.mark.cluster
def test_a_killed_rank_leaves_the_others_running(start, client, tmp_path):
    run = start([0.0, 0.05])
    run.wait(lambda: run.taken(1) >= 3)
    run.processes[1].send_signal(signal.SIGKILL)
    run.wait(lambda: run.processes[0].poll() == 0)
    whole = single(tmp_path)
    assert_same(run.result(0), whole[: len(whole) // 2 * 2][0::2])
    reads = run.reads()
    allotment = LightDL(coordinate_dataset(), **PARAMETERS)._assembly.planning.allotment
    # what the dead rank alone had read ahead is gone with it
    again = sum(reads.values()) - len(reads)
    assert again <= allotment.capacity - allotment.slots
    assert len(reads) == 4 * 9
    assert_released(client)


@pytest.mark.cluster
def test_a_rank_that_stands_still_is_left_behind(client, local, monkeypatch, caplog, tmp_path):
    """It can still go on later: what it missed is read again."""
    monkeypatch.setattr(ranks_module, "STALL_LIMIT", 0.5)
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


@pytest.mark.cluster
def test_a_rank_that_never_comes_is_not_waited_for(client, monkeypatch, tmp_path):
    monkeypatch.setattr(ranks_module, "JOIN_LIMIT", 0.3)
    dataset = counting_dataset(tmp_path / "alone", 2)
    with LightDL(dataset, **PARAMETERS, rank=1, world_size=3, client=client) as loader:
        assert len(collect(loader, len(loader))) == len(loader)
        # and closing while it waits is no trouble
    monkeypatch.setattr(ranks_module, "JOIN_LIMIT", 1e6)
    with LightDL(dataset, **PARAMETERS, rank=1, world_size=3, client=client) as loader:
        next(loader)
        time.sleep(0.3)
    assert_released(client)


@pytest.mark.cluster
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


@pytest.mark.cluster
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
