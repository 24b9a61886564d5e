"""What DICOM files store: values, transfer syntaxes, frames, and files that are no volumes."""

from __future__ import annotations

import logging
import os
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut
from pydicom.uid import RLELossless

from daskdmed import Record, open_volume
from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    DaskdmedError,
    GeometryError,
    ImageNotFoundError,
    MissingExtraError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.registry import get_backend
from daskdmed.images.volumes.dicom import catalog
from tests.images.volumes.dicom import made

JPEG = "1.2.840.10008.1.2.4."
DATA = Path(os.environ.get("DASKDMED_DATA_DIR", "none")) / "dicom_enhanced"


def shipped(name):
    """A file that comes with pydicom."""
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom ships no {name}")
    return path


def values(path, **options):
    return open_volume(path, **options).to_dask().compute()


# ---------------------------------------------------------------------- transfer syntaxes
@pytest.mark.parametrize(
    "kind",
    [
        "",
        "_RLE",
        "_bigendian",
        "_expb",
        "_implicit",
        "_jp2klossless",
        "_jpeg_ls_lossless",
        "_padded",
    ],
)
def test_transfer_syntaxes(kind):
    volume = open_volume(shipped(f"MR_small{kind}.dcm"))
    expected = pydicom.dcmread(shipped("MR_small.dcm")).pixel_array
    np.testing.assert_array_equal(volume.to_dask().compute()[0], expected)
    np.testing.assert_array_equal(volume.read((0, 20, 7), (1, 9, 30))[0], expected[20:29, 7:37])
    assert volume.dtype == np.int16
    assert volume.spacing == pytest.approx((0.8, 0.3125, 0.3125))


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "693_J2KI.dcm",
        "JPEG2000.dcm",
        "image_dfl.dcm",
        "examples_overlay.dcm",
    ],
)
def test_values_are_those_of_pydicom(name):
    data = pydicom.dcmread(shipped(name))
    if name == "image_dfl.dcm":
        expected = np.frombuffer(data.PixelData, "u1").reshape(512, 512)
    else:
        expected = apply_modality_lut(data.pixel_array, data)
    np.testing.assert_array_equal(values(shipped(name))[0], expected)


LOSSLESS = {
    JPEG + "57": lambda a: imagecodecs.ljpeg_encode(a, bitspersample=12),
    JPEG + "70": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=12),
    JPEG + "80": imagecodecs.jpegls_encode,
    JPEG + "90": lambda a: imagecodecs.jpeg2k_encode(
        a, level=0, reversible=True, codecformat="j2k"
    ),
}


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_frames_of_12_bits(tmp_path, syntax):
    stored = made.stored_values(3)
    frames = [LOSSLESS[syntax](np.ascontiguousarray(s)) for s in stored]
    path = made.write(
        tmp_path / "a.dcm", stored, syntax=syntax, frames=frames, RescaleIntercept=-1024,
        RescaleSlope=1, **made.functional_groups(made.positions(3)),
    )  # fmt: skip
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.to_dask().compute(), stored.astype("i2") - 1024)
    np.testing.assert_array_equal(
        volume.read((2, 0, 0), (1, 16, 20))[0], stored[2].astype("i2") - 1024
    )


def test_baseline_jpeg_is_what_the_codec_gives(tmp_path):
    smooth = np.add.outer(np.arange(16) * 8, np.arange(20) * 5).astype("u1")
    encoded = imagecodecs.jpeg8_encode(smooth, level=95)
    path = made.write(tmp_path / "a.dcm", smooth, syntax=JPEG + "50", frames=[encoded])
    found = values(path)[0]
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - smooth).max() <= 4
    assert open_volume(shipped("JPGExtended.dcm")).read((0, 0, 0), (1, 1024, 256)).max() == 264


