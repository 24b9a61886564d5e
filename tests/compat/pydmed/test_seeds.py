"""PyDmed's own tutorial runs, as it is written, with its imports changed."""

from __future__ import annotations

import inspect
import re
import time
import types

import numpy as np
import pytest
import tifffile
import torch

import daskdmed.compat.pydmed as pydmed
from daskdmed.compat.pydmed import lightdl, streamcollector
from daskdmed.compat.pydmed.extensions import wsi
from daskdmed.compat.pydmed.utils.data import Dataset, Patient, Record
from tests.compat import seeds

pytestmark = pytest.mark.programs


def picture(height, width):
    """Places in hundreds of pixels."""
    y, x = np.indices((height, width), np.uint16) // 100
    return np.stack([y, x, np.zeros_like(y)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    image = picture(5200, 5100)
    patients = []
    for number in range(2):
        tifffile.imwrite(
            folder / f"{number}.tif", image, tile=(256, 256), photometric="rgb", compression="zlib"
        )
        patients.append(Patient(number, {"H&E": Record(f"{folder}/", f"{number}.tif", {})}))
    return Dataset("slides", patients)


class After:
    """Equals True from the n-th time on that it is asked; keeps what there was then."""

    def __init__(self, times, names):
        self.times, self.names, self.batches = times, names, []

    def __eq__(self, other):
        self.batches.append(
            tuple(self.names[n] for n in ("x", "list_patients", "list_smallchunks"))
        )
        return (len(self.batches) >= self.times) is other

    __hash__ = None


def to_tensor():
    return lambda image: torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255


def test_section_2(dataset):
    """Both hooks and the loop; the loop's sleep is not needed."""
    openslide = pytest.importorskip("openslide")
    slept = []
    names = {
        **{name: getattr(lightdl, name) for name in lightdl.__all__},  # import *
        "pydmed": pydmed,
        "openslide": openslide,
        "abstractmethod": __import__("abc").abstractmethod,
        "torchvision": types.SimpleNamespace(transforms=types.SimpleNamespace(ToTensor=to_tensor)),
        "time": types.SimpleNamespace(sleep=slept.append),
        "dataset": dataset,
    }
    names["flag_finish_running"] = After(30, names)
    code = seeds.blocks("000")
    assert len(code) == 4
    for block in code[:3]:
        exec(block, names)
    began = time.perf_counter()
    with pytest.warns(DeprecationWarning, match="write data="):  # the tutorial's `ata=`
        exec(code[3], names)
    assert slept == [10]
    print(f"30 batches after {time.perf_counter() - began:.1f} s")
    batches = names["flag_finish_running"].batches
    assert len(batches) == 30
    for x, patients, chunks in batches:
        assert x.shape == (10, 3, 224, 224)
        assert len(patients) == len(chunks) == 10
        for image, chunk in zip(x, chunks, strict=True):
            big, small = chunk.dict_info_of_bigchunk, chunk.dict_info_of_smallchunk
            wanted = [(big[axis] + small[axis]) // 100 for axis in "yx"]
            assert (image[:2, 0, 0] * 255).round().tolist() == wanted
    assert not names["dataloader"].is_dl_running()


#: what the drafts of section 4 leave open, with the names that they give
WINDOWS = """
def level_of(patient):
    return 0

dataloader = SlidingWindowDL(
    intorfunc_opslevel=level_of, kernel_size=500, stride=500, mininterval_loadnewbigchunk=0,
    tfms_onsmallchunkcollection=None, dataset=dataset,
    type_bigchunkloader=SlidingWindowBigChunkLoader,
    type_smallchunkcollector=SlidingWindowSmallChunkCollector,
    const_global_info=const_global_info, batch_size=4, tfms=ToTensor(),
)
"""
COLLECTOR = """
class HeatmapStreamCollector(StreamCollector):
    def process_pieceofstream(self, returnvalue_of_collatefunction):
        x, list_patients, list_smallchunks = returnvalue_of_collatefunction
        y = torch.nn.functional.adaptive_avg_pool2d(x, 5)[:, :2].numpy()
        return [
            ProcessedPiece(source_smallchunk=s, data=Tensor3DtoPdmcsvrow(one, s))
            for one, s in zip(y, list_smallchunks)
        ]

    def get_flag_finishcollecting(self):
        return not self.lightdl.is_dl_running() and self.lightdl.queue_lightdl.qsize() == 0
"""
START = """
HeatmapStreamCollector(
    dataloader, "stream_to_file", kwargs_streamwriter={"rootpath": rootpath}
).start_collecting()
"""
#: how the drafts spell names, and how they are spelt in PyDmed
SPELT = {"process_piceeofstream": "process_pieceofstream", "SmallChunks": "SmallChunk"}


def test_every_name_of_section_4_is_there():
    text = seeds.document("004")
    drafted = re.findall(r"([A-Za-z]\w+?)(?:\(\))?TODO(?!TODO)", text)
    found = {SPELT.get(name, name) for name in drafted if not name.startswith("TODO")}
    assert {"SlidingWindowDL", "StreamCollector", "ProcessedPiece", "start_collecting"} <= found
    there = {
        *wsi.__all__,
        *streamcollector.__all__,
        *lightdl.__all__,
        *dir(streamcollector.StreamCollector),
        *inspect.signature(wsi.SlidingWindowDL).parameters,
    }
    # this one is the reader's to write, in a box of its own
    assert found - there == {"HeatmapStreamCollector"}


def test_section_4(dataset, tmp_path):
    """Its boxes are empty: they are filled with what the text says."""
    boxes = seeds.blocks("004")
    assert [set(box.strip()) for box in boxes] == [set("TODO")] * 4
    rootpath = tmp_path / "rows"
    rootpath.mkdir()
    names = {
        **{name: getattr(lightdl, name) for name in lightdl.__all__},
        **{name: getattr(wsi, name) for name in wsi.__all__},
        **{name: getattr(streamcollector, name) for name in streamcollector.__all__},
        "const_global_info": lightdl.get_default_constglobinf(),
        "ToTensor": to_tensor,
        "dataset": dataset,
        "rootpath": str(rootpath),
    }
    exec(WINDOWS + COLLECTOR + START, names)
    for patient in dataset.list_patients:
        rows = (rootpath / f"patient_{patient.int_uniqueid}.csv").read_text().splitlines()
        assert len(rows) == 11 * 11
        heatmap = wsi.pdmcsvtoarray(rootpath / f"patient_{patient.int_uniqueid}.csv")
        assert heatmap.shape == (52, 51, 2)
        y, x = np.indices((52, 51))
        np.testing.assert_allclose(heatmap * 255, np.stack([y, x], axis=-1), atol=0.01)
