"""Blocks on a cluster of worker processes.

The model travels once to each worker, as bytes of a worker plugin: workers that join later
or are restarted get it too, which scattered data would not survive. Each process unpickles
it once. Tasks carry the view, the grid and the place to write, a few kilobytes.

Not covered: what a task does (`daskdmed.windows.run`).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from distributed import Client, Worker, wait
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol import pickle

from daskdmed.errors import LoaderError, UsageError
from daskdmed.windows.models import WindowModel
from daskdmed.windows.run import BlockJob, BlockTask, Index

#: models of this worker process by name: bytes until first used
_models: dict[str, bytes | WindowModel] = {}
_lock = threading.Lock()


class _ModelPlugin(WorkerPlugin):  # type: ignore[misc]
    """Keeps the bytes of a model on a worker."""

    def __init__(self, name: str, pickled: bytes) -> None:
        self.name = name
        self.pickled = pickled

    def setup(self, worker: Worker) -> None:
        """Only store: this runs on the event loop."""
        with _lock:
            _models.setdefault(self.name, self.pickled)

    def teardown(self, worker: Worker) -> None:
        """Forget the model."""
        with _lock:
            _models.pop(self.name, None)


def _model(name: str, pickled: bytes | None = None) -> WindowModel:
    with _lock:
        found = _models.get(name, pickled)
        if found is None:
            raise LoaderError(
                f"model {name} is not on this worker; was the worker plugin unregistered?"
            )
        if isinstance(found, bytes):
            model: WindowModel = pickle.loads(found)
            found = _models[name] = model.place()
        return found


def _compute(name: str, task: BlockTask, job: BlockJob) -> Index:
    return task(_model(name), job)


def run_on_cluster(
    client: Client,
    jobs: Iterable[BlockJob],
    task: BlockTask,
    model: WindowModel,
    done: Callable[[Index], None],
) -> None:
    """Run jobs on the workers of a client.

    Parameters
    ----------
    client : distributed.Client
        Its workers must see the image and the store under the same names.
    jobs : iterable of BlockJob
        Consumed as earlier ones end.
    task : BlockTask
        What is done with each.
    model : WindowModel
        In evaluation mode.
    done : callable
        Told the index of every block that was written.

    Raises
    ------
    UsageError
        The client is asynchronous, or the model cannot be pickled.
    Exception
        The first error of a task.
    """
    if client.asynchronous:
        raise UsageError("heatmap needs a synchronous client; make it with asynchronous=False")
    name = f"daskdmed-model-{uuid.uuid4().hex}"
    try:
        pickled = pickle.dumps(model)
    except Exception as error:
        raise UsageError(
            f"the model cannot be sent to the workers ({type(error).__name__}: {error}); "
            "make it picklable, or leave client= away to run in this process"
        ) from error
    client.register_plugin(_ModelPlugin(name, pickled), name=name)
    running: set[Any] = set()
    try:
        waiting = iter(jobs)
        in_flight = max(64, 4 * sum(client.nthreads().values()))
        while True:
            while len(running) < in_flight:
                job = next(waiting, None)
                if job is None:
                    break
                key = ("heatmap-" + name[-32:], *job.index)
                running.add(client.submit(_compute, name, task.for_block(job), job, key=key))
            if not running:
                return
            ended, running = wait(running, return_when="FIRST_COMPLETED")
            _collect(ended, done)
    finally:
        if running:
            client.cancel(list(running), force=True)
        client.unregister_worker_plugin(name)


def _collect(ended: Iterable[Any], done: Callable[[Index], None]) -> None:
    """Mark what succeeded, then raise what did not."""
    failure: BaseException | None = None
    for future in ended:
        if future.status == "finished":
            done(tuple(future.key[1:]))
        else:
            failure = failure or future.exception()
    if failure is not None:
        raise failure
