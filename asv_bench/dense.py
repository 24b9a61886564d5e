"""Dense prediction: this library beside MONAI, each in a process of its own.

    python asv_bench/dense.py                      # both, one round
    python asv_bench/dense.py --rounds 3 --side 4096

Both read the same made slide and run the same network on the same windows (512, overlap
0.25, gaussian), one per call: the CPU gains nothing from more. Peak memory is what a process
holds above what it held before the call.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inputs
import numpy as np

import daskdmed

WINDOW, OVERLAP, BATCH = 512, 0.25, 1


@dataclass(frozen=True)
class Figures:
    """What one run cost.

    Parameters
    ----------
    seconds : float
        Of the call, reading and writing included.
    peak_mib : float
        Peak resident memory above that before the call.
    model_seconds : float
        The bare network on as many windows in memory.
    """

    seconds: float
    peak_mib: float
    model_seconds: float


def side() -> int:
    """Side of the image: 4096, less where slides are made small."""
    return min(4096, max(1024, inputs.side() // 4))


def network() -> Any:
    """A small U-Net: two poolings, 16 to 32 channels, one output per pixel."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=4),
                nn.Conv2d(32, 1, 3, padding=1), nn.Sigmoid(),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    torch.manual_seed(0)
    return Net().eval()


def window_count(pixels: int) -> int:
    """Windows over a square image."""
    step = int(WINDOW * (1 - OVERLAP))
    return (max(-(-(pixels - WINDOW) // step), 0) + 1) ** 2


def with_daskdmed(path: Path, model: Any) -> None:
    """`predict`, to a store on disk."""
    with tempfile.TemporaryDirectory() as folder:
        daskdmed.predict(
            path, model, kernel_size=WINDOW, overlap=OVERLAP, batch_size=BATCH,
            out=Path(folder) / "out.zarr",
        )  # fmt: skip


def with_monai(path: Path, model: Any) -> None:
    """`sliding_window_inference`, to a tensor in memory."""
    import torch
    from monai.inferers import sliding_window_inference

    slide = daskdmed.open_slide(path)
    pixels = slide.read_region((0, 0), 0, slide.dimensions)
    x = torch.from_numpy(pixels).movedim(-1, 0)[None].float().div_(255)
    with torch.inference_mode():
        sliding_window_inference(x, (WINDOW, WINDOW), BATCH, model, OVERLAP, mode="gaussian")


def bare_model(model: Any, windows: int) -> float:
    """Seconds that the network alone takes for that many windows."""
    import torch

    x = torch.zeros(BATCH, 3, WINDOW, WINDOW)
    with torch.inference_mode():
        model(x)
        start = time.perf_counter()
        rounds = max(1, min(8, windows // (8 * BATCH)))
        for _ in range(rounds):
            model(x)
    return (time.perf_counter() - start) / (rounds * BATCH) * windows


@functools.cache
def measure(who: str, pixels: int, number: int = 0) -> Figures:
    """One run in a process of its own; each `number` is measured once."""
    path = inputs.slide("dense", pixels)
    command = [sys.executable, __file__, "--child", who, str(path), str(pixels)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def _child(who: str, path: str, pixels: int) -> None:
    model = network()
    model_seconds = bare_model(model, window_count(pixels))
    call = {"daskdmed": with_daskdmed, "monai": with_monai}[who]
    small = inputs.slide("dense", 512)
    call(small, model)  # imports, first-use costs
    held = _reset_peak()
    start = time.perf_counter()
    call(Path(path), model)
    seconds = time.perf_counter() - start
    figures = Figures(seconds, (_status("VmHWM") - held) / 2**20, model_seconds)
    print(json.dumps(figures.__dict__))


def _reset_peak() -> int:
    """Bytes resident now; the kernel's record of the peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def dense_ratio(pixels: int) -> tuple[float, float]:
    """Seconds of (dense mode, heatmap window by window) of one network without padding.

    It sees 127 pixels and has a stride of 32: window by window it computes 16 times as much.
    """
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in [(3, 16), (16, 32), (32, 32), (32, 64), (64, 64)]:
        layers += [nn.Conv2d(n, m, 3, 2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(64, 2, 3)).eval()
    image = np.random.default_rng(0).integers(0, 255, (pixels, pixels, 3), np.uint8)
    start = time.perf_counter()
    dense = daskdmed.predict(
        image, model, kernel_size=512, receptive_field=127, output_stride=32
    ).compute()
    middle = time.perf_counter()
    windows = daskdmed.heatmap(image, model, kernel_size=127, stride=32).compute()
    end = time.perf_counter()
    np.testing.assert_allclose(dense, windows, rtol=1e-3, atol=1e-4)
    return middle - start, end - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", type=int, default=0)
    args = parser.parse_args()
    if args.child:
        _child(args.child[0], args.child[1], int(args.child[2]))
        return
    pixels = args.side or side()
    for number in range(args.rounds):
        for who in ("daskdmed", "monai"):
            found = measure(who, pixels, number)
            print(
                f"round {number} {who:9s} {found.seconds:7.2f} s "
                f"(bare model {found.model_seconds:.2f} s), peak {found.peak_mib:7.1f} MiB"
            )
    dense, windows = dense_ratio(pixels)
    print(f"dense mode {dense:.2f} s, window by window {windows:.2f} s: {windows / dense:.1f} x")


if __name__ == "__main__":
    main()
