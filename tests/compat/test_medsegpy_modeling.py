"""MedSegPy's training verbs over torch: they learn, report, and refuse what teaches nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from daskdmed import events
from daskdmed.compat.medsegpy import losses
from daskdmed.compat.medsegpy.config import UNet3DConfig
from daskdmed.compat.medsegpy.data import DatasetCatalog, DefaultDataLoader, build_loader
from daskdmed.compat.medsegpy.modeling import Model, UNet, get_model
from daskdmed.errors import ImageNotFoundError, UsageError
from tests.compat.made import SHAPE, config

CFG = {"INITIAL_LEARNING_RATE": 3e-2}


@pytest.fixture(autouse=True)
def one_thread():
    """Networks as small as these take longer with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loader(registered):
    return build_loader(config(**CFG), "slices", 5, False, True, True)


def model_of(cfg=None):
    torch.manual_seed(0)
    return get_model(cfg or config(**CFG), device="cpu")


# ------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("extent", [(16, 12), (33, 7), (16, 12, 7), (9, 5, 2)])
def test_a_unet_gives_the_extent_of_its_images(extent):
    net = UNet(2, 3, (4, 4, 4), extent, "softmax").eval()
    with torch.no_grad():
        found = net(torch.rand(2, 2, *extent))
    assert found.shape == (2, 3, *extent)
    torch.testing.assert_close(found.sum(1), torch.ones(2, *extent))
    # two slices are not halved
    assert net.multiple == ((4,) * len(extent) if 2 not in extent else (4, 4, 1))


def test_networks_of_configurations(registered, caplog):
    net = get_model(config(INCLUDE_BACKGROUND=True), device="cpu").module
    assert (net.last.out_channels, net.activation, net.multiple) == (5, "sigmoid", (2, 2))
    cfg = UNet3DConfig(CATEGORIES=[0], DEPTH=2, NUM_FILTERS=[2, 2], IMG_SIZE=(8, 8, 4, 1))
    found = get_model(cfg, device="cpu").predict_on_batch(np.zeros((1, 8, 8, 4, 1)))
    assert found.shape == (1, 8, 8, 4, 1)
    # the files say how many masks there are
    cfg = config(CATEGORIES=(), TRAIN_DATASET="slices", LOSS=losses.WEIGHTED_CROSS_ENTROPY_LOSS)
    assert get_model(cfg, device="cpu").module.last.out_channels == 6
    cfg = config(CATEGORIES=(), TRAIN_DATASET="volumes", TAG="N5dDataLoader")
    assert get_model(cfg, device="cpu").module.last.out_channels == 6
    for wrong, told in (
        ({"MODEL_NAME": "segnet_2d"}, "MODEL_NAME='segnet_2d': built here are UNet2D"),
        ({"IMG_SIZE": (8, 8)}, "3 numbers"),
        ({"DEPTH": 3}, "NUM_FILTERS has 2 numbers, cfg.DEPTH is 3"),
        ({"CATEGORIES": ()}, "how many classes are there"),
    ):
        with pytest.raises(UsageError, match=told):
            get_model(config(**wrong))


# ------------------------------------------------------------------------------- training
def test_it_learns_and_says_how_far(loader, capsys):
    seen = []
    stop = events.subscribe(seen.append)
    model = model_of()
    model.compile(metrics=["dice", "accuracy"])
    before = model.evaluate_generator(loader)
    history = model.fit_generator(loader, validation_data=loader, epochs=3)
    stop()
    assert set(history.history) == {
        f"{v}{n}" for v in ("", "val_") for n in ("loss", "dice", "accuracy")
    }
    assert history.epoch == list(range(3))
    assert history.history["loss"][-1] < history.history["loss"][0] < before["loss"]
    after = model.evaluate_generator(loader)
    assert after["loss"] < before["loss"] - 0.1
    assert after["dice"] > before["dice"]
    # a batch of 4, in training and in validation, of 3 epochs
    mine = [e for e in seen if getattr(e, "name", "") == "fit"]
    assert sum(isinstance(e, events.BlockDone) for e in mine) == 24
    assert "24/24" in capsys.readouterr().err
    assert model.fit_generator(loader, verbose=0) is not None
    assert capsys.readouterr().err == ""


def test_what_is_learnt_depends_on_no_thread(registered):
    def trained(**options):
        loader = build_loader(config(**CFG), "slices", 5, False, True, True)
        model = model_of()
        model.compile()
        return model.fit_generator(loader, epochs=2, verbose=0, **options).history["loss"]

    assert trained(workers=0) == trained(workers=3, max_queue_size=2) == trained()


