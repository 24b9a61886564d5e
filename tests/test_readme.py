"""What the README shows is run: its code, its commands, its links."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daskdmed import samples

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_main_use_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    samples.make_cohort(tmp_path / "slides", n=4, size=1024)
    shutil.move(tmp_path / "slides" / "labels.csv", tmp_path / "labels.csv")
    code = blocks("python")[0]
    assert len(code.splitlines()) <= 22
    # as printed, but for the number of batches; and shows what came out
    short = code.replace("epoch_length=500", "epoch_length=2")
    assert short != code
    short += "print(tuple(x.shape), x.dtype, heat.shape, len(smallchunks))"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", short],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "(64, 3, 224, 224) torch.uint8 (2, 5, 5) 64" in done.stdout
    assert (tmp_path / "heatmap.ome.zarr" / "zarr.json").exists()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert "docs/overview.svg" in targets
    for target in targets:
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_there_are_two_commands_and_each_is_one_line() -> None:
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 2
    assert all(line.startswith("python3 -m venv .venv && ") for line in commands)
    assert commands[0].endswith("examples/quickstart.py")
    assert commands[1].endswith("-m pytest")


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "draw_overview.py", tmp_path)
    subprocess.run([sys.executable, str(tmp_path / "draw_overview.py")], check=True)
    drawn = (tmp_path / "overview.svg").read_bytes()
    assert drawn == (ROOT / "docs" / "overview.svg").read_bytes()


def test_the_checks_find_both_commands() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert "readme_command '-m pytest'" in text
    assert "readme_command 'examples/quickstart\\.py'" in text
