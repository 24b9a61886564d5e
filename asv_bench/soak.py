"""A long run: memory stays within the byte budget, and nothing slows down.

    python soak.py                       100,000 batches (about ten minutes on two cores)
    python soak.py --batches 2000        shorter

Prints memory and rate every few per cent, and fails when memory grows beyond the budget plus
300 MiB, or when the last tenth is slower than half of the first.
"""

from __future__ import annotations

import argparse
import sys
import time

import inputs
import psutil
import scenarios

from daskdmed import LightDL

MARGIN = 300 << 20


def main() -> None:
    """Run and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--resident", default="2 GiB")
    parser.add_argument("--bigchunk", type=int, default=4096)
    parser.add_argument("--draws", type=int, default=512)
    options = parser.parse_args()
    process = psutil.Process()
    data = scenarios.dataset(inputs.slides("mixed"))
    before = process.memory_info().rss
    rates, peak = [], 0
    with LightDL(
        data,
        batch_size=64,
        smallchunk_size=224,
        bigchunk_size=options.bigchunk,
        smallchunks_per_bigchunk=options.draws,
        resident=options.resident,
    ) as loader:
        step = max(1, options.batches // 20)
        began = time.perf_counter()
        for number in range(1, options.batches + 1):
            next(loader)
            if number % step == 0:
                now = time.perf_counter()
                rates.append(step / (now - began))
                began = now
                memory = process.memory_info().rss - before
                peak = max(peak, memory)
                print(
                    f"{number / options.batches:4.0%}  {memory / 2**20:7,.0f} MiB above the start, "
                    f"{rates[-1]:7,.0f} batches/s",
                    flush=True,
                )
        stats = loader.stats()
    print(stats)
    allowed = stats.budget_bytes + MARGIN
    print(f"peak {peak / 2**20:,.0f} MiB, allowed {allowed / 2**20:,.0f} MiB")
    tenth = max(1, len(rates) // 10)
    slowed = sum(rates[-tenth:]) < sum(rates[:tenth]) / 2
    if peak > allowed or slowed:
        sys.exit("memory grew" if peak > allowed else "the loader slowed down")


if __name__ == "__main__":
    main()
