"""The design notes are true at least in this: the tests that they name exist."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTES = [*sorted((ROOT / "docs" / "design").glob("*.md")), ROOT / "docs" / "frameworks.md"]
NAMED = [
    (note.name, *match.groups())
    for note in NOTES
    for match in re.finditer(r"`(tests/[\w/]+\.py)(?:::(\w+))?(?:::(\w+))?`", note.read_text())
]


@pytest.mark.parametrize("note", NOTES, ids=lambda n: n.name)
def test_a_note_links_to_what_is_there(note):
    for target in re.findall(r"\]\(([^)#:]+)\)", note.read_text()):
        assert (note.parent / target).exists(), target


@pytest.mark.parametrize(("note", "file", "first", "second"), NAMED)
def test_a_note_names_tests_that_exist(note, file, first, second):
    path = ROOT / file
    assert path.exists(), f"{note} names {file}"
    names = {n.name for n in ast.walk(ast.parse(path.read_text())) if hasattr(n, "name")}
    assert {first, second} - {None} <= names, f"{note} names {first}::{second} of {file}"


def test_every_note_of_a_promise_names_its_tests():
    assert {n.name for n in NOTES} - {name for name, *_ in NAMED} == set()
