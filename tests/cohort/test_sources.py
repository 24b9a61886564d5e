"""Whatever users give becomes images of patients; what cannot be used is left out and said."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

from daskdmed import Dataset, Patient, Record, open_slide
from daskdmed.cohort.folder import image_id
from daskdmed.cohort.sources import Failure, LeftOut, Request, Results, images_of, open_all
from daskdmed.errors import (
    DatasetError,
    GeometryError,
    ImageNotFoundError,
    LoaderError,
    ResolutionError,
    StoreError,
    UsageError,
)
from daskdmed.samples import make_slide


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "a.b.ome.tif"
    return make_slide(path, size=(300, 200), levels=2).path


PIXELS = np.arange(12 * 10, dtype="u1").reshape(12, 10)


def dataset():
    return Dataset.from_arrays({"p": PIXELS, "q": PIXELS + 1})


@pytest.mark.parametrize(
    ("given", "ids", "single"),
    [
        (dataset(), ["p", "q"], False),
        (dataset()[0], ["p"], True),
        (list(dataset()), ["p", "q"], False),
        (iter(dataset()), ["p", "q"], False),
        (Record(array=PIXELS), ["image"], True),
        (PIXELS, ["image"], True),
        (da.from_array(PIXELS), ["image"], True),
        (zarr.array(PIXELS), ["image"], True),
        (Record(array=PIXELS).view(), ["image"], True),
        ([PIXELS, Record(array=PIXELS), dataset()[1]], ["0", "1", "q"], False),
        ((PIXELS,), ["0"], False),
    ],
)
def test_everything_becomes_patients(given, ids, single):
    images = images_of(given)
    assert [i.key for i in images] == list(images.dataset.ids) == ids
    assert images.single is single
    for image in images:
        view = image.view()
        assert view.shape == (12, 10)
        np.testing.assert_array_equal(view.read(view_region(view)) % 12, image_pixels(image) % 12)
        assert image.record is image.patient.record()


def view_region(view):
    from daskdmed import Region

    return Region((0, 0), view.shape)


def image_pixels(image):
    return image.record.array.compute()


def test_files_are_named_by_their_stem(path, tmp_path):
    slide = open_slide(path)
    for given in (path, str(path), slide, Record(path), slide.view(level=1)):
        (image,) = images_of(given)
        assert image.key == "a.b"
        assert image.view().shape[:2] in ((200, 300), (50, 75))
    (image,) = images_of(slide.with_mpp(0.25), Request(mpp=0.5))
    assert image.view().mpp == (0.5, 0.5)
    assert image.record.mpp == (0.25, 0.25)
    assert images_of(slide)[0].record.mpp is None
    assert [i.key for i in images_of([path, tmp_path / "c.svs"])] == ["a.b", "c"]
    assert pickle.loads(pickle.dumps(images_of(slide)[0])).view() == images_of(slide)[0].view()
    with pytest.raises(DatasetError, match=r"ids occur more than once: 'c'"):
        images_of(["one/c.svs", "two/c.tif"])


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("a.svs", "a"),
        ("x/a.b.OME.TIFF", "a.b"),
        ("s3://bucket/scan.nii.gz", "scan"),
        (Path("scan.seg.nii.gz"), "scan.seg"),
        ("a.zarr/", "a"),
        ("a.tar.GZ", "a"),
        ("a.gz", "a"),
        ("plain", "plain"),
        (".svs", ".svs"),
    ],
)
def test_the_name_of_a_file_without_all_its_suffixes(uri, name):
    assert image_id(uri) == name


@pytest.mark.parametrize("given", [None, 5, 1.5, {"p": PIXELS}, {PIXELS.tobytes()}, "", b"a.svs"])
def test_what_is_no_image_is_refused_with_what_could_be_given(given):
    with pytest.raises(UsageError, match="images are given as a Dataset, a Patient"):
        images_of(given)
    with pytest.raises(UsageError, match="a list of these; got item 1 of the list, "):
        images_of([PIXELS, given])


def test_nothing_at_all_is_refused():
    with pytest.raises(DatasetError, match="got an empty list"):
        images_of([])
    with pytest.raises(DatasetError, match="'arrays' has no patients; check the folder"):
        images_of(dataset().filter(lambda p: False))


def test_a_request_is_checked_at_once():
    for record in (["a", 1], [], 5, {"a"}, ["a", ""]):
        with pytest.raises(UsageError, match="name of one record, or a list of names .*, got"):
            Request(record=record)
    with pytest.raises(UsageError, match="names a record twice"):
        Request(record=["a", "b", "a"])
    assert Request(record=["a"]) == Request(record="a")
    with pytest.raises(ResolutionError, match="exclude each other, got power and spacing"):
        Request(power=20, spacing=1)
    with pytest.raises(ResolutionError, match="spacing is positive numbers"):
        Request(spacing=(1, 0, 1))
    with pytest.raises(UsageError, match="tile_error must be"):
        Request(tile_error="skip")
    with pytest.raises(ResolutionError, match="exclude each other"):
        Request(level=1, mpp=0.5)
    # functions are asked when the patient is known
    request = Request(level=lambda p: 1, mpp=lambda p: 0.5)
    with pytest.raises(ResolutionError, match="exclude"):
        request.resolution(dataset()[0])


def test_resolutions_may_depend_on_the_patient(path):
    patients = [Patient(n, {"wsi": Record(path)}, {"level": n}) for n in (0, 1)]
    images = images_of(patients, Request(level=lambda p: p.labels["level"]))
    assert [i.view().shape[:2] for i in images] == [(200, 300), (50, 75)]
    # of a single image too
    (image,) = images_of(path, Request(mpp=lambda p: 1.0, spatial_ndim=2))
    assert image.view().mpp == (1.0, 1.0)


def test_a_view_has_its_resolution(path):
    (image,) = images_of(open_slide(path).view(level=1), Request(level=1))
    with pytest.raises(UsageError, match="beside a view, which has its resolution already"):
        image.view()


def test_axes_must_be_those_of_the_sizes():
    (image,) = images_of(Record(array=PIXELS).view(), Request(spatial_ndim=3))
    with pytest.raises(GeometryError, match=r"has 2 spatial axes .* have 3; give one number"):
        image.view()


# ------------------------------------------------------------------- one value per image
def test_arguments_that_every_image_has_its_own_of():
    images = images_of(dataset())
    p, q = images
    own = images.each({"p": 1, dataset()[1]: None}, "mask")
    assert (own(p), own(q)) == (1, None)
    assert images.each(lambda patient: patient.id, "mask")(q) == "q"
    assert images.each(None, "mask")(p) is None
    with pytest.raises(UsageError, match=r"mask= has no entry for 1 of 2 patients: \['q'\]"):
        images.each({"p": 1}, "mask")
    with pytest.raises(UsageError, match="one array cannot lie over several images"):
        images.each(PIXELS, "mask")
    single = images_of(PIXELS)
    assert single.each(PIXELS, "mask")(single[0]) is PIXELS


# ------------------------------------------------------------------- what is left out
def test_what_cannot_be_used_is_left_out_and_reported(caplog):
    images = images_of([*dataset(), Record("gone.svs")])
    made, failures = open_all(images, lambda i: i.view().shape, "skip")
    assert made == [(12, 10)] * 2
    (failure,) = failures
    assert (failure.patient, failure.record, failure.where) == ("gone", "wsi", "open")
    assert isinstance(failure.error, ImageNotFoundError)
    assert "left out gone/wsi: ImageNotFoundError" in caplog.text
    with pytest.raises(LoaderError, match="patient 'gone'") as caught:
        open_all(images, lambda i: i.view().shape, "raise")
    assert (caught.value.patient, caught.value.record) == ("gone", "wsi")
    with pytest.raises(DatasetError, match="none of the 1 images can be used; the first"):
        open_all(images_of("gone.svs"), lambda i: i.view(), "skip")


def test_errors_of_the_request_stay_their_own():
    images = images_of(dataset(), Request("nope"))
    with pytest.raises(DatasetError, match="patient 'p': patient 'p' has no record 'nope'"):
        open_all(images, lambda i: i.view(), "raise")


def test_one_after_the_other():
    left_out = LeftOut("skip", 3)
    images = images_of([*dataset(), PIXELS], Request("image"))
    for image in images:
        with left_out.of(image):
            if image.key != "p":
                raise OSError(f"no {image.key}")
    assert [str(f) for f in left_out.failures] == [
        "q/image: OSError: no q",
        "2/image: OSError: no 2",
    ]
    # what is wrong with the place of all results, or with us, is not about one image
    for error in (StoreError("full"), ZeroDivisionError()):
        with pytest.raises(type(error)), LeftOut("skip", 3).of(images[0]):
            raise error
    with pytest.raises(OSError, match="x") as caught, LeftOut("raise", 3).of(images[0]):
        raise OSError("x")
    assert caught.value.__notes__ == ["patient 'p', record 'image'"]
    with pytest.raises(UsageError, match="on_error must be 'raise' or 'skip', got 'fill'"):
        LeftOut("fill", 1)


def test_failures_are_values():
    failure = Failure("p", "wsi", "open", "gone", OSError("gone"))
    assert failure == Failure("p", "wsi", "open", "gone", None)
    assert Results({"p": 1}).failures == ()
