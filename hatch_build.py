"""Builds what is compiled, where there is a C compiler; nothing needs it.

Called by hatchling for wheels, also those of editable installations. `CC` names the compiler,
and ``DASKDMED_NATIVE=off`` leaves it out: the wheel is then one for every system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "daskdmed/core/native"
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


class NativeHook(BuildHookInterface[Any]):
    """Compiles the files of C of `daskdmed.core.native` into one library beside them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the result in the wheel, which is then for this system only."""
        folder = Path(self.root, FOLDER)
        built = folder / f"_loops{_SUFFIX}"
        failure = _compile(sorted(folder.glob("*.c")), built)
        if failure:
            built.unlink(missing_ok=True)
            self.app.display_warning(f"daskdmed is built without {FOLDER}: {failure}")
            return
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{system}"
        if version != "editable":
            build_data["force_include"][str(built)] = f"{FOLDER}/{built.name}"


def _compile(sources: list[Path], target: Path) -> str:
    """Compile files of C to a library; why that was not possible, empty where it was."""
    if os.environ.get("DASKDMED_NATIVE", "").lower() in ("off", "0"):
        return "DASKDMED_NATIVE=off"
    compiler = os.environ.get("CC", "").split()
    if not compiler:
        compiler = [p for p in map(shutil.which, ("cc", "gcc", "clang")) if p][:1]
    if not compiler:
        return "there is no C compiler"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # moved into place whole: a process may have the one that is there in use
        made = Path(folder, target.name)
        flags = ["-std=c99", "-O2", "-fPIC", "-shared", "-o", str(made), *map(str, sources)]
        try:
            subprocess.run([*compiler, *flags], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"{error} {getattr(error, 'stderr', '')}"
        made.replace(target)
    return ""
