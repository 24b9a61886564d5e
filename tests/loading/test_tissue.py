"""Small chunks from tissue and from classes of annotations, on made slides and arrays."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from daskdmed import Dataset, LightDL, Patient, Record, tissue_mask
from daskdmed.errors import LoaderError, NoTissueError, UsageError
from daskdmed.persistence.policy import OnePass
from daskdmed.samples import make_slide
from tests.loading.conftest import SMALL, assert_same_batches, collect, coordinate_dataset


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Three made slides, a tenth tissue."""
    folder = tmp_path_factory.mktemp("tissue")
    for i in range(3):
        make_slide(folder / f"s{i}.tif", 4096, tissue=0.1, seed=i)
    return Dataset(
        "tissue",
        [Patient(f"s{i}", {"wsi": Record(folder / f"s{i}.tif")}, {"y": i}) for i in range(3)],
    )


OPTIONS = {
    "smallchunk_size": 128,
    "batch_size": 32,
    "bigchunk_size": 1024,
    "resident": "48 MiB",
    "smallchunks_per_bigchunk": 64,
}


def covered(mask, origin, size):
    """Fraction of a crop that a mask covers, each mask pixel spread over its pixels."""
    rows = np.arange(origin[0], origin[0] + size) / mask.scale[0]
    columns = np.arange(origin[1], origin[1] + size) / mask.scale[1]
    return mask.data[np.ix_(rows.astype(int), columns.astype(int))].mean()


@pytest.mark.parametrize("least", [0.2, 0.9])
def test_every_small_chunk_holds_the_tissue_that_was_declared(slides, least):
    masks = {p.id: tissue_mask(p.record()) for p in slides}
    places = []
    with LightDL(slides, **OPTIONS, tissue=True, min_tissue=least) as loader:
        for _ in range(40):
            _, patients, chunks = next(loader)
            for patient, origin in zip(patients, chunks.origins.tolist(), strict=True):
                places.append((patient.id, *origin))
                assert covered(masks[patient.id], origin, 128) >= least - 1e-3
        stats = loader.stats()
    assert {p for p, *_ in places} == {"s0", "s1", "s2"}
    assert len(set(places)) == len(places)  # none twice
    assert stats.diversity.coverage > 0.3


def test_most_of_what_is_drawn_without_a_mask_is_background(slides):
    """The check above can fail: unmasked sampling fails it."""
    masks = {p.id: tissue_mask(p.record()) for p in slides}
    with LightDL(slides, **OPTIONS) as loader:
        _, patients, chunks = next(loader)
        found = [
            covered(masks[p.id], o, 128)
            for p, o in zip(patients, chunks.origins.tolist(), strict=True)
        ]
    assert np.mean(np.array(found) < 0.2) > 0.5


def test_at_another_resolution(slides):
    masks = {p.id: tissue_mask(p.record()) for p in slides}
    with LightDL(slides, **{**OPTIONS, "smallchunk_size": 64}, mpp=1.0, tissue=True) as loader:
        for _ in range(8):
            _, patients, chunks = next(loader)
            for patient, (x, y) in zip(patients, chunks.locations.tolist(), strict=True):
                assert covered(masks[patient.id], (y, x), 128) >= 0.5 - 0.02


def test_tissue_is_drawn_evenly(slides):
    """In the long run a part of the tissue is drawn from in proportion to its places."""
    mask = np.zeros((32, 32), bool)
    mask[:12, :8] = mask[20:, 24:] = True
    one = Dataset("one", [slides["s0"]])
    options = {**OPTIONS, "smallchunks_per_bigchunk": 16, "resident": "24 MiB"}
    counts = np.zeros(2)
    with LightDL(one, **options, tissue={"s0": mask}, min_tissue=1.0, seed=3) as loader:
        for _ in range(250):
            origins = next(loader)[2].origins
            counts += [
                np.count_nonzero(origins[:, 0] < 2048),
                np.count_nonzero(origins[:, 0] >= 2048),
            ]
    # both parts are 1536 x 1024 pixels, cut by the edges of big chunks alike
    assert abs(counts[0] / counts.sum() - 0.5) < 0.02


