"""What a simulation is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from daskdmed.loading.remote import BYTES_PER_TASK
from daskdmed.persistence.blockgrid import BlockGrid
from daskdmed.persistence.budget import Allotment, allot
from daskdmed.persistence.plan import Population, RotationPlan
from daskdmed.persistence.policy import LeastVisitedFirst

#: one scheduler for all machines; one for each, all with the same plan; one for each, and each
#: with a plan (a part of the slides) of its own
Way = Literal["one", "each", "own"]


@dataclass(frozen=True)
class Costs:
    """Seconds and rates; which were measured how is in docs/design/scale.md.

    Parameters
    ----------
    decode : float
        Pixels per second that one core decodes.
    crop : float
        Seconds in which a rank puts one small chunk into a batch, place and provenance included.
    crop_elsewhere : float
        Seconds in which a worker crops one for a rank of another machine.
    unpack : float
        Bytes per second that a rank takes from a socket.
    turn : float
        Seconds in which a rank walks one turn of the plan.
    ask : float
        Seconds of a rank to ask for something, and to take notice of the answer.
    message : float
        Seconds of the scheduler for one message about a task, to it or from it.
    meet, meet_rank : float
        Seconds of the scheduler to tell a rank where the others are: for the question, and for
        each rank that it knows.
    to_scheduler, to_worker, from_worker, to_client : float
        Seconds for which Dask collects messages before it sends them.
    wire : float
        Seconds that a message takes between two processes, a question without collecting.
    """

    decode: float = 250e6
    crop: float = 75e-6
    crop_elsewhere: float = 75e-6
    unpack: float = 1.0e9
    turn: float = 0.7e-3
    ask: float = 1.0e-3
    message: float = 0.25e-3
    meet: float = 0.3e-3
    meet_rank: float = 1e-6
    to_scheduler: float = 10e-3
    to_worker: float = 5e-3
    from_worker: float = 2e-3
    to_client: float = 2e-3
    wire: float = 0.2e-3


@dataclass(frozen=True)
class Fleet:
    """Machines, what they train on, and how.

    Parameters
    ----------
    machines, ranks : int
        Machines, and training processes of each.
    workers, threads : int
        Reading processes of each machine, and threads of each of these.
    network : float
        Bytes per second that a machine sends, and receives.
    step, jitter : float
        Seconds of a training step, and the spread of them (a fraction of it, of half a normal
        distribution).
    late, lateness : float
        How many of the steps are late, and how many times as long they take.
    synchronised : bool
        Every step ends for all ranks at once, as with gradients that are averaged.
    resident : int
        Bytes of big chunks per machine.
    in_process : bool
        Workers are threads of a rank, which is the only one.
    told : {"turn", "batch"}
        When ranks tell each other where they are; "turn" is what daskdmed does.
    seed : int
        Of the plan and of the times of steps.
    """

    way: Way = "one"
    machines: int = 8
    ranks: int = 8
    workers: int = 2
    threads: int = 8
    network: float = 25e9 / 8
    step: float = 0.064
    jitter: float = 0.05
    late: float = 0.01
    lateness: float = 2.0
    synchronised: bool = True
    resident: int = 8 << 30
    in_process: bool = False
    batch: int = 64
    draws: int = 512
    smallchunk: int = 224
    bigchunk: int = 4096
    slides: int = 500
    side: int = 51_200
    told: Literal["turn", "batch"] = "turn"
    seed: int = 0
    costs: Costs = field(default_factory=Costs)

    @property
    def spans(self) -> int:
        """Machines that share a scheduler and a resident set."""
        return self.machines if self.way == "one" else 1

    @property
    def sets(self) -> int:
        """Resident sets."""
        return self.machines // self.spans

    @property
    def world(self) -> int:
        """Ranks among which the draws of a plan are dealt."""
        return self.ranks * (1 if self.way == "own" else self.machines)

    @property
    def meeting(self) -> int:
        """Ranks that come to one scheduler."""
        return self.ranks * self.spans

    @cached_property
    def grid(self) -> BlockGrid:
        """The big chunks of a slide."""
        places = [(n, n) for n in (self.side, self.bigchunk, 256, self.smallchunk)]
        return BlockGrid.of(*places, by_places=True)

    @cached_property
    def pixels(self) -> float:
        """Of a big chunk, on average."""
        grid = self.grid
        return sum(grid.region(n).size for n in range(len(grid))) / len(grid)

    @cached_property
    def crop_bytes(self) -> int:
        return self.smallchunk**2 * 3

    def allotment(self) -> Allotment:
        """What a resident set may hold, before it is known what the plan can use."""
        height, width = self.grid.largest
        return allot(self.resident * self.spans, height * width * 3)

    def plan(self, number: int = 0) -> RotationPlan:
        """The plan of the resident set of a number."""
        names = tuple(map(str, range(self.slides)))
        people = Population((len(self.grid),) * self.slides, names, ({},) * self.slides)
        return RotationPlan(
            people,
            slots=self.allotment().slots,
            draws_per_visit=self.draws,
            seed=self.seed + (number if self.way == "own" else 0),
            policy=LeastVisitedFirst(),
        )

    @property
    def together(self) -> int:
        """Draws that a rank asks other machines for at a time, at most."""
        return max(1, BYTES_PER_TASK * self.workers * self.spans // self.crop_bytes)


@dataclass(frozen=True)
class Outcome:
    """What came of it, from the first step that is counted to the last.

    Parameters
    ----------
    seconds, ideal : float
        That all steps took, and what they would have taken with batches that are always there.
    begun : float
        Seconds lost before the steps that are counted, the first big chunks included.
    waits, worst : float
        Share of the time for which a rank waits for its next batch: of all ranks, and of the one
        that waits most.
    messages, scheduler : float
        Messages per second of a scheduler, and how busy it is.
    nbytes : float
        Bytes between machines per batch.
    network, reading : float
        How busy the network of the busiest machine is (in its busier direction), and reading cores.
    thread : dict
        Share of the time for which threads that make batches compute, and wait for what.
    read : float
        Big chunks per second that a machine reads.
    reads : float
        How often a big chunk is read per visit.
    peak : int
        Big chunks that a resident set held at most, those being read included.
    capacity : int
        How many it may.
    """

    fleet: Fleet
    seconds: float
    ideal: float
    begun: float
    waits: float
    worst: float
    messages: float
    scheduler: float
    nbytes: float
    network: float
    reading: float
    thread: dict[str, float]
    read: float
    reads: float
    peak: int
    capacity: int
    batches: int

    @property
    def lost(self) -> float:
        """Share of the time that training takes longer than with batches that are there."""
        return 1 - self.ideal / self.seconds

    @property
    def rate(self) -> float:
        """Small chunks per second of all ranks."""
        return self.batches * self.fleet.batch / self.seconds

    @property
    def limit(self) -> str:
        """What threads that make batches spend most of their time with, but for training."""
        return max((n for n in self.thread if n != "training"), key=self.thread.__getitem__)
