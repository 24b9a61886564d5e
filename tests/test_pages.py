"""Code that the pages show is run, on small made data, as printed but for numbers.

A block that is whole in itself, with no name from elsewhere, is run or is excused with a reason;
others are run where a few lines before them make them whole. What every block must satisfy is in
`tests/test_docs.py`, the first block of the README in `tests/test_readme.py`.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import daskdmed
from daskdmed import policies, transforms
from tests import forked

pytest.importorskip("torch")
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/design").glob("*.md")]

SLIDES = """
import shutil
from daskdmed import Dataset, samples
samples.make_cohort("slides", n=4, size=1024)
shutil.move("slides/labels.csv", "labels.csv")
dataset = Dataset.from_folder("slides", labels="labels.csv")
"""
NETWORK = """
import torch
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
)
"""
#: slides on which somebody drew everything that the README asks for
DRAWN = """
import json, numpy as np
from daskdmed import Dataset, Patient, Record, samples
from daskdmed.cohort.annotations import Annotations
patients = []
for number, path in enumerate(["a.svs", "b.svs"]):
    made = samples.make_slide(path, 1024, downsample=2, levels=2, seed=number)
    names = {1: "Stroma", 2: "Tumor"}
    Annotations.from_mask(made.class_map, made.cell, names).to_geojson(f"{path}.geojson")
    drawn = Record(f"{path}.geojson")
    records = {"wsi": Record(path), "drawn": drawn}
    patients.append(Patient(path, records, {"grade": 3 - number}))
dataset = Dataset("drawn", patients)
"""
SCANS = """
import os, nibabel, numpy as np, torch
from daskdmed import Dataset
rng = np.random.default_rng(0)
for folder in ("imagesTr", "labelsTr"):
    os.makedirs(folder, exist_ok=True)
