"""The Zarr backend, beyond what the conformance kit covers."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys

import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr

from daskdmed.core.region import Region
from daskdmed.errors import (
    CorruptImageError,
    ImageError,
    ImageNotFoundError,
    ResolutionError,
    UnsupportedImageError,
)
from daskdmed.images.filecache import cache
from daskdmed.images.ngff import ZarrBackend, planes
from daskdmed.images.opening import open_slide
from daskdmed.images.volumes.volume import open_volume

BACKEND = ZarrBackend()


def axes_of(names, unit="micrometer"):
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": n, "type": kinds.get(n, "space")} | ({"unit": unit} if n in "zyx" and unit else {})
        for n in names
    ]


def write_ome(path, arrays, names="cyx", unit="micrometer", scale=0.25, zarr_format=3, **ome):
    """An OME-Zarr 0.5 (or 0.4) image from arrays in axis order."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    datasets = []
    for i, array in enumerate(arrays):
        extra = {"dimension_names": tuple(names)} if zarr_format == 3 else {}
        chunks = tuple(min(64, n) for n in array.shape)
        target = group.create_array(
            f"s{i}", shape=array.shape, chunks=chunks, dtype=array.dtype, **extra
        )
        target[...] = array
        factors = [scale * 2**i if n in "yx" else 1.0 for n in names]
        steps = [{"type": "scale", "scale": factors}]
        datasets.append({"path": f"s{i}", "coordinateTransformations": steps})
    multiscale = {"name": "image", "axes": axes_of(names, unit), "datasets": datasets}
    if zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale], **ome}
    else:
        group.attrs.update({"multiscales": [multiscale | {"version": "0.4"}], **ome})
    return str(path), group


def noise(*shape, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


def whole(reader, level=0):
    return reader.read(level, Region((0, 0), reader.info.levels[level].shape[:2]))


@pytest.mark.filterwarnings("ignore:.*coordinate_transformations.*:DeprecationWarning")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_images_written_by_ome_zarr_py_and_validated_by_ome_zarr_models(tmp_path, version):
    writer = pytest.importorskip("ome_zarr.writer")
    formats = pytest.importorskip("ome_zarr.format")
    models = pytest.importorskip(f"ome_zarr_models.v{version.replace('.', '')}")
    levels = [noise(3, 300, 411), noise(3, 150, 206)]
    fmt = {"0.4": formats.FormatV04, "0.5": formats.FormatV05}[version]()
    path = tmp_path / "written.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    steps = [
        [{"type": "scale", "scale": [1.0, 0.5 * 2**i, 0.25 * 2**i]}] for i in range(len(levels))
    ]
    units = {"y": "micrometer", "x": "micrometer"}
    told_apart = "axes_units" in inspect.signature(writer.write_multiscale).parameters
    writer.write_multiscale(
        [da.from_array(a, chunks=(3, 128, 128)) for a in levels],
        group,
        fmt=fmt,
        axes=axes_of("cyx"),
        coordinate_transformations=steps,
        **({"axes_units": units} if told_apart else {}),  # of newer versions
    )
    models.Image.from_zarr(zarr.open_group(path, mode="r"))

    assert BACKEND.accepts(str(path))
    reader = BACKEND.open(str(path))
    info = reader.info
    assert info.vendor == "ome-zarr"
    assert info.properties["ome.version"] == version
    assert info.mpp == (0.25, 0.5)
    assert info.properties["openslide.mpp-x"] == "0.25"
    assert [level.downsample for level in info.levels] == [(1, 1), (2, 411 / 206)]
    assert info.background == (255, 255, 255)
    for i, level in enumerate(levels):
        assert np.array_equal(whole(reader, i), level.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("unit", "mpp"),
    [
        *(("micrometer", 0.5), ("nanometer", 0.0005), ("millimeter", 500), ("µm", 0.5)),
        *((None, None), ("parsec", None)),
    ],
)
def test_units(tmp_path, unit, mpp):
    uri, _ = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64)], unit=unit, scale=0.5)
    found = BACKEND.open(uri).info.mpp
    assert found == (None if mpp is None else pytest.approx((mpp, mpp)))


