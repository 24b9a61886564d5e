"""Slides over HTTP: how much is asked for, and what becomes of servers that fail."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import fsspec
import numpy as np
import pytest
import tifffile

from daskdmed import open_slide, open_volume
from daskdmed.core.region import Region
from daskdmed.errors import (
    ChangedImageError,
    ImageError,
    ImageNotFoundError,
    ImagePermissionError,
    RemoteError,
    UnsupportedImageError,
    UsageError,
)
from daskdmed.images.filecache import cache
from daskdmed.images.parts import read_parts
from daskdmed.images.refusals import RangeError
from daskdmed.images.remote.blocks import BLOCK, blocks
from daskdmed.images.remote.counting import count_requests
from daskdmed.images.remote.settings import settings
from daskdmed.images.remote.source import AHEAD, RemoteSource

WHOLE = ((0, 0), 0, (1024, 1024))


def setting(**values):
    return dask.config.set(
        {f"daskdmed.images.remote.{n.replace('_', '-')}": v for n, v in values.items()}
    )


def again(slide):
    """The same slide as another process has it, which knows nothing of the file."""
    cache.clear()
    blocks.clear()
    return pickle.loads(pickle.dumps(slide))


# --- how much is asked for


def test_opening_takes_few_requests_and_no_head(server):
    server.behave(head=False)
    with count_requests() as count:
        slide = open_slide(server.url("a.tif"))
    assert slide.level_dimensions == ((1024, 1024), (256, 256))
    assert slide.mpp == (0.5, 0.5)
    assert count.requests == len(server.requests) <= 3  # the head, and where the directories lie
    assert server.heads == 0


def test_a_region_is_fetched_with_few_requests_that_are_in_flight_together(server, slide):
    opened = again(open_slide(server.url("a.tif")))
    opened.read_region((0, 0), 1, (8, 8))  # open again
    server.behave()
    with setting(run="512 KiB"), count_requests() as count:
        found = opened.read_region(*WHOLE)
    assert np.array_equal(found, slide[1])
    assert count.requests == len(server.requests) <= 7  # 64 tiles of 48 KiB
    assert count.needed == 64 * 128 * 128 * 3
    assert count.fetched <= count.needed + 2 * BLOCK


def test_requests_wait_for_each_other_only_beyond_the_bound(server):
    together, gate, held = threading.Barrier(4), threading.Lock(), [0, 0]

    def hold():
        # a request that is let go has no answer yet, so that no other comes in its place before
        with gate:
            held[0] += 1
            held[1] = max(held)
        together.wait(60)
        with gate:
            held[0] -= 1

    source = RemoteSource(server.url("a.tif"))
    server.behave(hold=hold)
    with setting(run="64 KiB", connections=4, cache_bytes=0):
        # four at a time come through the barrier, which three alone would not
        source.read_many([600_000], [8 * BLOCK])
    assert held[1] == 4
    assert len(server.requests) == 8


@pytest.mark.parametrize("kept", ["128 MiB", 0])
def test_far_neighbours_are_asked_for_apart_and_near_ones_together(server, slide, kept):
    with setting(cache_bytes=kept, gap="64 KiB"):
        source = RemoteSource(server.url("a.tif"))
        blocks.clear()
        server.behave()
        offsets, counts = [1_000_000, 1_070_000, 2_000_000, 5], [10_000, 9, 70_000, 0]
        parts = source.read_many(offsets, counts)
    assert parts == [slide[0][o : o + n] for o, n in zip(offsets, counts)]
    assert len(server.requests) == 2


def test_any_ranges_are_the_bytes_of_the_file(server, slide):
    data, _ = slide
    rng = np.random.default_rng(0)
    for kept in ("128 MiB", "1 MiB", 0):
        with setting(cache_bytes=kept, gap="16 KiB", run="256 KiB"):
            source = RemoteSource(server.url("a.tif"))
            for _ in range(6):
                offsets = rng.integers(0, len(data), 9).tolist()
                counts = rng.integers(0, 400_000, 9).tolist()
                expected = [data[o : o + n] for o, n in zip(offsets, counts)]
                assert source.read_many(offsets, counts) == expected


def test_what_is_kept_is_not_asked_for_again_by_any_reader(server, slide):
    opened = open_slide(server.url("a.tif"))
    opened.read_region(*WHOLE)
    cache.clear()
    server.behave()
    with count_requests() as count:
        assert np.array_equal(open_slide(server.url("a.tif")).read_region(*WHOLE), slide[1])
    assert count.requests == len(server.requests) == 1  # whether it is still the same
    assert count.cached >= 64 * 128 * 128 * 3


def test_what_is_kept_stays_within_its_bound(server):
    source = RemoteSource(server.url("a.tif"))
    with setting(cache_bytes=8 * BLOCK):
        for at in range(0, 40 * BLOCK, 4 * BLOCK):
            source.read(at, 4 * BLOCK)
            assert blocks.nbytes <= 8 * BLOCK
        assert blocks.nbytes == 8 * BLOCK
        server.behave()
        source.read(36 * BLOCK, 4 * BLOCK)
        assert not server.requests  # the last ones are those that stayed
        source.read(0, 20 * BLOCK)  # more than is kept at all does not drive out what is
        source.read(36 * BLOCK, 4 * BLOCK)
    assert len(server.requests) == 1


def test_nothing_is_kept_where_the_bound_is_0(server, slide):
    with setting(cache_bytes=0):
        opened = open_slide(server.url("a.tif"))
        assert len(server.requests) <= 4
        for _ in range(2):
            server.behave()
            assert np.array_equal(opened.read_region(*WHOLE), slide[1])
            assert server.requests
    assert blocks.nbytes == 0


@pytest.fixture
def claims(monkeypatch):
    """Released whenever a reader has claimed blocks."""
    claimed, claim = threading.Semaphore(0), blocks.claim

    def seen(*args):
        found = claim(*args)
        claimed.release()
        return found

    monkeypatch.setattr(blocks, "claim", seen)
    return claimed


def test_two_threads_that_want_the_same_fetch_it_once(server, slide, claims):
    source = RemoteSource(server.url("a.tif"))
    go = threading.Event()
    server.behave(hold=lambda: go.wait(60))
    with ThreadPoolExecutor(5) as pool:
        futures = [pool.submit(source.read, 1_000_000, 90_000) for _ in range(5)]
        for _ in range(5):
            assert claims.acquire(timeout=60)  # all of them have asked
        go.set()
        assert {f.result() for f in futures} == {slide[0][1_000_000:1_090_000]}
    assert len(server.requests) == 1


def test_what_comes_between_is_not_fetched_again_by_who_wants_it(server, slide, claims):
    source = RemoteSource(server.url("a.tif"))
    go = threading.Event()
    server.behave(hold=lambda: go.wait(60))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.read_many, [20 * BLOCK, 22 * BLOCK], [9, 9])
        assert claims.acquire(timeout=60)
        assert claims.acquire(timeout=60)  # what lies between
        second = pool.submit(source.read, 21 * BLOCK, 9)
        assert claims.acquire(timeout=60)
        go.set()
        assert second.result(60) == slide[0][21 * BLOCK :][:9]
        assert first.result(60) == [slide[0][n * BLOCK :][:9] for n in (20, 22)]
    assert len(server.requests) == 1


def test_who_waits_for_what_fails_gets_the_error_and_the_next_one_the_bytes(server, slide, claims):
    source = RemoteSource(server.url("a.tif"))
    file = (source.uri, source._facts)
    _, mine, _ = blocks.claim(file, [20])
    while claims.acquire(blocking=False):
        pass
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(source.read, 20 * BLOCK, 9)
        assert claims.acquire(timeout=60)
        blocks.abandon(file, mine, RemoteError("gone", tries=3))
        with pytest.raises(RemoteError, match="gone") as caught:
            waits.result(60)
    assert caught.value.tries == 3
    assert source.read(20 * BLOCK, 9) == slide[0][20 * BLOCK :][:9]


def test_who_waits_for_one_that_was_interrupted_fetches_it(server, slide):
    source = RemoteSource(server.url("a.tif"))
    file = (source.uri, source._facts)
    _, mine, _ = blocks.claim(file, [20])
    _, _, others = blocks.claim(file, [20])
    blocks.abandon(file, mine, None)
    assert others[20].cancelled()
    assert source.read(20 * BLOCK, 9) == slide[0][20 * BLOCK :][:9]


# --- what passes, and what does not


@pytest.mark.parametrize("failure", [503, 500, 429, "cut", "short"])
@pytest.mark.parametrize("kept", ["128 MiB", 0])
def test_what_passes_is_tried_again(server, slide, failure, kept):
    with setting(cache_bytes=kept):
        opened = open_slide(server.url("a.tif"))
        blocks.clear()
        server.behave(next=[failure, failure])
        with count_requests() as count:
            assert np.array_equal(opened.read_region(*WHOLE), slide[1])
    assert count.retries == 2
    assert not server.next


@pytest.mark.parametrize(("failure", "said"), [(503, "503"), ("cut", ""), ("short", "ended after")])
def test_what_lasts_is_an_error_with_the_number_of_tries(server, slide, failure, said):
    opened = open_slide(server.url("a.tif"))
    blocks.clear()
    server.behave(always=failure)
    with setting(tries=3), pytest.raises(RemoteError, match=f"3 tries.*{said}") as caught:
        opened.read_region((500, 500), 0, (9, 9), tile_error="fill")  # no tile is painted over
    assert caught.value.tries == 3
    assert len(server.requests) == 3
    assert pickle.loads(pickle.dumps(caught.value)).tries == 3
    server.behave()
    assert np.array_equal(opened.read_region(*WHOLE), slide[1])


def test_an_opening_that_fails_asks_once_for_all_backends(server):
    server.behave(always=503)
    with setting(tries=2), pytest.raises(RemoteError, match="2 tries"):
        open_slide(server.url("a.tif"))
    assert len(server.requests) == 2


def test_the_wait_doubles_and_is_spread_and_bounded():
    from daskdmed.images.remote.retry import pause

    with setting(backoff="1s", backoff_limit="8s"):
        limits = settings()
    for failed, whole in [(1, 1), (2, 2), (3, 4), (4, 8), (9, 8), (10**6, 8)]:
        waits = [pause(limits, failed, None) for _ in range(50)]
        assert whole / 2 <= min(waits) < max(waits) <= whole
    assert pause(limits, 1, 5.0) == 5.0  # the server asks for it
    assert pause(limits, 1, 500.0) == 8.0


def test_a_server_that_does_not_answer_in_time_is_tried_again(server, slide):
    opened = open_slide(server.url("a.tif"))
    blocks.clear()
    go = threading.Event()
    waiting = iter([go])
    server.behave(hold=lambda: next(waiting, threading.Event()).wait(0 if go.is_set() else 60))

    def answer():
        # the first request is left alone until its time is over
        while len(server.requests) < 2:
            threading.Event().wait(0.01)
        go.set()

    thread = threading.Thread(target=answer)
    thread.start()
    with setting(timeout="200 ms", tries=50):
        assert np.array_equal(opened.read_region((0, 0), 1, (256, 256)), slide[1][::4, ::4])
    thread.join()


def test_what_is_not_there_or_not_allowed_is_asked_once(server):
    with pytest.raises(ImageNotFoundError, match="404"):
        open_slide(server.url("b.tif"))
    assert len(server.requests) == 1
    server.behave(always=403)
    with pytest.raises(ImagePermissionError, match=r"403.*storage_options"):
        open_slide(server.url("a.tif"))
    assert len(server.requests) == 1


def test_a_server_that_is_not_there():
    with setting(tries=2), pytest.raises(RemoteError, match="2 tries"):
        open_slide("http://127.0.0.1:9/a.tif")  # the port of "discard"


def test_headers_are_sent_and_shown_nowhere(server, slide, caplog):
    caplog.set_level("DEBUG")
    token = "Bearer 0123456789"
    server.behave(token=token)
    with pytest.raises(ImagePermissionError):
        open_slide(server.url("a.tif"))
    opened = open_slide(server.url("a.tif"), storage_options={"headers": {"Authorization": token}})
    assert np.array_equal(again(opened).read_region(*WHOLE), slide[1])
    server.behave(token=token, always=500)
    blocks.clear()
    with pytest.raises(RemoteError) as caught:
        opened.read_region(*WHOLE)
    assert caught.value.__cause__ is None  # it holds the headers
    assert "0123456789" not in repr(caught.value) + caplog.text


# --- another file than was opened


def test_a_file_that_is_replaced_meanwhile_is_an_error_and_no_mixture(server, slide, other):
    opened = open_slide(server.url("a.tif"))
    blocks.clear()
    server.behave(replace=(2, other[0]))
    with setting(run="256 KiB", connections=1), pytest.raises(ChangedImageError, match="open it"):
        opened.read_region(*WHOLE, tile_error="fill")
    with pytest.raises(ChangedImageError):
        opened.read_region(*WHOLE)
    cache.clear()
    with pytest.raises(ChangedImageError):
        opened.read_region(*WHOLE)
    assert np.array_equal(open_slide(server.url("a.tif")).read_region(*WHOLE), other[1])


def test_without_an_etag_a_file_of_another_size_is_told_from_it(server, slide):
    server.behave(etag=False)
    opened = open_slide(server.url("a.tif"))
    blocks.clear()
    server.files["a.tif"] = slide[0] + b"more"
    with pytest.raises(ChangedImageError, match="bytes"):
        opened.read_region(*WHOLE)
    server.files["a.tif"] = slide[0][:1000]
    blocks.clear()
    with pytest.raises(ChangedImageError, match="bytes"):
        opened.read_region(*WHOLE)


def test_a_file_that_is_gone_meanwhile(server):
    opened = open_slide(server.url("a.tif"))
    blocks.clear()
    server.files.clear()
    with pytest.raises(ImageError, match="404"):
        opened.read_region(*WHOLE)


def test_elsewhere_the_file_system_is_asked_whether_it_is_the_same(slide, other):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/remote/a.tif", slide[0])
    opened = open_slide("memory://remote/a.tif")
    blocks.clear()
    memory.pipe_file("/remote/a.tif", other[0])
    with setting(check_interval=0), pytest.raises(ChangedImageError):
        opened.read_region(*WHOLE)


# --- odd servers


def test_a_server_without_ranges_is_refused_before_it_has_sent_much(server, slide):
    server.files["b.tif"] = bytes(200 << 20)
    server.behave(ranges=False)
    for name in ("a.tif", "b.tif"):
        with pytest.raises(RangeError, match=r"range.*whole file.*simplecache::http"):
            open_slide(server.url(name))
    assert server.sent < 64 << 20  # of 200 MiB; what the connection has taken before it was closed


def test_a_whole_file_that_is_small_is_taken_for_its_range(server, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (100, 64, 3), np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", values, tile=(64, 64), photometric="rgb")
    server.files["s.tif"] = (tmp_path / "s.tif").read_bytes()
    server.behave(ranges=False)
    opened = open_slide(server.url("s.tif"))
    blocks.clear()
    assert np.array_equal(opened.read_region((0, 0), 0, (64, 100)), values)


def test_another_range_than_was_asked_for_is_refused(server):
    server.behave(shift=1)
    with pytest.raises(UnsupportedImageError, match="range"):
        open_slide(server.url("a.tif"))


def test_what_is_sent_compressed_is_refused(server):
    server.behave(gzip=True)
    with pytest.raises(UnsupportedImageError, match=r"compressed \(gzip\)"):
        open_slide(server.url("a.tif"))


def test_redirections_are_followed_and_then_known(server, slide):
    opened = open_slide(server.url("moved/a.tif"))
    opened.read_region(*WHOLE)
    blocks.clear()
    server.behave()
    assert np.array_equal(opened.read_region(*WHOLE), slide[1])
    assert {path for path, _ in server.requests} == {"/a.tif"}
    # one that takes credentials may know none of them elsewhere
    server.behave(token="Bearer 0123456789")
    options = {"headers": {"Authorization": server.token}}
    opened = open_slide(server.url("moved/a.tif"), storage_options=options)
    assert np.array_equal(opened.read_region(*WHOLE), slide[1])
    paths = [path for path, _ in server.requests]
    assert paths.count("/moved/a.tif") == paths.count("/a.tif")


def test_a_place_that_was_redirected_to_and_is_no_longer_is_asked_for_anew(server, slide):
    opened = open_slide(server.url("moved/a.tif"))
    blocks.clear()
    server.behave(next=[403])  # signed for a while only
    assert np.array_equal(opened.read_region(*WHOLE), slide[1])
    assert "/moved/a.tif" in [path for path, _ in server.requests]


def test_an_empty_file(server):
    server.files["e.tif"] = b""
    with pytest.raises(ImageError, match=r"e\.tif.*(empty|no backend)"):
        open_slide(server.url("e.tif"))


# --- settings, volumes


def test_settings_that_cannot_be_read_are_named():
    for name, value in [("tries", 0), ("gap", "much"), ("timeout", -1), ("run", 0), ("trys", 3)]:
        with setting(**{name: value}), pytest.raises(UsageError, match=rf"remote\.{name}"):
            settings()
    assert settings().cache_bytes == 128 << 20


def test_volumes_over_http(server, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 200, (20, 24, 28), np.int16)
    for name in ("v.nii", "v.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / name)
        server.files[name] = (tmp_path / name).read_bytes()
        volume = open_volume(server.url(name))
        assert np.array_equal(volume.read((0, 0, 0), volume.shape), values.T)
        assert np.array_equal(again(volume).read((1, 2, 3), (2, 3, 4)), values.T[1:3, 2:5, 3:7])
    stack = values.astype(np.uint8)
    tifffile.imwrite(tmp_path / "v.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    server.files["v.tif"] = (tmp_path / "v.tif").read_bytes()
    volume = open_volume(server.url("v.tif"))
    assert np.array_equal(volume.read((0, 0, 0), volume.shape), stack)


def test_a_part_of_a_volume_is_asked_for_together(server, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 200, (40, 120, 300), np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "v.nii")
    server.files["v.nii"] = (tmp_path / "v.nii").read_bytes()
    volume = open_volume(server.url("v.nii"))
    blocks.clear()
    server.behave()
    found = volume.read((20, 30, 3), (200, 8, 9))
    assert np.array_equal(found, values.T[20:220, 30:38, 3:12])
    assert len(server.requests) == 1


def test_parts_of_a_region_wait_for_a_server_together(server, slide):
    view = open_slide(server.url("a.tif")).view()
    blocks.clear()
    together = threading.Barrier(3)
    server.behave(hold=lambda: together.wait(60))
    region = Region((0, 0), (1024, 1024))
    boxes = [Region((y, 5), (9, 9)) for y in (5, 400, 900)]
    found = read_parts(view, region, boxes)  # one after the other would wait for ever
    for box in boxes:
        assert np.array_equal(found[box.slices], slide[1][box.slices])


def test_what_volumes_are_not_read_from_urls_is_said(server):
    server.files["v.h5"] = b"\x89HDF\r\n\x1a\n" + bytes(100)
    with pytest.raises(UnsupportedImageError):
        open_volume(server.url("v.h5"))


def test_a_parser_reads_ahead(server, slide):
    source = RemoteSource(server.url("a.tif"))
    server.behave()
    with source.scanning(), source.open_file() as file:
        for at in range(AHEAD, 2 * AHEAD - 2 * BLOCK, 9999):
            file.seek(at)
            assert file.read(7) == slide[0][at : at + 7]
    assert len(server.requests) == 1
