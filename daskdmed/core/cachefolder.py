"""The folder for files that can be made again, and room in it.

Files there appear whole or not at all (`daskdmed.core.files`). Not covered: what they hold.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

#: environment variable that names the cache folder
CACHE_DIR_VARIABLE = "DASKDMED_CACHE_DIR"


def cache_dir() -> Path:
    """The folder for files that can be made again.

    ``DASKDMED_CACHE_DIR`` when it is set, otherwise the user's cache folder of the platform.
    """
    named = os.environ.get(CACHE_DIR_VARIABLE)
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("daskdmed"))


def make_room(folder: Path, pattern: str, nbytes: int, limit: int) -> None:
    """Delete the longest unused files of a folder until so many bytes more stay below a limit.

    A file's time of change is when it was last used. Whoever has one open reads on: only its name
    is gone (where the system does not allow that, it stays).
    """
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be as quick
            facts = path.stat()
            found.append((facts.st_mtime, facts.st_size, path))
    total = nbytes + sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