def test_the_scale_of_the_multiscale_multiplies(tmp_path):
    uri, group = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64)], scale=0.5)
    ome = group.attrs["ome"]
    steps = [{"type": "scale", "scale": [1, 3, 2]}]
    ome["multiscales"][0]["coordinateTransformations"] = steps
    group.attrs["ome"] = ome
    assert BACKEND.open(uri).info.mpp == (1.0, 1.5)


def test_one_time_point_and_one_plane_are_an_image(tmp_path):
    image = noise(1, 2, 1, 70, 90, dtype="uint16")
    uri, _ = write_ome(tmp_path / "a.zarr", [image], "tczyx", zarr_format=2)
    reader = BACKEND.open(uri)
    assert reader.info.dtype == "uint16"
    assert reader.info.background == (0, 0)
    assert np.array_equal(whole(reader), image[0, :, 0].transpose(1, 2, 0))


def test_channels_of_omero(tmp_path):
    channels = [
        {"label": "DAPI", "color": "0000FF", "window": {"min": 0, "max": 255}},
        {"label": "FITC", "color": "00FF00"},
        {"label": "Cy5", "color": "FF0000"},
    ]
    uri, _ = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64)], omero={"channels": channels})
    info = BACKEND.open(uri).info
    assert info.properties["omero.channel[0].label"] == "DAPI"
    assert info.properties["omero.channel[0].window-max"] == "255"
    assert info.background == (0, 0, 0), "three fluorescence channels are no RGB"


def test_associated_images(tmp_path):
    uri, group = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64)])
    macro, label = noise(30, 40, 3), noise(3, 20, 10)
    group.create_array("macro", shape=macro.shape, dtype="u1", chunks=macro.shape)[...] = macro
    write_ome(tmp_path / "a.zarr" / "associated" / "label", [label])
    zarr.open_group(tmp_path / "a.zarr" / "associated", mode="a")
    masks = group.create_group("labels", attributes={"ome": {"labels": ["tumour"]}})
    masks.create_array("tumour", shape=(64, 64), dtype="u1", chunks=(64, 64))
    reader = BACKEND.open(uri)
    assert reader.info.associated == ("label", "macro")
    assert np.array_equal(reader.read_associated("macro"), macro)
    assert np.array_equal(reader.read_associated("label"), label.transpose(1, 2, 0))


def test_bioformats2raw_takes_the_first_image(tmp_path):
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    image = noise(3, 64, 70)
    write_ome(tmp_path / "a.zarr" / "0", [image], zarr_format=2)
    reader = BACKEND.open(str(tmp_path / "a.zarr"))
    assert np.array_equal(whole(reader), image.transpose(1, 2, 0))


def test_plates_are_refused(tmp_path):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.attrs["ome"] = {"version": "0.5", "plate": {"columns": []}}
    with pytest.raises(UnsupportedImageError, match="A/1/0"):
        BACKEND.open(str(tmp_path / "a.zarr"))


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((50, 60), None, (50, 60, 1)),
        ((50, 60, 1), None, (50, 60, 1)),
        ((50, 60, 4), None, (50, 60, 4)),
        ((7, 50, 60), None, (50, 60, 7)),
        ((4, 50, 4), ("c", "y", "x"), (50, 4, 4)),
        ((60, 50), ("x", "y"), (50, 60, 1)),
        ((60, 3, 50), ("X", "channel", "Y"), (50, 60, 3)),
        ((1, 50, 60, 3), ("z", "y", "x", "c"), (50, 60, 3)),
        ((50, 60, 3), ("dim_0", "dim_1", "dim_2"), (50, 60, 3)),
    ],
)
def test_plain_arrays(tmp_path, shape, names, expected):
    image = noise(*shape)
    path = tmp_path / "a.zarr"
    target = zarr.create_array(
        path,
        shape=shape,
        chunks=tuple(min(16, n) for n in shape),
        dtype="u1",
        dimension_names=names,
    )
    target[...] = image
    reader = BACKEND.open(str(path))
    assert reader.info.levels[0].shape == expected
    letters = [{"channel": "c"}.get(n.lower(), n.lower()) for n in names or ()]
    if not {"y", "x"} <= set(letters):
        letters = "yx" if len(shape) == 2 else "yxc" if shape[2] <= 4 else "cyx"
    kept = [n for n in letters if n in "yxc"]
    plain = image.reshape([n for n, a in zip(shape, letters, strict=True) if a in "yxc"])
    plain = plain if "c" in kept else plain[..., None]
    kept = kept if "c" in kept else [*kept, "c"]
    plain = plain.transpose([kept.index(a) for a in "yxc"])
    assert np.array_equal(whole(reader), plain)
    assert np.array_equal(reader.read(0, Region((3, 2), (20, 2))), plain[3:23, 2:4])


