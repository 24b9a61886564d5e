"""MedSegPy's tutorial on loading data runs as it is written, and is right: it trains, and every
scan is predicted as the model does slice by slice."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import daskdmed.compat.medsegpy
from daskdmed.compat.medsegpy.config import UNetConfig
from daskdmed.compat.medsegpy.data import register_oai
from tests.compat import seeds
from tests.compat.made import SHAPE

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread():
    """Networks as small as these take longer with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def code(made, catalogs, monkeypatch):
    """The block of the tutorial with what it leaves open, and the datasets that it names."""
    (block,) = seeds.blocks("002")
    for name in ("oai_2d_train", "oai_2d_val", "oai_2d_test"):
        register_oai(name, made.slices)
    # the network that it asks for has 31 million parameters
    small = {**UNetConfig.DEFAULTS, "DEPTH": 2, "NUM_FILTERS": [4, 4]}
    monkeypatch.setattr(UNetConfig, "DEFAULTS", small)
    torch.manual_seed(0)
    return seeds.completed(
        block,
        {
            # "compile with optimizer, loss, metrics, etc."
            r"\.compile\(\.\.\.\)": '.compile(optimizer="adam", loss="dice", metrics=["dice"])',
            r"^( +)\.\.\.$": r"\1epochs=2, callbacks=[lambda epoch, logs: told.append(logs)]",
            # "do inference related things"
            r"^(for input, output in .*\n(?: +#.*\n?)+)": r"\1    found.append((input, output))\n",
        },
    )


@pytest.mark.parametrize("lines", ["changed", "as they are"])
def test_the_tutorial(code, made, lines):
    names = {"told": [], "found": []}
    package = contextlib.nullcontext()
    if lines == "changed":
        code = seeds.imported_from(code, "medsegpy", "daskdmed.compat.medsegpy")
    else:
        package = daskdmed.compat.medsegpy.install()
    with package:
        exec(compile(code, "tutorial", "exec"), names)

    # 21 slices in batches of 10
    assert [len(names[f"{n}_loader"]) for n in ("train", "val", "test")] == [2, 2, 3]
    assert [set(logs) for logs in names["told"]] == [{"loss", "dice", "val_loss", "val_dice"}] * 2
    found, model = names["found"], names["model"]
    assert [made.of(inputs) for inputs, _ in found] == sorted(made.images)
    for inputs, outputs in found:
        scan = made.of(inputs)
        np.testing.assert_array_equal(inputs["x"], made.images[scan])
        np.testing.assert_array_equal(outputs["y_true"], made.masks[scan])
        assert outputs["y_pred"].shape == (*SHAPE, 6)
        each = [
            model.predict_on_batch(made.images[scan][None, :, :, z, None])[0]
            for z in range(SHAPE[2])
        ]
        np.testing.assert_allclose(outputs["y_pred"], np.stack(each, 2), atol=1e-6)


def test_what_is_taken_out_of_a_document(tmp_path, monkeypatch):
    """The tool itself, where there are no documents."""
    monkeypatch.setenv("DASKDMED_SEEDS_DIR", str(tmp_path))
    (tmp_path / "009_a.txt").write_text("x\n```python\nimport a.b\nf(...)\n```\n```\nno\n```\n")
    (block,) = seeds.blocks("009")
    assert block == "import a.b\nf(...)\n"
    changed = seeds.imported_from(block, "a", "c.d")
    assert seeds.completed(changed, {r"\(\.\.\.\)": "(1)"}) == "import c.d.b\nf(1)\n"
    with pytest.raises(AssertionError, match="is there 0 times"):
        seeds.completed(block, {"g": "h"})
    with pytest.raises(AssertionError, match="nothing is imported from b"):
        seeds.imported_from(block, "b", "c")
    with pytest.raises(pytest.skip.Exception, match="no document 008"):
        seeds.document("008")
