"""What all tests share: a cache folder of their own, and property tests without deadlines.

A machine may be slow or busy with other work: how long an example takes says nothing about
whether it is right.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import dask
import pytest
from hypothesis import HealthCheck, settings

from daskdmed.samples import _plan

# where `CI` is set every run tries the same examples; elsewhere runs go on searching
settings.register_profile(
    "daskdmed",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("daskdmed")

_folder = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder for this session, before any test module copies the environment.

    Where several processes test, as many as there are cores, torch has one thread in each, and what
    they start: more would take turns, and burn time while they wait for each other.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    config.stash[_folder] = tempfile.TemporaryDirectory(prefix="daskdmed-tests-")
    os.environ["DASKDMED_CACHE_DIR"] = config.stash[_folder].name


@pytest.fixture(autouse=True, scope="session")
def workers_are_forks() -> Iterator[None]:
    """Worker processes are forks of one that has imported what they need: that is most of a start.

    The server is begun now, so that it is this one that Dask finds.
    """
    multiprocessing.set_forkserver_preload(["tests.warm"])
    forkserver.ensure_running()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


@pytest.fixture(autouse=True, scope="session")
def each_texture_is_drawn_once() -> Iterator[None]:
    """The library keeps the last ones of made slides; tests take turns with many."""
    with pytest.MonkeyPatch.context() as patch:
        draw = _plan.synthetic_textures.__wrapped__
        patch.setattr(_plan, "synthetic_textures", functools.lru_cache(maxsize=None)(draw))
        yield


@pytest.fixture(autouse=True, scope="module")
def no_scheduler_is_left() -> Iterator[None]:
    """A module of tests leaves no client behind by which those after it would compute."""
    yield
    left = dask.config.get("scheduler", None)
    dask.config.config.pop("scheduler", None)
    assert left is None, f"dask.config scheduler={left!r} is left"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files beside this one, some of which run whole programs, come first: so that no process
    waits for them alone."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent != here)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_folder].cleanup()
