"""The cache of tissue masks, whole datasets, and what a slide shows of its tissue."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest

from daskdmed import (
    Dataset,
    Patient,
    Record,
    TissueMask,
    heatmap,
    open_slide,
    tissue_mask,
    tissue_masks,
)
from daskdmed.cohort.tissue import cache as tissue_cache
from daskdmed.cohort.tissue import find as tissue
from daskdmed.errors import ImageError, ImageNotFoundError, UsageError
from daskdmed.images import html
from daskdmed.samples import make_cohort

SIDE = 1024


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [m.path for m in make_cohort(folder, 4, SIDE, tile=64, levels=2)]


@pytest.fixture
def dataset(slides: list[Path]) -> Dataset:
    return Dataset("four", [Patient(f"p{i}", {"wsi": Record(p)}) for i, p in enumerate(slides)])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DASKDMED_CACHE_DIR", str(tmp_path / "cache"))
    tissue_cache.forget()
    yield tmp_path / "cache"
    tissue_cache.forget()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images whose mask was computed."""
    names = []
    plain = tissue._make

    def count(source, *args):
        names.append(source.name)
        return plain(source, *args)

    monkeypatch.setattr(tissue, "_make", count)
    return names


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


# -------------------------------------------------------------------- the cache
def test_a_mask_is_made_once(slides, folder, made):
    first = tissue_mask(slides[0])
    assert tissue_mask(slides[0]) is first, "in memory"
    assert len(files(folder)) == 1
    tissue_cache.forget()
    again = tissue_mask(slides[0])
    assert again == first
    assert (again.method, again.mpp, again.picture) == (first.method, first.mpp, first.picture)
    assert len(made) == 1


def test_parameters_and_slides_have_masks_of_their_own(slides, folder, made):
    calls = [
        {},
        {"method": "hed"},
        {"resolution": 4},
        {"min_area": 0},
        {"max_hole": 0},
        {"marks": False},
    ]
    for options in calls:
        tissue_mask(slides[0], **options)
    tissue_mask(slides[1])
    tissue_mask(Record(slides[0], mpp=0.25))
    assert len(made) == len(files(folder)) == len(calls) + 2
    # what is the default when it is said has the same name
    tissue_mask(slides[0], min_area=tissue.MIN_AREA, marks=True)
    assert len(made) == len(calls) + 2


def test_a_changed_slide_is_looked_at_again(slides, tmp_path, made):
    path = tmp_path / "slide.tif"
    shutil.copy(slides[0], path)
    tissue_mask(path)
    shutil.copy(slides[1], path)
    os.utime(path, (1, 1))
    second = tissue_mask(path)
    assert len(made) == 2
    assert second == tissue_mask(slides[1])


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_damaged_file_is_made_again(slides, folder, made, caplog, content):
    first = tissue_mask(slides[0])
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    tissue_cache.forget()
    with caplog.at_level(logging.WARNING, "daskdmed.cohort"):
        assert tissue_mask(slides[0]) == first
    assert "made again" in caplog.text
    assert len(made) == 2
    assert TissueMask.load(path) == first


def test_without_the_cache_nothing_is_kept(slides, folder, made):
    tissue_mask(slides[0], cache=False)
    tissue_mask(slides[0], cache=False)
    assert len(made) == 2
    assert not folder.exists()
    assert tissue_cache.latest(open_slide(slides[0]).token) is None


def test_a_folder_that_cannot_be_written_is_reported_once(slides, folder, made, caplog):
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "daskdmed.cohort"):
        for path in slides[:2]:
            tissue_mask(path)
    assert caplog.text.count("DASKDMED_CACHE_DIR") == 1
    tissue_mask(slides[0])
    assert len(made) == 2, "kept in memory all the same"


def pale(rgb):
    return rgb[..., 1] < 220


def test_functions_are_cached_when_they_have_a_name(slides, folder, made):
    limit = 200
    for method in (pale, lambda rgb: rgb[..., 1] < limit):
        for _ in range(2):
            tissue_mask(slides[0], method=method)
    assert len(made) == len(files(folder)) == 2
    limit = 100
    tissue_mask(slides[0], method=lambda rgb: rgb[..., 1] < limit)
    assert len(made) == 3


