"""Chunks of Zarr arrays read without zarr: the same values, or left to zarr."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from daskdmed.core.region import Region
from daskdmed.errors import TileError
from daskdmed.images.ngff import planes
from daskdmed.images.ngff.chunks import Layout
from daskdmed.images.opening import open_slide

SHAPE = (3, 50, 70)
COMPRESSORS = {
    "zstd": ZstdCodec(level=1),
    "checked": ZstdCodec(level=1, checksum=True),
    "blosc": BloscCodec(cname="lz4", typesize=2),
    "gzip": GzipCodec(),
    "none": None,
}


def values(dtype="uint8", shape=SHAPE):
    return np.random.default_rng(0).integers(1, 250, shape).astype(dtype)


def made(path, dtype="uint8", **options):
    """An array of `SHAPE` without what lies in one of its files and in one chunk."""
    options = {"chunks": (3, 16, 16), "fill_value": 7, **options}
    array = zarr.create_array(path, shape=SHAPE, dtype=dtype, **options)
    written = values(dtype)
    written[:, 32:, :32] = 7
    written[:, :16, :16] = 7
    array[...] = written
    return array, written


def by_chunks(array, selection, dtype="uint8"):
    """What is read without zarr, or None."""
    layout = Layout.of(array)
    if layout is None:
        return None
    shape = [
        len(range(*s.indices(n)))
        for s, n in zip(selection, array.shape, strict=True)
        if isinstance(s, slice)
    ]
    out = np.zeros(shape, dtype)
    return out if layout.read(selection, out) else None


@pytest.mark.parametrize("shards", [None, (3, 32, 32)])
@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_same_values(tmp_path, shards, compressor, dtype):
    codec = COMPRESSORS[compressor]
    array, written = made(tmp_path / "a", dtype, shards=shards, compressors=codec)
    for selection in (
        (slice(None), slice(0, 50), slice(0, 70)),
        (slice(1, 3), slice(15, 33), slice(31, 65)),
        (2, slice(49, 50), slice(None)),
    ):
        got = by_chunks(array, selection, dtype)
        assert got is not None
        assert np.array_equal(got, written[selection])


@pytest.mark.parametrize("where", ["start", "end"])
def test_where_the_index_of_a_shard_is(tmp_path, where):
    options = {"shape": (3, 32, 32), "index_location": where}
    array, written = made(tmp_path / "a", shards=options)
    assert np.array_equal(by_chunks(array, (slice(None),) * 3), written)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Arrays whose chunks and shards fit nothing: (array, values)."""
    folder = tmp_path_factory.mktemp("odd")
    return [
        made(folder / "a", chunks=(2, 13, 17)),
        made(folder / "b", chunks=(1, 9, 20), shards=(2, 27, 40)),
    ]


@settings(max_examples=40)
@given(data=st.data())
def test_any_selection(odd, data):
    array, written = data.draw(st.sampled_from(odd))
    selection = []
    for extent in SHAPE:
        first = data.draw(st.integers(0, extent - 1))
        if data.draw(st.booleans()):
            selection.append(first)
        else:
            selection.append(slice(first, data.draw(st.integers(first + 1, extent))))
    got = by_chunks(array, tuple(selection))
    assert np.array_equal(got, written[tuple(selection)])


@pytest.mark.parametrize("order", ["interleaved", "gaps", "reversed", "plain"])
def test_outputs_of_any_strides(tmp_path, order):
    array, written = made(tmp_path / "a", shards=(3, 32, 32))
    around = np.zeros((3, 60, 80), np.uint8)
    out = {
        "interleaved": np.moveaxis(np.zeros((50, 70, 3), np.uint8), -1, 0),
        "gaps": around[:, 3:53, 5:75],
        "reversed": np.zeros(SHAPE, np.uint8)[:, ::-1],
        "plain": np.zeros(SHAPE, np.uint8),
    }[order]
    assert Layout.of(array).read((slice(None),) * 3, out)
    assert np.array_equal(out, written)
    assert (np.delete(around, np.s_[3:53], axis=1) == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2},
        {"filters": TransposeCodec(order=(0, 2, 1))},
        {"compressors": [GzipCodec(), ZstdCodec()]},
        {"compressors": Crc32cCodec()},
        {"serializer": BytesCodec(endian="big"), "dtype": "uint16"},
        {
            "serializer": ShardingCodec(
                chunk_shape=(3, 8, 8), codecs=[BytesCodec()], index_codecs=[BytesCodec()]
            ),
            "compressors": None,
        },
    ],
)
def test_what_zarr_has_to_read(tmp_path, options):
    array, written = made(tmp_path / "a", **options)
    assert Layout.of(array) is None
    out = np.zeros(SHAPE, written.dtype)
    planes.read_into(array, (slice(None),) * 3, out)
    assert np.array_equal(out, written)


def test_stores_elsewhere_are_read_by_zarr(tmp_path):
    array, _ = made(zarr.storage.MemoryStore())
    assert Layout.of(array) is None
    with zarr.storage.ZipStore(tmp_path / "a.zip", mode="w") as store:
        array, _ = made(store)
        assert Layout.of(array) is None


