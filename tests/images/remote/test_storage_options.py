"""What users tell the file system of a URL: reaches it everywhere, and shows nowhere."""

from __future__ import annotations

import logging
import pickle
import sys

import fsspec
import numpy as np
import pytest
import tifffile
from dask.base import tokenize
from fsspec.implementations.memory import MemoryFileSystem

from daskdmed import Dataset, Patient, Record, open_slide, open_slides, open_volume
from daskdmed.core.places import StorageOptions, filesystem, using
from daskdmed.errors import DatasetError, MissingExtraError, UsageError
from daskdmed.images.filecache import cache

SECRET = "very-secret-0123"


class Guarded(MemoryFileSystem):
    """Opens for who knows the secret."""

    protocol = "guarded"
    cachable = True
    store: dict = {}
    pseudo_dirs = [""]

    def __init__(self, secret=None, **kwargs):
        super().__init__(**kwargs)
        self.secret = secret

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("guarded://", "memory://"))

    def _check(self):
        if self.secret != SECRET:
            raise PermissionError(f"not with {self.secret}")

    def info(self, path, **kwargs):
        self._check()
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._check()
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)


@pytest.fixture(scope="module")
def url(pixels, tmp_path_factory):
    fsspec.register_implementation("guarded", Guarded, clobber=True)
    path = tmp_path_factory.mktemp("guarded") / "a.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb")
    fsspec.filesystem("guarded", secret=SECRET).pipe_file("/a.tif", path.read_bytes())
    stack = path.with_name("stack.tif")
    tifffile.imwrite(stack, pixels[:4], photometric="rgb", metadata={"axes": "ZYX"})
    return "guarded://a.tif"


def shown(*things):
    return " ".join(f"{thing!r} {thing}" for thing in things)


def test_a_slide_with_options_is_that_without(url, pixels, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PermissionError):
        open_slide(url)
    slide = open_slide(url, storage_options={"secret": SECRET})
    assert np.array_equal(slide.read_region((0, 0), 0, (160, 160)), pixels)
    lazy = slide.to_dask(chunks=64)
    view = slide.view()
    texts = shown(slide, slide.key, view, lazy, slide.token, view.token, lazy.name)
    texts += str(list(lazy.dask)) + caplog.text + tokenize(slide) + tokenize(slide.key)
    assert SECRET not in texts
    assert "secret" in repr(slide.key.storage_options)
    assert tokenize(slide.key.storage_options) == tokenize(StorageOptions({"secret": "other-0123"}))
    other = pickle.loads(pickle.dumps(slide))
    cache.clear()  # as in another process: opened again, with what was pickled
    assert np.array_equal(other.read_region((0, 0), 0, (160, 160)), pixels)
    assert other == slide
    cache.clear()
    assert np.array_equal(pickle.loads(pickle.dumps(lazy)).compute(scheduler="threads"), pixels)
    assert not filesystem("memory://a")[0].storage_options  # nothing is left behind


def test_the_wrong_options_are_an_error_that_does_not_show_them(url):
    with pytest.raises(PermissionError) as caught:
        open_slide(url, storage_options={"secret": "quite-wrong-0123"})
    assert "quite-wrong" not in str(caught.value)


def test_records_and_datasets_take_options_that_no_token_knows(url, pixels, tmp_path):
    record = Record(url, storage_options={"secret": SECRET})
    assert np.array_equal(record.open().read_region((0, 0), 0, (160, 160)), pixels)
    assert record == Record(url)
    assert record.token == Record(url).token
    assert record.renamed("other").storage_options == record.storage_options
    dataset = Dataset("d", [Patient("p", {"wsi": record}), Patient("q", {"wsi": Record("a.svs")})])
    assert SECRET not in shown(record, dataset, *dataset) + dataset.token
    for name in ("m.json", "m.csv"):
        dataset.to_manifest(tmp_path / name)
        assert SECRET not in (tmp_path / name).read_text()
        again = Dataset.from_manifest(tmp_path / name, storage_options={"secret": SECRET})
        assert again["p"].record().open() == record.open()
        assert again["q"].record().storage_options is None


def test_a_folder_behind_a_url_is_a_dataset(url, pixels):
    access = {"secret": SECRET}
    fs = fsspec.filesystem("guarded", **access)
    for name in ("sub/b.tif", "sub/notes.txt", "c.zarr/zarr.json", "c.zarr/0/c/0", ".hidden.tif"):
        fs.pipe_file(f"/cohort/{name}", fs.cat_file("/a.tif"))
    dataset = Dataset.from_folder(
        "guarded://cohort", storage_options=access, labels={"b": 1, "c": 0}
    )
    assert [p.id for p in dataset] == ["c", "b"]
    assert dataset.name == "cohort"
    record = dataset["b"].record()
    assert (record.uri, dataset["b"].labels["label"]) == ("guarded:///cohort/sub/b.tif", 1)
    assert np.array_equal(record.open().read_region((0, 0), 0, (160, 160)), pixels)
    flat = Dataset.from_folder("guarded://cohort/", "*.tif", storage_options=access)
    assert [p.id for p in flat] == ["b"]
    with pytest.raises(DatasetError, match="no images"):
        Dataset.from_folder("guarded://cohort", "*.svs", recursive=False, storage_options=access)
    with pytest.raises(DatasetError, match="no such folder"):
        Dataset.from_folder("guarded://elsewhere", storage_options=access)
    with pytest.raises(DatasetError, match="manifest"):
        Dataset.from_folder("simplecache::memory://cohort")


def test_several_slides_are_opened_with_the_same_options(url):
    first, second = open_slides([url, url], storage_options={"secret": SECRET})
    assert first == second
    with pytest.raises(PermissionError):
        open_slides([url, url])


@pytest.mark.parametrize("call", [open_slide, open_volume, Record])
def test_options_of_local_files_or_of_no_mapping_are_an_error(call, tmp_path):
    with pytest.raises(UsageError, match="URL"):
        call(str(tmp_path / "a.tif"), storage_options={"key": "x"})
    with pytest.raises(UsageError, match="mapping"):
        call("memory://a.tif", storage_options="key")


def test_options_of_an_array_are_an_error():
    with pytest.raises(DatasetError, match="storage_options"):
        Record(array=np.zeros((4, 4)), storage_options={"key": "x"})


def test_no_value_is_left_in_a_text():
    options = StorageOptions(
        {
            "a": {"headers": {"Authorization": "Bearer abcdefgh"}},
            "b": ("me", "pass-word"),
            "c": "us",
        }
    )
    text = options.hidden_in("got 'Bearer abcdefgh' and pass-word of me in us")
    assert text == "got '***' and *** of me in us"


def test_options_are_of_one_thread_and_one_call():
    with using(StorageOptions({"x_mark": 1})):
        assert filesystem("memory://a")[0].storage_options == {"x_mark": 1}
        with using(None):
            assert not filesystem("memory://a")[0].storage_options
    assert not filesystem("memory://a")[0].storage_options


@pytest.mark.parametrize(
    ("url", "package", "remedy"),
    [
        ("s3://b/a.tif", "s3fs", r"install 'daskdmed\[s3\]'"),
        ("gs://b/a.tif", "gcsfs", r"install 'daskdmed\[gcs\]'"),
        ("abfs://b/a.tif", "adlfs", "install it"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(url, package, remedy, monkeypatch):
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"{remedy}.*{package}"):
        open_slide(url)
