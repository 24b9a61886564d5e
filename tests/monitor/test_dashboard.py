"""What a scheduler shows of loaders and runs: its page, its state, its metrics."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskdmed import LightDL, heatmap
from daskdmed.core.errors import LoaderError, MissingExtraError, UsageError
from daskdmed.monitor import feed, prometheus
from daskdmed.monitor.changes import plain
from daskdmed.monitor.plugin import Monitor, dashboard_of
from daskdmed.monitor.state import LiveState
from daskdmed.persistence import hosting
from tests.loading.clusters import tcp_cluster
from tests.monitor.made import dataset, small
from tests.waiting import until


def read(base, page):
    with urllib.request.urlopen(f"{base}/{page}") as answer:
        return answer.read().decode()


def state(base):
    return json.loads(read(base, "daskdmed/state.json"))


def base_of(client):
    return client.dashboard_link.removesuffix("/status")


def shown(base, loader):
    """What the scheduler has of a loader; None when it has heard nothing."""
    try:
        found = [one for one in state(base)["loaders"] if one["name"] == loader.name]
    except urllib.error.HTTPError:  # no page yet
        return None
    return found[0] if found else None


def metrics(base, name):
    """Values of a metric by loader."""
    lines = [line for line in read(base, "metrics").splitlines() if line.startswith(name + "{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}


@pytest.fixture(scope="module")
def cluster():
    with tcp_cluster(1) as (cluster, client):
        yield cluster, client


@pytest.fixture(scope="module")
def client(cluster):
    return cluster[1]


@pytest.fixture
def loader(client):
    with LightDL(dataset(), **small(), client=client) as loader:
        yield loader


def counters_of(loader):
    """Those of `stats` as they are sent, less what goes on while nobody does anything."""
    stats = loader.stats()
    names = set(loader._counters()) - {"seconds"}
    return {**{n: plain(getattr(stats, n)) for n in names}, "failed": len(stats.failed)}


def test_the_page_shows_what_the_statistics_say(client, loader):
    base = base_of(client)
    for _ in range(10):
        loader.get()
    loader.pause()

    def agrees():
        found = shown(base, loader)
        return found and {**found["counters"], "seconds": 0} == {
            **counters_of(loader),
            "seconds": 0,
        }

    until(agrees)
    page = read(base, "daskdmed")
    assert 'href="daskdmed"' in page  # the bar of all pages
    assert "dask-logo" in page
    (one,) = [s for s in state(base)["sets"] if s["loaders"] == [loader.name]]
    assert len(one["cells"]) == loader.stats().resident_visits
    assert {cell["state"] for cell in one["cells"]} <= {"asked", "ready", "waited"}
    plots = json.loads(read(base, "individual-plots.json"))
    assert "individual-daskdmed-big-chunks" in [url.strip("/") for url in plots.values()]
    for stock in ("status", "workers", "individual-daskdmed-big-chunks"):
        assert "bokeh" in read(base, stock)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(base, "no-such-page")


def test_metrics_are_those_of_the_statistics(client, loader):
    base = base_of(client)
    for _ in range(7):
        loader.get()
    loader.pause()
    until(lambda: metrics(base, "daskdmed_batches_total").get(loader.name) == 7.0)
    assert metrics(base, "daskdmed_patches_total")[loader.name] == 7 * 8
    assert metrics(base, "daskdmed_budget_bytes")[loader.name] == loader.stats().budget_bytes
    text = read(base, "metrics")
    assert text.count("# HELP daskdmed_patches_total") == 1


def test_ranks_stand_side_by_side(client):
    base = base_of(client)
    options = {**small(), "client": client, "world_size": 2}
    with (
        LightDL(dataset(), **options, rank=0) as first,
        LightDL(dataset(), **options, rank=1) as second,
    ):
        for _ in range(4):
            first.get()
            second.get()

        def together():
            return [s for s in state(base)["sets"] if s["loaders"] == [first.name, second.name]]

        until(together)
        cells = together()[0]["cells"]
        assert len({cell["visit"] for cell in cells}) == len(cells)
        assert shown(base, second)["ranks"]["turn"] >= 0
    until(lambda: shown(base, first) is None and shown(base, second) is None)


def test_a_rank_that_is_ahead_is_seen_to_wait(client):
    base = base_of(client)
    options = {**small(), "client": client, "world_size": 2}
    with (
        LightDL(dataset(), **options, rank=0) as first,
        LightDL(dataset(), **options, rank=1) as second,
    ):
        thread = threading.Thread(target=lambda: [first.get() for _ in range(60)])
        thread.start()
        until(lambda: ((shown(base, first) or {}).get("ranks") or {}).get("waits_for") == [1])
        for _ in range(60):
            second.get()
        thread.join()
        until(lambda: "rank 0 waits for rank 1" in shown(base, first)["log"])


def test_a_loader_that_is_forgotten_disappears(client):
    base = base_of(client)
    loader = LightDL(dataset(), **small(), client=client).start()
    known = SimpleNamespace(name=loader.name)
    until(lambda: shown(base, known))
    del loader
    until(lambda: shown(base, known) is None)


def test_a_client_that_is_gone_takes_its_loaders_with_it(cluster, client):
    base = base_of(client)
    other = Client(cluster[0], set_as_default=False)
    loader = LightDL(dataset(), **small(), client=other).start()
    until(lambda: shown(base, loader))
    other.close()
    until(lambda: shown(base, loader) is None)
    loader.close()


def test_it_is_registered_once(cluster, client, loader):
    until(lambda: shown(base_of(client), loader))
    scheduler = cluster[0].scheduler
    before = list(scheduler.http_application.applications)
    plugin = scheduler.plugins["daskdmed-monitor"]
    client.register_plugin(Monitor())
    assert client.run_on_scheduler(feed.preparer()) == ""
    assert scheduler.plugins["daskdmed-monitor"] is plugin
    assert scheduler.http_application.applications == before


def test_a_scheduler_that_forgot_is_told_everything_again(cluster, client, loader):
    base = base_of(client)
    loader.get()
    until(lambda: shown(base, loader))
    live = cluster[0].scheduler.plugins["daskdmed-monitor"].state
    cluster[0].scheduler.loop.add_callback(live.forget, client.id)
    loader.get()
    until(lambda: (shown(base, loader) or {}).get("counters", {}).get("batches") == 2)
    (one,) = [s for s in state(base)["sets"] if s["loaders"] == [loader.name]]
    assert one["cells"]


def test_a_run_is_shown_until_it_is_done(client, tmp_path):
    pixels = np.zeros((128, 128, 3), np.uint8)
    heatmap(
        pixels, lambda x: x.mean((1, 2, 3)), kernel_size=16, client=client, out=tmp_path / "h.zarr"
    )
    base = base_of(client)

    def done():
        return [r for r in state(base)["runs"] if r["of"] == "heatmap" and r["ended"] == "done"]

    until(done)
    assert done()[-1]["done"] == done()[-1]["total"] > 0


def test_a_browser_gets_the_cells(client, loader):
    from bokeh.client import pull_session

    loader.get()
    loader.pause()
    base = base_of(client)
    until(lambda: shown(base, loader))

    def drawn():
        session = pull_session(url=f"{base}/individual-daskdmed-big-chunks")
        try:
            source = session.document.roots[0].renderers[0].data_source
            return {name: list(values) for name, values in source.data.items()}
        finally:
            session.close()

    columns = drawn()
    (one,) = [s for s in state(base)["sets"] if s["loaders"] == [loader.name]]
    assert len({len(values) for values in columns.values()}) == 1
    slides = {f"{cell['patient']} / {cell['record']}" for cell in one["cells"]}
    assert slides <= set(columns["slide"])
    assert all(top <= level <= bottom for top, level, bottom in zip(
        columns["y0"], columns["level"], columns["y1"]
    ))  # fmt: skip


def test_where_there_is_no_dashboard_nothing_is_sent(caplog):
    caplog.set_level(logging.DEBUG, "daskdmed.monitor")
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", memory_limit=0,
            dashboard_address=":0", worker_dashboard_address=None,
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        LightDL(dataset(), **small(), client=client) as loader,
    ):  # fmt: skip
        loader.get()
        until(lambda: "the scheduler has no dashboard" in caplog.text)
        assert "daskdmed-monitor" not in cluster.scheduler.plugins


def test_a_scheduler_without_daskdmed_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "daskdmed.monitor.plugin", None)
    application = type("DaskBokehTornado", (), {})()
    http = SimpleNamespace(applications=[application])
    scheduler = SimpleNamespace(plugins={}, http_application=http)
    assert "cannot import" in feed.preparer()(scheduler)
    assert not scheduler.plugins


def test_it_can_be_switched_off(cluster, client):
    with dask.config.set({"daskdmed.monitor": False}):
        quiet = LightDL(dataset(), **small(), client=client).start()
    with LightDL(dataset(), **small(), client=client) as loud:
        until(lambda: shown(base_of(client), loud))
        assert shown(base_of(client), quiet) is None
    quiet.close()


def test_the_cluster_of_a_loader_has_a_dashboard_when_asked_and_it_ends():
    with LightDL(dataset(), **small(), dashboard="127.0.0.1:0") as loader:
        link = loader.dashboard_link
        assert link.startswith("http://127.0.0.1:")
        assert f'<a href="{link}" target="_blank">' in loader._repr_html_()
        base = link.removesuffix("/daskdmed")
        loader.get()
        until(lambda: shown(base, loader))
        assert "bokeh" in read(base, "status")
        until(lambda: loader.name in metrics(base, "daskdmed_batches_total"))
    assert loader.dashboard_link is None
    assert "href" not in loader._repr_html_()
    with pytest.raises(urllib.error.URLError):
        read(base, "daskdmed")
    registry = pytest.importorskip("prometheus_client").REGISTRY
    labels = [sample.labels for family in registry.collect() for sample in family.samples]
    assert loader.name not in [label.get("loader") for label in labels]


def test_without_asking_there_is_none():
    with LightDL(dataset(), **small()) as loader:
        assert loader.dashboard_link is None
        assert dashboard_of(loader._cluster.client.cluster.scheduler) is None


@pytest.mark.parametrize("address", ["8787", ":x", "host", ":99999", 8787, "http://host:87/"])
def test_a_wrong_address_is_refused(address):
    with pytest.raises(UsageError, match=r"is no address.*:8787"):
        LightDL(dataset(), **small(), dashboard=address)


def test_a_dashboard_beside_a_client_is_refused(client):
    with pytest.raises(UsageError, match="has its dashboard already"):
        LightDL(dataset(), **small(), dashboard=":0", client=client)


def test_without_bokeh_a_dashboard_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"daskdmed\[dashboard\]"):
        LightDL(dataset(), **small(), dashboard=":0")


def test_loaders_of_this_process_are_metrics_without_any_cluster():
    registry = pytest.importorskip("prometheus_client").CollectorRegistry()
    prometheus.serve_local(registry)
    prometheus.serve_local(registry)
    with LightDL(dataset(), **small()) as loader:
        for _ in range(3):
            loader.get()
        collected = prometheus._collectors[registry].collect()
        found = {
            (sample.name, sample.labels["loader"]): sample.value
            for family in collected
            for sample in family.samples
            if "loader" in sample.labels
        }
        assert found["daskdmed_patches_total", loader.name] == 24
        assert found["daskdmed_batches_total", loader.name] == 3


@pytest.mark.parametrize("where", [{"workers": 1}, {"client": "shared"}])
def test_reading_processes_are_started_with_the_dashboard(monkeypatch, where):
    asked = []

    def begin(workers, dashboard):
        asked.append(dashboard)
        raise LoaderError("no process today")

    for name in ("of_this_process", "shared"):
        monkeypatch.setattr(hosting, name, begin)
    with pytest.raises(LoaderError, match="no process today"):
        LightDL(dataset(), **small(), **where, dashboard=":8788").start()
    assert asked == [":8788"]


def test_metrics_without_prometheus_client_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"daskdmed\[dashboard\]"):
        prometheus.serve_local()
    known = LiveState()
    prometheus.add(known)  # a scheduler without it shows the page all the same
    assert all(known not in one._states for one in prometheus._collectors.values())
