"""What objects of PyDmed and of MedSegPy look like in a notebook."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile

from daskdmed.compat.medsegpy.config import Config, UNetConfig
from daskdmed.compat.medsegpy.data import MetadataCatalog, PatchDataLoader, build_loader
from daskdmed.compat.medsegpy.evaluation import SemSegEvaluator
from daskdmed.compat.pydmed.lightdl import BigChunk, SmallChunk
from daskdmed.compat.pydmed.streamcollector import StreamCollector
from daskdmed.compat.pydmed.utils.data import Dataset, Patient, Record
from tests.compat.made import SHAPE, config
from tests.compat.pydmed import made
from tests.shown import pictures

PIXELS = np.indices((48, 60)).sum(0)[..., None].astype(np.uint8) * np.array([1, 2, 2], np.uint8)


def cells(page):
    """Rows of the tables of a page, as texts."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


# -- PyDmed ----------------------------------------------------------------------------------
@pytest.fixture
def slide(tmp_path):
    tifffile.imwrite(tmp_path / "<a>.tif", PIXELS, tile=(16, 16), photometric="rgb")
    return Record(f"{tmp_path}/", "<a>.tif", {"stain": "<HE>"})


def test_records_patients_and_datasets_are_shown_as_ours(slide):
    page = slide._repr_html_()
    assert np.array_equal(*pictures(page), PIXELS)
    assert "stain: &lt;HE&gt;" in page
    records = {"H&E": slide, "grade": 2, "notes": object()}
    page = Patient(7, records)._repr_html_()
    assert np.array_equal(*pictures(page), PIXELS)
    assert "Patient 7" in page
    assert "grade: 2" in page
    people = [Patient(i, {"H&E": slide, "grade": i % 2}) for i in range(30)]
    page = Dataset("<d>", people)._repr_html_()
    assert "&lt;d&gt;" in page
    assert "0 &times; 15" in page
    assert "20 more" in page
    assert len(pictures(page)) == 5


def test_what_is_no_file_is_said_in_words(slide):
    page = Patient(7, {"H&E": PIXELS, "<n>": 1})._repr_html_()
    assert not pictures(page)
    assert ["H&amp;E", "ndarray 48 x 60 x 3, uint8"] in cells(page)
    assert ["&lt;n&gt;", "1"] in cells(page)
    page = made.dataset(12)._repr_html_()
    assert "12 patients" in page
    assert ["11", "H&amp;E, label"] not in cells(page)
    assert ["9", "H&amp;E, label"] in cells(page)
    assert "and 2 more" in page
    nowhere = Record("/no/such/", "b.svs", None)
    assert "there is no such file" in nowhere._repr_html_()


def test_labels_of_a_great_many_copies_are_not_counted(slide, monkeypatch):
    monkeypatch.setattr("daskdmed.compat.pydmed._html._COUNTED", 20)
    page = Dataset("d", [Patient(i, {"H&E": slide}) for i in range(21)])._repr_html_()
    assert not pictures(page)
    assert "21 patients" in page


def test_chunks(slide):
    patient = Patient(3, {"H&E": slide})
    page = SmallChunk(PIXELS, {"x": 5, "<y>": np.zeros(3)}, {}, patient)._repr_html_()
    assert np.array_equal(*pictures(page), PIXELS)
    assert "of patient 3" in page
    assert ["x", "5"] in cells(page)
    assert ["&lt;y&gt;", "ndarray 3, float64"] in cells(page)
    page = BigChunk(PIXELS[..., 0], {f"k{i}": i for i in range(20)}, patient)._repr_html_()
    assert len(pictures(page)) == 1
    assert "and 4 more" in page
    for data in (None, "text", np.zeros(4), np.array([[object()]])):
        page = SmallChunk(data, None, None, None)._repr_html_()
        assert "Small chunk" in page
        assert not pictures(page)
    assert "without data" in SmallChunk()._repr_html_()


def test_a_collector_shows_what_it_found():
    class Mean(StreamCollector):
        def process_pieceofstream(self, taken):
            raise AssertionError("nothing is taken")

    class Loader:
        dataset = made.dataset(1)

    collector = Mean(Loader(), "saveall")
    page = collector._repr_html_()
    assert "Mean" in page
    assert "has not collected yet" in page
    collector._done, collector._final = True, {Patient(4, {}): np.zeros((2, 3), "f4")}
    assert ["4", "ndarray 2 x 3, float32"] in cells(collector._repr_html_())


# -- MedSegPy --------------------------------------------------------------------------------
def test_a_configuration_shows_what_was_changed():
    cfg = UNetConfig(SEED=3, TRAIN_DATASET="<mine>")
    cfg.ADAM_DECAY = 0.5
    page = cfg._repr_html_()
    assert "UNetConfig" in page
    assert ["SEED", "3", "None", ""] in cells(page)
    assert ["TRAIN_DATASET", "&lt;mine&gt;", "", ""] in cells(page)
    assert ["ADAM_DECAY", "0.5", "0.0", "nothing here acts on it"] in cells(page)
    usual = len(Config().to_dict())
    assert f"{usual} keys as they were at first" in Config()._repr_html_()
    assert not cells(Config()._repr_html_())


def test_metadata_with_the_colours_of_classes(catalogs):
    known = MetadataCatalog.get("<knees>")
    assert "nothing is known" in known._repr_html_()
    known.set(categories=("bone", "<skin>"), category_colors=[(255, 0, 0), (0.0, 0.5, 1.0)])
    page = known._repr_html_()
    assert "&lt;knees&gt;" in page
    (row,) = cells(page)
    assert "color:rgb(255,0,0)" in row[1].partition("bone")[0]
    assert "color:rgb(0,128,255)" in row[1].partition("bone")[2]
    assert "&lt;skin&gt;" in row[1]
    other = MetadataCatalog.get("b").set(categories=("bone",), category_colors=["red"])
    assert ["categories", "(&#x27;bone&#x27;,)"] in cells(other._repr_html_())


