"""The whole way on one page: slides, arrays, batches, training, a heatmap, a picture.

Run it without arguments: it makes six slides of two kinds of tissue, trains a small network
on most of them for about half a minute, and shows it a slide it has never seen. All it
knows while training is one label per slide, although up to a quarter of each slide's tissue
is of the other kind.

    python examples/quickstart.py
    python examples/quickstart.py --slides FOLDER --labels LABELS.csv
    python examples/quickstart.py --scheduler tcp://127.0.0.1:8786
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import daskdmed
from daskdmed import Dataset, LightDL, Quota, samples

#: set in tests: smaller slides and fewer steps, to see that everything runs
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
PATCH = 128

Truth = dict[str, samples.MadeSlide]


def small_network(classes: int) -> nn.Module:
    """Three strided convolutions and a mean: enough for two textures."""

    def block(n: int, m: int, kernel: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(n, m, kernel, stride, padding=kernel // 2, bias=False)
        return [convolution, nn.GroupNorm(4, m), nn.ReLU()]

    layers = [*block(3, 16, 5, 4), *block(16, 32, 3, 2), *block(32, 64, 3, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def get_slides(args: argparse.Namespace) -> tuple[Dataset, Truth]:
    """The user's slides, or made ones and their ground truth."""
    if args.slides:
        return Dataset.from_folder(args.slides, labels=args.labels), {}
    made = samples.make_cohort(
        args.output / "slides", n=6, size=3072 if QUICK else 8192, purity=(0.75, 0.9)
    )
    dataset = Dataset.from_folder(args.output / "slides", labels=args.output / "slides/labels.csv")
    return dataset, {m.path.stem: m for m in made}


def show_arrays(dataset: Dataset) -> None:
    """Slides are lazy Dask arrays; nothing is read before something is computed."""
    slide = dataset[0].record().open()
    print(f"\n{slide}")
    for level in range(slide.level_count):
        print(f"  level {level}: {slide.to_dask(level, chunks=2048)}")
    corner = slide.to_dask(slide.level_count - 1).mean(axis=(0, 1)).compute()
    print(f"  mean colour of the smallest level: {corner.round(1)}")


def targets(patients: Any, label: str, classes: list[Any]) -> torch.Tensor:
    """The class of each patch: here the label of its slide."""
    return torch.tensor([classes.index(p.labels[label]) for p in patients])