def test_functions_without_a_stable_name_are_not_cached(slides, folder, made):
    class Odd:
        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, rgb):
            return rgb[..., 1] < 220

    odd = Odd()
    for _ in range(2):
        tissue_mask(slides[0], method=odd)
    # its source is not in any file
    space: dict = {}
    exec("def typed(rgb): return rgb[..., 1] < 220", space)
    for _ in range(2):
        tissue_mask(slides[0], method=space["typed"])
    assert len(made) == 4
    assert not folder.exists()


def test_arrays_and_given_masks_are_not_cached(slides, folder):
    image = np.full((300, 300, 3), (200, 140, 190), np.uint8)
    tissue_mask(image)
    tissue_mask(slides[0], method=np.ones((8, 8)))
    assert not folder.exists()


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(tissue_cache, "_KEPT", 3)
    mask = TissueMask(np.ones((2, 2)), scale=(1, 1))
    for i in range(10):
        tissue_cache.store(f"slide{i}", "key", mask)
    assert len(tissue_cache._memory) == 3


def test_where_the_folder_is(monkeypatch):
    import platformdirs

    monkeypatch.delenv("DASKDMED_CACHE_DIR")
    assert tissue.cache_dir() == Path(platformdirs.user_cache_dir("daskdmed"))
    monkeypatch.setenv("DASKDMED_CACHE_DIR", "~/here")
    assert tissue.cache_dir() == Path.home() / "here"


# -------------------------------------------------------------------- shown with the slide
def test_a_slide_shows_the_tissue_that_is_known(slides, made):
    slide = open_slide(slides[0])
    plain = slide._repr_html_()
    assert "tissue" not in plain
    assert not made, "nothing is computed to show a slide"
    mask = tissue_mask(slide)
    tissue_cache.forget()
    shown = slide._repr_html_()
    assert f"tissue {mask.fraction:.1%}" in shown
    assert "(otsu)" in shown
    pictures = [re.search(r"base64,([^\"]+)", h)[1] for h in (plain, shown)]
    assert pictures[0] != pictures[1], "the outline is drawn"
    tissue_mask(slide, method="hed")
    assert "(hed)" in slide._repr_html_(), "the latest"
    assert "tissue" not in open_slide(slides[1])._repr_html_()
    assert len(made) == 2


def test_damage_in_the_cache_does_not_reach_the_table(slides, folder):
    slide = open_slide(slides[0])
    tissue_mask(slide)
    tissue_cache.forget()
    files(folder)[0].write_bytes(b"junk")
    assert "tissue" not in slide._repr_html_()


def test_overlays_of_others(slides, monkeypatch, caplog):
    monkeypatch.setattr(html, "_overlays", dict(html._overlays))
    html.register_overlay("mine", lambda slide, picture: (picture * 0, "<mine>"))

    def broken(slide, picture):
        raise ZeroDivisionError

    html.register_overlay("broken", broken)
    with caplog.at_level(logging.WARNING, "daskdmed.images"):
        shown = open_slide(slides[0])._repr_html_()
    assert "&lt;mine&gt;" in shown
    assert "'broken' failed" in caplog.text


# -------------------------------------------------------------------- datasets
def test_one_task_per_slide(dataset, made):
    masks = tissue_masks(dataset)
    assert list(masks) == list(dataset.ids)
    assert len(made) == 4
    for key, mask in masks.items():
        assert mask == tissue_mask(dataset[key].record())
    assert len({m.token for m in masks.values()}) == 4


def test_patients_with_masks_of_their_own(dataset, tmp_path):
    method = {}
    for i, patient in enumerate(dataset):
        np.save(tmp_path / f"{i}.npy", np.arange(64).reshape(8, 8) < 16 * (i + 1))
        method[patient.key] = tmp_path / f"{i}.npy"
    masks = tissue_masks(dataset, method=method)
    assert [m.fraction for m in masks.values()] == [0.25, 0.5, 0.75, 1.0]
    # what comes out goes in
    assert tissue_masks(dataset, method=masks) == masks
    del method["p2"]
    with pytest.raises(UsageError, match=r"method= has no entry for 1 of 4 patients: \['p2'\]"):
        tissue_masks(dataset, method=method)


