"""Blocks on a cluster of worker processes.

The model travels once to each worker, as bytes of a worker plugin: workers that join later
or are restarted get it too, which scattered data would not survive. Each process unpickles
it once. Tasks carry the view, the grid and the place to write, a few kilobytes.

Not covered: what a task does (`daskdmed.inference.run`).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distributed import Client, Worker, get_worker, wait
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol import pickle

from daskdmed.core.errors import LoaderError, UsageError
from daskdmed.core.types import Array
from daskdmed.inference.models.torchrun import cpu_threads
from daskdmed.inference.models.window import WindowModel
from daskdmed.inference.run import BlockJob, BlockTask, Index

Tag = TypeVar("Tag")

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
    with cpu_threads(_threads_here()):
        return task(_model(name), job)


def _read(task: BlockTask, job: BlockJob) -> Array:
    return task.read(job)


def _finish(name: str, task: BlockTask, job: BlockJob, pixels: Array) -> Index:
    with cpu_threads(_threads_here()):
        return task.finish(_model(name), job, pixels)


def _threads_here() -> int:
    """Threads that may run the model at once in this worker process."""
    try:
        return int(get_worker().state.nthreads)
    except ValueError:  # called outside of a worker
        return 1


@dataclass(frozen=True)
class Item(Generic[Tag]):
    """One block to compute, and what the caller calls it by.

    Parameters
    ----------
    tag : tuple of int
        Told back when the block is written; unique within a run.
    task : BlockTask
        What is done.
    job : BlockJob
        With which block.
    """

    tag: Tag
    task: BlockTask
    job: BlockJob


def run_items(
    client: Client,
    items: Iterable[Item[Index]],
    model: WindowModel,
    done: Callable[[Index], None],
    *,
    resources: Mapping[str, float] | None = None,
) -> None:
    """Run blocks, of any number of images, on the workers of a client.

    Parameters
    ----------
    client : distributed.Client
        Its workers must see the images and the stores under the same names.
    items : iterable of Item
        Consumed as earlier ones end.
    model : WindowModel
        In evaluation mode.
    done : callable
        Told the tag of every block that was written.
    resources : mapping, optional
        What a worker must offer to run the model, for example ``{"GPU": 1}``. Pixels are
        then read by tasks of their own without this restriction, so that some blocks are
        decoded (by any thread of any worker) while the model runs on another.

    Raises
    ------
    UsageError
        The client is asynchronous, the model cannot be pickled, or no worker offers the
        resources.
    Exception
        The first error of a task.
    """
    if client.asynchronous:
        raise UsageError("heatmap needs a synchronous client; make it with asynchronous=False")
    if resources:
        _check_offered(client, resources)
    name = f"daskdmed-model-{uuid.uuid4().hex}"
    pickled = _pickled(model)
    client.register_plugin(_ModelPlugin(name, pickled), name=name)
    running: set[Any] = set()
    try:
        waiting = iter(items)
        threads = max(sum(client.nthreads().values()), 1)
        # blocks of pixels that wait for the model are kept few
        in_flight = 2 * threads + 1 if resources else max(64, 4 * threads)
        while True:
            while len(running) < in_flight:
                item = next(waiting, None)
                if item is None:
                    break
                running.add(_submit(client, name, item, resources))
            if not running:
                return
            ended, running = wait(running, return_when="FIRST_COMPLETED")
            _collect(ended, done)
    finally:
        if running:
            client.cancel(list(running), force=True)
        client.unregister_worker_plugin(name)


def run_on_cluster(
    client: Client,
    jobs: Iterable[BlockJob],
    task: BlockTask,
    model: WindowModel,
    done: Callable[[Index], None],
) -> None:
    """`run_items` for the blocks of one image; `done` is told their index."""
    run_items(client, (Item(job.index, task, job) for job in jobs), model, done)


def _submit(
    client: Client, name: str, item: Item[Index], resources: Mapping[str, float] | None
) -> Any:
    run = name[-32:]
    task = item.task.for_block(item.job)
    key = ("heatmap-" + run, *item.tag)
    if not resources:
        return client.submit(_compute, name, task, item.job, key=key)
    pixels = client.submit(_read, task, item.job, key=("heatmap-read-" + run, *item.tag))
    task = item.task.without_pixels(item.job)
    return client.submit(_finish, name, task, item.job, pixels, key=key, resources=dict(resources))


def _pickled(model: WindowModel) -> bytes:
    portable = getattr(model, "portable", None)
    try:
        content: bytes = pickle.dumps(model if portable is None else portable())
    except Exception as error:
        raise UsageError(
            f"the model cannot be sent to the workers ({type(error).__name__}: {error}); "
            "make it picklable, or leave client= away to run in this process"
        ) from error
    return content


def _check_offered(client: Client, resources: Mapping[str, float]) -> None:
    """A task that no worker may run waits for ever: say so instead."""
    for name, amount in resources.items():
        if not amount > 0:
            raise UsageError(f"resources={dict(resources)!r}: {name} needs a positive amount")
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    offered = [dict(worker.get("resources", {})) for worker in workers]
    if offered and not any(
        all(have.get(name, 0) >= amount for name, amount in resources.items()) for have in offered
    ):
        raise UsageError(
            f"no worker offers resources={dict(resources)!r}; they offer {offered}. Start "
            "workers with dask worker --resources 'GPU=1', or LocalCluster(resources=...)"
        )


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