def test_signed_streams_of_12_bits(tmp_path):
    stored = made.stored_values(1, dtype="i2")[0]
    encoded = imagecodecs.jpegls_encode(stored.view("u2") & 0xFFF)
    path = made.write(tmp_path / "a.dcm", stored, syntax=JPEG + "80", frames=[encoded])
    np.testing.assert_array_equal(values(path)[0], stored)


def test_dose_grids_lie_where_their_offsets_say():
    for name in ("rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"):
        data = pydicom.dcmread(shipped("rtdose.dcm"))
        volume = open_volume(shipped(name))
        assert volume.spacing == pytest.approx((5, 10, 10))
        dose = data.pixel_array * float(data.DoseGridScaling)
        np.testing.assert_allclose(volume.to_dask().compute(), dose, rtol=1e-6)


# ---------------------------------------------------------------------- values
@pytest.mark.parametrize(
    ("stored", "facts", "dtype", "expected"),
    [
        ("u2", {"RescaleSlope": 1, "RescaleIntercept": -1024}, "int16", lambda v: v - 1024),
        ("u2", {}, "int16", lambda v: v),
        ("i2", {}, "int16", lambda v: v),
        ("u2", {"BitsStored": 16}, "uint16", lambda v: v),
        ("u1", {"BitsStored": 8}, "uint8", lambda v: v),
        ("u1", {"BitsStored": 7}, "int8", lambda v: v),
        ("u2", {"RescaleSlope": 20, "RescaleIntercept": 5}, "int32", lambda v: v * 20 + 5),
        ("i2", {"RescaleSlope": -1, "RescaleIntercept": 0}, "int16", lambda v: -v),
        ("u2", {"RescaleSlope": 0.25, "RescaleIntercept": 1}, "float32", lambda v: v * 0.25 + 1),
        ("u4", {"BitsStored": 32, "RescaleIntercept": -5}, "int64", lambda v: v - 5),
        ("u2", {"PhotometricInterpretation": "MONOCHROME1"}, "int16", lambda v: v),
    ],
)  # fmt: skip
def test_types_hold_the_values(tmp_path, stored, facts, dtype, expected):
    bits = facts.get("BitsStored", 12)
    numbers = made.stored_values(1, bits=min(bits, 16), dtype=stored)[0]
    volume = open_volume(made.write(tmp_path / "a.dcm", numbers, **facts))
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume.to_dask().compute()[0], expected(numbers.astype("i8")))


def test_slopes_of_each_slice(tmp_path):
    """PET."""
    stored = made.stored_values(4, bits=16, dtype="i2")
    slopes = [0.5, 1.25, 3.0, 0.125]
    folder = made.series(
        tmp_path, stored, Modality="PT", BitsStored=16, RescaleIntercept=0, Units="BQML",
        each=lambda k: {"RescaleSlope": slopes[k]},
    )  # fmt: skip
    volume = open_volume(folder)
    assert volume.dtype == np.float32
    assert volume.properties["dicom.Units"] == "BQML"
    expected = stored * np.array(slopes)[:, None, None]
    np.testing.assert_array_equal(volume.to_dask().compute(), expected.astype("f4"))


@pytest.mark.parametrize("dtype", ["u2", "i2"])
def test_unused_bits_mean_nothing(tmp_path, dtype):
    """Overlays were once kept above the value, and some scanners align it to the left."""
    numbers = made.stored_values(1, dtype=dtype)[0]
    above = (numbers & 0xFFF | 0x5000).astype(dtype)
    np.testing.assert_array_equal(values(made.write(tmp_path / "a.dcm", above))[0], numbers)
    left = made.write(tmp_path / "b.dcm", numbers << 4, HighBit=15)
    np.testing.assert_array_equal(values(left)[0], numbers)


