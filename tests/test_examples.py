"""Every example runs, from an empty folder, and shows what it promises."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked

pytest.importorskip("torch")
pytestmark = pytest.mark.programs
EXAMPLES = Path(__file__).parents[1] / "examples"
#: script -> what its output must match
SCRIPTS = {
    "dense_prediction.py": r"labels uint8 .*exact dense mode.*inside the mask",
    "infer_scans.py": r"patient-2/scan: Dice 0\.9.*pooled Dice 0\.9.*0 skipped",
    "read_and_compute.py": r"tissue per block.*record .*view \(\d+, \d+, 3\)",
    "volume_patches.py": r"\(8, 1, 32, 64, 64\) torch\.int16.*slices \(64, 1, 1, 96, 96\)",
    "tissue.py": r"0\.0: tissue 0\.0%.*empty True.*windows are more.*read again: True",
    "balanced_batches.py": r"the fewest in a batch: 4.*explorer: small chunks from \d+ regions",
    "choose_parameters.py": r"patches/s when each.*512 x 512.*for 1,000 patches/s.*coverage +\d+",
    "annotations.py": r"Annotations\(.*mean red.*target \(16, 128, 128, 3\).*the same: True",
    "export_heatmap.py": r"OME-Zarr +\d levels.*TIFF +Slide.*regions +Annotations\(.*tiles +\d+",
    "convert_slide.py": r"the same pixels on \d levels: True.*2 um/px",
    "custom_hooks.py": r"anywhere +640 crops.*by hand: +\(\d+, \d+\)",
    "resume_training.py": "bit-identical: True",
    "hard_mining.py": r"drawn anywhere: +\d\.\d%.*[1-5]\d\.\d% in the last third",
    "ranks.py": r"each rank: \[16, 16\].*big chunks: 32.*reads: 32\n",
    "augmentation.py": r"replayed: identical True.*the batch: identical True.*normalised \(64,",
    "sliding_windows.py": r"first window \(0, \d+\).*left out +0 windows.*: (\d+) of \1$",
    "features_to_parquet.py": r"slide_001\.parquet.*288 rows of 8 float32.*map \(12, 12\) mean 0\.",
    "lazy_heatmap.py": r"16 blocks, nothing read.*written in 16 blocks, equal: True",
    "heatmap_dataset.py": r"slide_002: \(2, 11, 11\), \d+%.*equal: True.*off.*slide_002/wsi\.zarr",
    "cohort_features.py": r"stopped: RuntimeError: the power.*slide_002/wsi\.parquet, \(\d+, 16\) "
    r"float32.*left out: torn.*,done,.*torn,wsi,skipped",
    "remote_slides.py": r"opened with [1-4] requests.*: [1-3] requests, .*of the file: True\n"
    r"8 batches of 16: \d+ requests, 0 of them again",
    "fluorescence.py": r"DAPI +#0050FF +461\.0 nm.*labels +True thumbnail of \[0 1 2\]"
    r".*\(16, 2, 64, 64\) torch\.uint16.*learnt: True.*OME-Zarr +\('CD3', 'DAPI'\)",
    "slices_2d.py": r"36 slices of shape \(3, 48, 48\).*d/image +ball +0\.[89].*mean Dice 0\.[89]",
    "from_pydmed.py": r"first batch +\(32, 3, 224, 224\).*right in the last third.*rows of each "
    r"slide: \{0: \[0, 1\].*heatmaps +\(20, 20, 3\), 0 holes",
    "from_medsegpy.py": r"3 scans, 6 batches an epoch.*epoch 3: loss.*_V00-Aug00: \(32, 32, 12\), "
    r"cartilage +[1-9][\d.]+ ml.*bone +medial \+ lateral.*DSC +0\.[5-9].*oai_test",
    "cluster.py": r"scheduler at tls?c?p?://127.*rank \d: (\d+) patches\n.*rank \d: \1 patches\n"
    r"heatmaps of 2 slides\nheatmaps of 2 slides",
}
#: and those that need what only they need
FRAMEWORKS = {
    "lightning_train.py": (
        "lightning",
        r"twice on the same 48 .*: True.*predicted 32 of 32.*other 4 batches: True"
        r".*2 processes: \[48, 48\], 0 in common",
    ),
    "torchrun_ddp.py": (
        "torch",
        r"epoch 0: .*\[64, 64\], 0 in common.*epoch 1: .*\[64, 64\], 0 in.*one model.*True",
    ),
    "dicom_series.py": (
        "pydicom",
        r"axes to SPL.*'left lung': -800, 'spine': 900.*shape=\(60, 192, 192\), dtype=int16",
    ),
    "volumes_train.py": (
        "nilearn",
        r"written in PIR - the label lies in RAS.*grey matter +0\.[678].*mean Dice 0\.[678]",
    ),
    "monai_segmentation.py": (
        "monai",
        r"\(2, 40, 40, 40\); differ from MONAI's by less than 1e-5: True.*"
        r"Dice of lesions 0\.[89]\d*; the same as MONAI's: True",
    ),
    "napari_view.py": (
        "napari",
        r"\(256, 256\), \(64, 64\)\] rgb True.*middle of a window: True.*of those pixels: True.*"
        r"where the heatmap is: True.*[1-9]\d* shapes, filled as drawn: True",
    ),
    "foundation_features.py": (
        "transformers",
        r"transformers/slide/wsi\.parquet, \([1-9]\d*, 32\)\n"
        r"as its own library shows it, .*: True\nthe same features by hand: True",
    ),
    "accelerate_train.py": ("accelerate", r"2 processes: 64 small chunks each, 0 in common"),
}
ON_A_CLUSTER = ("cluster.py", "ranks.py")
ENVIRONMENT = {**os.environ, "DASKDMED_QUICK": "1", "MPLBACKEND": "agg"}


def run(script: str, folder: Path, *arguments: str) -> str:
    if script in ON_A_CLUSTER or script in FRAMEWORKS:  # they start processes themselves
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / script), *arguments],
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
    else:
        done = forked.run(EXAMPLES / script, folder, ENVIRONMENT, arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    scripts = {p.name for p in EXAMPLES.glob("*.py")}
    assert scripts == {*SCRIPTS, *FRAMEWORKS, "quickstart.py"}


@pytest.mark.parametrize("script", [n for n in SCRIPTS if n not in ON_A_CLUSTER])
def test_example(script: str, tmp_path: Path) -> None:
    assert re.search(SCRIPTS[script], run(script, tmp_path), re.DOTALL)


@pytest.mark.parametrize("script", FRAMEWORKS)
def test_example_with_a_framework(script: str, tmp_path: Path) -> None:
    module, expected = FRAMEWORKS[script]
    pytest.importorskip(module)
    assert re.search(expected, run(script, tmp_path), re.DOTALL)


@pytest.mark.cluster
@pytest.mark.parametrize("script", ON_A_CLUSTER)
def test_example_on_a_cluster(script: str, tmp_path: Path) -> None:
    assert re.search(SCRIPTS[script], run(script, tmp_path), re.DOTALL)


def test_quickstart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = run("quickstart.py", tmp_path, "--output", "here")
    assert "level 0: dask.array<slide, shape=(3072, 3072, 3)" in out
    assert re.search(r"patches/s while training; the loop waited for data [\d.]+%", out)
    found = re.search(r"held-out slides: ([\d.]+)%", out)
    assert found is not None
    # 60 steps are few; chance is 50 %
    assert float(found[1]) > 70
    area = re.search(r"area under the ROC ([\d.]+)", out)
    assert area is not None
    assert float(area[1]) > 0.8
    assert (tmp_path / "here" / "heatmap.ome.zarr" / "zarr.json").exists()
    assert (tmp_path / "here" / "overlay.png").stat().st_size > 20_000

    # and with slides of one's own
    own = ("--slides", "here/slides", "--labels", "here/slides/labels.csv", "--steps", "4")
    out = run("quickstart.py", tmp_path, *own, "--output", "mine")
    assert "training on 4 slides, classes ['benign', 'tumour']" in out
    assert (tmp_path / "mine" / "overlay.png").exists()


def run_notebook(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of a notebook that is executed in a folder."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("DASKDMED_QUICK", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert all(not c.get("outputs") for c in notebook.cells), "commit it without outputs"
    resources = {"metadata": {"path": folder}}
    nbclient.NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=900,  # a busy machine takes more than the usual 60 s
        kernel_name="python3",
        resources=resources,
    ).execute()
    kept = os.environ.get("DASKDMED_NOTEBOOKS")  # for the manual
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, Path(kept) / name)
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def of_kind(outputs: list[Any], kind: str) -> list[Any]:
    return [o for o in outputs if kind in o.get("data", {})]


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run_notebook("quickstart.ipynb", tmp_path, monkeypatch)
    assert len(of_kind(outputs, "image/png")) >= 4
    assert len(of_kind(outputs, "text/html")) >= 4
    text = "".join(o.get("text", "") for o in outputs)
    found = re.search(r"held-out slides: ([\d.]+)%", text)
    assert found is not None
    assert float(found[1]) > 70


def test_the_notebook_of_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nilearn")
    outputs = run_notebook("volumes.ipynb", tmp_path, monkeypatch)
    assert len(of_kind(outputs, "image/png")) == 1
    assert len(of_kind(outputs, "text/html")) >= 5
    (table,) = [o["data"]["text/plain"] for o in of_kind(outputs, "text/plain")
                if "grey matter" in o["data"]["text/plain"]]  # fmt: skip
    dice = re.search(r"grey matter +([\d.]+)", table)
    assert dice is not None
    assert float(dice[1]) > 0.5


def written(outputs: list[Any], stream: str) -> str:
    return "".join(o["text"] for o in outputs if o.get("name") == stream)


def kilobytes(outputs: list[Any]) -> float:
    return len(json.dumps(outputs)) / 1000


@pytest.mark.cluster
def test_the_notebook_of_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    outputs = run_notebook("in_memory.ipynb", tmp_path, monkeypatch)
    assert len(of_kind(outputs, "image/jpeg")) == 5
    assert kilobytes(outputs) < 700
    pages = [o["data"]["text/html"] for o in of_kind(outputs, "text/html")]
    # the picture of `watch` has gone on while the loader did: some are drained
    (watched,) = [page for page in pages if "<title>slide_00" in page and "draws left" in page]
    assert re.search(r"\n\d+ of 64 draws left", html.unescape(watched))
    assert re.search(r"resident=\S+ kiB holds 1 big chunks.*ask for", written(outputs, "stdout"))
    (streams,) = [page for page in pages if "SHA-256" in page]
    found = re.findall(r"<td>([0-9a-f]{32})</td>", streams)
    assert (len(found), len(set(found))) == (4, 1)
    assert "Traceback" not in written(outputs, "stderr")


@pytest.mark.cluster
def test_the_notebook_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("bokeh")
    outputs = run_notebook("cluster.ipynb", tmp_path, monkeypatch)
    assert len(of_kind(outputs, "image/jpeg")) == 2
    assert kilobytes(outputs) < 300
    said = "".join(str(o["data"]["text/plain"]) for o in of_kind(outputs, "text/plain"))
    link = re.search(r"'(http://127\.0\.0\.1:\d+/daskdmed)'", said)
    assert link is not None
    pages = [o["data"]["text/html"] for o in of_kind(outputs, "text/html")]
    (picture,) = [page for page in pages if "<title>slide_00" in page and "draws left" in page]
    assert f'href="{link[1]}"' in picture
    assert "the same batches, bit for bit: True" in written(outputs, "stdout")
    assert "Traceback" not in written(outputs, "stderr")


def test_the_notebook_of_qupath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run_notebook("qupath.ipynb", tmp_path, monkeypatch)
    assert len(of_kind(outputs, "image/jpeg")) == 5
    assert kilobytes(outputs) < 700
    text = written(outputs, "stdout")
    assert re.search(r'\d+ tiles, the first: .*"objectType": "tile".*"Tumor": [01]\.\d', text)
    found = re.search(r"with the truth (0\.\d+)", text)
    assert found is not None
    assert float(found[1]) > 0.8
    drawn, _, regions = (o["data"]["text/plain"] for o in of_kind(outputs, "text/html"))
    assert re.search(r"Stroma: 1, Tumor: [2-9]", drawn)
    assert re.search(r"^Annotations\([1-9]; Tumor: [1-9]\)", regions)


def test_the_notebook_from_pydmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openslide")
    outputs = run_notebook("from_pydmed.ipynb", tmp_path, monkeypatch)
    assert len(of_kind(outputs, "image/jpeg")) == 3
    assert kilobytes(outputs) < 700
    found = re.search(r"\(2, 16, 16\), largest difference (\S+)", written(outputs, "stdout"))
    assert found is not None
    assert float(found[1]) < 1e-5


def test_the_notebook_from_medsegpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nilearn")
    outputs = run_notebook("from_medsegpy.ipynb", tmp_path, monkeypatch)
    assert len(of_kind(outputs, "image/jpeg")) == 3
    assert kilobytes(outputs) < 600
    text = written(outputs, "stdout")
    differences = re.findall(r"900000[56]_V00-Aug00: largest difference (\S+)", text)
    assert len(differences) == 2
    assert max(map(float, differences)) < 1e-5
    table, result = (o["data"]["text/plain"] for o in of_kind(outputs, "text/html"))
    theirs = re.search(r"DSC +(\S+) +(\S+)", table)
    ours = re.search(r"dice (\S+?),", result)
    assert theirs is not None
    assert ours is not None
    # eight epochs are few
    assert min(float(v) for v in (*theirs.groups(), ours[1])) > 0.55
