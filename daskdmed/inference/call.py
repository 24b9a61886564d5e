"""What `heatmap`, `predict` and `features` have in common: images, a model, and who computes.

Not covered: what is done with an image (`daskdmed.inference.resultjob`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from daskdmed.cohort.sources import Image, LeftOut, Request, Results, images_of
from daskdmed.core.errors import UsageError
from daskdmed.core.work import default_threads, run
from daskdmed.inference.inputs import check_lazy, check_resources
from daskdmed.inference.models.shipped import Shipped, devices_of
from daskdmed.inference.models.window import WindowModel
from daskdmed.inference.report import RunReport
from daskdmed.inference.resultjob import ResultJob


class Call:
    """One call, from its arguments by name (`said`).

    `model` is the model as the user has it, `placed` the same on its device and `shipped` as
    tasks have it; the last two are there within `ready`.
    """

    def __init__(self, kind: str, source: Any, said: dict[str, Any], axes: int) -> None:
        self.kind, self.said, self.client = kind, said, said["client"]
        self.lazily = not said.get("compute", True)
        check_resources(said["resources"], self.client)
        if self.lazily:
            writing = ("out", "resume", "overwrite", "resources")
            check_lazy(**{name: said[name] for name in writing})
        how = (
            "record", "level", "mpp", "power", "spacing", "orientation", "channels", "tile_error",
        )  # fmt: skip
        request = Request(spatial_ndim=axes, **{name: said[name] for name in how})
        self.images = images_of(source, request)
        self.mask_of = self.images.each(said["mask"], "mask")
        self.left_out = LeftOut(said["on_error"], len(self.images))
        self.devices = devices_of(said["device"], "devices" if "devices" in said else "device")
        model = WindowModel(
            said["model"],
            said["batch_tfms"],
            self.devices[0],
            said["autocast"],
            said["channels_last"],
            said["output"],
            _squeezes(said),
        )
        self.model = model.in_evaluation() if self.lazily else model

    @contextlib.contextmanager
    def ready(self, threads: int | None = None) -> Iterator[None]:
        """Have the model ready for so many threads of this process; default for all."""
        threads = default_threads() if threads is None else threads
        with self.model.ready(threads if self.client is None else 1):
            # a client may lack the device of its workers: it tries the model where it is
            here = self.model if self.client is None else replace(self.model, device=None)
            self.placed = here.place()
            known = self.placed if self.client is None else None
            self.shipped = Shipped(self.model, known, self.devices)
            yield

    def each(self, make: Callable[[Image], Any]) -> Iterator[tuple[Image, Any]]:
        """Something made of every image that can be used."""
        for image in self.images:
            made: list[Any] = []
            with contextlib.nullcontext() if self.images.single else self.left_out.of(image):
                made.append(make(image))
            yield from ((image, one) for one in made)

    def lazy(self, make: Callable[[Image], Any]) -> Any:
        """What the caller gets of lazy results."""
        return self._given_back({image.key: one for image, one in self.each(make)})

    def run(self, make: Callable[[Image], ResultJob], *, report: bool, **how: Any) -> Any:
        """Do the job of every image, see `daskdmed.core.work.run`: what the caller gets."""
        if self.client is not None:
            self.shipped.pack()
        out = self.said["out"] if report else None
        told = RunReport(out, self.kind, self.images, self.left_out, self.model, self.said)
        names: list[str] = []

        def jobs() -> Iterator[ResultJob]:
            for image, job in self.each(make):
                names.append(image.key)
                told.began(image.key, job)
                if self.left_out.on_error == "skip" and not self.images.single:
                    job.excused = lambda error, image=image: self.left_out.excuse(image, error)
                yield job

        with told.told():
            results = run(
                jobs(),
                name=self.kind,
                client=self.client,
                resources=self.said["resources"],
                show=self.said["progress"],
                **how,
            )
        found = zip(names, results, strict=True)
        return self._given_back({name: one for name, one in found if one is not None})

    def _given_back(self, found: dict[str, Any]) -> Any:
        """The result of a single image, or all of them by patient id."""
        if self.images.single:
            return found[self.images[0].key]
        results: Results[Any] = Results(found)
        results.failures = tuple(self.left_out.failures)
        return results


def _squeezes(said: Mapping[str, Any]) -> bool:
    """Whether axes are dropped for the model; UsageError where that means nothing."""
    squeeze = said.get("squeeze", False)
    if not isinstance(squeeze, bool):
        raise UsageError(f"squeeze must be True or False, got {squeeze!r}")
    if not squeeze:
        return False
    if said.get("receptive_field") is not None:
        raise UsageError(
            "squeeze= beside receptive_field=, which runs the model over pieces of other sizes; "
            "give a model over as many axes as the image has"
        )
    kernel = [int(n) for n in np.ravel(said["kernel_size"])]
    if not 2 <= sum(n > 1 for n in kernel) < len(kernel):
        raise UsageError(
            f"squeeze= drops axes along which windows have one pixel and leaves two at least, as "
            f"of kernel_size=(1, 256, 256); got {tuple(kernel)}"
        )
    return True
