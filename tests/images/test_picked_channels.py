"""Some channels of slides, volumes and arrays: the right ones, and no others read."""

from __future__ import annotations

import pickle

import dask.array as da
import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdmed.cohort.record import Record
from daskdmed.core.region import Region
from daskdmed.errors import DatasetError, TileError, UsageError
from daskdmed.images import registry
from daskdmed.images.arrayview import ArrayView
from daskdmed.images.channels import PickedView, channel_numbers, pick
from daskdmed.images.context import with_context
from daskdmed.images.filecache import cache
from daskdmed.images.opening import open_slide
from daskdmed.images.protocols import ChannelInfo
from daskdmed.images.tiff import count_tiles
from daskdmed.images.volumes.volume import open_volume

NAMES = ["DAPI", "CD3", "CD8", "PanCK", "CD20"]
WANTED = ([3], ["CD8"], [4, "DAPI"], ["CD3", 2], (0, 1, 2, 3, 4), [4, 3, 2, 1, 0])


def numbers(wanted):
    return [w if isinstance(w, int) else NAMES.index(w) for w in wanted]


def noise(*shape, dtype="uint16"):
    return np.random.default_rng(0).integers(1, 250, shape).astype(dtype)


def store(path, data, axes, chunks, names=(), **options):
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array("0", shape=data.shape, dtype=data.dtype, chunks=chunks, **options)
    array[...] = data
    kinds = {"c": "channel", "t": "time"}
    said = [{"name": n, "type": kinds.get(n, "space")} for n in axes]
    scale = [{"type": "scale", "scale": [1.0] * data.ndim}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {"axes": said, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
        ],
        "omero": {"channels": [{"label": n} for n in names]},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("channels")


@pytest.fixture(scope="module")
def data():
    return noise(5, 48, 80)


@pytest.fixture(scope="module")
def slides(folder, data):
    """Kind -> path of a slide of the data."""
    said = {"axes": "CYX", "Channel": {"Name": NAMES}}
    options = {"tile": (16, 32), "photometric": "minisblack", "compression": "zlib"}
    with tifffile.TiffWriter(folder / "pages.ome.tif", ome=True) as tif:
        tif.write(data, subifds=1, metadata=said, **options)
        tif.write(data[:, ::2, ::2], subfiletype=1, **options)
    tifffile.imwrite(folder / "planar.tif", data, planarconfig="separate", metadata=None, **options)
    mixed = np.moveaxis(data, 0, -1)
    tifffile.imwrite(folder / "mixed.tif", mixed, planarconfig="contig", metadata=None, **options)
    store(folder / "single.zarr", data, "cyx", (1, 16, 16), NAMES)
    store(folder / "pairs.zarr", data, "cyx", (2, 16, 16), NAMES)
    store(folder / "last.zarr", mixed, "yxc", (16, 16, 5), NAMES)
    store(folder / "shards.zarr", data, "cyx", (1, 16, 16), NAMES, shards=(5, 32, 32))
    kinds = ["pages.ome.tif", "planar.tif", "mixed.tif", "single.zarr", "pairs.zarr", "last.zarr"]
    return {name: folder / name for name in (*kinds, "shards.zarr")}


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize(
    "kind", ["pages.ome.tif", "planar.tif", "mixed.tif", "single.zarr", "pairs.zarr", "last.zarr",
             "shards.zarr"]
)  # fmt: skip
def test_channels_of_slides(slides, data, kind, wanted):
    if kind in ("planar.tif", "mixed.tif"):
        wanted = numbers(wanted)  # nobody names them
    slide = open_slide(slides[kind])
    want = np.moveaxis(data[numbers(wanted)], 0, -1)
    some = slide.with_channels(wanted)
    assert np.array_equal(some.read_region((0, 0), 0, (80, 48)), want)
    assert np.array_equal(slide.to_dask(channels=wanted, chunks=32).compute(), want)
    region = Region((5, 11), (20, 40))
    out = np.zeros((20, 40, 2 * len(wanted)), data.dtype)[..., ::2]
    assert slide.view(channels=wanted).read(region, out) is out
    assert np.array_equal(out, want[5:25, 11:51])
    assert (some.channels or ()) == tuple(NAMES[n] for n in numbers(wanted) if slide.channels)
    assert some.levels[0].shape[-1] == len(some.background) == len(wanted)
    assert np.array_equal(
        some.view(level=0).read_padded(Region((40, 70), (16, 16)))[8:, 10:],
        np.zeros((8, 6, len(wanted))),
    )
    twin = pickle.loads(pickle.dumps(some))
    assert (twin == some, twin.token) == (True, some.token)
    assert np.array_equal(twin.read_region((0, 0), 0, (80, 48)), want)


def test_tiles_of_other_channels_are_not_decoded(slides):
    slide = open_slide(slides["pages.ome.tif"])
    tiles = (48 // 16) * -(-80 // 32)
    for wanted, count in ((["CD8"], 1), ([0, 4], 2), (None, 5)):
        with count_tiles() as counted:
            slide.to_dask(channels=wanted, chunks=-1).compute()
        assert counted.tiles == count * tiles


@pytest.mark.parametrize(("kind", "chunk"), [("single.zarr", 1), ("pairs.zarr", 2)])
def test_chunks_of_other_channels_are_not_read(folder, data, kind, chunk):
    path = folder / f"holes-{kind}"
    store(path, data, "cyx", (chunk, 16, 16), NAMES)
    for chunk_file in path.glob("0/c/0/*/*"):  # of DAPI, and of what lies in its chunks
        chunk_file.write_bytes(b"damaged")
    slide = open_slide(path)
    good = [n for n in range(5) if n >= chunk]
    got = slide.with_channels(good).read_region((0, 0), 0, (80, 48))
    assert np.array_equal(got, np.moveaxis(data[good], 0, -1))
    with pytest.raises(TileError):
        slide.read_region((0, 0), 0, (80, 48))
    filled = slide.with_channels([0, 4]).read_region((0, 0), 0, (80, 48), tile_error="fill")
    assert filled.max() == 0  # a tile is painted as a whole


def test_lower_levels_and_resolutions_between(slides, data):
    slide = open_slide(slides["pages.ome.tif"])
    want = np.moveaxis(data[[2, 0]], 0, -1)
    assert np.array_equal(
        slide.with_channels(["CD8", "DAPI"]).read_region((0, 0), 1, (40, 24)), want[::2, ::2]
    )
    known = slide.with_mpp(0.5)
    both, some = (known.view(mpp=0.9, channels=c) for c in (None, [2, 0]))
    whole = Region.of(both.spatial_shape)
    assert np.array_equal(some.read(whole), both.read(whole)[..., [2, 0]])
    thumbnail = slide.with_channels([2, 0]).get_thumbnail((20, 20))
    assert np.array_equal(thumbnail, slide.get_thumbnail((20, 20))[..., [2, 0]])


def test_what_is_picked_twice_is_counted_among_what_was_picked(slides, data):
    slide = open_slide(slides["pages.ome.tif"])
    some = slide.with_channels([4, 2, 1])
    assert some.with_channels(["CD8"]).token == slide.with_channels([2]).token
    assert some.view(channels=[1, 0]).channels == (2, 4)
    assert slide.with_channels([0, 1, 2, 3, 4]) is slide
    assert slide.view(channels=[0]).token != slide.view(channels=[1]).token
    with pytest.raises(UsageError, match="no channel 'CD20'"):
        slide.with_channels(["CD3"]).with_channels("CD20")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("CD4", r"has no channel 'CD4'; there are '0 DAPI', '1 CD3', .*'4 CD20'"),
        ([0, 5], "has no channel 5; there are"),
        ([-1], "has no channel -1; there are"),
        ([0, "DAPI"], "takes a channel twice"),
        ([], "names or numbers of channels"),
        (1.5, "names or numbers of channels"),
        ([True], "names or numbers of channels"),
    ],
)
def test_channels_that_are_not_there(slides, wanted, said):
    with pytest.raises(UsageError, match=said):
        open_slide(slides["pages.ome.tif"]).view(channels=wanted)
    unnamed = open_slide(slides["planar.tif"])
    with pytest.raises(UsageError, match="5 without names, 0 to 4"):
        unnamed.view(channels="DAPI")