def test_a_slide_that_cannot_be_read(dataset, tmp_path, caplog):
    bad = dataset.concat(Dataset("bad", [Patient("gone", {"wsi": Record(tmp_path / "x.tif")})]))
    with pytest.raises(ImageNotFoundError) as caught:
        tissue_masks(bad)
    assert "'gone'" in caught.value.__notes__[0]
    with caplog.at_level(logging.WARNING, "daskdmed.cohort"):
        masks = tissue_masks(bad, on_error="skip")
    assert list(masks) == ["p0", "p1", "p2", "p3"]
    assert [f.patient for f in masks.failures] == ["gone"]
    assert "left out gone/wsi: ImageNotFoundError" in caplog.text
    with pytest.raises(UsageError, match="on_error"):
        tissue_masks(bad, on_error="ignore")


def test_arrays_are_not_computed_to_become_arguments(monkeypatch):
    volume = da.zeros((16, 32, 32), chunks=8, dtype=np.int16)
    monkeypatch.setattr(
        "daskdmed.images.arrayview.ArrayView.read",
        lambda self, region, out=None: np.ones(region.shape, np.int16),
    )
    masks = tissue_masks(
        Dataset.from_arrays([volume], spatial_ndim=3), method=lambda v: v > 0, cache=False
    )
    assert [m.fraction for m in masks.values()] == [1.0]


def test_no_tissue_is_no_error():
    glass = np.full((200, 200, 3), 244, np.uint8)
    (mask,) = tissue_masks(Dataset.from_arrays([glass])).values()
    assert mask.empty


def test_errors_cross_processes(slides):
    with pytest.raises(ImageError) as caught:
        tissue_mask(slides[0].with_name("none.tif"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.cluster
def test_on_a_cluster(dataset, folder):
    from distributed import Client, LocalCluster

    expected = tissue_masks(dataset)
    shutil.rmtree(folder)
    tissue_cache.forget()
    with (
        # forks would know another cache folder
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        masks = tissue_masks(dataset, client=client)
        assert masks == expected
        assert len(files(folder)) == 4, "the workers keep them"
        # blocks that live on the cluster can only be asked for from here
        image = np.full((600, 600, 3), 244, np.uint8)
        image[100:400, 100:400] = (200, 140, 190)
        held = client.persist(da.from_array(image, chunks=(300, 300, 3)))
        mixed = Dataset.from_arrays([held]).concat(dataset)
        found = list(tissue_masks(mixed, client=client).values())
        assert found[0].fraction == pytest.approx(0.25, abs=0.02)
        assert found[1:] == list(expected.values())


def test_another_process_finds_the_file(slides, folder):
    """Keys do not depend on the process, for functions of a module neither."""
    tissue_mask(slides[0])
    script = (
        "import sys; from daskdmed.cohort.tissue import find as tissue\n"
        "def no(*a): raise SystemExit('made again')\n"
        "tissue._make = no\n"
        "print(tissue.tissue_mask(sys.argv[1]).fraction)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(slides[0])], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == tissue_mask(slides[0]).fraction


# -------------------------------------------------------------------- with the rest
def test_the_overlay_is_declared_for_installations(slides, monkeypatch):
    import tomllib
    from importlib.metadata import EntryPoint, EntryPoints

    declared = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    (target,) = declared["project"]["entry-points"][html.OVERLAY_GROUP].values()
    found = [
        EntryPoint("tissue", target, html.OVERLAY_GROUP),
        EntryPoint("gone", "daskdmed.no_such:thing", html.OVERLAY_GROUP),
    ]
    monkeypatch.setattr(html, "entry_points", lambda group: EntryPoints(found))
    monkeypatch.setattr(html, "_overlays", {})
    tissue_mask(slides[0])
    html._installed.cache_clear()
    try:
        assert "tissue" in open_slide(slides[0])._repr_html_()
    finally:
        html._installed.cache_clear()


def test_a_mask_limits_a_heatmap(slides, tmp_path):
    slide = open_slide(slides[0])
    mask = tissue_mask(slide)
    made = heatmap(
        slide,
        lambda windows: windows.mean(axis=(1, 2, 3)),
        kernel_size=64,
        mask=mask,
        mask_fraction=0.5,
        out=tmp_path / "map.zarr",
    )
    done = ~np.isnan(np.asarray(made))
    rows, columns = np.mgrid[: done.shape[0], : done.shape[1]]
    origins = np.stack([rows.ravel(), columns.ravel()], axis=1) * 64
    assert np.array_equal(done.ravel(), mask.fractions(origins, (64, 64)) >= 0.5 - 1e-12)
    assert 0 < done.mean() < 1
