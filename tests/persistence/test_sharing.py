"""Where blocks of worker processes lie, as the workers say it."""

from __future__ import annotations

import pickle

import dask
import dask.array as da
import numpy as np
import pytest
from distributed.utils_test import gen_cluster

from daskdmed.core.region import Region
from daskdmed.core.shared import segments
from daskdmed.images.arrayview import ArrayView
from daskdmed.persistence.reading import Job, ReadFailure, read_for_others
from daskdmed.persistence.sharing import Sharing

PIXELS = np.arange(60 * 50 * 3, dtype="u1").reshape(60, 50, 3)
VIEW = ArrayView(da.from_array(PIXELS, chunks=(20, 20, 3)), 2)
LABELS = ArrayView(da.from_array(PIXELS[..., 0].copy(), chunks=(20, 20)), 2)
REGION = Region((10, 5), (30, 20))


def broken(block):
    raise OSError("unreadable")


BROKEN = ArrayView(da.from_array(PIXELS).map_blocks(broken, dtype="u1"), 2)

JOBS = {
    "one": (Job(VIEW, None, REGION),),
    "several": (Job(VIEW, None, REGION), Job(VIEW, None, Region((0, 0), (64, 64)))),
    "a target": (Job(VIEW, LABELS, REGION),),
    "pieces": (
        Job(VIEW, LABELS, REGION, chooser=lambda *_: [REGION, Region((0, 0), (9, 9))], context=0),
    ),
}


def flat(loaded):
    """Arrays of what was read, and where their pieces begin."""
    if isinstance(loaded, np.ndarray):
        return [loaded]
    if isinstance(loaded, tuple):
        return [np.array(loaded[0]), loaded[1], np.array(loaded[2])]
    return [array for item in loaded for array in flat(item)]


@pytest.mark.parametrize("kind", JOBS)
def test_what_is_read_for_others_has_handles(kind, monkeypatch):
    from daskdmed.persistence import reading, sharing

    regions = [REGION, Region((0, 0), (9, 9))]
    monkeypatch.setattr(reading, "choose", lambda job: regions)
    shared = read_for_others(JOBS[kind])
    with dask.config.set({"daskdmed.shared-memory": False}):
        private = read_for_others(JOBS[kind])
    handles = sharing._each_array(shared, sharing._handle)
    pickle.loads(pickle.dumps(handles))
    mapped = sharing._each_array(handles, sharing._attached, segments.Handle)
    for ours, theirs in zip(flat(mapped), flat(private), strict=True):
        assert np.array_equal(ours, theirs)
    assert len({h.address for h in _handles(handles)}) == 1, "what one task reads lies together"
    with pytest.raises(sharing.NotSharedError):
        sharing._each_array(private, sharing._handle)


def _handles(tree):
    if isinstance(tree, segments.Handle):
        return [tree]
    if isinstance(tree, tuple | list):
        return [h for item in tree for h in _handles(item)]
    return []


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, config={"daskdmed.machine": "m"})
async def test_a_client_maps_what_a_worker_holds(c, s, a, b):
    sharing = Sharing(c)
    future = c.submit(read_for_others, JOBS["one"], key=("big-chunk", 1), workers=[b.address])
    await future
    mapped, holder = await sharing.map(("big-chunk", 1))
    assert holder == b.address
    assert np.array_equal(mapped, PIXELS[REGION.slices])
    assert not mapped.flags.writeable
    future.release()
    while b.data:
        await c.scheduler.identity()
    assert await sharing.map(("big-chunk", 1)) == (None, None)
    assert np.array_equal(mapped, PIXELS[REGION.slices]), "Dask let go of it, we did not"


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], config={"daskdmed.machine": "m"})
async def test_what_is_private_or_elsewhere_is_not_mapped(c, s, a):
    sharing = Sharing(c)
    key = ("big-chunk", 1)
    private = c.submit(np.zeros, (5, 5), key=key)
    await private
    assert await sharing.map(key) == (None, a.address)
    failed = c.submit(read_for_others, (Job(BROKEN, None, REGION),), key=("big-chunk", 2))
    await failed
    mapped, _ = await sharing.map(("big-chunk", 2))
    assert isinstance(mapped, ReadFailure)
    shared = c.submit(read_for_others, JOBS["one"], key=("big-chunk", 3))
    await shared
    asked = []

    async def ask(worker, key):
        asked.append(worker)
        return "another machine", None

    elsewhere = Sharing(c)
    elsewhere._ask = ask
    for _ in range(2):
        assert await elsewhere.map(("big-chunk", 3)) == (None, a.address)
    assert len(asked) == 1, "who is on another machine is asked once"
