"""Results of volumes lie in the patient: OME-Zarr for others, the exact affine for us."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import zarr

from daskdmed import Record, Space, heatmap, predict
from daskdmed.images.ngff.metadata import Axis, Multiscale
from daskdmed.store import add_pyramid, open_heatmap
from daskdmed.store.results.georeference import Georeference

#: an oblique one: no axis lies along one of the patient's
_turn = nibabel.eulerangles.euler2mat(0.1, -0.2, 0.15)
AFFINES = {
    "straight": np.diag([-2.0, 1.0, 1.5, 1.0]) + np.pad([[40.0], [-7.0], [3.0]], ((0, 1), (3, 0))),
    "oblique": np.block(
        [[_turn * [2.0, 0.8, 1.5], np.array([[4.0], [5.0], [-6.0]])], [np.eye(4)[3:]]]
    ),
}


@pytest.fixture(scope="module", params=AFFINES)
def volume(request, tmp_path_factory):
    """A file in which x, y, z grow as the affine says, and its image."""
    path = tmp_path_factory.mktemp("space") / "volume.npy"
    values = np.random.default_rng(0).random((12, 10, 8)).astype(np.float32)
    np.save(path, values)
    affine = AFFINES[request.param][:, [2, 1, 0, 3]]
    return Record(path, space=Space(affine, values.shape))


def identity(windows):
    return windows


def test_cells_of_a_prediction_are_the_voxels(volume, tmp_path):
    predict(volume.view(), identity, kernel_size=(8, 8, 8), out=tmp_path / "a.zarr")
    place = open_heatmap(tmp_path / "a.zarr").georeference
    assert place.space.isclose(volume.space, 1e-9)
    np.testing.assert_allclose(place.level0_affine, volume.space.affine, atol=1e-9)
    assert Georeference.from_json(place.to_json()) == place


def test_the_level_0_of_a_turned_and_resampled_view_is_known(volume, tmp_path):
    view = volume.view(spacing=(3.0, 2.0, 1.6), orientation="PIR")
    predict(
        view,
        lambda w: w[:, ::2, ::2, ::2],
        kernel_size=(2, 2, 2),
        overlap=0,
        out=tmp_path / "a.zarr",
    )
    place = open_heatmap(tmp_path / "a.zarr").georeference
    full = volume.view(orientation="PIR").space
    np.testing.assert_allclose(place.level0_affine, full.affine, atol=1e-9)
    # the middle of the first cell is the middle of eight voxels
    np.testing.assert_allclose(
        place.space.to_world((0, 0, 0)), view.space.to_world((0.5, 0.5, 0.5)), atol=1e-9
    )
    assert place.space.spacing == pytest.approx([2 * s for s in view.spacing])


def test_cells_of_a_heatmap_lie_in_the_middle_of_windows(volume, tmp_path):
    kernel, stride = (4, 4, 2), (3, 2, 2)
    out = tmp_path / "h.zarr"
    found = heatmap(
        volume.view(), lambda w: w.mean((1, 2, 3)), kernel_size=kernel, stride=stride, out=out
    )
    place = open_heatmap(out).georeference
    assert place.space.shape == found.shape
    index = np.array([2, 1, 1])
    middle = index * stride + (np.array(kernel) - 1) / 2
    np.testing.assert_allclose(
        place.space.to_world(index), volume.space.to_world(middle), atol=1e-9
    )


def test_others_read_millimeters_and_anatomical_orientation(tmp_path):
    models = pytest.importorskip("ome_zarr_models")
    reader = pytest.importorskip("ome_zarr.reader")
    io = pytest.importorskip("ome_zarr.io")
    affine = AFFINES["straight"][:, [2, 1, 0, 3]]
    image = Record(array=np.ones((12, 10, 8), np.float32), space=Space(affine, (12, 10, 8)))
    out = tmp_path / "a.zarr"
    predict(image.view(spatial_ndim=3), identity, kernel_size=(8, 8, 8), out=out)
    add_pyramid(out)  # what writes metadata again keeps it
    group = zarr.open_group(out, mode="r")
    scales = group.attrs["ome"]["multiscales"][0]
    models.open_ome_zarr(group)
    nodes = list(reader.Reader(io.parse_url(str(out)))())
    assert nodes[0].data[0].shape == (12, 10, 8)
    assert scales["axes"] == [
        {
            "name": name,
            "type": "space",
            "unit": "millimeter",
            "orientation": {"type": "anatomical", "value": value},
        }
        for name, value in zip(
            "zyx", ("inferior-to-superior", "posterior-to-anterior", "right-to-left"), strict=True
        )
    ]
    steps = scales["datasets"][0]["coordinateTransformations"]
    assert steps[0]["scale"] == [1.5, 1.0, 2.0]
    # 40 mm to the right is -40 along an axis to the left
    assert steps[1]["translation"] == [3.0, -7.0, -40.0]
    parsed = Multiscale.parse(group.attrs.asdict())
    assert [axis.letter for axis in parsed.axes] == ["S", "A", "L"]


@pytest.mark.parametrize("told", [None, "left-to-right", {"type": "anatomical", "value": 3}])
def test_an_orientation_that_is_none_is_none(told):
    axis = Axis.parse({"name": "x", "type": "space", "orientation": told})
    assert (axis.orientation, axis.letter) == (None, None)


def test_results_of_earlier_versions_still_open(volume, tmp_path):
    out = tmp_path / "a.zarr"
    predict(volume.view(), identity, kernel_size=(8, 8, 8), out=out)
    group = zarr.open_group(out)
    own = dict(group.attrs["daskdmed"])
    place = dict(own["georeference"])
    del place["space"], place["level0"]
    group.attrs["daskdmed"] = {**own, "georeference": place}
    found = open_heatmap(out).georeference
    assert found.space is None
    assert found.level0_affine is None
    assert found.spacing == pytest.approx(volume.space.spacing)