def test_padding_is_the_background(tmp_path):
    facts = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    folder = made.series(tmp_path / "a", made.stored_values(3), PixelPaddingValue=7, **facts)
    assert open_volume(folder).background == (-1010,)
    view = Record(folder).view()
    assert (view.read_padded(Region((-2, 0, 0), (1, 2, 2))) == -1010).all()
    mixed = made.series(
        tmp_path / "b", made.stored_values(3),
        each=lambda k: {"PixelPaddingValue": k}, **facts,
    )  # fmt: skip
    assert open_volume(mixed).background is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom knows that this is no signed number
        signed = made.data_set(made.stored_values(1, dtype="i2")[0])
        signed.add_new("PixelPaddingValue", "US", 0xF830)
        signed.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    assert open_volume(tmp_path / "c.dcm").background == (-2000,)


def test_floating_point_pixels(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(16, 20)).astype("f4")
    data = made.data_set(numbers, BitsAllocated=32, PixelData=None, BitsStored=None, HighBit=31)
    data.FloatPixelData = numbers.tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume = open_volume(tmp_path / "a.dcm")
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume.to_dask().compute()[0], numbers)


# ---------------------------------------------------------------------- several frames
def test_frames_with_places_and_slopes_of_their_own(tmp_path):
    stored = made.stored_values(6)
    order = np.array([4, 0, 2, 1, 5, 3])
    slopes = [0.5 + k for k in range(6)]
    groups = made.functional_groups(
        made.positions(6)[order],
        PixelValueTransformationSequence__RescaleSlope=[slopes[k] for k in order],
        PixelValueTransformationSequence__RescaleIntercept=[-1.0] * 6,
    )
    volume = open_volume(made.write(tmp_path / "a.dcm", stored[order], **groups))
    expected = stored * np.array(slopes)[:, None, None] - 1
    np.testing.assert_array_equal(volume.to_dask().compute(), expected.astype("f4"))
    np.testing.assert_array_equal(
        volume.read((3, 4, 5), (2, 6, 7)), expected[3:5, 4:10, 5:12].astype("f4")
    )
    assert volume.spacing == pytest.approx((3, 2, 1))
    np.testing.assert_allclose(volume.space.to_world((0, 0, 0)), (10, -5, 30))


def test_time_points_in_one_file(tmp_path):
    stored = made.stored_values(6)
    groups = made.functional_groups(
        np.repeat(made.positions(3), 2, axis=0),
        FrameContentSequence__TemporalPositionIndex=[1, 2] * 3,
    )
    path = made.write(tmp_path / "a.dcm", stored, **groups)
    with pytest.raises(UsageError, match="TemporalPositionIndex=2"):
        open_volume(path)
    np.testing.assert_array_equal(values(path, series="5/1"), stored[1::2])


def test_a_file_per_time_point(tmp_path):
    stored = made.stored_values(8)
    groups = made.functional_groups(made.positions(4))
    for n in (0, 1):
        made.write(tmp_path / f"{n}.dcm", stored[4 * n : 4 * n + 4], InstanceNumber=n + 1, **groups)
    with pytest.raises(UsageError, match="InstanceNumber=2"):
        open_volume(tmp_path)
    np.testing.assert_array_equal(values(tmp_path, series="5/1"), stored[4:])


def test_frames_without_places(tmp_path):
    stored = made.stored_values(3)
    gone = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    volume = open_volume(made.write(tmp_path / "a.dcm", stored, **gone))
    assert volume.space is None
    assert volume.spacing == (3, 2, 1)
    np.testing.assert_array_equal(volume.to_dask().compute(), stored)


@pytest.mark.skipif(not DATA.is_dir(), reason="the sample is not there")
@pytest.mark.parametrize(
    ("series", "reference"),
    [
        ("801/FIELD_MAP", "Philips_WIP_B0_NS_801_e2_fieldmaphz.nii"),
        ("M", "Philips_WIP_B0_NS_801_e1.nii"),
    ],
)
def test_a_file_that_is_two_volumes(series, reference):
    """Against dcm2niix's NIfTI of a Philips scan."""
    path = DATA / "IM_0027_fMAP.dcm"
    with pytest.raises(UsageError, match="2 volumes"):
        open_volume(path)
    view = open_volume(path, series=series).view(orientation="RAS")
    expected = nibabel.as_closest_canonical(nibabel.load(DATA / reference))
    np.testing.assert_allclose(view.space.affine[:, [2, 1, 0, 3]], expected.affine, atol=1e-4)
    if series == "M":  # its values have a scale of the maker besides
        return
    found = view.read(Region.of(view.shape))
    np.testing.assert_allclose(found, np.asarray(expected.dataobj).T, atol=0.01)


