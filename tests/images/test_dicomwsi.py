"""DICOM whole-slide images, against what was encoded, OpenSlide and wsidicom."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    ImageError,
    TileError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.dicomwsi import DicomSlideBackend, places
from daskdmed.images.opening import open_slide
from daskdmed.images.tiff.decode import count_tiles
from daskdmed.images.volumes.volume import open_volume
from daskdmed.testing import BackendConformance

pytest.importorskip("pydicom")
DATA = Path(os.environ.get("DASKDMED_DATA_DIR", "none")) / "dicom_enhanced"
SHAPES = [(150, 200), (75, 100)]


@pytest.fixture(scope="module")
def levels():
    y, x = np.mgrid[: SHAPES[0][0], : SHAPES[0][1]]
    full = np.stack([x, y, x + y], -1).astype(np.uint8)
    return [full, np.ascontiguousarray(full[::2, ::2])]


def whole(slide, level=0):
    view = slide.view(level=level)
    return view.read(Region.of(view.spatial_shape))


class DicomFiles(BackendConformance):
    backend = DicomSlideBackend()
    options = {}

    @pytest.fixture(autouse=True)
    def _writer(self, dicomwsi):
        self.writer = dicomwsi

    def levels(self):
        rng = np.random.default_rng(3)
        return [rng.integers(0, 255, (*shape, 3), dtype=np.uint8) for shape in SHAPES]

    def make(self, tmp_path):
        found = self.writer.write_pyramid(tmp_path / "slide", self.levels(), **self.options)
        return str(tmp_path / "slide"), found

    def make_damaged(self, tmp_path):
        uri, levels = self.make(tmp_path)
        path = tmp_path / "slide" / "level0.dcm"
        reader = self.backend.open(uri)
        tiles = reader._levels[0].plan.tiles
        at, count = (int(numbers[4 + 2]) for numbers in tiles.plane(0, None))
        reader.close()
        with path.open("r+b") as file:
            file.seek(at + 8)
            file.write(b"\xff" * (count - 8))
        return uri, levels, Region((64, 128), (64, 64))


class TestFolder(DicomFiles):
    pass


class TestSparseLossless(DicomFiles):
    @property
    def options(self):
        return {"syntax": self.writer.JPEG2000, "sparse": True, "offsets": "extended"}


class TestNative(DicomFiles):
    make_damaged = BackendConformance.make_damaged

    @property
    def options(self):
        return {"syntax": self.writer.NATIVE}


class TestOneFile(DicomFiles):
    make_damaged = BackendConformance.make_damaged

    def make(self, tmp_path):
        uri, levels = super().make(tmp_path)
        return f"{uri}/level1.dcm", levels

    def change(self, uri):
        super().change(uri.replace("level1", "level0"))


# ------------------------------------------------------------------------------ encodings
@pytest.mark.parametrize("syntax", ["JPEG", "JPEG2000", "JPEGLS", "RLE", "NATIVE"])
@pytest.mark.parametrize("offsets", ["basic", "none", "extended"])
def test_transfer_syntaxes(dicomwsi, tmp_path, levels, syntax, offsets):
    expected = dicomwsi.write(
        tmp_path / "a.dcm", levels[0], syntax=getattr(dicomwsi, syntax), offsets=offsets
    )
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.backend == "dicom-slide"
        assert np.array_equal(whole(slide), expected)


@pytest.mark.parametrize("offsets", ["basic", "none"])
def test_frames_in_several_fragments(dicomwsi, tmp_path, levels, offsets):
    image = levels[0] if offsets == "basic" else levels[1][:60, :60]
    expected = dicomwsi.write(tmp_path / "a.dcm", image, fragments=3, offsets=offsets)
    with open_slide(tmp_path / "a.dcm") as slide:
        assert np.array_equal(whole(slide), expected)


def test_fragments_that_nobody_can_tell_apart(dicomwsi, tmp_path, levels):
    dicomwsi.write(tmp_path / "a.dcm", levels[0], fragments=3, offsets="none")
    with pytest.raises(CorruptImageError, match="12 frames in 36 items"):
        open_slide(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [
        *(("JPEG2000", np.uint8), ("JPEG2000", np.uint16), ("NATIVE", np.uint8)),
        *(("NATIVE", np.uint16), ("RLE", np.uint8), ("JPEGLS", np.uint16)),
    ],
)
def test_gray_values(dicomwsi, tmp_path, dtype, syntax):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (100, 90)).astype(dtype)
    dicomwsi.write(tmp_path / "a.dcm", image, syntax=getattr(dicomwsi, syntax))
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.background == (0,)
        assert slide.channels is None
        assert np.array_equal(whole(slide)[..., 0], image)


def test_planes_of_colours(dicomwsi, tmp_path, levels):
    def change(ds):
        ds.PlanarConfiguration = 1
        frames = np.frombuffer(ds.PixelData, np.uint8).reshape(-1, 64, 64, 3)
        ds.PixelData = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).tobytes()

    expected = dicomwsi.write(tmp_path / "a.dcm", levels[0], syntax=dicomwsi.NATIVE, change=change)
    with open_slide(tmp_path / "a.dcm") as slide:
        assert np.array_equal(whole(slide), expected)


def test_rgb_that_the_stream_says_is_ycbcr(dicomwsi, tmp_path, levels):
    expected = dicomwsi.write(tmp_path / "a.dcm", levels[0], photometric="RGB")
    with open_slide(tmp_path / "a.dcm") as slide:
        assert np.array_equal(whole(slide), expected)


def test_unknown_encodings_are_unsupported(dicomwsi, tmp_path, levels):
    def change(ds):
        ds.PhotometricInterpretation = "PALETTE COLOR"

    dicomwsi.write(tmp_path / "a.dcm", levels[0], change=change)
    with pytest.raises(UnsupportedImageError, match="PALETTE COLOR"):
        open_slide(tmp_path / "a.dcm", backend="dicom-slide")


# ------------------------------------------------------------------------------ places
def test_sparse_levels_have_background(dicomwsi, tmp_path, levels):
    expected = dicomwsi.write(tmp_path / "a.dcm", levels[0], sparse=True, skip={(1, 1), (0, 3)})
    with open_slide(tmp_path / "a.dcm") as slide, count_tiles() as count:
        assert np.array_equal(whole(slide), expected)
        assert (slide.read_region((64, 64), 0, (64, 64)) == 255).all()
    assert count.tiles == 10


@pytest.mark.parametrize("way", ["undefined length", "implicit", "pydicom"])
def test_sparse_places_however_they_are_written(dicomwsi, tmp_path, levels, way, monkeypatch):
    real, parsed = places._parsed, []
    monkeypatch.setattr(places, "_parsed", lambda *a: parsed.append(1) or real(*a))

    def change(ds):
        each = ds.PerFrameFunctionalGroupsSequence
        if way == "undefined length":
            ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
            for group in each:
                group.is_undefined_length_sequence_item = True
        elif way == "implicit":
            ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
            ds["PixelData"].VR = "OW"
        else:  # what looks like one place more
            each[0].FrameComments = "H\0\x1f\2SL\4\0aaaa"

    expected = dicomwsi.write(
        tmp_path / "a.dcm", [levels[0], 255 - levels[0]], sparse=True, planes=2,
        skip={(1, 2)}, syntax=dicomwsi.NATIVE, change=change,
    )  # fmt: skip
    with open_slide(tmp_path / "a.dcm", plane="z=0") as slide:
        assert slide.planes == ("z=0", "z=1")
        assert bool(parsed) == (way == "pydicom")
        assert np.array_equal(whole(slide), expected)


def test_frames_off_the_grid_are_refused(dicomwsi, tmp_path, levels):
    def change(ds):
        place = ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0]
        place.ColumnPositionInTotalImagePixelMatrix += 5

    dicomwsi.write(tmp_path / "a.dcm", levels[0], sparse=True, change=change)
    with pytest.raises(UnsupportedImageError, match="one grid"):
        open_slide(tmp_path / "a.dcm", backend="dicom-slide")


def _concatenation(dicomwsi, folder, image, cuts):
    folder.mkdir()
    for number, (first, last) in enumerate(itertools.pairwise(cuts), 1):
        expected = dicomwsi.write(
            folder / f"part{number}.dcm", image, part=(first, last, number, len(cuts) - 1),
            number=number,
        )  # fmt: skip
    return expected


def test_concatenations(dicomwsi, tmp_path, levels):
    expected = _concatenation(dicomwsi, tmp_path / "slide", levels[0], [0, 5, 9, 12])
    with open_slide(tmp_path / "slide") as slide:
        assert slide.level_count == 1
        assert np.array_equal(whole(slide), expected)
    with open_slide(tmp_path / "slide" / "part2.dcm") as slide:
        assert np.array_equal(whole(slide), expected)


def test_a_missing_part_is_an_error(dicomwsi, tmp_path, levels):
    _concatenation(dicomwsi, tmp_path / "slide", levels[0], [0, 5, 9, 12])
    (tmp_path / "slide" / "part2.dcm").unlink()
    with pytest.raises(CorruptImageError, match="4 of the 12 frames"):
        open_slide(tmp_path / "slide")


def test_a_file_that_is_there_twice(dicomwsi, tmp_path, levels, caplog):
    expected = dicomwsi.write(tmp_path / "a.dcm", levels[0])
    shutil.copy(tmp_path / "a.dcm", tmp_path / "b.dcm")
    with open_slide(tmp_path) as slide:
        assert np.array_equal(whole(slide), expected)
    assert "is there twice" in caplog.text


# ------------------------------------------------------------------------------ facts
def test_facts(dicomwsi, tmp_path, levels):
    dicomwsi.write_pyramid(tmp_path / "slide", levels, icc=b"profile!")
    with open_slide(tmp_path / "slide") as slide:
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert slide.power == 20
        assert slide.level_downsamples == (1.0, 2.0)
        assert slide.level_tile_shapes == ((64, 64), (64, 64))
        assert slide.icc_profile == b"profile!"
        assert slide.properties["dicom.ContainerIdentifier"] == "slide-1"
        assert slide.properties["openslide.vendor"] == "dicom"


def test_mpp_of_the_whole_extent(dicomwsi, tmp_path, levels):
    def change(ds):
        del ds.SharedFunctionalGroupsSequence
        ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = 0.05, 0.075

    dicomwsi.write(tmp_path / "a.dcm", levels[0], change=change)
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.mpp == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("series", ["1", "2"])
def test_associated_images(dicomwsi, tmp_path, levels, series):
    """In the slide's series, or in one of their own."""
    dicomwsi.write_pyramid(tmp_path / "slide", levels)
    expected = {}
    for number, flavor in enumerate(("LABEL", "OVERVIEW", "THUMBNAIL"), 7):
        expected[flavor] = dicomwsi.write(
            tmp_path / "slide" / f"{flavor}.dcm", levels[1][: 20 + number], tile=128,
            flavor=flavor, series=series, number=number, syntax=dicomwsi.JPEG2000,
        )  # fmt: skip
    with open_slide(tmp_path / "slide") as slide:
        assert list(slide.associated_images) == ["label", "macro", "thumbnail"]
        assert slide.level_count == 2
        assert slide.images == ()
        for flavor, name in (("LABEL", "label"), ("OVERVIEW", "macro"), ("THUMBNAIL", "thumbnail")):
            assert np.array_equal(slide.associated_images[name], expected[flavor])


