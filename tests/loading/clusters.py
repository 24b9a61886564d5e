"""Clusters for tests of loaders: workers as threads that speak TCP, so that they cost little.

To a loader these are workers of another process. Unless they are to share their memory, they stand
for workers of another machine: blocks are cropped where they are.
"""

from __future__ import annotations

from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster

from tests.waiting import until


@contextmanager
def tcp_cluster(workers, threads=1, shared=False, **kwargs):
    """(cluster, client); `scale` changes the number of workers, also to none.

    `shared`: big chunks lie in shared memory, and loaders crop from it.
    """
    # each worker would measure all that this process holds, and pause beyond its part of a machine
    kwargs = {"memory_limit": 0, **kwargs}
    with (
        dask.config.set({"daskdmed.shared-memory": shared}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=False,
            protocol="tcp",
            dashboard_address=":0",
            worker_dashboard_address=None,
            **kwargs,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


def scale(cluster, workers):
    """So many workers are there when it returns."""
    cluster.scale(workers)
    until(lambda: len(cluster.scheduler.workers) == len(cluster.workers) == workers)


def tied_to_the_gone(cluster):
    """Addresses of workers that are gone and that tasks are still restricted to."""
    scheduler = cluster.scheduler
    tasks = list(scheduler.tasks.values())
    return {w for t in tasks for w in t.worker_restrictions or ()} - set(scheduler.workers)


def assert_nothing_is_left(cluster):
    """No task stays on the scheduler, once it has heard that they are let go."""
    until(lambda: not cluster.scheduler.tasks)
    assert not cluster.scheduler.unrunnable
