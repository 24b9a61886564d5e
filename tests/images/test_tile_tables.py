"""Long lists of tiles stay in the file until a tile is read."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile

import daskdmed
from daskdmed.core.region import Region
from daskdmed.errors import CorruptImageError
from daskdmed.images import source as sources
from daskdmed.images.tiff import TiffBackend
from daskdmed.images.tiff.tables import LONG

#: 33 x 33 tiles
SIDE, TILE = 33 * 16 - 5, 16
KINDS = {
    "classic": {},
    "big-endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True},
    "planar": {"planarconfig": "separate"},
}


def write(path, kind="classic", pages=1):
    rng = np.random.default_rng(0)
    shape = (pages, SIDE, SIDE) if pages > 1 else (SIDE, SIDE, 3)
    image = rng.integers(0, 256, shape, np.uint8)
    options = dict(KINDS[kind], tile=(TILE, TILE), photometric="minisblack" if pages > 1 else "rgb")
    if kind == "planar":
        tifffile.imwrite(path, np.moveaxis(image, -1, 0), **options)
    else:
        tifffile.imwrite(path, image, compression="zlib", **options)
    return image


def lists_of(path):
    """Begin and end of the lists of tiles, but for what a parser may look at."""
    with tifffile.TiffFile(path) as tif:
        tags = [page.aspage().tags[code] for page in tif.pages for code in (324, 325)]
        assert all(tag.count > LONG for tag in tags)
        size = {3: 2, 4: 4, 16: 8}
        return [
            (tag.valueoffset + 16 * size[tag.dtype], tag.valueoffset + tag.count * size[tag.dtype])
            for tag in tags
        ]


@pytest.fixture
def reads(monkeypatch):
    """Begin and end of all that is read of local files, by whomever."""
    found = []

    class Recording(io.FileIO):
        def readinto(self, buffer):
            at = self.tell()
            count = super().readinto(buffer)
            found.append((at, at + count))
            return count

        def read(self, size=-1):
            at = self.tell()
            data = super().read(size)
            found.append((at, at + len(data)))
            return data

    original = sources.LocalSource.read

    def read(self, offset, count):
        found.append((offset, offset + count))
        return original(self, offset, count)

    monkeypatch.setattr(sources.LocalSource, "open_file", lambda self: Recording(self.uri))
    monkeypatch.setattr(sources.LocalSource, "read", read)
    return found


def overlaps(reads, spans):
    return [r for r in reads for a, b in spans if max(r[0], a) < min(r[1], b)]


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_read_with_the_first_tile(tmp_path, reads, kind):
    path = tmp_path / "a.tif"
    image = write(path, kind)
    lists = lists_of(path)
    reader = TiffBackend().open(str(path))
    assert reads
    assert not overlaps(reads, lists)
    for _ in range(2):
        whole = reader.read(0, Region((0, 0), (SIDE, SIDE)))
        assert np.array_equal(whole, image)
    assert len(overlaps(reads, lists)) == (6 if kind == "planar" else 2)


def test_lists_of_every_page_of_a_stack(tmp_path, reads):
    path = tmp_path / "a.tif"
    image = write(path, pages=3)
    lists = lists_of(path)
    volume = daskdmed.open_volume(path, backend="tiff-volume")
    assert reads
    assert not overlaps(reads, lists)
    assert np.array_equal(volume.read((0, 0, 0), (3, SIDE, SIDE)), image)
    assert len(overlaps(reads, lists)) == 6


def test_lists_that_the_parser_computes_with_are_read(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    image = write(path)
    original = tifffile.TiffPage.__init__

    def computing(self, *args, **options):
        original(self, *args, **options)
        self.databytecounts = tuple(count + 1 for count in self.databytecounts)
        self.databytecounts = tuple(count - 1 for count in self.databytecounts)

    monkeypatch.setattr(tifffile.TiffPage, "__init__", computing)
    whole = TiffBackend().open(str(path)).read(0, Region((0, 0), (SIDE, SIDE)))
    assert np.array_equal(whole, image)


def test_a_file_that_was_cut_while_it_was_open(tmp_path):
    path = tmp_path / "a.tif"
    write(path)
    (_, end), _ = sorted(lists_of(path))
    reader = TiffBackend().open(str(path))
    with path.open("r+b") as file:
        file.truncate(end - 100)
    with pytest.raises(CorruptImageError, match=r"a\.tif.*list of its 1089 tiles"):
        reader.read(0, Region((0, 0), (TILE, TILE)))
