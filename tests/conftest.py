"""What all tests share: nothing is written to the cache folder of whoever runs them."""

from __future__ import annotations

import os
import tempfile

import pytest

_folder = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder for this session, before any test module copies the environment."""
    config.stash[_folder] = tempfile.TemporaryDirectory(prefix="daskdmed-tests-")
    os.environ["DASKDMED_CACHE_DIR"] = config.stash[_folder].name


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_folder].cleanup()
