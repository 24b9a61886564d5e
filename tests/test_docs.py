"""The manual is true at least in this: what it names and links to exists, its code fits.

The design notes name tests; the reference names every public thing; code between ``python`` fences
can be read, imports what is there, and calls it with arguments that it has. Blocks that are
complete are run in `tests/test_pages.py`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pathlib
import re
import types
from collections import Counter
from typing import Any

import pytest

import daskdmed

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
NAMING = [DOCS / name for name in ("frameworks.md", "from-medsegpy.md", "from-pydmed.md")]
NOTES = [*sorted((DOCS / "design").glob("*.md")), *NAMING]
#: what people read, here and on the site
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "design").glob("*.md")),
]
NAMED = [
    (note.name, *match.groups())
    for note in NOTES
    for match in re.finditer(r"`(tests/[\w/]+\.py)(?:::(\w+))?(?:::(\w+))?`", note.read_text())
]


def anchors(page: pathlib.Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_links_to_what_is_there(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), f"{target}#{anchor}"


@pytest.mark.parametrize(("note", "file", "first", "second"), NAMED)
def test_a_note_names_tests_that_exist(note, file, first, second):
    path = ROOT / file
    assert path.exists(), f"{note} names {file}"
    names = {n.name for n in ast.walk(ast.parse(path.read_text())) if hasattr(n, "name")}
    assert {first, second} - {None} <= names, f"{note} names {first}::{second} of {file}"


def test_every_note_of_a_promise_names_its_tests():
    assert {n.name for n in NOTES} - {name for name, *_ in NAMED} == set()


#: public beside what `daskdmed.__all__` leads to
BESIDE = ["daskdmed.cohort.annotations", "daskdmed.cohort.tissue", "daskdmed.inference.metrics"]


def public() -> dict[int, str]:
    """Every public thing by its identity, with the shortest of its names."""
    found: dict[int, str] = {}

    def walk(module: types.ModuleType) -> None:
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if isinstance(thing, types.ModuleType):
                walk(thing)
            else:
                full = f"{module.__name__}.{name}"
                found[id(thing)] = min(found.get(id(thing), full), full, key=len)

    for module in ["daskdmed", *BESIDE]:
        walk(importlib.import_module(module))
    return found


def named(full: str) -> Any:
    """What a dotted name of the library is; an error where there is none."""
    parts = full.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("daskdmed"):
                pytest.skip(f"{error.name} is not installed")
            continue
        for part in parts[end:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(full)


def test_the_reference_has_every_public_name_once():
    listed = []
    for page in (DOCS / "api").glob("*.rst"):
        tables = re.findall(r"autosummary::\n(?:   :.*\n)*\n((?:   \S+\n)+)", page.read_text())
        listed += [f"daskdmed.{name}" for table in tables for name in table.split()]
    counts = Counter(id(named(name)) for name in listed)
    twice = [name for name in listed if counts[id(named(name))] > 1]
    assert not twice
    missing = {full for key, full in public().items() if key not in counts}
    assert not missing, "add it to a page of docs/api"
    assert all(inspect.getdoc(named(name)) for name in listed)


def docstrings(module: pathlib.Path) -> list[str]:
    nodes = ast.walk(ast.parse(module.read_text()))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(n) or "" for n in nodes if isinstance(n, kinds)]


def test_docstrings_name_what_exists():
    modules = sorted((ROOT / "daskdmed").rglob("*.py"))
    said = {
        name: module.relative_to(ROOT).as_posix()
        for module in modules
        for text in docstrings(module)
        for name in re.findall(r"(?<!`)`(daskdmed(?:\.\w+)+)`", text)
    }
    assert len(said) > 50
    for name, where in said.items():
        try:
            named(name)
        except AttributeError as error:
            raise AssertionError(f"{where} names {name}") from error


BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_code_fits_the_library(block):
    names: dict[str, Any] = {"daskdmed": daskdmed}
    names |= {n: getattr(daskdmed, n) for n in daskdmed.__all__}
    # an ellipsis after arguments by name stands for more of them
    tree = ast.parse(re.sub(r", \.\.\.\)", ")", block))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("daskdmed"):
            for alias in node.names:
                names[alias.asname or alias.name] = named(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        if first not in names or (isinstance(node.func, ast.Attribute) and "(" in rest):
            continue
        called = names[first]
        for part in rest.split(".") if rest else ():
            called = getattr(called, part)
        given = {k.arg for k in node.keywords if k.arg}
        known = inspect.signature(called).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in known):
            assert given <= {p.name for p in known}, ast.unparse(node)
