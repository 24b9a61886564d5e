"""What the scheduler knows of loaders and runs, and where it shows it.

A scheduler plugin: messages of `daskdmed.monitor.feed` come to its handler. It adds to the server
of Dask's dashboard the page ``/daskdmed``, the same in plain values (``/daskdmed/state.json``), a
plot for dask-labextension, and metrics to ``/metrics``. Registered once per scheduler, by the
first feed; or by hand, ``client.register_plugin(Monitor())``.

Not covered: what is drawn (`daskdmed.monitor.page`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from daskdmed.monitor import prometheus
from daskdmed.monitor.state import LiveState

logger = logging.getLogger("daskdmed.monitor")


class Monitor(SchedulerPlugin):  # type: ignore[misc]
    """Keeps a `LiveState`, and shows it."""

    name = "daskdmed-monitor"
    idempotent = True

    def start(self, scheduler: Any) -> None:
        """Begin: handler, routes, metrics, page; also where there is no bokeh."""
        self.state = LiveState()
        scheduler.handlers["daskdmed_live"] = self.hear
        scheduler.extensions["daskdmed-monitor"] = self
        self._route(scheduler)
        prometheus.add(self.state)
        try:
            from daskdmed.monitor import page
        except ImportError as error:
            logger.debug("no page: %s", error)
        else:
            page.add(scheduler, dashboard_of(scheduler), self.state)

    def hear(self, client: str, messages: Sequence[dict[str, Any]]) -> list[str]:
        """Take in what a client says; gives the names of what must be said in whole."""
        now = time.monotonic()
        return [m["name"] for m in messages if not self.state.hear(client, m, now)]

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Forget what it told of: it is gone."""
        self.state.forget(client)

    async def close(self) -> None:
        """The scheduler closes."""
        prometheus.remove(self.state)

    def _route(self, scheduler: Any) -> None:
        from distributed.http.utils import RequestHandler

        state = self.state

        class State(RequestHandler):  # type: ignore[misc]
            def get(self) -> None:
                self.write(state.snapshot(time.monotonic()))

        stock = dashboard_of(scheduler)
        prefix = "" if stock is None else str(stock.prefix).strip("/")
        route = "/" + "/".join(filter(None, (prefix, "daskdmed/state.json")))
        options = {"dask_server": scheduler}
        scheduler.http_application.add_handlers(r".*$", [(route, State, options)])


def dashboard_of(scheduler: Any) -> Any:
    """Dask's own application of bokeh; None without a dashboard."""
    applications = scheduler.http_application.applications
    return next((a for a in applications if "Bokeh" in type(a).__name__), None)