def test_optical_paths_are_channels(dicomwsi, tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 60000, (100, 130)).astype(np.uint16) for _ in range(3)]
    expected = dicomwsi.write(
        tmp_path / "a.dcm", images, syntax=dicomwsi.NATIVE, paths=("a", "b", "c"),
        names=("DAPI", "FITC", "Cy5"),
    )  # fmt: skip
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.channels == ("DAPI", "FITC", "Cy5")
        assert [c.excitation for c in slide.channels] == [405.0, 488.0, 571.0]
        assert np.array_equal(whole(slide), expected)


def test_optical_paths_in_files_of_their_own(dicomwsi, tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (100, 130)).astype(np.uint8) for _ in range(2)]
    for number, image in enumerate(images, 1):
        dicomwsi.write(
            tmp_path / f"{number}.dcm", image, syntax=dicomwsi.JPEG2000, paths=(f"path{number}",),
            number=number, sparse=number == 2,
        )  # fmt: skip
    with open_slide(tmp_path) as slide:
        assert slide.channels == ("path1", "path2")
        assert np.array_equal(whole(slide), np.stack(images, -1))


@pytest.mark.parametrize("sparse", [False, True])
def test_focal_planes(dicomwsi, tmp_path, levels, sparse, caplog):
    stack = [levels[0], 255 - levels[0], levels[0][::-1]]
    dicomwsi.write(tmp_path / "a.dcm", stack, planes=3, syntax=dicomwsi.NATIVE, sparse=sparse)
    for number, image in enumerate(stack):
        with open_slide(tmp_path / "a.dcm", plane=f"z={number}") as slide:
            assert slide.planes == ("z=0", "z=1", "z=2")
            assert np.array_equal(whole(slide), image)
    assert not caplog.text
    with open_slide(tmp_path / "a.dcm") as slide:
        assert slide.plane == "z=0"
    assert "plane= chooses" in caplog.text


