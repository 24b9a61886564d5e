"""Runs that are killed at random moments resume to the store of a run that was not."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time

import dask
import numpy as np
import pytest
import zarr

from daskdmed import heatmap
from daskdmed.errors import StoreError
from tests.inference import _killing
from tests.inference._killing import Mean, image

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")


@pytest.fixture(scope="module")
def server():
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.inference._killing", "daskdmed.inference.heatmap"])
    return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "a.zarr"
    _killing.compute(str(out))
    return contents(out)


@pytest.fixture(scope="module")
def moments(server, tmp_path_factory):
    """How many moments a run has."""
    out = tmp_path_factory.mktemp("counted") / "a.zarr"
    ended(server, _killing.killed_at, str(out), 0)
    number = int(out.with_name("a.zarr.moments").read_text())
    # each block: the model twice or more, the data, the mark
    assert number > 200
    return number


def contents(path):
    """Every file of a store, by name."""
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def blocks_done(out):
    try:
        done = zarr.open_group(out, mode="r")["done"][...]
    except (OSError, KeyError, ValueError):  # killed before there was a store
        return 0
    return int(done.sum())


def ended(server, function, *arguments, **keywords):
    """The exit code of a process that did this."""
    process = server.Process(target=function, args=arguments, kwargs=keywords)
    process.start()
    process.join()
    return process.exitcode


def wait_for(path, process):
    while not path.exists():
        assert process.is_alive(), "ended before it came to that"
        time.sleep(0.005)


def test_random_moments(server, whole, moments, tmp_path):
    chosen = random.Random(2024)
    seen = []
    for number in range(8):
        out = tmp_path / f"{number}.zarr"
        # one in each eighth of the run; the last is left to what follows all blocks
        moment = 1 + int((number + chosen.random()) / 8 * 0.95 * moments)
        assert ended(server, _killing.killed_at, str(out), moment) == -signal.SIGKILL
        seen.append(blocks_done(out))
        _killing.compute(str(out), resume=True)
        assert contents(out) == whole, f"moment {moment}, {seen[-1]} blocks were done"
    # the moments lie within the runs, or nothing was tested
    assert len(set(seen) - {0, 50}) > 4


def test_killed_again_and_again(server, whole, moments, tmp_path):
    """The same store, killed until it is finished."""
    chosen = random.Random(7)
    out = tmp_path / "a.zarr"
    for _ in range(3):
        moment = chosen.randrange(moments // 20, moments // 6)
        code = ended(server, _killing.killed_at, str(out), moment, resume=True)
        assert code == -signal.SIGKILL
    assert 0 < blocks_done(out) < 50
    _killing.compute(str(out), resume=True)
    assert contents(out) == whole


def test_killed_while_replacing(server, whole, moments, tmp_path):
    """The old result stays until the new one is complete, whenever the kill comes."""
    chosen = random.Random(3)
    out = tmp_path / "a.zarr"
    heatmap(image() + 1, Mean(), kernel_size=16, block_windows=2, out=out)
    old = contents(out)
    for number in range(3):
        moment = 1 + int((number + chosen.random()) / 3 * 0.9 * moments)
        code = ended(server, _killing.killed_at, str(out), moment, overwrite=True)
        assert code == -signal.SIGKILL
        assert contents(out) == old
    _killing.compute(str(out), overwrite=True, resume=True)
    assert contents(out) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.cluster
def test_workers_and_clients_are_killed(server, whole, tmp_path):
    from distributed import Client, LocalCluster

    chosen = random.Random(11)
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        # a worker that dies is no error: its blocks are computed by another
        out, folder = tmp_path / "worker.zarr", tmp_path / "worker"
        folder.mkdir()
        model = _killing.KillsWorker(folder, chosen.randrange(5, 30))
        assert ended(server, _killing.compute_on, cluster.scheduler_address, str(out), model) == 0
        assert (folder / "killed").exists()
        assert contents(out) == whole
        client.wait_for_workers(2)  # the next one begins with workers that are there
        out, folder = tmp_path / "client.zarr", tmp_path / "client"
        folder.mkdir()
        model = _killing.Held(folder, chosen.randrange(5, 90))
        process = server.Process(
            target=_killing.compute_on, args=(cluster.scheduler_address, str(out), model)
        )
        process.start()
        wait_for(folder / "held", process)
        process.kill()
        process.join()
        (folder / "go").touch()
        assert contents(out) != whole
        _killing.compute(str(out), resume=True, client=client)
        assert contents(out) == whole


@pytest.mark.cluster
def test_everything_is_killed(whole, tmp_path):
    out = tmp_path / "a.zarr"
    script = tmp_path / "job.py"
    script.write_text(
        "import sys; from tests.inference import _killing\n"
        "if __name__ == '__main__':\n"
        "    _killing.compute_with_cluster(sys.argv[1], sys.argv[2], 40)"
    )
    job = subprocess.Popen(
        [sys.executable, str(script), str(out), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "held").exists():
        assert job.poll() is None
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert contents(out) != whole
    _killing.compute(str(out), resume=True)
    assert contents(out) == whole


class Failing(zarr.storage.WrapperStore):
    """A disk that is full, or that may not be written, after some writes."""

    def __init__(self, store, left, number):
        super().__init__(store)
        self.left, self.number = left, number

    def _with_store(self, store):
        return Failing(store, self.left, self.number)

    async def set(self, key, value):
        if not self.left:
            raise OSError(self.number, os.strerror(self.number), key)
        self.left.pop()
        await self._store.set(key, value)


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (errno.ENOSPC, 2),
        (errno.ENOSPC, 10),
        (errno.ENOSPC, 31),
        (errno.EROFS, 10),
        (errno.EDQUOT, 10),
    ],
)
def test_a_disk_that_fails(number, after, tmp_path, whole):
    """Data and map of what is done fail alike; what was written before is kept."""
    out = tmp_path / "a.zarr"
    store = Failing(zarr.storage.LocalStore(out), [None] * after, number)
    remedy = "make room" if number != errno.EROFS else "read-only"
    if after < 4:  # not even the metadata
        remedy = f"cannot create the result store .*{os.strerror(number)}"
    with pytest.raises(StoreError, match=remedy) as caught:
        run(store)
    if after > 3:
        assert "resume=True" in " ".join(caught.value.__notes__)
    _killing.compute(str(out), resume=True)
    assert contents(out) == whole


def run(out, **keywords):
    return heatmap(
        image(), Mean(), kernel_size=16, block_windows=2, batch_size=2, out=out, **keywords
    )


@contextlib.contextmanager
def files_of_at_most(size):
    """What a quota does to this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_chunks_that_are_too_large_for_the_disk(tmp_path):
    noise = np.random.default_rng(0).random((64, 128)).astype(np.float32)
    noise[:, :64] = 3  # the first chunk is small
    out = tmp_path / "a.zarr"
    keywords = {"kernel_size": 1, "block_windows": 64, "out": out}
    with (
        files_of_at_most(4000),
        # one after the other, so that the first one has ended when the second fails
        dask.config.set(num_workers=1),
        pytest.raises(StoreError, match="File too large"),
    ):
        heatmap(noise, lambda w: w[:, 0, 0], **keywords)
    assert blocks_done(out) == 1
    found = heatmap(noise, lambda w: w[:, 0, 0], **keywords, resume=True)
    np.testing.assert_array_equal(found, noise)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
def test_a_full_and_a_read_only_file_system(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    noise = np.random.default_rng(0).random((512, 512)).astype(np.float32)
    keywords = {"kernel_size": 1, "block_windows": 64, "out": disk / "a.zarr"}

    def model(windows):
        return windows[:, 0, 0]

    try:
        with pytest.raises(StoreError, match="the disk is full: make room") as caught:
            heatmap(noise, model, **keywords)
        assert "resume=True" in " ".join(caught.value.__notes__)
        done = blocks_done(disk / "a.zarr")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StoreError, match="read-only"):
            heatmap(noise, model, **keywords, resume=True)
        with pytest.raises(StoreError, match="read-only|Read-only"):
            heatmap(noise, model, **{**keywords, "out": disk / "b.zarr"})
        subprocess.run(["mount", "-o", "remount,rw,size=8m", disk], check=True)
        assert blocks_done(disk / "a.zarr") == done > 0
        found = heatmap(noise, model, **keywords, resume=True)
        np.testing.assert_array_equal(found, noise)
    finally:
        subprocess.run(["umount", disk], check=False)
