"""What all tests share: nothing is written to the cache folder of whoever runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for this session, also for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASKDMED_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
