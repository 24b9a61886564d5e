from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from daskdmed.errors import SampleNotAvailableError
from daskdmed.samples import _plan, fetch


@pytest.fixture(scope="session", autouse=True)
def _each_texture_is_drawn_once() -> Iterator[None]:
    """The library keeps the last ones; tests take turns with several sizes."""
    with pytest.MonkeyPatch.context() as patch:
        draw = _plan.synthetic_textures.__wrapped__
        patch.setattr(_plan, "synthetic_textures", functools.lru_cache(maxsize=None)(draw))
        yield


@pytest.fixture(scope="session")
def real_slide() -> Path:
    try:
        return fetch("CMU-1-Small-Region.svs")
    except SampleNotAvailableError as error:
        pytest.skip(str(error))
