"""What records, patients and datasets look like in a notebook."""

from __future__ import annotations

import re

import numpy as np
import pytest
import shapely
import tifffile

from daskdmed import Annotations, Dataset, Patient, Record
from daskdmed.cohort.annotations import Annotation
from daskdmed.cohort.sources import Failure, Results
from tests.shown import pictures

PIXELS = np.indices((48, 60)).sum(0)[..., None].astype(np.uint8) * np.array([1, 2, 2], np.uint8)


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "<b>slide.tif"
    tifffile.imwrite(path, PIXELS, tile=(16, 16), photometric="rgb")
    return path


@pytest.fixture
def opened(monkeypatch):
    """What is opened."""
    found = []
    real = Record.open

    def noted(record, **options):
        found.append(record.uri)
        return real(record, **options)

    monkeypatch.setattr(Record, "open", noted)
    return found


def lots(n, **records):
    records = records or {"wsi": Record("/no/such.svs")}
    return [
        Patient(f"p{i}", records, {"grade": i % 3, "age": 20 + i / 7, "id": f"<{i}>"})
        for i in range(n)
    ]


# -- a record ------------------------------------------------------------------------------
def test_a_record_of_a_file(slide):
    page = Record(slide, mpp=0.5, facts={"stain": "<HE>"})._repr_html_()
    (picture,) = pictures(page)
    assert np.array_equal(picture, PIXELS)
    assert "60 x 48 pixels, 0.5 \u00b5m/px" in page
    assert "&lt;b&gt;slide.tif" in page
    assert "stain: &lt;HE&gt;" in page
    assert "<b>" not in page


def test_a_record_of_an_array_in_memory():
    (picture,) = pictures(Record(array=PIXELS)._repr_html_())
    assert np.array_equal(picture, PIXELS)
    volume = np.arange(5 * 6 * 7, dtype="u1").reshape(5, 6, 7)
    (middle,) = pictures(Record(array=volume, spatial_ndim=3)._repr_html_())
    assert middle.shape == (6, 7)
    assert (np.diff(middle.astype(int)) > 0).all()
    four = np.zeros((4, 5, 6, 2), "f4")
    assert len(pictures(Record(array=four)._repr_html_())) == 1


def test_nothing_is_computed_for_a_picture():
    import dask.array as da

    def fail(block):
        raise AssertionError("computed")

    lazy = da.zeros((64, 64, 3), dtype="u1", chunks=32).map_blocks(fail, dtype="u1", meta=PIXELS)
    page = Record(array=lazy)._repr_html_()
    assert "64 x 64 x 3, uint8" in page
    assert not pictures(page)


def test_what_costs_is_not_opened(tmp_path, opened):
    folder = tmp_path / "series"
    folder.mkdir()
    records = {"url": Record("https://example.org/a.svs"), "dicom": Record(folder)}
    page = Dataset("d", [Patient("p", records)])._repr_html_()
    assert not opened
    assert "a.svs" in page
    assert "behind a URL, not opened" in Patient("p", records)._repr_html_()


def test_files_that_are_gone_or_damaged_are_words(tmp_path, slide):
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"II*\0 nothing of the kind")
    page = Patient("p", {"gone": Record("/no/such.svs"), "bad": Record(bad), "ok": Record(slide)})
    page = page._repr_html_()
    assert "there is no such file" in page
    assert "cannot be read: " in page
    assert len(pictures(page)) == 1


def test_annotations_are_drawn(tmp_path):
    drawn = Annotations([Annotation(shapely.box(0, 0, 50, 100), "<tumour>")])
    page = Record(annotations=drawn)._repr_html_()
    (picture,) = pictures(page)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1, "all of it"
    assert "annotations: 1 &lt;tumour&gt;" in page
    missing = Record(tmp_path / "none.geojson")._repr_html_()
    assert "there is no such file" in missing
    large = tmp_path / "large.geojson"
    large.write_bytes(b" " * (2**20 + 1))
    assert "not read here" in Record(large)._repr_html_()


# -- a patient -----------------------------------------------------------------------------
def test_a_patient_shows_its_records_and_labels(slide):
    image = Record(slide)
    records = {"wsi": image, "<again>": image, **{f"r{i}": image for i in range(20)}}
    page = Patient("<7>", records, {"grade": 2, "<n>": 0.123456})._repr_html_()
    assert "Patient &lt;7&gt;" in page
    assert "grade: 2, &lt;n&gt;: 0.1235" in page
    assert len(pictures(page)) == 12
    assert "and 10 more records" in page
    assert "<again>" not in page


# -- a dataset -----------------------------------------------------------------------------
def test_labels_are_counted():
    page = Dataset("d", lots(100))._repr_html_()
    assert "100 patients, 100 records" in page
    for value, count in ((0, 34), (1, 33), (2, 33)):
        assert f"{value} &times; {count}" in page
    assert "20 to 34.14, median 27.07" in page
    heights = [float(h) for h in re.findall(r'width="9" height="([^"]+)"', page)]
    assert len(heights) == 16
    assert max(heights) == 40
    assert "and 92 more values" in page
    widths = [float(w) for w in re.findall(r'span style="width:([0-9.]+)%', page)]
    assert widths[:3] == [100, pytest.approx(97.1), pytest.approx(97.1)]


def test_labels_of_any_kind():
    people = [
        Patient("a", {"wsi": Record("/a.svs")}, {"x": float("inf"), "y": [1, 2], "z": True}),
        Patient("b", {"wsi": Record("/b.svs")}, {"x": -1.0, "z": "text" * 50}),
    ]
    page = Dataset("d", people)._repr_html_()
    assert "inf &times; 1" in page
    assert "[1, 2] &times; 1" in page
    assert "missing &times; 1" in page
    assert "text" * 20 not in page


def test_few_files_are_opened_however_many_there_are(slide, opened):
    page = Dataset("d", lots(10_000, wsi=Record(slide), seg=Record(slide)))._repr_html_()
    assert len(opened) == len(pictures(page)) == 2 * 5
    assert "10,000 patients, 20,000 records" in page
    assert "9,990 more" in page
    assert len(page) < 100_000


def test_a_page_opens_twelve_files_and_names_the_others(slide, opened):
    dataset = Dataset("d", lots(11, wsi=Record(slide), seg=Record(slide)))
    page = dataset._repr_html_()
    assert len(opened) == len(pictures(page)) == 12
    assert page.count(">&lt;b&gt;slide.tif<") == 22
    assert dataset._repr_html_() == page


def test_the_picture_in_a_dataset_is_of_its_own_size(slide):
    (picture,) = pictures(Dataset("d", lots(1, wsi=Record(slide)))._repr_html_())
    assert np.array_equal(picture, PIXELS)
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    page = Dataset("d", lots(1, wsi=Record(array=noise)))._repr_html_()
    (picture,) = pictures(page)
    assert max(picture.shape) <= 64
    assert len(page) < 20_000


# -- results -------------------------------------------------------------------------------
def test_results_and_what_was_left_out():
    results = Results({f"<{i}>": np.zeros((2, i), "f4") for i in range(30)})
    results.failures = (Failure("p", "wsi", "open", "no <such> file"),)
    page = results._repr_html_()
    assert "ndarray 2 x 19, float32" in page
    assert "2 x 20" not in page
    assert "and 10 more" in page
    assert "1 left out: p/wsi: no &lt;such&gt; file" in page
    assert "&lt;3&gt;" in page
