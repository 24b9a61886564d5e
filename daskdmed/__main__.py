"""``python -m daskdmed``: what is installed, which readers and codecs are there, what is missing.

For bug reports, and to see why a file is not read. Nothing is sent anywhere, and torch is not
imported. Paths stand in it where variables ``DASKDMED_...`` or settings hold some. Not covered:
what a cluster's workers have (compared when a client connects, `daskdmed.core.versions`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import dask.config
from packaging.requirements import Requirement

from daskdmed import __version__
from daskdmed.core import native
from daskdmed.core.errors import DaskdmedError
from daskdmed.core.shared import segments
from daskdmed.images import registry, turbojpeg

#: extras of the development of the library itself
_OF_DEVELOPMENT = {"all", "test", "docs", "dev"}


def report() -> dict[str, Any]:
    """Everything that is told, as plain values that JSON takes."""
    return {
        "daskdmed": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": packages(),
        "readers": readers(),
        "codecs": codecs(),
        "shared memory": shared_memory(),
        "configuration": dask.config.get("daskdmed", {}),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("DASKDMED_")},
    }


def packages() -> dict[str, dict[str, Any]]:
    """Each package that the library or an extra asks for here: what is there, and is it enough.

    As the metadata of the library say; where these are not there, nothing is asked for.
    """
    try:
        metadata = importlib.metadata.metadata("daskdmed")
    except importlib.metadata.PackageNotFoundError:
        return {}
    asked = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    extras = [e for e in metadata.get_all("Provides-Extra") or [] if e not in _OF_DEVELOPMENT]
    found: dict[str, dict[str, Any]] = {}
    for extra in ["", *extras]:
        for one in asked:
            is_meant = one.marker is None if not extra else _belongs(one, extra)
            if not is_meant or one.name == "daskdmed":
                continue
            entry = found.setdefault(one.name, {**_installed(one), "extras": []})
            entry["extras"] += [extra] if extra else []
    return found


def _belongs(asked: Requirement, extra: str) -> bool:
    """Whether an extra asks for a package on this machine."""
    here = asked.marker
    return here is not None and here.evaluate({"extra": extra}) and not here.evaluate({"extra": ""})


def _installed(asked: Requirement) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(asked.name)
    except importlib.metadata.PackageNotFoundError:
        return {"version": None, "wanted": str(asked.specifier), "enough": False}
    enough = asked.specifier.contains(version, prereleases=True)
    return {"version": version, "wanted": str(asked.specifier), "enough": enough}


def readers() -> dict[str, dict[str, Any]]:
    """Each registered reader: what it reads, or what it lacks and how to get it."""
    found = {}
    for name in registry.backend_names():
        try:
            backend = registry.get_backend(name)
        except DaskdmedError as error:
            found[name] = {"kind": None, "missing": str(error)}
            continue
        lacks = [why for why in map(_lacking, getattr(backend, "needs", {}).items()) if why]
        found[name] = {"kind": registry.kind_of(backend), "missing": "; ".join(lacks) or None}
    return found


def _lacking(needed: tuple[str, str]) -> str:
    """Why a module of an extra cannot be imported; nothing when it can."""
    module, extra = needed
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: its shared library is not there
        return f"{module} ({error}): pip install 'daskdmed[{extra}]'"
    return ""


def codecs() -> dict[str, Any]:
    """TurboJPEG by its path, what of the package is compiled, and the libraries of imagecodecs by
    their versions."""
    try:
        turbo = turbojpeg.library()
        where = "not found" if turbo is None else turbo.path
    except DaskdmedError as error:
        turbo, where = None, str(error)
    if os.environ.get(turbojpeg.VARIABLE, "").lower() in ("off", "0"):
        where = f"off ({turbojpeg.VARIABLE})"
    import imagecodecs

    libraries = imagecodecs.version(dict)
    there = {n: v for n, v in libraries.items() if v != "n/a" and v != imagecodecs.__version__}
    missing = sorted(n for n, v in libraries.items() if v == "n/a")
    return {
        "turbojpeg": where,
        "compiled": compiled(tiles=turbo is not None and turbo.has_many),
        "imagecodecs": there,
        "not in imagecodecs": missing,
    }


def compiled(*, tiles: bool) -> str:
    """Which of what is compiled is used; `tiles`: what decodes tiles is."""
    if not native.wanted():
        return f"off ({native.VARIABLE})"
    if native.library() is None:
        return "not built: install daskdmed again where there is a C compiler"
    return "tiles and copies" if tiles else "copies (tiles need TurboJPEG 3)"


def shared_memory() -> str:
    """Whether processes of this machine can share big chunks, and by what; it is tried."""
    if not segments.enabled():
        return "off (daskdmed.shared-memory of dask.config)"
    handle = segments.handle_of(segments.Allocator(1).empty((1,), "u1"))
    if handle is None:
        return "none: the system gives none, big chunks are copied between processes"
    return "memfd_create" if len(handle.address) == 2 else "named (/dev/shm or the like)"


def text_of(found: dict[str, Any]) -> str:
    """A report for people."""
    lines = [f"{key:<14}{found[key]}" for key in ("daskdmed", "python", "platform", "cores")]
    lines += [f"{'shared memory':<14}{found['shared memory']}", "", "packages"]
    for name, entry in found["packages"].items():
        extras = f"extra {', '.join(entry['extras'])}" if entry["extras"] else ""
        too_old = entry["version"] and not entry["enough"]
        wanted = f"  WANTED {entry['wanted']}" if too_old else ""
        version = entry["version"] or "not installed"
        lines.append(f"  {name:<22}{version:<16}{extras}{wanted}".rstrip())
    lines += ["", "readers"]
    for name, entry in found["readers"].items():
        says = f"MISSING {entry['missing']}" if entry["missing"] else "there"
        lines.append(f"  {name:<22}{entry['kind'] or '':<8}{says}")
    lines += ["", "codecs", f"  {'TurboJPEG':<22}{found['codecs']['turbojpeg']}"]
    lines.append(f"  {'compiled loops':<22}{found['codecs']['compiled']}")
    libraries = ", ".join(f"{n} {v}" for n, v in found["codecs"]["imagecodecs"].items())
    lines.append(f"  {'imagecodecs':<22}{libraries}")
    missing = ", ".join(found["codecs"]["not in imagecodecs"])
    lines.append(f"  {'without':<22}{missing or 'nothing'}")
    for title in ("configuration", "environment"):
        if found[title]:
            lines += ["", title, *(f"  {k} = {v}" for k, v in found[title].items())]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report to standard output."""
    parser = argparse.ArgumentParser(prog="python -m daskdmed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the same for programs")
    given = parser.parse_args(arguments)
    found = report()
    as_json = json.dumps(found, indent=2, default=str) + "\n"
    sys.stdout.write(as_json if given.json else text_of(found))


if __name__ == "__main__":
    main()
