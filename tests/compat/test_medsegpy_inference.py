"""Whole scans predicted by MedSegPy's loaders: equal to the model on each slice or patch, in its
place, with nothing held and nothing changed."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref

import dask
import dask.array as da
import numpy as np
import pytest
import torch
import zarr
from torch import nn

import daskdmed.cohort.slices
from daskdmed.compat.medsegpy.data import (
    DatasetCatalog,
    DefaultDataLoader,
    build_loader,
    compute_patches,
)
from daskdmed.errors import DatasetError, UsageError
from tests.compat.made import SHAPE, config, write


def four(x):
    """A model whose classes tell where they are: (..., channels) to (..., 4)."""
    return np.stack([x[..., 0], -x[..., 0], x.mean(-1), x.max(-1)], -1)


class Keras:
    """What has `predict_on_batch`, and knows whether it is called by one thread at a time."""

    def __init__(self, function=four):
        self.function, self.shapes = function, []
        self.inside = threading.Lock()

    def predict_on_batch(self, x):
        assert self.inside.acquire(blocking=False), "called by two at once"
        try:
            self.shapes.append(x.shape)
            return self.function(x)
        finally:
            self.inside.release()


def by_scan(made, found):
    """Pairs of `inference` by scan; what is handed on is checked on the way."""
    result = {}
    for inputs, outputs in found:
        scan = made.of(inputs)
        assert inputs["subject_id"] == scan[:7]
        np.testing.assert_array_equal(inputs["x"], made.images[scan])
        np.testing.assert_array_equal(outputs["y_true"], made.classes(scan))
        assert outputs["time_elapsed"] > 0
        result[scan] = outputs
    assert list(result) == sorted(made.images)
    return result


HOW = [
    {"batch_size": 4, "is_test": test, "shuffle": shuffle, "drop_last": drop}
    for test, shuffle, drop in ((False, True, True), (True, False, False))
]


@pytest.mark.parametrize("how", HOW)
def test_scans_of_slices(registered, how):
    loader, model = build_loader(config(), "slices", **how), Keras()
    with dask.config.set(num_workers=3):
        for scan, outputs in by_scan(registered, loader.inference(model)).items():
            assert isinstance(outputs["y_pred"], da.Array)
            np.testing.assert_array_equal(
                outputs["y_pred"], four(registered.images[scan][..., None])
            )
    assert {s[1:] for s in model.shapes} == {(*SHAPE[:2], 1)}
    assert max(s[0] for s in model.shapes) <= 4


def test_the_dicts_may_be_in_any_order(registered):
    dicts = DatasetCatalog.get("slices")
    np.random.default_rng(0).shuffle(dicts)
    found = by_scan(registered, DefaultDataLoader(config(), dicts).inference(Keras()))
    for scan, outputs in found.items():
        np.testing.assert_array_equal(outputs["y_pred"][..., 0], registered.images[scan])


@pytest.mark.parametrize(
    ("tag", "data"), [("S25dDataLoader", "slices"), ("N5dDataLoader", "volumes")]
)
def test_neighbours_lie_around_the_slice_that_is_predicted(registered, tag, data):
    cfg = config(TAG=tag, IMG_SIZE=(*SHAPE[:2], 5))
    loader = build_loader(cfg, data, **HOW[0])
    # of five slices that of the middle: not shifted by two
    model = Keras(lambda x: x)
    for scan, outputs in by_scan(registered, loader.inference(model)).items():
        image = registered.images[scan]
        padded = np.pad(image, ((0, 0), (0, 0), (2, 2)), "edge")
        wanted = np.stack([padded[:, :, i : i + SHAPE[2]] for i in range(5)], -1)
        np.testing.assert_array_equal(outputs["y_pred"], wanted)
        np.testing.assert_array_equal(outputs["y_pred"][..., 2], image)


@pytest.mark.parametrize("pad", [(), (1, 2, 1)])
@pytest.mark.parametrize("size", [(8, 8, 4, 1), (32, 8, 4, 1)])
def test_patches_lie_in_their_place_every_voxel_in_one(registered, pad, size):
    cfg = config(TAG="PatchDataLoader", IMG_SIZE=size, IMG_PAD_SIZE=pad)
    loader, model = build_loader(cfg, "volumes", **HOW[0]), Keras()
    for scan, outputs in by_scan(registered, loader.inference(model)).items():
        np.testing.assert_allclose(
            outputs["y_pred"], four(registered.images[scan][..., None]), rtol=1e-5, atol=1e-6
        )
    # what a patch is padded with is what loaders pad with
    assert {s[1:] for s in model.shapes} == {loader[0][0].shape[1:]} == {size}


def test_parts_of_planes_of_a_padded_scan(registered):
    size = {"IMG_SIZE": (8, 8, 3), "IMG_PAD_SIZE": (2, 3, 1), "IMG_STRIDE": (8, 4)}
    loader = build_loader(config(TAG="N5dDataLoader", **size), "volumes", **HOW[1])
    assert loader[0][0].shape == (4, 8, 8, 3)
    for scan, outputs in by_scan(registered, loader.inference(Keras(lambda x: x))).items():
        np.testing.assert_allclose(
            outputs["y_pred"][..., 1], registered.images[scan], rtol=1e-5, atol=1e-6
        )


def test_overlapping_patches_are_blended(registered):
    size, stride = (8, 8, 4), (4, 4, 3)
    cfg = config(TAG="PatchDataLoader", IMG_SIZE=(*size, 1), IMG_STRIDE=stride)
    loader = build_loader(cfg, "volumes", **HOW[1])

    def mean(x):  # the same everywhere in a patch
        return np.broadcast_to(x.mean((1, 2, 3, 4), keepdims=True), x.shape)

    for scan, outputs in by_scan(registered, loader.inference(mean, blend="constant")).items():
        total, count = np.zeros(SHAPE), np.zeros(SHAPE)
        for part, _ in compute_patches(SHAPE, size, strides=stride):
            total[part] += registered.images[scan][part].mean()
            count[part] += 1
        np.testing.assert_allclose(outputs["y_pred"][..., 0], total / count, atol=1e-5)


def test_slices_in_the_place_of_channels(registered):
    cfg = config(TAG="PatchDataLoader", IMG_SIZE=(*SHAPE[:2], 3))
    model = Keras(lambda x: x[..., None] * (1, 2, 3, 4))
    found = by_scan(registered, build_loader(cfg, "volumes", **HOW[0]).inference(model))
    for scan, outputs in found.items():
        np.testing.assert_allclose(
            outputs["y_pred"][..., 1], 2 * registered.images[scan], rtol=1e-6
        )
    assert {s[1:] for s in model.shapes} == {(*SHAPE[:2], 3)}


class Network(nn.Module):
    """Sees a neighbourhood, so that orientation and channels matter."""

    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x):
        assert not self.training
        return self.layer(x)


def test_torch_modules_get_channels_first_and_what_training_gets(registered):
    cfg = config(PREPROCESSING=["ZeroMeanNormalization"])
    loader = build_loader(cfg, "slices", 3, False, False, False)
    module = Network().train()
    found = by_scan(registered, loader.inference(module))
    assert module.training
    module.eval()
    slices = iter(np.concatenate([x for x, _ in loader]))
    for outputs in found.values():
        with torch.no_grad():
            each = [module(torch.from_numpy(next(slices)).movedim(-1, 0)[None]) for _ in range(7)]
        wanted = torch.stack([e[0].movedim(0, -1) for e in each], 2)
        np.testing.assert_allclose(outputs["y_pred"], wanted, atol=1e-5)


def test_what_is_flipped_is_flipped_back(registered):
    cfg = config(PREPROCESSING=["FlipTransform"], PREPROCESSING_ARGS=[{"axis": 0}])
    loader = build_loader(cfg, "slices", **HOW[0])
    module = Network()
    for outputs in itertools.islice(loader.inference(module), 1):
        flipped = torch.from_numpy(registered.images["9000000_V00"][::-1, :, 3].copy())
        with torch.no_grad():
            wanted = module.eval()(flipped[None, None])[0].movedim(0, -1).flip(0)
        np.testing.assert_allclose(outputs[1]["y_pred"][:, :, 3], wanted, atol=1e-5)
    cfg = config(PREPROCESSING=["CropTransform"])
    cfg.PREPROCESSING_ARGS = [{"coords0": (0, 0), "crop_size": (4, 4)}]
    with pytest.raises(UsageError, match="CropTransform moves voxels and cannot be undone"):
        next(build_loader(cfg, "slices", **HOW[0]).inference(Keras()))


def test_a_loader_is_left_as_it_was(registered):
    loader = build_loader(config(), "slices", **HOW[0])
    before, batch = list(loader._idxs), loader[1]
    left = loader.inference(Keras())
    next(left)
    left.close()
    assert (loader.num_scans(), list(loader._idxs)) == (3, before)
    np.testing.assert_array_equal(loader[1][0], batch[0])
    # two at a time, and training in between
    pairs = []
    for one, other in zip(loader.inference(Keras()), loader.inference(Keras()), strict=True):
        np.testing.assert_array_equal(loader[1][0], batch[0])
        assert one[0]["scan_id"] == other[0]["scan_id"]
        np.testing.assert_array_equal(one[1]["y_pred"], other[1]["y_pred"])
        pairs.append(one[0]["scan_id"])
    assert len(pairs) == 3


def test_a_scan_is_read_when_it_is_asked_for_and_each_file_once(registered, monkeypatch):
    opened = []
    read = daskdmed.cohort.slices._decode_hdf5
    monkeypatch.setattr(
        daskdmed.cohort.slices, "_decode_hdf5", lambda p, d: opened.append(p) or read(p, d)
    )
    loader = build_loader(config(), "slices", **HOW[0])
    found = loader.inference(Keras())
    assert not opened
    next(found)
    images = [p for p in opened if p.endswith(".im")]
    # of a scan all slices, the first also to learn what they are; of others that one
    assert sorted(images.count(p) for p in set(images)) == [1] * 8 + [2]
    later = [p for p in images if "9000000" not in p]
    assert sorted(p[-6:] for p in later) == ["001.im"] * 2
    # masks are read by whoever looks at them
    assert len(opened) - len(images) <= 1


def test_scans_without_masks(registered):
    dicts = [
        {k: v for k, v in d.items() if k != "sem_seg_file"} for d in DatasetCatalog.get("slices")
    ]
    loader = DefaultDataLoader(config(), dicts, batch_size=2, is_test=True)
    assert np.isnan(loader[0][1]).all()
    for inputs, outputs in loader.inference(Keras()):
        assert outputs["y_true"] is None
        np.testing.assert_array_equal(outputs["y_pred"][..., 0], inputs["x"])


def test_scans_of_different_extents_and_what_is_known_of_them(tmp_path):
    dicts = []
    for scan, shape in (("b", (6, 5)), ("a", (4, 9))):
        for z in (2, 1):
            write(tmp_path / f"{scan}{z}.im", data=np.full((*shape, 1), z, np.uint8))
            dicts.append(
                {"file_name": str(tmp_path / f"{scan}{z}.im"), "scan_id": scan, "slice_id": z,
                 "scan_spacing": (1, 2, 3)}
            )  # fmt: skip
    loader = DefaultDataLoader(config(), dicts)
    found = [(i["scan_id"], i["scan_spacing"], o["y_pred"]) for i, o in loader.inference(Keras())]
    assert [f[0] for f in found] == ["a", "b"]
    assert [f[2].shape for f in found] == [(4, 9, 2, 4), (6, 5, 2, 4)]
    assert found[0][1] == (1, 2, 3)
    # values as they are: nothing is scaled on the way
    np.testing.assert_array_equal(found[0][2][0, 0, :, 0], [1, 2])


def test_slices_of_several_channels(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 6, 5, 3), np.uint8)
    dicts = []
    for z, image in enumerate(images):
        write(tmp_path / f"{z}.im", data=image)
        dicts.append({"file_name": str(tmp_path / f"{z}.im"), "scan_id": "a", "slice_id": z})
    loader = DefaultDataLoader(config(), dicts, shuffle=False, batch_size=3)
    np.testing.assert_array_equal(loader[0][0], images)
    ((inputs, outputs),) = loader.inference(Keras(lambda x: x))
    for found in (inputs["x"], outputs["y_pred"]):
        np.testing.assert_array_equal(found, np.moveaxis(images, 0, 2))


def test_predictions_are_let_go(registered, monkeypatch):
    """However many scans there are, those of one or two are in memory."""
    made = []

    class Values(dict):
        """What a store holds; copies of a store share it."""

    def store(make=zarr.storage.MemoryStore):
        values = Values()
        made.append(weakref.ref(values))
        return make(values)

    monkeypatch.setattr(zarr.storage, "MemoryStore", store)
    dicts = [
        {**d, "scan_id": f"{d['scan_id']}-{copy}"}
        for copy in range(2)
        for d in DatasetCatalog.get("slices")
    ]
    counts = []
    for _, outputs in DefaultDataLoader(config(), dicts).inference(Keras()):
        assert outputs["y_pred"].sum().compute() != 0
        gc.collect()
        counts.append(sum(values() is not None for values in made))
    assert len(made) == len(counts) == 6
    assert 1 <= max(counts) <= 2


def test_what_infer_takes_is_taken(registered, tmp_path, capsys):
    loader = build_loader(config(), "slices", **HOW[0])
    keras = {"max_queue_size": 10, "workers": 4, "use_multiprocessing": True, "verbose": 0}
    _, outputs = next(loader.inference(Keras(), out=tmp_path, **keras))
    assert [p.name for p in tmp_path.iterdir()] == ["9000000_V00-Aug00"]
    assert "predict" not in capsys.readouterr().err
    next(loader.inference(Keras(), verbose=1))
    assert "predict" in capsys.readouterr().err
    np.testing.assert_array_equal(outputs["y_pred"][..., 0], registered.images["9000000_V00"])


def test_what_is_refused(registered):
    loader = build_loader(config(), "slices", **HOW[0])
    for options, told in (
        ({"steps": 3}, "in the middle of a scan"),
        ({"kernel_size": 3}, "kernel_size of infer is said by the configuration"),
    ):
        with pytest.raises(UsageError, match=told):
            loader.inference(Keras(), **options)
    with pytest.raises(UsageError, match="unknown option"):
        next(loader.inference(Keras(), worker=3))
    for model in (None, Keras):
        with pytest.raises(UsageError, match="a model is a torch"):
            loader.inference(model)
    with pytest.raises(DatasetError, match="dict 0 has no scan_id"):
        DefaultDataLoader(config(), [{"file_name": "x"}])