def test_a_name_that_several_have():
    known = [ChannelInfo("AF"), ChannelInfo("DAPI"), ChannelInfo("AF")]
    with pytest.raises(UsageError, match="has 2 channels 'AF'"):
        channel_numbers("a", "AF", known, 3)
    assert channel_numbers("a", [2, "DAPI"], known, 3) == (2, 1)


class Plain:
    """Somebody else's reader, which cannot read some channels only."""

    def __init__(self, reader):
        self._reader, self.info, self.failed_tiles = reader, reader.info, ()

    def read(self, level, region, out=None, *, tile_error="raise"):
        return self._reader.read(level, region, out, tile_error=tile_error)

    def close(self):
        self._reader.close()


def test_readers_of_others_are_read_as_a_whole(slides, data, monkeypatch):
    real = registry.open_image
    monkeypatch.setattr(registry, "open_image", lambda *args: Plain(real(*args)))
    cache.clear()
    got = open_slide(slides["pages.ome.tif"]).view(channels=[3, 1])
    assert np.array_equal(got.read(Region.of((48, 80))), np.moveaxis(data[[3, 1]], 0, -1))
    out = np.empty((48, 80, 2), data.dtype)
    assert np.array_equal(got.read(Region.of((48, 80)), out), np.moveaxis(data[[3, 1]], 0, -1))
    cache.clear()


