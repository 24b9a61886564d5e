"""`Told`: objects that say how they were made."""

from __future__ import annotations

import reprlib

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


class Told:
    """Its repr is its name and its public attributes, shortened: those of an object that keeps what
    it was made with under the names of the arguments."""

    def __repr__(self) -> str:
        said = [(n, v) for n, v in vars(self).items() if not n.startswith("_")]
        return f"{type(self).__name__}({', '.join(f'{n}={_short.repr(v)}' for n, v in said)})"
