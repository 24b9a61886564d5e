"""What goes on in this process, sent to the scheduler of a client twice a second.

One feed per client, on the client's event loop: no thread of its own. It has the scheduler show a
page (`daskdmed.monitor.plugin`) where that has a dashboard and daskdmed, and ends where not.
Nobody waits for it; what goes wrong is a line of the log, at debug level.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskdmed.core.live import Watched
from daskdmed.monitor.changes import Changes

if TYPE_CHECKING:
    from distributed import Client
    from tornado.ioloop import PeriodicCallback

logger = logging.getLogger("daskdmed.monitor")

#: seconds between messages
INTERVAL = 0.5
#: how often in a row sending may fail
_ATTEMPTS = 3

_feeds: weakref.WeakKeyDictionary[Client, Feed] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def start(client: Client, what: Watched) -> None:
    """Send what becomes of a loader or a run, until it says that it is over."""
    with _lock:
        feed = _feeds.get(client)
        if feed is None:
            feed = _feeds[client] = Feed(client)
    feed.add(what)


class Feed:
    """Sends to one client's scheduler; only `add` is called outside the client's loop."""

    def __init__(self, client: Client) -> None:
        self._client = weakref.ref(client)
        self._loop = client.loop
        self._sources: dict[str, Changes] = {}
        #: what the scheduler has not heard of yet, or has forgotten
        self._whole: set[str] = set()
        self._caller: PeriodicCallback | None = None
        self._prepared = False
        self._failed = 0

    def add(self, what: Watched) -> None:
        """Send it too."""
        self._loop.add_callback(self._add, what)

    def _add(self, what: Watched) -> None:
        from tornado.ioloop import PeriodicCallback

        self._sources[what.name] = Changes(what)
        self._whole.add(what.name)
        if self._caller is None:
            self._caller = PeriodicCallback(self._tick, INTERVAL * 1000)
            self._caller.start()
            self._loop.add_callback(self._tick)

    def _rest(self) -> None:
        """Nothing more to do until something is added."""
        if self._caller is not None:
            self._caller.stop()
        self._caller = None
        self._sources.clear()

    async def _tick(self) -> None:
        client = self._client()
        if client is None or client.status != "running" or not self._sources:
            self._rest()
            return
        try:
            if not self._prepared:
                reason = await client._run_on_scheduler(preparer())
                if reason:
                    logger.debug("nothing is shown at %s: %s", client.scheduler.address, reason)
                    self._rest()
                    return
                self._prepared = True
            await self._send(client)
            self._failed = 0
        except Exception as error:  # a connection that is lost, a scheduler that was restarted
            self._failed += 1
            self._prepared = False
            self._whole.update(self._sources)
            logger.debug("could not send: %s: %s", type(error).__name__, error)
            if self._failed >= _ATTEMPTS:
                self._rest()

    async def _send(self, client: Client) -> None:
        whole, self._whole = self._whole, set()
        messages = [c.message(whole=name in whole) for name, c in self._sources.items()]
        for message in messages:
            if message["end"]:
                del self._sources[message["name"]]
        missing = await client.scheduler.daskdmed_live(client=client.id, messages=messages)
        self._whole.update(name for name in missing if name in self._sources)


def preparer() -> Callable[..., Any]:
    """What has a scheduler show a page; gives why it cannot.

    Nested, so that the scheduler's process needs no daskdmed.
    """

    def prepare(dask_scheduler: Any) -> str:
        if "daskdmed-monitor" in dask_scheduler.plugins:
            return ""
        shown = dask_scheduler.http_application.applications
        if not any("Bokeh" in type(one).__name__ for one in shown):
            return "the scheduler has no dashboard"
        try:
            from daskdmed.monitor.plugin import Monitor
        except ImportError as error:
            return f"the scheduler cannot import it: {error}"
        plugin = Monitor()
        plugin.start(dask_scheduler)
        dask_scheduler.add_plugin(plugin, name=plugin.name, idempotent=True)
        return ""

    return prepare
