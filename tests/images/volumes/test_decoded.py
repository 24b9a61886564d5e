"""Compressed volumes are decoded once: in memory, or into a cache folder that is never broken."""

from __future__ import annotations

import gzip
import os
import signal
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import dask
import nibabel as nib
import numpy as np
import pytest

from daskdmed import open_volume
from daskdmed.errors import CorruptImageError, StoreError
from daskdmed.images.filecache import cache
from daskdmed.images.volumes import decoded, inflate

VALUES = np.random.default_rng(0).integers(-900, 900, (24, 32, 40)).astype("i2")  # z, y, x
EYE = np.eye(4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("DASKDMED_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "volumes"
    cache.clear()


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "scan.nii.gz", VALUES)


def save(path, values):
    nib.Nifti1Image(values.T, EYE).to_filename(path)
    return path


def large():
    """No compressed volume is kept in memory."""
    return dask.config.set({"daskdmed.images.decoded-limit": 0})


def count_calls(monkeypatch, name):
    calls = []
    whole = getattr(inflate, name)

    def counted(*args):
        calls.append(threading.get_ident())
        return whole(*args)

    monkeypatch.setattr(inflate, name, counted)
    return calls


def read_all(volume):
    """Every plane, by eight threads at once."""
    with ThreadPoolExecutor(8) as pool:
        planes = pool.map(lambda z: volume.read((z, 0, 0), (1, 32, 40)), range(24))
        return np.concatenate(list(planes))


def test_decoded_once(path, monkeypatch):
    calls = count_calls(monkeypatch, "decode")
    volume = open_volume(path)
    assert calls == []  # opening reads the header
    np.testing.assert_array_equal(read_all(volume), VALUES)
    np.testing.assert_array_equal(open_volume(path).to_dask().compute(), VALUES)
    assert len(calls) == 1
    volume.close()
    np.testing.assert_array_equal(read_all(volume), VALUES)
    assert len(calls) == 2


def test_time_points_share_what_is_decoded(tmp_path, monkeypatch):
    calls = count_calls(monkeypatch, "decode")
    path = save(tmp_path / "times.nii.gz", np.stack([VALUES, VALUES + 1]))
    one, two = (open_volume(path, time=t) for t in (0, 1))
    np.testing.assert_array_equal(read_all(one) + 1, read_all(two))
    assert len(calls) == 1


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    calls = count_calls(monkeypatch, "decode")
    files = [save(tmp_path / f"{i}.nii.gz", VALUES + i) for i in range(3)]
    with dask.config.set({"daskdmed.images.decoded-kept": 2 * VALUES.nbytes + 2000}):
        volumes = [open_volume(file) for file in files]
        for i in (0, 1, 0, 1):
            np.testing.assert_array_equal(read_all(volumes[i]), VALUES + i)
        assert len(calls) == 2
        for i in (2, 1, 0):  # 0, the longest unused, had to go
            np.testing.assert_array_equal(read_all(volumes[i]), VALUES + i)
        assert len(calls) == 4


def test_converted_once(path, folder, monkeypatch):
    calls = count_calls(monkeypatch, "pieces")
    with large():
        volume = open_volume(path)
        assert not folder.exists()
        np.testing.assert_array_equal(read_all(volume), VALUES)
        cache.clear()
        np.testing.assert_array_equal(read_all(volume), VALUES)
        assert len(calls) == 1
        (file,) = folder.iterdir()
        assert file.read_bytes() == gzip.decompress(path.read_bytes())
        # another file of this name is another one
        save(path, VALUES + 1)
        np.testing.assert_array_equal(read_all(open_volume(path)), VALUES + 1)
        assert len(calls) == 2
        # what is not whole is made again
        for file in folder.iterdir():
            file.write_bytes(b"short")
        cache.clear()
        np.testing.assert_array_equal(read_all(open_volume(path)), VALUES + 1)


def test_conversion_takes_little_memory(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(inflate, "_PIECE", 1 << 15)
    monkeypatch.setattr(inflate, "_READ", 1 << 15)
    values = np.zeros((64, 160, 160), "i2")
    values[::3] = 5
    volume = open_volume(save(tmp_path / "scan.nii.gz", values))
    with large():
        cache.clear()
        tracemalloc.start()
        try:
            assert volume.read((3, 7, 9), (1, 2, 3)).tolist() == [[[5] * 3] * 2]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < values.nbytes / 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_leaves_nothing_whole(path, folder, monkeypatch):
    monkeypatch.setattr(inflate, "_PIECE", 1 << 12)
    volume = open_volume(path)
    begun, say = os.pipe()
    with large():
        cache.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:  # pragma: no cover
            whole = inflate.pieces

            def pieces(*args):
                for number, piece in enumerate(whole(*args)):
                    yield piece
                    if number == 3:
                        os.write(say, b"x")
                        signal.pause()

            inflate.pieces = pieces
            try:
                volume.read((0, 0, 0), (1, 1, 1))
            finally:
                os._exit(1)
        os.close(say)
        assert os.read(begun, 1) == b"x"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        (left,) = folder.iterdir()
        assert left.name.endswith(".partial")
        np.testing.assert_array_equal(read_all(volume), VALUES)
        assert left.exists()  # another process might be writing it
        os.utime(left, (0, 0))
        cache.clear()
        next(folder.glob("*.raw")).unlink()
        np.testing.assert_array_equal(read_all(volume), VALUES)
        assert [file.suffix for file in folder.iterdir()] == [".raw"]
    os.close(begun)


def test_two_conversions_at_once(path, folder, monkeypatch):
    """As by two processes: both write, and both read what they wrote."""
    with large():
        first = open_volume(path)
        whole = inflate.pieces

        def pieces(*args):
            monkeypatch.setattr(inflate, "pieces", whole)
            yield from whole(*args)
            monkeypatch.setattr(decoded, "_converting", {})
            cache.clear()
            np.testing.assert_array_equal(read_all(open_volume(path)), VALUES)

        monkeypatch.setattr(inflate, "pieces", pieces)
        np.testing.assert_array_equal(first.read((0, 0, 0), VALUES.shape), VALUES)
    assert len(list(folder.iterdir())) == 1


def test_the_cache_folder_is_bounded(tmp_path, folder):
    files = [save(tmp_path / f"{i}.nii.gz", VALUES + i) for i in range(3)]
    size = VALUES.nbytes + 352
    with large(), dask.config.set({"daskdmed.images.cache-limit": 2 * size}):
        volumes = [open_volume(file) for file in files]
        for number, volume in enumerate(volumes[:2]):
            np.testing.assert_array_equal(read_all(volume), VALUES + number)
        for number, file in enumerate(sorted(folder.iterdir(), key=os.path.getmtime)):
            os.utime(file, (number, number))
        np.testing.assert_array_equal(read_all(volumes[2]), VALUES + 2)
        assert len(list(folder.glob("*.raw"))) == 2
        # what was deleted is still open here, and is written again when it is not
        np.testing.assert_array_equal(read_all(volumes[0]), VALUES)
        cache.clear()
        np.testing.assert_array_equal(read_all(volumes[0]), VALUES)
    with large(), dask.config.set({"daskdmed.images.cache-limit": size - 1}):
        cache.clear()
        for file in folder.iterdir():
            file.unlink()
        with pytest.raises(StoreError, match=f"{size} bytes decoded.*cache-limit"):
            read_all(volumes[0])


def test_a_folder_that_cannot_be_written(path, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DASKDMED_CACHE_DIR", str(tmp_path / "file"))
    with large(), pytest.raises(StoreError, match="DASKDMED_CACHE_DIR"):
        open_volume(path).read((0, 0, 0), (1, 1, 1))


def damaged(whole):
    """Contents of files that are not what they say, and why."""
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 255
    check = bytearray(whole)
    check[-6] ^= 255
    plain = gzip.decompress(whole)
    return {
        "cut in the middle": whole[: len(whole) // 2],
        "cut at the end": whole[:-4],
        "changed": bytes(middle),
        "wrong checksum": bytes(check),
        "too short": gzip.compress(plain[:-100]),
        "a bomb": gzip.compress(plain + bytes(50_000_000), 9),
        "the second part is cut": gzip.compress(plain[:9000]) + gzip.compress(plain[9000:])[:-9],
    }


@pytest.mark.parametrize("limit", [0, "512 MiB"])
def test_damaged_files_are_never_read_in_part(path, folder, limit):
    whole = path.read_bytes()
    for what, content in damaged(whole).items():
        path.write_bytes(content)
        with dask.config.set({"daskdmed.images.decoded-limit": limit}):
            volume = open_volume(path)
            tracemalloc.start()
            try:
                with pytest.raises(CorruptImageError, match=r"scan.nii.gz: the gzip file"):
                    volume.read((0, 0, 0), (1, 1, 1))  # which lies before the cut
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert peak < 20e6, what
        assert not list(folder.glob("*")), what


@pytest.mark.parametrize("limit", [0, "512 MiB"])
def test_members_and_padding(path, folder, limit):
    """As bgzip and pigz write it, and tapes pad it."""
    plain = gzip.decompress(path.read_bytes())
    parts = gzip.compress(plain[:5000]) + gzip.compress(b"") + gzip.compress(plain[5000:])
    for content in (parts, parts + bytes(512), gzip.compress(plain + bytes(600))):
        path.write_bytes(content)
        with dask.config.set({"daskdmed.images.decoded-limit": limit}):
            np.testing.assert_array_equal(read_all(open_volume(path)), VALUES)