# ------------------------------------------------------------------------------ folders
def test_several_slides_in_one_folder(dicomwsi, tmp_path, levels):
    folder = tmp_path / "slides"
    dicomwsi.write_pyramid(folder, levels)
    other = dicomwsi.write(folder / "other.dcm", 255 - levels[1], series="2")
    with pytest.raises(UnsupportedImageError, match=r"2 slides.*slide-1.*slide-2"):
        open_slide(folder)
    with open_slide(folder, image="slide-2") as slide:
        assert slide.images == ("slide-1", "slide-2")
        assert np.array_equal(whole(slide), other)
    with open_slide(folder / "other.dcm") as slide:
        assert np.array_equal(whole(slide), other)
    with open_slide(folder / "level1.dcm") as slide:
        assert slide.level_count == 2
    with pytest.raises(UsageError, match="slide-3"):
        open_slide(folder, image="slide-3")


def test_a_folder_beside_other_files(dicomwsi, tmp_path, levels):
    (tmp_path / "deep").mkdir()
    dicomwsi.write_pyramid(tmp_path / "deep" / "slide", levels)
    (tmp_path / "notes.txt").write_text("a slide")
    (tmp_path / "deep" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 200)
    with open_slide(tmp_path) as slide:
        assert slide.level_count == 2


