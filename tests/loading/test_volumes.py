"""Volumes: classes of label volumes, slices with their neighbours, places in the patient."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from scipy.stats import chisquare

from daskdmed import Dataset, LightDL, Patient, Quota, Record, SlidingWindowDL, Space
from daskdmed.errors import GeometryError, LoaderError, UsageError
from daskdmed.persistence import labelmaps
from daskdmed.policies import EachOnce, OnePass
from tests.loading.conftest import assert_same_batches, collect

SHAPE = (24, 32, 40)
OPTIONS = {
    "smallchunk_size": (3, 8, 8),
    "batch_size": 16,
    "bigchunk_size": 20,
    "resident": "512 KiB",
    "smallchunks_per_bigchunk": 24,
    "record": "ct",
}


def places(number):
    """(z, y, x) int16 volume whose voxels say where they lie, below zero too."""
    z, y, x = np.indices(SHAPE)
    return (z * 1280 + y * 40 + x - 15000 + number).astype(np.int16)


def labels_of(number):
    """Class 1 is a ball, class 2 two voxels, class 3 in the second of three patients only."""
    z, y, x = np.indices(SHAPE)
    labels = ((z - 12) ** 2 + (y - 12) ** 2 + (x - 20) ** 2 < 16).astype(np.uint8)
    labels[4, 20, 30] = labels[20, 8, 10] = 2
    if number == 1:
        labels[10, 25:28, 4:12] = 3
    return labels


def patient(number, **records):
    whole = {
        "ct": Record(array=places(number)),
        "seg": Record(array=labels_of(number)),
    }
    return Patient(f"p{number}", {**whole, **records})


@pytest.fixture(scope="module")
def volumes():
    return Dataset("volumes", [patient(i) for i in range(3)])


def middle_classes(patients, chunks):
    """The class of the middle voxel of each small chunk."""
    size = np.array(OPTIONS["smallchunk_size"])
    at = chunks.origins + size // 2
    numbers = [int(p.id[1:]) for p in patients]
    return np.array([labels_of(n)[tuple(a)] for n, a in zip(numbers, at, strict=True)])


#: other cuts of the volume, and fewer visits
WIDE = {"bigchunk_size": (12, 20, 20), "smallchunks_per_bigchunk": 128}


# ------------------------------------------------------------------ classes of label volumes
def test_each_batch_holds_the_share_of_each_class(volumes):
    quotas = [Quota(4, labels=1, of="seg"), Quota(2, labels=[2, 3], of="seg")]
    quotas.append(Quota(10, patients={}, labels=[0], of="seg"))
    with LightDL(volumes, **OPTIONS, quotas=quotas) as loader:
        for _ in range(12):
            x, patients, chunks = next(loader)
            found = middle_classes(patients, chunks)
            assert (np.count_nonzero(found == 1), np.count_nonzero(found == 0)) == (4, 10)
            for crop, chunk in zip(x, chunks, strict=True):
                z, y, x0 = chunk.origin
                first = z * 1280 + y * 40 + x0 - 15000 + int(chunk.patient.id[1:])
                assert crop[0, 0, 0, 0] == first


def test_every_voxel_of_a_class_is_drawn_alike(volumes):
    """Chi-square over the places of one class of one volume, small chunks of odd and even sides."""
    data = Dataset("one", [volumes[0]])
    options = {**OPTIONS, "labels": 1, "annotations": "seg"}
    allowed = np.argwhere(labels_of(0) == 1)
    with LightDL(data, **{**options, "batch_size": 512, **WIDE}) as loader:
        drawn = np.concatenate([next(loader)[2].origins for _ in range(12)])
    drawn += np.array([1, 4, 4])
    numbers = {tuple(v): i for i, v in enumerate(allowed.tolist())}
    counts = np.bincount([numbers[tuple(v)] for v in drawn.tolist()], minlength=len(allowed))
    assert chisquare(counts).pvalue > 1e-3
    assert counts.min() > 0


def test_any_voxel_of_a_small_chunk_may_have_the_class(volumes):
    options = {**OPTIONS, "quotas": [Quota(16, labels=[2], of="seg", at="any")]}
    off_centre = 0
    with LightDL(volumes, **options, target="seg") as loader:
        for _ in range(6):
            _, patients, chunks = next(loader)
            assert (chunks.targets == 2).any(axis=(1, 2, 3)).all()
            off_centre += np.count_nonzero(middle_classes(patients, chunks) != 2)
    assert off_centre > 80  # of 96


def test_batches_depend_on_neither_threads_nor_batch_size(volumes):
    options = {**OPTIONS, "labels": [1, 2], "annotations": "seg"}
    with LightDL(volumes, **options) as loader:
        here = collect(loader, 6)
        state = loader.state_dict()
        more = collect(loader, 2)
    with LightDL(volumes, **{**options, "batch_size": 32}) as loader:
        doubled = collect(loader, 3)
    origins = np.concatenate([o for _, _, o in here])
    assert np.array_equal(origins, np.concatenate([o for _, _, o in doubled]))
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        LightDL(volumes, **options, client=client) as loader,
    ):
        assert_same_batches(collect(loader, 6), here)
    again = LightDL(volumes, **options)
    again.load_state_dict(state)
    with again:
        assert_same_batches(collect(again, 2), more)


def test_a_patient_without_the_class_goes_on_and_is_told(volumes, caplog):
    loader = LightDL(volumes, **OPTIONS, quotas=[Quota(4, labels=[3], of="seg", name="rare")])
    told = [r for r in caplog.records if "rare" in r.getMessage()]
    assert len(told) == 1
    assert "2 of 3 patients" in told[0].getMessage()
    with loader:
        seen = {p.id for _ in range(8) for p in next(loader)[1]}
        failed = loader.stats().failed
    assert seen == {"p0", "p1", "p2"}
    assert [(f.patient, f.where) for f in failed] == [("p0", "rare"), ("p2", "rare")]


def test_classes_that_cannot_be_had_are_errors(volumes):
    def loader(dataset=volumes, quota=None, **more):
        return LightDL(dataset, **{**OPTIONS, **more}, quotas=[quota] if quota else None)

    with pytest.raises(UsageError, match=r"none of 3 patients has the label 7 in record 'seg'"):
        loader(quota=Quota(4, labels=[7], of="seg"))
    with pytest.raises(UsageError, match=r"'seg' is a label map, whose classes are numbers"):
        loader(quota=Quota(4, labels="liver", of="seg"))
    with pytest.raises(UsageError, match=r"numbers of a label map; say which record is one"):
        loader(quota=Quota(4, labels=[1]))
    with pytest.raises(UsageError, match="names classes.*numbers of classes"):
        Quota(4, labels=["liver", 1], of="seg").classes
    with pytest.raises(UsageError, match="at= is one of"):
        Quota(4, labels=[1], of="seg", at="middle")
    with pytest.raises(UsageError, match="give these too"):
        Quota(4, of="seg")
    with pytest.raises(UsageError, match="bigchunk_loader= chooses others"):
        loader(
            quota=Quota(4, labels=[1], of="seg"),
            bigchunk_loader=lambda read, context, rng: context.region,
        )
    floats = Record(array=da.zeros(SHAPE, dtype="f4"))
    with pytest.raises(UsageError, match="nor is it a label map.*float32"):
        loader(Dataset("x", [patient(0, seg=floats)]), Quota(4, labels=[1], of="seg"))
    other = Record(array=da.zeros((24, 32, 39), dtype="u1"))
    with pytest.raises(GeometryError, match="must have the image's size"):
        loader(Dataset("x", [patient(0, seg=other)]), Quota(4, labels=[1], of="seg"))


def test_a_label_volume_that_cannot_be_read_is_left_out():
    def broken(block):
        raise OSError("damaged")

    lost = Record(array=da.zeros(SHAPE, dtype="u1").map_blocks(broken, dtype="u1"))
    data = Dataset("x", [patient(0, seg=lost), patient(1)])
    options = {**OPTIONS, "quotas": [Quota(8, labels=[1], of="seg")]}
    with pytest.raises(LoaderError, match="'p0'.*damaged"):
        LightDL(data, **options)
    with LightDL(data, **options, on_error="skip") as loader:
        _, patients, chunks = next(loader)
        assert np.count_nonzero(middle_classes(patients, chunks) == 1) >= 8
        assert [f.patient for f in loader.stats().failed] == ["p0"]


@pytest.mark.parametrize("policy", [None, EachOnce(2)])
def test_a_label_volume_that_is_lost_later_costs_its_visits_only(monkeypatch, policy):
    lost = []

    def fragile(block):
        if lost:
            raise OSError("gone")
        return block

    monkeypatch.setattr(labelmaps, "KEPT_BYTES", 0)
    labels = da.from_array(labels_of(0)).map_blocks(fragile, dtype="u1", name="lost-later")
    data = Dataset("x", [patient(0, seg=Record(array=labels)), patient(1)])
    options = {**OPTIONS, "labels": [1], "annotations": "seg", "policy": policy, "batch_size": 4}
    for on_error in ("skip", "raise"):
        lost.clear()
        loader = LightDL(data, **options, on_error=on_error)
        if policy is not None:
            len(loader)
        lost.append(True)
        with loader:
            if on_error == "raise":
                with pytest.raises(LoaderError, match="'p0', record 'ct'.*gone"):
                    for _ in range(9):
                        next(loader)
                continue
            assert {p.id for p in next(loader)[1]} == {"p1"}
            assert {f.patient for f in loader.stats().failed} == {"p0"}


def test_a_label_map_that_lies_elsewhere_in_the_patient_is_refused():
    space = Space(np.diag([3.0, 1, 1, 1]), SHAPE)
    flipped = Space(np.diag([3.0, 1, -1, 1]), SHAPE)
    records = {
        "ct": Record(array=places(0), space=space),
        "seg": Record(array=labels_of(0), space=flipped),
    }
    data = Dataset("x", [Patient("p0", records)])
    with pytest.raises(GeometryError, match="label map 'seg' do not lie at the same places"):
        LightDL(data, **OPTIONS, quotas=[Quota(4, labels=[1], of="seg")])


def test_of_names_the_annotations_of_a_quota_too(tmp_path):
    ring = [[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "a"}},
    }
    for name in ("one", "two"):
        (tmp_path / f"{name}.geojson").write_text(str([feature]).replace("'", '"'))
    records = {n: Record(tmp_path / f"{n}.geojson") for n in ("one", "two")}
    records["wsi"] = Record(array=da.zeros((64, 64, 3), dtype="u1"))
    data = Dataset("x", [Patient("p", records)])
    options = {"smallchunk_size": 8, "batch_size": 4, "resident": "1 MiB", "bigchunk_size": 32}
    with pytest.raises(UsageError, match="name one with annotations="):
        LightDL(data, **options, labels="a")
    with LightDL(data, **options, quotas=[Quota(4, labels="a", of="two")]) as loader:
        centres = next(loader)[2].origins + 4
    assert ((centres >= 9) & (centres <= 21)).all()
    with pytest.raises(UsageError, match="at='any' is for label maps"):
        LightDL(data, **options, quotas=[Quota(4, labels="a", of="two", at="any")])


# ------------------------------------------------------------------ slices with their neighbours
def encoded(channels):
    """A volume whose voxels say their slice (and channel)."""
    z, _, _, c = np.indices((9, 12, 12, channels or 1))
    values = (z * 10 + c).astype(np.uint8)
    return values if channels else values[..., 0]


def expected(z, k, channels, edge):
    """Values of the channels of slice `z` of `encoded`, by numpy.pad."""
    more = {"constant_values": 0} if edge == "constant" else {}
    around = np.pad(np.arange(9) * 10, k, mode=edge, **more)[z : z + 2 * k + 1]
    if edge != "constant":
        return (around[:, None] + np.arange(channels or 1)).ravel()
    inside = np.pad(np.ones(9), k)[z : z + 2 * k + 1]
    return ((around[:, None] + np.arange(channels or 1)) * inside[:, None]).ravel()


SLICES = {"smallchunk_size": (1, 8, 8), "batch_size": 8, "smallchunks_per_bigchunk": 16}


@pytest.mark.parametrize(
    ("channels", "k", "edge", "bigchunk", "policy"),
    [
        (0, 1, "reflect", 4, None),
        (2, 2, "reflect", 12, OnePass()),
        (0, 2, "edge", 4, OnePass()),
        (2, 2, "constant", 4, None),
    ],
)
def test_the_wanted_slice_is_the_one_in_the_middle(channels, k, edge, bigchunk, policy):
    data = Dataset("x", [Patient("p", {"t1": Record(array=encoded(channels))})])
    options = {**SLICES, "context": (k, 0, 0), "context_edge": edge, "policy": policy}
    options["bigchunk_size"] = (bigchunk, 12, 12)
    seen = set()
    with LightDL(data, **options, resident="64 KiB", squeeze=True) as loader:
        if bigchunk > 9:  # what is read around a big chunk is in the budget
            block = loader._assembly.planning.allotment.block_bytes
            assert block == (9 + 2 * k) * 12 * 12 * (channels or 1)
        for _ in range(6 if policy is None else len(loader)):
            x, _, chunks = next(loader)
            assert x.shape == (8, (2 * k + 1) * (channels or 1), 8, 8)
            for crop, chunk in zip(x.numpy(), chunks, strict=True):
                z = chunk.origin[0]
                seen.add(z)
                assert np.array_equal(crop[:, 0, 0], expected(z, k, channels, edge))
                assert (crop == crop[:, :1, :1]).all()
                assert chunk.location[2] == z
                big = chunk.bigchunk
                assert big.origin[0] <= z < big.origin[0] + big.shape[0] <= 9
    if policy is None:
        assert len(seen) == 9


def test_targets_are_those_of_the_slice_itself():
    values = encoded(0)
    records = {"t1": Record(array=values), "seg": Record(array=values + 1)}
    data = Dataset("x", [Patient("p", records)])
    options = {**SLICES, "record": "t1", "bigchunk_size": (4, 12, 12), "resident": "64 KiB"}
    with LightDL(data, **options, context=1, target="seg") as loader:
        x, _, chunks = next(loader)
        assert x.shape == (8, 3, 1, 8, 8)
        assert chunks.targets.shape == (8, 1, 8, 8)
        assert np.array_equal(chunks.targets, x.numpy()[:, 1] + 1)
    with LightDL(data, **options, context=1, target="seg", squeeze=True) as loader:
        flat, _, squeezed = next(loader)
        assert np.array_equal(flat.numpy(), x.numpy()[:, :, 0])
        assert np.array_equal(squeezed.targets, chunks.targets[:, 0])
        assert squeezed[0].data.shape == (8, 8, 3)
        assert np.array_equal(squeezed.origins, chunks.origins)


def test_workers_crop_slices_with_their_neighbours_too():
    data = Dataset("x", [Patient("p", {"t1": Record(array=encoded(2))})])
    options = {**SLICES, "bigchunk_size": (4, 12, 12), "resident": "64 KiB", "context": 2}
    with LightDL(data, **options) as loader:
        here = collect(loader, 3)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        LightDL(data, **options, client=client) as loader,
    ):
        assert_same_batches(collect(loader, 3), here)


@pytest.mark.parametrize(("k", "edge"), [(1, "reflect"), (3, "edge")])
def test_windows_have_their_neighbours_too(k, edge):
    options = {"kernel_size": (1, 8, 8), "batch_size": 5, "context": k, "context_edge": edge}
    options["edge"], options["stride"] = "shift", (1, 8, 8)
    with SlidingWindowDL(encoded(2), **options, squeeze=True, resident="16 KiB") as loader:
        seen = []
        for x, _, windows in loader:
            assert tuple(x.shape[1:]) == (2 * (2 * k + 1), 8, 8)
            for crop, window in zip(x.numpy(), windows, strict=True):
                seen.append(window.index)
                assert (crop == expected(window.origin[0], k, 2, edge)[:, None, None]).all()
    assert len(seen) == len(set(seen)) == 9 * 4


def test_context_that_means_nothing_is_refused():
    data = Dataset("x", [Patient("p", {"t1": Record(array=encoded(0))})])
    with pytest.raises(GeometryError, match="neighbouring slices"):
        LightDL(data, **SLICES, context=(1, 0))
    with pytest.raises(UsageError, match="context_edge is one of"):
        LightDL(data, **SLICES, context=1, context_edge="wrap")
    with pytest.raises(GeometryError, match="this has 2 axes"):
        LightDL(da.zeros((64, 64, 3), dtype="u1"), smallchunk_size=8, context=1)
    thick = {**SLICES, "smallchunk_size": (12, 8, 8), "pad": True, "context": 1}
    with pytest.raises(GeometryError, match="would be padding"):
        LightDL(data, **thick)


def test_a_state_of_another_context_is_refused():
    data = Dataset("x", [Patient("p", {"t1": Record(array=encoded(0))})])
    options = {**SLICES, "bigchunk_size": (4, 12, 12), "resident": "64 KiB"}
    state = LightDL(data, **options, context=1).state_dict()
    with pytest.raises(UsageError, match="context: saved"):
        LightDL(data, **options, context=2).load_state_dict(state)


# ------------------------------------------------------------------ what collectors see
def test_collectors_see_the_target_of_their_big_chunk(volumes):
    """A collector that centres on a class by itself."""

    def on_class_two(bigchunk, context, rng):
        assert bigchunk.target.shape == bigchunk.data.shape == bigchunk.shape
        assert not bigchunk.target.flags.writeable
        found = np.argwhere(bigchunk.target == 2)
        if not len(found):
            return None
        room = np.subtract(bigchunk.shape, context.smallchunk_size)
        return np.clip(found[rng.integers(len(found))] - (1, 4, 4), 0, room)

    for context in (None, 1):
        options = {**OPTIONS, "smallchunk_collector": on_class_two, "context": context}
        with LightDL(volumes, **options, target="seg") as loader:
            _, _, chunks = next(loader)
            assert (chunks.targets == 2).any(axis=(1, 2, 3)).all()
            assert chunks[0].bigchunk.target is None


def test_the_affine_of_a_small_chunk_leads_to_its_voxels():
    """Turned and resampled: voxels of the small chunk lie where the file says they do."""
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0.1, -1.0], [0.2, 2.0, 0], [3.0, 0, 0.1]])
    affine[:3, 3] = rng.normal(size=3) * 50
    space = Space(affine, SHAPE)
    data = Dataset("x", [Patient("p0", {"ct": Record(array=places(0), space=space)})])
    with LightDL(data, **{**OPTIONS, "record": None}, orientation="RAS") as loader:
        _, _, chunks = next(loader)
    for chunk in chunks:
        for at in rng.integers(0, chunk.data.shape, (4, 3)):
            world = chunk.affine @ [*at, 1]
            index = np.rint(space.to_index(world[:3])).astype(int)
            assert np.allclose(space.to_world(index), world[:3], atol=1e-9)
            assert places(0)[tuple(index)] == chunk.data[tuple(at)]
    with LightDL(data, **{**OPTIONS, "record": None}, spacing=(None, 1.0, 1.0)) as loader:
        _, _, chunks = next(loader)
    steps = np.linalg.norm(chunks[0].affine[:3, :3], axis=0)
    assert np.allclose(steps, (space.spacing[0], 1, 1))
    with SlidingWindowDL(data, kernel_size=(3, 8, 8), resident="64 KiB") as windows:
        for window in next(windows)[2]:
            expected = space.crop(window.origin, (3, 8, 8)).affine
            assert np.allclose(window.affine, expected)


def test_planes_and_volumes_of_which_nobody_says_it_have_no_affine(volumes):
    with LightDL(volumes, **OPTIONS) as loader:
        assert next(loader)[2][0].affine is None


def test_values_below_zero_stay_what_they_are_up_to_the_model(volumes):
    """int16 in training; `predict`: tests/inference/test_models.py."""
    import torch

    from daskdmed.transforms import ToFloat

    with LightDL(volumes, **OPTIONS, batch_tfms=ToFloat()) as loader:
        x, _, chunks = next(loader)
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy()[:, 0], chunks.data.astype(np.float32))
    assert x.min() < 0


@pytest.mark.parametrize("pixels", [2**23, 24 * 32 * 40 // 8])
def test_the_classes_of_a_label_volume_are_tissue(volumes, monkeypatch, pixels):
    from daskdmed.cohort.tissue import source

    monkeypatch.setattr(source, "VOLUME_PIXELS", pixels)
    options = {**OPTIONS, "smallchunk_size": (4, 4, 4), "target": "seg", "tissue": "seg"}
    with LightDL(volumes, **options, min_tissue=0.6) as loader:
        _, _, chunks = next(loader)
        covered = (chunks.targets > 0).mean(axis=(1, 2, 3))
    # by voxel, or by cells of two
    assert covered.min() >= (0.6 if pixels == 2**23 else 0.4)
    with pytest.raises(LoaderError, match="segm: there is no such mask file"):
        LightDL(volumes, **{**options, "tissue": "segm"}).start()


def test_a_proposal_holds_no_more_than_there_is(volumes):
    from daskdmed import advise

    found = advise(volumes, record="ct", smallchunk_size=(8, 8, 8), draws=(8,), blocks=1)
    (choice,) = found.choices
    assert choice.bigchunk_size == SHAPE
    assert choice.slots == 3
    assert choice.resident_bytes == 6 * 24 * 32 * 40 * 2
