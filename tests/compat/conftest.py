"""Fixtures of the tests of other libraries' names."""

from __future__ import annotations

import pytest

pytest.importorskip("h5py")

from daskdmed.compat.medsegpy.data import DatasetCatalog, MetadataCatalog, register_oai
from tests.compat.made import Made


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("oai"))


@pytest.fixture
def catalogs():
    """The catalogues of this process, empty, and empty again."""
    yield
    for name in [*DatasetCatalog.list()]:
        DatasetCatalog.remove(name)
    MetadataCatalog._known.clear()


@pytest.fixture
def registered(made, catalogs) -> Made:
    """Made scans as the datasets "slices" and "volumes"."""
    register_oai("slices", made.slices)
    register_oai("volumes", made.volumes)
    return made
