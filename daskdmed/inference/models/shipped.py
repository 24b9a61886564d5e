"""A model as a value in Dask graphs: on its device once in every process that calls it.

Not covered: what the model is given (`daskdmed.inference.models.window`).
"""

from __future__ import annotations

import threading
import uuid
from typing import Any

from daskdmed.core.errors import UsageError
from daskdmed.inference.models.window import WindowModel


class Shipped:
    """A model that is placed where it is first asked for.

    Parameters
    ----------
    model : WindowModel
        In evaluation mode.
    placed : WindowModel, optional
        The same on its device, for this process.

    Attributes
    ----------
    name : str
        Unique: of two models that say they are equal, each is itself.
    """

    def __init__(self, model: WindowModel, placed: WindowModel | None = None) -> None:
        self._model, self._placed = model, placed
        self.name = uuid.uuid4().hex
        self._bytes: bytes | None = None
        self._lock = threading.Lock()

    def get(self) -> WindowModel:
        """The model, ready to be called in this process."""
        with self._lock:
            if self._placed is None:
                self._placed = self._model.place()
            return self._placed

    def pack(self) -> None:
        """Serialise the model as it is now, once.

        Raises
        ------
        UsageError
            It cannot be pickled.
        """
        from distributed.protocol import pickle

        try:
            self._bytes = pickle.dumps(self._model.portable())
        except Exception as error:
            raise UsageError(
                f"the model cannot be sent to the workers ({type(error).__name__}: {error}); "
                "make it picklable, or leave client= away to run in this process"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        if self._bytes is not None:
            return _unpacked, (self._bytes,)
        return Shipped, (self._model.portable(),)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "daskdmed.model", self._model.fingerprint


def _unpacked(content: bytes) -> Shipped:
    from distributed.protocol import pickle

    shipped = Shipped(pickle.loads(content))
    shipped._bytes = content
    return shipped
