"""Counters of loaders and runs as Prometheus metrics.

With a dashboard they are on Dask's own ``/metrics`` of the scheduler, without any setup. Without a
cluster, `serve_local` adds those of this process to a registry, for
``prometheus_client.start_http_server``. One collector stands for all schedulers and loaders of a
process, because each metric may be in a registry once. Rates and averages are Prometheus's to
make: ``rate(daskdmed_patches_total[1m])``.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskdmed.core.errors import MissingExtraError
from daskdmed.monitor.local import Local
from daskdmed.monitor.state import LiveState, LoaderState, RunState

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

#: counter of `stats` -> metric and what it says; those of one kind of loader only are left out
_COUNTERS = {
    "patches": ("patches", "Small chunks delivered"),
    "windows": ("windows", "Windows delivered"),
    "batches": ("batches", "Batches delivered"),
    "seconds": ("seconds", "Seconds since the loader began"),
    "wait_seconds": ("wait_seconds", "Seconds that the consumer waited for batches"),
    "pixels_read": ("pixels_read", "Pixels of big chunks or blocks read"),
    "pixels_drawn": ("pixels_drawn", "Pixels of small chunks or windows delivered"),
    "visits_admitted": ("bigchunks_admitted", "Big chunks that came into memory"),
    "visits_evicted": ("bigchunks_evicted", "Big chunks that left memory"),
    "late_draws": ("late_draws", "Draws beyond the plan because a big chunk was late"),
    "failed": ("failures", "Images and regions that were left out"),
}
_GAUGES = {
    "resident_visits": ("bigchunks_resident", "Big chunks in memory or being read"),
    "resident_bytes": ("resident_bytes", "Upper bound of the bytes of these"),
    "budget_bytes": ("budget_bytes", "What resident_bytes never exceeds"),
    "batches_ready": ("batches_ready", "Batches made and not yet asked for"),
}
_LABELS = ("loader", "rank", "process")


class Collector:
    """Gives the metrics of some states, and of the loaders of this process where asked to."""

    def __init__(self) -> None:
        self._states: weakref.WeakSet[LiveState] = weakref.WeakSet()
        self._local: Local | None = None

    def describe(self) -> list[Any]:
        """Nothing: names are not known before there are loaders."""
        return []

    def collect(self) -> Iterator[Any]:
        """What `prometheus_client` asks for."""
        states = list(self._states)
        if self._local is not None:
            states.append(self._local.look())
        loaders: dict[Any, LoaderState] = {}
        runs: dict[Any, RunState] = {}
        for state in states:  # what is known in two ways is one
            loaders.update({(lo.process, lo.key[1]): lo for lo in state.loaders.copy().values()})
            runs.update({(run.process, run.key[1]): run for run in state.runs.copy().values()})
        yield from _of_loaders(list(loaders.values()))
        yield from _of_runs(list(runs.values()))


def _of_loaders(loaders: list[LoaderState]) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kinds = ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES))
    for family, named in kinds:
        for counter, (name, says) in named.items():
            values = [(lo, lo.counters[counter]) for lo in loaders if counter in lo.counters]
            yield from _family(family, name, says, _LABELS, [(_label(lo), v) for lo, v in values])


def _label(loader: LoaderState) -> list[str]:
    return [loader.key[1], str(loader.rank), loader.process]


def _of_runs(runs: list[RunState]) -> Iterator[Any]:
    from prometheus_client.core import GaugeMetricFamily

    going = [([run.key[1], run.process], run) for run in runs if not run.ended]
    labels = ("run", "process")
    done = [(label, run.done) for label, run in going]
    total = [(label, run.total) for label, run in going]
    yield from _family(GaugeMetricFamily, "run_blocks_done", "Blocks done", labels, done)
    yield from _family(GaugeMetricFamily, "run_blocks", "Blocks in all", labels, total)


def _family(
    kind: Callable[..., Any], name: str, says: str, labels: Any, values: Sequence[tuple[Any, float]]
) -> Iterator[Any]:
    if values:
        family = kind(f"daskdmed_{name}", says, labels=labels)
        for label, value in values:
            family.add_metric(label, value)
        yield family


_collectors: weakref.WeakKeyDictionary[Any, Collector] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _collector(registry: Any) -> Collector:
    """The one collector of a registry."""
    with _lock:
        if registry not in _collectors:
            _collectors[registry] = Collector()
            registry.register(_collectors[registry])
        return _collectors[registry]


def add(state: LiveState) -> None:
    """Metrics of a scheduler's state, where there is `prometheus_client`."""
    try:
        client = importlib.import_module("prometheus_client")
    except ImportError:
        return
    _collector(client.REGISTRY)._states.add(state)


def remove(state: LiveState) -> None:
    """Its scheduler closes."""
    for collector in list(_collectors.values()):
        collector._states.discard(state)


def serve_local(registry: CollectorRegistry | None = None) -> None:
    """Add the loaders of this process to a registry of `prometheus_client`. Idempotent.

    They are looked at when the registry is asked, and cost nothing in between. Those of a cluster
    with a dashboard are on the ``/metrics`` of its scheduler without this.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry, optional
        Default: the one of the process, which ``prometheus_client.start_http_server`` serves.

    Raises
    ------
    MissingExtraError
        There is no `prometheus_client`.

    Examples
    --------
    >>> import prometheus_client
    >>> from daskdmed.monitor import prometheus
    >>> prometheus.serve_local()
    >>> prometheus_client.start_http_server(9100)  # doctest: +SKIP
    """
    try:
        client = importlib.import_module("prometheus_client")
    except ImportError as error:
        raise MissingExtraError(
            'metrics need prometheus_client; pip install "daskdmed[dashboard]"'
        ) from error
    collector = _collector(client.REGISTRY if registry is None else registry)
    collector._local = collector._local or Local()
