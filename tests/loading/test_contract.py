"""Both loaders keep the contract of loaders."""

from __future__ import annotations

from daskdmed import LightDL, SlidingWindowDL
from daskdmed.persistence.policy import OnePass
from tests.loading.contract import LoaderContract


class TestLightDL(LoaderContract):
    kind = LightDL
    options = {
        "smallchunk_size": 32,
        "batch_size": 8,
        "bigchunk_size": 128,
        "resident": "1 MiB",
        "smallchunks_per_bigchunk": 20,
    }
    finite = {"policy": OnePass(), "drop_last": False}
    small = "patches"


class TestSlidingWindowDL(LoaderContract):
    kind = SlidingWindowDL
    options = {
        "kernel_size": 32,
        "stride": 20,
        "edge": "shift",
        "batch_size": 8,
        "block_windows": 4,
        "resident": "1 MiB",
    }
    small = "windows"
