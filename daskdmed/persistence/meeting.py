"""Where processes of one user and one machine find reading processes that they share.

They meet at files of one name in a folder of that user, and by locks on them, which the kernel
gives back when their owner dies, however it dies: whoever comes holds the lock of the door while
it looks for the host, starts one when there is none, and connects; the host holds its own lock
for as long as it lives. So there is one host, an address is never that of a dead one, and a host
does not end while somebody is coming in. Files are removed by the host that ends, and used
again after one that was killed.

Not covered: the host itself (`daskdmed.persistence.host`); machines without ``flock``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daskdmed.core.errors import LoaderError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: what makes processes ranks of one job, or members of one: a scheduler that ends a job ends the
#: processes that it has started, also those that others use
_JOB = (
    "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID", "SLURM_STEP_ID", "PBS_JOBID", "LSB_JOBID",
)  # fmt: skip
#: seconds between tries of a lock that another process holds
_TRY_EVERY = 0.05


@dataclass
class Meeting:
    """The files of one shared host."""

    path: Path
    _door: int | None = field(default=None, repr=False)

    @classmethod
    def of(cls, *facts: object, environ: Mapping[str, str] = os.environ) -> Meeting:
        """Where those meet who agree in some facts, in their job, and in what they can see.

        UsageError: this machine has no ``flock``, or the folder is not this user's alone.
        """
        if fcntl is None:
            raise UsageError(
                "processes cannot find shared reading processes on this platform, which has no "
                "flock: start `dask scheduler` and `dask worker`, and give each loader "
                "client=Client(address)"
            )
        job = [environ.get(name, "") for name in _JOB]
        named = json.dumps([*map(str, facts), *job, platform.node(), *_namespaces()])
        return cls(_folder() / hashlib.sha256(named.encode()).hexdigest()[:16])

    @classmethod
    def at(cls, path: str) -> Meeting:
        return cls(Path(path))

    @property
    def log(self) -> str:
        """Where what the host and its workers print is found."""
        return f"{self.path}.log"

    # -- for whoever comes ------------------------------------------------------------------

    @contextlib.contextmanager
    def coming_in(self, limit: float) -> Iterator[None]:
        """Hold the door: nobody else starts a host, and the one that there is stays.

        LoaderError: somebody has held it for `limit` seconds.
        """
        end = time.monotonic() + limit
        while not self.close_door():
            if time.monotonic() > end:
                raise LoaderError(
                    f"another process has been looking for shared reading processes for "
                    f"{limit:.0f} s (lock {self.path}.door); end it, or give client="
                )
            time.sleep(_TRY_EVERY)
        try:
            yield
        finally:
            self.open_door()

    def found(self, limit: float) -> dict[str, Any] | None:
        """What the host that lives has told; None when there is none. With the door held.

        LoaderError: it has been starting for `limit` seconds.
        """
        end = time.monotonic() + limit
        while True:
            lock = _try_lock(self._host)
            if lock is not None:
                os.close(lock)
                return None
            try:
                told: dict[str, Any] = json.loads(self._host.read_text())
                return told
            except (OSError, ValueError):  # whoever started it died while it did
                if time.monotonic() > end:
                    raise LoaderError(
                        f"shared reading processes have not started within {limit:.0f} s; what "
                        f"they say stands in {self.log}"
                    ) from None
                time.sleep(_TRY_EVERY)

    # -- for the host -----------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Be the host, if there is no other; remove the files when that is over."""
        lock = _try_lock(self._host)
        if lock is None:
            yield False
            return
        os.truncate(lock, 0)
        try:
            yield True
        finally:
            for name in (self._host, Path(self.log), Path(f"{self.path}.door")):
                with contextlib.suppress(OSError):
                    name.unlink()
            os.close(lock)
            self.open_door()

    def tell(self, address: str) -> None:
        path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        self._host.write_text(json.dumps({"address": address, "path": path, "pid": os.getpid()}))

    def close_door(self) -> bool:
        """Whether nobody else holds it; then it is held here."""
        self._door = _try_lock(Path(f"{self.path}.door"))
        return self._door is not None

    def open_door(self) -> None:
        door, self._door = self._door, None
        if door is not None:
            os.close(door)

    @property
    def _host(self) -> Path:
        return Path(f"{self.path}.host")


def _try_lock(path: Path) -> int | None:
    """A descriptor with the lock of a file that is there, or None when another has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == os.stat(path).st_ino:
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:
            pass
        os.close(file)  # it was removed meanwhile: others would lock the next one


def _folder() -> Path:
    """A folder of this user alone, made when it is not there."""
    try:
        folder = Path(tempfile.gettempdir()) / f"daskdmed-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UsageError(
            f"there is no folder in which processes could find each other ({error}); set TMPDIR "
            "to one of this machine that can be written to"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UsageError(
            f"{folder} must be a folder that only user {os.getuid()} can use (it is "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}): remove it, or set TMPDIR "
            "to a folder of your own"
        )
    return folder


def _namespaces() -> list[str]:
    """What containers with one folder for temporary files do not have in common."""
    found = []
    for kind in ("pid", "net", "user"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/ns/{kind}"))
    return found
