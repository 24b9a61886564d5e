from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

from daskdmed.errors import SampleNotAvailableError
from daskdmed.images.filecache import cache
from daskdmed.samples import fetch


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"daskdmed_tests{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """Functions that write small TIFF slides."""
    return _load("_make")


@pytest.fixture(scope="session")
def vendors() -> ModuleType:
    """Functions that write small slides as vendors do."""
    return _load("_vendors")


@pytest.fixture(scope="session")
def dicomwsi() -> ModuleType:
    """Functions that write small DICOM whole-slide images."""
    pytest.importorskip("pydicom")
    return _load("_dicomwsi")


@pytest.fixture(scope="session")
def czi() -> ModuleType:
    """Functions that write small CZI files."""
    return _load("_czi")


@pytest.fixture(scope="session")
def cmu() -> str:
    try:
        return str(fetch("CMU-1-Small-Region.svs"))
    except SampleNotAvailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def qptiff() -> str:
    path = Path(os.environ.get("DASKDMED_DATA_DIR", ".")) / "small_vectra.qptiff"
    if not path.exists():
        pytest.skip("small_vectra.qptiff is not in DASKDMED_DATA_DIR")
    return str(path)


@pytest.fixture(autouse=True)
def _close_files():
    yield
    cache.clear()
