"""Slides behind a URL whose server answers after 50 ms."""

from __future__ import annotations

import inputs
import remote

from benchmarks import Once, once_a_run, requires


@once_a_run
def measure(kind: str) -> remote.Remote:
    """For all figures of it."""
    return remote.blocks(inputs.slide(kind), inputs.seconds(), 1)


class Blocks(Once):
    """Blocks of 4096 x 4096 pixels by two threads."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        requires("aiohttp")
        inputs.slide(kind)

    def track_ratio_to_tile_by_tile(self, kind: str) -> float:
        return measure(kind).to_tiles

    def track_bytes_fetched_per_byte_needed(self, kind: str) -> float:
        return measure(kind).fetched

    def track_requests_per_block(self, kind: str) -> float:
        return measure(kind).requests

    track_ratio_to_tile_by_tile.unit = "ratio"
    track_bytes_fetched_per_byte_needed.unit = "ratio"
    track_requests_per_block.unit = "requests"
