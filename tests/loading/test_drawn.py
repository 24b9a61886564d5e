"""A big chunk is read no further than its draws need, and nobody can tell it by the batches."""

from __future__ import annotations

import contextlib
import json

import dask
import numpy as np
import pytest
import tifffile
import zarr

from daskdmed import Dataset, LightDL, Patient, Quota, Record
from daskdmed.images.tiff import count_tiles
from daskdmed.persistence import drawn
from daskdmed.persistence.units import JobFactory
from daskdmed.policies import EachOnce, OnePass
from tests.loading.clusters import scale, tcp_cluster
from tests.loading.conftest import assert_same_batches

SIZE, TILE = 256, 16
OPTIONS = {
    "smallchunk_size": 12,
    "batch_size": 8,
    "bigchunk_size": 96,
    "resident": "400 KiB",
    "smallchunks_per_bigchunk": 5,
    "seed": 3,
}
BATCHES = 12


def write(path, values, **options):
    kind = "rgb" if values.ndim == 3 else "minisblack"
    more = {"compression": "zlib", "metadata": None, **options}
    tifffile.imwrite(path, values, tile=(TILE, TILE), photometric=kind, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    for i in range(3):
        values = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        write(folder / f"s{i}.tif", values, **resolution)
        write(folder / f"labels{i}.tif", rng.integers(0, 3, (SIZE // 2, SIZE // 2), np.uint8))
        zarr.create_array(
            folder / f"v{i}.zarr",
            data=rng.integers(0, 999, (40, 40, 40), np.uint16),
            chunks=(8,) * 3,
        )
        square = [[[20, 30], [150, 30], [150, 90], [20, 90], [20, 30]]]
        shape = {
            "type": "Feature",
            "properties": {"classification": {"name": "Tumor"}},
            "geometry": {"type": "Polygon", "coordinates": square},
        }
        (folder / f"s{i}.geojson").write_text(json.dumps([shape]))
    return folder


@pytest.fixture(scope="module")
def slides(folder):
    patients = [
        Patient(
            f"p{i}",
            {
                "wsi": Record(folder / f"s{i}.tif"),
                "labels": Record(folder / f"labels{i}.tif"),
                "drawn": Record(folder / f"s{i}.geojson"),
                "again": Record(folder / f"s{(i + 1) % 3}.tif"),
            },
            {"grade": i % 2},
        )
        for i in range(3)
    ]
    return Dataset("slides", patients)


@pytest.fixture(scope="module")
def volumes(folder):
    return Dataset(
        "volumes", [Patient(f"p{i}", {"ct": Record(folder / f"v{i}.zarr")}) for i in range(3)]
    )


def mask(name):
    """A fifth of the image, with a ragged edge."""
    held = np.zeros((SIZE // 4, SIZE // 4), bool)
    held[10:40, 5:30] = True
    held[np.random.default_rng(1).random(held.shape) < 0.05] ^= True
    return held


def masks():
    return {f"p{i}": mask(i) for i in range(3)}


def take(loader, count=BATCHES):
    """Pixels (and targets), patients and origins."""
    out = []
    for _ in range(count):
        x, patients, chunks = next(loader)
        pixels = x.numpy().copy()
        if chunks.targets is not None:
            targets = np.asarray(chunks.targets)
            if targets.ndim == 4 and not isinstance(chunks.targets, np.ndarray):
                targets = np.moveaxis(targets, 1, -1)  # as they lie on a device
            targets = targets.astype(pixels.dtype)
            pixels = np.concatenate([pixels.ravel(), targets.ravel()])
        out.append((pixels, [p.id for p in patients], chunks.origins.copy()))
    return out


@contextlib.contextmanager
def whole():
    """Big chunks are read whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "NEAR", 0.0)
        patch.setattr(drawn, "APART", 0.0)
        yield


@pytest.fixture
def asked(monkeypatch):
    """The jobs of visits, by number, of the loader that was started last."""
    jobs = {}

    def unit(self, visits, make=JobFactory.unit):
        made = make(self, visits)
        jobs.update(zip([v.number for v in visits], made.jobs, strict=True))
        return made

    monkeypatch.setattr(JobFactory, "unit", unit)
    return jobs


def both(dataset, asked, **options):
    """Batches, which are those of whole big chunks; the share of storage tiles that is read."""
    options = {**OPTIONS, **options}
    with whole(), LightDL(dataset, **options) as loader:
        expected = take(loader)
        assert all(job.parts is job.target_parts is None for job in asked.values())
    asked.clear()
    with LightDL(dataset, **options) as loader:
        assert_same_batches(take(loader), expected)
    return np.mean([1 if job.parts is None else job.parts.share for job in asked.values()])


KINDS = {
    "plain": {},
    "more draws": {"smallchunks_per_bigchunk": 12, "smallchunk_size": 20},
    "several big chunks a task": {"bigchunk_size": 48, "resident": "600 KiB"},
    "between levels": {"mpp": 0.7},
    "tissue": {"tissue": masks()},
    "classes of annotations": {"labels": "Tumor", "annotations": "drawn"},
    "classes of a label map": {"labels": 1, "annotations": "labels"},
    "quotas": {"quotas": [Quota(0.25, patients={"grade": 1})], "resident": "600 KiB"},
    "target": {"target": "labels"},
    "target of annotations": {"target": "drawn", "target_classes": ["Tumor"]},
    "records as channels": {"record": ["wsi", "again"], "resident": "800 KiB"},
    "one pass": {"policy": OnePass()},
    "each once": {"policy": EachOnce(stride=40)},
    "skipping": {"on_error": "skip"},
    "padded": {"pad": True, "smallchunk_size": 20},
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_whole_big_chunks(slides, asked, kind):
    assert 0 < both(slides, asked, **KINDS[kind]) < 0.95
    # few of them are kept one by one, but of targets that are not read in parts
    held_whole = kind in ("more draws", "target of annotations")
    assert all(job.apart is None for job in asked.values()) is held_whole


@pytest.mark.parametrize("target", [None, "wsi", "labels"])
def test_on_a_device_they_are_the_same(slides, asked, target):
    options = {**OPTIONS, "target": target, "record": "again"}
    with LightDL(slides, **options) as loader:
        expected = take(loader, 6)
    with (
        dask.config.set({"daskdmed.device-residents": True}),
        LightDL(slides, **options, device="cpu") as loader,
    ):
        assert_same_batches(take(loader, 6), expected)
        assert loader.stats().resident_on == "cpu"
    assert all(job.apart is not None for job in asked.values())


def test_no_more_is_counted_than_is_held_and_more_is_read_at_a_time(slides, asked):
    with LightDL(slides, **OPTIONS, target="labels") as loader:
        take(loader, 6)
        held = loader._engine.residents.allotment
        plan = loader._assembly.planning.allotment
        stats = loader.stats()
    assert held.slots == plan.slots
    assert held.group > plan.group
    assert 0 < stats.resident_bytes <= held.nbytes <= plan.nbytes
    assert max(job.nbytes for job in asked.values()) <= held.block_bytes < plan.block_bytes / 2
    # whole big chunks are counted as such
    with LightDL(slides, **OPTIONS, rotation="adaptive") as loader:
        take(loader, 2)
        whole = loader._assembly.planning.allotment
        assert loader._engine.residents.allotment.block_bytes == whole.block_bytes


@pytest.mark.parametrize("edge", ["reflect", "edge", "constant"])
def test_what_lies_around_small_chunks_is_read_too(volumes, asked, edge):
    options = {"smallchunk_size": (5, 5, 5), "bigchunk_size": 24, "smallchunks_per_bigchunk": 4}
    options |= {"context": (2, 0, 1), "context_edge": edge, "resident": "300 KiB"}
    assert both(volumes, asked, **options) < 0.85


def test_of_targets_too_only_what_is_drawn_is_read(slides, asked):
    with LightDL(slides, **OPTIONS, target="labels") as loader:
        take(loader)
    parts = [job.target_parts for job in asked.values() if job.target_parts is not None]
    assert len(parts) > len(asked) / 2
    assert np.mean([part.share for part in parts]) < 0.8


def test_no_other_tile_is_decoded(slides, asked):
    options = {**OPTIONS, "policy": OnePass(), "on_error": "skip"}
    with count_tiles() as counted, LightDL(slides, **options) as loader:
        take(loader, len(loader))
        stats = loader.stats()
    assert len(asked) == stats.visits_admitted == 27
    assert counted.tiles == sum(job.parts.count for job in asked.values())
    assert stats.pixels_read == sum(job.parts.pixels for job in asked.values())
    assert stats.pixels_read == counted.tiles * TILE**2
    # where draws are few no more of a tile is read than they touch
    assert any(job.parts.boxes is not None for job in asked.values())
    # each tile that is decoded is one that a draw touches: 12 pixels touch at most 2 x 2
    assert counted.tiles <= stats.visits_admitted * OPTIONS["smallchunks_per_bigchunk"] * 4


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": "adaptive"},
        {"smallchunk_collector": lambda bigchunk, context, rng: (3, 4)},
        {"bigchunk_loader": lambda read, context, rng: context.region},
        {"smallchunks_per_bigchunk": 200},
        {"resident": "16 MiB"},  # all stay in memory
    ],
    ids=lambda options: next(iter(options)),
)
def test_whole_where_draws_are_not_known_or_many_or_big_chunks_stay(slides, asked, options):
    with LightDL(slides, **{**OPTIONS, **options}) as loader:
        take(loader, 2)
    assert asked
    assert all(job.parts is None for job in asked.values())


@pytest.fixture(scope="module")
def expected(slides):
    with whole(), LightDL(slides, **OPTIONS, tissue=masks()) as loader:
        return take(loader, 2 * BATCHES)


def restored(dataset, state, **options):
    loader = LightDL(dataset, **{**OPTIONS, **options}, tissue=masks())
    loader.load_state_dict(state)
    return loader


def test_a_resumed_loader_holds_what_the_first_one_held(slides, asked, expected):
    with LightDL(slides, **OPTIONS, tissue=masks()) as loader:
        batches = take(loader, 7)
        state = json.loads(json.dumps(loader.state_dict()))
    names = {number: job.digest for number, job in asked.items()}
    asked.clear()
    with restored(slides, state) as loader:
        assert_same_batches(batches + take(loader, 5), expected[:12])
    both = names.keys() & asked.keys()
    assert len(both) > 4
    assert {n: names[n] for n in both} == {n: asked[n].digest for n in both}
    # with other ranks: each goes on with its part of the draws, from the same pixels
    for rank in range(2):
        asked.clear()
        with restored(slides, state, rank=rank, world_size=2) as loader:
            assert_same_batches(take(loader, 4), expected[7 + rank : 15 : 2])
        assert {n: j.digest for n, j in asked.items() if n in names}.items() <= names.items()


@pytest.mark.parametrize("shared", [False, True])
def test_ranks_share_and_lost_workers_are_replaced(slides, asked, expected, shared):
    with tcp_cluster(2, shared=shared) as (cluster, client), count_tiles() as counted:
        options = {**OPTIONS, "tissue": masks(), "client": client, "world_size": 2}
        with (
            LightDL(slides, **options, rank=0) as first,
            LightDL(slides, **options, rank=1) as second,
        ):
            batches = []
            for step in range(BATCHES):
                batches += take(first, 1) + take(second, 1)
                if step == 3:
                    assert counted.tiles <= sum(job.parts.count for job in asked.values())
                    scale(cluster, 0)
                    scale(cluster, 2)
    assert_same_batches(batches, expected)


def test_loaders_of_other_plans_share_only_whole_big_chunks(slides):
    def keys(**options):
        found = set()

        def unit(self, visits, make=JobFactory.unit):
            made = make(self, visits)
            if visits[-1].number < 24:  # how far is read ahead is a matter of time
                found.add(made.key)
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JobFactory, "unit", unit)
            with LightDL(slides, **{**OPTIONS, **options}) as loader:
                take(loader, 24 * loader._assembly.planning.draws_per_visit // 8)
        return found

    assert keys() == keys()
    assert not keys() & keys(seed=4)
    many = {"smallchunks_per_bigchunk": 100}
    assert keys(**many) & keys(**many, seed=4)


def test_of_tissue_that_stays_all_that_can_be_needed_is_held(slides, asked):
    held = {"smallchunks_per_bigchunk": 40, "resident": "16 MiB", "tissue": masks()}
    both(slides, asked, **held)
    keys = {}
    assert any(job.parts is not None for job in asked.values())
    for job in asked.values():
        keys.setdefault((job.view.token, job.region), set()).add(job.digest)
    assert max(map(len, keys.values())) == 1
    # visits of a big chunk follow each other: they read it once
    assert len(asked) > len(keys)


@pytest.mark.parametrize("draws", [60, 400])
def test_a_pass_over_tissue_decodes_little_else(slides, asked, draws):
    options = {"tissue": {f"p{i}": whole_mask() for i in range(3)}, "policy": OnePass()}
    options |= {"smallchunks_per_bigchunk": draws}
    with count_tiles() as counted, LightDL(slides, **{**OPTIONS, **options}) as loader:
        for _ in loader:
            pass
    held = whole_mask().reshape(SIZE // TILE, TILE // 4, SIZE // TILE, TILE // 4).any(axis=(1, 3))
    assert counted.tiles <= 1.25 * 3 * held.sum()


def whole_mask():
    """A disc that covers about a fifth of the image."""
    y, x = np.mgrid[: SIZE // 4, : SIZE // 4]
    return (y - 30) ** 2 + (x - 28) ** 2 < 16**2
