"""Volumes in every entry point: at a spacing, in an orientation, with targets and as channels."""

from __future__ import annotations

import functools

import dask.array as da
import nibabel
import numpy as np
import pytest
from distributed import Client, LocalCluster

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record, Region, SlidingWindowDL, Space
from daskdmed.cohort.sources import Request, images_of
from daskdmed.errors import (
    DatasetError,
    GeometryError,
    ResolutionError,
    StateError,
    StoreError,
    UsageError,
)

SHAPE = (8, 12, 16)
#: axes of (z, y, x) to S, A and L, 3 x 1 x 1 mm
LAS = Space([[0, 0, -1, 7], [0, 1, 0, -4], [3, 0, 0, 50], [0, 0, 0, 1]], SHAPE)
#: to the same places, axes to S, P, L: what DICOM writes
LPS = LAS.reorient("SPL")
#: of the view at 2 mm
WHOLE = (12, 6, 8)
ASKED = {"spacing": 2, "orientation": "RAS"}


def voxels(shape=SHAPE, *, seed=0, dtype="f4"):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def in_ras(array, space):
    """By nibabel."""
    turned = np.eye(4)
    turned[:3] = space.affine[:3][:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.asarray(array).T, turned)
    return np.asarray(nibabel.as_closest_canonical(image).dataobj).T


def at_two_mm(array):
    """Of (3, 1, 1) mm: linear between slices, the average of 2 x 2 within them."""
    centres = (np.arange(WHOLE[0]) + 0.5) * 2 / 3 - 0.5
    along = np.clip(centres, 0, len(array) - 1)
    first = np.minimum(along.astype(int), len(array) - 2)
    share = (along - first)[:, None, None]
    planes = array[first] * (1 - share) + array[first + 1] * share
    return planes.reshape(WHOLE[0], 6, 2, 8, 2).mean((2, 4))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("volumes") / "scan.npy"
    np.save(path, voxels())
    return path


@pytest.fixture(params=["array", "file"])
def record(request, path):
    return (
        Record(array=voxels(), space=LAS) if request.param == "array" else Record(path, space=LAS)
    )


EXPECTED = at_two_mm(in_ras(voxels(), LAS))


def loaded(source, size=WHOLE, **options):
    options = {"smallchunk_size": size, "batch_size": 1, "resident": "8 MiB"} | options
    with LightDL(source, **options) as loader:
        x, _, smallchunks = loader.get()
        return x[0].numpy(), smallchunks


def slid(source, size=WHOLE, **options):
    with SlidingWindowDL(source, kernel_size=size, **options) as loader:
        ((x, _, smallchunks),) = loader
        return x[0].numpy(), smallchunks


def test_lightdl(record):
    x, smallchunks = loaded(record, **ASKED)
    np.testing.assert_allclose(x[0], EXPECTED, rtol=1e-5)
    assert smallchunks[0].level is None


def test_sliding(record):
    x, _ = slid(record, **ASKED)
    np.testing.assert_allclose(x[0], EXPECTED, rtol=1e-5)


def test_heatmap(record):
    found = daskdmed.heatmap(record, lambda w: w.mean((1, 2, 3)), kernel_size=(4, 3, 2), **ASKED)
    means = EXPECTED.reshape(3, 4, 2, 3, 4, 2).mean((1, 3, 5))
    np.testing.assert_allclose(found, means, rtol=1e-5)


def test_predict(record):
    found = daskdmed.predict(record, lambda w: w, kernel_size=(4, 4, 4), **ASKED)
    np.testing.assert_allclose(found, EXPECTED, rtol=1e-5)


def test_infer(record):
    patient = Patient("p", {"image": record, "label": Record(array=voxels() > 99, space=LAS)})
    ((scan, found),) = daskdmed.infer(
        patient, lambda w: w, kernel_size=WHOLE, target="label", **ASKED
    )
    np.testing.assert_allclose(scan["x"], EXPECTED, rtol=1e-5)
    np.testing.assert_allclose(found["y_pred"], EXPECTED, rtol=1e-5)
    assert (scan["spacing"], scan["unit"]) == ((2, 2, 2), "millimeter")
    truth = np.asarray(found["y_true"])
    assert truth.shape == WHOLE
    assert truth.dtype == bool


def test_features(record, tmp_path):
    pytest.importorskip("pyarrow")
    table = daskdmed.tables.features(
        record,
        lambda w: w.reshape(len(w), -1),
        kernel_size=WHOLE,
        out=tmp_path,
        on_error="raise",
        **ASKED,
    )
    rows = daskdmed.tables.read_windows(table)
    np.testing.assert_allclose(rows.values.reshape(WHOLE), EXPECTED, rtol=1e-5)


