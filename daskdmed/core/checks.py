"""Checks of single arguments, in the same words everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daskdmed.core.errors import UsageError


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of several words."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Refuse what is no whole number, or too small a one."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise UsageError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def check_seed(seed: Any) -> int:
    """Refuse what is no whole number.

    Raises
    ------
    UsageError
        Says what to give for other random numbers in every run.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise UsageError(
            f"seed must be an integer, got {seed!r}: everything random follows from it. For other "
            "random numbers in every run give seed=secrets.randbits(32), and keep it"
        )
    return int(seed)
