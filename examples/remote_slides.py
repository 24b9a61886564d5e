"""Slides that stay on a server: opened by URL, trained from, and what was fetched for it.

A small server on this machine stands for yours: any that answers ranges does, ``https://``,
``s3://`` (pip install 's3fs'), ``gs://`` (gcsfs) and whatever else fsspec opens.

python examples/remote_slides.py
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dask
import numpy as np

import daskdmed
from daskdmed import samples
from daskdmed.images.remote.counting import count_requests

OUTPUT = Path("output/remote_slides")
TOKEN = "Bearer not-for-everybody"


class Ranges(SimpleHTTPRequestHandler):
    """Python's file server, with ranges, for who knows the token."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.headers.get("Authorization") != TOKEN or not path.is_file() or not asked:
            self.send_error(403)
            return
        data = path.read_bytes()
        first, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - first))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        self.wfile.write(data[first:stop])


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder."""
    handler = partial(Ranges, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        path = OUTPUT / f"slide_{number}.tif"
        if not path.exists():
            samples.make_slide(
                path, 3072 if os.environ.get("DASKDMED_QUICK") else 8192, seed=number
            )
    # credentials go to the file system and, with what reads, to the workers of a cluster; they are
    # in no repr, token, log or message
    access = {"headers": {"Authorization": TOKEN}}
    with served(OUTPUT) as url:
        with count_requests() as count:
            slide = daskdmed.open_slide(f"{url}/slide_0.tif", storage_options=access)
        print(slide)
        print(f"opened with {count.requests} requests, {count.fetched / 2**10:,.0f} KiB")

        with count_requests() as count:
            block = slide.read_region((1024, 1024), 0, (1024, 1024))
        local = daskdmed.open_slide(OUTPUT / "slide_0.tif")
        same = np.array_equal(block, local.read_region((1024, 1024), 0, (1024, 1024)))
        print(
            f"1024 x 1024 pixels: {count.requests} requests, {count.fetched / 2**10:,.0f} KiB "
            f"fetched, {count.needed / 2**10:,.0f} KiB needed; "
            f"the same as of the file: {same}"
        )

        patients = [
            daskdmed.Patient(
                f"p{n}", {"wsi": daskdmed.Record(f"{url}/{name}", storage_options=access)}
            )
            for n, name in enumerate(("slide_0.tif", "slide_1.tif"))
        ]
        # fewer connections than the usual, for a server that is shared, and more patience with it
        gentle = {"connections": 4, "tries": 8}
        with (
            dask.config.set({"daskdmed.images.remote": gentle}),
            count_requests() as count,
            daskdmed.LightDL(
                daskdmed.Dataset("remote", patients),
                smallchunk_size=128,
                batch_size=16,
                bigchunk_size=1024,
                smallchunks_per_bigchunk=32,
                resident="16 MiB",
                epoch_length=8,
                seed=0,
            ) as loader,
        ):
            means = [float(x.float().mean()) for x, _, _ in loader]
        print(
            f"{len(means)} batches of 16: {count.requests} requests, "
            f"{count.retries} of them again, {count.fetched / 2**10:,.0f} KiB"
        )


if __name__ == "__main__":
    main()
