"""Every benchmark runs at a tiny size, so that none of them rots."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "asv_bench"
TOPICS = sorted(p.stem for p in (FOLDER / "benchmarks").glob("[!_]*.py"))
KINDS = ("time_", "timeraw_", "track_", "peakmem_")
SHARED = (
    *("inputs", "dense", "limits", "scenarios", "peers", "volumes", "compare", "report"),
    *("steps", "trainers", "reads", "remote", "hooks"),
    "benchmarks",
)

pytest.importorskip("torch")
pytest.importorskip("openslide")
pytestmark = pytest.mark.programs


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny slides, short measurements, and the benchmark folder on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASKDMED_BENCH_SIZE", "1024")
        patch.setenv("DASKDMED_BENCH_SECONDS", "0.05")
        patch.setenv("DASKDMED_BENCH_DIR", str(tmp_path_factory.mktemp("bench")))
        patch.syspath_prepend(str(FOLDER))
        yield
        for name in list(sys.modules):
            if name.split(".")[0] in SHARED and FOLDER.as_posix() in str(
                getattr(sys.modules[name], "__file__", "")
            ):
                del sys.modules[name]


def test_configuration_is_readable() -> None:
    text = re.sub(r"^\s*//.*$", "", (FOLDER / "asv.conf.json").read_text(), flags=re.M)
    conf = json.loads(text)
    assert (FOLDER / conf["benchmark_dir"]).is_dir()
    assert (FOLDER / conf["repo"] / "pyproject.toml").is_file()


def benchmarks_of(module: ModuleType) -> list[tuple[type | None, str]]:
    """(class or None, name of the benchmark) of one file."""
    found: list[tuple[type | None, str]] = []
    for name, thing in vars(module).items():
        if inspect.isclass(thing) and thing.__module__ == module.__name__:
            found += [(thing, attribute) for attribute in dir(thing) if attribute.startswith(KINDS)]
        elif inspect.isfunction(thing) and name.startswith(KINDS):
            found.append((None, name))
    return found


def last_parameters(owner: type) -> tuple[object, ...]:
    """One combination of parameters is enough to see that a benchmark runs."""
    params = getattr(owner, "params", [])
    if params and not isinstance(params[0], (list, tuple)):
        params = [params]
    return list(itertools.product(*params))[-1] if params else ()


@pytest.mark.parametrize("topic", TOPICS)
def test_every_benchmark_runs(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"benchmarks.{topic}")
    if hasattr(module, "BATCH"):
        monkeypatch.setattr(module, "BATCH", 4)
    found = benchmarks_of(module)
    assert found
    for owner, name in found:
        if owner is None:
            statement = getattr(module, name)()
            exec(compile(statement, name, "exec"), {})
            continue
        suite, parameters = owner(), last_parameters(owner)
        try:
            suite.setup(*parameters)
        except NotImplementedError:  # asv's way to skip: a peer is not installed
            continue
        try:
            result = getattr(suite, name)(*parameters)
        finally:
            getattr(suite, "teardown", lambda *_: None)(*parameters)
        if name.startswith("track_"):
            assert result > 0 or name == "track_cores"
            assert getattr(suite, name).unit


FORKS = """
import os
from benchmarks import once_a_run

@once_a_run
def measure(what, *, how="much"):
    return os.getpid(), what, how

for _ in range(2):
    if not os.fork():
        measure("a"), measure("b", how="long")
        os._exit(0)
    os.wait()