# ---------------------------------------------------------------------- no volumes
def refused(path, match, error=UnsupportedImageError):
    with pytest.raises(error, match=match) as caught:
        open_volume(path)
    assert str(path) in str(caught.value)


def test_what_is_no_volume(tmp_path):
    rgb = made.data_set(np.zeros((16, 60), "u1"), SamplesPerPixel=3, Columns=20)
    rgb.PhotometricInterpretation, rgb.PlanarConfiguration = "RGB", 0
    rgb.save_as(tmp_path / "rgb.dcm", enforce_file_format=True)
    refused(tmp_path / "rgb.dcm", "SamplesPerPixel 3, PhotometricInterpretation RGB")
    refused(shipped("examples_palette.dcm"), "PALETTE COLOR")
    refused(shipped("liver_1frame.dcm"), "segmentation objects are not read")
    refused(shipped("reportsi.dcm"), "holds no image .Basic Text SR")
    slide = made.write(
        tmp_path / "wsi.dcm", np.zeros((16, 20), "u1"), SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6"
    )
    refused(slide, "open it with open_slide")
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 16], [0, 1, 2, 3]
    lut = made.data_set(np.zeros((16, 20), "u2"), ModalityLUTSequence=[table])
    lut.ModalityLUTSequence[0]["LUTDescriptor"].VR = "US"
    lut.ModalityLUTSequence[0]["LUTData"].VR = "US"
    lut.save_as(tmp_path / "lut.dcm", enforce_file_format=True)
    refused(tmp_path / "lut.dcm", "Modality LUT Sequence")
    swapped = made.write(
        tmp_path / "be.dcm", np.zeros((16, 20), "u1"), syntax="1.2.840.10008.1.2.2"
    )
    refused(swapped, "8 bits in the transfer syntax Explicit VR Big Endian")
    mosaic = made.write(tmp_path / "m.dcm", GOOD, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    refused(mosaic, "dcm2niix")
    video = made.write(
        tmp_path / "v.dcm", np.zeros((16, 20), "u1"), syntax=JPEG + "102", frames=[b"0" * 8]
    )
    refused(video, "8 bits in the transfer syntax MPEG-4 .* are not read")


def test_folders_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not get_backend("dicom").accepts(str(tmp_path / "empty"))
    with pytest.raises(UnsupportedImageError, match="the folder is empty"):
        open_volume(tmp_path / "empty", backend="dicom")
    (tmp_path / "notes.txt").write_text("no scan")
    with pytest.raises(UnsupportedImageError, match=r"notes.txt: it is not DICOM"):
        open_volume(tmp_path, backend="dicom")
    with pytest.raises(ImageNotFoundError, match="gone"):
        open_volume([tmp_path / "notes.txt", tmp_path / "gone.dcm"], backend="dicom")
    with pytest.raises(UnsupportedImageError, match="download it first"):
        open_volume("memory://scan", backend="dicom")
    os.mkfifo(tmp_path / "pipe")
    assert not get_backend("dicom").accepts(str(tmp_path / "pipe"))
    with pytest.raises(UnsupportedImageError, match="no regular file"):
        open_volume(tmp_path / "pipe", backend="dicom")
    # a Zarr is no folder of slices, whatever its chunks begin with
    made.write(tmp_path / "a.zarr" / "0.dcm", made.stored_values(1)[0])
    (tmp_path / "a.zarr" / "zarr.json").touch()
    assert not get_backend("dicom").accepts(str(tmp_path / "a.zarr"))


GOOD = made.stored_values(1)[0]


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"Rows": 65535, "Columns": 65535}, "declares 1 frames of 65535 x 65535 pixels"),
        ({"NumberOfFrames": 2**31 - 1}, "declares 2147483647 frames"),
        ({"Rows": 0}, "Rows is 0"),
        ({"BitsStored": 17}, "17 are stored"),
        ({"BitsAllocated": 24, "BitsStored": 12}, "24 bits"),
        ({"ImageOrientationPatient": [0] * 6}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "no pair of perpendicular"),
        ({"PixelSpacing": [0, 1]}, "PixelSpacing"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0"),
        ({"ImagePositionPatient": [1, 2]}, "ImagePositionPatient"),
        ({"PixelData": None}, "ends before its pixel data"),
        ({**made.functional_groups(made.positions(2)), "NumberOfFrames": 1}, "groups of 2"),
    ],
)  # fmt: skip
def test_headers_that_make_no_sense(tmp_path, facts, match):
    path = made.write(tmp_path / "a.dcm", GOOD, **facts)
    refused(path, match, CorruptImageError)
    # and nothing is quietly left out beside good slices
    made.series(tmp_path, made.stored_values(2))
    refused(tmp_path / "a.dcm", match, CorruptImageError)
    with pytest.raises(CorruptImageError, match=r"a\.dcm"):
        open_volume(tmp_path)


