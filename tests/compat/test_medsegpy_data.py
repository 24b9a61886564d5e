"""MedSegPy's catalogues and loaders: batches are what the files hold, and what MedSegPy gets
wrong is right."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import daskdmed.cohort.slices
import daskdmed.images.volumes.hdf5
from daskdmed.compat.medsegpy.config import Config, UNetConfig
from daskdmed.compat.medsegpy.data import (
    DATA_LOADER_REGISTRY,
    DataLoader,
    DatasetCatalog,
    DefaultDataLoader,
    MetadataCatalog,
    N5dDataLoader,
    PatchDataLoader,
    S25dDataLoader,
    add_background_labels,
    build_loader,
    collect_mask,
    compute_patches,
    filter_dataset,
    get_sem_seg_dataset_dicts,
    register_oai,
)
from daskdmed.errors import DatasetError, GeometryError, UsageError
from tests.compat.made import SHAPE, config, write

HOW = {"batch_size": 4, "is_test": False, "shuffle": False, "drop_last": False}


def batches(loader):
    return [loader[i] for i in range(len(loader))]


# ------------------------------------------------------------------------- configurations
def test_keys_are_attributes_and_unknown_ones_are_refused_by_name():
    cfg = UNetConfig(SEED=3)
    cfg.TRAIN_DATASET = "mine"
    assert (cfg.SEED, cfg["TRAIN_DATASET"], cfg.MODEL_NAME) == (3, "mine", "UNet2D")
    assert (Config().DROP_FACTOR, cfg.INITIAL_LEARNING_RATE) == (0.7, 2e-2)
    with pytest.raises(UsageError, match="no key 'TRAIN_DATASETS'; is 'TRAIN_DATASET' meant"):
        cfg.TRAIN_DATASETS = "x"
    with pytest.raises(UsageError, match="no key 'CATEGORY'"):
        UNetConfig(CATEGORY=[1])
    with pytest.raises(AttributeError, match="no key 'SEEED'; is 'SEED' meant"):
        _ = cfg.SEEED
    cfg.merge_from_list(["TAG", "PatchDataLoader", "SEED", 0])
    assert cfg.to_dict()["TAG"] == "PatchDataLoader"
    assert "SEED: 0" in cfg.summary()
    with pytest.raises(UsageError, match="pairs, got 1 items"):
        cfg.merge_from_list(["TAG"])


def test_keys_that_nothing_acts_on_say_so(caplog):
    cfg = Config()
    cfg.N_EPOCHS = 3
    assert not caplog.records
    cfg.USE_AMSGRAD = True
    assert "USE_AMSGRAD is kept, and nothing here acts on it" in caplog.text
    assert cfg.USE_AMSGRAD


# ----------------------------------------------------------------------------- catalogues
def test_importing_registers_nothing_and_needs_no_torch():
    names = "config", "losses", "data", "data.data_loader", "evaluation.build"
    imports = ", ".join(f"daskdmed.compat.medsegpy.{n}" for n in names)
    script = (
        f"import sys, {imports}; from daskdmed.compat.medsegpy.data import DatasetCatalog as d;"
        "print(d.list(), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "False"]


def test_a_name_is_registered_once_and_asked_anew(catalogs):
    calls = []
    DatasetCatalog.register("mine", lambda: calls.append(1) or [{"scan_id": "a"}])
    assert DatasetCatalog.get("mine") == DatasetCatalog.get("mine") == [{"scan_id": "a"}]
    assert len(calls) == 2
    with pytest.raises(UsageError, match="'mine' is registered already"):
        DatasetCatalog.register("mine", list)
    with pytest.raises(UsageError, match="with a function that gives its dicts, got list"):
        DatasetCatalog.register("other", [])
    with pytest.raises(DatasetError, match="no dataset 'mime'; is 'mine' meant"):
        DatasetCatalog.get("mime")
    DatasetCatalog.register("odd", lambda: "abc")
    with pytest.raises(DatasetError, match="'odd' gives no list of dicts"):
        DatasetCatalog.get("odd")


def test_metadata_are_one_object_and_do_not_change(catalogs):
    known = MetadataCatalog.get("mine").set(spacing=(1, 2, 3), categories={"a": "x", "b": "y"})
    assert MetadataCatalog.get("mine") is known.set(spacing=(1, 2, 3))
    assert known.get("colors", 5) == 5
    assert known.of_task("categories", "b") == "y"
    assert known.as_dict()["name"] == "mine"
    with pytest.raises(UsageError, match=r"'spacing' of dataset 'mine' is \(1, 2, 3\) already"):
        known.spacing = (1, 1, 1)
    with pytest.raises(AttributeError, match="nothing is known of 'spacings'"):
        _ = known.spacings


def test_oai_slices_and_scans(registered):
    dicts = DatasetCatalog.get("slices")
    assert len(dicts) == 3 * SHAPE[2]
    assert {k: v for k, v in dicts[1].items() if "file" not in k} == {
        "scan_id": "9000000_V00-Aug00",
        "subject_id": "9000000",
        "time_point": 0,
        "slice_id": 2,
        "scan_num_slices": SHAPE[2],
    }
    assert dicts[1]["sem_seg_file"].endswith("9000000_V00-Aug00_002.seg")
    whole = DatasetCatalog.get("volumes")
    assert [d["scan_id"] for d in whole] == list(registered.images)
    assert whole[0]["image_size"] == SHAPE
    assert MetadataCatalog.get("slices").spacing == (0.3125, 0.3125, 0.7)
    assert MetadataCatalog.get("slices").categories[1] == "tibial cartilage"


def test_oai_folders_that_are_none(tmp_path, made, catalogs):
    register_oai("none", tmp_path / "none")
    with pytest.raises(DatasetError, match="there is no such folder"):
        DatasetCatalog.get("none")
    register_oai("empty", tmp_path)
    with pytest.raises(DatasetError, match="no OAI files; wanted are slices such as 9000099_V00"):
        DatasetCatalog.get("empty")
    for number in (1, 2, 4):
        write(tmp_path / f"9000001_V00-Aug00_{number:03d}.im", data=np.zeros((2, 2, 1)))
    with pytest.raises(DatasetError, match="'9000001_V00-Aug00' has no slice 3"):
        DatasetCatalog.get("empty")


def test_filtering():
    dicts = [{"id": 1, "site": "a"}, {"id": 2, "site": "b"}, {"id": 3}]

    def ids(*arguments, **options):
        return [d["id"] for d in filter_dataset(dicts, *arguments, **options)]

    assert ids("site", ["a"]) == ids("site", "a") == [1]
    assert ids("id", 2) == [2]
    # what is there and not accepted is left out, missing ones are kept or not
    assert ids("site", ["a"], include_missing=True) == [1, 3]


def test_dicts_of_several_datasets_without_those_that_have_no_masks(catalogs):
    DatasetCatalog.register("a", lambda: [{"scan_id": 1, "sem_seg_file": "x"}, {"scan_id": 2}])
    DatasetCatalog.register("b", lambda: [{"scan_id": 3}])
    assert [d["scan_id"] for d in get_sem_seg_dataset_dicts(["a", "b"])] == [1]
    assert len(get_sem_seg_dataset_dicts(["a", "b"], filter_empty=False)) == 3
    with pytest.raises(DatasetError, match="1 dicts, none with masks"):
        get_sem_seg_dataset_dicts("b")


# ---------------------------------------------------------------------- patches and masks
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_voxel_lies_in_a_patch(data):
    axes = data.draw(st.integers(1, 3))
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * axes))
    patch = data.draw(st.tuples(*[st.integers(1, 7)] * axes))
    pad = tuple(data.draw(st.integers(0, p - 1)) for p in patch)
    strides = tuple(data.draw(st.integers(1, p)) for p in patch)
    image = np.arange(1, np.prod(shape) + 1).reshape(shape)
    seen = np.zeros(shape, int)
    for part, around in compute_patches(shape, patch, pad, strides):
        seen[part] += 1
        inside = image[part]
        whole = inside if around is None else np.pad(inside, around)
        assert whole.shape == patch
    assert seen.min() >= 1
    # and every one that is added: patches reach out as far as there are any
    arounds = [
        around or ((0, 0),) * axes for _, around in compute_patches(shape, patch, pad, strides)
    ]
    for axis, (n, p) in enumerate(zip(shape, pad)):
        if n + 2 * p >= patch[axis]:
            assert {max(a[axis][end] for a in arounds) for end in (0, 1)} == {p}


def test_patches_by_hand(caplog):
    # neither half of the voxels is lost, nor is the stride 1
    assert len(compute_patches((10,) * 3, (4,) * 3)) == 27
    assert compute_patches((10,), 4) == (
        ((slice(0, 4),), None),
        ((slice(4, 8),), None),
        ((slice(6, 10),), None),
    )
    assert compute_patches((5, 6), (-1, 3)) == tuple(
        ((slice(0, 5), slice(x, x + 3)), None) for x in (0, 3)
    )
    assert compute_patches((3,), 6) == (((slice(0, 3),), ((1, 2),)),)
    with pytest.raises(GeometryError, match=r"pad_size=\(4,\) must be .* smaller than the patch"):
        compute_patches((9,), 4, 4)
    assert not caplog.records
    assert len(compute_patches((10,), 2, strides=4)) == 3
    assert "leave voxels out" in caplog.text


def test_masks_are_collected_and_a_voxel_of_two_counts_once():
    masks = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(collect_mask(masks, (0, (1, 2))), [[1, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(collect_mask(masks * 7, ()), masks)
    np.testing.assert_array_equal(add_background_labels(masks)[:, 0], [0, 0, 1])
    np.testing.assert_array_equal(add_background_labels(masks, True)[:, -1], [0, 0, 1])
    with pytest.raises(GeometryError, match=r"channels \[3\]"):
        collect_mask(masks, (0, 3))


# ------------------------------------------------------------------------- slices in files
def test_batches_of_slices_are_the_files(registered):
    loader = build_loader(config(), "slices", **HOW)
    assert isinstance(loader, DefaultDataLoader)
    assert (len(loader), loader.num_scans()) == (6, 3)
    x, y = (np.concatenate(parts) for parts in zip(*batches(loader)))
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    wanted = np.concatenate([np.moveaxis(v, 2, 0) for v in registered.images.values()])
    np.testing.assert_array_equal(x[..., 0], wanted)
    masks = np.concatenate([np.moveaxis(registered.classes(s), 2, 0) for s in registered.images])
    np.testing.assert_array_equal(y, masks)


def test_slices_are_in_order_whatever_the_dicts_are(registered):
    dicts = DatasetCatalog.get("slices")
    np.random.default_rng(1).shuffle(dicts)
    loader = DefaultDataLoader(config(), dicts, shuffle=False, batch_size=SHAPE[2])
    scans = {}
    for number, (x, _) in enumerate(loader):
        scans[loader._scans[number].scan_id.removesuffix("-Aug00")] = np.moveaxis(x[..., 0], 0, 2)
    for scan, volume in registered.images.items():
        np.testing.assert_array_equal(scans[scan], volume)


def test_background_test_batches_and_files_that_give_every_mask(registered, caplog):
    loader = build_loader(
        config(CATEGORIES=(), INCLUDE_BACKGROUND=True), "slices", 2, True, False, False
    )
    assert "CATEGORIES is empty" in caplog.text
    x, y, raw = loader[0]
    np.testing.assert_array_equal(x, raw)
    masks = registered.masks["9000000_V00"][:, :, 0]
    np.testing.assert_array_equal(y[0, ..., 1:], masks)
    np.testing.assert_array_equal(y[0, ..., 0], ~masks.any(-1))


def test_lengths_and_numbers(registered):
    for test, drop, length in itertools.product((False, True), (False, True), (5, 6)):
        loader = build_loader(config(), "slices", 4, test, False, drop)
        # a test's last batch is dropped as well, when that is asked for
        assert len(loader) == (5 if drop else 6), length
    assert len(loader[-1][0]) == 4
    assert repr(loader) == f"<DefaultDataLoader: {loader.num_scans()} scans, 5 batches of 4>"
    assert len(build_loader(config(), "slices", **HOW)[-1][0]) == 1
    with pytest.raises(IndexError, match="no batch 5 of 5"):
        loader[5]
    with pytest.raises(UsageError, match="batch_size must be an integer >= 1"):
        build_loader(config(), "slices", 0, False, False, False)


def test_epochs_are_shuffled_by_the_seed_alone(registered, caplog):
    def first(**values):
        return build_loader(config(**values), "slices", 4, False, True, False)

    # a seed of 0 is one
    one, same, other = first(SEED=0), first(SEED=0), first(SEED=1)
    assert list(one._idxs) == list(same._idxs) != list(other._idxs)
    np.testing.assert_array_equal(one[2][0], same[2][0])
    before = list(one._idxs)
    assert sorted(before) == list(range(21))
    one.on_epoch_end()
    assert list(one._idxs) != before
    same.on_epoch_end()
    assert list(one._idxs) == list(same._idxs)
    assert not caplog.records
    caplog.set_level(logging.INFO, "daskdmed.compat")
    free = first(SEED=None)
    # what it was shuffled with can be given again
    assert f"SEED={free.seed}" in caplog.text
    assert list(first(SEED=free.seed)._idxs) == list(free._idxs)


def test_preloaded_files_are_read_once(registered, monkeypatch):
    opened = []
    read = daskdmed.cohort.slices._decode_hdf5
    monkeypatch.setattr(
        daskdmed.cohort.slices, "_decode_hdf5", lambda p, d: opened.append(p) or read(p, d)
    )
    loader = build_loader(config(PRELOAD_DATA=True), "slices", 4, False, True, False)
    wanted = batches(loader)
    # the first slice of an image and of its masks also says what slices are
    assert len(opened) == 2 * (3 * SHAPE[2] + 3)
    assert len(set(opened)) == 2 * 3 * SHAPE[2]
    for (x, _), (again, _) in zip(wanted, batches(loader)):
        np.testing.assert_array_equal(x, again)
    assert len(opened) == 2 * (3 * SHAPE[2] + 3)
    loader.clear_cached_data()
    np.testing.assert_array_equal(loader[0][0], wanted[0][0])
    assert len(opened) > 2 * (3 * SHAPE[2] + 3)


@pytest.mark.parametrize(
    ("mode", "ends"), [("edge", "edge"), ("reflect", "reflect"), ("constant", "constant")]
)
def test_slices_among_their_neighbours(registered, mode, ends):
    cfg = config(TAG="S25dDataLoader", IMG_SIZE=(*SHAPE[:2], 5), IMG_PAD_MODE=mode)
    loader = build_loader(cfg, "slices", SHAPE[2], False, False, False)
    assert isinstance(loader, S25dDataLoader)
    for (x, y), scan in zip(loader, registered.images):
        padded = np.pad(registered.images[scan], ((0, 0), (0, 0), (2, 2)), ends)
        for z in range(SHAPE[2]):
            np.testing.assert_array_equal(x[z], padded[:, :, z : z + 5])
            np.testing.assert_array_equal(y[z], registered.classes(scan)[:, :, z])


# ------------------------------------------------------------------------- whole scans
def test_patches_are_parts_of_the_scans(registered):
    cfg = config(TAG="PatchDataLoader", IMG_SIZE=(8, 8, 4, 1), IMG_STRIDE=(8, 4, 3))
    loader = build_loader(cfg, "volumes", **{**HOW, "batch_size": 1, "is_test": True})
    assert isinstance(loader, PatchDataLoader)
    places = compute_patches(SHAPE, (8, 8, 4), strides=(8, 4, 3))
    scans = [(s, p) for s in registered.images for p, _ in places]
    assert len(loader) == len(scans)
    for (x, y, raw), (scan, part) in zip(loader, scans):
        np.testing.assert_array_equal(x[0, ..., 0], registered.images[scan][part])
        np.testing.assert_array_equal(y[0], registered.classes(scan)[part])
        np.testing.assert_array_equal(x, raw)


def test_extents_that_a_patch_may_have(registered):
    def shapes(size):
        cfg = config(TAG="PatchDataLoader", IMG_SIZE=size)
        return [a.shape[1:] for a in build_loader(cfg, "volumes", **HOW)[0]]

    assert shapes((8, 8)) == shapes((8, 8, 1)) == [(8, 8, 1), (8, 8, 4)]
    assert shapes((8, -1, 3)) == [(8, 12, 3), (8, 12, 3, 4)]
    assert shapes((8, 8, 3, 1)) == [(8, 8, 3, 1), (8, 8, 3, 4)]
    with pytest.raises(GeometryError, match="IMG_SIZE=.8,. is .rows, columns"):
        shapes((8,))


@pytest.mark.parametrize("mode", ["edge", "warp", "symmetric"])
def test_patches_of_a_padded_scan(registered, mode):
    cfg = config(
        TAG="PatchDataLoader", IMG_SIZE=(8, 8, 4, 1), IMG_PAD_SIZE=(2, 3, 1), IMG_PAD_MODE=mode
    )
    loader = build_loader(cfg, "volumes", **{**HOW, "batch_size": 1})
    image = next(iter(registered.images.values()))
    ends = ((2, 2), (3, 3), (1, 1))
    places = compute_patches(SHAPE, (8, 8, 4), (2, 3, 1))
    seen = np.zeros([n + 2 * p for n, p in zip(SHAPE, (2, 3, 1))])
    for (x, _), (part, pad) in zip(loader, places):
        before = [0] * 3 if pad is None else [a for a, _ in pad]
        at = [p.start + e - b for p, (e, _), b in zip(part, ends, before)]
        own = tuple(slice(a, a + n) for a, n in zip(at, (8, 8, 4)))
        seen[own] += 1
        if mode != "warp":  # of what a patch has of the scan, numpy would wrap around all of it
            wanted = np.pad(image, ends, mode)[own]
            np.testing.assert_array_equal(x[0, ..., 0], wanted)
    assert seen.min() >= 1


def test_nothing_is_held_for_each_patch():
    # 17 million patches of a file that nobody has to have
    scan = {"file_name": "none.h5", "scan_id": "a", "image_size": (4096,) * 3}
    cfg = config(IMG_SIZE=(16, 16, 16, 1))
    loader = PatchDataLoader(cfg, [scan], shuffle=False, batch_size=8)
    assert len(loader) == 256**3 // 8
    assert loader._elements(-1) == list(range(256**3 - 8, 256**3))


def test_a_file_stays_open_for_all_its_patches(registered, monkeypatch):
    opened = []
    module = daskdmed.images.volumes.hdf5
    real = module.open_unlocked
    monkeypatch.setattr(module, "open_unlocked", lambda p: opened.append(p) or real(p))
    cfg = config(TAG="PatchDataLoader", IMG_SIZE=(4, 4, 4, 1))
    loader = build_loader(cfg, "volumes", 4, False, True, False)
    batches(loader)
    # for its image and its masks, not for each of 24 patches
    assert max(opened.count(path) for path in opened) <= 2


def test_all_scans_in_one_file(registered):
    dicts = [
        {"scan_id": s, "file_name": s, "sem_seg_file": s, "singlefile_path": registered.single}
        for s in registered.images
    ]
    cfg = config(IMG_SIZE=(8, 8, 4, 1))
    one = PatchDataLoader(cfg, dicts, shuffle=False, use_singlefile=True, batch_size=4)
    many = PatchDataLoader(cfg, DatasetCatalog.get("volumes"), shuffle=False, batch_size=4)
    for mine, theirs in zip(one, many, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_planes_of_scans_among_their_neighbours(registered):
    size = (*SHAPE[:2], 3)
    planes = build_loader(config(TAG="N5dDataLoader", IMG_SIZE=size), "volumes", **HOW)
    slices = build_loader(config(TAG="S25dDataLoader", IMG_SIZE=size), "slices", **HOW)
    assert isinstance(planes, N5dDataLoader)
    for mine, theirs in zip(planes, slices, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])
    with pytest.raises(GeometryError, match="an odd number"):
        build_loader(config(TAG="N5dDataLoader", IMG_SIZE=(8, 8, 4)), "volumes", **HOW)


# ------------------------------------------------------------------------- what is refused
def test_a_loader_needs_no_more_than_its_dicts(made):
    # nothing else of a configuration is needed, and no name is registered
    file = str(made.slices / "9000000_V00-Aug00_001.im")
    loader = DefaultDataLoader(Config(), [{"file_name": file, "scan_id": 1}])
    x, y = loader[0]
    assert x.shape == (1, *SHAPE[:2], 1)
    assert np.isnan(y).all()


def test_loaders_by_name(registered, caplog):
    with pytest.raises(UsageError, match="no data loader 'DefaultDataloader'; is 'DefaultDataL"):
        build_loader(config(TAG="DefaultDataloader"), "slices", **HOW)
    assert isinstance(build_loader(config(TAG="oai_2d"), "slices", **HOW), DefaultDataLoader)
    assert "TAG 'oai_2d' is now called 'DefaultDataLoader'" in caplog.text
    with pytest.raises(UsageError, match="a data loader 'PatchDataLoader' is registered already"):
        DATA_LOADER_REGISTRY.register()(type("PatchDataLoader", (), {}))


def test_a_loader_of_ones_own(registered, monkeypatch):
    monkeypatch.setattr(DATA_LOADER_REGISTRY, "_classes", {**DATA_LOADER_REGISTRY._classes})

    @DATA_LOADER_REGISTRY.register()
    class Names(DataLoader):
        def __getitem__(self, idx):
            return [self._dataset_dicts[i]["slice_id"] for i in self._elements(idx)]

        def inference(self, model, **kwargs):
            return iter(())

    loader = build_loader(config(TAG="Names"), "slices", 5, False, False, True)
    assert (len(loader), loader[0], loader.num_scans()) == (4, [1, 2, 3, 4, 5], 3)
    with pytest.raises(TypeError, match="abstract"):
        DataLoader(config(), [])


def test_dicts_that_make_no_scan(made):
    def dict_of(number, **more):
        name = str(made.slices / f"9000000_V00-Aug00_{number:03d}.im")
        return {"file_name": name, "scan_id": "a", "slice_id": number, **more}

    def loader(*dicts, kind=DefaultDataLoader):
        return kind(config(), dicts)[0]

    with pytest.raises(DatasetError, match="there are no dicts"):
        loader()
    with pytest.raises(DatasetError, match="dict 0 has no scan_id"):
        loader({"file_name": "x"})
    with pytest.raises(DatasetError, match="slice_id 1 is there twice"):
        loader(dict_of(1), dict_of(1))
    with pytest.raises(DatasetError, match="1 of 2 slices have no slice_id"):
        loader(dict_of(1), {"file_name": "x", "scan_id": "a"})
    with pytest.raises(DatasetError, match="has masks of 1 of 2 slices, not of"):
        loader(dict_of(1), dict_of(2, sem_seg_file="x"))
    with pytest.raises(DatasetError, match="a dict has no 'file_name'"):
        loader({"scan_id": "a"})
    with pytest.raises(DatasetError, match="2 dicts; a loader of whole scans takes one"):
        loader(dict_of(1), dict_of(2), kind=PatchDataLoader)
    with pytest.raises(UsageError, match="IMG_PAD_MODE='wrapp' is one of constant"):
        DefaultDataLoader(config(IMG_PAD_MODE="wrapp"), [dict_of(1)])


def test_sizes_that_do_not_fit(made, tmp_path):
    path = made.volumes / "9000000_V00.h5"
    write(tmp_path / "a.h5", volume=np.zeros((4, 5, 6)), seg=np.zeros((4, 5, 7, 2)))
    whole = {"file_name": str(path), "scan_id": "a", "image_size": (16, 12, 8)}
    with pytest.raises(GeometryError, match=r"is \(16, 12, 7\), its dict says image_size=.16, 12"):
        PatchDataLoader(config(IMG_SIZE=(8, 8, 8, 1)), [whole])[0]
    odd = {"file_name": str(tmp_path / "a.h5"), "sem_seg_file": str(tmp_path / "a.h5")}
    with pytest.raises(GeometryError, match=r"the masks are \(4, 5, 7\), the image \(4, 5, 6\)"):
        PatchDataLoader(config(IMG_SIZE=(4, 5)), [odd])[0]
    write(tmp_path / "b.im", data=np.zeros((3, 3, 1)))
    slices = [
        {"file_name": str(made.slices / "9000000_V00-Aug00_001.im"), "scan_id": "a"},
        {"file_name": str(tmp_path / "b.im"), "scan_id": "b"},
    ]
    with pytest.raises(GeometryError, match="images of a batch have different shapes"):
        DefaultDataLoader(config(), slices, batch_size=2)[0]