def test_a_file_that_ends_within_what_tells_a_slide(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(128) + b"DICM" + bytes(20) + b"1.2.840.10008.5.1.4.1.1.77.1.6")
    assert not DicomSlideBackend().accepts(str(path))


@pytest.mark.skipif(not DATA.exists(), reason="dicom_enhanced is not in DASKDMED_DATA_DIR")
def test_volumes_stay_volumes(dicomwsi, tmp_path, levels):
    backend = DicomSlideBackend()
    assert not backend.accepts(str(DATA))
    assert not backend.accepts(str(DATA / "IM_0027_fMAP.dcm"))
    with open_volume(DATA / "IM_0027_fMAP.dcm", series="801/FIELD_MAP") as volume:
        assert volume.backend == "dicom"
    dicomwsi.write_pyramid(tmp_path / "slide", levels)
    with pytest.raises(ImageError, match="open_slide"):
        open_volume(tmp_path / "slide" / "level0.dcm")


# ------------------------------------------------------------------------------ bad input
def test_cut_files(dicomwsi, tmp_path, levels):
    path = tmp_path / "a.dcm"
    dicomwsi.write(path, levels[0])
    data = path.read_bytes()
    for count in (140, 600, len(data) // 3, len(data) - 3000, len(data) - 100):
        path.write_bytes(data[:count])
        with pytest.raises((CorruptImageError, UnsupportedImageError, TileError)) as caught:
            with open_slide(path, backend="dicom-slide") as slide:
                whole(slide)
        assert str(path) in str(caught.value)


def test_sizes_that_contradict_the_frames(dicomwsi, tmp_path, levels):
    def change(ds):
        ds.TotalPixelMatrixColumns = 100_000

    dicomwsi.write(tmp_path / "a.dcm", levels[0], change=change)
    with pytest.raises(CorruptImageError, match="frames"):
        open_slide(tmp_path / "a.dcm", backend="dicom-slide")


def test_a_file_that_changed(dicomwsi, tmp_path, levels):
    dicomwsi.write_pyramid(tmp_path / "slide", levels)
    reader = DicomSlideBackend().open(str(tmp_path / "slide"))
    dicomwsi.write(tmp_path / "slide" / "level1.dcm", 255 - levels[1], mpp=1.0, number=2)
    with pytest.raises(ImageError, match="changed"):
        reader.read(1, Region.of((5, 5)))
    reader.close()


# ------------------------------------------------------------------------------ other readers
@pytest.mark.parametrize("syntax", ["JPEG", "JPEG2000", "NATIVE"])
def test_as_openslide(dicomwsi, tmp_path, levels, syntax):
    openslide = pytest.importorskip("openslide")
    dicomwsi.write_pyramid(tmp_path / "slide", levels, syntax=getattr(dicomwsi, syntax))
    other = openslide.OpenSlide(tmp_path / "slide" / "level0.dcm")
    with open_slide(tmp_path / "slide") as slide:
        assert slide.level_dimensions == other.level_dimensions
        assert slide.level_downsamples == pytest.approx(other.level_downsamples)
        for name in ("openslide.mpp-x", "openslide.objective-power", "openslide.level[1].width"):
            assert slide.properties[name] == other.properties[name]
        assert slide.properties["dicom.Modality"] == other.properties["dicom.Modality"]
        for level, size in enumerate(slide.level_dimensions):
            seen = np.asarray(other.read_region((0, 0), level, size))[..., :3]
            assert np.array_equal(slide.read_region((0, 0), level, size), seen)


def test_as_wsidicom(dicomwsi, tmp_path, levels):
    wsidicom = pytest.importorskip("wsidicom")
    dicomwsi.write_pyramid(tmp_path / "slide", levels, sparse=True)
    with wsidicom.WsiDicom.open(tmp_path / "slide") as other:
        with open_slide(tmp_path / "slide") as slide:
            for level, size in enumerate(slide.level_dimensions):
                seen = np.asarray(other.read_region((0, 0), other.levels[level].level, size))
                assert np.array_equal(slide.read_region((0, 0), level, size), seen)


def test_a_header_that_says_something_else(dicomwsi, tmp_path, levels):
    """It begins as a slide; the element that counts is of another kind of object."""
    path = tmp_path / "a.dcm"
    dicomwsi.write(path, levels[0])
    data = path.read_bytes()
    kind = b"1.2.840.10008.5.1.4.1.1.77.1.6"
    at = data.index(kind, data.index(kind) + 1)
    path.write_bytes(data[: at + len(kind) - 1] + b"4" + data[at + len(kind) :])
    with pytest.raises(UnsupportedImageError, match=r"a\.dcm"):
        open_slide(path, backend="dicom-slide")


def test_colours_of_signed_numbers_have_a_background(dicomwsi, tmp_path, levels):
    def change(data):
        data.PixelRepresentation = 1

    dicomwsi.write(tmp_path / "a.dcm", levels[0], syntax=dicomwsi.NATIVE, photometric="RGB",
                   sparse=True, skip=((0, 0),), change=change)  # fmt: skip
    slide = open_slide(tmp_path / "a.dcm", backend="dicom-slide")
    assert slide.background == (np.iinfo(slide.dtype).max,) * 3
    assert (slide.read_region((0, 0), 0, (8, 8)) == slide.background).all()
