"""Targets lie where the image lies: at every level, at another resolution, of annotations."""

from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
import tifffile

from daskdmed import Categories, Dataset, LightDL, Patient, Record, read_annotations
from daskdmed.errors import DatasetError, GeometryError, LoaderError, UsageError
from daskdmed.samples import make_slide
from tests.loading.conftest import SMALL

SIDE = 2048


def coordinates(step):
    """(rows, columns, 2) uint16: level-0 place of the centre of each pixel of a level."""
    n = SIDE // step
    y, x = np.mgrid[0:n, 0:n] * step + step // 2
    return np.stack([y, x, np.zeros_like(x)], -1).astype(np.uint16)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Made slides, each with a pyramid whose pixels say where they lie."""
    folder = tmp_path_factory.mktemp("targets")
    patients = []
    for i in range(2):
        make_slide(folder / f"s{i}.tif", SIDE, tissue=0.5, seed=i, levels=3, mpp=0.5)
        mask = folder / f"m{i}.tif"
        with tifffile.TiffWriter(mask) as f:
            options = {
                "tile": (256, 256),
                "photometric": "rgb",
                "compression": "zlib",
                "resolutionunit": "CENTIMETER",
            }
            f.write(coordinates(1), subifds=2, resolution=(20_000, 20_000), **options)
            for step in (4, 16):
                f.write(coordinates(step), subfiletype=1, **options)
        records = {"wsi": Record(folder / f"s{i}.tif"), "where": Record(mask)}
        patients.append(Patient(f"s{i}", records))
    return Dataset("targets", patients)


@pytest.mark.parametrize("resolution", [{"level": 0}, {"level": 1}, {"mpp": 1.0}, {"mpp": 2.0}])
def test_at_every_resolution(slides, resolution):
    with LightDL(slides, **SMALL, **resolution, target="where") as loader:
        for _ in range(4):
            _, _, chunks = next(loader)
            for chunk in chunks:
                step = round(chunk.bigchunk.downsample[0])
                y, x = chunk.origin
                # where two pixels are averaged the half is rounded either way
                for axis, first in enumerate((y, x)):
                    expected = (np.arange(64) + first) * step + step // 2
                    found = chunk.target.take(0, axis=1 - axis)[:, axis].astype(int)
                    assert np.abs(found - expected).max() <= (step == 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("own", [{"target_level": 1}, {"target_mpp": 2.0}])
def test_at_its_own_resolution(slides, own, masked):
    """One target pixel per 4 x 4 of the image; small chunks begin on whole ones."""
    tissue = {"s0": np.ones((8, 8), bool), "s1": np.eye(8, dtype=bool)} if masked else None
    with LightDL(slides, **SMALL, target="where", **own, tissue=tissue) as loader:
        for _ in range(6):
            _, _, chunks = next(loader)
            assert chunks.targets.shape == (16, 16, 16, 3)
            for chunk in chunks:
                y, x = chunk.origin
                assert (y % 4, x % 4) == (0, 0)
                np.testing.assert_array_equal(chunk.target[:, 0, 0], y + np.arange(16) * 4 + 2)
                np.testing.assert_array_equal(chunk.target[0, :, 1], x + np.arange(16) * 4 + 2)


def test_a_label_map_of_lower_resolution_is_found_out_by_itself():
    image = da.zeros((512, 512, 3), dtype="u1", chunks=256)
    labels = np.arange(128 * 128, dtype=np.int32).reshape(128, 128)
    records = {"wsi": Record(array=image), "labels": Record(array=da.from_array(labels, chunks=32))}
    data = Dataset("x", [Patient("a", records)])
    with LightDL(data, **{**SMALL, "bigchunk_size": 256}, target="labels") as loader:
        for chunk in next(loader)[2]:
            y, x = (o // 4 for o in chunk.origin)
            np.testing.assert_array_equal(chunk.target, labels[y : y + 16, x : x + 16])


def label_map_dataset():
    labels = np.random.default_rng(0).integers(0, 5, (600, 500)).astype(np.uint8)
    records = {
        "wsi": Record(array=da.zeros((600, 500, 3), dtype="u1", chunks=200)),
        "labels": Record(array=da.from_array(labels, chunks=200)),
    }
    return Dataset("x", [Patient("a", records)]), labels


@pytest.mark.parametrize("channels", [False, True])
def test_classes_of_a_label_map(channels):
    data, labels = label_map_dataset()
    classes = Categories({"tumour": [1, 2], "stroma": 3}, background="first")
    options = {"target": "labels", "target_classes": classes, "target_channels": channels}
    with LightDL(data, **SMALL, **options) as loader:
        for chunk in next(loader)[2]:
            y, x = chunk.origin
            crop = labels[y : y + 64, x : x + 64]
            if channels:
                expected = np.stack(
                    [~np.isin(crop, (1, 2, 3)), np.isin(crop, (1, 2)), crop == 3], -1
                )
            else:
                expected = np.select([np.isin(crop, (1, 2)), crop == 3], [1, 2])
            np.testing.assert_array_equal(chunk.target, expected)


@pytest.mark.parametrize("resolution", [{}, {"mpp": 1.0}, {"target_mpp": 2.0}])
def test_of_annotations(slides, tmp_path, resolution):
    """A rectangle on the pixel grid, found by its level-0 place."""
    ring = [[512, 256], [1536, 256], [1536, 1280], [512, 1280], [512, 256]]
    shape = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "Tumor"}},
    }
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([shape]))
    data = Dataset(
        "x", [Patient(p.id, {"wsi": p.record("wsi"), "shapes": Record(path)}) for p in slides]
    )
    options = {"target": "shapes", "target_classes": {"Tumor": 7}, **resolution}
    values = set()
    with LightDL(data, **SMALL, **options) as loader:
        for _ in range(6):
            for chunk in next(loader)[2]:
                down = chunk.bigchunk.downsample[0]
                ratio = 64 // chunk.target.shape[0]
                place = [(o + (np.arange(64 // ratio) + 0.5) * ratio) * down for o in chunk.origin]
                inside_y = (place[0] > 256) & (place[0] < 1280)
                inside_x = (place[1] > 512) & (place[1] < 1536)
                expected = np.where(inside_y[:, None] & inside_x[None], 7, 0)
                np.testing.assert_array_equal(chunk.target, expected)
                values.update(np.unique(chunk.target).tolist())
    assert values == {0, 7}


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((100, 100), {}, "divided by a whole number"),
        ((200, 200), {"smallchunk_size": 63}, "does not cover whole pixels"),
        ((4, 200, 200, 1), {}, "spatial axes|shape"),
    ],
)
def test_targets_that_do_not_fit(shape, options, message):
    records = {
        "wsi": Record(array=da.zeros((410, 400, 3), dtype="u1")),
        "t": Record(array=da.zeros(shape, dtype="u1")),
    }
    if shape == (200, 200):
        records["wsi"] = Record(array=da.zeros((400, 400, 3), dtype="u1"))
    data = Dataset("x", [Patient("a", records)])
    with pytest.raises((GeometryError, LoaderError), match=message):
        LightDL(data, **{**SMALL, **options}, target="t")


def test_targets_of_differing_resolution():
    patients = [
        Patient(
            f"p{n}",
            {
                "wsi": Record(array=da.zeros((400, 400, 3), dtype="u1")),
                "t": Record(array=da.zeros((n, n), dtype="u1")),
            },
        )
        for n in (200, 400)
    ]
    with pytest.raises(GeometryError, match="must agree in resolution"):
        LightDL(Dataset("x", patients), **SMALL, target="t")


# -- classes as they are written, and slides without the target ------------------------------


def drawn_dataset(*, normal=0):
    def square(x, label):
        ring = [[x, 100], [x + 250, 100], [x + 250, 400], [x, 400], [x, 100]]
        name = {"classification": {"name": label}}
        return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": name}  # fmt: skip

    drawn = Record(annotations=read_annotations(json.dumps([square(50, "T"), square(330, "S")])))
    image = Record(array=da.zeros((500, 600, 3), dtype="u1", chunks=200))
    patients = [Patient("p", {"wsi": image, "drawn": drawn})]
    return Dataset("d", [*patients, *(Patient(f"n{i}", {"wsi": image}) for i in range(normal))])


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("spec", [{"a": ["T"], "b": "S"}, ["T", "S"], {"ab": ["T", "S"], "b": "S"}])
def test_target_classes_are_categories_or_what_makes_them(spec, channels):
    options = {**SMALL, "target": "drawn", "target_channels": channels}
    found = []
    for classes in (spec, Categories(spec)):
        with LightDL(drawn_dataset(), **options, target_classes=classes) as loader:
            found.append(np.concatenate([next(loader)[2].targets for _ in range(3)]))
    np.testing.assert_array_equal(*found)
    assert found[0].any()


@pytest.mark.parametrize("spec", [{"T": 1, "b": ["S"]}, {"T": 1.5}, "T", 7, {"a": [["T"], 1.5]}])
def test_target_classes_that_are_none(spec):
    with pytest.raises((UsageError, LoaderError), match="classes|categories|label is"):
        LightDL(drawn_dataset(), **SMALL, target="drawn", target_classes=spec)


def test_slides_without_the_target_are_background():
    options = {**SMALL, "target": "drawn", "target_classes": {"T": 1, "S": 2}}
    with LightDL(drawn_dataset(normal=2), **options) as loader:
        seen = set()
        for _ in range(8):
            _, patients, chunks = next(loader)
            for patient, target in zip(patients, chunks.targets, strict=True):
                seen.add((patient.id, bool(target.any())))
    assert seen == {("p", True), ("p", False), ("n0", False), ("n1", False)}
    first = Categories(["T", "S"], background="first")
    more = {"target_classes": first, "target_channels": True}
    with LightDL(drawn_dataset(normal=2), **{**options, **more}) as loader:
        _, patients, chunks = next(loader)
        for patient, target in zip(patients, chunks.targets, strict=True):
            assert patient.id == "p" or (target[..., 0] == 1).all()


def test_a_target_that_nobody_has_or_a_label_map_that_one_lacks_is_an_error():
    with pytest.raises(DatasetError, match="no record 'draw'"):
        LightDL(drawn_dataset(normal=1), **SMALL, target="draw", target_classes=["T"])
    (patient,) = label_map_dataset()[0]
    lacking = Patient("b", {"wsi": patient.records["wsi"]})
    with pytest.raises(DatasetError, match="patient 'b' has no record 'labels'"):
        LightDL(Dataset("x", [patient, lacking]), **SMALL, target="labels")
