"""Result stores are valid OME-Zarr, and lie where their windows lie."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from daskdmed import heatmap
from daskdmed.cohort.record import Record
from daskdmed.errors import UsageError
from daskdmed.images.ngff.metadata import Axis, Channel, LevelPlace, Multiscale, axis_names
from daskdmed.store.results.finished import open_heatmap
from daskdmed.store.results.georeference import Georeference


def mean(windows):
    return windows.reshape(len(windows), -1).mean(1)


def two(windows):
    return np.stack([mean(windows), -mean(windows)], 1)


@pytest.fixture(params=["plane", "vectors", "volume", "no mpp"])
def stored(request, tmp_path):
    out = tmp_path / "a.ome.zarr"
    if request.param == "volume":
        record = Record(array=np.ones((20, 40, 60)), mpp=0.5)
        heatmap(record, mean, kernel_size=(4, 10, 10), stride=(2, 5, 5), out=out)
    else:
        mpp = None if request.param == "no mpp" else (0.5, 0.25)
        record = Record(array=np.ones((100, 150)), mpp=mpp)
        model = two if request.param == "vectors" else mean
        heatmap(record, model, kernel_size=(10, 20), stride=(10, 5), out=out)
    return request.param, out


def test_ome_zarr_models_accepts_it(stored):
    v05 = pytest.importorskip("ome_zarr_models.v05")
    kind, out = stored
    image = v05.Image.from_zarr(zarr.open_group(out, mode="r"))
    multiscale = image.ome_attributes.multiscales[0]
    names = [axis.name for axis in multiscale.axes]
    units = [axis.unit for axis in multiscale.axes]
    scale, translation = multiscale.datasets[0].coordinateTransformations
    expected = {
        "plane": ("yx", [2.5, 2.5], [1.125, 4.75]),
        "vectors": ("cyx", [1, 2.5, 2.5], [0, 1.125, 4.75]),
        "volume": ("zyx", [2, 2.5, 2.5], [1.5, 2.25, 2.25]),
        "no mpp": ("yx", [10, 5], [4.5, 9.5]),
    }[kind]
    assert ("".join(names), scale.scale, translation.translation) == expected
    space = [None if kind == "no mpp" else "micrometer"] * 2
    assert units[-2:] == space
    assert list(zarr.open_group(out, mode="r")["0"].metadata.dimension_names) == names


def test_ome_zarr_py_reads_it_back(stored):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    _, out = stored
    (node,) = list(Reader(parse_url(str(out)))())
    assert node.data[0].shape == zarr.open_group(out, mode="r")["0"].shape
    values = np.asarray(node.data[0])
    np.testing.assert_array_equal(values, open_heatmap(out).lazy())
    assert (np.abs(values) == 1).all() or (values >= 0).all()


def test_results_come_back_with_their_place(stored):
    kind, out = stored
    result = open_heatmap(str(out))
    place = result.georeference
    assert place == Georeference.from_json(place.to_json())
    assert result.dtype == np.float32
    if kind == "plane":
        assert place == Georeference((10, 20), (10, 5), (1.0, 1.0), (0.5, 0.25))
        # cells are one stride wide and centred on their windows
        assert place.extent(result.counts) == ((0.0, 100.0), (7.5, 7.5 + 5 * result.counts[1]))


def test_one_axis_is_no_ome_image(tmp_path):
    assert axis_names(1, False) == ("x",)
    assert axis_names(3, True) == ("c", "z", "y", "x")
    assert axis_names(4, False) == ("axis0", "axis1", "axis2", "axis3")


def test_the_downsample_is_exact():
    place = Georeference((224, 224), (224, 224), (4.0001, 3.9998))
    assert place.extent((2, 3)) == ((0.0, 448 * 4.0001), (0.0, 672 * 3.9998))
    assert place.scale == (224 * 4.0001, 224 * 3.9998)


def test_a_volume_lies_where_its_spacing_says():
    place = Georeference((4, 8, 8), (2, 4, 4), (1.0, 1.0, 1.0), spacing=(3.0, 0.5, 0.25))
    assert place.scale == (6.0, 2.0, 1.0)
    assert place.translation == (4.5, 1.75, 0.875)
    image = place.image("0", channels=True, name="scores")
    assert [(a.name, a.type, a.unit) for a in image.axes] == [
        ("c", "channel", None),
        *((name, "space", "millimeter") for name in "zyx"),
    ]
    assert image.spacing() == (None, 6000.0, 2000.0, 1000.0)
    assert Georeference.from_json(place.to_json()) == place


@dataclasses.dataclass(frozen=True)
class Placed:
    """As much of a view as says where it lies."""

    downsample: tuple
    mpp: tuple | None = None
    spacing: tuple | None = None


def test_planes_lie_by_their_mpp_and_volumes_by_their_spacing():
    plane = Placed((2.0, 2.0), (0.5, 0.25), (0.00025, 0.0005))
    volume = Placed((1.0, 1.0, 1.0), None, (3.0, 0.5, 0.5))
    unknown = Placed((1.0, 1.0, 1.0), (0.5, 0.25))  # says nothing of z
    assert Georeference.of(plane, (4, 4), (2, 2)) == Georeference(
        (4, 4), (2, 2), (2.0, 2.0), (0.5, 0.25)
    )
    found = Georeference.of(volume, (4, 4, 4), (2, 2, 2))
    assert (found.scale, found.units) == ((6.0, 1.0, 1.0), ("millimeter",) * 3)
    found = Georeference.of(unknown, (4, 4, 4), (2, 2, 2))
    assert (found.scale, found.units) == ((2.0, 0.5, 1.0), (None, "micrometer", "micrometer"))


def test_the_spacing_of_a_volume_reaches_its_store(tmp_path):
    record = Record(array=np.ones((8, 20, 20), np.float32), spacing=(3.0, 0.5, 0.25))
    heatmap(record, mean, kernel_size=(2, 10, 10), out=tmp_path / "a.zarr")
    image = Multiscale.parse(zarr.open_group(tmp_path / "a.zarr", mode="r").attrs.asdict())
    assert image is not None
    assert image.spacing() == (6000.0, 5000.0, 2500.0)
    assert image.levels[0].translation == (1.5, 2.25, 1.125)
    place = open_heatmap(tmp_path / "a.zarr").georeference
    assert (place.mpp, place.spacing) == (None, (3.0, 0.5, 0.25))


def test_metadata_must_agree():
    axes = tuple(map(Axis.named, "yx"))
    with pytest.raises(UsageError, match="one of each per axis"):
        Multiscale(axes, (LevelPlace("0", (1.0,), (0.0, 0.0)),))
    with pytest.raises(UsageError, match="no levels"):
        Multiscale(axes, ())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_what_is_written_is_read(version):
    names = "tczyx"
    axes = tuple(Axis.named(n, "micrometer" if n in "zyx" else None) for n in names)
    finest = LevelPlace("s0", (1.0, 1.0, 2.0, 0.5, 0.25), (0.0, 0.0, 1.0, 2.0, 3.0))
    image = Multiscale(
        axes,
        (finest, finest.coarser("s1", (1, 1, 1, 2, 2))),
        name="an image",
        method="mean",
        channels=(
            Channel("DAPI", "0000FF", (0, 200), (0, 255)),
            Channel("FITC", "00FF00", (1.5, 9.5), (0.0, 10.0), active=False),
        ),
        version=version,
    )
    assert Multiscale.parse(image.attributes()) == image
    assert image.channel == 1
    assert image.spacing() == (None, None, 2.0, 0.5, 0.25)
    assert image.levels[1].translation == (0.0, 0.0, 1.0, 2.25, 3.125)
    validated = pytest.importorskip(f"ome_zarr_models.v{version.replace('.', '')}.multiscales")
    attributes = image.attributes()
    validated.Multiscale.model_validate(attributes.get("ome", attributes)["multiscales"][0])


numbers = st.floats(-8, 8).filter(lambda v: abs(v) > 0.01)


@st.composite
def transformations(draw, ndim):
    kinds = draw(st.lists(st.sampled_from(["scale", "translation", "identity"]), max_size=4))
    values = st.lists(numbers, min_size=ndim, max_size=ndim)
    return [{"type": kind, kind: draw(values)} for kind in kinds]


@given(st.data(), st.integers(1, 5))
def test_transformations_follow_one_another(data, ndim):
    """A pixel moved step by step, those of its level first, ends where the place says."""
    own, shared = data.draw(transformations(ndim)), data.draw(transformations(ndim))
    pixel = np.asarray(data.draw(st.lists(numbers, min_size=ndim, max_size=ndim)))
    place = LevelPlace.parse({"path": 0, "coordinateTransformations": own}, shared, ndim)
    if not any(step["type"] == "scale" for step in own + shared):
        assert place == LevelPlace("0")
        return
    moved = pixel
    for step in own + shared:
        if step["type"] == "scale":
            moved = moved * step["scale"]
        elif step["type"] == "translation":
            moved = moved + step["translation"]
    found = pixel * np.asarray(place.scale) + np.asarray(place.translation)
    np.testing.assert_allclose(found, moved, rtol=1e-9, atol=1e-6)


def test_levels_that_do_not_say_where_they_lie():
    """A transformation that is not understood is no reason to guess."""
    for steps in ([], [{"type": "affine", "affine": []}], [{"type": "scale", "path": "s"}]):
        dataset = {"path": "0", "coordinateTransformations": steps}
        axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
        image = Multiscale.parse({"multiscales": [{"axes": axes, "datasets": [dataset]}]})
        assert image.levels == (LevelPlace("0"),)
        assert image.spacing() == (None, None)
    assert Multiscale.parse({"other": 1}) is None
