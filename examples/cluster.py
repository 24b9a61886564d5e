"""A lab's cluster: a scheduler and workers as processes of their own, ranks, heatmaps, TLS.

    python examples/cluster.py                    # all of it, on this machine
    python examples/cluster.py train ADDRESS      # ranks that train on the cluster's workers
    python examples/cluster.py heatmaps ADDRESS   # heatmaps of the cohort, scaled up and down

The first starts what an administrator, SLURM or Kubernetes starts elsewhere (docs/cluster.md):
``dask scheduler`` and ``dask worker``, encrypted. Workers must see the slides under the same path.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster
from distributed.security import Security

import daskdmed
from daskdmed import Dataset, samples
from daskdmed.persistence.plugin import WorkerSetup
from daskdmed.policies import OnePass

OUTPUT = Path("output/cluster").absolute()
QUICK = bool(os.environ.get("DASKDMED_QUICK"))
RANKS = 2


def cohort() -> Dataset:
    folder = OUTPUT / "slides"
    if not folder.exists():
        samples.make_cohort(folder, n=2 if QUICK else 4, size=1024 if QUICK else 8192)
    return Dataset.from_folder(folder)


def brightness(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A model may be any function: (n, y, x, c) -> (n,)."""
    return windows[:, ::16, ::16].mean(axis=(1, 2, 3))


# -- what users run -----------------------------------------------------------------------


def security() -> Security | None:
    """With the certificate that whoever set up the cluster gave to its users."""
    file = str(OUTPUT / "tls.pem")
    if not os.path.exists(file):
        return None
    return Security(tls_ca_file=file, tls_client_cert=file, require_encryption=True)


def connect(address: str) -> Client:
    return Client(address, security=security(), set_as_default=False, direct_to_workers=True)


def train(address: str, rank: int) -> None:
    """One rank; those on other machines do the same."""
    from daskdmed import LightDL  # and torch, which workers need not import with this script

    with connect(address) as client:
        # what each worker does before its first task, those that come later too
        client.register_plugin(WorkerSetup(threads=1, preload="tifffile"))
        with LightDL(
            cohort(),
            smallchunk_size=64,
            batch_size=16,
            bigchunk_size=512,
            smallchunks_per_bigchunk=32,
            resident="24 MiB",
            policy=OnePass(),  # an epoch: every region of every slide once
            rank=rank,
            world_size=RANKS,
            client=client,
        ) as loader:
            patches = sum(len(x) for x, _, _ in loader)  # forward, backward, step
            print(f"rank {rank}: {patches} patches")


def heatmaps(client: Client) -> None:
    """One heatmap a slide, each block computed by a worker and written by it."""
    run = daskdmed.heatmap(
        cohort(), brightness, kernel_size=64, out=OUTPUT / "heatmaps", overwrite=True,
        client=client,
    )  # fmt: skip
    print(f"heatmaps of {len(run)} slides")


def adaptive() -> None:
    """Workers come when there is work and go when there is none; what they have done is kept."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit="1 GiB"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=1, maximum=2, interval="200 ms", wait_count=2)
        heatmaps(client)


# -- what an administrator runs -------------------------------------------------------------


def certificate() -> None:
    """For scheduler, workers and users: who has the file may run code on the workers."""
    if shutil.which("openssl") is None:
        print("no openssl here: nothing is encrypted, and whoever reaches a port may use it")
        return
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj",
         "/CN=dask", "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=OUTPUT, check=True, capture_output=True,
    )  # fmt: skip
    parts = [OUTPUT / "key.pem", OUTPUT / "certificate.pem"]
    with open(OUTPUT / "tls.pem", "w", opener=lambda p, f: os.open(p, f, 0o600)) as file:
        file.write("".join(part.read_text() for part in parts))
    parts[0].unlink()


@contextlib.contextmanager
def programs(workers: int) -> Iterator[str]:
    """``dask scheduler`` and ``dask worker``, as processes; the address of the scheduler."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    certificate()
    protocol, tls = "tcp", []
    if security() is not None:
        pem, protocol = str(OUTPUT / "tls.pem"), "tls"
        tls = ["--tls-ca-file", pem, "--tls-cert", pem]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def start(*command: str) -> None:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command, *tls],
                stderr=subprocess.DEVNULL,  # they tell of each step
                cwd=folder,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)

        file = Path(folder) / "scheduler.json"
        start("scheduler", "--host", f"{protocol}://127.0.0.1", "--port", "0", "--no-dashboard",
              "--scheduler-file", str(file))  # fmt: skip
        start("worker", "--scheduler-file", str(file), "--nworkers", str(workers), "--nthreads",
              "1", "--memory-limit", "1 GiB", "--no-dashboard")  # fmt: skip
        while not file.exists():
            time.sleep(0.05)
        with Client(scheduler_file=str(file), security=security()) as client:
            client.wait_for_workers(workers)
            address = client.scheduler.address
        yield address


def main() -> None:
    if len(sys.argv) > 2:
        if sys.argv[1] == "train":
            train(sys.argv[2], int(os.environ["RANK"]))
        else:
            with connect(sys.argv[2]) as client:
                heatmaps(client)
        return
    cohort()
    with programs(workers=2) as address:
        print("scheduler at", address)
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "train", address],
                env={**os.environ, "RANK": str(rank)},
            )
            for rank in range(RANKS)
        ]
        for process in ranks:
            if process.wait():
                raise SystemExit(f"a rank ended with {process.returncode}")
        with connect(address) as client:
            heatmaps(client)
    adaptive()


if __name__ == "__main__":
    main()
