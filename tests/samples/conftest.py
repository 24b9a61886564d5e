from __future__ import annotations

from pathlib import Path

import pytest

from daskdmed.errors import SampleNotAvailableError
from daskdmed.samples import fetch


@pytest.fixture(scope="session")
def real_slide() -> Path:
    try:
        return fetch("CMU-1-Small-Region.svs")
    except SampleNotAvailableError as error:
        pytest.skip(str(error))
