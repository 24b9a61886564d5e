"""What ``dask.config`` says under ``daskdmed.images.remote``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
from dask.utils import parse_bytes, parse_timedelta

from daskdmed.core.errors import UsageError

#: name in the configuration -> (how it is read, default, least value)
_KNOWN: dict[str, tuple[Callable[[Any], float], Any, float]] = {
    "cache-bytes": (parse_bytes, "128 MiB", 0),
    "connections": (int, 16, 1),
    "gap": (parse_bytes, "512 KiB", 0),
    "run": (parse_bytes, "4 MiB", 1),
    "tries": (int, 5, 1),
    "backoff": (parse_timedelta, "250 ms", 0),
    "backoff-limit": (parse_timedelta, "8 s", 0),
    "timeout": (parse_timedelta, "60 s", 0.001),
    "check-interval": (parse_timedelta, "5 s", 0),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings at one moment, in bytes and seconds."""

    #: kept of all files together in this process; 0 keeps nothing
    cache_bytes: int
    #: requests in flight at once in this process
    connections: int
    #: neighbours in a file closer than this are fetched with one request...
    gap: int
    #: ... as long as that asks for no more than this
    run: int
    #: attempts at one request
    tries: int
    #: wait before the second attempt, doubled before each further one...
    backoff: float
    #: ... up to this
    backoff_limit: float
    #: for one attempt
    timeout: float
    #: between looks at whether a file was replaced, where answers do not say it
    check_interval: float


def settings() -> Settings:
    """As they are now; a `UsageError` names what cannot be read."""
    said = dask.config.get("daskdmed.images.remote", {}) or {}
    unknown = sorted({str(name).replace("_", "-") for name in said} - set(_KNOWN))
    if unknown:
        raise UsageError(
            f"daskdmed.images.remote.{unknown[0]} is no setting; there are {', '.join(_KNOWN)}"
        )
    values = {}
    for name, (read, default, least) in _KNOWN.items():
        given = said.get(name, said.get(name.replace("-", "_"), default))
        try:
            value = read(given)
        except (TypeError, ValueError, KeyError) as error:
            raise UsageError(
                f"daskdmed.images.remote.{name} is {given!r}, expected such as {default!r}"
            ) from error
        if not value >= least:
            raise UsageError(f"daskdmed.images.remote.{name} is {given!r}, the least is {least}")
        values[name.replace("-", "_")] = value
    return Settings(**values)  # type: ignore[arg-type]
