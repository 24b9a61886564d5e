"""Takes the pictures of docs/monitor.md: the page on the dashboard while things go on.

    python docs/draw_dashboard.py

Two processes train a small network on made slides, each a rank, with the resident set of both on
one cluster; then heatmaps of the slides are computed on it. Needs Chromium with its driver, and
selenium; takes two minutes.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def net() -> Any:
    """Something to train."""
    import torch

    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 7, stride=4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 5, stride=4),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 2),
    )


def train(rank: int, address: str, folder: str, store: str, stop: Any) -> None:
    """One rank: what ``torchrun`` starts as many of as there are GPUs."""
    import torch
    from distributed import Client

    from daskdmed import Dataset, LightDL, Patient, Record
    from daskdmed.transforms import ToFloat

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    with (Path(folder) / "labels.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    kinds = sorted({row["label"] for row in rows})
    patients = [
        Patient(Path(row["slide"]).stem, {"wsi": Record(Path(folder) / row["slide"])}, row)
        for row in rows
    ]
    data = Dataset("cohort", patients)
    model = torch.nn.parallel.DistributedDataParallel(net())
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    loss_of = torch.nn.CrossEntropyLoss()
    with (
        Client(address, set_as_default=False) as client,
        LightDL(
            data, smallchunk_size=224, batch_size=16, bigchunk_size=1024, resident="160 MiB",
            smallchunks_per_bigchunk=64, tissue=True, client=client, batch_tfms=ToFloat(),
        ) as loader,
    ):  # fmt: skip
        for x, patients, _ in loader:
            y = torch.tensor([kinds.index(str(patient.labels["label"])) for patient in patients])
            optimiser.zero_grad()
            loss_of(model(x), y).backward()
            optimiser.step()
            done = torch.tensor(float(stop.is_set()))
            torch.distributed.all_reduce(done)
            if done:
                break
    torch.distributed.destroy_process_group()


def browser() -> Any:
    """A browser without a window."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


def wait_for(page: str, true_of: Callable[[dict[str, Any]], list[bool]], count: int) -> None:
    """Until something is true of so many of what the page shows."""
    while True:
        time.sleep(1)
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{page}/state.json") as state:
            if sum(true_of(json.load(state))) >= count:
                return


def shoot(found: Any, name: str, height: int) -> None:
    """What the browser shows, as a small PNG."""
    import io

    from PIL import Image

    found.set_window_size(1180, height)
    time.sleep(4)
    picture = Image.open(io.BytesIO(found.get_screenshot_as_png())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


def main() -> None:
    from distributed import Client, LocalCluster

    import daskdmed
    from daskdmed import samples

    spawn = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        made = samples.make_cohort(folder, 8, 4096)
        stop, store = spawn.Event(), f"{folder}/ranks"
        ranks = [
            spawn.Process(target=train, args=(rank, cluster.scheduler_address, folder, store, stop))
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        found = browser()
        page = client.dashboard_link.replace("/status", "/daskdmed")
        wait_for(page, lambda now: [one["counters"]["batches"] > 200 for one in now["loaders"]], 2)
        found.get(page)
        shoot(found, "dashboard-training.png", 980)
        stop.set()
        for process in ranks:
            process.join()
        slides = [slide.path for slide in made[:4]]
        with spawn.Pool(1) as pool:
            busy = pool.apply_async(shoot_runs, (page,))
            for number, slide in enumerate(slides):
                daskdmed.heatmap(
                    slide, net(), kernel_size=224, stride=112, client=client, block_windows=6,
                    out=f"{folder}/{number}.zarr",
                )  # fmt: skip
            busy.get()
        found.quit()


def shoot_runs(page: str) -> None:
    """From another process, while this one waits for heatmaps."""
    found = browser()
    wait_for(page, lambda now: [run["done"] > 8 for run in now["runs"]], 2)
    found.get(page)
    shoot(found, "dashboard-heatmap.png", 420)
    found.quit()


if __name__ == "__main__":
    main()
