"""Folders of slices become volumes: order, places, gaps, and which volume is meant."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed import Record, open_slide, open_volume
from daskdmed.core.region import Region
from daskdmed.errors import GeometryError, ImageError, UnsupportedImageError, UsageError
from daskdmed.images.registry import get_backend
from daskdmed.images.volumes.dicom import reader as dicom_reader
from daskdmed.testing import BackendConformance
from tests.images.volumes.dicom import made

HU = made.stored_values(9)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """CT of 12 bits with the usual intercept."""
    folder = tmp_path_factory.mktemp("dicom") / "scan"
    return made.series(folder, HU, RescaleSlope=1, RescaleIntercept=-1024)


def world(where, axes, row, column):
    """RAS+ millimeters of a pixel, as the standard's equation C.7.6.2.1-1 gives it."""
    rows, columns = made.SPACING
    lps = where + column * columns * np.array(axes[:3]) + row * rows * np.array(axes[3:])
    return lps * (-1, -1, 1)


def check_places(volume, where, axes):
    for k in (0, 3, len(where) - 1):
        for row, column in ((0, 0), (15, 0), (4, 19)):
            np.testing.assert_allclose(
                volume.space.to_world((k, row, column)),
                world(where[k], axes, row, column),
                atol=1e-4,
            )


def test_slices_come_in_the_order_of_their_places(scan):
    volume = open_volume(scan)
    assert volume.shape == (9, 16, 20)
    assert volume.backend == "dicom"
    assert volume.spacing == pytest.approx((3, 2, 1))
    assert volume.space.orientation == "LPS"
    assert volume.dtype == np.int16
    assert volume.channels is None
    assert volume.levels[0].tile_shape == (1, 16, 20)
    np.testing.assert_array_equal(volume.to_dask(chunks=4).compute(), HU.astype("i2") - 1024)
    np.testing.assert_array_equal(
        volume.read((2, 3, 4), (3, 5, 7)), HU[2:5, 3:8, 4:11].astype("i2") - 1024
    )
    check_places(volume, made.positions(9), made.FLAT)
    turned = Record(scan).view(orientation="RAS").read(Region.of((9, 16, 20)))
    np.testing.assert_array_equal(turned, HU[:, ::-1, ::-1].astype("i2") - 1024)
    assert volume.properties["dicom.SeriesDescription"] == "Thorax"
    assert "dicom.left-out" not in volume.properties


def test_headers_are_read_and_no_pixels(scan, monkeypatch):
    def refuse(*args):
        raise AssertionError("pixels are read")

    monkeypatch.setattr(dicom_reader, "read_stored", refuse)
    lazy = open_volume(scan).to_dask(chunks=4)
    monkeypatch.undo()
    assert lazy[0, 0, 0].compute() == HU[0, 0, 0] - 1024


AXES = [
    (0, 1, 0, 0, 0, -1),  # sagittal
    (1, 0, 0, 0, 0, -1),  # coronal
    (0.8, 0.6, 0, 0, 0, -1),  # oblique
    (0.36, 0.48, -0.8, -0.8, 0.6, 0),
]


@pytest.mark.parametrize("axes", AXES)
def test_orientations(tmp_path, axes):
    where = made.positions(5, axes=axes)
    volume = open_volume(made.series(tmp_path, HU[:5], axes=axes, where=where))
    check_places(volume, where, axes)
    np.testing.assert_array_equal(volume.to_dask().compute(), HU[:5])
    # the same slices given from the other end are the same volume
    back = made.series(tmp_path / "back", HU[4::-1], axes=axes, where=where[::-1])
    other = open_volume(back)
    assert other.space.isclose(volume.space)
    np.testing.assert_array_equal(other.to_dask().compute(), HU[:5])


@settings(max_examples=15)
@given(
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.tuples(*[st.floats(-100, 100)] * 3),
    st.floats(0.3, 8),
    st.floats(-0.5, 0.5),
    st.integers(2, 6),
)
def test_any_orientation_and_tilt(angles, origin, step, tilt, count):
    """In memory: what the affine says of every corner is what the positions say."""
    from daskdmed.images.volumes.dicom.frames import Frame, Pixels, Series
    from daskdmed.images.volumes.dicom.geometry import lay_out

    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (i for i in range(3) if i != axis)
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    axes = (*turn[0], *turn[1])
    move = step * (turn[2] + tilt * turn[1])  # the bed moves, the gantry is tilted
    pixels = Pixels(
        "f", 0, 0, "", False, False, False, 0, 0, 1, 16, 20, 16, 12, 11, False, False, None
    )
    where = np.array(origin) + np.arange(count)[:, None] * move
    frames = [
        Frame(pixels, 0, Series("1", 1, "", "CT"), k, tuple(p), axes, made.SPACING, step,
              1.0, 0.0, None, False, "", ())
        for k, p in enumerate(where)
    ]  # fmt: skip
    space = lay_out("f", frames, "raise").space
    for k, row, column in ((0, 0, 0), (count - 1, 0, 19), (count - 1, 15, 0)):
        np.testing.assert_allclose(
            space.to_world((k, row, column)), world(where[k], axes, row, column), atol=1e-6
        )


