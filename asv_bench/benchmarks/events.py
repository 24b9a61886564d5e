"""What emitting costs: nothing measurable without subscribers."""

from __future__ import annotations

import timeit

from daskdmed.core import events


class Emitting:
    """One place of emission, as it stands in loaders and in the runner."""

    params = ("nobody listens", "one listens")
    param_names = ("subscribers",)

    def setup(self, subscribers: str) -> None:
        self.end = lambda: None
        if subscribers == "one listens":
            self.end = events.subscribe(lambda event: None)

    def teardown(self, subscribers: str) -> None:
        self.end()

    def time_a_thousand(self, subscribers: str) -> None:
        for number in range(1000):
            if events.listening():
                events.emit(events.BatchTaken("loader", number, 64, 0.0))

    def track_nanoseconds_each(self, subscribers: str) -> float:
        """To be seen beside a batch, which takes milliseconds."""
        number = 20_000
        took = min(timeit.repeat(lambda: self.time_a_thousand(subscribers), number=20, repeat=5))
        return took / number * 1e9

    track_nanoseconds_each.unit = "ns"  # type: ignore[attr-defined]