@pytest.mark.parametrize("shape", [(50,), (9, 50, 60, 3), (100, 90, 80)])
def test_plain_arrays_of_unknown_axes_are_refused(tmp_path, shape):
    zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=shape, dtype="u1")
    with pytest.raises(UnsupportedImageError, match="dimension_names"):
        BACKEND.open(str(tmp_path / "a.zarr"))


def test_dimensions_named_by_xarray(tmp_path):
    image = noise(60, 50)
    target = zarr.create_array(
        tmp_path / "a.zarr", shape=image.shape, chunks=(16, 16), dtype="u1", zarr_format=2
    )
    target[...] = image
    target.attrs["_ARRAY_DIMENSIONS"] = ["x", "y"]
    assert np.array_equal(whole(BACKEND.open(str(tmp_path / "a.zarr")))[..., 0], image.T)


@pytest.mark.parametrize(
    "other", [((64, 64, 3), "u2"), ((64, 64, 4), "u1"), ((64, 20, 3), "u1"), ((128, 128, 3), "u1")]
)
def test_groups_of_unrelated_arrays_are_refused(tmp_path, other):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("one", shape=(128, 128, 3), chunks=(64, 64, 3), dtype="u1")
    group.create_array("two", shape=other[0], chunks=other[0], dtype=other[1])
    with pytest.raises(UnsupportedImageError, match=r"no levels of one image.*give the path"):
        BACKEND.open(str(tmp_path / "a.zarr"))


@pytest.mark.parametrize(
    ("channels", "dtype", "fill", "background"),
    [(3, "u1", 0, 255), (3, "u1", 7, 7), (1, "u1", 0, 0), (3, "u2", 0, 0), (2, "f4", np.nan, 0)],
)
def test_background_and_chunks_never_written(tmp_path, channels, dtype, fill, background):
    path = tmp_path / "a.zarr"
    zarr.create_array(
        path, shape=(40, 40, channels), chunks=(16, 16, channels), dtype=dtype, fill_value=fill
    )
    reader = BACKEND.open(str(path))
    assert reader.info.background == (background,) * channels
    pixels = whole(reader)
    assert np.array_equal(pixels, np.full_like(pixels, fill), equal_nan=True)


def test_without_a_fill_value_missing_chunks_are_background(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(
        path, shape=(40, 40, 3), chunks=(16, 16, 3), dtype="u1", fill_value=None, zarr_format=2
    )
    document = json.loads((path / ".zarray").read_text())
    document["fill_value"] = None
    (path / ".zarray").write_text(json.dumps(document))
    assert (whole(BACKEND.open(str(path))) == 255).all()


def test_big_endian_samples(tmp_path):
    image = noise(40, 50, dtype=">u2")
    target = zarr.create_array(
        tmp_path / "a.zarr", shape=image.shape, chunks=(16, 16), dtype=">u2", zarr_format=2
    )
    target[...] = image
    reader = BACKEND.open(str(tmp_path / "a.zarr"))
    assert reader.info.dtype == "uint16"
    pixels = whole(reader)
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels[..., 0], image)


