"""Code out of documents that are not in this repository, made whole by what their text says.

The documents lie in the folder that ``DASKDMED_SEEDS_DIR`` names, else in ``shared/seeds`` beside
the clone. Tests that need them skip where there is none; nothing of them is kept here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

_BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


def folder() -> Path:
    """Where the documents are."""
    beside = Path(__file__).parents[3] / "shared" / "seeds"
    return Path(os.environ.get("DASKDMED_SEEDS_DIR") or beside)


def document(start: str) -> str:
    """The text of the document whose name begins so; the test skips where it is not there."""
    found = sorted(folder().glob(f"{start}*.txt"))
    if not found:
        pytest.skip(f"no document {start}* in {folder()}")
    assert len(found) == 1, found
    return found[0].read_text(encoding="utf-8", errors="replace")


def blocks(start: str) -> list[str]:
    """The blocks of Python of a document, in their order."""
    found = _BLOCK.findall(document(start))
    assert found, f"{start} has no block of Python"
    return found


def completed(code: str, changes: Mapping[str, str]) -> str:
    """Code with what it leaves open: each pattern (of `re`; ^ and $ are of lines), which must be
    there once, is replaced by what belongs there."""
    for pattern, replacement in changes.items():
        code, count = re.subn(pattern, replacement, code, flags=re.MULTILINE)
        assert count == 1, f"{pattern!r} is there {count} times"
    return code


def imported_from(code: str, package: str, real: str) -> str:
    """Code whose lines that import from a package import from another one."""
    pattern = rf"^(\s*(?:from|import)\s+){re.escape(package)}(?=[.\s])"
    changed, count = re.subn(pattern, rf"\g<1>{real}", code, flags=re.MULTILINE)
    assert count, f"nothing is imported from {package}"
    return changed
