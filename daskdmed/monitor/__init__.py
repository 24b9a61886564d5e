"""Loaders and runs seen live: a page on Dask's dashboard, pictures in notebooks, Prometheus.

Everything below works without it; see docs/monitor.md. What goes on is asked for twice a second
(`changes`), sent to the scheduler (`feed`), kept there (`plugin`, `state`), and shown (`page`,
`picture`, `prometheus`).
"""
