"""Packages that only some of the library needs: imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

from daskdmed.core.errors import MissingExtraError


def extra(module: str, name: str, what: str) -> Any:
    """A module of the packages of an extra; the error says `what` needs it, and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{what} {package} ({error}); install it with: pip install 'daskdmed[{name}]'"
        ) from error
