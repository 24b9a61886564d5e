"""The per-process collection of open readers."""

from __future__ import annotations

import os
import threading
import warnings

import pytest

from daskdmed.images import filecache
from daskdmed.images.filecache import FileCache, FileKey


class FakeReader:
    opened = 0

    def __init__(self, key):
        self.key = key
        self.closed = 0
        FakeReader.opened += 1

    def close(self):
        self.closed += 1


@pytest.fixture
def fake(monkeypatch):
    FakeReader.opened = 0
    monkeypatch.setattr(filecache, "open_reader", FakeReader)
    return FileCache(2)


def key(name):
    return FileKey(name, "fake", "1")


def test_a_reader_is_opened_once_and_shared(fake):
    with fake.lease(key("a")) as one, fake.lease(key("a")) as two:
        assert one is two
    with fake.lease(key("a")) as three:
        assert three is one
    assert FakeReader.opened == 1
    assert one.closed == 0


def test_the_longest_unused_is_closed(fake):
    readers = {}
    for name in "abac":
        with fake.lease(key(name)) as reader:
            readers[name] = reader
    assert (readers["a"].closed, readers["b"].closed, readers["c"].closed) == (0, 1, 0)
    assert len(fake) == 2


def test_a_reader_in_use_is_not_closed(fake):
    with fake.lease(key("a")) as a:
        for name in "bcd":
            with fake.lease(key(name)):
                pass
        assert a.closed == 0
        with fake.lease(key("x")) as x, fake.lease(key("y")) as y:
            assert len(fake) == 3
            assert (x.closed, y.closed) == (0, 0)
    assert len(fake) == 2


def test_discard_waits_for_the_last_user(fake):
    with fake.lease(key("a")) as a:
        fake.discard("a")
        assert a.closed == 0
        with fake.lease(key("a")) as fresh:
            assert fresh is not a
    assert a.closed == 1
    assert fresh.closed == 0
    fake.clear()
    assert fresh.closed == 1
    assert len(fake) == 0


def test_put(fake):
    first, second = FakeReader(key("a")), FakeReader(key("a"))
    fake.put(key("a"), first)
    fake.put(key("a"), second)
    assert (first.closed, second.closed) == (0, 1)
    with fake.lease(key("a")) as reader:
        assert reader is first
    for name in "bc":
        fake.put(key(name), FakeReader(key(name)))
    assert first.closed == 1


def test_a_failed_opening_leaves_nothing(monkeypatch):
    def refuse(key):
        raise OSError("no")

    monkeypatch.setattr(filecache, "open_reader", refuse)
    cache = FileCache(2)
    with pytest.raises(OSError, match="no"), cache.lease(key("a")):
        pass
    assert len(cache) == 0
    monkeypatch.setattr(filecache, "open_reader", FakeReader)
    with cache.lease(key("a")) as reader:
        assert reader.closed == 0


def test_many_threads(fake):
    problems = []

    def work(seed):
        for i in range(300):
            with fake.lease(key("abcde"[(i * seed) % 5])) as reader:
                if reader.closed:
                    problems.append(reader)

    threads = [threading.Thread(target=work, args=(s,)) for s in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(fake) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_empty(make, tmp_path):
    from daskdmed.images.opening import open_slide

    make.write_format(tmp_path / "a.tif", "lzw")
    slide = open_slide(tmp_path / "a.tif")
    expected = slide.read_region((0, 0), 0, (50, 50))
    assert len(filecache.cache) == 1
    filecache.cache._lock.acquire()  # as another thread might at this moment
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:  # pragma: no cover
            fine = len(filecache.cache) == 0
            fine = fine and (slide.read_region((0, 0), 0, (50, 50)) == expected).all()
            os._exit(0 if fine else 1)
    finally:
        filecache.cache._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
