"""Slides behind a URL, from a server on the loopback that answers after 50 ms: the work, and the
reader that it is measured against.

    python remote.py PATH SECONDS    serves a file, by ranges, so long after it was asked

The server is a process of its own. The sequential reader takes the tiles of a region one after
the other through a file of fsspec, as tifffile reads from one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LATENCY = 0.05
#: side of a region
BLOCK = 4096
#: tiles that the sequential reader takes, at most
TILES = 48


class Ranges(BaseHTTPRequestHandler):
    """Ranges of the one file."""

    protocol_version = "HTTP/1.1"
    path_served, latency = Path(), 0.0

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        time.sleep(self.latency)
        size = self.path_served.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{size}"')
        self.end_headers()
        if body:
            with self.path_served.open("rb") as file:
                file.seek(first)
                left = last + 1 - first
                while left:
                    left -= self.wfile.write(file.read(min(left, 1 << 20)))


@contextmanager
def serving(path: Path, latency: float = LATENCY) -> Iterator[str]:
    """The URL of a file."""
    command = [sys.executable, __file__, str(path), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@dataclass(frozen=True)
class Remote:
    """Pixels per second, and what was fetched for them."""

    rate: float
    #: against the sequential readers in the same round: that asks for each tile, and that reads
    #: ahead as files of fsspec do
    to_tiles: float
    to_ahead: float
    #: bytes fetched per byte of a tile that was read
    fetched: float
    #: per block of 4096 x 4096, or the whole slide where that is smaller
    requests: float
    #: to open the slide
    opening: float


def blocks(path: Path, seconds: float, rounds: int) -> Remote:
    """Blocks of a slide by two threads, and the same tiles one by one; medians over rounds."""
    import scenarios

    with serving(path) as url:
        found = scenarios.median_of(rounds, lambda _: _round(url, seconds))
    return Remote(*found)


def _round(url: str, seconds: float) -> tuple[float, ...]:
    from concurrent.futures import ThreadPoolExecutor

    import daskdmed
    from daskdmed.images.filecache import cache
    from daskdmed.images.remote.blocks import blocks as kept
    from daskdmed.images.remote.counting import count_requests

    cache.clear()
    kept.clear()
    with count_requests() as opening:
        slide = daskdmed.open_slide(url)
    view = slide.view()
    height, width = view.spatial_shape
    regions = list(daskdmed.Region((0, 0), (height, width)).tiles((BLOCK, BLOCK)))
    kept.clear()  # small slides come whole with what was fetched to open them

    def read(region: daskdmed.Region) -> int:
        # begun in time, and then to its end
        return view.read(region).size // 3 if time.perf_counter() < until else 0

    with count_requests() as count, ThreadPoolExecutor(2) as pool:
        begin = time.perf_counter()
        until = begin + seconds
        pixels = [n for n in pool.map(read, regions) if n]
        spent = time.perf_counter() - begin
    rate = sum(pixels) / spent
    return (
        rate,
        rate / _sequential(url, seconds, "none"),
        rate / _sequential(url, seconds, "bytes"),
        count.fetched / count.needed,
        count.requests / len(pixels),
        float(opening.requests),
    )


def _sequential(url: str, seconds: float, cache_type: str) -> float:
    """Pixels per second, tile by tile; a row of tiles, then the next."""
    import fsspec
    import tifffile

    opened = fsspec.open(url, "rb", cache_type=cache_type)
    with opened as file, tifffile.TiffFile(file) as tif:
        page = tif.pages[0]
        across = -(-page.imagewidth // page.tilewidth)
        wide = min(across, BLOCK // page.tilewidth)
        numbers = [row * across + column for row in range(len(page.dataoffsets) // across)
                   for column in range(wide)]  # fmt: skip
        tables, pixels, begin = page.jpegtables, 0, time.perf_counter()
        for number in numbers[:TILES]:
            file.seek(page.dataoffsets[number])
            data = file.read(page.databytecounts[number])
            tile, _, _ = page.decode(data, number, jpegtables=tables)
            pixels += tile.size // 3
            if time.perf_counter() - begin > seconds:
                break
        return pixels / (time.perf_counter() - begin)


def main() -> None:
    """Serve until the process ends."""
    Ranges.path_served, Ranges.latency = Path(sys.argv[1]), float(sys.argv[2])
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/{Ranges.path_served.name}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
