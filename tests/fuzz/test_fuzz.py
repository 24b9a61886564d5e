"""Two thousand damaged files; and that the campaign sees what it is there for.

``python -m tests.fuzz --inputs 100000`` tries more. What is found is mended, and gets a test of its
own beside the reader.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="workers are limited, and forked, as Unix does it")
ROOT = Path(__file__).parents[2]
INPUTS = 2000
#: sound files that are refused, as they should be
REFUSED: set[str] = set()


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository; workers are forked, which a process with threads must not."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_damaged_files(tmp_path):
    path = tmp_path / "report.json"
    done = program("-m", "tests.fuzz", "--inputs", str(INPUTS), "--report", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["inputs"] == INPUTS
    assert set(report["refused"]) == REFUSED
    # the damage leaves enough that is read, and enough that is refused
    outcomes: dict[str, int] = {}
    for counts in report["counts"].values():
        for name, count in counts.items():
            outcomes[name] = outcomes.get(name, 0) + count
    assert outcomes["right"] > INPUTS / 20
    assert outcomes["read in part"] > INPUTS / 20
    assert outcomes["refused, CorruptImageError"] > INPUTS / 10
    assert outcomes["refused, AnnotationError"] > INPUTS / 50


_BEHAVIOURS = """
import json, os, sys, time, warnings
from pathlib import Path
import numpy as np
from tests.fuzz import campaign, judge
from tests.fuzz.seeds import Corpus, Seed
from daskdmed import errors

campaign.SECONDS, campaign._HANGS = 0.6, 1.6
campaign.BYTES = 100 << 20
kept = []

def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def warn():
    exec(compile("import warnings; warnings.warn('x')", judge._ROOT + "/x.py", "exec"), {})

def raises(error):
    raise error

def trial(what):
    def opener(trial):
        trial.opened = trial.attempt((errors.CorruptImageError,), what, trial.path) or "read"
    return opener

DOES = {
    "aborts": lambda path: os.abort(),
    "leaves": lambda path: os._exit(3),
    "spins": lambda path: spin(60),
    "slow": lambda path: spin(0.8),
    "fat": lambda path: np.ones(200 << 20, np.uint8).sum(),
    "warns": lambda path: warn(),
    "untyped": lambda path: raises(KeyError("x")),
    "nameless": lambda path: raises(errors.CorruptImageError("broken")),
    "kind": lambda path: raises(errors.UsageError(f"{path}")),
    "typed": lambda path: raises(errors.CorruptImageError(f"{path} broken")),
    "fine": lambda path: 1,
}
judge.OPENERS = {name: trial(what) for name, what in DOES.items()}
corpus = Corpus([Seed(f"{name}/file", name, "a.bin", {"a.bin": b"abcd"}) for name in DOES])
report = campaign.run(corpus, 0, range(-len(DOES), 0), 2)
found = {f.name.split("/")[0]: f.kind for f in report.findings}
assert report.inputs == len(DOES), report.inputs
print(json.dumps([found, {k: list(v) for k, v in report.counts.items()}]))
"""


def test_what_a_campaign_sees():
    """Crashes, hangs and all the others are one input's; what comes behind goes on."""
    done = program("-c", _BEHAVIOURS)
    assert done.returncode == 0, done.stderr
    found, counts = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "aborts": "crash: SIGABRT",
        "leaves": "crash: exit 3",
        "spins": "hang",
        "slow": "slow",
        "fat": "memory",
        "warns": "warning",
        "untyped": "untyped: KeyError",
        "nameless": "nameless",
        "kind": "kind: UsageError",
    }
    assert (counts["fine"], counts["typed"]) == (["read"], ["read in part"])


_AGAIN = """
import gzip, hashlib, io, json
import numpy as np, tifffile
from tests.fuzz.mutations import damaged
from tests.fuzz.seeds import Corpus, Seed

tiff = io.BytesIO()
tifffile.imwrite(tiff, np.zeros((40, 50), "u1"), tile=(16, 16))
text = json.dumps({"a": [1, {"b": "c"}], "d": {"e": None, "f": 1.5}}).encode()
contents = [tiff.getvalue(), text, gzip.compress(text, mtime=0), b"<a b='1'><c>2</c></a>"]
corpus = Corpus([Seed(f"x/{n}", "slide", "a", {"a": c, "b": text}) for n, c in enumerate(contents)])
made = [damaged(corpus, 3, number) for number in range(300)]
assert len({repr(m) for m in made}) > 250
print(hashlib.blake2b(repr(made).encode()).hexdigest())
"""


def test_a_number_is_an_input():
    """The same bytes again, in another process."""
    first, again = (program("-c", _AGAIN, PYTHONHASHSEED=hashes) for hashes in "12")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
