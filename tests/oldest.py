"""The core with the oldest dependencies that pyproject.toml allows: python tests/oldest.py

Makes an environment in a temporary folder (or the one that is named), installs what
constraints-oldest.txt says with every extra but torch, and runs the tests that need no more. torch
is the one of constraints.txt: those of the age of its bound come with gigabytes of CUDA.

    python tests/oldest.py --newest --python python3.14

does the same with another Python and with the dependencies of today. Packages are downloaded (with
a torch for CUDA, where pip finds none for the CPU) and it takes half an hour, so that neither is
part of .ci/run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: extras that are no libraries of their own, and torch
LEFT_OUT = ("all", "test", "docs", "dev", "torch")
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "psutil")
TESTS = (
    *("tests/tiling", "tests/core", "tests/images", "tests/cohort", "tests/store"),
    *("tests/persistence/test_plan.py", "tests/loading/test_lightdl.py", "tests/test_main.py"),
)


def run(*command: str) -> None:
    """Run a command; its exit status is ours where it fails."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "MPLBACKEND": "agg"})
    if done.returncode:
        sys.exit(done.returncode)


def extras() -> str:
    """Those that are tested here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return ",".join(e for e in project["optional-dependencies"] if e not in LEFT_OUT)


def torch() -> str:
    """The requirement that is in constraints.txt."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    (found,) = [line for line in pins if line.startswith("torch==")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", help="a folder; made where there is none, and kept")
    parser.add_argument("--python", default=sys.executable, help="that makes the environment")
    parser.add_argument("--newest", action="store_true", help="with constraints.txt, all of [test]")
    parser.add_argument("tests", nargs="*", default=TESTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="daskdmed-oldest-") as temporary:
        folder = Path(given.environment or temporary)
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        if not python.exists():
            run(given.python, "-m", "venv", str(folder))
        install = (str(python), "-m", "pip", "install", "-q")
        if given.newest:
            run(*install, "-c", "constraints.txt", "-e", ".[test]")
        else:
            run(*install, "-c", "constraints-oldest.txt", f".[{extras()}]", torch(), *TOOLS)
            run(str(python), "-m", "pip", "uninstall", "-q", "-y", "daskdmed")
            run(*install, "--no-deps", "-e", ".")
        run(str(python), "-m", "daskdmed")
        run(str(python), "-m", "pytest", *given.tests)


if __name__ == "__main__":
    main()
