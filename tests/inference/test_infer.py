"""`infer`: scans of a dataset, one after the other, without state."""

from __future__ import annotations

import logging
import threading

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from torch import nn

from daskdmed import Dataset, Patient, Record, infer, predict
from daskdmed.errors import DatasetError, StoreError, UsageError
from daskdmed.inference.metrics import confusion, volume
from daskdmed.samples import make_slide


def brightest(windows):
    """Two classes: below and above one half."""
    return np.stack([1 - windows, windows], 1)


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    patients = []
    for i, shape in enumerate([(60, 80), (50, 50), (100, 30)]):
        image = rng.random(shape).astype(np.float32)
        records = {"image": Record(array=image, mpp=(0.5, 0.25))}
        if i != 1:  # scans without a label are scans too
            records["truth"] = Record(array=(image > 0.5).astype(np.uint8))
        patients.append(Patient(f"p{i}", records, {"grade": i}))
    return Dataset("scans", patients)


def run(dataset, **keywords):
    return infer(dataset, brightest, **{"kernel_size": 32, "target": "truth", **keywords})


@pytest.mark.parametrize("ahead", [1, 2])
def test_scans_ahead_are_predicted_while_the_caller_works(dataset, ahead):
    begun = {int(p.records["image"].array.shape[0]): threading.Event() for p in dataset}
    shapes = list(begun)

    def model(windows):
        begun[int(sizes[threading.get_ident()])].set()
        return brightest(windows)

    def mask(patient):  # asked for in the thread that predicts the scan
        sizes[threading.get_ident()] = patient.records["image"].array.shape[0]

    sizes = {}
    expected = [outputs["y_pred"].compute() for _, outputs in run(dataset, post="argmax")]
    with dask.config.set(scheduler="synchronous"):
        scans = infer(
            dataset, model, kernel_size=32, target="truth", post="argmax", ahead=ahead, mask=mask
        )
        found = [next(scans)]
        for shape in shapes[1 : 1 + ahead]:
            begun[shape].wait()  # for ever, if nothing is predicted until it is asked for
        found += list(scans)
    for (_, outputs), wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(outputs["y_pred"], wanted)
    with pytest.raises(UsageError, match="ahead must be an integer >= 0, got -1"):
        run(dataset, ahead=-1)


def test_a_scan_ahead_that_fails_is_left_out_in_its_turn(dataset):
    def broken(windows):
        if windows.max() > 2:
            raise RuntimeError("too bright")
        return brightest(windows)

    bright = Record(array=dataset[1].records["image"].array + 3)
    patients = [dataset[0], Patient("bright", {"image": bright}), dataset[2]]
    scans = infer(patients, broken, kernel_size=32, record="image", ahead=2, on_error="skip")
    assert [inputs["patient_id"] for inputs, _ in scans] == ["p0", "p2"]
    assert [f.patient for f in scans.failures] == ["bright"]
    with pytest.raises(StoreError, match="too bright"):
        list(infer(patients, broken, kernel_size=32, record="image", ahead=1))


def test_inputs_and_outputs_of_every_scan(dataset):
    found = list(run(dataset, post="argmax"))
    assert [i["scan_id"] for i, _ in found] == ["p0/image", "p1/image", "p2/image"]
    for patient, (inputs, outputs) in zip(dataset, found):
        assert type(inputs) is dict
        assert type(outputs) is dict
        assert isinstance(inputs["x"], da.Array)
        assert isinstance(outputs["y_pred"], da.Array)
        assert inputs["patient"] is patient
        assert (inputs["patient_id"], inputs["record"]) == (patient.id, "image")
        assert (inputs["spacing"], inputs["unit"]) == ((0.25, 0.5), "micrometer")
        assert outputs["spacing"] == (0.25, 0.5)
        assert outputs["time_elapsed"] > 0
        assert outputs["out"] is None
        image = patient.records["image"].array.compute()
        np.testing.assert_array_equal(inputs["x"], image)
        np.testing.assert_array_equal(outputs["y_pred"], image > 0.5)
        if patient.id == "p1":
            assert outputs["y_true"] is None
            continue
        scores = confusion(outputs["y_true"], outputs["y_pred"])
        assert scores.dice.tolist() == [1, 1]
        area = volume(outputs["y_pred"], outputs["spacing"])
        assert area.sum() == pytest.approx(image.size * 0.125)


def test_iterations_leave_nothing_behind(dataset):
    scans = run(dataset)
    assert len(scans) == 3
    first = next(scans)
    del scans
    assert len(dataset) == 3
    again = list(run(dataset))
    assert len(again) == 3
    np.testing.assert_array_equal(again[0][1]["y_pred"], first[1]["y_pred"])
    # two at once
    for (_, a), (_, b) in zip(run(dataset), run(dataset)):
        np.testing.assert_array_equal(a["y_pred"], b["y_pred"])


