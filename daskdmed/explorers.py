"""Where small chunks are cropped: explorers for ``LightDL(smallchunk_collector=...)``."""

from daskdmed.loading.explorers import (
    CircleExplorer,
    Explorer,
    GridExplorer,
    LowDiscrepancyExplorer,
    SpiralExplorer,
)

__all__ = ["CircleExplorer", "Explorer", "GridExplorer", "LowDiscrepancyExplorer", "SpiralExplorer"]