def test_forms_of_masks_agree(slides):
    masks = {str(p.id): tissue_mask(p.record()) for p in slides}
    expected = None
    for tissue in (True, "otsu", masks, {k: m.data for k, m in masks.items()}):
        with LightDL(slides, **OPTIONS, tissue=tissue) as loader:
            batches = collect(loader, 4)
        if expected is not None:
            assert_same_batches(batches, expected)
        expected = batches


def bright(thumbnail):
    return thumbnail.mean(axis=-1) > 260  # nowhere


def test_a_slide_without_tissue(slides):
    with pytest.raises(NoTissueError), LightDL(slides, **OPTIONS, tissue=bright) as loader:
        next(loader)
    empty = {p.id: tissue_mask(p.record()).data for p in slides}
    empty["s1"] = np.zeros_like(empty["s1"])
    with (
        pytest.raises(NoTissueError, match="patient 's1'.*lower min_tissue"),
        LightDL(slides, **OPTIONS, tissue=empty) as loader,
    ):
        next(loader)
    with LightDL(slides, **OPTIONS, tissue=empty, on_error="skip") as loader:
        seen = {p.id for _ in range(10) for p in next(loader)[1]}
        failed = loader.stats().failed
    assert seen == {"s0", "s2"}
    assert [(f.patient, f.where) for f in failed] == [("s1", "mask")]


def test_a_pass_over_tissue_ends(slides):
    options = {**OPTIONS, "drop_last": False}
    with LightDL(slides, **options, tissue=True, policy=OnePass()) as loader:
        visits: dict[int, tuple] = {}
        n = 0
        for _, _, chunks in loader:
            n += len(chunks)
            visits.update({c.bigchunk.visit: (c.patient.id, c.bigchunk.origin) for c in chunks})
    assert n == 64 * len(visits)
    assert len(set(visits.values())) == len(visits)  # each big chunk once


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tissue": {"s0": None}}, UsageError, "no mask for patient"),
        ({"tissue": True, "min_tissue": 0}, UsageError, r"fraction in \(0, 1\]"),
        ({"tissue": {}}, UsageError, "no mask for patient"),
        ({"tissue": "magic"}, UsageError, "magic"),
        ({"labels": "Tumor"}, UsageError, "0 records with annotations"),
        ({"labels": []}, UsageError, "labels= names classes"),
    ],
)
def test_bad_input(slides, options, error, message):
    with pytest.raises((error, LoaderError), match=message):
        with LightDL(slides, **OPTIONS, **options) as loader:
            next(loader)


def volume_dataset():
    values = np.arange(24 * 40 * 40, dtype=np.uint16).reshape(24, 40, 40)
    mask = np.zeros((6, 10, 10), bool)
    mask[2:4, 3:7, 3:7] = True
    record = Record(array=da.from_array(values, chunks=8))
    return Dataset("volumes", [Patient("v", {"ct": record})]), mask


def test_volumes():
    data, mask = volume_dataset()
    options = {**SMALL, "smallchunk_size": (4, 8, 8), "bigchunk_size": (12, 24, 24)}
    with LightDL(data, **options, tissue={"v": mask}, min_tissue=1.0) as loader:
        for _ in range(5):
            origins = next(loader)[2].origins
            assert ((origins >= (8, 12, 12)) & (origins <= (12, 20, 20))).all()


def test_state_and_threads(slides):
    options = {**OPTIONS, "tissue": True, "seed": 9}
    with LightDL(slides, **options) as loader:
        batches = collect(loader, 12)
    with LightDL(slides, **options) as loader:
        collect(loader, 5)
        state = loader.state_dict()
    again = LightDL(slides, **options)
    again.load_state_dict(state)
    with again:
        assert_same_batches(collect(again, 7), batches[5:])
    other = LightDL(slides, **{**options, "min_tissue": 0.7})
    with pytest.raises(UsageError, match="min_tissue"):
        other.load_state_dict(state)


def test_nothing_changes_without_a_mask():
    """`tissue=False` is the loader without it."""
    data = coordinate_dataset()
    with LightDL(data, **SMALL) as a, LightDL(data, **SMALL, tissue=False) as b:
        assert_same_batches(collect(a, 6), collect(b, 6))
