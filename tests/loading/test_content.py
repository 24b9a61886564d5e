"""Big chunks that a loader makes itself, and small chunks that are objects."""

from dataclasses import dataclass

import dask.array as da
import numpy as np
import pytest
import torch

from daskdmed import BigChunkLoader, Content, LightDL, Region, SmallChunkCollector, stateful
from daskdmed.errors import LoaderError, UsageError
from daskdmed.policies import OnePass
from tests.loading.clusters import tcp_cluster

IMAGE = np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8)
SMALL = {
    "smallchunk_size": 32,
    "bigchunk_size": 96,
    "batch_size": 6,
    "smallchunks_per_bigchunk": 12,
    "resident": "1 MiB",
}


def images():
    return [da.from_array(IMAGE, chunks=(100, 100, 3)), da.from_array(255 - IMAGE, chunks=128)]


@pytest.fixture(scope="module")
def other_machine():
    with tcp_cluster(2) as (_, client):
        yield client


@pytest.fixture(scope="module")
def this_machine():
    with tcp_cluster(2, shared=True) as (_, client):
        yield client


@pytest.fixture(params=["threads", "this_machine", "other_machine"])
def client(request):
    return None if request.param == "threads" else request.getfixturevalue(request.param)


def batches(count=8, then=None, **options):
    with LightDL(options.pop("images", None) or images(), **{**SMALL, **options}) as loader:
        found = []
        for _ in range(count):
            x, patients, smallchunks = next(loader)
            found.append((x, [p.id for p in patients], smallchunks))
        if then is not None:
            then(loader)
    return found


# -- pixels of its own ---------------------------------------------------------------------


def inverted(read, context, rng):
    return 255 - read(context.region)


def test_pixels_that_a_loader_made_are_cropped_where_those_of_the_file_are(client):
    """Also from shared memory, and by whoever crops on another machine."""
    made = batches(bigchunk_loader=inverted, client=client)
    read = batches(bigchunk_loader=lambda read, context, rng: context.region)
    assert len(read) == len(made) == 8
    for (x, whose, chunks), (y, same, other) in zip(read, made, strict=True):
        assert whose == same
        assert [c.origin for c in chunks] == [c.origin for c in other]
        torch.testing.assert_close(x, 255 - y, rtol=0, atol=0)


class CornerOfItsOwn(BigChunkLoader):
    def extract_bigchunk(self, read, context, rng):
        corner = Region((10, 20), (64, 80))
        return read(corner) // 2, corner


def test_pixels_lie_where_the_loader_says():
    for _, _, chunks in batches(3, images=[IMAGE], bigchunk_loader=CornerOfItsOwn):
        for chunk in chunks:
            row, column = chunk.origin
            assert 10 <= row <= 74 - 32
            assert 20 <= column <= 100 - 32
            assert (chunk.data == IMAGE[row : row + 32, column : column + 32] // 2).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda read, c, rng: read(c.region)[1:], r"gave pixels of shape \(\d+, \d+, 3\) uint8"),
        (lambda read, c, rng: read(c.region).astype(float), "float64.*daskdmed.Content"),
        (lambda read, c, rng: (IMAGE, Region((0, 0), IMAGE.shape[:2])), "bigchunk_size"),
        (lambda read, c, rng: (IMAGE[:9, :9], Region((-1, 0), (9, 9))), "outside the image"),
        (lambda read, c, rng: [c.region, "x"], "Region or a sequence of them, pixels, or"),
        (lambda read, c, rng: [], "Region or a sequence of them, pixels, or"),
        (lambda read, c, rng: {"nuclei": 3}, "only a collector can make small chunks"),
    ],
)
def test_what_no_small_chunk_can_be_cropped_from_is_said(given, message):
    with pytest.raises(LoaderError, match=message):
        batches(bigchunk_loader=given)


def test_pixels_of_its_own_have_no_surroundings():
    with pytest.raises(LoaderError, match="context="):
        batches(
            images=[np.zeros((8, 64, 64), "u1")],
            smallchunk_size=(1, 32, 32),
            bigchunk_size=(4, 64, 64),
            context=(1, 0, 0),
            bigchunk_loader=lambda read, c, rng: read(c.region),
        )


