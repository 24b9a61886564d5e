"""The house holds: imports go down only, nothing goes in circles, importing is cheap."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

import daskdmed

ROOT = pathlib.Path(daskdmed.__file__).parent
#: bottom first; a folder may import from itself and from what stands before it
LAYERS = [
    "core",
    "images",
    "cohort",
    "store",
    "persistence",
    "tiling",
    "inference",
    "loading",
    "tables",
]
#: beside the house: what each may use
BESIDE = {
    "samples": ["core", "images"],
    "testing": ["core", "images"],
    "transforms": ["core"],
    "plot": LAYERS,
    "napari": LAYERS,
    # names that users import; nothing in the library goes through them
    "errors": ["core"],
    "events": ["core"],
    "policies": ["persistence"],
    # found by name when there is something to show
    "monitor": ["core"],
    "explorers": ["loading"],
    # other libraries' names
    "compat": LAYERS,
    # what is installed, for reports
    "__main__": ["core", "images"],
}


def modules() -> dict[str, pathlib.Path]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: pathlib.Path, *, while_running: bool = True) -> set[str]:
    """Modules of the package that a file imports, inside functions too; not for types only."""
    names = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not while_running:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "daskdmed":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                names.add(module if module in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == "daskdmed"}
        waiting.extend(ast.iter_child_nodes(node))
    return names


def folder_of(module: str) -> str:
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("layer", [*LAYERS, *BESIDE])
def test_imports_go_down_only(layer):
    allowed = {layer, *(BESIDE[layer] if layer in BESIDE else LAYERS[: LAYERS.index(layer)])}
    for module, path in MODULES.items():
        if folder_of(module) != layer:
            continue
        name = str(path.relative_to(ROOT))
        # the version is the one thing that the top of the package knows itself
        is_version = "from daskdmed import __version__" in path.read_text()
        excused = {"daskdmed"} if is_version else set()
        up = {m for m in imported(path) if folder_of(m) not in allowed} - excused
        assert not up, f"{name} imports {up}, which stands above it"


def test_nothing_goes_in_circles():
    """No module is needed to import itself, inside functions or not."""
    arrows = {
        module: {m for m in imported(path) if m in MODULES and m != module} - {"daskdmed"}
        for module, path in MODULES.items()
    }
    # what imports nothing that is left cannot be in a circle
    while True:
        free = {m for m, to in arrows.items() if not to & arrows.keys()}
        if not free:
            break
        arrows = {m: to for m, to in arrows.items() if m not in free}
    inside = {m: sorted(to & arrows.keys()) for m, to in sorted(arrows.items())}
    while True:  # nor can what nothing imports
        wanted = {m for to in inside.values() for m in to}
        if wanted >= inside.keys():
            break
        inside = {m: [t for t in to if t in inside] for m, to in inside.items() if m in wanted}
    assert not inside, f"imports go in circles: {inside}"


def test_every_package_has_its_layer():
    found = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == {*LAYERS, *BESIDE}


HEAVY = ["torch", "distributed", "matplotlib", "openslide", "skimage", "pandas", "bokeh", "pooch"]


@pytest.mark.parametrize(
    "statement",
    [
        "import daskdmed",
        "import daskdmed; daskdmed.open_slide, daskdmed.Dataset",
        "import daskdmed.persistence.reading, daskdmed.loading.sampling",
        "import daskdmed; daskdmed.heatmap",
    ],
)
def test_what_an_import_costs(statement):
    script = f"import sys; {statement}; print(*[m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not run.stdout.split()


PACKAGES = [m for m, path in MODULES.items() if path.with_suffix(".pyi").exists()]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_resolve(package):
    module = __import__(package, fromlist=["__all__"])
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_what_users_type_every_day():
    """The top level is for these and for folders; all else has its folder."""
    names = {n for n in daskdmed.__all__ if not hasattr(getattr(daskdmed, n), "__path__")}
    assert names - {"errors", "events", "plot", "napari", "policies", "explorers"} == {
        "open_slide", "open_slides", "Slide", "Region", "Record", "Patient", "Dataset", "LightDL",
        "SlidingWindowDL", "BigChunk", "SmallChunk", "BigChunkLoader", "SmallChunkCollector",
        "Content", "stateful", "Quota", "TissueMask", "tissue_mask", "tissue_masks", "Annotations",
        "read_annotations", "Categories", "heatmap", "predict", "infer", "export_heatmap",
        "export_volume", "evaluate",
        "advise", "DaskdmedError", "open_volume", "Volume", "Space",
    }  # fmt: skip
