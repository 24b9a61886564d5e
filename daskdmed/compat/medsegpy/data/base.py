"""`DataLoader`: what a loader of one's own derives from, and the names of loaders.

Not covered: loaders over slices and patches (`daskdmed.compat.medsegpy.data.data_loader`).
"""

from __future__ import annotations

import functools
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.registry import Registry
from daskdmed.core.checks import check_count, check_seed
from daskdmed.core.randomness import seed_key

logger = logging.getLogger("daskdmed.compat")

DATA_LOADER_REGISTRY: Registry[Callable[..., DataLoader]] = Registry("data loader")


class DataLoader(ABC):
    """Batches by number: ``len(loader)``, ``loader[i]``, and ``loader.inference(model)``.

    A loader of one's own defines `__getitem__` and `inference`, and `_num_elements` where an
    element is no dict; ``DATA_LOADER_REGISTRY.register()`` above it makes it a ``cfg.TAG``.

    Parameters
    ----------
    cfg : Config
        See there.
    dataset_dicts : sequence of dict
        Of one or more datasets, see `DatasetCatalog`.
    is_test : bool
        Whether batches hold a third member, the image as it was read.
    shuffle : bool
        Whether elements are dealt out in another order in every epoch: it follows from ``cfg.SEED``
        and the number of the epoch alone.
    drop_last : bool
        Whether a last batch of less than `batch_size` is left out.
    batch_size : int
        Elements of a batch.
    """

    def __init__(
        self,
        cfg: Config,
        dataset_dicts: Sequence[dict[str, Any]],
        is_test: bool = False,
        shuffle: bool = True,
        drop_last: bool = True,
        batch_size: int = 1,
    ) -> None:
        self._cfg = cfg
        self._dataset_dicts = list(dataset_dicts)
        self._is_test, self._shuffle, self._drop_last = is_test, shuffle, drop_last
        self._batch_size = check_count("batch_size", batch_size)
        seed = cfg.SEED
        if seed is None:
            seed = secrets.randbits(32)
            if shuffle:
                logger.info("cfg.SEED is None: this loader shuffles with SEED=%d", seed)
        self.seed = check_seed(seed)
        self._epoch = 0

    @abstractmethod
    def __getitem__(self, idx: int) -> Any:
        """A batch."""

    @abstractmethod
    def inference(self, model: Any, **kwargs: Any) -> Iterator[tuple[dict[str, Any], ...]]:
        """Every scan, predicted: ``(input, output)`` of each."""

    def _num_elements(self) -> int:
        """How many there are to be dealt out."""
        return len(self._dataset_dicts)

    @functools.cached_property
    def _idxs(self) -> Sequence[int]:
        """Elements in the order of the epoch; NumPy's integers where they are shuffled."""
        count = self._num_elements()
        if not self._shuffle:
            return range(count)
        shuffled = np.random.default_rng([seed_key(self.seed), self._epoch])
        return cast("Sequence[int]", shuffled.permutation(count))

    def _elements(self, idx: int) -> list[int]:
        """Elements of a batch."""
        batches = len(self)
        if not -batches <= idx < batches:
            raise IndexError(f"there is no batch {idx} of {batches}")
        start = (idx % batches) * self._batch_size
        return [int(i) for i in self._idxs[start : start + self._batch_size]]

    def on_epoch_end(self) -> None:
        """Go to the next epoch: elements are shuffled anew."""
        self._epoch += 1
        self.__dict__.pop("_idxs", None)

    def num_scans(self) -> int:
        """How many scans there are."""
        return len({d.get("scan_id") for d in self._dataset_dicts})

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self._num_elements(), self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __repr__(self) -> str:
        batches = f"{len(self)} batches of {self._batch_size}"
        return f"<{type(self).__name__}: {self.num_scans()} scans, {batches}>"

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import loader_html

        return loader_html(self)

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch."""
        return (self[i] for i in range(len(self)))
