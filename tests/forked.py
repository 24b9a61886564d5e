"""Scripts run in forks of a process that has imported already what they import.

`python script.py` spends most of a short script's time on importing torch. The fork server has
done that, and has drawn the textures of made slides; each script has a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def run(
    script: Path, folder: Path, environment: Mapping[str, str], arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder; what it printed, and its exit status."""
    context = multiprocessing.get_context("forkserver")  # begun in conftest.py
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    process = context.Process(
        target=_main, args=(script, folder, dict(environment), list(arguments), out, err)
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    texts = (path.read_text() if path.exists() else "" for path in (out, err))
    return subprocess.CompletedProcess([str(script)], process.exitcode, *texts)


def _main(
    script: Path,
    folder: Path,
    environment: dict[str, str],
    arguments: list[str],
    out: Path,
    err: Path,
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, number)
        os.close(target)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
