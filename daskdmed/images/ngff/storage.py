"""Where Zarr hierarchies live: local directories, zip files, and URLs that fsspec opens.

Finds out cheaply whether there is one, opens it with typed errors, and tells when its
metadata change. What the metadata mean is in `daskdmed.images.ngff.metadata`, how often a
server is asked in `daskdmed.images.remote.stores`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from daskdmed.core.errors import (
    ChangedImageError,
    CorruptImageError,
    ImageError,
    ImageNotFoundError,
    MissingExtraError,
    UnsupportedImageError,
)
from daskdmed.core.places import filesystem, local_path, notes, told
from daskdmed.images.ngff.metadata import MALFORMED, Multiscale, is_spatialdata
from daskdmed.images.readers import check_readable, fingerprint_files
from daskdmed.images.remote.retry import attempt_now
from daskdmed.images.remote.settings import settings
from daskdmed.images.source import explain_os_error

logger = logging.getLogger("daskdmed.images")

#: what a system says of places before the begin of a file, and of names that no file can have
_NOWHERE = {errno.EINVAL, errno.ENAMETOOLONG}
#: files that hold metadata of a node, Zarr v3 first
METADATA_NAMES = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
#: of these, what says what an image is
_ROOT_NAMES = ("zarr.json", ".zattrs", ".zarray")
#: questions about files of one store that are asked of a server at once
_AT_ONCE = 8
#: more than any real metadata file; larger ones are not loaded
_MAX_METADATA = 256 * 2**20
#: facts by which file systems tell versions of an object apart
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "md5", "generation", "size"),
    *("mtime", "LastModified", "last_modified", "updated", "created"),
)
#: what parsers of metadata raise
_PARSING = (*MALFORMED, AssertionError)


def looks_like_zarr(uri: str) -> bool:
    """Whether `uri` has Zarr metadata, or a remote name that says so. Never raises."""
    path = local_path(uri)
    if path is None:
        name = uri.split("?", maxsplit=1)[0].rstrip("/").lower()
        if ".zarr" in name or name.endswith(".ozx"):
            return True
        if os.path.splitext(name)[1]:
            return False  # some other kind of file, no need to ask the server
        try:
            place = _Folder(uri)
            return any(place.facts_of(METADATA_NAMES[:3]))
        except (ImageError, MissingExtraError) as error:
            logger.debug("%s", error)
        return False
    if os.path.isdir(path):
        return any(os.path.isfile(os.path.join(path, name)) for name in METADATA_NAMES[:3])
    return zip_root(path) is not None


def open_store(uri: str) -> Any:
    """A read-only Zarr store for a directory, a zip file, or a URL."""
    from zarr.storage import LocalStore, ZipStore

    path = local_path(uri)
    if path is None:
        from daskdmed.images.remote.stores import remote_store

        try:
            return remote_store(uri)
        except (ImportError, ValueError) as error:
            raise _no_filesystem(uri, error) from error
        except Exception as error:
            raise explain_os_error(error, uri) from error
    check_readable(uri, path)
    if os.path.isdir(path):
        for name in METADATA_NAMES:
            file = os.path.join(path, name)
            if os.path.isfile(file) and os.path.getsize(file) > _MAX_METADATA:
                raise CorruptImageError.of(
                    uri,
                    f"{name} has {os.path.getsize(file)} bytes, more than any metadata "
                    f"({_MAX_METADATA}); it is not loaded",
                )
        return LocalStore(path, read_only=True)
    if zipfile.is_zipfile(path):
        return ZipStore(path, mode="r")
    if path.lower().endswith((".zip", ".ozx")):
        raise CorruptImageError(f"{uri} is no zip file; it is truncated, copy it again", uri=uri)
    raise UnsupportedImageError(
        f"{uri} is a file; a Zarr image is a directory, a zip file, or a URL", uri=uri
    )


def open_node(uri: str, store: Any) -> Any:
    """The Zarr group or array at the root of a store."""
    import zarr

    root = zip_root(uri) if isinstance(store, zarr.storage.ZipStore) else ""
    try:
        return zarr.open(store=store, path=root, mode="r")
    except FileNotFoundError as error:
        if local_path(uri) is None and _Folder(uri).facts("") is None:
            raise ImageNotFoundError.of(uri, "nothing is there; check the URL") from error
        raise UnsupportedImageError(
            f"{uri} has no Zarr metadata ({', '.join(METADATA_NAMES[:3])}); give the folder that "
            f"has them",
            uri=uri,
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise metadata_error(uri, "its root", error) from error


def stored_chunks(uri: str, array: Any) -> tuple[int, ...]:
    """Extents of the chunks of an array, as its metadata have them: zarr from 3.4 on takes an
    extent of 0 for 1."""
    try:
        chunks = tuple(array.chunks)
    except NotImplementedError as error:
        raise _unequal_chunks(uri, array.path or "its root") from error
    document = getattr(array.metadata, "_stored_document", None) or {}
    grid = document.get("chunk_grid", {}).get("configuration", {})
    return tuple(document.get("chunks", grid.get("chunk_shape", chunks)))


def _unequal_chunks(uri: str, where: str) -> UnsupportedImageError:
    return UnsupportedImageError.of(
        uri,
        f"the chunks of {where} differ in size (a rectilinear grid); write it anew in equal chunks",
    )


def metadata_error(uri: str, where: str, error: Exception) -> ImageError:
    """The typed error for what Zarr raised while it parsed metadata: it lets through whatever its
    parsers raise (KeyError, TypeError, JSON errors...)."""
    if isinstance(error, OSError) and error.errno in _NOWHERE and local_path(uri) is not None:
        return CorruptImageError.of(
            uri, f"{where:.200} is at a place that cannot be ({error.strerror}); copy it again"
        )
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return explain_os_error(error, uri)
    if local_path(uri) is None and not isinstance(error, _PARSING):
        return explain_os_error(error, uri)  # clients of object stores have errors of their own
    if isinstance(error, zipfile.BadZipFile):
        return CorruptImageError.of(uri, f"the zip file is damaged: {error}")
    text = f"{type(error).__name__}: {error}"
    if "rectilinear" in text.lower():
        return _unequal_chunks(uri, where)
    if "codec" in text.lower():
        return UnsupportedImageError.of(
            uri,
            f"{where} needs a codec that is not installed ({text}); install the package "
            f"that has it",
        )
    return CorruptImageError.of(uri, f"the Zarr metadata of {where} are broken ({text})")


def fingerprint(uri: str) -> str:
    """Changes when the metadata of the image or of one of its levels are written anew: size and
    time of local files, etag, size and time of remote ones. Chunks are too many to be looked at."""
    path = local_path(uri)
    if path is not None:
        check_readable(uri, path)
        if not os.path.isdir(path):
            return fingerprint_files(uri, [path])
    facts = _facts_of(_Folder(uri))
    if not facts:
        raise ImageNotFoundError.of(uri, "no Zarr metadata there")
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()


class Watch:
    """Whether the image behind a URL is still the one that was opened: its root metadata are
    looked at after reading, when that was not done for ``check-interval``. Chunks say nothing of
    which image they are."""

    def __init__(self, uri: str) -> None:
        self._uri, self._checked = uri, time.monotonic()
        self._folder = _Folder(uri) if local_path(uri) is None else None
        self._known = self._facts()

    def _facts(self) -> list[str | None]:
        return [] if self._folder is None else self._folder.facts_of(_ROOT_NAMES)

    def check(self) -> None:
        """A `ChangedImageError` where it is another."""
        if self._folder is None:
            return
        now = time.monotonic()
        if now - self._checked < settings().check_interval:
            return
        self._folder.refresh()
        if self._facts() != self._known:
            raise ChangedImageError.of(
                self._uri, "its metadata changed on the server since it was opened; open it again"
            )
        self._checked = now


class _Folder:
    """The few questions asked of a folder, local or remote."""

    def __init__(self, uri: str) -> None:
        from fsspec.implementations.local import LocalFileSystem

        self._uri, path = uri, local_path(uri)
        try:
            self._fs, root = filesystem(uri) if path is None else (LocalFileSystem(), path)
        except (ImportError, ValueError) as error:
            raise _no_filesystem(uri, error) from error
        except Exception as error:
            raise explain_os_error(error, uri) from error
        self._root = root.rstrip("/")
        self._options, self._is_local = told(), path is not None

    def _ask(self, question: Any, name: str) -> Any:
        place = f"{self._root}/{name}"
        try:
            if self._is_local:
                return question(place)
            return attempt_now(lambda: question(place), self._uri, self._options, settings())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except Exception as error:
            raise explain_os_error(error, self._uri) from error

    def read(self, name: str) -> bytes | None:
        found: bytes | None = self._ask(self._fs.cat_file, name)
        return found

    def facts(self, name: str) -> str | None:
        return self.facts_of([name])[0]

    def facts_of(self, names: Sequence[str]) -> list[str | None]:
        """Version of each of several files, None where there is none. A server is asked for all
        at once, and once within one opening."""
        known = notes()
        keys = [("zarr", self._root, name) for name in names]
        new = [name for name, key in zip(names, keys, strict=True) if key not in known]
        if self._fs.async_impl and len(new) > 1:
            with ThreadPoolExecutor(min(len(new), _AT_ONCE)) as pool:
                found = list(pool.map(self._look, new))
        else:
            found = list(map(self._look, new))
        asked = dict(zip(new, found, strict=True))
        if not self._is_local:
            known |= {("zarr", self._root, name): fact for name, fact in asked.items()}
        return [asked[n] if n in asked else known[key] for n, key in zip(names, keys, strict=True)]

    def _look(self, name: str) -> str | None:
        if self._is_local:
            status = self._ask(os.stat, name)
            return None if status is None else f"{status.st_size}:{status.st_mtime_ns}"
        info = self._ask(self._fs.info, name)
        if info is None:
            return None
        return ":".join(f"{key}={info[key]}" for key in _VERSION_KEYS if key in info)

    def refresh(self) -> None:
        """Forget listings."""
        self._fs.invalidate_cache()

    def folders(self, below: str = "") -> list[str]:
        try:
            entries = self._fs.ls(f"{self._root}/{below}".rstrip("/"), detail=True)
        except Exception as error:
            logger.debug("%s cannot be listed: %s", self._uri, error)
            return []
        folders = (e["name"] for e in entries if e["type"] == "directory")
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in folders)


def _no_filesystem(uri: str, error: Exception) -> Exception:
    if isinstance(error, ImportError):
        return MissingExtraError(f"{uri}: the file system needs a package: {error}")
    return UnsupportedImageError.of(uri, f"fsspec knows no such file system: {error}")


def _facts_of(place: _Folder) -> list[str]:
    """Name and version of every metadata file of the image, root first."""
    names = list(METADATA_NAMES)
    for child in _children(place):
        names += [f"{child}/{name}" for name in METADATA_NAMES[:4]]
    facts = zip(names, place.facts_of(names), strict=True)
    return [f"{name} {fact}" for name, fact in facts if fact is not None]


def _children(place: _Folder) -> list[str]:
    """Levels that the metadata name, else the folders of a group."""
    root = place.read("zarr.json")
    text = root if root is not None else place.read(".zattrs")
    try:
        document = json.loads(text or b"{}")
        if document.get("node_type") == "array" or place.facts(".zarray") is not None:
            return []
        attributes = document.get("attributes", {}) if root is not None else document
        if is_spatialdata(attributes):
            return _elements(place)
        image = Multiscale.parse(attributes)
        if image is not None:
            return [level.path for level in image.levels]
    except MALFORMED as error:
        logger.debug("metadata of a Zarr group cannot be parsed: %s", error)
        return []
    return place.folders()


def _elements(place: _Folder) -> list[str]:
    """Images and label maps of a SpatialData object, with their levels."""
    found = []
    for home in ("images", "labels"):
        for name in place.folders(home):
            found.append(f"{home}/{name}")
            found += [f"{home}/{name}/{level}" for level in place.folders(f"{home}/{name}")]
    return found


def zip_root(path: str) -> str | None:
    """Folder of an archive in which the Zarr metadata lie: "" as a rule, None without any."""
    if not path.lower().endswith((".zip", ".ozx")):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/") for name in archive.namelist()]
    except Exception as error:  # of a damaged directory zipfile raises all sorts
        logger.debug("%s: %r", path, error)
        return None
    homes = [home for home, _, name in names if name in METADATA_NAMES[:3]]
    return min(homes, key=len, default=None)
