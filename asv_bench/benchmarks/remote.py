"""Slides behind a URL whose server answers after 50 ms."""

from __future__ import annotations

import inputs
import remote

from benchmarks import Once, requires


class Blocks(Once):
    """Blocks of 4096 x 4096 pixels by two threads."""

    params = ["mixed", "dense"]
    param_names = ["slide"]

    def setup(self, kind: str) -> None:
        requires("aiohttp")
        self.path = inputs.slide(kind)

    def track_ratio_to_tile_by_tile(self, kind: str) -> float:
        return remote.blocks(self.path, inputs.seconds(), 1).to_tiles

    def track_bytes_fetched_per_byte_needed(self, kind: str) -> float:
        return remote.blocks(self.path, inputs.seconds(), 1).fetched

    def track_requests_per_block(self, kind: str) -> float:
        return remote.blocks(self.path, inputs.seconds(), 1).requests

    track_ratio_to_tile_by_tile.unit = "ratio"
    track_bytes_fetched_per_byte_needed.unit = "ratio"
    track_requests_per_block.unit = "requests"
