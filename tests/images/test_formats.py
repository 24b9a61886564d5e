"""docs/formats.md says what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from daskdmed.images import registry

ROOT = Path(__file__).parents[2]


def _rows(kind):
    """Backend and library of each row of a section."""
    text = (ROOT / "docs" / "formats.md").read_text().split(f"## {kind}")[1].split("\n## ")[0]
    found = re.findall(r"^\|[^|\n]+\| `([\w-]+)` \| ([^|\n]+)", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "a backend has two rows"
    return dict(found)


def test_each_backend_has_a_row():
    for section, kind in (("Slides", "slide"), ("Volumes", "volume")):
        built_in = {
            name
            for name in registry._BUILT_IN
            if registry.kind_of(registry.get_backend(name)) == kind
        }
        assert set(_rows(section)) == built_in


def test_extras_in_the_table_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "formats.md").read_text()
    extras = set(re.findall(r"\(extra `(\w+)`\)", text))
    assert {"openslide", "volumes", "czi", "fastslide"} <= extras
    assert extras <= set(project["optional-dependencies"])


def test_built_in_backends_are_entry_points_too():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][registry.GROUP] == registry._BUILT_IN


def test_limits_in_the_page_are_the_defaults():
    from daskdmed.images.volumes.decoded import _DEFAULTS

    text = (ROOT / "docs" / "formats.md").read_text()
    for name in ("decoded-limit", "picture-limit"):
        assert re.search(rf"daskdmed\.images\.{name}` \({_DEFAULTS[name]}", text)
