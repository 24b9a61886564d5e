"""Result stores are valid OME-Zarr, and lie where their windows lie."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from daskdmed import heatmap
from daskdmed.cohort.record import Record
from daskdmed.errors import UsageError
from daskdmed.store.ngff.image import Georeference, axis_names, image_metadata, read_result


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
    np.testing.assert_array_equal(values, read_result(out)[0])
    assert (np.abs(values) == 1).all() or (values >= 0).all()


def test_results_come_back_with_their_place(stored):
    kind, out = stored
    values, place = read_result(str(out))
    assert place is not None
    assert place == Georeference.from_json(place.to_json())
    assert values.dtype == np.float32
    if kind == "plane":
        assert place == Georeference((10, 20), (10, 5), (1.0, 1.0), (0.5, 0.25))
        # cells are one stride wide and centred on their windows
        assert place.extent(values.shape) == ((0.0, 100.0), (7.5, 7.5 + 5 * values.shape[1]))


def test_one_axis_is_no_ome_image(tmp_path):
    assert axis_names(1, False) == ("x",)
    assert axis_names(3, True) == ("c", "z", "y", "x")
    assert axis_names(4, False) == ("axis0", "axis1", "axis2", "axis3")


def test_the_downsample_is_exact():
    place = Georeference((224, 224), (224, 224), (4.0001, 3.9998))
    assert place.extent((2, 3)) == ((0.0, 448 * 4.0001), (0.0, 672 * 3.9998))
    assert place.scale == (224 * 4.0001, 224 * 3.9998)


def test_metadata_must_agree():
    with pytest.raises(UsageError, match="same length"):
        image_metadata("yx", (1.0,), (0.0, 0.0))


def test_omero_channels():
    ome = image_metadata("cyx", (1, 1, 1), (0, 0, 0), windows=[(0, 1), (0, 5)], labels=["tumour"])
    assert [c["label"] for c in ome["omero"]["channels"]] == ["tumour", "1"]
    assert ome["omero"]["channels"][1]["window"] == {"min": 0, "max": 5, "start": 0, "end": 5}
