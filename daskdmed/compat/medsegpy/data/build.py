"""From names of datasets to loaders."""

from __future__ import annotations

import logging
from collections.abc import Container, Hashable, Sequence
from typing import Any

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.data.catalog import DatasetCatalog
from daskdmed.compat.medsegpy.data.data_loader import DATA_LOADER_REGISTRY, DataLoader
from daskdmed.core.errors import DatasetError

logger = logging.getLogger("daskdmed.compat")

#: names that loaders had
_FORMER = dict.fromkeys(("oai", "oai_2d", "oai_aug", "oai_aug_2d"), "DefaultDataLoader")


def filter_dataset(
    dataset_dicts: Sequence[dict[str, Any]],
    by: Hashable,
    accepted_elements: Any,
    include_missing: bool = False,
) -> list[dict[str, Any]]:
    """The dicts with an accepted value.

    Parameters
    ----------
    dataset_dicts : sequence of dict
        Not changed.
    by : hashable
        Key that is looked at.
    accepted_elements : value or container of values
        What is accepted. A text is one value.
    include_missing : bool
        Whether dicts without the key are kept too; those with it are looked at as otherwise.
    """
    single = isinstance(accepted_elements, str) or not isinstance(accepted_elements, Container)
    accepted = (accepted_elements,) if single else accepted_elements
    return [d for d in dataset_dicts if (d[by] in accepted if by in d else include_missing)]


def get_sem_seg_dataset_dicts(
    dataset_names: str | Sequence[str], filter_empty: bool = True
) -> list[dict[str, Any]]:
    """Dicts of datasets, one behind the other.

    Parameters
    ----------
    dataset_names : str or sequence of str
        As registered in `DatasetCatalog`.
    filter_empty : bool
        Whether those without ``sem_seg_file`` are left out.

    Raises
    ------
    DatasetError
        No such dataset, or nothing is left.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    every = [one for name in names for one in DatasetCatalog.get(name)]
    kept = [d for d in every if d.get("sem_seg_file")] if filter_empty else every
    if not kept:
        raise DatasetError(
            f"datasets {names} have {len(every)} dicts"
            + (", none with masks (sem_seg_file)" if every else "")
            + "; to use scans without masks, filter_empty=False"
        )
    if len(kept) < len(every):
        logger.info("datasets %s: %d of %d dicts have masks", names, len(kept), len(every))
    return kept


def build_loader(
    cfg: Config,
    dataset_names: str | Sequence[str],
    batch_size: int,
    is_test: bool,
    shuffle: bool,
    drop_last: bool,
    **kwargs: Any,
) -> DataLoader:
    """The loader that ``cfg.TAG`` names, over datasets.

    Parameters
    ----------
    cfg : Config
        See there.
    dataset_names : str or sequence of str
        As registered in `DatasetCatalog`. Scans without masks are left out, unless
        ``cfg.PRIMARY_TASK`` is "inpainting".
    batch_size, is_test, shuffle, drop_last, **kwargs
        As of the loader, see `DataLoader`.
    """
    needs_masks = cfg.PRIMARY_TASK != "inpainting"
    dicts = get_sem_seg_dataset_dicts(dataset_names, filter_empty=needs_masks)
    return build_data_loader(
        cfg,
        dicts,
        batch_size=batch_size,
        is_test=is_test,
        shuffle=shuffle,
        drop_last=drop_last,
        **kwargs,
    )


def build_data_loader(
    cfg: Config, dataset_dicts: Sequence[dict[str, Any]], **kwargs: Any
) -> DataLoader:
    """The loader that ``cfg.TAG`` names, over dicts."""
    tag = cfg.TAG
    if tag not in DATA_LOADER_REGISTRY and tag in _FORMER:
        logger.warning("TAG %r is now called %r", tag, _FORMER[tag])
        tag = _FORMER[tag]
    return DATA_LOADER_REGISTRY.get(tag)(cfg, dataset_dicts, **kwargs)
