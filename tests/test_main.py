"""`python -m daskdmed` tells what is there and what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys

import dask
import pytest

from daskdmed import __main__ as main
from daskdmed import __version__
from daskdmed.core import native
from daskdmed.images import registry, turbojpeg


def test_it_says_the_same_to_people_and_programs_without_torch():
    script = (
        "import runpy, sys; sys.argv[1:] = {}; runpy.run_module('daskdmed', run_name='__main__');"
        "assert 'torch' not in sys.modules and 'distributed' not in sys.modules"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script.format(arguments)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for arguments in (["--json"], [])
    ]
    found = json.loads(outputs[0])
    assert found["daskdmed"] == __version__
    assert found["python"].startswith(platform.python_version())
    numpy = found["packages"]["numpy"]
    assert numpy["version"] == importlib.metadata.version("numpy")
    assert numpy["wanted"].startswith(">=")
    assert numpy["extras"] == []
    assert found["packages"]["nibabel"]["extras"] == ["volumes"]
    assert {"pytest", "sphinx", "daskdmed"} & found["packages"].keys() == set()
    assert found["readers"].keys() == set(registry.backend_names())
    assert found["readers"]["tiff"] == {"kind": "slide", "missing": None}
    assert "libjpeg_turbo" in found["codecs"]["imagecodecs"]
    for word in (__version__, numpy["version"], "openslide", "libjpeg_turbo", "TurboJPEG"):
        assert word in outputs[1]


def test_what_a_reader_lacks_and_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    monkeypatch.setitem(sys.modules, "openslide", None)
    found = main.readers()
    assert "nibabel" in found["nifti"]["missing"]
    assert "pip install 'daskdmed[volumes]'" in found["nifti"]["missing"]
    assert "pip install 'daskdmed[openslide]'" in found["openslide"]["missing"]
    assert found["tiff"]["missing"] is None
    assert found["npy"] == {"kind": "volume", "missing": None}
    assert "MISSING nibabel" in main.text_of(main.report())


def test_a_reader_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(registry._BUILT_IN, "theirs", "no_such_module:Backend")
    registry.refresh()
    try:
        found = main.readers()["theirs"]
    finally:
        monkeypatch.undo()
        registry.refresh()
    assert found["kind"] is None
    assert "no_such_module" in found["missing"]


def test_every_reader_names_what_its_module_imports_when_it_is_used():
    needed = {n: set(getattr(registry.get_backend(n), "needs", ())) for n in ("dicom", "hdf5")}
    assert needed == {"dicom": {"pydicom"}, "hdf5": {"h5py"}}
    extras = main.packages()
    for name in registry.backend_names():
        for module, extra in getattr(registry.get_backend(name), "needs", {}).items():
            ours = [p for p, entry in extras.items() if extra in entry["extras"]]
            assert any(p.lower().startswith(module.lower()[:5]) for p in ours), (name, module)


def test_a_package_that_is_too_old_or_not_there(monkeypatch):
    there = importlib.metadata.version

    def version(name):
        if name == "h5py":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "tifffile" else there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = main.packages()
    assert found["h5py"]["version"] is None
    assert not found["tifffile"]["enough"]
    assert found["numpy"]["enough"]
    text = main.text_of(main.report())
    assert f"WANTED {found['tifffile']['wanted']}" in text
    assert text.count("WANTED") == 1
    assert "not installed" in text


@pytest.mark.parametrize(
    ("setting", "said"),
    [(False, "off"), (True, "memfd_create" if sys.platform == "linux" else "named")],
)
def test_shared_memory_is_tried(setting, said):
    with dask.config.set({"daskdmed.shared-memory": setting}):
        assert main.shared_memory().startswith(said)


def test_what_is_compiled_is_told(monkeypatch):
    assert f"compiled loops        {main.codecs()['compiled']}" in main.text_of(main.report())
    with monkeypatch.context() as patch:
        patch.delenv(native.VARIABLE, raising=False)
        patch.setattr(native, "library", lambda: object())
        assert main.compiled(tiles=True) == "tiles and copies"
        assert main.compiled(tiles=False).startswith("copies (tiles need")
        patch.setattr(native, "library", lambda: None)
        assert main.compiled(tiles=False).startswith("not built: install daskdmed again")
    monkeypatch.setenv(native.VARIABLE, "off")
    assert main.codecs()["compiled"] == "off (DASKDMED_NATIVE)"


def test_codecs_that_are_turned_off_or_named_in_vain(monkeypatch):
    monkeypatch.setenv(turbojpeg.VARIABLE, "off")
    assert main.codecs()["turbojpeg"] == "off (DASKDMED_TURBOJPEG)"
    turbojpeg.library.cache_clear()
    monkeypatch.setenv(turbojpeg.VARIABLE, "/no/such/library.so")
    try:
        assert "/no/such/library.so" in main.codecs()["turbojpeg"]
    finally:
        turbojpeg.library.cache_clear()
