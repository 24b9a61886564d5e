"""A brain in any orientation, from its file to its file: the MNI152 maps that nilearn ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from daskdmed import Dataset, LightDL, export_volume, open_volume, predict
from daskdmed.errors import GeometryError, LoaderError

nibabel = pytest.importorskip("nibabel")
nilearn = pytest.importorskip("nilearn")
pytest.importorskip("torch")
MAPS = Path(nilearn.__file__).parent / "datasets" / "data"
CASES = [("RAS", 1), ("LPS", 1), ("PIR", 1), ("LAS", 1), ("PIR", 3)]


def saved(folder, name, axcodes, thick):
    """A part of a map as `name`.nii.gz, in another orientation, with slices of `thick` mm."""
    image = nibabel.load(MAPS / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    part = image.slicer[60:140, 70:130, 50:98:thick]
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axcodes)
    )
    part = part.as_reoriented(turn)
    folder.mkdir(exist_ok=True)
    nibabel.save(part, folder / "brain.nii.gz")
    return part


@pytest.mark.parametrize(("axcodes", "thick"), CASES)
def test_from_a_file_to_a_file(tmp_path, axcodes, thick):
    image = saved(tmp_path / "images", "t1", axcodes, thick)
    saved(tmp_path / "labels", "gm", "RAS", thick)
    volume = open_volume(tmp_path / "images" / "brain.nii.gz")
    assert volume.space.orientation == axcodes
    stored = np.asarray(image.dataobj).T
    np.testing.assert_array_equal(volume.to_dask().compute(), stored)

    # as nibabel turns it, x first
    canonical = nibabel.as_closest_canonical(image)
    turned = volume.view(orientation="RAS")
    np.testing.assert_array_equal(
        volume.to_dask(orientation="RAS").compute(), np.asarray(canonical.dataobj).T
    )
    np.testing.assert_allclose(turned.space.affine[:, [2, 1, 0, 3]], canonical.affine)

    # image and label agree when both are turned, and only then
    dataset = Dataset.from_bids_like(tmp_path / "images", tmp_path / "labels")
    sizes = {"smallchunk_size": (8, 16, 16), "batch_size": 4, "epoch_length": 2, "seed": 0}
    both = {"record": "image", "target": "label", "resident": "64 MiB", **sizes}
    if axcodes != "RAS":
        with pytest.raises((GeometryError, LoaderError), match="orientation="):
            LightDL(dataset, **both)
    reference = np.asarray(
        nibabel.as_closest_canonical(nibabel.load(tmp_path / "labels" / "brain.nii.gz")).dataobj
    ).T
    with LightDL(dataset, **both, orientation="RAS") as loader:
        for x, _, chunks in loader:
            for crop, label, chunk in zip(x.numpy()[:, 0], chunks.targets, chunks, strict=True):
                z, y, x0 = np.rint(turned.space.to_index(chunk.affine[:3, 3])).astype(int)
                place = slice(z, z + 8), slice(y, y + 16), slice(x0, x0 + 16)
                np.testing.assert_array_equal(crop, np.asarray(canonical.dataobj).T[place])
                np.testing.assert_array_equal(label, reference[place])

    # predicted in another orientation, written in the file's own
    found = predict(
        volume,
        lambda windows: np.float32(windows) / 255,
        kernel_size=(16, 32, 32),
        overlap=0.25,
        orientation="RAS",
        post="uint8",
    )
    path = export_volume(found, tmp_path / "found.nii.gz", like=volume)
    again = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(image.dataobj))
    np.testing.assert_array_equal(again.affine, image.affine)
    assert again.get_data_dtype() == np.uint8
