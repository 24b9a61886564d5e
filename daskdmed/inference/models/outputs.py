"""What a model returned, as one array of real numbers: which of several outputs, and its type.

Not covered: which shapes are values or maps of windows (`daskdmed.inference.models.values`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from daskdmed.core.errors import UsageError
from daskdmed.core.types import Array

#: which output of several: its position, or its key or name
Output: TypeAlias = int | str
#: bad windows that a message names
_SHOWN = 3


def check_output(output: Any) -> None:
    """Refuse what names no output."""
    if output is not None and (isinstance(output, bool) or not isinstance(output, (int, str))):
        raise UsageError(
            f"output= names one of several outputs of a model, by position or key, got {output!r}"
        )


def several(result: Any) -> dict[Output, Any] | None:
    """The outputs by position, or by key or name; None where there is one array."""
    if isinstance(result, np.ndarray) or hasattr(result, "detach"):  # nearly always
        return None
    if isinstance(result, Mapping):
        return dict(result)
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return dict(zip(result._fields, result, strict=True))
    if isinstance(result, (tuple, list)):
        return dict(enumerate(result))
    return None


def picked(result: Any, output: Output | None) -> Any:
    """The output that is meant, of what a model returned.

    A position also picks from outputs that have names, as those of transformers allow it.

    Raises
    ------
    UsageError
        There are several and none is named, or none by that name; says what there is.
    """
    outputs = several(result)
    if outputs is None:
        if output is None:
            return result
        if isinstance(output, str) and not hasattr(result, "dtype") and hasattr(result, output):
            return getattr(result, output)
        raise UsageError(
            f"output={output!r} picks one of several outputs; the model returned one "
            f"{_kind(result)}: leave output= away"
        )
    if output in outputs:
        return outputs[output]
    values = list(outputs.values())
    if isinstance(output, int) and -len(values) <= output < len(values):
        return values[output]
    shown = ", ".join(f"{name!r}: {_kind(value)}" for name, value in list(outputs.items())[:10])
    first = next(iter(outputs), 0)
    raise UsageError(
        f"the model returned a {type(result).__name__} of {len(outputs)} ({shown}), where one "
        "array is needed: "
        + ("" if output is None else f"it has no output {output!r}; ")
        + f"name one, for example output={first!r}, or wrap the model in a function (or module) "
        "that picks the output"
    )


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def one_output(result: Any, n: int, output: Output | None = None) -> Any:
    """The output that is meant; also a list of one plain value for each of `n` windows.

    Lists of arrays are several outputs, even if there are as many as windows.
    """
    each = output is None and isinstance(result, list) and len(result) == n
    if each and all(np.ndim(value) == 0 for value in result):
        return result
    found = picked(result, output)
    if (outputs := several(found)) is None:
        return found
    raise UsageError(
        f"output={output!r} of the model is a {type(found).__name__} of {len(outputs)}, where one "
        "array is needed: wrap the model in a function (or module) that picks the output"
    )


def as_numbers(result: Any, n: int, output: Output | None = None, *, module: bool) -> Array:
    """A model's output as one array of real numbers on the CPU, at least 32 bits wide.

    UsageError where there are several outputs (a module's lists are that), or no real numbers.
    """
    result = picked(result, output) if module and output is None else one_output(result, n, output)
    if hasattr(result, "detach"):
        result = result.detach()
        if result.is_complex():
            raise UsageError(_no_reals(result, result.dtype))
        if not result.is_floating_point() or result.element_size() < 4:
            result = result.float()
        result = result.cpu()
    try:
        values = np.asarray(result)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{_no_reals(result, 'unknown')} ({error})") from error
    if values.dtype.kind not in "fiub":
        raise UsageError(_no_reals(result, values.dtype))
    return values if values.dtype != np.float16 else values.astype(np.float32)


def _no_reals(result: Any, dtype: Any) -> str:
    remedy = "; take its abs(), real or angle() within the model" if "complex" in str(dtype) else ""
    return (
        f"the model returned {type(result).__name__} of dtype {dtype}, where real numbers are "
        f"needed{remedy}"
    )


def window_name(window: Iterable[int], origin: Iterable[int]) -> str:
    """A window by its number along each axis and its first pixel, for `check_finite`."""
    return f"{tuple(window)} at pixel {tuple(origin)}"


def check_finite(values: Array, where: Callable[[int], str]) -> None:
    """Refuse values (n, ...) that are NaN or infinite; `where` names a window of the batch."""
    good = np.isfinite(values)
    if good.all():
        return
    windows = np.flatnonzero(~good.reshape(len(values), -1).all(axis=1)).tolist()
    shown = ", ".join(where(i) for i in windows[:_SHOWN]) + (", ..." * (len(windows) > _SHOWN))
    raise UsageError(
        f"the model returned {int((~good).sum())} of {values.size} values that are NaN or "
        f"infinite, for {len(windows)} of {len(values)} windows ({shown}); blending would spread "
        "them over their neighbours, and NaN means 'not computed' in a result: use float32 or "
        "bfloat16 instead of half precision, or replace them within the model (nan_to_num)"
    )