@pytest.mark.parametrize("dataset", ["slices", "volumes"])
def test_a_loader_shows_the_middle_of_its_scans_and_their_classes(registered, dataset):
    tags = {"slices": "DefaultDataLoader", "volumes": "PatchDataLoader"}
    cfg = config(TAG=tags[dataset], INCLUDE_BACKGROUND=True)
    loader = build_loader(cfg, dataset, batch_size=4, is_test=False, shuffle=True, drop_last=False)
    page = loader._repr_html_()
    assert tags[dataset] in page
    assert "3 scans, 6 batches of 4" in page
    assert "shuffled with SEED=0, epoch 0" in page
    shown = pictures(page)
    assert len(shown) == 3
    for picture, scan in zip(shown, registered.images, strict=True):
        assert scan in page
        assert picture.shape[:2] == SHAPE[:2]
        masked = registered.masks[scan][:, :, SHAPE[2] // 2].any(-1)
        coloured = (picture != picture[..., :1]).any(-1)
        assert np.array_equal(coloured, masked)
        grey = picture[~masked][:, 0].astype(int)
        values = registered.images[scan][:, :, SHAPE[2] // 2][~masked]
        order = np.argsort(values)
        assert (np.diff(grey[order]) >= 0).all()


def test_scans_whose_files_are_gone_are_words(registered, tmp_path):
    cfg = config(TAG="PatchDataLoader")
    dicts = [{"file_name": str(tmp_path / "<gone>.h5"), "image_size": SHAPE}]
    page = PatchDataLoader(cfg, dicts)._repr_html_()
    assert "1 scans" in page
    assert "&lt;gone&gt;.h5" in page
    assert not pictures(page)


def test_a_history_has_a_curve_for_each_number():
    pytest.importorskip("torch")
    from daskdmed.compat.medsegpy.modeling.model import History

    history = History()
    for number, loss in enumerate((1.0, 0.5, float("nan"), 0.25)):
        history.add(number, {"loss": loss, "val_loss": 2 * loss, "<dice>": 0.1 * number})
    page = history._repr_html_()
    assert "4 epochs" in page
    assert page.count("<svg") == 2
    loss, own, _ = re.findall(r'points="([^"]*)"', page)
    places = [tuple(map(float, place.split(","))) for place in loss.split()]
    # as the numbers lie, of both from 0.25 to 2
    heights = [90 * (1 - (v - 0.25) / 1.75) for v in (1, 0.5, 0.25)]
    assert [y for _, y in places] == pytest.approx(heights, abs=0.1)
    assert [x for x, _ in places] == pytest.approx([0, 260 / 3, 260], abs=0.1)
    assert own.split()[0] == "0.0,0.0"
    assert "val_loss 0.5" in page
    assert "&lt;dice&gt; 0.3" in page
    assert "0 epochs" in History()._repr_html_()


def test_a_model_shows_its_parts():
    torch = pytest.importorskip("torch")
    from daskdmed.compat.medsegpy.modeling.model import Model

    layers = [torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Conv2d(2, 1, 3)]
    model = Model(torch.nn.Sequential(*layers), config(), "cpu")
    page = model._repr_html_()
    assert "39 parameters, on cpu" in page
    assert ["0", "Conv2d", "20"] in cells(page)
    assert "optimizer" not in page
    model.compile("sgd", metrics=["dice"])
    rows = cells(model._repr_html_())
    assert ["optimizer", "SGD, learning rate 0.02"] in rows
    assert ["metrics", "dice"] in rows


def test_a_trainer_shows_its_configuration_network_and_history(registered, tmp_path):
    pytest.importorskip("torch")
    from daskdmed.compat.medsegpy.engine import DefaultTrainer
    from daskdmed.compat.medsegpy.modeling.model import History

    cfg = config(OUTPUT_DIR=str(tmp_path), TRAIN_DATASET="slices", TRAIN_BATCH_SIZE=7)
    trainer = DefaultTrainer(cfg)
    page = trainer._repr_html_()
    said = "&lt;DefaultDataLoader: 3 scans, 3 batches of 7&gt;"
    assert ["trains on", said] in cells(page)
    assert "validates on" not in page
    assert ["TRAIN_BATCH_SIZE", "7", "35", ""] in cells(page)
    assert "Model: UNet" in page
    assert "History" not in page
    trainer.history = History()
    trainer.history.add(0, {"loss": 0.25})
    assert "loss 0.25" in trainer._repr_html_()


def test_an_evaluator_shows_means_and_scans(catalogs):
    cfg = config(CATEGORIES=(0, 3), TEST_METRICS=["DSC", "VOE"])
    evaluator = SemSegEvaluator("made", cfg)
    assert "measures DSC, VOE" in evaluator._repr_html_()
    rng = np.random.default_rng(0)
    for number in range(8):
        true = (rng.random((8, 8, 3, 2)) > 0.5).astype("u1")
        pred = np.where(rng.random(true.shape) > 0.2, true, 1 - true).astype("f4")
        evaluator.process([{"scan_id": f"<{number}>"}], [{"y_pred": pred, "y_true": true}])
    page = evaluator._repr_html_()
    means = evaluator.evaluate()
    assert "8 scans so far" in page
    names = [name for name in means["DSC"] if name != "mean"]
    for name in names:
        assert ["mean", name, *(f"{means[m][name]:.4g}" for m in ("DSC", "VOE"))] in cells(page)
    assert sum(row[0].startswith("&lt;") for row in cells(page)) == 12
    assert "and 4 more rows" in page