def test_every_epoch_is_shuffled_anew(loader):
    seen = []

    class Watched:
        def __len__(self):
            return len(loader)

        def __getitem__(self, i):
            seen.append(i)
            return loader[i]

        def on_epoch_end(self):
            seen.append("end")
            loader.on_epoch_end()

    model = model_of()
    model.compile()
    before = list(loader._idxs)
    model.fit_generator(Watched(), epochs=2, workers=0, verbose=0)
    assert seen == [0, 1, 2, 3, "end"] * 2
    assert list(loader._idxs) != before


def test_optimizers_losses_and_metrics_of_ones_own(loader):
    x, y = loader[0]
    calls = {}

    def first(y_true, y_pred):  # as keras calls it
        calls["keras"] = (tuple(y_true.shape), tuple(y_pred.shape))
        return ((y_true - y_pred) ** 2).mean((1, 2))

    class Criterion(nn.Module):  # as torch does
        def forward(self, prediction, truth):
            calls["torch"] = (tuple(prediction.shape), float(truth.sum()))
            return nn.functional.binary_cross_entropy(prediction, truth)

    model = model_of()
    model.compile(lambda p: torch.optim.SGD(p, 0.1), Criterion(), [first])
    logs = model.evaluate_generator([(x, y)])
    assert calls == {"keras": (y.shape,) * 2, "torch": ((5, 4, *SHAPE[:2]), y.sum())}
    found = model.predict_on_batch(x)
    assert abs(logs["first"] - ((found - y) ** 2).mean()) < 1e-5
    model.compile(torch.optim.SGD(model.module.parameters(), 0.1), "mse", ["Dice"])
    assert isinstance(model.optimizer, torch.optim.SGD)
    for arguments, told in (
        (("adma",), "no optimizer 'adma'; is 'adam' meant"),
        ((3,), "an optimizer is a name"),
        (("adam", "dise"), "no loss 'dise'; is 'dice' meant"),
        (("adam", "dice", ["dices"]), "no metric 'dices'; is 'dice' meant"),
        (("adam", "dice", [3]), "a metric is a name or a function"),
    ):
        with pytest.raises(UsageError, match=told):
            model.compile(*arguments)


def test_callbacks_and_an_early_end(loader):
    told = []

    class Stopper:
        def set_model(self, model):
            self.model = model

        def on_train_end(self):
            told.append("end")

        def on_epoch_end(self, epoch, logs):
            self.model.stop_training = epoch == 4

    model = model_of()
    model.compile()
    history = model.fit_generator(
        loader, 1, 9, verbose=0, initial_epoch=3,
        callbacks=[Stopper(), lambda epoch, logs: told.append((epoch, set(logs)))],
    )  # fmt: skip
    assert history.epoch == [3, 4]
    assert told == [(3, {"loss"}), (4, {"loss"}), "end"]


def test_iterators_are_loaders_with_a_number_of_steps(loader):
    def endless():
        while True:
            yield from loader

    model = model_of()
    model.compile()
    history = model.fit_generator(endless(), 6, 2, verbose=0)
    assert len(history.history["loss"]) == 2
    with pytest.raises(UsageError, match="an iterator with a number of steps"):
        model.fit_generator(endless())
    with pytest.raises(UsageError, match="the iterator of batches has ended"):
        model.fit_generator(iter([]), 3, verbose=0)
    with pytest.raises(UsageError, match="the loader has no batches: with drop_last"):
        model.fit_generator([], verbose=0)


def test_what_cannot_be_learnt_from(loader, registered):
    model = model_of()
    with pytest.raises(UsageError, match="say how to train first"):
        model.fit_generator(loader)
    with pytest.raises(UsageError, match="say what the loss is"):
        model.evaluate_generator(loader)
    model.compile()
    with pytest.raises(UsageError, match="batches are made by threads"):
        model.fit_generator(loader, use_multiprocessing=True)
    dicts = [{"file_name": d["file_name"], "scan_id": "a", "slice_id": d["slice_id"]}
             for d in DatasetCatalog.get("slices")[:2]]  # fmt: skip
    with pytest.raises(UsageError, match="a batch has no masks"):
        model.fit_generator(DefaultDataLoader(config(), dicts), verbose=0)
    with pytest.raises(UsageError, match=r"gives \(5, 4, 16, 12\), the masks are \(5, 5, 16, 12\)"):
        background = config(INCLUDE_BACKGROUND=True)
        model.fit_generator(build_loader(background, "slices", 5, False, True, True), verbose=0)
    with pytest.raises(UsageError, match="a batch for training is"):
        model.fit_generator([np.zeros((1, 4, 4, 1))], verbose=0)
    with pytest.raises(UsageError, match=r"made of a torch.nn.Module, got function"):
        Model(lambda x: x)


