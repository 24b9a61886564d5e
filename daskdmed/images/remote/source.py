"""The bytes of a file behind a URL, for parsers and decoders, from any number of threads.

What is asked for together is fetched together: neighbours with one request, the requests in
flight at once. While a file is parsed, which asks for little at a time, more than that is
fetched. Not covered: single requests (`daskdmed.images.remote.objects`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from daskdmed.core.errors import ChangedImageError, CorruptImageError, DaskdmedError
from daskdmed.core.places import notes, told
from daskdmed.images.refusals import MAX_READ
from daskdmed.images.remote.blocks import BLOCK, BlockCache, blocks
from daskdmed.images.remote.counting import counted
from daskdmed.images.remote.objects import Facts, Remote, gate, remote_file
from daskdmed.images.remote.retry import attempt, explain
from daskdmed.images.remote.settings import Settings, settings

#: fetched at once where a parser asks for less: directories lie near each other as a rule
AHEAD = 512 * 2**10
#: fetched to see what a file is
_HEAD = AHEAD
#: kept while a file is parsed, where the configuration says to keep nothing
_PARSING = 16 * 2**20
#: bytes of tiles that are asked for together; more would only wait in memory for being decoded
TOGETHER = 64 * 2**20


def facts_of(uri: str) -> Facts:
    """Size and version of a file; within one opening the server is asked once."""
    return RemoteSource(uri)._facts


class RemoteSource:
    """A file on an fsspec file system, read by ranges."""

    #: neighbours are joined here, over all that is asked for together
    gap = run = -1
    #: what is worth asking for together
    together = TOGETHER
    descriptor = None

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._options = told()
        try:
            self._file, self._loop = remote_file(uri)
        except Exception as error:
            raise explain(error, uri, self._options) from (None if self._options else error)
        self._own: BlockCache | None = None
        self._scanning = False
        self._facts, self._head = self._noted()
        self.size = self._facts.size

    def _noted(self) -> tuple[Facts, bytes]:
        """What another backend has found out while the same file is opened, failures too."""
        key = ("remote", self.uri)
        known = notes().get(key)
        if known is None:
            try:
                known = self._look()
            except DaskdmedError as error:
                known = error
            notes()[key] = known
        if isinstance(known, DaskdmedError):
            raise copy.copy(known) from known.__cause__
        found: tuple[Facts, bytes] = known
        return found

    def _look(self) -> tuple[Facts, bytes]:
        """Facts and first bytes, as the server tells them now."""
        file: Remote = self._file
        limits = settings()

        async def ask() -> tuple[Facts, bytes]:
            seen: tuple[Facts, bytes] = await self._attempt(lambda: file.first(_HEAD), limits)
            return seen

        found: tuple[Facts, bytes] = self._run(ask)
        facts, head = found
        counted(fetched=len(head))
        if limits.cache_bytes:
            file_id = (self.uri, facts)
            _, mine, _ = blocks.claim(file_id, range(-(-len(head) // BLOCK)))
            cut = {n: head[n * BLOCK : (n + 1) * BLOCK] for n in mine}
            blocks.publish(file_id, cut, limits.cache_bytes)
        return found

    async def _attempt(self, request: Any, limits: Settings) -> Any:
        return await attempt(request, self.uri, self._options, limits, gate(self._loop, limits))

    def _run(self, ask: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._loop, ask)

    # ------------------------------------------------------------------------ reading
    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at an offset; fewer only at the end of the file."""
        return self.read_many([offset], [count])[0]

    def read_many(self, offsets: Sequence[int], counts: Sequence[int]) -> list[bytes]:
        """All ranges with as few requests as make sense, in flight together."""
        spans = [(o, max(o, min(o + c, self.size))) for o, c in zip(offsets, counts, strict=True)]
        largest = max((b - a for a, b in spans), default=0)
        if largest > MAX_READ:
            raise CorruptImageError.of(self.uri, f"a single read of {largest} bytes")
        counted(needed=sum(b - a for a, b in spans))
        limits = settings()
        cache = blocks if limits.cache_bytes else self._own
        if cache is None:
            if all(b <= len(self._head) for _, b in spans):
                return [self._head[a:b] for a, b in spans]
            return self._exactly(spans, limits)
        wanted = {n for a, b in spans if a < b for n in range(a // BLOCK, (b - 1) // BLOCK + 1)}
        asked = self._wider(wanted) if self._scanning else wanted
        found, fetched = self._blocks(cache, sorted(asked), limits)
        counted(cached=BLOCK * len(wanted - fetched))
        return [_cut(found, a, b) for a, b in spans]

    def _wider(self, wanted: set[int]) -> set[int]:
        """With the neighbours that a parser is likely to ask for next."""
        step, last = AHEAD // BLOCK, (self.size - 1) // BLOCK
        windows = {n // step for n in wanted}
        return {n for w in windows for n in range(w * step, min((w + 1) * step, last + 1))}

    def _exactly(self, spans: Sequence[tuple[int, int]], limits: Settings) -> list[bytes]:
        """Without a cache: nothing but gaps beside what is asked for."""
        order = sorted({span for span in spans if span[0] < span[1]})
        runs = _runs(order, limits.gap, limits.run)
        bodies = self._fetch(runs, limits)
        failed = next((b for b in bodies.values() if isinstance(b, Exception)), None)
        if failed is not None:
            raise failed
        found = []
        for a, b in spans:
            inside = [run for run in runs if run[0] < b and a < run[1]] if a < b else []
            parts = [bodies[run][max(a - run[0], 0) : b - run[0]] for run in inside]  # type: ignore[index]
            found.append(parts[0] if len(parts) == 1 else b"".join(parts))
        return found

    def _blocks(
        self, cache: BlockCache, wanted: Sequence[int], limits: Settings
    ) -> tuple[dict[int, bytes], set[int]]:
        """Blocks, and which of them were fetched for this."""
        file_id = (self.uri, self._facts)
        limit = limits.cache_bytes or _PARSING
        if len(wanted) * BLOCK > limit:
            limit = 0  # would drive out everything else, and be driven out itself
        found, mine, others = cache.claim(file_id, wanted)
        if mine:
            found |= self._claimed(cache, file_id, mine, limits, limit)
        for number, flight in others.items():
            try:
                found[number] = flight.result()
            except concurrent.futures.CancelledError:  # who fetched it was interrupted
                found |= self._blocks(cache, [number], limits)[0]
            except DaskdmedError as error:
                raise copy.copy(error) from None  # one traceback for each thread
        return found, set(mine)

    def _claimed(
        self, cache: BlockCache, file_id: Any, mine: list[int], limits: Settings, keep: int
    ) -> dict[int, bytes]:
        """Fetch blocks that others may be waiting for."""
        ends = [(n * BLOCK, min((n + 1) * BLOCK, self.size)) for n in mine]
        runs = _runs(ends, limits.gap, limits.run)
        # what lies between comes too: who wants it meanwhile waits for it
        wanted = set(mine)
        between = [n for a, b in runs for n in range(a // BLOCK, -(-b // BLOCK)) if n not in wanted]
        mine = mine + cache.claim(file_id, between)[1]
        found: dict[int, bytes] = {}
        failed: Exception | None = None
        try:
            for (begin, stop), body in self._fetch(runs, limits).items():
                if isinstance(body, Exception):
                    failed = failed or body
                    continue
                for at in range(begin, stop, BLOCK):
                    found[at // BLOCK] = body[at - begin : at - begin + BLOCK]
        except Exception as error:
            failed = error
            raise
        finally:
            cache.publish(file_id, found, keep)
            lost = [n for n in mine if n not in found]
            if lost:
                cache.abandon(file_id, lost, failed)
        if failed is not None:
            if isinstance(failed, ChangedImageError):
                cache.forget(file_id)
            raise failed
        return found

    def _fetch(
        self, runs: Sequence[tuple[int, int]], limits: Settings
    ) -> dict[tuple[int, int], bytes | Exception]:
        """The bodies of runs, or why one did not come."""

        async def one(run: tuple[int, int]) -> bytes:
            body: bytes = await self._attempt(lambda: self._file.range(*run, self._facts), limits)
            counted(fetched=len(body))
            return body

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*map(one, runs), return_exceptions=True)

        bodies = self._run(all_of_them) if runs else []
        for body in bodies:
            if isinstance(body, BaseException) and not isinstance(body, Exception):
                raise body
        return dict(zip(runs, bodies, strict=True))

    # ------------------------------------------------------------------------ parsing
    @contextmanager
    def scanning(self) -> Iterator[None]:
        """While the file is parsed: more is fetched than is asked for, and kept for this long."""
        self._scanning = True
        if not settings().cache_bytes:
            self._own = BlockCache()
            numbers = range(-(-len(self._head) // BLOCK))
            self._own.claim((self.uri, self._facts), numbers)
            head = {n: self._head[n * BLOCK : (n + 1) * BLOCK] for n in numbers}
            self._own.publish((self.uri, self._facts), head, _PARSING)
        try:
            yield
        finally:
            self._scanning, self._own = False, None
            self._head = b""  # no tile is so near the beginning that it would be worth its memory

    def open_file(self) -> Any:
        """A file object for a parser."""
        return io.BufferedReader(_Raw(self), BLOCK)

    def close(self) -> None:
        """Nothing to release: fsspec owns its connections."""


class _Raw(io.RawIOBase):
    """A source with a position."""

    def __init__(self, source: RemoteSource) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        data = self._source.read(self._at, len(target))
        target[: len(data)] = data
        self._at += len(data)
        return len(data)


def _runs(spans: Iterable[tuple[int, int]], gap: int, longest: int) -> list[tuple[int, int]]:
    """Sorted spans joined where little lies between, and cut where they are long."""
    joined: list[list[int]] = []
    for begin, stop in spans:
        if joined:
            begin = max(begin, joined[-1][1])  # nothing twice
        if begin >= stop:
            continue
        if joined and begin - joined[-1][1] <= gap and stop - joined[-1][0] <= longest:
            joined[-1][1] = stop
        else:
            joined.append([begin, stop])
    longest = max(BLOCK, longest // BLOCK * BLOCK)
    return [
        (at, min(at + longest, stop))
        for begin, stop in joined
        for at in range(begin, stop, longest)
    ]


def _cut(found: Mapping[int, bytes], begin: int, stop: int) -> bytes:
    """A span of blocks."""
    if begin >= stop:
        return b""
    first, last = begin // BLOCK, (stop - 1) // BLOCK
    parts = [found[n] for n in range(first, last + 1)]
    parts[-1] = parts[-1][: stop - last * BLOCK]
    parts[0] = parts[0][begin - first * BLOCK :]
    return parts[0] if len(parts) == 1 else b"".join(parts)