def test_a_loader_that_finds_nothing_ends_the_visit():
    def second_only(read, context, rng):
        return context.region if context.patient.endswith("1") else None

    found = batches(4, bigchunk_loader=second_only)
    assert {name for _, names, _ in found for name in names} == {found[0][1][0]}
    with pytest.raises(LoaderError, match="nothing to make a batch from"):
        batches(bigchunk_loader=lambda *_: None)


# -- objects -------------------------------------------------------------------------------


@dataclass
class Cells:
    """What a loader finds in a big chunk."""

    patient: str
    places: np.ndarray


@dataclass
class Graph:
    cells: np.ndarray
    draw: int


def find_cells(read, context, rng):
    bright = np.argwhere(read(context.region)[..., 0] > 200)
    return Cells(context.patient, bright[rng.permutation(len(bright))[:40]])


class Neighbours(SmallChunkCollector):
    """A few cells: as many as it likes."""

    def extract_smallchunk(self, bigchunk, context, rng):
        cells = bigchunk.data
        assert isinstance(cells, Cells)
        assert cells.patient == bigchunk.patient == context.patient
        count = int(rng.integers(2, 6))
        return Graph(cells.places[rng.permutation(len(cells.places))[:count]], context.draw)


def together(graphs):
    offsets = np.cumsum([0, *(len(g.cells) for g in graphs)])
    return torch.from_numpy(np.concatenate([g.cells for g in graphs])), torch.tensor(offsets)


GRAPHS = {"bigchunk_loader": find_cells, "smallchunk_collector": Neighbours, "collate": together}


