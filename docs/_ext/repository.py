"""Pages that are made of files elsewhere in the repository: scripts, notebooks, the changelog.

Links of pages and notebooks are written for GitHub (``../examples/ranks.py``). Here those to
examples lead to the page that shows the script, and those to other files of the repository are
files to download.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
#: pages and notebooks that are made here, ignored by git
EXAMPLES, TUTORIALS = DOCS / "examples", DOCS / "tutorials"
LINK = re.compile(r"(\]\()(?!\w+:|[#/])([^)#\s]+)((?:#[^)\s]*)?\))")


def notebooks() -> dict[str, Path]:
    """Each notebook by its name: as a test has executed it, or as it lies in the repository."""
    executed = Path(os.environ.get("DASKDMED_NOTEBOOKS", ROOT / "build" / "notebooks"))
    found = {p.name: p for p in sorted((ROOT / "examples").glob("*.ipynb"))}
    return {n: executed / n if (executed / n).exists() else p for n, p in found.items()}


def scripts() -> dict[str, str]:
    """Each example by its name, with the first line of its docstring."""
    found = {}
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
        found[path.stem] = text.partition("\n")[0].rstrip(".")
    return found


def led_here(text: str, folder: Path) -> str:
    """A text of a folder with its links as this site needs them."""

    def turned(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        path = Path(os.path.normpath(folder / target))
        if path.is_relative_to(DOCS):
            return f"{before}/{path.relative_to(DOCS).as_posix()}{after}"
        if path.parent == ROOT / "examples" and path.suffix == ".py":
            return f"{before}/examples/{path.stem}.md{after}"
        if path.parent == ROOT / "examples" and path.suffix == ".ipynb":
            return f"{before}/tutorials/{path.name}{after}"
        pages = {"examples": "/examples/index.md", "CHANGELOG.md": "/changelog.md"}
        relative = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if relative in pages:
            return f"{before}{pages[relative]}{after}"
        return match[0]

    return LINK.sub(turned, text)


def write(path: Path, text: str) -> None:
    """Write a page, unless it is there already: Sphinx reads again what has changed."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def make_pages(app: Sphinx, config: Any) -> None:
    """Make the pages of examples and the notebooks of tutorials."""
    wanted = set()
    for name, path in notebooks().items():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = led_here("".join(cell["source"]), ROOT / "examples")
        write(TUTORIALS / name, json.dumps(notebook))
        wanted.add(TUTORIALS / name)
    rows, pages = [], []
    for name, title in scripts().items():
        shown = f"```{{literalinclude}} ../../examples/{name}.py\n:language: python\n```"
        write(EXAMPLES / f"{name}.md", f"# {name}.py\n\n{title}.\n\n{shown}\n")
        wanted.add(EXAMPLES / f"{name}.md")
        rows.append(f"| [{name}]({name}.md) | {title} |")
        pages.append(f"{name}.py <{name}>")
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
    head = (
        "# Examples\n\nA short script for every feature, each of which runs in every check of the "
        "repository (`python examples/NAME.py`), on slides that it makes itself."
    )
    table = ["| | |", "|---|---|", *rows]
    write(EXAMPLES / "index.md", "\n".join([head, "", *table, "", toctree, ""]))
    wanted.add(EXAMPLES / "index.md")
    for path in {*EXAMPLES.iterdir(), *TUTORIALS.glob("*.ipynb")} - wanted:
        path.unlink()


def lead_here(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn the links of a page that is written for GitHub."""
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".md" and path.parent != EXAMPLES:
        source[0] = led_here(source[0], path.parent)


def show_changelog(app: Sphinx, docname: str, source: list[str]) -> None:
    """The changelog is the file of the repository."""
    if docname == "changelog":
        source[0] = led_here((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), ROOT)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", make_pages)
    app.connect("source-read", show_changelog)
    app.connect("source-read", lead_here, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
