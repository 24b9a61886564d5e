"""Scripts in the style of PyDmed's notebooks, run with their import lines changed.

A classifier is trained from big and small chunks; a collector goes through each slide step by step
and is sent messages; a window slides over the slides, and what a model makes of it becomes a
heatmap. Hooks are PyDmed's: they open slides themselves and draw from NumPy's global generator. The
page "From PyDmed" of the manual says what each of these is in new code.

    python examples/from_pydmed.py
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import openslide

from daskdmed import samples
from daskdmed.compat import pydmed
from daskdmed.compat.pydmed.extensions.wsi import (
    SlidingWindowBigChunkLoader,
    SlidingWindowDL,
    SlidingWindowSmallChunkCollector,
    Tensor3DtoPdmcsvrow,
    pdmcsvtoarray,
)
from daskdmed.compat.pydmed.lightdl import *  # noqa: F403 as PyDmed's notebooks do
from daskdmed.compat.pydmed.lightdl import (
    BigChunk,
    BigChunkLoader,
    LightDL,
    SmallChunk,
    SmallChunkCollector,
    np,
    plt,
    torch,
)
from daskdmed.compat.pydmed.streamcollector import ProcessedPiece, StreamCollector
from daskdmed.compat.pydmed.utils.data import Dataset

OUTPUT = Path("output/from_pydmed")
SIDE = 1000


class SampleBigchunkLoader(BigChunkLoader):
    """A random region of a slide."""

    def extract_bigchunk(self, last_message_fromroot: Any) -> BigChunk:
        record = self.patient.dict_records["wsi"]
        osimage = openslide.OpenSlide(record.rootdir + record.relativedir)
        width, height = osimage.dimensions
        x, y = np.random.randint(0, width - SIDE), np.random.randint(0, height - SIDE)
        region = np.array(osimage.read_region((x, y), 0, (SIDE, SIDE)))[:, :, 0:3]
        return BigChunk(region, {"x": x, "y": y}, self.patient)


class SampleSmallchunkCollector(SmallChunkCollector):
    """A random place of a big chunk."""

    def extract_smallchunk(
        self, call_count: int, bigchunk: Any, last_message_fromroot: Any
    ) -> SmallChunk:
        x, y = np.random.randint(0, SIDE - 224), np.random.randint(0, SIDE - 224)
        return SmallChunk(
            data=bigchunk.data[y : y + 224, x : x + 224, :],
            dict_info_of_smallchunk={"x": x, "y": y},
            dict_info_of_bigchunk=bigchunk.dict_info_of_bigchunk,
            patient=bigchunk.patient,
        )


class SteppingBigchunkLoader(SampleBigchunkLoader):
    """The n-th row of a slide, where the checkpoint says; a message changes the step."""

    def extract_bigchunk(self, last_message_fromroot: Any) -> BigChunk:
        record = self.patient.dict_records["wsi"]
        osimage = openslide.OpenSlide(record.rootdir + record.relativedir)
        row = (self.get_checkpoint() or 0) % (osimage.dimensions[1] // SIDE)
        region = np.array(osimage.read_region((0, row * SIDE), 0, (SIDE, SIDE)))[:, :, 0:3]
        return BigChunk(region, {"x": 0, "y": row * SIDE}, self.patient)


class SteppingSmallchunkCollector(SampleSmallchunkCollector):
    """Goes one row on with each big chunk; two when it is told to hurry."""

    def extract_smallchunk(
        self, call_count: int, bigchunk: Any, last_message_fromroot: Any
    ) -> SmallChunk:
        if call_count == 0:
            step = 2 if last_message_fromroot == "hurry" else 1
            self.set_checkpoint((self.get_checkpoint() or 0) + step)
        return super().extract_smallchunk(call_count, bigchunk, last_message_fromroot)


class HeatmapStreamCollector(StreamCollector):
    """The mean colours of the quarters of each window."""

    def process_pieceofstream(self, returnvalue_of_collatefunction: Any) -> list[ProcessedPiece]:
        x, _, list_smallchunks = returnvalue_of_collatefunction
        maps = torch.nn.functional.adaptive_avg_pool2d(x, 2).numpy()
        return [
            ProcessedPiece(source_smallchunk=chunk, data=Tensor3DtoPdmcsvrow(one, chunk))
            for one, chunk in zip(maps, list_smallchunks, strict=True)
        ]

    def get_flag_finishcollecting(self) -> bool:
        return not self.lightdl.is_dl_running() and self.lightdl.queue_lightdl.qsize() == 0


def to_tensor(image: Any) -> Any:
    """What torchvision's ToTensor does."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