def test_scans_are_computed_when_they_are_asked_for(dataset):
    calls = []

    def model(windows):
        calls.append(1)
        return windows

    scans = infer(dataset, model, kernel_size=32, target="truth")
    assert not calls
    next(scans)
    after_one = len(calls)
    next(scans)
    assert len(calls) > after_one


def test_options_of_predict_are_passed_on(dataset, tmp_path):
    for inputs, outputs in run(
        dataset,
        overlap=0.5,
        blend="hann",
        post="uint8",
        out=tmp_path,
        mask={"p0": np.eye(2), "p1": None, "p2": [[1]]},
    ):
        mask = {"p0": np.eye(2), "p1": None, "p2": [[1]]}[inputs["patient_id"]]
        wanted = predict(
            inputs["x"], brightest, kernel_size=32, overlap=0.5, blend="hann", post="uint8",
            mask=mask,
        )  # fmt: skip
        np.testing.assert_array_equal(outputs["y_pred"], wanted)
        stored = zarr.open_group(outputs["out"], mode="r")
        np.testing.assert_array_equal(stored["0"][...], wanted)
    assert sorted(tmp_path.glob("*/*")) == [tmp_path / f"p{i}" / "image.zarr" for i in range(3)]
    with pytest.raises(StoreError, match="resume=True") as caught:
        list(run(dataset, out=tmp_path))
    assert "patient 'p0', record 'image'" in caught.value.__notes__
    again = run(dataset, out=tmp_path, overlap=0.5, blend="hann", post="uint8", resume=True,
                mask=lambda p: mask if p.id == "p2" else {"p0": np.eye(2)}.get(p.id))  # fmt: skip
    assert len(list(again)) == 3


def test_several_records_of_a_patient():
    images = {n: Record(array=np.full((20, 20), i, np.float32)) for i, n in enumerate("abc")}
    dataset = Dataset("d", [Patient("../p", images)])
    found = [i["scan_id"] for i, _ in infer(dataset, lambda w: w, kernel_size=16)]
    assert found == ["../p/a", "../p/b", "../p/c"]
    found = infer(dataset, lambda w: w, kernel_size=16, record=["c", "a"], target="b")
    for (inputs, outputs), name in zip(found, "ca"):
        assert inputs["record"] == name
        assert float(outputs["y_true"].max()) == 1
        assert float(outputs["y_pred"].mean()) == pytest.approx("abc".index(name))
    assert len(infer(dataset, lambda w: w, kernel_size=16, record="c")) == 1


def test_names_of_files_are_safe(tmp_path):
    dataset = Dataset("d", [Patient("../p: 1", {"a/b": Record(array=np.zeros((20, 20)))})])
    ((_, outputs),) = infer(dataset, lambda w: w, kernel_size=16, out=tmp_path / "in")
    assert outputs["out"].startswith(str(tmp_path / "in"))
    (folder,) = (tmp_path / "in").iterdir()
    assert folder.name == "%2E.%2Fp%3A 1"
    assert [p.name for p in folder.iterdir()] == ["a%2Fb.zarr"]


def test_no_two_scans_share_a_store(tmp_path):
    """Patient "a-b" with record "c", and patient "a" with record "b-c"."""
    values = {("a-b", "c"): 1, ("a", "b-c"): 2, ("a/b", "c"): 3, ("a", "b/c"): 4}
    patients: dict[str, dict[str, Record]] = {}
    for (patient, record), value in values.items():
        image = Record(array=np.full((20, 20), value, np.float32))
        patients.setdefault(patient, {})[record] = image
    dataset = Dataset("d", [Patient(name, records) for name, records in patients.items()])
    found = list(infer(dataset, lambda w: w, kernel_size=16, out=tmp_path, overwrite=True))
    assert len({outputs["out"] for _, outputs in found}) == len(values)
    for inputs, outputs in found:  # lazily, after all of them were written
        value = values[inputs["patient_id"], inputs["record"]]
        np.testing.assert_allclose(outputs["y_pred"], np.full((20, 20), value), rtol=1e-6)


def test_volumes_and_reduced_outputs():
    record = Record(array=np.zeros((20, 40, 40)), spacing=(2.0, 0.5, 0.5))
    dataset = Dataset("d", [Patient("p", {"ct": record})])
    ((inputs, outputs),) = infer(
        dataset, lambda w: w[:, :, ::2, ::4], kernel_size=(16, 16, 16), overlap=0.5
    )
    assert (inputs["spacing"], inputs["unit"]) == ((2.0, 0.5, 0.5), "millimeter")
    assert outputs["y_pred"].shape == (20, 20, 10)
    assert outputs["spacing"] == (2.0, 1.0, 2.0)
    plain = Dataset("d", [Patient("p", {"ct": Record(array=np.zeros((20, 40, 40)))})])
    ((inputs, _),) = infer(plain, lambda w: w, kernel_size=(16, 16, 16))
    assert (inputs["spacing"], inputs["unit"]) == ((1, 1, 1), "pixel")


