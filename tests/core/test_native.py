"""What is compiled: the same as NumPy, or not used."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskdmed.core import native

ROOT = Path(__file__).parents[2]
needs_library = pytest.mark.skipif(native.library() is None, reason="nothing compiled is here")


def sources(kind, seed=0):
    """Arrays of some shapes and strides, (source, like which the target is made)."""
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 200, (9, 40, 50, 3)).astype(kind)
    return [
        block[0, 3:20, 4:30],
        block[1, 3:4, 4:5],
        block[:, 3:20, 4:30],
        block[2, ::-1, 10:20],
        block[3, :, ::2],
        block[4, :, 5:9, 0],
        block[5].transpose(1, 0, 2),
        block[6, 3:3],
        block[7],
        np.asfortranarray(block[8, :5, :6]),
        block[0, 0, 0, :1],
        block[0, 0, 0, 0:0],
        np.array(7, kind),
    ]


@needs_library
@pytest.mark.parametrize("kind", ["u1", "<u2", ">i4", "f4", "f8", "?", "c16", "M8[s]", "O"])
@pytest.mark.parametrize("gaps", [False, True])
def test_copies_are_those_of_numpy(kind, gaps, monkeypatch):
    pairs, wide = [], []
    for source in sources(kind):
        whole = np.zeros([n + 2 * gaps for n in source.shape], kind)
        wide.append(whole)
        pairs.append((whole[(..., *(slice(gaps, gaps + n) for n in source.shape))], source))
    native.copy_all(pairs)
    for (target, source), whole in zip(pairs, wide, strict=True):
        assert np.array_equal(target, source)
        target[...] = np.zeros((), kind)
        assert not np.any(whole != np.zeros((), kind))  # nothing beside it


@needs_library
def test_of_what_numpy_changes_numpy_copies():
    """Other types are converted, other shapes broadcast, as without what is compiled."""
    source = np.arange(12, dtype=np.int32).reshape(3, 4)
    targets = [np.zeros((3, 4), np.float32), np.zeros((2, 3, 4), np.int32), np.zeros((3, 4), "<i4")]
    native.copy_all([(target, source) for target in targets])
    assert all((target == source).all() for target in targets)
    with pytest.raises(ValueError, match="broadcast"):
        native.copy_all([(np.zeros((3, 4), np.int32), source), (np.zeros((3, 5), "u1"), source)])


@needs_library
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 9), st.integers(1, 3)),
        min_size=2,
        max_size=6,
    )
)
def test_copies_of_any_shape(shapes):
    pairs = []
    for seed, (planes, rows, columns, step) in enumerate(shapes):
        around = np.random.default_rng(seed).integers(0, 255, (6, 8, 30, 3), np.uint8)
        source = around[:planes, :rows, : columns * step : step]
        pairs.append((np.zeros_like(around)[:planes, :rows, :columns], source))
    native.copy_all(pairs)
    assert all(np.array_equal(target, source) for target, source in pairs)


def test_without_what_is_compiled(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    pairs = [(np.zeros_like(source), source) for source in sources("u1")]
    native.copy_all(pairs)
    assert all(np.array_equal(target, source) for target, source in pairs)
    assert native.tiles() is None


@pytest.mark.parametrize("content", [b"no library", None])
def test_what_was_built_of_another_version_is_not_used(content, tmp_path, monkeypatch):
    """Nor what is no library at all."""
    path = tmp_path / "_loops.so"
    if content is None:
        if native.library() is None:
            pytest.skip("nothing compiled is here")
        monkeypatch.setattr(native, "_TILES", "daskdmed_tiles_0")
        shutil.copyfile(native.library()._name, path)
    else:
        path.write_bytes(content)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    assert native.library.__wrapped__() is None


def test_it_can_be_turned_off():
    code = "from daskdmed.core import native; print(native.library(), native.tiles())"
    env = {**os.environ, native.VARIABLE: "off"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["None", "None"], done.stderr


@pytest.fixture
def build():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hook(build, tmp_path, monkeypatch):
    """The build hook of a copy of the sources, and what it warns of."""
    monkeypatch.delenv(native.VARIABLE, raising=False)
    folder = tmp_path / build.FOLDER
    shutil.copytree(ROOT / build.FOLDER, folder, ignore=shutil.ignore_patterns("_loops.*"))
    warned = []

    class App:
        display_warning = warned.append

    return build.NativeHook(str(tmp_path), {}, None, None, "", "wheel", App()), folder, warned


def built(hook, version="standard"):
    data = {"force_include": {}}
    hook.initialize(version, data)
    return data


@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler")
def test_it_is_built_for_this_system(hook):
    hook, folder, warned = hook
    data = built(hook)
    (library,) = folder.glob("_loops.*")
    assert not warned
    assert data["force_include"] == {str(library): f"daskdmed/core/native/{library.name}"}
    assert data["tag"].startswith("py3-none-")
    assert not data["pure_python"]
    # a link to the sources needs no copy
    assert not built(hook, "editable")["force_include"]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("DASKDMED_NATIVE", "off", "DASKDMED_NATIVE=off"),
        ("CC", "no-such-compiler", "no-such-compiler"),
        ("CC", f"{sys.executable} -c raise(SystemExit('cannot'))", "cannot"),
        ("PATH", "", "there is no C compiler"),
    ],
)
def test_without_a_compiler_it_is_built_without(hook, monkeypatch, name, value, why):
    hook, folder, warned = hook
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(name, value)
    (folder / "_loops.so").write_bytes(b"of an earlier build")
    assert built(hook) == {"force_include": {}}
    assert not list(folder.glob("_loops.*"))
    assert [why in text for text in warned] == [True]
