"""Published slides by name: from a folder, from a cache, or downloaded; always verified.

The folder named by the environment variable ``DASKDMED_DATA_DIR`` is asked first, then the
cache of the user, then the network. Making slides is in `daskdmed.samples._make`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from daskdmed.core.errors import CorruptImageError, SampleNotAvailableError

logger = logging.getLogger("daskdmed.samples")

#: environment variable that names a folder with the files
DATA_DIR_VARIABLE = "DASKDMED_DATA_DIR"


_OPENSLIDE = "https://openslide.cdn.cs.cmu.edu/download/openslide-testdata"
#: name -> (URL, sha256)
_SAMPLES = {
    # H&E, 2220 x 2967, JPEG tiles of 240, 0.499 um/px, CC0 1.0
    "CMU-1-Small-Region.svs": (
        f"{_OPENSLIDE}/Aperio/CMU-1-Small-Region.svs",
        "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
    )
}


def available() -> tuple[str, ...]:
    """Names that `fetch` knows."""
    return tuple(_SAMPLES)


def fetch(name: str) -> Path:
    """Path of a published slide (one of `available`), downloaded when it is not here yet.

    Looked for in the folder named by ``DASKDMED_DATA_DIR``, then in the cache folder of the
    user, then at its origin. The sha256 is verified wherever the file is found.

    Raises
    ------
    SampleNotAvailableError
        The name is unknown, or the file is nowhere and cannot be downloaded.
    CorruptImageError
        The file in the folder is not the published one.
    """
    try:
        url, sha256 = _SAMPLES[name]
    except KeyError:
        raise SampleNotAvailableError(
            f"no sample slide is called {name!r}; there are: {', '.join(_SAMPLES)}"
        ) from None
    folder = os.environ.get(DATA_DIR_VARIABLE)
    if not folder or not (path := Path(folder, name).expanduser()).is_file():
        return _download(name, url, sha256, folder or "(not set)")
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != sha256:
        raise CorruptImageError(
            f"{path} is not the published file: sha256 is {found}, expected {sha256}; "
            f"delete it, or copy it again from {url}",
            uri=str(path),
        )
    return path


def _download(name: str, url: str, sha256: str, folder: str) -> Path:
    import pooch

    cache = pooch.os_cache("daskdmed")
    try:
        found = pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=name, path=cache)
    # requests' errors are OSErrors, pooch's own for a wrong checksum is a ValueError
    except (OSError, ValueError) as error:
        raise SampleNotAvailableError(
            f"sample slide {name!r} is not in the folder {DATA_DIR_VARIABLE}={folder}, not in "
            f"the cache {cache}, and could not be downloaded from {url} ({error}). "
            f"Connect to the network, or download that file elsewhere, put it into a folder, "
            f"and set {DATA_DIR_VARIABLE} to that folder"
        ) from error
    logger.info("sample slide %s is in %s", name, cache)
    return Path(found)
