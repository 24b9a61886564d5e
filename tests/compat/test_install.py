"""A package under a second name: a script's own import lines give the same objects, until it is
taken away."""

from __future__ import annotations

import importlib
import sys

import pytest

import daskdmed.compat.medsegpy
from daskdmed.compat._install import install
from daskdmed.errors import UsageError


def test_import_lines_of_a_script():
    with daskdmed.compat.medsegpy.install():
        import medsegpy.data
        from medsegpy.config import UNetConfig
        from medsegpy.data.data_loader import DefaultDataLoader
        from medsegpy.data.transforms import FlipTransform

        # the same, not copies: what is registered here is found there
        own = importlib.import_module("daskdmed.compat.medsegpy.data")
        assert medsegpy.data is own
        assert medsegpy.data.DatasetCatalog is own.DatasetCatalog
        assert DefaultDataLoader is own.DefaultDataLoader
        for cls in (UNetConfig, FlipTransform):
            assert cls.__module__.startswith("daskdmed.compat.medsegpy.")
        assert sys.modules["daskdmed.compat.medsegpy.data"].__spec__.name.startswith("daskdmed")
        with pytest.raises(ModuleNotFoundError, match=r"'medsegpy.models'.* has 'config', 'data'"):
            importlib.import_module("medsegpy.models")
    assert not [n for n in sys.modules if n.split(".")[0] == "medsegpy"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("medsegpy")


def test_twice_is_once_and_a_package_that_is_there_is_not_hidden(monkeypatch):
    first = daskdmed.compat.medsegpy.install()
    assert daskdmed.compat.medsegpy.install() is first
    with pytest.raises(UsageError, match="medsegpy stands for daskdmed.compat.medsegpy already"):
        install("medsegpy", "daskdmed.cohort")
    first.remove()
    first.remove()
    with pytest.raises(UsageError, match="json itself is installed"):
        install("json", "daskdmed.cohort")