def test_missing_level(tmp_path):
    uri, group = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64), noise(3, 32, 32)])
    del group["s1"]
    with pytest.raises(CorruptImageError, match=r"level 1, 's1', is missing"):
        BACKEND.open(uri)


@pytest.mark.parametrize("name", ["zarr.json", "s0/zarr.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"zarr_format": 3, "node_type": "array"}', "\x00\x01"]
)
def test_broken_metadata(tmp_path, name, text):
    uri, _ = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64)])
    (tmp_path / "a.zarr" / name).write_text(text)
    BACKEND.fingerprint(uri)
    BACKEND.accepts(uri)
    with pytest.raises(ImageError) as caught:
        BACKEND.open(uri)
    assert uri in str(caught.value)
    assert isinstance(caught.value, (CorruptImageError, UnsupportedImageError))


@pytest.mark.parametrize(
    "multiscales",
    [
        *([], [{}], "text", [{"datasets": []}], [{"datasets": [{"path": "s0"}], "axes": 3}]),
        [{"datasets": [{"path": "s0"}], "axes": [{"name": "y"}, {"name": "x"}]}],
        [
            {
                "axes": axes_of("cyx"),
                "datasets": [
                    {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": "a"}]}
                ],
            }
        ],
    ],
)
def test_malformed_ome_metadata(tmp_path, multiscales):
    uri, group = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64)])
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    BACKEND.fingerprint(uri)
    with pytest.raises(CorruptImageError):
        BACKEND.open(uri)


def test_levels_that_contradict_each_other(tmp_path):
    uri, _ = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64), noise(4, 32, 32)])
    with pytest.raises(CorruptImageError, match="channels"):
        BACKEND.open(uri)


def test_levels_are_sorted_largest_first(tmp_path):
    small, large = noise(3, 32, 32), noise(3, 64, 64)
    uri, _ = write_ome(tmp_path / "a.zarr", [small, large])
    assert [level.shape for level in BACKEND.open(uri).info.levels] == [(64, 64, 3), (32, 32, 3)]


def test_absurd_sizes_cost_nothing(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(2**40, 2**40, 3), chunks=(256, 256, 3), dtype="u1")
    reader = BACKEND.open(str(path))
    assert reader.read(0, Region((2**39, 5), (10, 10))).shape == (10, 10, 3)
    zarr.create_array(tmp_path / "b.zarr", shape=(2**40, 9), chunks=(2**40, 9), dtype="u1")
    with pytest.raises(UnsupportedImageError, match="chunk"):
        BACKEND.open(str(tmp_path / "b.zarr"))
    with (tmp_path / "a.zarr" / "zarr.json").open("ab") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(CorruptImageError, match="more than any metadata"):
        BACKEND.open(str(path))


@pytest.mark.filterwarnings("ignore:.*stored chunk shape .9, 0. is invalid")  # zarr from 3.4 on
@pytest.mark.parametrize("opened", [open_slide, open_volume])
@pytest.mark.parametrize(
    ("odd", "said"),
    [({"shape": [9, 2**64]}, f"{2**64}.*no axis has over"), ({"chunks": [9, 0]}, "empty chunks")],
)
def test_extents_that_no_array_has(tmp_path, opened, odd, said):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(9, 9), chunks=(9, 9), dtype="u1", zarr_format=2)
    document = json.loads((path / ".zarray").read_text()) | odd
    (path / ".zarray").write_text(json.dumps(document))
    with pytest.raises(CorruptImageError, match=said):
        opened(path, backend="zarr" if opened is open_slide else "zarr-volume")


