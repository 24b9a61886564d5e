"""The loader on slides: levels, mpp, corrupt files, soak."""

from __future__ import annotations

import numpy as np
import psutil
import pytest

from daskdmed import Dataset, LightDL, Patient, Record, open_slide
from daskdmed.errors import DatasetError, LoaderError, ResolutionError, SampleNotAvailableError
from daskdmed.samples import fetch, make_slide

SIZES = {"batch_size": 8, "resident": "64 MiB", "bigchunk_size": 1024}


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory):
    return make_slide(tmp_path_factory.mktemp("made") / "a.tif", 4096, seed=1).path


def dataset_of(*paths, **kwargs):
    return Dataset(
        "d", [Patient(f"p{i}", {"wsi": Record(p, **kwargs)}) for i, p in enumerate(paths)]
    )


def test_the_real_slide():
    try:
        path = fetch("CMU-1-Small-Region.svs")
    except SampleNotAvailableError as error:
        pytest.skip(str(error))
    slide = open_slide(path)
    with LightDL(dataset_of(path), **SIZES) as loader:
        for _, (x, _, chunks) in zip(range(10), loader):
            for sample, chunk in zip(x, chunks, strict=True):
                expected = slide.read_region(chunk.location, 0, (224, 224))
                assert np.array_equal(sample.permute(1, 2, 0).numpy(), expected)
                assert chunk.mpp == pytest.approx((0.499, 0.499))
                assert chunk.level == 0


def test_levels_are_cropped_where_they_say(slide_path):
    slide = open_slide(slide_path)
    with LightDL(dataset_of(slide_path), **SIZES, level=1, smallchunk_size=100) as loader:
        x, _, chunks = next(loader)
    level = slide.view(level=1).read(whole(slide.view(level=1)))
    for sample, chunk in zip(x, chunks, strict=True):
        y, x0 = chunk.origin
        assert np.array_equal(sample.permute(1, 2, 0).numpy(), level[y : y + 100, x0 : x0 + 100])
        assert chunk.location == (
            round(x0 * slide.level_downsamples[1]),
            round(y * slide.level_downsamples[1]),
        )


def whole(view):
    from daskdmed import Region

    return Region((0, 0), view.shape[:2])


def test_mpp_between_levels_and_as_function(slide_path):
    slide = open_slide(slide_path)
    mpp = slide.mpp[0] * 1.7
    view = slide.view(mpp=mpp)
    pixels = view.read(whole(view))
    with LightDL(dataset_of(slide_path), **SIZES, mpp=lambda patient: mpp) as loader:
        x, _, chunks = next(loader)
    for sample, chunk in zip(x, chunks, strict=True):
        y, x0 = chunk.origin
        assert np.array_equal(sample.permute(1, 2, 0).numpy(), pixels[y : y + 224, x0 : x0 + 224])
        assert chunk.mpp == pytest.approx((mpp, mpp))
        assert chunk.level is None


def test_missing_mpp_names_the_patient(tmp_path):
    import tifffile

    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, np.zeros((512, 512, 3), "u1"), tile=(256, 256), photometric="rgb")
    with pytest.raises(ResolutionError, match="'p0'"):
        LightDL(dataset_of(path), **SIZES, mpp=0.5)
    with LightDL(dataset_of(path, mpp=0.25), **SIZES, mpp=0.5) as loader:
        assert next(loader)[2][0].mpp == pytest.approx((0.5, 0.5))


@pytest.fixture
def broken(tmp_path, slide_path):
    """A good slide, one that is not a slide, one that is missing, and one with bad tiles."""
    text = tmp_path / "text.tif"
    text.write_text("no slide")
    data = bytearray(slide_path.read_bytes())
    for at in range(len(data) // 8, len(data) - 4096, 2048):
        data[at : at + 64] = b"\x00" * 64
    tiles = tmp_path / "tiles.tif"
    tiles.write_bytes(data)
    return [slide_path, text, tmp_path / "missing.tif", tiles]


def test_bad_slides_are_named(broken):
    with pytest.raises(LoaderError, match=r"'p1'.*text\.tif"):
        LightDL(dataset_of(*broken), **SIZES)


def test_bad_slides_are_skipped_and_reported(broken):
    with LightDL(dataset_of(*broken[:3]), **SIZES, on_error="skip") as loader:
        for _, (x, patients, _) in zip(range(20), loader):
            assert x.shape == (8, 3, 224, 224)
            assert {p.id for p in patients} == {"p0"}
        failed = loader.stats().failed
    assert [f.patient for f in failed] == ["p1", "p2"]
    assert all(f.where == "open" for f in failed)
    with pytest.raises(DatasetError, match="none of the 2 images"):
        LightDL(dataset_of(*broken[1:3]), **SIZES, on_error="skip")


def test_memory_stays_within_the_budget_over_many_rotations(slide_path):
    """The soak test, short: hundreds of rotations of the whole budget."""
    sizes = {"batch_size": 16, "resident": "48 MiB", "bigchunk_size": 1024}
    with LightDL(dataset_of(slide_path), **sizes, smallchunks_per_bigchunk=16) as loader:
        process = psutil.Process()
        for _ in range(60):
            next(loader)
        before = process.memory_info().rss
        peak = before
        for i in range(400):
            next(loader)
            if i % 20 == 0:
                peak = max(peak, process.memory_info().rss)
        assert loader.stats().visits_evicted > 300
    assert peak - before < 60 << 20


def test_state_goes_on_where_the_same_files_have_another_path(slide_path, tmp_path):
    import shutil

    from tests.loading.conftest import assert_same_batches, collect

    moved = shutil.copy(slide_path, tmp_path / "elsewhere.tif")
    with LightDL(dataset_of(slide_path), **SIZES) as loader:
        collect(loader, 3)
        state = loader.state_dict()
        expected = collect(loader, 3)
    other = LightDL(dataset_of(moved), **SIZES)
    other.load_state_dict(state)
    with other:
        assert_same_batches(collect(other, 3), expected)