for number in (1, 2):
    label = np.zeros((48, 48, 24), np.uint8)
    label[10:40, 12:40, 6:20] = 1
    image = (label * np.int16(500) + rng.integers(0, 50, label.shape)).astype(np.int16)
    affine = np.diag([1, 1, 3, 1.0])
    nibabel.save(nibabel.Nifti1Image(image, affine), f"imagesTr/case_{number}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, affine), f"labelsTr/case_{number}.nii.gz")
dataset = Dataset.from_bids_like("imagesTr", "labelsTr")
network = torch.nn.Conv3d(1, 2, 1)
"""


@dataclass(frozen=True)
class Run:
    """How one block is run: lines before it, what is written otherwise, and lines after it."""

    before: str
    swaps: dict[str, str] = field(default_factory=dict)
    after: str = ""
    needs: tuple[str, ...] = ()


#: slides with annotations beside them, as QuPath leaves them
QUPATH = """
import os
from daskdmed import samples
from daskdmed.cohort.annotations import Annotations
os.makedirs("annotations")
os.makedirs("project/results")
names = {1: "Stroma", 2: "Tumor"}
for n in (1, 2):
    made = samples.make_slide(f"slides/slide_{n}.svs", 1024, downsample=2, levels=2, seed=n)
    drawn = Annotations.from_mask(made.class_map, made.cell, names)
    drawn.to_geojson(f"annotations/slide_{n}.geojson")
"""
SHORT = {"epoch_length=500": "epoch_length=2"}
SMALL_SCANS = {
    "smallchunk_size=(32, 64, 64)": "smallchunk_size=(8, 16, 16), epoch_length=2, batch_size=3",
    "(64, 96, 96)": "(8, 16, 16)",
}
RUNS = {
    ("README.md", 1): Run(
        SLIDES + "import daskdmed",
        {"slide.svs": "slides/slide_000.tif", "x.map_blocks(...)": "x.map_blocks(abs)"},
        "assert x.shape[2] == 3",
    ),
    ("README.md", 2): Run(
        DRAWN,
        {
            "LightDL(\n    dataset,": "loader = LightDL(\n    dataset, smallchunk_size=64, "
            "batch_size=16, bigchunk_size=512, resident='64 MiB',",
        },
        "x, patients, smallchunks = next(loader)\n"
        "assert tuple(x.shape) == (16, 3, 64, 64) and x.is_floating_point()\n"
        "assert len(smallchunks.targets) == 16\n"
        "assert sum(p.labels['grade'] == 3 for p in patients) >= 8\n"
        "loader.close()",
        ("shapely",),
    ),
    ("README.md", 3): Run(
        SCANS,
        {
            **SMALL_SCANS,
            "LightDL(\n": "loader = LightDL(\n",
            "labels = predict": "for x, _, _ in loader:\n    assert x.shape[1:] == (1, 8, 16, 16)\n"
            "loader.close()\nlabels = predict",
        },
        "assert nibabel.load('case_1.nii.gz').shape == (48, 48, 24)",
        ("nibabel",),
    ),
    ("README.md", 4): Run(SLIDES, {":8787": "127.0.0.1:0"}, "", ("bokeh",)),
    ("README.md", 5): Run(
        SLIDES + "import numpy as np",
        {
            "LightDL(": "loader = LightDL(",
            ", bigchunk_loader=..., policy=...": ", smallchunk_size=64, batch_size=4",
        },
        "assert tuple(next(loader)[0].shape) == (4, 3, 64, 64)\nloader.close()",
    ),
    ("docs/qupath.md", 0): Run(
        QUPATH + "from pathlib import Path",
        {
            "target=": "smallchunk_size=64, bigchunk_size=512, batch_size=8, resident='64 MiB', "
            "target="
        },
        "x, patients, smallchunks = next(loader)\n"
        "assert tuple(smallchunks.targets.shape) == (8, 64, 64)\n"
        "assert (smallchunks.targets[:, 32, 32] == 2).sum() >= 4\n"
        "loader.close()",
        ("shapely",),
    ),
    ("docs/qupath.md", 1): Run(
        QUPATH + NETWORK + "from daskdmed import heatmap",
        {"kernel_size=224": "kernel_size=64"},
        "from daskdmed import open_slide, read_annotations\n"
        "assert len(read_annotations(f'{results}.tiles.geojson')) == 256\n"
        "read_annotations(f'{results}.regions.geojson')\n"
        "assert open_slide(f'{results}.tif').dimensions == (16, 16)",
        ("shapely",),
    ),
    ("docs/ecosystem.md", 1): Run(
        QUPATH + NETWORK + "import daskdmed, shutil\n"
        "shutil.copy('slides/slide_1.svs', 'slide.svs')\n"
        "shutil.copy('annotations/slide_1.geojson', 'slide.geojson')\n"
        "daskdmed.heatmap('slide.svs', network, kernel_size=64, out='scores.ome.zarr')\n"
        "daskdmed.store.write_labels('scores.ome.zarr', "
        "daskdmed.store.argmax_labels('scores.ome.zarr'))",
        {"daskdmed.napari.show(": "found = daskdmed.napari.layers("},
        "assert [kind for _, _, kind in found] == ['image'] * 3 + ['labels', 'shapes']",
        ("shapely",),
    ),
    ("docs/index.md", 0): Run(
        SLIDES + NETWORK,
        {**SHORT, "        ...\n": "        assert tuple(x.shape) == (64, 3, 224, 224)\n"},
        "assert heat.shape == (2, 5, 5)",
    ),
    ("docs/monitor.md", 1): Run(
        SLIDES, {":8787": "127.0.0.1:0"}, "assert loader.dashboard_link is None", ("bokeh",)
    ),
    ("docs/monitor.md", 2): Run(
        # as in a notebook: a shell with a kernel
        SLIDES + "from IPython.core.interactiveshell import InteractiveShell\n"
        "InteractiveShell.instance().kernel = 'there'",
        {},
        "loader.close()",
        ("IPython",),
    ),
    ("docs/monitor.md", 3): Run(
        SLIDES,
        {"9100": "0, addr='127.0.0.1'"},
        "from daskdmed import LightDL\n"
        "with LightDL(dataset, smallchunk_size=64) as loader:\n"
        "    next(loader)\n"
        "    found = prometheus_client.generate_latest().decode()\n"
        "assert 'daskdmed_patches_total{' in found",
        ("prometheus_client",),
    ),
    ("docs/volumes.md", 0): Run(
        SCANS,
        {
            "(64, 64, 64)": "(8, 16, 16), batch_size=3, epoch_length=2",
            "(96, 96, 96)": "(8, 16, 16)",
        },
        "assert y.shape == (3, 8, 16, 16)\n"
        "assert nibabel.load('case_1.nii.gz').shape == (48, 48, 24)",
        ("nibabel",),
    ),
    ("docs/frameworks.md", 1): Run(
        SLIDES + "import torch\nfrom daskdmed import Patient, Record\n"
        "model = torch.nn.Conv2d(3, 3, 1)\ncriterion = torch.nn.CrossEntropyLoss()\n"
        "dataset = Dataset('masked', [Patient(p.id, {'wsi': p.record(), "
        "'mask': Record(array=(p.record().open().to_dask()[..., 0] > 128).astype('u1'))})"
        " for p in dataset])\n",
        {'device="cuda"': 'device="cpu", record="wsi", smallchunk_size=64, epoch_length=2'},
        "assert float(loss.detach()) > 0",
    ),
    ("docs/cluster.md", 2): Run(
        "from distributed import Client\n"
        "client = Client(processes=False, n_workers=1, dashboard_address=None)\n",
        {},
        "import os\nassert os.environ['OMP_NUM_THREADS'] == '4'\nclient.close()",
    ),
}
#: complete, and what it would take to run it is not there
EXCUSED = {
    ("README.md", 0): "run in tests/test_readme.py",
    ("docs/cluster.md", 3): "needs SLURM",
    ("docs/cluster.md", 4): "needs Kubernetes",
    ("docs/remote.md", 0): "needs slides on S3",
    ("docs/remote.md", 1): "a setting, for good",
}


def blocks() -> dict[tuple[str, int], str]:
    """Every block of Python by its page and number."""
    found = {}
    for page in PAGES:
        texts = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)
        for number, text in enumerate(texts):
            found[page.relative_to(ROOT).as_posix(), number] = text
    return found


def free_names(block: str) -> set[str]:
    """Names that a block uses, and neither makes nor imports."""
    nodes = list(ast.walk(ast.parse(re.sub(r", \.\.\.\)", ")", block))))
    names = [n for n in nodes if isinstance(n, ast.Name)]
    made = {n.id for n in names if isinstance(n.ctx, ast.Store)} | set(dir(builtins))
    made |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    made |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(a.asname or a.name).split(".")[0] for a in node.names}
    return {n.id for n in names} - made


def test_complete_blocks_are_run() -> None:
    found = blocks()
    assert {*RUNS, *EXCUSED} <= found.keys()
    complete = {where for where, block in found.items() if not free_names(block)}
    assert complete - {*RUNS, *EXCUSED} == set(), "add it to RUNS, or to EXCUSED with a reason"


@pytest.mark.programs
@pytest.mark.parametrize("where", RUNS, ids=lambda w: f"{w[0]}-{w[1]}")
def test_a_block_runs(where: tuple[str, int], tmp_path: Path) -> None:
    run, block = RUNS[where], blocks()[where]
    for module in run.needs:
        pytest.importorskip(module)
    for old, new in run.swaps.items():
        assert old in block, old
        block = block.replace(old, new)
    imports = [
        f"from {module.__name__} import {name}"
        for name in sorted(free_names(block))
        for module in (daskdmed, transforms, policies)
        if hasattr(module, name) and name not in run.before
    ]
    script = tmp_path / "block.py"
    script.write_text("\n".join([*imports, run.before, block, run.after, "print('ran')"]))
    done = forked.run(script, tmp_path, {**os.environ, "MPLBACKEND": "agg"}, [])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ran\n")
