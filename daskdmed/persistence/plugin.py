"""What workers of a cluster do before their first task: a plugin for those that users start.

Reading processes that a loader starts itself (``workers=``) need none of it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from distributed import Worker, WorkerPlugin

from daskdmed.core.checks import check_count
from daskdmed.core.errors import UsageError

#: how libraries are told, when they are loaded, how many threads they may use
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


class WorkerSetup(WorkerPlugin):  # type: ignore[misc]
    """Sets threads, imports modules and extends the path of every worker, also of later ones.

    Parameters
    ----------
    threads : int, optional
        Threads that numerical libraries use in each worker: of torch, and of those that go by
        OMP_NUM_THREADS and its like. Dask's nannies set 1; a worker whose tasks run a model may
        use more: its cores divided by its Dask threads.
    preload : str or sequence of str
        Modules to import at once instead of with the first task: "torch" for workers that run
        models.
    path : str or sequence of str
        Folders that are put before ``sys.path``, so that functions of your own modules can be
        used there.

    Raises
    ------
    UsageError
        `threads` is no count, or (on the worker) a module cannot be imported.

    Examples
    --------
    >>> client.register_plugin(WorkerSetup(threads=4, preload="torch"))  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        preload: str | Iterable[str] = (),
        path: str | Iterable[str] = (),
    ) -> None:
        self.threads = None if threads is None else check_count("threads", threads)
        self.preload = (preload,) if isinstance(preload, str) else tuple(preload)
        self.path = (path,) if isinstance(path, str) else tuple(path)
        # one for each purpose: registered again, it replaces itself
        self.name = f"daskdmed-setup-{threads}-{'-'.join((*self.preload, *self.path))}"

    def __repr__(self) -> str:
        said = (self.threads, self.preload, self.path)
        return "WorkerSetup(threads={!r}, preload={!r}, path={!r})".format(*said)

    def setup(self, worker: Worker) -> None:
        """Called by Dask on each worker."""
        sys.path[:0] = [folder for folder in self.path if folder not in sys.path]
        if self.threads is not None:
            os.environ.update(dict.fromkeys(_VARIABLES, str(self.threads)))
        for module in self.preload:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UsageError(
                    f"worker {worker.address} cannot import {module!r} ({error}); install it "
                    "there, or leave it out of preload="
                ) from error
        torch: Any = sys.modules.get("torch")
        if self.threads is not None and torch is not None:
            torch.set_num_threads(self.threads)
