"""PyDmed's ``pydmed.stat``, the older name of `daskdmed.compat.pydmed.streamcollector`."""

from daskdmed.compat.pydmed.streamcollector import StatCollector, Statistic

__all__ = ["StatCollector", "Statistic"]
