"""The house holds: imports go down only, importing is cheap, workers need no torch."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

import daskdmed

ROOT = pathlib.Path(daskdmed.__file__).parent
#: bottom first; a package may import from itself and from what stands before it
LAYERS = [
    "errors",
    "types",
    "images",
    "cohort",
    "persistence",
    "loading",
    "transforms",
    "store",
    "windows",
    "plot",
]
#: beside the house: may use anything below `cohort`
BESIDE = {"samples": ["errors", "types", "images"], "testing": ["errors", "types", "images"]}


def imported(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("daskdmed."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "daskdmed":
            names |= {alias.name for alias in node.names if (ROOT / alias.name).exists()}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("daskdmed.")}
    return names


@pytest.mark.parametrize("layer", [*LAYERS, *BESIDE])
def test_imports_go_down_only(layer):
    allowed = BESIDE.get(layer) or LAYERS[: LAYERS.index(layer)]
    files = (
        [ROOT / f"{layer}.py"] if (ROOT / f"{layer}.py").exists() else (ROOT / layer).rglob("*.py")
    )
    for path in files:
        up = imported(path) - {*allowed, layer}
        assert not up, f"{path.relative_to(ROOT)} imports {up}, which stands above it"


def test_every_package_has_its_layer():
    found = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == {*LAYERS, *BESIDE}


HEAVY = ["torch", "distributed", "matplotlib", "openslide", "skimage", "pandas", "bokeh", "pooch"]


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import daskdmed", []),
        ("import daskdmed; daskdmed.open_slide, daskdmed.Dataset", []),
        ("import daskdmed.persistence.reading, daskdmed.loading.sampling", []),
        ("import daskdmed; daskdmed.heatmap", []),
    ],
)
def test_what_an_import_costs(statement, allowed):
    script = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= set(allowed)


def test_public_names_resolve():
    for name in daskdmed.__all__:
        assert getattr(daskdmed, name) is not None
    assert set(daskdmed.__all__) <= set(dir(daskdmed))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = daskdmed.no_such_name