def test_numbers_that_are_none(tmp_path):
    path = made.write(tmp_path / "a.dcm", GOOD, RescaleSlope=1, RescaleIntercept=0)
    data = path.read_bytes()
    at = data.index(b"\x28\0\x53\x10DS")
    path.write_bytes(data[: at + 8] + b"nan "[: data[at + 6]] + data[at + 8 + data[at + 6] :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns, and goes on
        refused(path, "RescaleSlope", CorruptImageError)


def test_files_cut_anywhere(tmp_path):
    """An error of ours at every length, never anything else, never a wrong value."""
    whole = made.write(tmp_path / "whole.dcm", GOOD).read_bytes()
    path = tmp_path / "cut.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in range(0, len(whole), 61):
            path.write_bytes(whole[:length])
            with pytest.raises(DaskdmedError):
                values(path)
    path.write_bytes(whole[:-50])
    refused_read = open_volume(path)
    with pytest.raises(TileError, match=r"cut.dcm, frame 0: the pixel data end 50 bytes too early"):
        refused_read.to_dask().compute()


def test_damaged_slices_are_painted(tmp_path, caplog):
    stored = made.stored_values(5)
    folder = made.series(tmp_path, stored, PixelPaddingValue=9)
    bad = folder / "002.dcm"
    k = int(np.random.default_rng(1).permutation(5)[2])
    bad.write_bytes(bad.read_bytes()[:-50])
    with pytest.raises(TileError, match=r"002\.dcm, frame 0") as caught:
        open_volume(folder).to_dask().compute()
    assert caught.value.tile == (k, 0, 0)
    expected = stored.astype("i2")
    expected[k] = 9
    volume = open_volume(folder)
    with caplog.at_level(logging.WARNING, logger="daskdmed.images"):
        found = volume.view(tile_error="fill").read(Region.of(stored.shape))
    np.testing.assert_array_equal(found, expected)
    assert [failed.tile for failed in volume.failed_tiles] == [(k, 0, 0)]
    assert "002.dcm" in caplog.text
    # rows that are there can be read
    np.testing.assert_array_equal(volume.read((k, 0, 0), (1, 9, 20))[0], stored[k, :9])


@pytest.mark.parametrize("syntax", [JPEG + "57", JPEG + "80", JPEG + "90", str(RLELossless)])
def test_damaged_streams(tmp_path, syntax):
    if syntax in LOSSLESS:
        good = LOSSLESS[syntax](GOOD)
        larger = LOSSLESS[syntax](np.zeros((300, 400), "u2"))
    else:
        data = made.data_set(GOOD)
        data.compress(RLELossless, encoding_plugin="pydicom")
        good = pydicom.encaps.get_frame(data.PixelData, 0, number_of_frames=1)
        larger = b"\x05" + good[1:]
    path = made.write(tmp_path / "good.dcm", GOOD, syntax=syntax, frames=[good])
    np.testing.assert_array_equal(values(path)[0], GOOD)
    streams = {"larger": larger, "cut": good[:70], "noise": bytes(64), "nothing": bytes(2)}
    for name, stream in streams.items():
        path = made.write(tmp_path / f"{name}.dcm", GOOD, syntax=syntax, frames=[stream])
        with pytest.raises(TileError, match=f"{name}.dcm, frame 0"):
            values(path)


def test_lengths_that_reach_beyond_the_file(tmp_path):
    """pydicom raises OSErrors of its own, which are no errors of the system."""
    path = made.write(tmp_path / "a.dcm", GOOD, syntax="1.2.840.10008.1.2")
    data = path.read_bytes()
    at = data.index(b"\x08\0\x60\0")  # Modality becomes a sequence without an end
    for length in (0xFFFFFFFF, 0xFFFFFF00):
        path.write_bytes(data[: at + 4] + length.to_bytes(4, "little") + data[at + 8 :])
        with pytest.raises((CorruptImageError, UnsupportedImageError), match="a.dcm"):
            open_volume(path)


def test_the_last_of_several_compressed_frames_is_cut(tmp_path):
    stored = made.stored_values(3)
    frames = [imagecodecs.jpegls_encode(np.ascontiguousarray(one)) for one in stored]
    groups = made.functional_groups(made.positions(3))
    path = made.write(tmp_path / "a.dcm", stored, syntax=JPEG + "80", frames=frames, **groups)
    path.write_bytes(path.read_bytes()[:-200])
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read((0, 0, 0), (2, 16, 20)), stored[:2])
    with pytest.raises(TileError, match="a.dcm, frame 2") as caught:
        volume.to_dask().compute()
    assert caught.value.tile == (2, 0, 0)


def test_deflated_bombs_take_no_memory(tmp_path, monkeypatch):
    path = made.write(tmp_path / "a.dcm", GOOD, syntax="1.2.840.10008.1.2.1.99")
    np.testing.assert_array_equal(values(path)[0], GOOD)
    whole = path.read_bytes()
    header = whole[: 144 + int.from_bytes(whole[140:144], "little")]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(header + packer.compress(bytes(2**25)) + packer.flush())
    monkeypatch.setattr("daskdmed.images.volumes.dicom.header._MAX_HEADER", 2**16)
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(path, "a.dcm", (CorruptImageError, UnsupportedImageError))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_slices_in_one_place_that_cannot_be_compared(tmp_path):
    folder = made.series(tmp_path, made.stored_values(3))
    extra = made.write(folder / "x.dcm", GOOD, ImagePositionPatient=made.positions(3)[1].tolist())
    extra.write_bytes(extra.read_bytes()[:-50])
    with pytest.raises(CorruptImageError, match="cannot be compared"):
        open_volume(folder)
    extra.unlink()
    made.write(extra, GOOD, ImagePositionPatient=made.positions(3)[1].tolist(), RescaleSlope=3)
    with pytest.raises(GeometryError, match="two different slices"):
        open_volume(folder)


def test_pydicom_is_asked_for_by_name(tmp_path, monkeypatch):
    path = made.write(tmp_path / "a.dcm", GOOD)
    catalog._read.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'daskdmed\[volumes\]'"):
        open_volume(path, backend="dicom")
    refused(path, r"pip install 'daskdmed\[volumes\]'")


def test_a_number_of_frames_that_makes_no_sense(tmp_path):
    path = made.write(tmp_path / "a.dcm", GOOD, NumberOfFrames=-1)
    with pytest.raises(CorruptImageError, match=r"a\.dcm.*NumberOfFrames is -1"):
        open_volume(path)
