"""XML of annotations, read safely and in bounded memory; what its formats have in common.

Document type declarations are refused, and with them entities that expand to gigabytes or name
other files. Not covered: what the formats say (`daskdmed.cohort.annotations.asap`,
`.imagescope`, `.ndpa`).
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from daskdmed.cohort.annotations.drafts import DraftError
from daskdmed.core.errors import AnnotationError
from daskdmed.core.extras import extra

#: elements inside elements; the formats have up to seven
_DEPTH = 32


def walk(content: bytes, uri: str, whole: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """The start of every element, and the end of those named `whole`, complete.

    These are dropped afterwards, so that memory does not grow with the document twice.
    """
    defused = extra("defusedxml.ElementTree", "annotations", "annotations in XML need")
    unsafe = extra("defusedxml", "annotations", "annotations in XML need").DefusedXmlException
    where, depth, inside = uri or "annotations", 0, 0
    try:
        for event, element in defused.iterparse(
            io.BytesIO(content), events=("start", "end"), forbid_dtd=True
        ):
            if event == "start":
                depth += 1
                inside += element.tag in whole
                if depth > _DEPTH:
                    raise AnnotationError(
                        f"{where}: the XML is nested more than {_DEPTH} deep, which annotations "
                        "never are",
                        uri=uri,
                    )
                yield event, element
                continue
            depth -= 1
            if element.tag in whole:
                inside -= 1
                yield event, element
            if not inside:
                element.clear()
    except unsafe as error:
        raise AnnotationError(
            f"{where}: the XML holds a document type or entities ({type(error).__name__}), which "
            "annotations never need and attacks do; remove them",
            uri=uri,
        ) from error
    except AnnotationError:
        raise
    except (defused.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"{where}: is not complete XML: {error}; export it again", uri=uri
        ) from error


def root_of(content: bytes, uri: str) -> str:
    """The name of the outermost element."""
    for _, element in walk(content, uri):
        return str(element.tag)
    return ""


def number(text: Any) -> float:
    """Of either decimal sign: programs on a German or Dutch system write commas."""
    written = "" if text is None else str(text).strip()
    single = written.count(",") == 1 and "." not in written
    try:
        return float(written.replace(",", ".") if single else written)
    except ValueError as error:
        raise DraftError(f"a coordinate is not a number: {error}") from None


def attribute(attributes: Mapping[str, str], name: str) -> float:
    """A number that an element says."""
    if name not in attributes:
        raise DraftError(f"a coordinate lacks the attribute {name!r}")
    return number(attributes[name])


def hex_colour(text: str, flaws: list[str]) -> tuple[int, int, int] | None:
    """``#RRGGBB``; what is none is noted."""
    if not text:
        return None
    digits = text.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        flaws.append(f"the colour {text[:40]!r} is not #RRGGBB")
        return None
    return red, green, blue
