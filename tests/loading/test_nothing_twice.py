"""A big chunk lives once, whatever stealing, retries and lost workers do; crops are made there."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import dask
import pytest
from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from daskdmed import LightDL
from daskdmed.persistence.policy import OnePass
from tests.loading.clusters import scale, tcp_cluster
from tests.loading.conftest import SMALL, assert_same_batches, collect, coordinate_dataset
from tests.waiting import until

PARAMETERS = {**SMALL, "resident": "12 MiB", "seed": 2, "policy": OnePass()}


class Record(SchedulerPlugin):
    """Notes big chunks that are in memory of two workers, and crops made where these are not."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.twice, self.away, self.crops = [], [], 0
        add = scheduler.add_replica

        def add_replica(task, worker):
            add(task, worker)
            if task.prefix.name == "big-chunk" and len(task.who_has) > 1:
                self.twice.append((task.key, sorted(w.address for w in task.who_has)))

        scheduler.add_replica = add_replica

    def transition(self, key, start, finish, *args, worker=None, **kwargs):
        task = self.scheduler.tasks.get(key)
        if task is None or task.prefix.name != "small-chunks" or start != "processing":
            return
        if finish == "memory":
            self.crops += 1
            there = self.scheduler.workers.get(worker)
            if not all(there in block.who_has for block in task.dependencies):
                self.away.append((key, worker))


@pytest.mark.parametrize("shared", [False, True])
def test_with_stealing_ranks_and_lost_workers(shared):
    dataset = coordinate_dataset(3)
    with LightDL(dataset, **PARAMETERS) as loader:
        whole = collect(loader, len(loader))
    whole = whole[: len(whole) // 2 * 2]
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}))
        cluster, client = stack.enter_context(tcp_cluster(3, shared=shared))
        assert "stealing" in cluster.scheduler.extensions
        record = Record(cluster.scheduler)
        client.sync(_add, cluster.scheduler, record)
        loaders = []
        for rank in range(2):
            own = stack.enter_context(Client(cluster, set_as_default=False))
            options = {**PARAMETERS, "rank": rank, "world_size": 2, "client": own}
            loaders.append(stack.enter_context(LightDL(dataset, **options)))
        taken = [[], []]

        def take(rank):
            taken[rank].extend(collect(loaders[rank], len(whole) // 2))

        threads = [threading.Thread(target=take, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        # two are lost with all they hold, and others come, while both go on
        for _ in range(2):
            until(lambda: any(w.has_what for w in cluster.scheduler.workers.values()))
            client.sync(_lose, cluster.scheduler)
        until(lambda: len(cluster.workers) == 1)
        scale(cluster, 3)
        for thread in threads:
            thread.join()
        for rank in range(2):
            assert_same_batches(taken[rank], whole[rank::2])
        # of shared memory nothing is cropped there, but for what was lost before it was mapped
        assert record.crops or shared
        assert record.twice == []
        assert record.away == []
        # it would have been noticed
        block = client.submit(int, key=("big-chunk", "of two"))
        block.result()
        client.replicate([block], n=2)
        assert [key for key, _ in record.twice] == [("big-chunk", "of two")]


async def _add(scheduler, plugin):
    scheduler.add_plugin(plugin)


async def _lose(scheduler):
    """As when a machine is switched off: nothing is moved to others before."""
    holder = max(scheduler.workers.values(), key=lambda worker: len(worker.has_what))
    await scheduler.remove_worker(holder.address, stimulus_id="lost", close=True)
