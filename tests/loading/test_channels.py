"""``channels=`` of loaders and of inference, and label maps of slides as targets."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

import daskdmed
from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL
from daskdmed.errors import LoaderError, StateError, UsageError
from daskdmed.images.tiff import count_tiles

NAMES = ["DAPI", "CD3", "CD8", "PanCK"]
SIZE = {"smallchunk_size": 8, "batch_size": 8, "bigchunk_size": 32, "smallchunks_per_bigchunk": 8}


@pytest.fixture(scope="module")
def stain(tmp_path_factory):
    """An OME-TIFF of four channels, and a palette of labels over it."""
    folder = tmp_path_factory.mktemp("stain")
    data = np.random.default_rng(0).integers(1, 250, (4, 64, 96)).astype(np.uint8)
    how = {"tile": (16, 16), "photometric": "minisblack", "compression": "zlib"}
    tifffile.imwrite(
        folder / "a.ome.tif", data, metadata={"axes": "CYX", "Channel": {"Name": NAMES}}, **how
    )
    labels = (data[0] % 3) * 90
    how = {**how, "photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
    tifffile.imwrite(
        folder / "labels.tif", labels, metadata=None, resolution=(20000, 20000),
        resolutionunit="CENTIMETER", **how,
    )  # fmt: skip
    return folder / "a.ome.tif", data, folder / "labels.tif", labels


def dataset(stain, **options):
    records = {"wsi": Record(stain[0], **options), "labels": Record(stain[2])}
    return Dataset("d", [Patient("p", records)])


def crop(data, chunk, numbers):
    x, y = chunk.location
    return data[numbers, y : y + 8, x : x + 8]


@pytest.mark.parametrize(
    ("of_record", "of_loader", "numbers"),
    [
        (None, ["CD8", 0], [2, 0]),
        (["PanCK", "CD3"], None, [3, 1]),
        ([3, 1, 0], ["DAPI", 0], [0, 3]),
    ],
)
def test_small_chunks_have_the_channels_that_are_asked_for(stain, of_record, of_loader, numbers):
    images = dataset(stain, channels=of_record)
    with LightDL(images, channels=of_loader, record="wsi", target="labels", **SIZE) as loader:
        x, _, chunks = next(loader)
    assert x.shape == (8, 2, 8, 8)
    for one, chunk, label in zip(x.numpy(), chunks, chunks.targets, strict=True):
        assert np.array_equal(one, crop(stain[1], chunk, numbers))
        a, b = chunk.location
        assert np.array_equal(np.squeeze(label), stain[3][b : b + 8, a : a + 8])


def test_windows_have_them(stain):
    images = dataset(stain)
    with (
        count_tiles() as counted,
        SlidingWindowDL(
            images, kernel_size=8, channels="CD8", record="wsi", batch_size=32
        ) as loader,
    ):
        found = {c.location: one for x, _, chunks in loader for one, c in zip(x.numpy(), chunks)}
    assert len(found) == 8 * 12
    for (a, b), one in found.items():
        assert np.array_equal(one, stain[1][2:3, b : b + 8, a : a + 8])
    assert set(counted.by_level) == {0}
    assert counted.tiles == (64 // 16) * (96 // 16)  # those of one channel, once


def test_models_see_them(stain):
    seen = []

    def mean(batch):
        seen.append(batch.shape[-1])
        return batch.mean(axis=(1, 2))

    found = daskdmed.heatmap(str(stain[0]), mean, kernel_size=16, channels=["PanCK", 0])
    blocks = stain[1][[3, 0]].reshape(2, 4, 16, 6, 16).mean(axis=(2, 4))
    assert np.allclose(np.asarray(found), blocks, atol=1e-4)
    assert set(seen) == {2}
    dense = daskdmed.predict(
        str(stain[0]), lambda b: b[..., 0].astype(np.float32), kernel_size=32, channels="CD3"
    )
    assert np.allclose(np.asarray(dense), stain[1][1], atol=1e-3)
    (scan,) = daskdmed.infer(
        dataset(stain), lambda b: b[..., :1].astype(np.float32), kernel_size=32, record="wsi",
        channels=["CD3"],
    )  # fmt: skip
    assert scan[0]["x"].shape[-1] == 1


def test_wrong_names_and_several_records_are_refused(stain):
    images = dataset(stain)
    with pytest.raises((UsageError, LoaderError), match=r"no channel 'CD4'.*'2 CD8'"):
        LightDL(images, channels="CD4", record="wsi", **SIZE)
    with pytest.raises(UsageError, match=r"say it of each, Record\(uri, channels="):
        LightDL(images, channels=[0], record=["wsi", "labels"], **SIZE)
    with pytest.raises(UsageError, match="names or numbers of channels"):
        daskdmed.heatmap(str(stain[0]), np.mean, kernel_size=16, channels=1.5)
    two = LightDL(
        dataset(stain, channels=["CD8"]), record=["wsi", "labels"], smallchunk_size=8,
        batch_size=4, bigchunk_size=32,
    )  # fmt: skip
    with two:
        assert next(two)[0].shape[1] == 2  # CD8 and the labels


def test_states_know_their_channels(stain):
    loader = LightDL(dataset(stain), channels=["CD8"], record="wsi", **SIZE)
    state = loader.state_dict()
    LightDL(dataset(stain), channels="CD8", record="wsi", **SIZE).load_state_dict(state)
    for other in (["CD3"], None):
        with pytest.raises(StateError):
            LightDL(dataset(stain), channels=other, record="wsi", **SIZE).load_state_dict(state)


def test_results_of_other_channels_are_not_gone_on_with(stain, tmp_path):
    def mean(batch):
        return batch.mean(axis=(1, 2, 3))

    out = tmp_path / "a.zarr"
    daskdmed.heatmap(str(stain[0]), mean, kernel_size=16, channels=[0], out=out)
    with pytest.raises(daskdmed.errors.StoreError):
        daskdmed.heatmap(str(stain[0]), mean, kernel_size=16, channels=[1], out=out, resume=True)


def test_labels_of_another_resolution_are_never_blended(stain):
    """A target with coarser pixels than the file has: the nearest, none between."""
    image = Record(stain[0], mpp=0.5)
    images = Dataset("d", [Patient("p", {"wsi": image, "labels": Record(stain[2])})])
    with LightDL(images, record="wsi", target="labels", target_mpp=1.0, **SIZE) as loader:
        _, _, chunks = next(loader)
    values = {int(v) for target in chunks.targets for v in np.unique(np.asarray(target))}
    assert values <= {0, 90, 180}
    assert len(values) == 3


def test_a_manifest_keeps_what_a_record_says_of_its_image(stain, tmp_path):
    said = {"channels": ["CD8", 0], "image": 0, "plane": "0", "color": None}
    images = dataset(stain, **said)
    for name in ("a.json", "a.csv"):
        images.to_manifest(tmp_path / name)
        again = Dataset.from_manifest(tmp_path / name)
        assert again["p"].records["wsi"] == images["p"].records["wsi"]
        assert again["p"].records["wsi"].open().channels == ("CD8", "DAPI")
    whole = tmp_path / "b.csv"
    whole.write_text(f"patient,record,uri,channels\np,wsi,{stain[0]},PanCK\n")
    assert Dataset.from_manifest(whole)["p"].records["wsi"].open().channels == ("PanCK",)
    with pytest.raises(UsageError, match="names or numbers of channels"):
        Record(stain[0], channels=1.5)
