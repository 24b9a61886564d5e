"""What `WorkerSetup` does on a worker."""

from __future__ import annotations

import importlib
import os
import sys
from types import SimpleNamespace

import pytest

from daskdmed.errors import UsageError
from daskdmed.persistence.plugin import _VARIABLES, WorkerSetup

WORKER = SimpleNamespace(address="tcp://here:1")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in _VARIABLES:
        monkeypatch.setenv(name, "1")


def test_threads_of_libraries_and_of_torch(monkeypatch):
    told = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=told.append))
    WorkerSetup(threads=3).setup(WORKER)
    assert {os.environ[name] for name in _VARIABLES} == {"3"}
    assert told == [3]
    WorkerSetup().setup(WORKER)
    assert told == [3], "nothing was asked for"


def test_modules_are_imported_from_the_path(tmp_path, monkeypatch):
    (tmp_path / "only_of_workers.py").write_text("value = 5")
    WorkerSetup(preload="only_of_workers", path=tmp_path.as_posix()).setup(WORKER)
    module = sys.modules.pop("only_of_workers")
    assert module.value == 5
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match=r"tcp://here:1 cannot import 'nowhere_to_be_found'"):
        WorkerSetup(preload=["nowhere_to_be_found"]).setup(WORKER)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_threads_are_a_count(threads):
    with pytest.raises(UsageError, match="threads"):
        WorkerSetup(threads=threads)
