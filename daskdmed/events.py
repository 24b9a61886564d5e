"""What happens in loaders and runs, for progress bars, logs and dashboards of your own.

See `daskdmed.core.events`.
"""

from daskdmed.core.events import (
    BatchMade,
    BatchTaken,
    BigChunkEvicted,
    BigChunkReady,
    BigChunkRequested,
    BlockDone,
    Event,
    RunFinished,
    RunStarted,
    SlideSkipped,
    subscribe,
)

__all__ = [
    "BatchMade",
    "BatchTaken",
    "BigChunkEvicted",
    "BigChunkReady",
    "BigChunkRequested",
    "BlockDone",
    "Event",
    "RunFinished",
    "RunStarted",
    "SlideSkipped",
    "subscribe",
]