# ----------------------------------------------------------------------------- prediction
def test_predictions_and_batches_of_them(loader):
    model = model_of()
    x, _ = loader[0]
    found = model.predict_on_batch(x)
    with torch.no_grad():
        wanted = model.module.eval()(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    every = list(model.inference_generator(loader))
    assert [len(b) for b in every] == [3] * len(loader)
    for i, (image, masks, predicted) in enumerate(every):
        np.testing.assert_array_equal(image, loader[i][0])
        np.testing.assert_array_equal(masks, loader[i][1])
        np.testing.assert_allclose(predicted, model.predict_on_batch(image), atol=1e-6)


def test_volumes_whose_slices_stand_in_the_place_of_channels(registered):
    cfg = config(TAG="PatchDataLoader", IMG_SIZE=(8, 8, 4), **CFG)
    loader = build_loader(cfg, "volumes", 2, False, True, True)
    model = Model(UNet(1, 4, (2, 2), (8, 8, 4)), cfg, device="cpu")
    model.compile()
    assert len(model.fit_generator(loader, 2, verbose=0).history["loss"]) == 1


def test_weights_are_kept(loader, tmp_path):
    model, other = model_of(), get_model(config(), device="cpu")
    x, _ = loader[0]
    model.save_weights(tmp_path / "w.pt")
    other.load_weights(tmp_path / "w.pt")
    np.testing.assert_array_equal(model.predict_on_batch(x), other.predict_on_batch(x))
    same = get_model(config(INIT_WEIGHTS=str(tmp_path / "w.pt")), device="cpu")
    np.testing.assert_array_equal(model.predict_on_batch(x), same.predict_on_batch(x))
    with pytest.raises(ImageNotFoundError, match="there is no such file of weights"):
        model.load_weights(tmp_path / "none.h5")
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UsageError, match=r"(?s)holds no weights of this network .* keras"):
        model.load_weights(tmp_path / "keras.h5")
    assert "parameters on cpu" in model.summary()


# --------------------------------------------------------------------------------- losses
def test_losses_are_those_of_torch_and_of_the_papers():
    torch.manual_seed(0)
    y = (torch.rand(3, 5, 4, 2) > 0.5).float()
    p = torch.rand(3, 5, 4, 2)
    close = torch.testing.assert_close
    bce = nn.functional.binary_cross_entropy(p, y)
    close(losses.binary_crossentropy(y, p), bce)
    close(losses.focal_loss(y, p, gamma=0), bce)
    right = torch.where(y > 0, p, 1 - p)
    close(losses.focal_loss(y, p), -((1 - right) ** 3 * right.log()).mean())
    close(losses.weighted_binary_crossentropy((1, 1))(y, p), bce)
    close(losses.l2_loss(y, p), nn.functional.mse_loss(p, y))
    labels = torch.randint(2, (3, 5, 4))
    one_hot = nn.functional.one_hot(labels, 2).float()
    logits = torch.randn(3, 5, 4, 2)
    weighted = losses.get_training_loss(losses.WEIGHTED_CROSS_ENTROPY_LOSS, (1, 3))
    wanted = nn.functional.cross_entropy(
        logits.movedim(-1, 1), labels, torch.tensor([1.0, 3.0]), reduction="none"
    ).mean()
    close(weighted(one_hot, logits.softmax(-1)), wanted)
    close(losses.dice_loss(y, y), torch.tensor(0.0))
    both = [2 * (y[i, ..., k] * p[i, ..., k]).sum() + 1 for i in range(3) for k in range(2)]
    sums = [(y[i, ..., k] + p[i, ..., k]).sum() + 1 for i in range(3) for k in range(2)]
    each = [1 - b / s for b, s in zip(both, sums)]
    close(losses.avg_dice_loss(y, p), torch.stack(each).mean())
    assert float(losses.dice_coefficient(y, y)) == float(losses.accuracy(y, y)) == 1
    assert float(losses.dice_coefficient(y, 1 - y)) == 0
    with pytest.raises(UsageError, match="CLASS_WEIGHTS has 3 numbers for 2 classes"):
        losses.weighted_cross_entropy((1, 2, 3))(y, p)