def test_tilted_gantry(tmp_path):
    step = (0, STEP_ASIDE := -1.2, 3.6)
    where = made.positions(8, step=step)
    volume = open_volume(made.series(tmp_path, HU[:8], where=where))
    check_places(volume, where, made.FLAT)
    assert volume.spacing[0] == pytest.approx(np.hypot(STEP_ASIDE, 3.6))
    assert volume.space.orientation == "LPS"
    # the affine is sheared: the first axis is not at a right angle to the second
    columns = volume.space.affine[:3, :3]
    assert abs(columns[:, 0] @ columns[:, 1]) > 1


def test_rounded_positions_are_even(tmp_path):
    where = np.round(made.positions(9, step=(0, 0, 0.625)), 2)
    volume = open_volume(made.series(tmp_path, HU, where=where))
    assert volume.shape[0] == 9
    assert volume.spacing[0] == pytest.approx(0.625, abs=0.005)


def ramp(at):
    """Slices whose values grow evenly with their place, at any distance."""
    rows, columns = np.mgrid[:16, :20]
    return (np.asarray(at)[:, None, None] * 12 + rows * 3 + columns).astype("u2")


def test_missing_slices_are_refused_or_interpolated(tmp_path, caplog):
    at = np.array([0, 1, 2, 4, 5, 6, 7])
    folder = made.series(tmp_path, ramp(at), where=made.positions(8)[at])
    with pytest.raises(GeometryError, match="most frequent is 3 mm") as caught:
        open_volume(folder)
    assert "6 mm between 36 mm (instance 3) and 42 mm (instance 4)" in str(caught.value)
    assert "on_gap='resample'" in str(caught.value)
    with caplog.at_level(logging.WARNING, logger="daskdmed.images"):
        volume = open_volume(folder, on_gap="resample")
    assert "8 slices every 3 mm were interpolated linearly from 7" in caplog.text
    assert "interpolated" in volume.properties["dicom.resampled"]
    np.testing.assert_array_equal(volume.to_dask(chunks=3).compute(), ramp(range(8)))
    check_places(volume, made.positions(8), made.FLAT)
    record = Record(folder, on_gap="resample")
    np.testing.assert_array_equal(
        record.view().read(Region((3, 2, 3), (1, 4, 5))), ramp([3])[:, 2:6, 3:8]
    )


def test_interpolated_slices_of_a_tilted_gantry(tmp_path):
    """As a GE head scan: 4 mm, then 7 mm, and two slices nearly in one place."""
    at = np.cumsum([0, 4, 4, 4, 4, 1.08, 7, 7, 7])
    direction = np.array([0, -np.tan(np.radians(18.5)), 1])
    where = made.FIRST + at[:, None] * direction
    folder = made.series(tmp_path, HU, where=where)
    with pytest.raises(GeometryError) as caught:
        open_volume(folder)
    assert "1.08 mm between" in str(caught.value)
    assert "7 mm between" in str(caught.value)
    volume = open_volume(folder, on_gap="resample")
    wanted = np.arange(10) * 4.0
    check_places(volume, made.FIRST + wanted[:, None] * direction, made.FLAT)
    expected = np.array([
        [np.interp(wanted, at, HU[:, r, c]) for c in range(20)] for r in range(16)
    ]).transpose(2, 0, 1)  # fmt: skip
    np.testing.assert_array_equal(volume.to_dask(chunks=4).compute(), np.rint(expected))


def test_gaps_that_would_make_hundreds_of_slices(tmp_path):
    where = made.FIRST + np.outer([0, 1, 2, 200], (0, 0, 1))
    folder = made.series(tmp_path, HU[:4], where=where)
    with pytest.raises(GeometryError, match="would make 201 slices"):
        open_volume(folder, on_gap="resample")


def test_slices_that_are_shifted_aside(tmp_path):
    where = made.positions(6)
    where[3, 0] += 4
    with pytest.raises(GeometryError, match="no straight line"):
        open_volume(made.series(tmp_path / "a", HU[:6], where=where))
    beside = made.FIRST + np.outer([0, 40, 80], (1, 0, 0))
    with pytest.raises(GeometryError, match="beside each other"):
        open_volume(made.series(tmp_path / "b", HU[:3], where=beside))