def train(
    network: nn.Module, loader: LightDL, steps: int, target: Callable[[Any], torch.Tensor]
) -> None:
    """A training loop as any other."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    start, losses = time.perf_counter(), []
    for step, (x, patients, _) in enumerate(loader, start=1):
        loss = nn.functional.cross_entropy(network(x.float() / 255), target(patients))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % max(1, steps // 6) == 0:
            print(f"  step {step:4d}  loss {np.mean(losses[-20:]):.3f}")
    seconds, stats = time.perf_counter() - start, loader.stats()
    print(
        f"  {stats.patches} patches, {stats.patches / seconds:,.0f} patches/s while training; "
        f"the loop waited for data {stats.wait_seconds / seconds:.1%} of the time"
    )


@torch.inference_mode()
def accuracy(
    network: nn.Module, loader: LightDL, target: Callable[[Any], torch.Tensor], truth: Truth
) -> float:
    """Share of patches that are classified right.

    Against the ground truth in the middle of the patch where slides are made, else against
    the label of the slide.
    """
    right = []
    for x, patients, smallchunks in loader:
        found = network(x.float() / 255).argmax(1)
        wanted = target(patients)
        for i, chunk in enumerate(smallchunks):
            made = truth.get(str(chunk.patient.id))
            if made is None:
                right.append(bool(found[i] == wanted[i]))
                continue
            here = made.label_at(*(v + PATCH // 2 for v in chunk.location))
            if here:  # 0 is glass, which has no class
                right.append(int(found[i]) == here - 1)
    return float(np.mean(right))


def area_under_curve(score: np.ndarray[Any, Any], positive: np.ndarray[Any, Any]) -> float:
    """Probability that a positive window scores above a negative one."""
    ranks = score.argsort().argsort() + 1
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def look(network: nn.Module, dataset: Dataset, classes: list[Any], truth: Truth, args: Any) -> None:
    """A heatmap of a slide that was held out, as OME-Zarr and as a picture."""
    patient = dataset[-1]
    slide = patient.record().open()
    out = args.output / "heatmap.ome.zarr"
    start = time.perf_counter()
    heat = daskdmed.heatmap(
        slide,
        nn.Sequential(network, nn.Softmax(dim=1)),
        kernel_size=PATCH,
        stride=PATCH // 2,
        mask=daskdmed.tissue_mask(slide),
        out=out,
        overwrite=True,
        client=args.client,
    )
    print(f"\nheatmap of {patient.id}: {heat} in {time.perf_counter() - start:.1f} s -> {out}")
    if (made := truth.get(str(patient.id))) is not None:
        probability = heat[-1].compute()
        rows, columns = np.nonzero(np.isfinite(probability))
        middles = np.minimum((np.stack([columns, rows], 1) + 1) * (PATCH // 2), made.size[0] - 1)
        here = np.array([made.label_at(x, y) for x, y in middles])
        score = probability[rows, columns][here > 0]
        area = area_under_curve(score, here[here > 0] == 2)
        print(f"  against the ground truth, {len(score)} windows: area under the ROC {area:.3f}")
    figure = daskdmed.plot.overlay(
        slide,
        heat,
        channel=len(classes) - 1,
        vmin=0,
        vmax=1,
        title=f"{patient.id}: what the network takes for {classes[-1]}",
        label=f"probability of {classes[-1]}",
    )
    figure.savefig(args.output / "overlay.png", dpi=130)
    print(f"  picture -> {args.output / 'overlay.png'}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--slides", type=Path, help="folder with your slides")
    parser.add_argument("--labels", type=Path, help="CSV: slide and label, a row per slide")
    parser.add_argument("--scheduler", help="address of a Dask scheduler")
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--steps", type=int, default=60 if QUICK else 300)
    args = parser.parse_args()
    if args.slides and not args.labels:
        parser.error("--slides needs --labels, a CSV with the columns slide and label")
    return args


def main() -> None:
    torch.manual_seed(0)
    # one core is the loader's
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    args = parse()
    args.output.mkdir(parents=True, exist_ok=True)
    args.client = None
    if args.scheduler:
        from distributed import Client

        args.client = Client(args.scheduler)

    dataset, truth = get_slides(args)
    label = dataset.label_names[0]
    classes = sorted(set(dataset.labels(label)))
    training, held_out = dataset.split({"train": 0.67, "held out": 0.33}, by=label, seed=0)
    print(training, held_out, sep="\n")
    show_arrays(dataset)

    def target(patients: Any) -> torch.Tensor:
        return targets(patients, label, classes)

    settings: dict[str, Any] = {
        "smallchunk_size": PATCH,
        "batch_size": 64,
        "bigchunk_size": 2048,
        "smallchunks_per_bigchunk": 128,
        "resident": "400 MiB",
        "tissue": True,
        "quotas": [Quota(1 / len(classes), {label: c}, name=str(c)) for c in classes],
        "client": args.client,
    }
    network = small_network(len(classes)).to(memory_format=torch.channels_last)
    print(f"\ntraining on {len(training)} slides, classes {classes}; of tissue, each class as much")
    if truth:
        print("  (10 to 25 % of each slide's tissue is of the other class, so the loss stays high)")
    with LightDL(training, **settings, epoch_length=args.steps) as loader:
        train(network, loader, args.steps, target)
        varied = loader.stats().diversity
        loader.plot_coverage(training[0]).savefig(args.output / "coverage.png")
    print(
        f"  {varied.coverage:.0%} of the tissue seen, {varied.bigchunks_per_batch:.0f} big chunks "
        f"in a batch -> {args.output / 'coverage.png'}"
    )
    network.eval()
    with LightDL(held_out, **settings, epoch_length=max(4, args.steps // 10)) as loader:
        right = accuracy(network, loader, target, truth)
    print(f"  accuracy on patches of {len(held_out)} held-out slides: {right:.1%}")
    look(network, held_out, classes, truth, args)


if __name__ == "__main__":
    main()
