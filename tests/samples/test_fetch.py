"""Published slides by name: where they are looked for, and what is said when they are nowhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pooch
import pytest

from daskdmed.errors import CorruptImageError, SampleNotAvailableError
from daskdmed.samples import _fetch, available, fetch

NAME = "CMU-1-Small-Region.svs"


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """A known sample of a few bytes, an empty cache, and no network."""
    content = b"not really a slide"
    monkeypatch.setitem(
        _fetch._SAMPLES,
        "tiny.svs",
        ("https://example.invalid/tiny.svs", hashlib.sha256(content).hexdigest()),
    )
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv("DASKDMED_DATA_DIR", raising=False)
    return content


def no_network(*args: object, **kwargs: object) -> None:
    raise OSError("no route to host")


def test_available() -> None:
    assert NAME in available()


def test_from_the_folder(
    small_sample: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.svs").write_bytes(small_sample)
    monkeypatch.setenv("DASKDMED_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", no_network)
    assert fetch("tiny.svs") == tmp_path / "tiny.svs"


def test_wrong_checksum_in_the_folder(
    small_sample: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.svs").write_bytes(small_sample + b"!")
    monkeypatch.setenv("DASKDMED_DATA_DIR", str(tmp_path))
    with pytest.raises(CorruptImageError, match="sha256") as error:
        fetch("tiny.svs")
    assert error.value.uri == str(tmp_path / "tiny.svs")


def test_from_the_cache(small_sample: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tiny.svs").write_bytes(small_sample)
    assert fetch("tiny.svs") == tmp_path / "cache" / "tiny.svs"


def test_offline(small_sample: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    monkeypatch.setenv("DASKDMED_DATA_DIR", str(folder))
    monkeypatch.setattr(pooch, "retrieve", no_network)
    with pytest.raises(SampleNotAvailableError) as error:
        fetch("tiny.svs")
    message = str(error.value)
    for part in (str(folder), "https://example.invalid/tiny.svs", "DASKDMED_DATA_DIR", "no route"):
        assert part in message


def test_unknown_name() -> None:
    with pytest.raises(SampleNotAvailableError, match=NAME):
        fetch("CMU-0.svs")


def test_the_real_one(real_slide: Path) -> None:
    assert real_slide.name == NAME


def test_import_stays_light() -> None:
    code = (
        "import sys, daskdmed.samples;"
        "print([m for m in ('pooch', 'tifffile', 'torch', 'dask', 'tqdm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
