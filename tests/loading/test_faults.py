"""Workers, loaders and process groups are killed while ranks train: the same batches, no trace.

With DASKDMED_LONG_TESTS=1 at 100 moments, and by Dask's own `KillWorker`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from distributed.chaos import KillWorker

from daskdmed import LightDL
from daskdmed.persistence import hosting
from daskdmed.persistence.policy import OnePass
from tests.loading.conftest import SMALL, assert_same_batches, collect, coordinate_dataset
from tests.waiting import until

pytestmark = pytest.mark.cluster
LONG = bool(os.environ.get("DASKDMED_LONG_TESTS"))
CONTEXT = multiprocessing.get_context("forkserver")
PARAMETERS = {**SMALL, "resident": "7 MiB", "policy": OnePass(), "seed": 6, "world_size": 2}


def dataset():
    return coordinate_dataset(2, height=1100, width=1000)


@pytest.fixture(scope="module")
def whole():
    """What an undisturbed loader gives, for two ranks."""
    with LightDL(dataset(), **{**PARAMETERS, "world_size": 1, "rank": 0}) as loader:
        batches = collect(loader, len(loader))
    return batches[: len(batches) // 2 * 2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the ranks of a test meet; nothing is left when they have gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(hosting, "IDLE_LIMIT", 1.0)
    folder = tmp_path / f"daskdmed-{os.getuid()}"
    before = traces()
    yield folder
    until(lambda: not folder.exists() or not list(folder.iterdir()))
    until(lambda: traces() == before)


def traces():
    """Processes that read, those below this one, its threads and descriptors, shared memory."""
    hosts = set()
    for process in psutil.process_iter():
        if f"{tempfile.gettempdir()}/" in said(process):
            hosts.add(process.pid)
    threads = {t.name for t in threading.enumerate() if t.name.startswith("daskdmed-")}
    mine = psutil.Process()
    children = {p.pid for p in mine.children(recursive=True) if "persistence.host" in said(p)}
    segments = {p.name for p in Path("/dev/shm").iterdir() if "daskdmed" in p.name}
    descriptors = sorted(filter(None, map(link_of_memory, Path("/proc/self/fd").iterdir())))
    return hosts, threads, children, segments, descriptors


def said(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def link_of_memory(file):
    """What a descriptor of shared memory is called; nothing for others."""
    with contextlib.suppress(OSError):
        link = os.readlink(file)
        return link if "memfd" in link else ""
    return ""


def each_rank(client, whole, disturb):
    """Both ranks take all their batches, each in a thread, while something is done to them."""
    with ExitStack() as stack:
        loaders = [
            stack.enter_context(LightDL(dataset(), **PARAMETERS, rank=rank, **client))
            for rank in range(2)
        ]
        taken = [[], []]

        def take(rank):
            for _ in range(len(whole) // 2):
                taken[rank] += collect(loaders[rank], 1)

        threads = [threading.Thread(target=take, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        disturb(loaders[0], lambda: any(thread.is_alive() for thread in threads))
        for thread in threads:
            thread.join()
    for rank in range(2):
        assert_same_batches(taken[rank], whole[rank::2])


def test_workers_that_are_killed(whole):
    left = 60 if LONG else 2
    rng = random.Random(0)

    def kill(loader, going):
        nonlocal left
        client = loader._cluster.client
        while left and going():
            reached = loader.stats().batches + rng.randrange(1, 5)
            until(lambda n=reached: loader.stats().batches >= n or not going())
            there = sorted(client.run(os.getpid, on_error="ignore").values())
            if there:  # else all have just been killed
                os.kill(rng.choice(there), signal.SIGKILL)
                left -= 1

    while left:
        each_rank({"workers": 2}, whole, kill)


@pytest.mark.skipif(not LONG, reason="DASKDMED_LONG_TESTS=1 runs it")
@pytest.mark.parametrize("mode", ["sys.exit", "graceful", "segfault"])
def test_dasks_own_chaos(whole, mode):
    killed = set()

    def begin(loader, going):
        client = loader._cluster.client
        before = set(client.run(os.getpid).values())
        client.register_plugin(KillWorker("500 ms", mode), name="chaos")
        until(lambda: not going())
        killed.update(before - set(client.run(os.getpid, on_error="ignore").values()))
        client.unregister_worker_plugin("chaos")

    while not killed:
        each_rank({"workers": 2}, whole, begin)


def second_rank(folder, connection):
    """A rank as a process (and process group) of its own."""
    tempfile.tempdir = folder
    hosting.IDLE_LIMIT = 1.0
    os.setsid()
    with LightDL(dataset(), **PARAMETERS, rank=1, workers=1) as loader:
        while True:
            collect(loader, 1)
            connection.send(loader.stats().batches)


@pytest.mark.parametrize("first", ["the rank that stays", "the rank that is killed"])
def test_ranks_that_are_killed(whole, tmp_path, first):
    rng = random.Random(1)
    for number in range(20 if LONG else 1):
        mine, its = CONTEXT.Pipe()
        process = CONTEXT.Process(target=second_rank, args=(str(tmp_path), its))
        loader = LightDL(dataset(), **PARAMETERS, rank=0, workers=1)
        if first == "the rank that stays":
            loader.start()
        process.start()
        its.close()
        until(mine.poll)  # it has a batch
        with loader:
            batches = collect(loader, rng.randrange(1, len(whole) // 4))
            kill = os.kill if number % 2 else os.killpg
            kill(process.pid, signal.SIGKILL)
            batches += collect(loader, len(whole) // 2 - len(batches))
        assert_same_batches(batches, whole[0::2])
        process.join()
