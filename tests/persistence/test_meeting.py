"""Processes of one machine find one host, whoever dies; nothing is left when nobody wants it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile

import psutil
import pytest

from daskdmed.errors import LoaderError, UsageError
from daskdmed.persistence import hosting
from daskdmed.persistence import meeting as meetings
from daskdmed.persistence.meeting import Meeting
from tests.waiting import until

CONTEXT = multiprocessing.get_context("forkserver")
JOB = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"daskdmed-{os.getuid()}"


# -- without a host -------------------------------------------------------------------------


def test_who_meets_whom():
    def at(*facts, **environ):
        return Meeting.of(*facts, environ=environ).path

    assert at(2, "1.0", **JOB) == at(2, "1.0", **JOB)
    assert at(2, "1.0", **JOB, RANK="0") == at(2, "1.0", **JOB, RANK="1")
    others = [
        at(2, "1.0", **JOB),
        at(3, "1.0", **JOB),
        at(2, "1.1", **JOB),
        at(2, "1.0", **{**JOB, "MASTER_PORT": "29501"}),
        at(2, "1.0", **JOB, TORCHELASTIC_RESTART_COUNT="1"),
        at(2, "1.0", **JOB, SLURM_STEP_ID="3"),
    ]
    assert len(set(others)) == len(others)


def test_the_folder_is_the_users_alone(folder):
    Meeting.of()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(UsageError, match=r"only user \d+ can use \(it is drwxr-xr-x.*TMPDIR"):
        Meeting.of()


def test_a_link_to_another_folder_is_refused(folder, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="it is lrwx"):
        Meeting.of()


def test_no_folder_for_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    with pytest.raises(UsageError, match=r"no folder in which .*not there.* set TMPDIR"):
        Meeting.of()


def test_a_platform_without_locks(monkeypatch):
    monkeypatch.setattr(meetings, "fcntl", None)
    with pytest.raises(UsageError, match=r"no flock.*client=Client\(address\)"):
        hosting.shared(1, None)


def hold(path, there):
    with Meeting.at(path).coming_in(0):
        there.set()
        signal.pause()


def test_the_door_is_one_at_a_time_and_no_dead_process_keeps_it():
    place, there = Meeting.of(), CONTEXT.Event()
    holder = CONTEXT.Process(target=hold, args=(str(place.path), there))
    holder.start()
    there.wait()
    with pytest.raises(LoaderError, match=r"another process has been looking .* give client="):
        place.coming_in(0.1).__enter__()
    os.kill(holder.pid, signal.SIGKILL)
    with place.coming_in(60):
        pass
    holder.join()


def test_there_is_one_host_and_its_files_go_with_it(folder):
    one, two = Meeting.of(), Meeting.of()
    with one.held() as first:
        with two.held() as second:
            assert (first, second) == (True, False)
        one.tell("tcp://127.0.0.1:1")
        assert two.found(0)["address"] == "tcp://127.0.0.1:1"
    assert two.found(0) is None
    with two.held() as again:
        assert again
        with pytest.raises(LoaderError, match=r"have not started within 0 s"):
            one.found(0)
    assert not [p for p in folder.iterdir() if p.suffix != ".host"]


# -- with one -----------------------------------------------------------------------------


def come(folder, connection, dies=False):
    """What a process of one's own does: find the host, stay until it is told to go."""
    tempfile.tempdir = folder
    hosting.IDLE_LIMIT = hosting.UNUSED_LIMIT = 1.0
    if dies:
        launch = hosting._launch
        hosting._launch = lambda *a: (launch(*a), os.kill(os.getpid(), signal.SIGKILL))
    client, close = hosting.shared(1, None)
    client.submit(os.getpid).result()
    connection.send(client.scheduler.address)
    connection.recv()
    client.submit(os.getpid, pure=False).result()
    connection.send("still there")
    close()


def begin(tmp_path, **options):
    """(process, connection to it); no queue: who dies with its lock would stop all others."""
    mine, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=come, args=(str(tmp_path), its), kwargs=options)
    process.start()
    its.close()
    return process, mine


def end(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def host_of(folder):
    """It and its workers."""
    (path,) = folder.glob("*.host")
    host = psutil.Process(json.loads(path.read_text())["pid"])
    return [host, *host.children(recursive=True)]


def assert_nothing_is_left(folder, processes):
    until(lambda: not any(p.is_running() for p in processes))
    assert list(folder.iterdir()) == []


@pytest.mark.cluster
def test_all_find_one_host_and_go_on_when_the_first_are_killed(tmp_path, folder):
    (first, told), *others = [begin(tmp_path) for _ in range(3)]
    assert len({told.recv(), *(c.recv() for _, c in others)}) == 1
    processes = host_of(folder)
    end(first)
    for process, connection in others:
        connection.send("go")
        assert connection.recv() == "still there"
        process.join()
    assert_nothing_is_left(folder, processes)


@pytest.mark.cluster
def test_a_host_whose_starter_died_is_found_and_a_dead_one_is_not_waited_for(tmp_path, folder):
    starter, _ = begin(tmp_path, dies=True)
    starter.join()
    assert starter.exitcode == -signal.SIGKILL
    one, told = begin(tmp_path)
    address, processes = told.recv(), host_of(folder)
    processes[0].kill()
    until(lambda: not any(p.is_running() for p in processes))
    two, told_too = begin(tmp_path)
    assert told_too.recv() != address
    processes = host_of(folder)
    end(one)
    end(two)
    assert_nothing_is_left(folder, processes)


@pytest.mark.cluster
def test_what_keeps_a_shared_host_from_starting_is_told(tmp_path, folder, monkeypatch):
    (tmp_path / "distributed.py").write_text("raise RuntimeError('this one is broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoaderError, match=r"(?s)ended while they started.*this one is broken"):
        hosting.shared(1, None)