def test_advise(record):
    with pytest.raises(GeometryError, match=r"\(12, 6, 8\) pixels"):
        daskdmed.advise(record, smallchunk_size=(13, 6, 8), **ASKED)
    found = daskdmed.advise(
        record, smallchunk_size=WHOLE, bigchunk_sizes=[16], draws=[4], blocks=1, threads=1, **ASKED
    )
    assert found.choices[0].bigchunk_size == WHOLE


def test_spacing_may_be_a_function_of_the_patient(record):
    patients = [Patient(str(n), {"image": record}, {"mm": n}) for n in (1, 2)]
    found = daskdmed.predict(
        patients, lambda w: w, kernel_size=(4, 4, 4), spacing=lambda p: (None, p.labels["mm"], None)
    )
    assert [found[k].shape for k in ("1", "2")] == [SHAPE, (8, 6, 16)]


def test_what_has_no_place_in_the_patient_is_not_turned():
    for entry in (
        functools.partial(daskdmed.predict, model=lambda w: w, kernel_size=4),
        functools.partial(daskdmed.heatmap, model=lambda w: w, kernel_size=4),
    ):
        with pytest.raises(ResolutionError, match=r"planes take mpp"):
            entry(voxels((8, 8)), spacing=2)
    with pytest.raises(ResolutionError, match=r"nobody says how it lies in the patient"):
        loaded(voxels(), (4, 4, 4), orientation="RAS")


def test_a_result_goes_on_at_the_same_spacing_and_orientation_only(record, tmp_path):
    run = functools.partial(
        daskdmed.predict, record, lambda w: w, kernel_size=(4, 4, 4), out=tmp_path / "out.zarr"
    )
    run(**ASKED)
    run(**ASKED, resume=True)
    for other in ({"spacing": 2.5, "orientation": "RAS"}, {"spacing": 2}):
        with pytest.raises(StoreError, match="other parameters|orientation|resolution"):
            run(**other, resume=True)
    with pytest.raises(StoreError, match="orientation"):
        run(spacing=2, orientation="RPS", resume=True)


@pytest.mark.parametrize("make", [
    functools.partial(LightDL, smallchunk_size=(4, 4, 4), batch_size=2, resident="8 MiB"),
    functools.partial(SlidingWindowDL, kernel_size=(4, 4, 4), batch_size=2),
])  # fmt: skip
def test_a_state_is_of_one_spacing_and_orientation(record, make):
    # 2 and 2.01 mm, and all orientations that keep axes, give images of the same shape
    with make(record, **ASKED) as loader:
        loader.get()
        state = loader.state_dict()
    with make(record, **ASKED) as loader:
        loader.load_state_dict(state)
    for spacing, orientation, named in ((2.01, "RAS", "spacing"), (2, "LAS", "orientation")):
        with make(record, spacing=spacing, orientation=orientation) as other:
            with pytest.raises(StateError, match=rf"another loader \({named}: saved .*now"):
                other.load_state_dict(state)


# ------------------------------------------------------------------------- image and target
LABEL = voxels(dtype="u1") // 67


def scan(label, space, image=None, **label_facts):
    image = Record(array=voxels() if image is None else image, space=LAS)
    label = label if isinstance(label, Record) else Record(array=label, space=space, **label_facts)
    return Patient("p", {"image": image, "label": label})


def test_an_image_and_a_label_that_is_stored_in_another_orientation():
    turned = LABEL[:, ::-1, :]
    patient = scan(turned, LPS)
    for asked in ({}, {"spacing": 2}):
        with pytest.raises(GeometryError) as caught:
            loaded(patient, (4, 4, 4), record="image", target="label", **asked)
        said = str(caught.value)
        assert "record 'image' and target record 'label' do not lie at the same places" in said
        assert "11 voxels apart (axes to SAL and to SPL)" in said or asked
        for words in ('orientation="RAS"', "spacing=", "affine [["):
            assert words in said
        assert "affine [[0.0, 0.0, -1.0, 7.0]," in said or asked
        assert isinstance(caught.value.__cause__, GeometryError)
    x, chunks = loaded(patient, SHAPE, record="image", target="label", orientation="RAS")
    np.testing.assert_array_equal(x[0], in_ras(voxels(), LAS))
    np.testing.assert_array_equal(chunks.targets[0], in_ras(LABEL, LAS))


