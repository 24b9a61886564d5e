"""What loaders tell those who listen."""

from __future__ import annotations

import numpy as np
import pytest

from daskdmed import Dataset, LightDL, Patient, Record, SlidingWindowDL, events
from tests.loading.conftest import SMALL


@pytest.fixture
def heard():
    seen = []
    unsubscribe = events.subscribe(seen.append)
    yield seen
    unsubscribe()


@pytest.mark.parametrize("kind", [LightDL, SlidingWindowDL])
def test_batches_are_told_of_when_made_and_when_taken(dataset, heard, kind):
    parameters = SMALL if kind is LightDL else {"kernel_size": 64, "batch_size": 16}
    with kind(dataset, **parameters) as loader:
        taken = [len(next(loader)[2]) for _ in range(5)]
        name = loader.name
    mine = [e for e in heard if getattr(e, "loader", None) == name]
    told = [e for e in mine if isinstance(e, events.BatchTaken)]
    made = [e for e in mine if isinstance(e, events.BatchMade)]
    assert [e.size for e in told] == taken
    assert [e.number for e in told] == list(range(5))
    assert [e.number for e in made] == list(range(len(made)))
    assert len(made) >= len(told)
    assert all(mine.index(m) < mine.index(t) for m, t in zip(made, told, strict=False))
    assert loader.stats().wait_seconds == pytest.approx(sum(e.waited for e in told))
    assert loader.stats().first_batch_seconds > 0


def test_big_chunks_are_told_of_when_asked_for_there_and_gone(dataset, heard):
    with LightDL(dataset, **SMALL) as loader:
        for _ in range(30):
            next(loader)
        loader.set_epoch(1)
        for _ in range(5):
            next(loader)
    stats, mine = loader.stats(), [e for e in heard if getattr(e, "loader", None) == loader.name]

    def places(kind):
        return [(e.patient, e.visit, e.origin, e.shape) for e in mine if isinstance(e, kind)]

    requested = places(events.BigChunkRequested)
    assert len(requested) == stats.visits_admitted
    # closing lets go of what is still there, which is not counted as evicted
    assert sorted(places(events.BigChunkEvicted)) == sorted(requested)
    assert 0 < stats.visits_evicted < stats.visits_admitted
    ready = [e for e in mine if isinstance(e, events.BigChunkReady)]
    assert set(places(events.BigChunkReady)) <= set(requested)
    assert stats.visits_evicted <= len(ready)
    assert all(e.seconds >= 0 for e in ready)


def test_blocks_of_windows_are_told_of_like_big_chunks(dataset, heard):
    with SlidingWindowDL(dataset, kernel_size=100, batch_size=50, block_windows=5) as loader:
        for _ in loader:
            pass
        blocks, name = loader.stats().total_blocks, loader.name

    def visits(kind):
        return sorted(e.visit for e in heard if isinstance(e, kind) and e.loader == name)

    for kind in (events.BigChunkRequested, events.BigChunkReady, events.BigChunkEvicted):
        assert visits(kind) == list(range(blocks))


@pytest.mark.parametrize("kind", [LightDL, SlidingWindowDL])
def test_images_that_are_left_out_are_told_of(dataset, heard, tmp_path, kind):
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    bad = Patient("bad", {"wsi": Record(tmp_path / "bad.svs")})
    parameters = SMALL if kind is LightDL else {"kernel_size": 64}
    loader = kind(Dataset("d", [bad, *dataset]), **parameters, on_error="skip")
    (told,) = [e for e in heard if isinstance(e, events.SlideSkipped)]
    assert (told.patient, told.record) == ("bad", "wsi")
    assert "Error: " in told.reason
    assert [f.patient for f in loader.stats().failed] == ["bad"]


def test_an_image_without_a_mask_is_told_of(dataset, heard):
    def mask(thumbnail):
        if thumbnail[0, 0, 2] == 1:
            raise OSError("no mask today")
        return np.ones(thumbnail.shape[:2], bool)

    with LightDL(dataset, **SMALL, tissue=mask, on_error="skip") as loader:
        for _ in range(10):
            loader.get()
    (told,) = [e for e in heard if isinstance(e, events.SlideSkipped)]
    assert (told.patient, told.reason) == ("p1", "OSError: no mask today")
