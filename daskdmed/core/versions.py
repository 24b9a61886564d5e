"""Client, scheduler and workers must agree in what they run: tasks are pickled between them.

Python's minor version and those of Dask count for all three, the version of this library for
clients and workers; a scheduler needs none. Other packages are not compared: Dask warns of some.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from daskdmed import __version__
from daskdmed.core.errors import UsageError, listing

if TYPE_CHECKING:
    from distributed import Client

#: seconds that processes of a cluster have to answer
_ANSWER_WITHIN = 60.0


def check_versions(client: Client, workers: Iterable[str] | None = None) -> None:
    """Raise UsageError when the scheduler or workers (all, or those) run other versions."""
    mine = {"Python": "{}.{}".format(*sys.version_info[:2]), **_of_dask()}
    some = None if workers is None else list(workers)
    scheduler, answers = client.sync(_ask, client, some, callback_timeout=_ANSWER_WITHIN)
    theirs = {f"worker {address}": found for address, found in answers.items()}
    if some is None:
        theirs["the scheduler"] = scheduler
    _compare(mine, {who: _facts(found) for who, found in theirs.items()})
    # only now: a function travels as code of one version of Python
    found = client.run(_looker(), workers=some, on_error="return")
    library = {
        f"worker {address}": {"daskdmed": "none" if isinstance(v, ImportError) else str(v)}
        for address, v in found.items()
        if isinstance(v, str | ImportError)  # else it broke down meanwhile
    }
    _compare({"daskdmed": __version__}, library)


async def _ask(client: Any, workers: list[str] | None) -> tuple[Any, Mapping[str, Any]]:
    scheduler = await client.scheduler.versions(packages=[])
    message = {"op": "versions", "packages": []}
    answers = await client.scheduler.broadcast(msg=message, workers=workers, on_error="ignore")
    # what broke down while it was asked is not compared, and runs nothing
    return scheduler, {w: a for w, a in answers.items() if isinstance(a, Mapping)}


def _of_dask() -> dict[str, str]:
    import dask
    import distributed

    return {"dask": dask.__version__, "distributed": distributed.__version__}


def _facts(answer: Mapping[str, Any]) -> dict[str, str]:
    packages = answer["packages"]
    python = ".".join(str(answer["host"]["python"]).split(".")[:2])
    return {"Python": python} | {k: str(packages[k]) for k in ("dask", "distributed")}


def _compare(mine: Mapping[str, str], theirs: Mapping[str, Mapping[str, str]]) -> None:
    for name, version in mine.items():
        others: dict[str, list[str]] = {}
        for who, found in theirs.items():
            if found[name] != version:
                others.setdefault(found[name], []).append(who)
        if others:
            have = "; ".join(f"{v} on {listing(who)}" for v, who in others.items())
            raise UsageError(
                f"the client's cluster runs another {name}: {version} here, {have}. Tasks are "
                f"pickled between them: install {name} {version} there, or run this in the same "
                "environment (container image, conda environment) as the workers"
            )


def _looker() -> Any:
    """Nested, so that a worker without this library can answer."""

    def look() -> str:
        import daskdmed

        return str(daskdmed.__version__)

    return look