def test_who_does_not_lie_alike_can_be_left_out():
    right, wrong = scan(LABEL, LAS), scan(LABEL, LPS)
    patients = [Patient("right", right.records), Patient("wrong", wrong.records)]
    with LightDL(
        patients,
        smallchunk_size=(4, 4, 4),
        batch_size=4,
        resident="8 MiB",
        on_error="skip",
        record="image",
        target="label",
    ) as loader:
        _, found, _ = loader.get()
        (failure,) = loader.stats().failed
    assert {p.key for p in found} == {"right"}
    assert failure.patient == "wrong"
    assert "do not lie at the same places" in failure.message


def test_infer_compares_too():
    run = functools.partial(
        daskdmed.infer, scan(LABEL[:, ::-1, :], LPS), lambda w: w, kernel_size=(4, 4, 4),
        target="label",
    )  # fmt: skip
    with pytest.raises(GeometryError, match=r"do not lie at the same places .*axes to SAL and to"):
        next(run())
    _, found = next(run(orientation="RAS"))
    np.testing.assert_array_equal(found["y_true"], in_ras(LABEL, LAS))


def test_labels_are_never_blended():
    labels = np.zeros(SHAPE, "i2")
    labels[:, :6], labels[:, 6:] = 1, 3
    patient = scan(labels, LAS)
    for mm in (0.7, 1.7, 2.5):
        view = images_of(patient, Request("image", spacing=mm)).only("a test").view()
        _, chunks = loaded(
            patient, view.shape, record="image", target="label", spacing=mm, bigchunk_size=64
        )
        assert set(np.unique(chunks.targets)) == {1, 3}


def test_spaces_agree_within_a_hundredth_of_a_voxel():
    def moved(mm):
        affine = LAS.affine.copy()
        affine[0, 3] += mm
        return Space(affine, SHAPE)

    run = functools.partial(loaded, size=(4, 4, 4), record="image", target="label")
    run(scan(LABEL, moved(3e-4)))
    with pytest.raises(
        GeometryError, match=r"up to 0.02 voxels apart; record 'image': 8 x 12 x 16"
    ):
        run(scan(LABEL, moved(0.02)))


def test_a_label_that_says_nothing_of_space_needs_the_same_shape():
    run = functools.partial(loaded, size=(4, 4, 4), record="image", target="label")
    run(scan(LABEL, None))
    run(scan(LABEL, None, spacing=(3, 1, 1)))
    with pytest.raises(GeometryError, match="a target must have the image's size"):
        run(scan(LABEL[:, :, :-3], None))
    with pytest.raises(GeometryError, match=r"has voxels of \(3.0, 1.0, 1.0\) mm .* of \(1.0, 1"):
        run(scan(LABEL, None, spacing=(1, 1, 3)))


def test_an_mpp_says_nothing_of_three_axes():
    patient = Patient(
        "p",
        {
            "image": Record(array=voxels(), spatial_ndim=3, mpp=0.5),
            "label": Record(array=LABEL, spacing=(3, 1, 1)),
        },
    )
    x, smallchunks = loaded(patient, (4, 4, 4), record="image", target="label")
    place = tuple(slice(o, o + 4) for o in smallchunks[0].origin)
    np.testing.assert_array_equal(x[0], voxels()[place])
    np.testing.assert_array_equal(smallchunks[0].target, LABEL[place])


def test_a_coarser_target_lies_alike():
    small = LABEL[:, ::2, ::2]
    target = {"record": "image", "target": "label"}
    loaded(scan(small, LAS.resample((None, 2, 2))), (4, 4, 4), **target)
    shifted = LAS.crop((0, 0, 1), SHAPE).resample((None, 2, 2))
    with pytest.raises(GeometryError, match=r"up to 0.5 voxels apart"):
        loaded(scan(small, shifted), (4, 4, 4), **target)


# ------------------------------------------------------------------------- masks
INSIDE = np.zeros(SHAPE, bool)
INSIDE[:, :6, :5] = True


