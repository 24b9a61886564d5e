"""Big chunks, small chunks, and the classes that a script derives its own from.

Not covered: how and when they are called (`daskdmed.compat.pydmed._calls`).
"""

from __future__ import annotations

import logging
import warnings
from typing import Any, TypeAlias

from daskdmed.compat.pydmed.utils.data import Patient

_log = logging.getLogger("daskdmed.compat.pydmed")
Info: TypeAlias = dict[str, Any]


def _data_of(data: Any, given: Info, name: str) -> Any:
    """`data`, also of those who write ``ata=`` as PyDmed's tutorial did."""
    if "ata" in given and data is None:
        warnings.warn(f"{name}(ata=...): write data=", DeprecationWarning, stacklevel=3)
        data = given.pop("ata")
    if given:
        raise TypeError(f"{name}() got an unexpected keyword argument {next(iter(given))!r}")
    return data


class BigChunk:
    """What a loader makes: data, what is known of it, and whose it is."""

    def __init__(
        self,
        data: Any = None,
        dict_info_of_bigchunk: Info | None = None,
        patient: Patient | None = None,
        **given: Any,
    ) -> None:
        self.data = _data_of(data, given, "BigChunk")
        self.dict_info_of_bigchunk = dict_info_of_bigchunk
        self.patient = patient

    def __repr__(self) -> str:
        return _told(self)

    def _repr_html_(self) -> str:
        from daskdmed.compat.pydmed._html import bigchunk_html

        return bigchunk_html(self)


class SmallChunk:
    """What a collector makes: data, what is known of it and of its big chunk, and whose it is."""

    def __init__(
        self,
        data: Any = None,
        dict_info_of_smallchunk: Info | None = None,
        dict_info_of_bigchunk: Info | None = None,
        patient: Patient | None = None,
        **given: Any,
    ) -> None:
        self.data = _data_of(data, given, "SmallChunk")
        self.dict_info_of_smallchunk = dict_info_of_smallchunk
        self.dict_info_of_bigchunk = dict_info_of_bigchunk
        self.patient = patient

    def __repr__(self) -> str:
        return _told(self)

    def _repr_html_(self) -> str:
        from daskdmed.compat.pydmed._html import smallchunk_html

        return smallchunk_html(self)


def _told(chunk: BigChunk | SmallChunk) -> str:
    """A chunk without its pixels."""
    data, shape = chunk.data, getattr(chunk.data, "shape", None)
    what = type(data).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
    whose = f"patient {getattr(chunk.patient, 'int_uniqueid', None)!r}"
    return f"<{type(chunk).__name__} of {whose}: {what}>"


class _Hook:
    """What loaders and collectors have in common."""

    def __init__(self, patient: Patient, const_global_info: Info | None) -> None:
        self.patient = patient
        self.const_global_info = const_global_info
        #: the dataloader, and visits of the patient that come before
        self._owner: Any = None
        self._visits = 0

    def log(self, str_input: str) -> None:
        """Write to the log of the dataloader."""
        if self._owner is None:
            _log.info("%s", str_input)
        else:
            self._owner.log(str_input)


class BigChunkLoader(_Hook):
    """Loads one big chunk of `patient`: override `extract_bigchunk`.

    Arguments are PyDmed's; those of its queues mean nothing here.
    """

    def __init__(
        self,
        patient: Patient,
        queue_bigchunk: Any = None,
        const_global_info: Info | None = None,
        queue_logs: Any = None,
        old_checkpoint: Any = None,
        last_message_from_root: Any = None,
    ) -> None:
        super().__init__(patient, const_global_info)
        self._old_checkpoint = old_checkpoint

    def extract_bigchunk(self, last_message_fromroot: Any) -> Any:
        """Load a big chunk: a `BigChunk`, a list of them, or any object that the collector knows.

        `last_message_fromroot` is the last message sent to the patient since then, or None.
        """
        raise NotImplementedError(f"{type(self).__name__} has no extract_bigchunk")

    def get_checkpoint(self) -> Any:
        """What the last collector of this patient left, None at first; waits until it is done."""
        if self._owner is None:
            return self._old_checkpoint
        return self._owner.book.checkpoint(self.patient, self._visits)


class SmallChunkCollector(_Hook):
    """Collects small chunks from one big chunk: override `extract_smallchunk`.

    Arguments are PyDmed's; those of its queues mean nothing here.
    """

    def __init__(
        self,
        patient: Patient,
        queue_smallchunks: Any = None,
        const_global_info: Info | None = None,
        type_bigchunkloader: Any = None,
        queue_logs: Any = None,
        old_checkpoint: Any = None,
        queue_checkpoint: Any = None,
        last_message_from_root: Any = None,
    ) -> None:
        super().__init__(patient, const_global_info)
        self._checkpoint = old_checkpoint
        #: what the loader made
        self.bigchunk: Any = None

    def extract_smallchunk(self, call_count: int, bigchunk: Any, last_message_fromroot: Any) -> Any:
        """Make a `SmallChunk` of what the loader made, or None when there are no more.

        `call_count` is 0 for the first of a big chunk. A method that takes ``(self, bigchunk,
        last_message_fromroot)`` is called so. The message is the one that the loader was given.
        """
        raise NotImplementedError(f"{type(self).__name__} has no extract_smallchunk")

    def get_checkpoint(self) -> Any:
        """What was set last for this patient, by whichever collector; None at first."""
        if self._owner is None:
            return self._checkpoint
        return self._owner.book.checkpoint(self.patient)

    def set_checkpoint(self, checkpoint: Any) -> None:
        """Leave an object for the patient's collectors and loaders to come."""
        self._checkpoint = checkpoint
        if self._owner is not None:
            self._owner.book.set_checkpoint(self.patient, checkpoint)

    def get_status(self) -> Any:
        """What `set_status` said last of the patient."""
        return None if self._owner is None else self._owner.book.status(self.patient)

    def set_status(self, status: Any) -> None:
        """Say something about the patient that `LightDL.schedule` may ask for."""
        if self._owner is not None:
            self._owner.book.set_status(self.patient, status)

    def get_flag_bigchunkloader_terminated(self) -> bool:
        """True: the big chunk is there before a small chunk is asked for."""
        return True
