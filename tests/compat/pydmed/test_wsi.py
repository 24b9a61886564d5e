"""PyDmed's sliding windows, streams and heatmaps: nothing lost, nothing twice, nothing moved."""

from collections import Counter

import numpy as np
import pytest
import tifffile
import torch

from daskdmed.compat.pydmed.extensions.wsi import (
    DefaultWSIxyWHvaltoRasterPoints,
    SlidingWindowBigChunkLoader,
    SlidingWindowDL,
    SlidingWindowSmallChunkCollector,
    Tensor3DtoPdmcsvrow,
    default_func_patient_to_fnameimage,
    pdmcsvtoarray,
)
from daskdmed.compat.pydmed.lightdl import PYDMEDRESERVED_DLRETURNEDLASTINSTANCE, LightDL
from daskdmed.compat.pydmed.stat import StatCollector, Statistic
from daskdmed.compat.pydmed.streamcollector import ProcessedPiece, StreamCollector
from daskdmed.compat.pydmed.utils.data import Dataset, Patient, Record
from daskdmed.errors import LoaderError, StoreError, UsageError
from tests.compat.pydmed.made import Collector, Loader, dataset, settings

SIZES = {0: (230, 310), 1: (200, 100), 2: (70, 150)}


def picture(number):
    """Places, and the number of the patient."""
    y, x = np.indices(SIZES[number])
    return np.stack([y, x % 256, np.full_like(y, number)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    patients = []
    for number in SIZES:
        image = picture(number)
        with tifffile.TiffWriter(folder / f"{number}.tiff") as file:
            options = {"tile": (64, 64), "photometric": "rgb"}
            file.write(image, subifds=0, **options)
            file.write(image[::2, ::2], subfiletype=1, **options)
        record = Record(f"{folder}/", f"{number}.tiff", {})
        patients.append(Patient(number, {"H&E": record}))
    return Dataset("slides", patients)


def sliding(data, kernel=50, stride=50, level=0, **options):
    given = {
        "intorfunc_opslevel": level,
        "kernel_size": kernel,
        "stride": stride,
        "mininterval_loadnewbigchunk": 0,
        "dataset": data,
        "type_bigchunkloader": SlidingWindowBigChunkLoader,
        "type_smallchunkcollector": SlidingWindowSmallChunkCollector,
        "const_global_info": settings(),
        "batch_size": 7,
        "tfms_onsmallchunkcollection": None,
        "tfms": None,
    }
    return SlidingWindowDL(**{**given, **options})


def everything(loader):
    loader.start()
    chunks, values = [], []
    while True:
        taken = loader.get()
        if isinstance(taken, str):
            assert taken == PYDMEDRESERVED_DLRETURNEDLASTINSTANCE
            break
        x, _, batch = taken
        chunks += batch
        values += list(x)
    assert not loader.is_dl_running()
    assert loader.get() == PYDMEDRESERVED_DLRETURNEDLASTINSTANCE
    loader.pause_loading()
    return chunks, values


@pytest.mark.parametrize(("kernel", "stride"), [(50, 50), (50, 25), (64, 40), (40, 90)])
def test_each_window_comes_once_and_every_pixel_is_covered(slides, kernel, stride):
    """The original: windows twice, the stride across ignored, the last row of pixels never read."""
    chunks, values = everything(sliding(slides, kernel, stride))
    seen = {number: np.zeros(size, int) for number, size in SIZES.items()}
    places = Counter()
    for chunk, value in zip(chunks, values, strict=True):
        number = chunk.patient.int_uniqueid
        big, small = chunk.dict_info_of_bigchunk, chunk.dict_info_of_smallchunk
        y, x = big["y"], small["x"]
        places[number, y, x] += 1
        seen[number][y : y + kernel, x : x + kernel] += 1
        assert (value.numpy() == picture(number)[y : y + kernel, x : x + kernel]).all()
        height, width = SIZES[number]
        assert (big["WSI_H"], big["WSI_W"]) == (height, width)
        assert small["flag_auxlastcol"] == bool(x % stride)
        assert big["flag_from_auxbigrow"] == bool(y % stride)
        assert big["idx_bigrow"] == -(-y // stride) < big["num_bigrows"]
    assert set(places.values()) == {1}
    if stride <= kernel:
        assert all(count.min() >= 1 for count in seen.values())


def test_the_level_may_be_a_function_of_the_patient(slides):
    chunks, _ = everything(sliding(slides, 35, 35, lambda patient: int(patient.int_uniqueid > 0)))
    found = {
        c.patient.int_uniqueid: (
            c.dict_info_of_smallchunk["patch_levelidx"],
            c.dict_info_of_bigchunk["downsample_of_patchlevel"],
            c.dict_info_of_bigchunk["WSI_H"],
        )
        for c in chunks
    }
    assert found == {0: (0, 1.0, 230), 1: (1, 2.0, 100), 2: (1, 2.0, 35)}


def test_a_transform_in_the_collector_gives_channels_first(slides):
    def halve(window):
        return torch.from_numpy(window[::2, ::2].copy()).permute(2, 0, 1)

    _, values = everything(sliding(slides, tfms_onsmallchunkcollection=halve))
    assert {tuple(v.shape) for v in values} == {(25, 25, 3)}


def test_a_slide_that_cannot_be_read_is_an_error(slides, tmp_path):
    """P8: it counted as done."""
    bad = tmp_path / "bad.tiff"
    bad.write_bytes(
        (tmp_path / slides.list_patients[0].dict_records["H&E"].rootdir / "0.tiff").read_bytes()[
            :9000
        ]
    )
    data = Dataset("x", [Patient(9, {"wsi": Record(f"{tmp_path}/", "bad.tiff", {})})])
    with pytest.raises((LoaderError, OSError), match=r"bad\.tiff"):
        everything(sliding(data))


def test_it_reads_by_itself(slides):
    with pytest.raises(UsageError, match="give SlidingWindowBigChunkLoader"):
        sliding(slides, type_bigchunkloader=Loader)


def test_the_file_of_a_patient():
    assert (
        default_func_patient_to_fnameimage(Patient(0, {"wsi": Record("/a", "b.svs", {})}))
        == "/a/b.svs"
    )
    with pytest.raises(UsageError, match='no record "H&E" or "wsi"'):
        default_func_patient_to_fnameimage(Patient(0, {}))


# -- streams -----------------------------------------------------------------------------------


class Heatmap(StreamCollector):
    """Two values for each quarter of a window: its first pixel's place."""

    def process_pieceofstream(self, returnvalue_of_collatefunction):
        x, _, chunks = returnvalue_of_collatefunction
        made = []
        for image, chunk in zip(x, chunks, strict=True):
            half = image.shape[0] // 2
            values = image[::half, ::half, :2].permute(2, 0, 1).float().numpy()
            made.append(ProcessedPiece(chunk, data=Tensor3DtoPdmcsvrow(values, chunk)))
        return made

    def get_flag_finishcollecting(self):
        return not self.lightdl.is_dl_running() and self.lightdl.queue_lightdl.qsize() == 0


def test_rows_become_a_map_that_lies_on_its_slide(slides, tmp_path):
    """As of a model that gives places. Windows that were moved inside overlap: their mean."""
    folder = tmp_path / "rows"
    folder.mkdir()
    collector = Heatmap(
        sliding(slides), "stream_to_file", kwargs_streamwriter={"rootpath": str(folder)}
    )
    collector.start_collecting()
    assert collector.get_finalstats() is None
    for number, (height, width) in SIZES.items():
        found = pdmcsvtoarray(folder / f"patient_{number}.csv")
        assert found.shape == (round(height / 25), round(width / 25), 2)
        assert not np.isnan(found).any()
        whole = np.s_[: height // 50 * 2, : min(width, 250) // 50 * 2]
        y, x = np.indices(found.shape[:2])
        inside = found[whole]
        # nothing was moved there
        rows, columns = max(0, height // 50 * 2 - 2), max(0, min(width, 250) // 50 * 2 - 2)
        assert (inside[:rows, :columns, 0] == 25 * y[:rows, :columns]).all()
        assert (inside[:rows, :columns, 1] == 25 * x[:rows, :columns]).all()
    with pytest.raises(UsageError, match="has collected already"):
        collector.start_collecting()


def test_holes_are_no_numbers_and_stay_where_they_are(tmp_path):
    """P18: coordinates were compressed to ranks, and damaged values became 0."""
    rows = [
        f"{y}, {x}, 100, 150, 0, 50, 1.0, 1, 1, 1,{y + x / 1000}\n"
        for y in (0, 50)
        for x in (0, 100)
    ]
    rows[1] = rows[1].rsplit(",", 1)[0] + ",None\n"
    file = tmp_path / "a.csv"
    file.write_text("".join(rows))
    found = pdmcsvtoarray(file, DefaultWSIxyWHvaltoRasterPoints().func_WSIxyWHval_to_rasterpoints)
    np.testing.assert_array_equal(found[..., 0], [[0, np.nan, np.nan], [50, np.nan, 50.1]])
    large = pdmcsvtoarray(file, scale_upsampleraster=2)
    assert large.shape == (4, 6, 1)
    assert large[0, 0, 0] == 0
    assert large[-1, 0, 0] == 50


def test_overlaps_give_their_mean(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(
        "0, 0, 100, 100, 0, 100, 1.0, 1, 2, 2,1, 1, 1, 1\n"
        "0, 50, 100, 100, 0, 100, 1.0, 1, 2, 2,3, 3, 3, 3\n"
    )
    np.testing.assert_array_equal(pdmcsvtoarray(file)[..., 0], [[1, 2], [1, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("0, 0, 100, 100, 0, 50, 1.0, 1, 2, 2,1, 1, 1\n", "line 1 is no row.*cut off"),
        ("hello\n", "line 1 is no row"),
        ("0, 0, 9, 9, 0, 9, 1.0, 1, 1, 1,1\n0, 0, 8, 9, 0, 9, 1.0, 1, 1, 1,1\n", "line 2: "),
    ],
)
def test_damaged_rows_are_said(tmp_path, text, message):
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(StoreError, match=message):
        pdmcsvtoarray(file)


def test_only_windows_have_rows():
    from daskdmed.compat.pydmed.lightdl import SmallChunk

    with pytest.raises(UsageError, match="small chunk of a SlidingWindowDL"):
        Tensor3DtoPdmcsvrow(np.zeros((1, 2, 2)), SmallChunk(None, {}, {}, None))
    with pytest.raises(UsageError, match=r"\(c, h, w\)"):
        Tensor3DtoPdmcsvrow(np.zeros((2, 2)), None)


class Fifty(StreamCollector):
    """Numbers of patients, until there are fifty."""

    count = 0

    def process_pieceofstream(self, returnvalue_of_collatefunction):
        chunks = returnvalue_of_collatefunction[2]
        self.count += len(chunks)
        return [ProcessedPiece(c, data=c.patient.int_uniqueid) for c in chunks]

    def get_flag_finishcollecting(self):
        return self.count >= 50

    def accum_statistics(self, prev_accum, new_stat, patient):
        assert new_stat == patient.int_uniqueid
        return (prev_accum or 0) + 1

    def collate_stats_onfinishcollecting(self, patient, list_collectedstats):
        assert set(list_collectedstats) == {patient.int_uniqueid}
        return len(list_collectedstats)


@pytest.mark.parametrize("kind", ["saveall", "accum"])
def test_what_is_kept_is_by_patient(kind):
    loader = LightDL(dataset(), Loader, Collector, settings(), 5, None)
    collector = Fifty(loader, kind)
    with pytest.raises(UsageError, match="nothing was collected"):
        collector.get_finalstats()
    collector.start_collecting()
    assert sum(collector.get_finalstats().values()) == 50
    assert set(collector.get_finalstats()) <= set(loader.dataset.list_patients)
    assert not loader.is_dl_running()


def test_the_older_names_work_too():
    class Older(StatCollector):
        def get_statistics(self, returned):
            return [Statistic(chunk, stat=1) for chunk in returned[2]]

        def get_flag_finishcollecting(self):
            return True

    collector = Older(LightDL(dataset(), Loader, Collector, settings(), 5, None), "saveall")
    collector.start_collecting()
    assert sum(map(len, collector.get_finalstats().values())) == 5
    with pytest.raises(UsageError, match="not both"):
        Statistic(None, 1, 2)


def test_an_error_ends_the_loader_and_keeps_what_was_written(tmp_path):
    class Failing(Fifty):
        def process_pieceofstream(self, returned):
            if self.count:
                raise RuntimeError("the model failed")
            return [
                ProcessedPiece(p.source_smallchunk, data="row\n")
                for p in super().process_pieceofstream(returned)
            ]

    loader = LightDL(dataset(), Loader, Collector, settings(), 5, None)
    file = tmp_path / "rows.csv"
    collector = Failing(loader, "stream_to_file", kwargs_streamwriter={"fname_tosave": str(file)})
    with pytest.raises(RuntimeError, match="the model failed"):
        collector.start_collecting()
    assert not loader.is_dl_running()
    assert file.read_text() == "row\n" * 5


def test_what_a_collector_cannot_be():
    loader = LightDL(dataset(), Loader, Collector, settings(), 5, None)
    with pytest.raises(UsageError, match="must be one of saveall"):
        Fifty(loader, "everything")
    with pytest.raises(UsageError, match="flag_visualizestats"):
        Fifty(loader, "saveall", flag_visualizestats=True)
    loader.pause_loading()
