"""What is local and what is remote: one answer for images, stores, tables and manifests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daskdmed.core import places
from daskdmed.core.places import filesystem, is_remote, is_url, local_path
from daskdmed.images.source import normalize_uri
from daskdmed.store.location import Location


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a.svs",
        "https://host/a.svs?x=1#y",
        "memory://a.zarr",
        "memory:///a.zarr",
        "simplecache::https://host/a.svs",
        "zip://a.zarr::file:///data/a.zip",
    ],
)
def test_urls_stay_as_they_are(url):
    assert is_remote(url)
    assert is_url(url)
    assert local_path(url) is None
    assert normalize_uri(url) == url
    assert Location.of(url).target == url
    assert Location.of(url).path is None


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("/data/a.svs", "/data/a.svs"),
        ("/data//b/../a.svs/", "/data/a.svs"),
        ("file:///data/a.svs", "/data/a.svs"),
        ("file://localhost/data/a.svs", "/data/a.svs"),
        ("file:/data/a.svs", "/data/a.svs"),
        ("file:///data/a%20b%23c.svs", "/data/a b#c.svs"),
        ("file:///data/a#1?.svs", "/data/a#1?.svs"),
        ("/data/a%20b.svs", "/data/a%20b.svs"),
        (Path("/data/a.svs"), "/data/a.svs"),
    ],
)
def test_local_places_are_absolute_paths(place, path):
    assert not is_remote(place)
    assert is_url(place) == str(place).startswith("file:")
    assert local_path(place) == path
    assert normalize_uri(place) == path
    assert Location.of(place).path == Path(path)


def test_relative_paths_and_the_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert local_path("a.svs") == str(tmp_path / "a.svs")
    assert local_path("~/a.svs") == "/home/someone/a.svs"


@pytest.mark.parametrize("path", ["C:\\data\\a.svs", "C:/data/a.svs", "C://data/a.svs"])
def test_the_letter_of_a_drive_is_no_protocol(path):
    assert not is_remote(path)
    assert not is_url(path)


def test_a_drive_in_a_url(monkeypatch):
    import ntpath

    monkeypatch.setattr(places.os, "name", "nt")
    monkeypatch.setattr(places.os, "path", ntpath)
    assert local_path("file:///C:/data/a.svs") == "C:\\data\\a.svs"


def test_file_systems():
    fs, path = filesystem("memory://a/b")
    assert type(fs).__name__ == "MemoryFileSystem"
    assert path == "/a/b"
    with pytest.raises(ValueError, match="nosuch"):
        filesystem("nosuch://a")
    assert os.fspath(filesystem("simplecache::memory://a/b")[1]).endswith("a/b")
