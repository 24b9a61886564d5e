"""The core with the oldest dependencies that pyproject.toml allows: python tests/oldest.py

Makes an environment in a temporary folder (or the one that is named), installs what
constraints-oldest.txt says with every extra but torch, and runs the tests that need no more. torch
is the one of constraints.txt: those of the age of its bound come with gigabytes of CUDA. About ten
minutes, and packages are downloaded, so that it is not part of .ci/run.
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
#: extras that are no libraries of their own; torch; and zarrs, which needs a newer Zarr
LEFT_OUT = ("all", "test", "docs", "dev", "torch", "zarrs")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", help="a folder; made where there is none, and kept")
    parser.add_argument("tests", nargs="*", default=TESTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="daskdmed-oldest-") as temporary:
        folder = Path(given.environment or temporary)
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        if not python.exists():
            run(sys.executable, "-m", "venv", str(folder))
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = ",".join(e for e in project["optional-dependencies"] if e not in LEFT_OUT)
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        (torch,) = [line for line in pins if line.startswith("torch==")]
        oldest = ("-c", "constraints-oldest.txt")
        run(str(python), "-m", "pip", "install", "-q", *oldest, f".[{extras}]", torch, *TOOLS)
        run(str(python), "-m", "pip", "uninstall", "-q", "-y", "daskdmed")
        run(str(python), "-m", "pip", "install", "-q", "--no-deps", "-e", ".")
        run(str(python), "-m", "daskdmed")
        run(str(python), "-m", "pytest", *given.tests)


if __name__ == "__main__":
    main()
