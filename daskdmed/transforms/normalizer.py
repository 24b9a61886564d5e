"""What stain normalisers share: a target, and whose statistics are brought to it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, Self

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array
from daskdmed.transforms._torch import torch
from daskdmed.transforms.base import Params, Tensor, Transform, as_batch, on_device
from daskdmed.transforms.blocks import colourwise, white_of
from daskdmed.transforms.keyed import Samples

#: fewer coloured pixels than this tell nothing about stains
LEAST_PIXELS = 32


class StainNormalizer(Transform):
    """Bring the statistics of images to those of a target.

    Nothing is random. An image whose statistics cannot be had (blank, black, of a single
    colour) stays as it is.

    Parameters
    ----------
    per : {"image", "patient"}
        Whose statistics are brought to the target: each small chunk's own, or its
        patient's, which `fit_patient` took from an image made for it (a thumbnail of the
        slide, say). Small chunks without much tissue have poor statistics of their own:
        "patient" treats all of a slide alike.
    """

    #: names of the statistics, in the order in which `estimate` gives them
    statistics: tuple[str, ...] = ()

    def __init__(self, *, per: Literal["image", "patient"] = "image") -> None:
        super().__init__()
        if per not in ("image", "patient"):
            raise UsageError(f"per must be 'image' or 'patient', got {per!r}")
        self.per = per
        self._target: Params | None = None
        self._patients: dict[str, Params] = {}

    # -- what subclasses give ---------------------------------------------------------

    @abstractmethod
    def represent(self, block: Tensor, white: float) -> Tensor:
        """Colours in the space in which statistics are taken.

        `block` is float32 [b, 3, pixels] in [0, white], not to be written into.
        """

    @abstractmethod
    def estimate(self, colours: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Statistics of each image, and whether they could be had.

        float64 [b, ...] each, as named by `statistics`; bool [b], False where the image says
        too little.
        """

    @abstractmethod
    def bring(
        self, colours: Tensor, source: tuple[Tensor, ...], target: tuple[Tensor, ...]
    ) -> Tensor:
        """Colours (of `represent`) of the source's statistics to RGB of the target's.

        float32 [b, 3, pixels], white at 1.
        """

    # -- fitting ------------------------------------------------------------------------

    def fit(self, image: Array | Tensor) -> Self:
        """Take the target's statistics; gives the normaliser itself.

        Parameters
        ----------
        image : ndarray (y, x, 3) or Tensor [3, y, x]
            RGB, uint8 or floating point in [0, 1]. `UsageError` if it is no such image, or has
            not enough coloured pixels.
        """
        self._target = self._statistics_of(image, "the target image")
        return self

    def fit_patient(self, patient: Any, image: Array | Tensor) -> Self:
        """Take the statistics of a patient, for ``per="patient"``.

        Parameters
        ----------
        patient : Patient or str
            Whose.
        image : ndarray (y, x, 3) or Tensor [3, y, x]
            As for `fit`, with as much of the patient's tissue as possible.
        """
        if self.per != "patient":
            raise UsageError('fit_patient is for a normaliser with per="patient"')
        name = str(getattr(patient, "id", patient))
        self._patients[name] = self._statistics_of(image, f"the image of patient {name!r}")
        return self

    def _statistics_of(self, image: Array | Tensor, what: str) -> Params:
        tensor = image
        if isinstance(image, np.ndarray):
            tensor = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)
        x = as_batch(tensor[None])
        white = white_of(x, type(self).__name__)
        block = torch.empty(x.shape, dtype=torch.float32, device=x.device).copy_(x)
        statistics, usable = self.estimate(self.represent(block.flatten(2), white))
        if not bool(usable[0]):
            raise UsageError(
                f"{what}, {tuple(x.shape[2:])} pixels, has too few coloured pixels, or one "
                "colour only; choose one with tissue of both stains"
            )
        values = (s[0].cpu().numpy() for s in statistics)
        return dict(zip(self.statistics, values, strict=True))

    @property
    def target(self) -> Params:
        """Statistics of the target, by name; `UsageError` before there is one."""
        if self._target is None:
            raise UsageError(f"{type(self).__name__} has no target yet; call fit(image) first")
        return self._target

    # -- applying -----------------------------------------------------------------------

    def parameters(self, samples: Samples) -> Params:
        if self.per == "image":
            return {}
        if samples.patients is None:
            raise UsageError(
                'a normaliser with per="patient" needs to know the patients: call it as '
                "transform(x, smallchunks)"
            )
        missing = sorted({*samples.patients} - {*self._patients})
        if missing:
            raise UsageError(
                f"no statistics of patient {missing[0]!r} ({len(missing)} in this batch); "
                "give its image to fit_patient"
            )
        return {
            name: np.stack([self._patients[p][name] for p in samples.patients])
            for name in self.statistics
        }

    def on_image(self, x: Tensor, params: Params) -> Tensor:
        target = tuple(on_device(self.target[n], x, torch.float64) for n in self.statistics)
        given = [on_device(params[n], x, torch.float64) for n in self.statistics if n in params]

        def change(block: Tensor, white: float, *known: Tensor) -> Tensor:
            colours = self.represent(block, white)
            if known:
                return self.bring(colours, known, target).mul_(white)
            source, usable = self.estimate(colours)
            result = self.bring(colours, source, target).mul_(white)
            return torch.where(usable[:, None, None], result, block)

        return colourwise(x, change, given, who=type(self).__name__)