def test_another_codec_pipeline_is_used(tmp_path):
    """Who chose one wants it."""
    array, _ = made(tmp_path / "a")
    assert Layout.of(array) is not None
    with zarr.config.set({"codec_pipeline.path": "elsewhere.Pipeline"}):
        assert Layout.of(array) is None


def test_codec_pipelines_that_want_memory_without_gaps(tmp_path, monkeypatch):
    """As that of zarrs does."""
    array, written = made(tmp_path / "a")
    read, seen = type(array).get_basic_selection, []

    def strict(self, selection, *, out):
        seen.append(out.as_ndarray_like().flags.c_contiguous)
        return read(self, selection, out=out)

    monkeypatch.setattr(planes, "ordinary_pipeline", lambda: False)
    monkeypatch.setattr(type(array), "get_basic_selection", strict)
    out = np.zeros((50, 70, 3), np.uint8)
    planes.read_by_zarr(array, (slice(None),) * 3, np.moveaxis(out, -1, 0))
    assert np.array_equal(np.moveaxis(out, -1, 0), written)
    assert seen == [True]


def damage(path, at, what):
    data = bytearray(path.read_bytes())
    if what == "cut":
        del data[at:]
    else:
        data[at] ^= 0x55
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("at", "what"), [(-1, "changed"), (-40, "changed"), (2, "changed"), (30, "cut")]
)
def test_damaged_files_are_judged_by_zarr(tmp_path, at, what):
    array, _ = made(tmp_path / "a", shards=(3, 32, 32))
    damage(tmp_path / "a/c/0/0/1", at, what)
    assert by_chunks(array, (slice(None),) * 3) is None
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever zarr says
        planes.read_into(array, (slice(None),) * 3, np.zeros(SHAPE, np.uint8))
    # what lies in other files is read
    rest = (slice(None), slice(0, 32), slice(0, 32))
    assert by_chunks(array, rest) is not None


@pytest.mark.parametrize("shards", [None, (3, 32, 32)])
def test_a_slide_with_a_damaged_chunk(tmp_path, shards):
    """An error, or background in the place of this chunk only."""
    _, written = made(tmp_path / "a", shards=shards, dimension_names=("c", "y", "x"))
    file = tmp_path / ("a/c/0/0/2" if shards is None else "a/c/0/0/1")
    damage(file, 5, "changed")
    slide = open_slide(tmp_path / "a")
    with pytest.raises(TileError):
        slide.read_region((0, 0), 0, slide.dimensions)
    got = slide.read_region((0, 0), 0, slide.dimensions, tile_error="fill")
    assert [f.tile for f in slide.failed_tiles] == [(0, 2)]
    expected = np.moveaxis(written, 0, -1).copy()
    expected[:16, 32:48] = slide.background
    assert np.array_equal(got, expected)


def test_slides_do_not_need_zarr_for_pixels(tmp_path, monkeypatch):
    """What `to_ome_zarr` writes is read without it, a patch no slower for the shard around it."""
    _, written = made(tmp_path / "a", shards=(3, 32, 32), dimension_names=("c", "y", "x"))
    monkeypatch.setattr(planes, "read_by_zarr", None)
    view = open_slide(tmp_path / "a").view()
    got = view.read(Region((10, 20), (30, 40)))
    assert np.array_equal(got, np.moveaxis(written, 0, -1)[10:40, 20:60])
    seen = []
    decoded = Layout._decoded
    monkeypatch.setattr(Layout, "_decoded", lambda *a: seen.append(1) or decoded(*a))
    view.read(Region((17, 17), (10, 10)))
    assert len(seen) == 1


@pytest.mark.parametrize("layout", ["sharded", "plain", "channels last", "grey"])
def test_zarrs_gives_the_same_pixels(tmp_path, layout):
    pytest.importorskip("zarrs", reason="the codec pipeline of zarrs is not installed")
    names = ("y", "x", "c") if layout == "channels last" else ("c", "y", "x")
    channels = 1 if layout == "grey" else 3
    shape = {"y": 50, "x": 70, "c": channels}
    written = values(shape=tuple(shape[n] for n in names))
    chunks = tuple({"y": 16, "x": 16, "c": channels}[n] for n in names)
    shards = tuple({"y": 32, "x": 32, "c": channels}[n] for n in names)
    array = zarr.create_array(
        tmp_path / "a",
        shape=written.shape,
        dtype="uint8",
        chunks=chunks,
        shards=shards if layout == "sharded" else None,
        dimension_names=names,
    )
    array[...] = written
    view = open_slide(tmp_path / "a").view()
    regions = [Region((0, 0), (50, 70)), Region((15, 17), (20, 30))]
    expected = [view.read(r) for r in regions]
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        slide = open_slide(tmp_path / "a")
        slide.close()  # opened anew, by the pipeline that is set now
        for region, want in zip(regions, expected, strict=True):
            around = np.zeros((*(n + 4 for n in region.shape), channels), np.uint8)
            slide.view().read(region, around[2:-2, 2:-2])
            assert np.array_equal(around[2:-2, 2:-2], want)
        slide.close()
