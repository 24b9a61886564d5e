"""The picture in a notebook, once and live."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from daskdmed import LightDL
from daskdmed.core.errors import LoaderClosedError, UsageError
from daskdmed.monitor import picture
from tests.monitor.made import dataset, small
from tests.waiting import until


@pytest.fixture
def notebook(monkeypatch):
    """What each call of `watch` has shown, oldest first."""
    pytest.importorskip("IPython")
    import IPython.core.getipython
    import IPython.display

    shown = []

    def display(what, display_id):
        assert display_id
        mine = [what.data]
        shown.append(mine)
        return SimpleNamespace(update=lambda what: mine.append(what.data))

    monkeypatch.setattr(IPython.display, "display", display)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setattr(IPython.core.getipython, "get_ipython", lambda: shell)
    return shown


def watchers(loader):
    name = f"daskdmed-watch-{loader.name}"
    return [t for t in threading.enumerate() if t.name == name]


def test_the_picture_changes_until_the_loader_is_closed(notebook):
    with LightDL(dataset(), **small()) as loader:
        loader.get()
        loader.watch(interval=0.01)
        (mine,) = notebook
        until(lambda: len(mine) > 3)
        assert loader.name in mine[-1]
        loader.get()
        until(lambda: "<title>p" in mine[-1])
        assert watchers(loader)
    until(lambda: not watchers(loader))
    with pytest.raises(LoaderClosedError):
        loader.watch()


def test_called_again_the_new_picture_takes_over(notebook):
    with LightDL(dataset(), **small()) as loader:
        loader.watch(interval=0.01)
        loader.watch(interval=0.01)
        first, second = notebook
        until(lambda: len(watchers(loader)) == 1)
        count, at = len(first), len(second)
        until(lambda: len(second) > at + 3)
        assert len(first) == count


def test_a_loader_that_is_forgotten_ends_its_picture(notebook):
    loader = LightDL(dataset(), **small()).start()
    loader.watch(interval=0.01)
    known = SimpleNamespace(name=loader.name)
    assert watchers(known)
    del loader
    until(lambda: not watchers(known))


def test_a_front_end_that_is_gone_ends_the_picture(monkeypatch):
    calls = []

    def show(text):
        calls.append(text)
        if len(calls) > 2:
            raise OSError("no front end")

    monkeypatch.setattr(picture, "_display", lambda: show)
    with LightDL(dataset(), **small()) as loader:
        loader.watch(interval=0.01)
        until(lambda: not watchers(loader))
        assert len(calls) == 3
        loader.get()


def test_outside_of_notebooks_it_says_what_to_do_instead():
    with LightDL(dataset(), **small()) as loader:
        with pytest.raises(UsageError, match=r"print\(loader.stats\(\)\)"):
            loader.watch()


@pytest.mark.parametrize("interval", [0, -1.0, float("nan"), float("inf")])
def test_an_interval_is_seconds(notebook, interval):
    with LightDL(dataset(), **small()) as loader:
        with pytest.raises(UsageError, match="interval must be seconds > 0"):
            loader.watch(interval=interval)
