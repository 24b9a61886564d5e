"""A client and a cluster that run other versions: an error that says who has what."""

from __future__ import annotations

import numpy as np
import pytest

from daskdmed import LightDL
from daskdmed.core import versions
from daskdmed.core.versions import check_versions
from daskdmed.errors import UsageError
from tests.loading.clusters import scale, tcp_cluster

IMAGE = np.zeros((256, 256), "u1")
SIZES = {"smallchunk_size": 32, "bigchunk_size": 64, "batch_size": 4, "resident": "20 kB"}


@pytest.fixture(scope="module")
def connection():
    with tcp_cluster(2) as connection:
        yield connection


@pytest.fixture
def client(connection):
    return connection[1]


def report(monkeypatch, server, **other):
    """Have a worker or the scheduler say that it runs something else."""
    given = server.handlers["versions"]

    def answer(packages=None):
        found = given(packages)
        host = {**found["host"], **({"python": other["python"]} if "python" in other else {})}
        return {"host": host, "packages": {**found["packages"], **other}}

    monkeypatch.setitem(server.handlers, "versions", answer)


def test_the_same_versions_are_no_error(client):
    check_versions(client)
    check_versions(client, list(client.nthreads())[:1])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"python": "3.9.1.final.0"}, r"another Python: 3\.\d+ here, 3\.9 on 'worker tcp"),
        ({"dask": "2024.1.0"}, r"another dask: \S+ here, 2024\.1\.0 on .*install dask \S+ there"),
        ({"distributed": "2024.1.0"}, r"another distributed: .* same environment"),
    ],
)
def test_a_worker_of_other_versions(connection, monkeypatch, other, message):
    cluster, client = connection
    worker = next(iter(cluster.workers.values()))
    report(monkeypatch, worker, **other)
    with pytest.raises(UsageError, match=message) as error:
        check_versions(client)
    assert worker.address in str(error.value)
    with pytest.raises(UsageError, match=message):
        LightDL(IMAGE, **SIZES, client=client).start()


def test_a_scheduler_of_other_versions(connection, monkeypatch):
    cluster, client = connection
    report(monkeypatch, cluster.scheduler, dask="2024.1.0")
    with pytest.raises(UsageError, match=r"another dask: .* 2024.1.0 on 'the scheduler'"):
        check_versions(client)


def test_workers_with_another_version_of_this_library(client, monkeypatch):
    monkeypatch.setattr(versions, "__version__", "99.0")
    with pytest.raises(UsageError, match=r"another daskdmed: 99\.0 here, \S+ on 'worker tcp.*99"):
        LightDL(IMAGE, **SIZES, client=client).start()


def test_a_worker_that_joins_is_looked_at_too(connection, monkeypatch):
    cluster, client = connection
    monkeypatch.setattr("daskdmed.persistence.cluster.LOOK_EVERY", 0.0)
    with LightDL(IMAGE, **SIZES, client=client) as loader:
        next(loader)
        monkeypatch.setattr(versions, "__version__", "99.0")
        scale(cluster, 3)
        with pytest.raises(UsageError, match=r"another daskdmed: 99\.0 here"):
            for _ in range(10_000):
                next(loader)