@pytest.mark.filterwarnings("ignore:.*experimental")
@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("opened", [open_slide, open_volume])
def test_chunks_of_several_sizes(tmp_path, opened, allowed):
    """Newer versions of zarr read them, where its configuration allows it."""
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(9, 9), chunks=(9, 9), dtype="u1")
    document = json.loads((path / "zarr.json").read_text())
    sizes = {"kind": "inline", "chunk_shapes": [[4, 5], [9]]}
    document["chunk_grid"] = {"name": "rectilinear", "configuration": sizes}
    (path / "zarr.json").write_text(json.dumps(document))
    backend = "zarr" if opened is open_slide else "zarr-volume"
    with zarr.config.set({"array.rectilinear_chunks": allowed}):
        with pytest.raises(UnsupportedImageError, match=r"differ in size .*write it anew"):
            opened(path, backend=backend)


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_samples_that_are_no_pixels(tmp_path, dtype):
    zarr.create_array(tmp_path / "a.zarr", shape=(9, 9), chunks=(9, 9), dtype=dtype)
    with pytest.raises(UnsupportedImageError, match=dtype):
        BACKEND.open(str(tmp_path / "a.zarr"))


def test_unknown_codec(tmp_path):
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(9, 9), chunks=(9, 9), dtype="u1", zarr_format=2)
    document = json.loads((path / ".zarray").read_text())
    document["compressor"] = {"id": "no-such-codec"}
    (path / ".zarray").write_text(json.dumps(document))
    with pytest.raises(UnsupportedImageError, match="codec"):
        BACKEND.open(str(path))


@pytest.fixture
def zipped(tmp_path):
    store = zarr.storage.ZipStore(tmp_path / "a.ozx", mode="w")
    zarr.create_array(store, data=np.ones((9, 9), "u1"))
    store.close()
    return tmp_path / "a.ozx"


def test_a_level_whose_name_no_file_can_have(tmp_path):
    uri, group = write_ome(tmp_path / "a.zarr", [np.ones((1, 9, 9), "u1")], zarr_format=2)
    multiscale = group.attrs.asdict()["multiscales"][0]
    multiscale["datasets"][0]["path"] = "x" * 5000
    group.attrs["multiscales"] = [multiscale]
    with pytest.raises(CorruptImageError, match=r"a\.zarr.*xxx.* place that cannot be") as caught:
        BACKEND.open(uri)
    assert len(str(caught.value)) < 1000


def test_a_zip_file_that_begins_too_late(zipped):
    zipped.write_bytes(zipped.read_bytes()[20:])
    with pytest.raises(CorruptImageError, match=r"a\.ozx"):
        BACKEND.open(str(zipped))


def test_a_zip_file_with_names_that_are_no_text(zipped):
    data = bytearray(zipped.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8 : entry + 10] = (0x800).to_bytes(2, "little")  # names are UTF-8
    data[entry + 46] = 0x99
    zipped.write_bytes(data)
    assert not BACKEND.accepts(str(zipped))
    with pytest.raises(ImageError, match=r"a\.ozx"):
        open_slide(zipped)


def test_things_that_are_no_zarr(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.zarr.zip").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("a.txt", "empty.zarr"):
        assert not BACKEND.accepts(str(tmp_path / name))
        with pytest.raises(UnsupportedImageError):
            BACKEND.open(str(tmp_path / name))
    with pytest.raises(CorruptImageError, match="zip"):
        BACKEND.open(str(tmp_path / "a.zarr.zip"))
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    with pytest.raises(UnsupportedImageError, match="without arrays"):
        BACKEND.open(str(tmp_path / "group.zarr"))


def test_remote_names():
    assert BACKEND.accepts("https://host/data/image.ome.zarr/?x=1")
    assert BACKEND.accepts("s3://bucket/image.zarr/0")
    assert not BACKEND.accepts("https://host/slide.svs")
    with pytest.raises(UnsupportedImageError, match="nosuch"):
        BACKEND.open("nosuch://host/image.zarr")
    with pytest.raises(ImageNotFoundError):
        BACKEND.open("memory://daskdmed-none/image.zarr")


def test_errors_of_a_remote_client_are_typed(monkeypatch):
    memory = type(fsspec.filesystem("memory"))

    class ClientError(Exception):
        """As aiohttp and botocore have them: no OSError."""

    def fail(self, path, **kwargs):
        raise ClientError("signature expired")

    for name in ("info", "cat_file", "ls"):
        monkeypatch.setattr(memory, name, fail)
    uri = "memory://daskdmed-client/image"
    assert BACKEND.accepts(uri) is False
    for action in (BACKEND.open, BACKEND.fingerprint):
        with pytest.raises(ImageError, match=r"image: .*ClientError: signature expired"):
            action(uri)


def test_fingerprint_covers_the_levels_and_nothing_else(tmp_path):
    uri, group = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64), noise(3, 32, 32)])
    before = BACKEND.fingerprint(uri)
    group.create_group("labels")
    assert BACKEND.fingerprint(uri) == before
    os.utime(tmp_path / "a.zarr" / "s1" / "zarr.json", ns=(1, 1))
    assert BACKEND.fingerprint(uri) != before


