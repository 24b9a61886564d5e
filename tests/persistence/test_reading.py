from __future__ import annotations

import gc
import pickle

import dask.array as da
import numpy as np
import pytest

from daskdmed.core import buffers
from daskdmed.core.region import Region
from daskdmed.errors import GeometryError, LoaderError
from daskdmed.images.arrayview import ArrayView
from daskdmed.persistence.reading import (
    Job,
    Piece,
    ReadFailure,
    leave_ticket,
    pieces_of,
    read_jobs,
    read_ticket,
)

PIXELS = np.arange(60 * 50 * 3, dtype="u1").reshape(60, 50, 3)
VIEW = ArrayView(da.from_array(PIXELS, chunks=(20, 20, 3)), 2)


def test_one_job_gives_the_bare_block():
    block = read_jobs([Job(VIEW, None, Region((10, 5), (30, 20)))])
    assert np.array_equal(block, PIXELS[10:40, 5:25])


def test_several_jobs_and_targets():
    jobs = [Job(VIEW, VIEW, Region((0, 0), (10, 10))), Job(VIEW, None, Region((1, 1), (5, 5)))]
    first, second = read_jobs(jobs)
    (piece,) = pieces_of(first, jobs[0].region)
    assert np.array_equal(piece.data, piece.target)
    (other,) = pieces_of(second, jobs[1].region)
    assert other.origin == (1, 1)
    assert isinstance(other, Piece)


def test_a_region_beyond_the_image_is_background():
    block = read_jobs([Job(VIEW, None, Region((0, 0), (64, 64)))])
    assert np.array_equal(block[:60, :50], PIXELS)
    assert (block[60:] == 255).all()
    assert (block[:, 50:] == 255).all()


def test_a_travelling_job_reads_the_same_and_is_small():
    job = Job(VIEW, VIEW, Region((10, 5), (30, 60)))
    travelling, delivered = job.localised(client=None)
    assert delivered == (None, None)
    thawed = pickle.loads(pickle.dumps(travelling))
    (a,), (b,) = (pieces_of(read_jobs([j]), j.region) for j in (job, thawed))
    assert np.array_equal(a.data, b.data)
    with pytest.raises(GeometryError, match="outside"):
        thawed.view.read(Region((0, 0), (5, 5)))


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.handle = lambda: b


def broken(block):
    raise Odd("no", 1)


def test_failures_are_values_that_always_pickle():
    view = ArrayView(VIEW.array.map_blocks(broken, dtype="u1", meta=np.empty((0, 0, 0), "u1")), 2)
    good = Job(VIEW, None, Region((0, 0), (5, 5)))
    failure, block = read_jobs([Job(view, None, Region((0, 0), (5, 5))), good])
    assert isinstance(failure, ReadFailure)
    assert isinstance(failure.error, Odd)
    assert np.array_equal(block, PIXELS[:5, :5])
    thawed = pickle.loads(pickle.dumps(failure))
    assert isinstance(thawed.error, LoaderError)
    assert "Odd: no" in str(thawed.error)


def test_tickets_are_shared_by_name_and_forgotten_with_their_holders():
    jobs = (Job(VIEW, None, Region((0, 0), (5, 5))),)
    seen = []
    one, two = leave_ticket("a", jobs), leave_ticket("a", jobs)
    assert one is two
    one.when_done(lambda: seen.append(1))
    result = read_ticket("a")
    one.when_done(lambda: seen.append(2))
    assert seen == [1, 2]
    assert two.result is result
    del one, two
    gc.collect()
    assert read_ticket("a") is None


def test_memory_of_blocks_is_recycled_when_the_last_view_is_gone():
    buffers.clear()
    block = buffers.empty((1024, 1024, 3), "u1")
    place = block.ctypes.data
    view = block[10:20]
    del block
    assert buffers.spare_bytes() == 0
    del view
    gc.collect()
    assert 3 << 20 <= buffers.spare_bytes() < 4 << 20
    again = buffers.empty((1024, 1023, 3), "u1")
    assert again.ctypes.data == place
    assert buffers.spare_bytes() == 0
    buffers.clear()


def test_spare_memory_is_bounded():
    buffers.clear()
    many = [buffers.empty((16 << 20,), "u1") for _ in range(40)]
    del many
    gc.collect()
    assert 0 < buffers.spare_bytes() <= buffers.SPARE_LIMIT
    buffers.clear()
    assert buffers.spare_bytes() == 0


def test_spare_memory_serves_arrays_that_are_a_little_smaller():
    buffers.clear()
    held = buffers.empty((5 << 20,), np.uint8)
    where = held.ctypes.data
    del held
    assert buffers.empty((4 << 20,), np.uint8).ctypes.data == where
    assert buffers.spare_bytes() > 0  # it came back whole
    kept = buffers.empty((1 << 20,), np.uint8)
    assert buffers.spare_bytes() > 0  # far smaller ones do not take it
    del kept
    buffers.clear()
