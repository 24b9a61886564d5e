"""Training by a configuration: `DefaultTrainer`."""

from __future__ import annotations

import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
