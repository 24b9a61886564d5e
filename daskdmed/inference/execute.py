"""Computing the heatmaps of one image or many: in threads, or on a cluster.

Images are prepared when the blocks before theirs are on their way, so that several are in
flight and no thread waits for the last block of one before the first of the next.

Not covered: what an image needs (`daskdmed.inference.imagejob`), what a block needs
(`daskdmed.inference.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from daskdmed.core.errors import DaskdmedError, StoreError
from daskdmed.inference.imagejob import ImageJob
from daskdmed.inference.models.torchrun import cpu_threads
from daskdmed.inference.models.window import WindowModel
from daskdmed.inference.run import BlockJob, Index, run_in_threads

if TYPE_CHECKING:
    import dask.array as da
    from distributed import Client

Name = TypeVar("Name")
#: prepares the work of one image
Prepare = Callable[[], ImageJob]


class _Run:
    """One call: images by number, the ones that are open, and the results."""

    def __init__(self, images: Iterable[tuple[Any, Prepare]], progress: bool) -> None:
        self._images = images
        self._progress = progress
        self._names: list[Any] = []
        self._open: dict[int, ImageJob] = {}
        self._bar: Any = None
        self.results: dict[Any, da.Array] = {}

    def blocks(self) -> Iterator[tuple[Index, ImageJob, BlockJob]]:
        """All blocks of all images: (image and block, work, block)."""
        for number, (name, prepare) in enumerate(self._images):
            self._names.append(name)
            try:
                job = prepare()
            except Exception as error:
                if name is not None:
                    error.add_note(f"patient {name!r}")
                raise
            self._open[number] = job
            if self._bar is not None:
                self._bar.total += job.left
                self._bar.refresh()
            self._finish_if_done(number)
            for block in job.jobs():
                yield (number, *block.index), job, block

    def done(self, tag: Index) -> None:
        """A block was written."""
        number = tag[0]
        self._open[number].done(tuple(tag[1:]))
        if self._bar is not None:
            self._bar.update()
        self._finish_if_done(number)

    def _finish_if_done(self, number: int) -> None:
        job = self._open[number]
        if not job.left:
            self.results[self._names[number]] = job.finish()
            del self._open[number]

    def stop(self, error: BaseException) -> str:
        """Record what is done of the images that are open; how far they are."""
        for job in self._open.values():
            job.flush(error)
        return "; ".join(job.state() for job in self._open.values())

    def compute(
        self,
        model: WindowModel,
        client: Client | None,
        threads: int,
        resources: Mapping[str, float] | None,
    ) -> None:
        """Compute all blocks, and record what is done whatever happens."""
        with ExitStack() as stack:
            if self._progress:
                from tqdm.auto import tqdm

                self._bar = stack.enter_context(tqdm(total=0, unit="block", desc="heatmap"))
            try:
                if client is None:
                    self._in_threads(model, threads)
                else:
                    self._on_cluster(model, client, resources)
            except DaskdmedError as error:
                state = self.stop(error)
                if state:
                    error.add_note(state)
                raise
            except Exception as error:
                state = self.stop(error)
                if not state:  # nothing was begun: the arguments are at fault
                    raise
                notes = "; ".join(getattr(error, "__notes__", ()))
                names = ", ".join(job.store.spec.image for job in self._open.values())
                raise StoreError(
                    f"heatmap of {names} stopped: {type(error).__name__}: {error} "
                    f"({notes}). {state}"
                ) from error
            except BaseException as error:
                self.stop(error)
                raise

    def _in_threads(self, model: WindowModel, threads: int) -> None:
        def call(item: tuple[Index, ImageJob, BlockJob]) -> Index:
            tag, job, block = item
            with cpu_threads(threads if model.is_torch else 1):
                job.task(model, block)
            return tag

        run_in_threads(self.blocks(), call, self.done, threads)

    def _on_cluster(
        self, model: WindowModel, client: Client, resources: Mapping[str, float] | None
    ) -> None:
        from daskdmed.inference.cluster import Item, run_items

        items = (Item(tag, job.task, block) for tag, job, block in self.blocks())
        run_items(client, items, model, self.done, resources=resources)


def compute_images(
    images: Iterable[tuple[Name, Prepare]],
    model: WindowModel,
    *,
    client: Client | None,
    threads: int,
    resources: Mapping[str, float] | None = None,
    progress: bool = False,
) -> dict[Name, da.Array]:
    """Compute the heatmaps of images.

    Parameters
    ----------
    images : iterable of (name, callable)
        Prepared in order, when the blocks before theirs are on their way. A name that is
        not None is told in errors.
    model : WindowModel
        In evaluation mode; placed when there is no client.
    client : distributed.Client, optional
        Who computes; otherwise threads of this process.
    threads : int
        How many.
    resources : mapping, optional
        What a worker must offer to run the model.
    progress : bool
        Show a bar over blocks.

    Returns
    -------
    dict
        Name to lazy result, in the order of `images`.

    Raises
    ------
    StoreError
        A block failed for a reason outside this library (the cause is chained).
    DaskdmedError
        Any other reason, with a note on how far each image is.
    """
    run = _Run(images, progress)
    run.compute(model, client, threads, resources)
    return {name: run.results[name] for name in run._names}