def test_a_mask_of_tissue_is_turned_as_the_image_is_read(record, tmp_path):
    mask = daskdmed.tissue_mask(record, method=INSIDE)
    assert mask.space == LAS
    mask.save(tmp_path / "mask.npz")
    assert daskdmed.TissueMask.load(tmp_path / "mask.npz") == mask
    turned = np.where(in_ras(INSIDE.astype("u1"), LAS) > 0, in_ras(voxels(), LAS), np.nan)
    runs = (
        functools.partial(daskdmed.predict, model=lambda w: w),
        functools.partial(daskdmed.heatmap, model=np.ravel),
    )
    for run in runs:
        found = run(record, kernel_size=(1, 1, 1), mask=mask, orientation="RAS")
        np.testing.assert_allclose(found, turned)
        found = run(record, kernel_size=(1, 1, 1), mask=mask)
        np.testing.assert_allclose(found, np.where(INSIDE, voxels(), np.nan))
    coarse = daskdmed.heatmap(
        record, lambda w: w.mean((1, 2, 3)), kernel_size=(4, 3, 2), mask=mask, mask_fraction=1,
        spacing=(3, 2, 1), orientation="LAS",
    )  # fmt: skip
    # windows of the first half of y, and of the first two pairs of x
    kept = np.zeros((2, 2, 8), bool)
    kept[:, 0, :2] = True
    np.testing.assert_array_equal(np.isfinite(np.asarray(coarse)), kept)
    affine = LAS.affine.copy()
    affine[2, 3] += 3
    moved = daskdmed.TissueMask(INSIDE, shape0=SHAPE, space=Space(affine, SHAPE))
    for call in (
        lambda: daskdmed.heatmap(record, np.ravel, kernel_size=(1, 1, 1), mask=moved),
        lambda: daskdmed.tissue_mask(record, method=moved),
    ):
        with pytest.raises(GeometryError, match="the mask and image .* up to 1 voxels apart"):
            call()


def whole(view):
    return view.read(Region.of(view.spatial_shape))


@pytest.mark.parametrize("kind", ["method", "mask", "array", "view"])
def test_small_chunks_are_drawn_from_tissue_wherever_axes_grow(kind):
    record = Record(array=np.where(INSIDE, 100, 0).astype("f4"), space=LAS)
    source, asked, view = record, {"orientation": "PIR"}, record.view(orientation="PIR")
    inside = whole(view) > 50
    tissue = {
        "array": {"image": inside},
        "mask": {"image": daskdmed.tissue_mask(record, method=INSIDE)},
    }
    if kind == "view":
        source, asked = view, {}
    with LightDL(
        source,
        smallchunk_size=(2, 2, 2),
        batch_size=32,
        resident="8 MiB",
        min_tissue=1.0,
        tissue=tissue.get(kind, _bright),
        **asked,
    ) as loader:
        _, _, chunks = loader.get()
    for origin in chunks.origins:
        assert inside[tuple(slice(o, o + 2) for o in origin)].all()


def _bright(picture):
    return picture > 50


# ------------------------------------------------------------------------- several records
def two(second=None, space=LAS, **options):
    t1, t2 = Record(array=voxels(), space=LAS), Record(array=second, space=space, **options)
    return Patient("p", {"t1": t1, "t2": t2})


T2 = voxels(seed=1)
BOTH = {"record": ["t1", "t2"]}


def test_records_become_channels_of_one_image():
    patient = two(T2[:, ::-1, :], LPS)
    expected = np.stack([in_ras(voxels(), LAS), in_ras(T2, LAS)])
    x, chunks = loaded(patient, SHAPE, **BOTH, orientation="RAS")
    np.testing.assert_array_equal(x, expected)
    assert chunks[0].record == "t1+t2"
    x, chunks = slid(patient, SHAPE, **BOTH, orientation="RAS")
    np.testing.assert_array_equal(x, expected)
    assert chunks[0].record == "t1+t2"
    found = daskdmed.predict(
        patient, lambda w: w[..., 0] - w[..., 1], kernel_size=(4, 4, 4), **BOTH, orientation="RAS"
    )
    np.testing.assert_allclose(found, expected[0] - expected[1], atol=1e-3)
    found = daskdmed.heatmap(
        patient, lambda w: w.mean((1, 2, 3)), kernel_size=SHAPE, **BOTH, orientation="RAS"
    )
    np.testing.assert_allclose(found[:, 0, 0, 0], expected.mean((1, 2, 3)), rtol=1e-5)
    (swapped, _) = loaded(patient, SHAPE, record=["t2", "t1"], orientation="RAS")
    np.testing.assert_array_equal(swapped, expected[::-1])


def test_infer_takes_them_as_one_scan(tmp_path):
    scans = daskdmed.infer(
        two(T2), lambda w: w[..., 1], kernel_size=SHAPE, record=[["t1", "t2"]], out=tmp_path
    )
    ((inputs, outputs),) = scans
    assert inputs["scan_id"] == "p/t1+t2"
    np.testing.assert_allclose(outputs["y_pred"], T2, rtol=1e-5)
    scans = daskdmed.infer(
        two(T2), lambda w: w.sum(-1) if w.ndim > 4 else w, kernel_size=SHAPE,
        record=["t1", ["t1", "t2"]],
    )  # fmt: skip
    names = [inputs["record"] for inputs, _ in scans]
    assert names == ["t1", "t1+t2"]