def test_reading_after_close(tmp_path):
    uri, _ = write_ome(tmp_path / "a.zarr", [noise(3, 64, 64)])
    reader = BACKEND.open(uri)
    reader.close()
    with pytest.raises(ImageError, match="closed"):
        whole(reader)


def test_a_read_that_fails_once_is_repeated(tmp_path, monkeypatch):
    image = noise(3, 130, 130)
    uri, _ = write_ome(tmp_path / "a.zarr", [image])
    reader = BACKEND.open(uri)
    original, calls = planes.Plane.read, []

    def flaky(self, region, out):
        calls.append(region)
        if len(calls) == 1:
            raise ConnectionResetError("the network")
        original(self, region, out)

    monkeypatch.setattr(planes.Plane, "read", flaky)
    assert np.array_equal(whole(reader), image.transpose(1, 2, 0))
    assert len(calls) == 1 + 9


def test_the_module_does_not_import_zarr():
    code = "import sys, daskdmed.images.ngff; assert 'zarr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_damaged_chunk_is_told_of_by_the_slide(tmp_path):
    image = np.full((300, 300, 3), 50, np.uint8)
    array = zarr.create_array(
        tmp_path / "image.zarr", shape=image.shape, chunks=(100, 100, 3), dtype="u1"
    )
    array[...] = image
    (tmp_path / "image.zarr" / "c" / "1" / "2" / "0").write_bytes(b"no chunk")
    slide = open_slide(tmp_path / "image.zarr")
    assert slide.failed_tiles == ()
    view = slide.view(tile_error="fill")
    pixels = view.read(Region.of((300, 300)))
    assert (pixels[100:200, 200:] == view.background).all()
    for failed in (slide.failed_tiles, view.failed_tiles):
        assert [(tile.level, tile.tile) for tile in failed] == [(0, (1, 2))]


def test_a_missing_level_is_one_kind_of_error_for_every_backend(tmp_path, make):
    make.write_pyramid(tmp_path / "slide.tif", (256, 256), levels=1)
    zarr.create_array(tmp_path / "image.zarr", data=np.zeros((64, 64, 3), np.uint8))
    for name, backend in (("slide.tif", None), ("slide.tif", "openslide"), ("image.zarr", None)):
        if backend is not None:
            pytest.importorskip(backend)
        slide = open_slide(tmp_path / name, backend=backend)
        with cache.lease(slide.key) as reader, pytest.raises(ResolutionError, match="no level 7"):
            reader.read(7, Region((0, 0), (1, 1)))
        with pytest.raises(ResolutionError, match="no level 7"):
            slide.view(level=7)


@pytest.mark.parametrize("text", ["{} {}", "[" * 5000, '{"a": '])
def test_attributes_of_an_array_that_are_no_json(tmp_path, text):
    """Of a group without OME metadata, whose arrays are looked for."""
    group = zarr.create_group(store=str(tmp_path / "a.zarr"), zarr_format=2)
    group.create_array("x", shape=(8, 8), chunks=(8, 8), dtype="u1")
    (tmp_path / "a.zarr" / "x" / ".zattrs").write_text(text)
    for opener in (open_slide, open_volume):
        with pytest.raises((CorruptImageError, UnsupportedImageError), match=r"a\.zarr"):
            opener(tmp_path / "a.zarr")
