"""The backend of CZI (Zeiss) over pylibCZIrw. Needs the extra ``czi``.

What is read:

- the mosaic of all scenes, as OpenSlide shows it, or one scene by ``image=`` (`Slide.images` has
  their names); later tiles cover earlier ones, what is between them is background;
- the levels of the file's pyramid. A scene that has no tiles at a level is shown there as every
  so many-th pixel of a finer one, which is how libCZI fills in;
- RGB of 8 and 16 bits, and gray values of 8 and 16 bits and float32: of these each channel is
  one, with name, colour and wavelengths. Z, time and other dimensions are chosen by ``plane=``;
- label, preview ("macro") and thumbnail; micrometers, objective, and the XML by OpenSlide's names.

Any number of threads read one document: libCZI allows it. Not covered: URLs, files in several
parts, channels of different types, pictures of phase and view together; colour profiles, for which
the format has no place.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from daskdmed.core.errors import CorruptImageError, UnsupportedImageError
from daskdmed.core.extras import extra
from daskdmed.core.places import is_remote
from daskdmed.core.region import Region
from daskdmed.core.types import Array, OnTileError
from daskdmed.images.czi.attachments import Attachment, attachments
from daskdmed.images.czi.facts import Facts
from daskdmed.images.czi.layout import Layout, lay_out
from daskdmed.images.protocols import SlideInfo, SlideOptions
from daskdmed.images.readers import (
    BaseReader,
    Planes,
    check_readable,
    choose_image,
    choose_planes,
    fingerprint_files,
    level_infos,
    level_properties,
    number_text,
)
from daskdmed.images.source import LocalSource

_log = logging.getLogger("daskdmed.images")
_MAGIC = b"ZISRAWFILE"


class CziBackend:
    """Opens CZI."""

    name = "czi"
    priority = 45

    def accepts(self, uri: str) -> bool:
        if not uri or is_remote(uri):
            return False
        try:
            with open(uri, "rb") as file:
                return file.read(len(_MAGIC)) == _MAGIC
        except OSError:
            return False

    def open(self, uri: str) -> CziReader:
        return self.open_slide(uri, SlideOptions())

    def open_slide(self, uri: str, options: SlideOptions) -> CziReader:
        """All scenes, or one of them, in one plane."""
        if is_remote(uri):
            raise UnsupportedImageError.of(uri, "CZI is read from local files; download it first")
        check_readable(uri, uri)
        if not self.accepts(uri):
            raise UnsupportedImageError.of(uri, "it is no CZI by its first bytes")
        return CziReader(uri, options)

    def fingerprint(self, uri: str) -> str:
        return fingerprint_files(uri, [uri])


class CziReader(BaseReader):
    """An open file, or a scene of it. Reads from any number of threads."""

    def __init__(self, uri: str, options: SlideOptions) -> None:
        super().__init__(uri)
        self._lock = threading.Lock()
        self._document: Any = _opened(uri)
        try:
            self._begin(options)
        except BaseException as error:
            self.close()
            if isinstance(error, (RuntimeError, MemoryError)):  # of libCZI
                raise _damaged(uri, error) from error
            raise

    def _begin(self, options: SlideOptions) -> None:
        facts = Facts(self._document.raw_metadata)
        rectangles = self._document.scenes_bounding_rectangle_no_pyramid
        numbers = sorted(rectangles)
        names = facts.scenes(numbers) if len(numbers) > 1 else []
        self._scene: int | None = None
        if options.image:
            areas = [rectangles[n].w * rectangles[n].h for n in numbers]
            known = names or facts.scenes(numbers)
            chosen = choose_image(self._uri, options.image, known, areas, [None] * len(known))
            self._scene = numbers[chosen]
        self._layout = lay_out(self._uri, self._document, self._scene)
        lengths = {
            letter.lower(): count
            for letter, (_, count) in self._layout.dimensions.items()
            if letter != "C"
        }
        self._planes = choose_planes(self._uri, options.plane, lengths, {})
        if self._layout.samples > 1 and self._layout.channels > 1:
            raise UnsupportedImageError.of(
                self._uri, f"{self._layout.channels} channels of RGB are not read; export one"
            )
        source = LocalSource(self._uri)
        try:
            self._attachments = attachments(source)
        finally:
            source.close()
        self.info = _describe(self._layout, facts, self._planes, names, self._attachments)

    def _read(self, level: int, region: Region, out: Array, tile_error: OnTileError) -> None:
        def read(part: Region, target: Array) -> None:
            self._fill(level, part, target)

        try:
            read(region, out)
        except MemoryError:
            raise
        except Exception as error:  # libCZI raises all sorts
            _log.debug("%s, level %d: %r, reading tile by tile", self._uri, level, error)
            self._read_tiles(level, region, out, tile_error, read)

    def _fill(self, level: int, region: Region, out: Array) -> None:
        layout, factor = self._layout, self._layout.factors[level]
        (top, left), (height, width) = region.origin, region.shape
        corner = layout.x + left * factor, layout.y + top * factor
        roi = (*map(int, corner), int(width * factor), int(height * factor))
        place = {
            letter: first + self._planes.at.get(letter.lower(), 0)
            for letter, (first, _) in layout.dimensions.items()
        }
        color = (1.0,) * 3 if layout.samples > 1 else (0.0,) * 3
        begin = layout.dimensions.get("C", (0, 1))[0]
        for channel in range(layout.channels):
            try:
                found = self._document.read(
                    roi=roi,
                    plane={**place, "C": begin + channel},
                    scene=self._scene,
                    zoom=1 / factor,
                    background_pixel=color,
                )
            except MemoryError as error:
                raise ValueError("a block claims a size that no memory holds") from error
            if found.shape != (height, width, layout.samples) or found.dtype != out.dtype:
                raise ValueError(
                    f"libCZI gives {found.shape} {found.dtype} for {region.shape} {out.dtype}"
                )
            if layout.samples > 1:
                out[...] = found[..., ::-1]
            else:
                out[..., channel] = found[..., 0]

    def read_associated(self, name: str) -> Array:
        self._check_open()
        found = self._attachments.get(name)
        if found is None:
            raise self._no_associated(name)
        source = LocalSource(self._uri)
        try:
            data = source.read(found.offset, found.size)
        finally:
            source.close()
        try:
            picture = _embedded(data) if found.kind == "CZI" else imagecodecs.jpeg8_decode(data)
        except Exception as error:
            raise CorruptImageError.of(
                self._uri, f"associated image {name!r} cannot be decoded: {error}"
            ) from error
        picture = np.asarray(picture)
        return picture if picture.ndim == 3 else picture[..., None]

    def close(self) -> None:
        with self._lock:
            document, self._document, self._closed = self._document, None, True
        if document is not None:
            document.close()


def _opened(uri: str) -> Any:
    module = extra("pylibCZIrw.czi", "czi", "CZI files need")
    try:
        return module.CziReader(uri)
    except Exception as error:
        raise _damaged(uri, error) from error


def _damaged(uri: str, error: BaseException) -> CorruptImageError:
    return CorruptImageError.of(
        uri, f"libCZI cannot open it: {error}; the file is truncated or damaged, copy it again"
    )


def _embedded(data: bytes) -> Array:
    """A whole CZI within the file: libCZI reads files only."""
    with tempfile.TemporaryDirectory(prefix="daskdmed-") as folder:
        path = Path(folder, "label.czi")
        path.write_bytes(data)
        reader = CziReader(str(path), SlideOptions())
        try:
            return reader.read(0, Region.of(reader.info.levels[0].shape[:2]))
        finally:
            reader.close()


def _describe(
    layout: Layout,
    facts: Facts,
    planes: Planes,
    scenes: list[str],
    beside: dict[str, Attachment],
) -> SlideInfo:
    given = layout.samples if layout.samples > 1 else layout.channels
    sizes = layout.sizes()
    levels = level_infos(
        [(*size, given) for size in sizes],
        [(min(layout.tile[0], h), min(layout.tile[1], w)) for h, w in sizes],
    )
    properties = {**facts.properties(), **level_properties(levels), "openslide.vendor": "zeiss"}
    mpp, power = facts.mpp, facts.power
    if mpp is not None:
        properties["openslide.mpp-x"], properties["openslide.mpp-y"] = map(number_text, mpp)
    if power is not None:
        properties["openslide.objective-power"] = number_text(power)
    white = int(np.iinfo(layout.dtype).max) if layout.samples > 1 else 0
    return SlideInfo(
        levels=levels,
        dtype=layout.dtype,
        background=(white,) * given,
        mpp=mpp,
        power=power,
        vendor="zeiss",
        properties=dict(sorted(properties.items())),
        associated=tuple(beside),
        images=tuple(scenes),
        channels=facts.channels(layout.channels) if layout.samples == 1 else (),
        planes=planes.names,
        plane=planes.name,
    )