def broken(dataset):
    bad = Record("/nowhere/slide.svs")
    return Dataset("broken", [dataset[0], Patient("bad", {"image": bad}), dataset[2]])


def test_a_scan_that_fails_ends_the_iteration_or_is_reported(dataset, caplog):
    scans = run(broken(dataset))
    next(scans)
    with pytest.raises(FileNotFoundError) as caught:
        next(scans)
    assert "patient 'bad', record 'image'" in caught.value.__notes__
    scans = run(broken(dataset), on_error="skip")
    with caplog.at_level(logging.WARNING, "daskdmed.cohort"):
        found = [i["patient_id"] for i, _ in scans]
    assert found == ["p0", "p2"]
    (failure,) = scans.failures
    assert (failure.patient, failure.record) == ("bad", "image")
    assert isinstance(failure.error, FileNotFoundError)
    assert "left out bad/image" in caplog.text


def test_when_all_fail_it_is_an_error(dataset):
    def model(windows):
        raise ValueError("no")

    with pytest.raises(DatasetError, match="none of the 3 images can be used") as caught:
        list(infer(dataset, model, kernel_size=32, target="truth", on_error="skip"))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"record": "wsi"}, DatasetError, "no record 'wsi'"),
        ({"record": ["image", "image"]}, DatasetError, "once"),
        ({"record": ["image", "truth"]}, DatasetError, "not the target"),
        ({"target": "mask"}, DatasetError, "no patient has the target"),
        ({"on_error": "ignore"}, UsageError, "on_error"),
        ({"kernels": 3}, UsageError, "unknown option"),
        ({"mask": np.ones((3, 3))}, UsageError, "one array cannot lie"),
        ({"mask": {"p0": None}}, UsageError, "no entry for 2 of 3"),
        ({"out": 3}, UsageError, "one store per scan"),
        ({"level": 0, "mpp": 1.0, "power": 3.0}, ValueError, "exclude each other"),
    ],
)
def test_arguments_are_checked_before_anything_is_computed(dataset, keywords, error, match):
    with pytest.raises(error, match=match):
        run(dataset, **keywords)


def test_no_patients():
    with pytest.raises(DatasetError, match="no patients"):
        run(Dataset("none", []))


def test_a_truth_that_does_not_fit(dataset):
    records = {**dataset[0].records, "truth": Record(array=np.zeros((5, 5), np.uint8))}
    with pytest.raises(DatasetError):
        list(run(Dataset("d", [Patient("p", records)])))


def test_slides_with_a_network(tmp_path):
    dataset = Dataset(
        "slides",
        [
            Patient(str(i), {"wsi": Record(make_slide(tmp_path / f"{i}.tif", 800, levels=2,
                                                     seed=i).path)})
            for i in range(2)
        ],
    )  # fmt: skip
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Softmax(1))
    settings = {"kernel_size": 128, "out": tmp_path / "out"}
    for inputs, outputs in infer(dataset, net, level=lambda p: int(p.id), **settings):
        side = [800, 200][int(inputs["patient_id"])]
        assert inputs["x"].shape == (side, side, 3)
        assert outputs["y_pred"].shape == (2, side, side)
        np.testing.assert_allclose(outputs["y_pred"].sum(axis=0), 1, rtol=1e-5)
        assert inputs["spacing"] == pytest.approx([(0.5, 0.5), (2.0, 2.0)][side == 200])


def test_truth_from_annotations(tmp_path):
    import json

    pytest.importorskip("shapely")
    path = make_slide(tmp_path / "a.tif", 1000, levels=1).path
    square = [[100, 200], [300, 200], [300, 500], [100, 500], [100, 200]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    drawn = tmp_path / "a.geojson"
    drawn.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    patient = Patient("p", {"wsi": Record(path), "drawn": Record(drawn)})
    ((_, outputs),) = infer(
        Dataset("d", [patient]),
        lambda w: np.zeros(w.shape[:3], np.float32),
        kernel_size=256,
        target="drawn",
        target_classes={"Tumor": 1},
        post="threshold",
    )
    truth = outputs["y_true"].compute()
    assert truth.shape == (1000, 1000)
    assert truth.sum() == 200 * 300
    assert truth[200:500, 100:300].all()
    assert confusion(outputs["y_true"], outputs["y_pred"]).sensitivity[1] == 0
