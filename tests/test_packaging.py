"""What is released: bounds, metadata, and the built package in an empty environment."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import daskdmed
from tests import oldest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(text: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    asked = [Requirement(line) for line in PROJECT["dependencies"]]
    asked += [Requirement(r) for e, rs in EXTRAS.items() if e not in oldest.LEFT_OUT for r in rs]
    bounds = {r.name: {s.version for s in r.specifier if s.operator == ">="} for r in asked}
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    ours, _, theirs = text.partition("# what these bring along")
    pinned = {
        r.name: {s.version for s in r.specifier if s.operator == "=="} for r in requirements(ours)
    }
    assert pinned == bounds
    assert all(len(versions) == 1 for versions in bounds.values())
    assert not {r.name for r in requirements("#" + theirs)} & bounds.keys()


def test_every_extra_is_in_all() -> None:
    (line,) = EXTRAS["all"]
    # wheels for some systems only, another way to do what is done without, a client of one cloud
    special = {"czi", "fastslide", "zarrs", "gcs"}
    assert Requirement(line).extras | special == EXTRAS.keys() - {"all", "test", "docs", "dev"}


def test_versions_of_python() -> None:
    minors = [c.rpartition(".")[2] for c in PROJECT["classifiers"] if ":: 3." in c]
    assert PROJECT["requires-python"] == f">=3.{min(minors, key=int)}"
    stated = f"Python 3.{minors[0]} to 3.{minors[-1]}"
    assert stated in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def test_the_citation_can_be_cited() -> None:
    """As https://github.com/citation-file-format/citation-file-format has it in version 1.2.0."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found.keys() >= {"authors", "cff-version", "message", "title"}
    assert found["cff-version"] == "1.2.0"
    assert found["type"] in ("software", "dataset")
    assert found["version"] == daskdmed.__version__
    assert found["license"] == PROJECT["license"]
    known = {"abstract", "keywords", "license", "type", "version", "date-released"}
    assert found.keys() <= known | {"authors", "cff-version", "message", "title"}
    assert all(
        isinstance(found[key], str) and found[key] for key in found.keys() - {"authors", "keywords"}
    )
    assert [a["name"] for a in found["authors"]] == [a["name"] for a in PROJECT["authors"]]
    assert len(found["keywords"]) == len(set(found["keywords"]))


def test_reports_of_bugs_are_asked_for_what_is_installed() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = {p.stem: yaml.safe_load(p.read_text("utf-8")) for p in folder.glob("*.yml")}
    for name in ("bug", "idea"):
        assert forms[name].keys() >= {"name", "description", "body"}
        kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert {part["type"] for part in forms[name]["body"]} <= kinds
    versions = next(part for part in forms["bug"]["body"] if part.get("id") == "versions")
    assert "python -m daskdmed" in versions["attributes"]["label"]
    assert versions["validations"]["required"]


def test_without_torch_loaders_say_how_to_get_it() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; import daskdmed\n"
        "for name in ('LightDL', 'SlidingWindowDL'):\n"
        "    try: getattr(daskdmed, name)\n"
        "    except daskdmed.errors.MissingExtraError as error: print(error)\n"
        "daskdmed.open_slide, daskdmed.heatmap, daskdmed.Dataset"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("daskdmed[torch]") == 2


#: run in the new environment: what of the package is there
LOOK = """
import importlib.metadata, importlib.util, json, pathlib, sys
import daskdmed
folder = pathlib.Path(daskdmed.__file__).parent
daskdmed.open_slide, daskdmed.open_volume, daskdmed.heatmap, daskdmed.Dataset
points = importlib.metadata.entry_points(group="daskdmed.readers")
print(json.dumps({
    "folder": str(folder),
    "version": importlib.metadata.version("daskdmed"),
    "typed": (folder / "py.typed").exists() and (folder / "__init__.pyi").exists(),
    "readers": {p.name: p.value for p in points},
    "loaded": [p.load().__name__ for p in points],
    "torch": importlib.util.find_spec("torch") is not None,
}))
"""


def command(*words: object, folder: Path) -> str:
    done = subprocess.run([str(w) for w in words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.programs
def test_a_wheel_for_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a copy: what is compiled in this tree stays in use."""
    pytest.importorskip("hatchling")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "daskdmed", tree / "daskdmed")
    monkeypatch.setenv("DASKDMED_NATIVE", "off")
    command(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, folder=tree)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [n for n in archive.namelist() if "_loops." in n]


@pytest.mark.programs
def test_what_is_built_works_in_an_empty_environment(tmp_path: Path) -> None:
    pytest.importorskip("build")
    # the wheel is made of the sdist, so that what is missing there is missing here
    command(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT, folder=tmp_path
    )
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"daskdmed", f"daskdmed-{daskdmed.__version__}.dist-info"}
    assert not [n for n in names if re.search(r"/tests?/|/test_|\.pyc$", n)]
    with tarfile.open(sdist) as source:
        inside = {"/".join(n.split("/")[1:]) for n in source.getnames()}
    wanted = ["tests/test_packaging.py", "docs/conf.py", "CITATION.cff", "constraints-oldest.txt"]
    wanted += ["hatch_build.py", "daskdmed/core/native/tiles.c"]
    assert not [n for n in inside if "_loops." in n]
    # what is compiled is for this system, and the wheel says so
    compiled = [n for n in names if n.startswith("daskdmed/core/native/_loops.")]
    assert len(compiled) == any(map(shutil.which, ("cc", "gcc", "clang")))
    assert wheel.stem.endswith("-none-any") != bool(compiled)
    assert not set(wanted) - inside
    made = ("docs/examples/", "docs/api/generated/", "build/", "docs/tutorials/quickstart")
    assert not [n for n in inside if n.startswith(made)]

    # an environment without torch: this one's packages but for torch, and the wheel
    command(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", folder=tmp_path)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    packages = tmp_path / "packages"
    packages.mkdir()
    here = Path(yaml.__file__).parents[1]
    for entry in here.iterdir():
        if not entry.name.startswith(
            ("torch", "functorch", "daskdmed", "_daskdmed", "__editable__")
        ):
            (packages / entry.name).symlink_to(entry)
    places = json.loads(
        command(
            python,
            "-c",
            "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))",
            folder=tmp_path,
        )
    )
    Path(places["purelib"], "present.pth").write_text(f"{packages}\n", encoding="utf-8")
    install = ("-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    command(sys.executable, *install, wheel, folder=tmp_path)

    found = json.loads(command(python, "-I", "-c", LOOK, folder=tmp_path))
    assert Path(found["folder"]) == Path(places["purelib"], "daskdmed")
    assert found["version"] == daskdmed.__version__ == PROJECT.get("version", found["version"])
    assert found["typed"]
    assert found["readers"] == PROJECT["entry-points"]["daskdmed.readers"]
    assert all(name.endswith("Backend") for name in found["loaded"])
    assert not found["torch"]
    says = json.loads(command(python, "-I", "-m", "daskdmed", "--json", folder=tmp_path))
    assert says["packages"]["torch"]["version"] is None
    assert says["codecs"]["compiled"].startswith(("tiles", "copies") if compiled else "not built")
    assert says["packages"]["numpy"]["enough"]
    assert says["readers"]["tiff"]["missing"] is None