def test_channels_of_slides(tmp_path):
    he = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    patient = Patient("p", {"he": Record(array=he), "ihc": Record(array=he[..., 0])})
    x, _ = loaded(patient, (40, 30), record=["he", "ihc"])
    np.testing.assert_array_equal(x, np.concatenate([he, he[..., :1]], -1).transpose(2, 0, 1))
    # white is outside of one, and black of the other
    x, _ = loaded(patient, (44, 30), record=["he", "ihc"], pad=True)
    assert x[:, -1, 0].tolist() == [255, 255, 255, 0]


@pytest.mark.parametrize(("dtypes", "common"), [("u1 i2", "i2"), ("u1 ?", "u1"), ("u2 i2", "i4")])
def test_types_are_promoted_where_no_value_changes(dtypes, common):
    arrays = [voxels(dtype=d) for d in dtypes.split()]
    records = {str(n): Record(array=a, space=LAS) for n, a in enumerate(arrays)}
    x, _ = loaded(Patient("p", records), SHAPE, record=["0", "1"])
    assert x.dtype == common
    np.testing.assert_array_equal(x, np.stack(arrays).astype(common))


def test_what_cannot_be_stacked():
    run = functools.partial(loaded, size=(4, 4, 4), **BOTH)
    with pytest.raises(UsageError, match=r"one kind of numbers, got 't1' float32, 't2' int16"):
        run(two(T2.astype("i2")))
    with pytest.raises(
        GeometryError, match=r"record 't1' and record 't2' do not lie at the same pl"
    ):
        run(two(T2, LPS))
    with pytest.raises(GeometryError, match=r"'t1' has \(8, 12, 16\) pixels and record 't2' \("):
        run(two(T2[..., 1:], LAS.crop((0, 0, 1), (8, 12, 15))))
    with pytest.raises(DatasetError, match="has no record 't3'; it has"):
        loaded(two(T2), (4, 4, 4), record=["t1", "t3"])
    with pytest.raises(UsageError, match="record= names a record twice|names a record twice"):
        loaded(two(T2), (4, 4, 4), record=["t1", "t1"])


def test_a_state_is_of_the_records_in_their_order():
    options = {"smallchunk_size": (4, 4, 4), "batch_size": 2, "resident": "8 MiB"}
    with LightDL(two(T2), **BOTH, **options) as loader:
        loader.get()
        state = loader.state_dict()
    with LightDL(two(T2), record=["t2", "t1"], **options) as other:
        with pytest.raises(StateError, match="dataset"):
            other.load_state_dict(state)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("kept", ["both", "one", "none"])
def test_persisted_and_other_arrays_travel_together(client, kept, tmp_path):
    t1, t2 = (da.from_array(v, chunks=(4, 6, 8)) for v in (voxels(), T2[:, ::-1, :]))
    t1 = client.persist(t1) if kept != "none" else t1
    t2 = client.persist(t2) if kept == "both" else t2
    records = {"t1": Record(array=t1, space=LAS), "t2": Record(array=t2, space=LPS)}
    patient = Patient("p", records)
    asked = {**BOTH, "orientation": "RAS"}
    expected = np.stack([in_ras(voxels(), LAS), in_ras(T2, LAS)])
    x, _ = loaded(patient, SHAPE, client=client, **asked)
    np.testing.assert_array_equal(x, expected)
    x, _ = slid(patient, SHAPE, client=client, **asked)
    np.testing.assert_array_equal(x, expected)
    window = functools.partial(np.mean, axis=(1, 2, 3))
    found = daskdmed.heatmap(patient, window, kernel_size=(4, 4, 4), compute=False, **asked)
    means = expected.reshape(2, 2, 4, 3, 4, 4, 4).mean((2, 4, 6))
    np.testing.assert_allclose(found, means, rtol=1e-5)
    for where in ({"client": client, "out": tmp_path / "out.zarr"}, {"compute": False}):
        found = daskdmed.predict(patient, _difference, kernel_size=(4, 4, 4), **where, **asked)
        np.testing.assert_allclose(found, expected[0] - expected[1], atol=1e-3)


def _difference(windows):
    return windows[..., 0] - windows[..., 1]


def test_a_dataset_of_scans_is_stacked_per_patient():
    patients = [Patient(n, two(T2).records) for n in "ab"]
    found = daskdmed.predict(Dataset("d", patients), _difference, kernel_size=(8, 8, 8), **BOTH)
    assert list(found) == ["a", "b"]
