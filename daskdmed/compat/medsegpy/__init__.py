"""MedSegPy's names over daskdmed: ``from daskdmed.compat.medsegpy...`` for ``from medsegpy...``.

Modules as there: `config`, `data`, `modeling`, `losses`, `evaluation`, `engine`. Scans are lazy
arrays of daskdmed, ``inference`` is `daskdmed.infer`, metrics are those of `daskdmed.evaluate`;
networks are torch modules. What each name has become, and what new code writes:
``docs/from-medsegpy.md``.

Not covered: MedSegPy's command line, CT and qDESS measurements, networks other
than a U-Net (any torch module does).
"""

from __future__ import annotations

from daskdmed.compat._install import Installed
from daskdmed.compat._install import install as _install


def install() -> Installed:
    """Have ``import medsegpy`` and ``from medsegpy...`` give these modules, until `remove`.

    Raises
    ------
    UsageError
        MedSegPy itself is installed.

    Examples
    --------
    >>> import daskdmed.compat.medsegpy
    >>> with daskdmed.compat.medsegpy.install():
    ...     from medsegpy.config import UNetConfig
    """
    return _install("medsegpy", __name__)


__all__ = ["install"]
