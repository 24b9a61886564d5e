"""What is done to a sound file: bytes, pieces, and values that formats give a meaning to.

Every mutation is a function ``(data, draw, donors) -> bytes``; `draw` gives all chance there is, so
that a number makes the same file again. Those that know a format are in `structures`; here is what
any bytes can suffer, and the choice.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tests.fuzz import structures
from tests.fuzz.draw import Draw, extreme
from tests.fuzz.seeds import Corpus, Seed

#: a damaged file is at most so large
LARGEST = 1 << 20
#: names of files whose content is text that says what the others mean
_TELLING = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".hdr")


def damaged(corpus: Corpus, seed: int, number: int) -> tuple[Seed, str]:
    """Input `number` of a campaign: a damaged seed, and what was done to it. Numbers below 0 are
    the seeds themselves, the last is -1."""
    if number < 0:
        return corpus.seeds[number], "sound"
    draw = Draw(np.random.default_rng([seed, number]))
    chosen = draw.weighted(corpus.seeds, [s.share for s in corpus.seeds])
    files, done = dict(chosen.files), []
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5))):
        if len(files) > 1 and draw.chance(0.15):
            done.append(_among(files, draw))
            continue
        name = _which(files, draw)
        other = draw.choice(corpus.seeds)
        donors = [draw.choice(list(seed_.files.values())) for seed_ in (chosen, other)]
        files[name], how = _one(files[name], draw, donors)
        files[name] = files[name][:LARGEST]
        done.append(f"{name}: {how}")
    missing = tuple(name for name in chosen.files if name not in files)
    return replace(chosen, files=files, missing=missing), "; ".join(done)


def _which(files: dict[str, bytes], draw: Draw) -> str:
    names = sorted(files)
    telling = [n for n in names if n.endswith(_TELLING)]
    return draw.choice(telling if telling and draw.chance(0.7) else names)


def _among(files: dict[str, bytes], draw: Draw) -> str:
    """Of several files: one is missing, two are swapped, one has the content of another."""
    first, second = draw.choice(sorted(files)), draw.choice(sorted(files))
    how = draw.choice(("missing", "swapped", "copied"))
    if how == "missing":
        del files[first]
    elif how == "swapped":
        files[first], files[second] = files[second], files[first]
    else:
        files[first] = files[second]
    return f"{first} {how} {second if how != 'missing' else ''}".strip()


def _one(data: bytes, draw: Draw, donors: Sequence[bytes]) -> tuple[bytes, str]:
    """One mutation of one file: two in three know its format."""
    if draw.chance(0.65):
        found = structures.of(data)
        if found is not None:
            with contextlib.suppress(RecursionError):  # of what was nested already
                return found(data, draw)
        if data[:2] == b"\x1f\x8b" and draw.chance(0.7):
            return _inside_gzip(data, draw, donors)
        if data[:4] == b"PK\x03\x04" and draw.chance(0.8):
            return _inside_zip(data, draw, donors)
    how = draw.choice(_BYTES)
    return how(data, draw, donors), how.__name__.strip("_")


def _inside_gzip(data: bytes, draw: Draw, donors: Sequence[bytes]) -> tuple[bytes, str]:
    try:
        inner, how = _one(gzip.decompress(data), draw, donors)
    except (OSError, EOFError, zlib.error):
        return _flip(data, draw, donors), "flip"
    return gzip.compress(inner, 1, mtime=0), f"in gzip, {how}"


def _inside_zip(data: bytes, draw: Draw, donors: Sequence[bytes]) -> tuple[bytes, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return _flip(data, draw, donors), "flip"
    if not files:
        return _flip(data, draw, donors), "flip"
    name = _which(files, draw)
    files[name], how = _one(files[name], draw, donors)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for one, content in files.items():
            new.writestr(zipfile.ZipInfo(one), content)
    return out.getvalue(), f"in zip {name}, {how}"


# -------------------------------------------------------------------- any bytes
def _flip(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    """Some bits, at the beginning, at the end or anywhere."""
    if not data:
        return b"\0"
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        out[_place(data, draw)] ^= 1 << draw.below(8)
    return bytes(out)


def _place(data: bytes, draw: Draw) -> int:
    near = min(len(data), 400)
    where = draw.below(3)
    if where == 0:
        return draw.below(near)
    return len(data) - 1 - draw.below(near) if where == 1 else draw.below(len(data))


def _number(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    """A number that is extreme in some width and order."""
    width = draw.choice((1, 2, 4, 8))
    if len(data) < width:
        return data
    at = min(_place(data, draw), len(data) - width)
    value = extreme(draw, 8 * width)
    return data[:at] + value.to_bytes(width, draw.choice(("little", "big"))) + data[at + width :]


def _cut(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    return data[: draw.below(len(data) + 1)]


def _cut_little(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    return data[: max(0, len(data) - 1 - draw.below(64))]


def _remove(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    begin, end = _span(data, draw)
    return data[:begin] + data[end:]


def _repeat(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    begin, end = _span(data, draw)
    return data[:end] + data[begin:end] * draw.choice((1, 1, 2, 20)) + data[end:]


def _blank(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    begin, end = _span(data, draw)
    return data[:begin] + bytes([draw.choice((0, 255, 32))]) * (end - begin) + data[end:]


def _noise(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    begin, end = _span(data, draw)
    return data[:begin] + draw.bytes(min(end - begin, 4096)) + data[end:]


def _span(data: bytes, draw: Draw) -> tuple[int, int]:
    begin = draw.below(len(data) + 1)
    return begin, min(len(data), begin + draw.choice((1, 2, 4, 16, 100, 1000, len(data))))


def _splice(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    """A piece of another file over, or between, one's own."""
    donor = draw.choice(donors)
    begin, end = _span(donor, draw)
    at = draw.below(len(data) + 1)
    rest = at if draw.chance(0.5) else at + end - begin
    return data[:at] + donor[begin:end] + data[rest:]


def _join(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    """The beginning of this, the end of another."""
    donor = draw.choice(donors)
    return data[: draw.below(len(data) + 1)] + donor[draw.below(len(donor) + 1) :]


def _append(data: bytes, draw: Draw, donors: Sequence[bytes]) -> bytes:
    return data + draw.choice((bytes(draw.below(5000)), draw.choice(donors), draw.bytes(20)))


_BYTES: tuple[Callable[[bytes, Draw, Sequence[bytes]], bytes], ...] = (
    _flip, _flip, _number, _number, _cut, _cut_little, _remove, _repeat, _blank, _noise, _splice,
    _splice, _join, _append,
)  # fmt: skip