def made_slides(quick: bool) -> Dataset:
    folder = OUTPUT / "slides"
    samples.make_cohort(folder, n=4, size=2048 if quick else 6144)
    with (folder / "labels.csv").open() as file:
        labels = {row["slide"]: row["label"] for row in csv.DictReader(file)}
    return Dataset.create_onetoone(
        "made",
        folder,
        "tif",
        lambda name: {"is-tumour": int(labels[Path(name).name] == "tumour")},
        lambda name: {"resolution": 40},
    )


def train(dataset: Dataset, batches: int) -> None:
    """Notebook 1: a classifier of patches."""
    const_global_info = pydmed.lightdl.get_default_constglobinf()
    const_global_info["num_bigchunkloaders"] = 3
    const_global_info["smallchunks_per_bigchunk"] = 128
    dataloader = LightDL(
        dataset=dataset,
        type_bigchunkloader=SampleBigchunkLoader,
        type_smallchunkcollector=SampleSmallchunkCollector,
        const_global_info=const_global_info,
        batch_size=32,
        tfms=to_tensor,
    )
    model = torch.nn.Sequential(
        torch.nn.AvgPool2d(16), torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    dataloader.start()
    began = perf_counter()
    right = []
    for number in range(batches):
        x, list_patients, _ = dataloader.get()
        if not number:
            print(f"first batch   {tuple(x.shape)} after {perf_counter() - began:.1f} s")
        y = torch.tensor([p.dict_records["is-tumour"] for p in list_patients])
        logits = model(x)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()
        right.append(float((logits.argmax(1) == y).float().mean()))
    dataloader.pause_loading()
    print(f"training      {np.mean(right[-batches // 3 :]):.0%} right in the last third")


def step_by_step(dataset: Dataset, batches: int) -> None:
    """Notebook 2: checkpoints and messages."""
    const_global_info = pydmed.lightdl.get_default_constglobinf()
    const_global_info.update(num_bigchunkloaders=2, smallchunks_per_bigchunk=16)
    dataloader = LightDL(
        dataset,
        SteppingBigchunkLoader,
        SteppingSmallchunkCollector,
        const_global_info,
        8,
        to_tensor,
    )
    dataloader.start()
    dataloader.send_message(dataset.list_patients[0], "hurry")
    for _ in range(batches):
        dataloader.get()
    rows: dict[int, list[int]] = {}

    def visualize(patient: Any, list_smallchunks: list[Any]) -> None:
        seen = dict.fromkeys(c.dict_info_of_bigchunk["y"] // SIDE for c in list_smallchunks)
        rows[patient.int_uniqueid] = list(seen)

    dataloader.visualize(visualize)
    dataloader.pause_loading()
    print(f"checkpoints   rows of each slide: {rows}")


def heatmap(dataset: Dataset) -> None:
    """Notebook 3: windows, a stream of rows, and a map."""
    rows = OUTPUT / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    for old in rows.iterdir():
        old.unlink()
    dataloader = SlidingWindowDL(
        intorfunc_opslevel=0,
        kernel_size=200,
        stride=200,
        mininterval_loadnewbigchunk=0,
        dataset=dataset,
        type_bigchunkloader=SlidingWindowBigChunkLoader,
        type_smallchunkcollector=SlidingWindowSmallChunkCollector,
        const_global_info=pydmed.lightdl.get_default_constglobinf(),
        batch_size=16,
        tfms_onsmallchunkcollection=None,
        tfms=to_tensor,
    )
    HeatmapStreamCollector(
        dataloader, "stream_to_file", kwargs_streamwriter={"rootpath": str(rows)}
    ).start_collecting()
    maps = [pdmcsvtoarray(rows / f"patient_{p.int_uniqueid}.csv") for p in dataset.list_patients]
    figure, axes = plt.subplots(1, len(maps), figsize=(3 * len(maps), 3))
    for ax, one in zip(axes, maps, strict=True):
        ax.imshow(one)
        ax.set_axis_off()
    figure.savefig(OUTPUT / "heatmaps.png", bbox_inches="tight")
    holes = sum(int(np.isnan(one).sum()) for one in maps)
    print(f"heatmaps      {maps[0].shape}, {holes} holes, in {OUTPUT / 'heatmaps.png'}")


def main() -> None:
    quick = bool(os.environ.get("DASKDMED_QUICK"))
    dataset = made_slides(quick)
    train(dataset, 30 if quick else 150)
    step_by_step(dataset, 24)
    heatmap(dataset)


if __name__ == "__main__":
    main()
