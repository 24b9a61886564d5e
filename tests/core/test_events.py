"""Events reach those who listen, and harm nobody."""

from __future__ import annotations

import dataclasses
import pickle
import threading
import time

import pytest

from daskdmed import events as public
from daskdmed.core import events, progress


def done(run="r", index=(0,)):
    return events.BlockDone(run, "heatmap", "a.svs", index)


def test_subscribers_get_every_event_until_they_unsubscribe():
    seen = []
    first, second = public.subscribe(seen.append), public.subscribe(seen.append)
    assert events.listening()
    event = done()
    events.emit(event)
    assert seen == [event, event]  # the same function twice: two subscriptions
    first()
    first()
    events.emit(event)
    assert len(seen) == 3
    second()
    assert not events.listening()
    events.emit(event)
    assert len(seen) == 3


def test_a_subscriber_that_fails_is_logged_and_others_hear(caplog):
    def fails(event):
        raise RuntimeError("no disk for the log")

    seen = []
    ends = [public.subscribe(fails), public.subscribe(seen.append)]
    try:
        events.emit(done())
    finally:
        for end in ends:
            end()
    assert len(seen) == 1
    assert "a subscriber failed on BlockDone" in caplog.text
    assert "no disk for the log" in caplog.text


def test_a_subscriber_may_unsubscribe_while_it_is_told():
    seen = []

    def once(event):
        seen.append(event)
        end()

    end = public.subscribe(once)
    events.emit(done())
    events.emit(done())
    assert len(seen) == 1


def test_threads_subscribe_and_emit_at_once():
    def work():
        for _ in range(200):
            seen = []
            end = public.subscribe(seen.append)
            mine = done()
            events.emit(mine)
            end()
            assert any(e is mine for e in seen)

    failed = []

    def run():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert not events.listening()


KINDS = [
    getattr(public, n)
    for n in public.__all__
    if n not in ("subscribe", "Event") and isinstance(getattr(public, n), type)
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_events_are_small_frozen_values_with_a_monotonic_time(kind):
    values = {f.name: "x" for f in dataclasses.fields(kind) if f.name != "time"}
    before = time.monotonic()
    event = kind(**values)
    assert before <= event.time <= time.monotonic()
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.time = 0.0
    assert not hasattr(event, "__dict__")
    assert pickle.loads(pickle.dumps(event)) == event


def test_a_progress_bar_counts_the_blocks_of_its_run_only(capsys):
    with progress.bar("mine", "heatmap"):
        events.emit(events.RunStarted("mine", "heatmap", "a.svs", total=5, done=2))
        events.emit(events.RunStarted("other", "heatmap", "b.svs", total=50, done=0))
        for i in range(3):
            events.emit(done("mine", (i,)))
            events.emit(done("other", (i,)))
    shown = capsys.readouterr().err
    assert "heatmap: 100%" in shown
    assert "5/5" in shown
    assert not events.listening()


def test_no_bar_no_subscriber():
    with progress.bar("mine", "heatmap", show=False):
        assert not events.listening()
