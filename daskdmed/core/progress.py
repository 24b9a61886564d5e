"""A progress bar over the blocks of a run: a subscriber of `daskdmed.core.events`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from daskdmed.core import events


@contextmanager
def bar(run: str, name: str, show: bool = True, *, unit: str = "block") -> Iterator[None]:
    """Show how far a run is while the context lasts, by the events whose `run` is that one."""
    if not show:
        yield
        return
    from tqdm.auto import tqdm

    lock = threading.Lock()
    with tqdm(total=0, unit=unit, desc=name) as shown:

        def look(event: events.Event) -> None:
            if isinstance(event, events.RunStarted) and event.run == run:
                with lock:
                    shown.total = (shown.total or 0) + event.total
                    shown.n += event.done
                    shown.initial += event.done  # the speed is that of this run
                    shown.refresh()
            elif isinstance(event, events.BlockDone) and event.run == run:
                with lock:
                    shown.update()

        unsubscribe = events.subscribe(look)
        try:
            yield
        finally:
            unsubscribe()