def same(one, other):
    assert len(one) == len(other)
    for (x, names, chunks), (y, others, too) in zip(one, other, strict=True):
        assert names == others
        for a, b in zip(x, y, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert [c.draw for c in chunks] == [c.draw for c in too]


def test_objects_are_drawn_as_crops_are(client):
    """The same batches wherever big chunks live; objects of any size make a batch."""
    here, there = batches(**GRAPHS), batches(**GRAPHS, client=client)
    same(here, there)
    (places, offsets), _, chunks = there[0]
    assert len(chunks) == 6
    assert places.shape[1] == 2
    assert offsets[-1] == len(places)
    assert all(isinstance(chunk.data, Graph) for chunk in chunks)
    assert [c.data.draw for c in chunks] == [c.draw for c in chunks]
    assert len({len(c.data.cells) for c in chunks}) > 1
    assert all(extent <= 96 for c in chunks for extent in c.bigchunk.shape)


def test_a_state_goes_on_with_the_next_object():
    everything = batches(6, **GRAPHS)
    saved = []
    batches(3, then=lambda loader: saved.append(loader.state_dict()), **GRAPHS)
    with LightDL(images(), **SMALL, **GRAPHS) as loader:
        loader.load_state_dict(saved[0])
        rest = [next(loader) for _ in range(3)]
    same(everything[3:], [(x, [p.id for p in patients], c) for x, patients, c in rest])


def test_ranks_share_the_stream_of_objects():
    everything = batches(6, **GRAPHS)
    for rank in range(2):
        mine = batches(3, **GRAPHS, rank=rank, world_size=2)
        same(mine, everything[rank::2])


def test_transforms_get_each_object_and_collate_what_they_give():
    def count(graph):
        return torch.tensor(float(len(graph.cells)))

    plain = batches(2, **GRAPHS)
    counted = batches(2, **{**GRAPHS, "collate": torch.stack}, tfms=count)
    for (_, _, chunks), (x, _, _) in zip(plain, counted, strict=True):
        assert x.tolist() == [len(c.data.cells) for c in chunks]


def test_crops_can_be_collated_too():
    """Without a collector objects are the crops, (y, x, c)."""
    plain = batches(2)
    collated = batches(2, collate=torch.utils.data.default_collate)
    for (x, _, _), (y, _, _) in zip(plain, collated, strict=True):
        assert y.shape == (6, 32, 32, 3)
        torch.testing.assert_close(y.movedim(-1, 1), x, rtol=0, atol=0)


def test_a_collector_of_pixels_may_give_anything_with_collate():
    def mean(bigchunk, context, rng):
        return {"mean": float(bigchunk.data.mean()), "draw": context.draw}

    x, _, chunks = batches(1, smallchunk_collector=mean, collate=torch.utils.data.default_collate)[
        0
    ]
    assert x["draw"].tolist() == [c.draw for c in chunks]
    assert x["mean"].dtype == torch.float64


def test_an_object_can_be_cropped_into_a_plain_batch():
    """Without collate= the collector gives the crop itself."""

    def crop(bigchunk, context, rng):
        return np.full((32, 32, 3), len(bigchunk.data.places), np.uint8)

    x, _, _ = batches(1, bigchunk_loader=find_cells, smallchunk_collector=crop)[0]
    assert x.shape == (6, 3, 32, 32)
    assert set(x.unique().tolist()) == {40}


def test_objects_are_remembered_and_told_of():
    @stateful
    def counting(bigchunk, context, rng):
        context.state["n"] = context.state.get("n", 0) + 1
        return context.state["n"], context.feedback

    options = {"bigchunk_loader": find_cells, "smallchunk_collector": counting, "collate": list}
    with LightDL(images(), **SMALL, **options, feedback_lag=1) as loader:
        whose = next(loader)[1][0]
        first = loader.feedback(whose, "hello")
        seen = [(number, next(loader)) for number in range(1, 4)]
    heard = [
        (number, patient.id)
        for number, (x, patients, _) in seen
        for (_, messages), patient in zip(x, patients, strict=True)
        if "hello" in messages
    ]
    assert heard
    assert {name for _, name in heard} == {whose.id}
    assert min(number for number, _ in heard) >= first


def test_each_object_once_in_a_pass():
    with LightDL(images(), **SMALL, **GRAPHS, policy=OnePass()) as loader:
        given = [
            (c.patient.id, c.bigchunk.origin, c.draw) for _, _, chunks in loader for c in chunks
        ]
    assert len(set(given)) == len(given)
    assert len({origin for _, origin, _ in given}) > 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"collate": 3}, UsageError, "collate must be a function"),
        ({"collate": list, "squeeze": True}, UsageError, "squeeze=True and collate="),
        ({"collate": list, "target": "mask"}, UsageError, "target='mask' and collate="),
        ({"collate": dict, "device": "cpu"}, UsageError, "gave dict, and only a tensor"),
    ],
)
def test_what_objects_cannot_be_combined_with(options, error, message):
    if options["collate"] is dict:
        options = {**options, "collate": lambda objects: dict(enumerate(objects))}
    with pytest.raises(error, match=message):
        batches(**options)


def test_an_object_counts_with_its_size():
    """What it says itself, and what lies in its attributes."""
    assert Content(Cells("a", np.zeros(10_000))).__sizeof__() > 80_000
    with pytest.raises(LoaderError, match="an object of .* bytes, but the budget counts 27648"):
        batches(
            bigchunk_loader=lambda read, c, rng: Cells("a", np.zeros(10_000)),
            smallchunk_collector=Neighbours,
            collate=together,
        )


def test_an_array_can_be_an_object():
    def embed(read, context, rng):
        return Content(read(context.region).reshape(-1, 3).mean(0), Region((1, 2), (50, 60)))

    def give(bigchunk, context, rng):
        assert bigchunk.origin == (1, 2)
        assert bigchunk.shape == (50, 60)
        return bigchunk.data

    x, _, _ = batches(1, bigchunk_loader=embed, smallchunk_collector=give, collate=np.stack)[0]
    assert x.shape == (6, 3)


def test_a_position_in_an_object_is_refused():
    with pytest.raises(LoaderError, match="the big chunk is an object"):
        batches(bigchunk_loader=find_cells, smallchunk_collector=lambda b, c, r: (0, 0))
