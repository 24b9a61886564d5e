from .collector import ProcessedPiece as ProcessedPiece
from .collector import StreamCollector as StreamCollector
from .collector import run_stream as run_stream
from .encode import features as features
from .formats import read_windows as read_windows
from .raster import windows_to_heatmap as windows_to_heatmap
from .writer import StreamWriter as StreamWriter