def test_duplicates(tmp_path, caplog):
    folder = made.series(tmp_path, HU[:5])
    where = made.positions(5)[2].tolist()
    copy = made.write(folder / "copy.dcm", HU[2], ImagePositionPatient=where, InstanceNumber=3)
    with caplog.at_level(logging.WARNING, logger="daskdmed.images"):
        volume = open_volume(folder)
    assert "is the same slice as" in caplog.text
    assert "copy.dcm" in volume.properties["dicom.left-out"] + caplog.text
    np.testing.assert_array_equal(volume.to_dask().compute(), HU[:5])
    made.write(copy, HU[3], ImagePositionPatient=where, InstanceNumber=3)
    with pytest.raises(GeometryError, match="two different slices lie at 36 mm") as caught:
        open_volume(folder)
    assert "copy.dcm" in str(caught.value)


# ---------------------------------------------------------------------- which volume
@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two series, a localizer in one of them, and what else lies in such folders."""
    folder = tmp_path_factory.mktemp("dicom") / "study"
    made.series(folder / "a", HU[:4], SeriesInstanceUID="1.2.3.1", SeriesNumber=3)
    made.series(
        folder / "b", HU[4:], SeriesInstanceUID="1.2.3.2", SeriesNumber=4,
        SeriesDescription="Abdomen",
    )  # fmt: skip
    sagittal = {"axes": AXES[0], "SeriesInstanceUID": "1.2.3.2", "SeriesNumber": 4}
    made.series(
        folder / "b", HU[:1], prefix="scout", SeriesDescription="Abdomen",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], **sagittal,
    )  # fmt: skip
    others = {
        "report": "1.2.840.10008.5.1.4.1.1.88.11",
        "state": "1.2.840.10008.5.1.4.1.1.11.1",
        "DICOMDIR": "1.2.840.10008.1.3.10",
    }
    for name, kind in others.items():
        ds = made.data_set(HU[0], Rows=None, Columns=None, PixelData=None, SOPClassUID=kind)
        ds.file_meta.MediaStorageSOPClassUID = kind
        ds.save_as(folder / name, enforce_file_format=True)
    (folder / "notes.txt").write_text("two series")
    (folder / "empty").touch()
    return folder


def test_several_series_are_listed(study):
    with pytest.raises(UsageError, match="2 volumes") as caught:
        open_volume(study)
    assert "series='3': 'Thorax' CT 4 slices of 16 x 20" in str(caught.value)
    assert "series='4/0': 'Abdomen' CT 5 slices" in str(caught.value)
    with pytest.raises(UsageError, match="no series='7'"):
        open_volume(study, series="7")


@pytest.mark.parametrize("name", ["3", "1.2.3.1", "Thorax", "thorax ", "3/0"])
def test_a_series_by_any_of_its_names(study, name):
    volume = open_volume(study, series=name)
    np.testing.assert_array_equal(volume.to_dask().compute(), HU[:4])
    again = Record(study, series=name).view()
    np.testing.assert_array_equal(again.read(Region.of((4, 16, 20))), HU[:4])


def test_what_is_left_out_is_said(study, caplog):
    with caplog.at_level(logging.INFO, logger="daskdmed.images"):
        volume = open_volume(study, series="Abdomen")
    np.testing.assert_array_equal(volume.to_dask().compute(), HU[4:])
    said = volume.properties["dicom.left-out"]
    assert "series='4/1': 'Abdomen' CT localizer 1 slice" in said
    assert "report: it holds no image (Basic Text SR Storage)" in said
    assert "state: it holds no image (Grayscale Softcopy Presentation State Storage)" in said
    assert "DICOMDIR: it holds no image (Media Storage Directory" in said
    assert "notes.txt: it is not DICOM" in said
    assert "empty: it is not DICOM" in said
    assert "left out" in caplog.text
    caplog.clear()
    alone = open_volume(study / "b")  # a warning, as nobody asked for one of them
    assert any(r.levelno == logging.WARNING for r in caplog.records)
    assert alone.shape == (5, 16, 20)
    scout = open_volume(study, series="4/1")
    assert scout.shape == (1, 16, 20)
    assert scout.space.axcodes[1:] == "IP"


def test_files_as_a_list(study):
    files = sorted((study / "a").iterdir())
    volume = open_volume(files)
    np.testing.assert_array_equal(volume.to_dask().compute(), HU[:4])
    both = [*files, *(study / "b").glob("0*.dcm")]
    with pytest.raises(UsageError, match="2 volumes"):
        open_volume(both)
    np.testing.assert_array_equal(
        open_volume(both, series="4").read((0, 0, 0), (5, 16, 20)), HU[4:]
    )
    with pytest.raises(UsageError, match="time=1 means nothing"):
        open_volume(files, time=1)


def test_single_slices(scan):
    one = open_volume(scan / "000.dcm")
    k = np.random.default_rng(1).permutation(9)[0]
    assert one.spacing == pytest.approx((3, 2, 1))
    np.testing.assert_array_equal(one.to_dask().compute()[0], HU[k].astype("i2") - 1024)
    np.testing.assert_allclose(
        one.space.to_world((0, 0, 0)), world(made.positions(9)[k], made.FLAT, 0, 0)
    )


def test_volumes_in_the_same_places(tmp_path):
    """Two echoes and a phase image under one UID."""
    for n, (echo, kind) in enumerate([(4.5, "M"), (9.0, "M"), (4.5, "P")]):
        made.series(
            tmp_path, HU[n : n + 4], prefix=f"{n}-", EchoTime=echo, Modality="MR",
            ImageType=["ORIGINAL", "PRIMARY", kind],
            each=lambda k, n=n: {"InstanceNumber": 1 + k + 10 * n, "AcquisitionTime": f"12{k}{n}"},
        )  # fmt: skip
    with pytest.raises(UsageError, match="3 volumes") as caught:
        open_volume(tmp_path)
    assert "series='5/1': 'Thorax' MR M EchoTime=9.0" in str(caught.value)
    for n in range(3):
        volume = open_volume(tmp_path, series=f"5/{n}")
        np.testing.assert_array_equal(volume.to_dask().compute(), HU[n : n + 4])
    named = open_volume(tmp_path, series="Thorax/P EchoTime=4.5")
    np.testing.assert_array_equal(named.to_dask().compute(), HU[2:6])


def test_sizes_and_spacings_are_no_one_volume(tmp_path):
    made.series(tmp_path, HU[:4])
    made.series(tmp_path, HU[:4, :8], prefix="small")
    made.series(tmp_path, HU[:4], prefix="fine", PixelSpacing=[1, 1])
    with pytest.raises(UsageError, match="3 volumes"):
        open_volume(tmp_path)
    volume = open_volume(tmp_path, series="5/1")
    assert volume.shape[0] == 4


# ---------------------------------------------------------------------- without places
def test_slices_without_position_come_by_number(tmp_path):
    gone = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    folder = made.series(tmp_path / "a", HU[:4], each=lambda k: gone, SpacingBetweenSlices=2.5)
    volume = open_volume(folder)
    np.testing.assert_array_equal(volume.to_dask().compute(), HU[:4])
    assert volume.space is None
    assert volume.spacing == (2.5, 2, 1)
    nothing = {**gone, "PixelSpacing": None, "SliceThickness": None}
    bare = open_volume(made.series(tmp_path / "b", HU[:4], each=lambda k: nothing))
    assert bare.spacing is None
    flat = {"PixelSpacing": [2, 1], "SliceThickness": None}
    assert open_volume(made.write(tmp_path / "c.dcm", HU[0], **flat)).space is None


# ---------------------------------------------------------------------- what changes later
def test_fingerprint_is_of_the_files_of_the_volume(tmp_path):
    folder = made.series(tmp_path, HU[:4])
    volume = open_volume(folder)
    (folder / "result.txt").write_text("0.93")
    assert open_volume(folder).fingerprint == volume.fingerprint
    later = (folder / "002.dcm").stat().st_mtime_ns + 10**9
    os.utime(folder / "002.dcm", ns=(later, later))
    assert open_volume(folder).fingerprint != volume.fingerprint


@pytest.mark.parametrize("tile_error", ["raise", "fill"])
def test_files_that_change_or_go(tmp_path, tile_error):
    folder = made.series(tmp_path, HU[:4])
    view = open_volume(folder).view(tile_error=tile_error)
    whole = Region.of((4, 16, 20))
    made.write(folder / "001.dcm", HU[0, :8])
    with pytest.raises(ImageError, match=r"001.dcm: the file changed"):
        view.read(whole)
    (folder / "001.dcm").unlink()
    with pytest.raises(ImageError, match=r"001.dcm: no such file"):
        view.read(whole)


def test_volumes_are_opened_by_everyone_who_opens_images(scan, study):
    record = Record(study, series="3")
    assert json.loads(record.open().key.image) == {"series": "3"}
    with pytest.raises(UnsupportedImageError):
        open_slide(scan)


class TestDicom(BackendConformance):
    backend = get_backend("dicom")

    def make(self, tmp_path: Path):
        values = made.stored_values(12, seed=3)
        folder = made.series(tmp_path / "scan", values, RescaleSlope=2, RescaleIntercept=-1000)
        return str(folder), [(values.astype("i2") * 2 - 1000)[..., None]]