# ---------------------------------------------------------------------------- volumes
@pytest.fixture(scope="module")
def volumes(folder):
    """Kind -> path, axes without channels last."""
    data = noise(3, 6, 12, 20)  # c, z, y, x
    store(folder / "v.zarr", data, "czyx", (1, 3, 8, 8), NAMES[:3])
    np.save(folder / "v.npy", np.moveaxis(data, 0, -1))
    nibabel.save(
        nibabel.Nifti1Image(np.moveaxis(data, (0, 1, 2, 3), (3, 2, 1, 0)), np.eye(4)),
        folder / "v.nii",
    )
    with h5py.File(folder / "v.h5", "w") as file:
        file["v"] = np.moveaxis(data, 0, -1)
    tifffile.imwrite(
        folder / "v.ome.tif", np.moveaxis(data, 0, 1), metadata={"axes": "ZCYX"},
        compression="zlib", photometric="minisblack",
    )  # fmt: skip
    tifffile.imwrite(
        folder / "raw.ome.tif", data, metadata={"axes": "CZYX"}, photometric="minisblack"
    )
    return data, {
        "v.zarr": {}, "v.npy": {}, "v.h5": {}, "v.ome.tif": {}, "raw.ome.tif": {},
        "v.nii": {"time": "channels"},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["v.zarr", "v.npy", "v.h5", "v.ome.tif", "raw.ome.tif", "v.nii"])
@pytest.mark.parametrize("wanted", [[2], [2, 0], [0, 1, 2]])
def test_channels_of_volumes(folder, volumes, kind, wanted):
    data, options = volumes
    volume = open_volume(folder / kind, **options[kind])
    assert volume.channels == 3
    want = np.moveaxis(data[wanted], 0, -1)
    some = volume.with_channels(wanted)
    assert np.array_equal(some.read((0, 0, 0), (6, 12, 20)), want)
    assert np.array_equal(volume.to_dask(channels=wanted, chunks=4).compute(), want)
    assert some.channels == len(wanted)
    assert pickle.loads(pickle.dumps(some)) == some
    assert (some == volume) == (len(wanted) == 3)
    record = Record(folder / kind, spatial_ndim=3, channels=wanted, **options[kind])
    assert np.array_equal(record.view().read(Region((1, 2, 3), (4, 5, 6))), want[1:5, 2:7, 3:9])
    if kind == "v.nii":
        turned, both = some.view(orientation="PIR"), volume.view(orientation="PIR")
        whole = Region.of(turned.spatial_shape)
        assert np.array_equal(turned.read(whole), both.read(whole)[..., wanted])


def test_names_of_channels_of_volumes(folder, volumes):
    volume = open_volume(folder / "v.zarr")
    assert volume.info.channels == ("DAPI", "CD3", "CD8")
    assert volume.with_channels("CD8").token == volume.with_channels(2).token
    with pytest.raises(UsageError, match="no channel 'CD4'"):
        volume.view(channels="CD4")


# ---------------------------------------------------------------------------- arrays, any view
@given(
    count=st.integers(1, 5),
    chunks=st.integers(1, 5),
    picks=st.data(),
    axes=st.sampled_from([2, 3]),
)
@settings(max_examples=30, deadline=None)
def test_channels_of_arrays(count, chunks, picks, axes):
    shape = (6, 7, 8)[:axes]
    values = noise(*shape, count)
    wanted = tuple(picks.draw(st.permutations(range(count))))[: picks.draw(st.integers(1, count))]
    view = ArrayView(da.from_array(values, chunks=(4,) * axes + (chunks,)), axes, background=7)
    region = Region((1,) * axes, (4,) * axes)
    got = pick(view, wanted)
    assert np.array_equal(got.read(region), values[(*region.slices, list(wanted))])
    assert got.background.tolist() == [7] * len(wanted)
    record = Record(array=values, spatial_ndim=axes, channels=wanted)
    assert np.array_equal(record.view().read(region), values[(*region.slices, list(wanted))])
    assert (got is view) == (wanted == tuple(range(count)))


def test_channels_of_any_view():
    values = noise(5, 6, 7, 2)
    around = with_context(ArrayView(da.from_array(values), 3), 1)
    some = pick(around, (5, 0))
    assert isinstance(some, PickedView)
    region = Region((1, 2, 0), (2, 2, 3))
    assert np.array_equal(some.read(region), around.read(region)[..., [5, 0]])
    narrow = pickle.loads(pickle.dumps(some.narrowed(region)))
    assert np.array_equal(narrow.read(region), some.read(region))
    carried = some.detached(region).attached(some.delivery(region).compute())
    assert np.array_equal(carried.read(region), some.read(region))
    assert pick(some, (1,)).token == pick(around, (0,)).token
    assert len({some.token, around.token, pick(around, (0, 5)).token}) == 3


# ---------------------------------------------------------------------------- records
def test_a_record_says_its_channels(slides, data):
    path = slides["pages.ome.tif"]
    record = Record(path, channels=["CD8", 0])
    assert record.open().channels == ("CD8", "DAPI")
    assert np.array_equal(record.view().read(Region.of((48, 80))), np.moveaxis(data[[2, 0]], 0, -1))
    assert record.view(channels="DAPI").channels == (0,)
    assert record != Record(path, channels=[0, "CD8"])
    assert record == Record(path, channels=("CD8", 0))
    assert "channels=('CD8', 0)" in repr(record)
    with pytest.raises(DatasetError, match="mean nothing beside array="):
        Record(array=data, image=1)
    with pytest.raises(DatasetError, match="color is 'srgb' or None"):
        Record(path, color="sRGB")
    with pytest.raises(DatasetError, match="plane= is for slides"):
        Record(path, spatial_ndim=3, plane=0).open()