assert measure("a")[0] == measure("b", how="long")[0] != os.getpid()
assert measure("a")[1:] == ("a", "much")
assert measure("b", how="long")[1:] == ("b", "long")
assert measure("b")[0] == os.getpid()
"""


def test_what_one_fork_has_measured_the_others_know() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cost_model() -> None:
    limits = importlib.import_module("limits")
    # a block of 16 Mpix at 1000 Mpix/s over 500 draws is 32 us, a copy 15 us
    assert limits.cost_model(16e6, 1e9, 500, 1 / 15e-6) == pytest.approx(1 / 47e-6)


def test_raw_decoding_covers_a_region() -> None:
    inputs, limits = (importlib.import_module(n) for n in ("inputs", "limits"))
    with limits.RawTiles(inputs.slide("mixed", 1000)) as tiles:
        assert tiles.inside(0, 0, 1000, 1000).tolist() == list(range(16))
        assert tiles.inside(256, 512, 300, 256).tolist() == [6, 10]
        assert tiles.decode_seconds(tiles.inside(0, 0, 256, 256)) > 0


def test_peers_give_steps() -> None:
    inputs, compare = (importlib.import_module(n) for n in ("inputs", "compare"))
    paths = inputs.slides("mixed", 2)
    for task, name in (
        ("patches", "daskdmed"),
        ("blocks", "daskdmed"),
        ("windows", "daskdmed"),
        ("patches", "OpenSlide"),
        ("blocks", "OpenSlide"),
        ("windows", "OpenSlide"),
    ):
        assert compare.measure_here(name, task, paths, 0.01) > 0


def test_table_of_ratios() -> None:
    compare = importlib.import_module("compare")
    figures = {"daskdmed": [100.0, 300.0], "slow": [10.0, 20.0], "absent": "not installed (x)"}
    lines = compare.table("patches", figures)
    assert lines[2] == "| daskdmed | 200 (100 to 300) |  |"
    assert lines[3] == "| slow | 15 (10 to 20) | 12.5 x |"
    assert "not installed (x)" in lines[4]


def test_report_marks_what_is_kept() -> None:
    report = importlib.import_module("report")
    assert "| yes |" in report.Figure("a", "mixed", 0.9, 0.85).row()
    assert "| NO |" in report.Figure("a", "mixed", 1.5, 1.4, False).row()
    assert "not measured" in report.Figure("a", "mixed", None, 1.0).row()


def test_report_of_trainers_and_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    report, steps, trainers = (importlib.import_module(n) for n in ("report", "steps", "trainers"))

    def compared(paths: object, ways: list[object], **_: object) -> dict[object, object]:
        return {way: trainers.Trained(5000.0, 0.83, 1.0, 3000.0, 360.0) for way in ways}

    def measure(paths: object, kind: str, **asked: object) -> object:
        return steps.Slowdown(1.2, 0.012, 1.0)

    monkeypatch.setattr(trainers, "compared", compared)
    monkeypatch.setattr(steps, "measure", measure)
    rows = [figure.row() for figure in report.ranks("mixed", 1)]
    promised = [row.split(" | ")[3:5] for row in rows if "/ in-process" in row]
    assert promised == [[">= 0.85", "NO"]] * 2 + [["", ""], [">= 0.8", "yes"]]
    assert sum("| <= 350 | NO |" in row for row in rows) == 4
    assert sum("| <= 1 | yes |" in row for row in rows) == 4
    rows = [figure.row() for figure in report.step_slowdown("mixed", 1)]
    assert len(rows) == 18
    (promise,) = [row for row in rows if "<= 1.15" in row]
    assert promise.startswith("| step of python at 2,000 patches/s, workers=1 / without |")
    assert "| NO |" in promise


def test_report_of_few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    report, reads = (importlib.import_module(n) for n in ("report", "reads"))
    found = {"ours": (8e-4, 4e-4), "processes": (1e-4, 1e-4), "cucim": (1e-3, 2e-4)}
    monkeypatch.setattr(reads, "few_draws", lambda *_, **__: found)
    by_cpu, by_clock, by_processes = [figure.row() for figure in report.few_draws("mixed", 1)]
    assert "by CPU | mixed | 1.25 | >= 1 | yes | 800 us a patch against 1,000 |" in by_cpu
    assert "| mixed | 0.5 | >= 1 | NO | 400 us a patch against 200 |" in by_clock
    assert ", workers=2 / " in by_processes
    assert "| mixed | 2 | >= 1 | yes | 100 us a patch against 200 |" in by_processes
    del found["cucim"]
    assert all("not measured" in figure.row() for figure in report.few_draws("mixed", 1))
    assert report.reading in report.TOPICS
    assert report.few_draws in report.TOPICS


def test_few_draws_take_turns_with_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, reads = (importlib.import_module(n) for n in ("inputs", "reads"))
    began = []

    def steps(paths: list[Path]) -> Iterator[int]:
        began.append(len(paths))
        while True:
            yield 8

    monkeypatch.setattr(reads, "cucim_patches", steps)
    found = reads.few_draws(inputs.slides("mixed", 2), 2, patches=16, cucim=True)
    assert began == [2, 2]
    assert set(found) == {"ours", "cucim"}
    assert min(found["ours"]) > 0


def test_a_training_process_that_fails_says_why() -> None:
    trainers = importlib.import_module("trainers")
    job = trainers.Job(("/nowhere/slide.tif",), "threads", 0.05)
    with trainers.Trainer(job) as trainer, pytest.raises(RuntimeError, match="nowhere"):
        trainer.hear()
