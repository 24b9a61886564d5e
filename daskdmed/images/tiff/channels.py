"""What vendors write about the channels of a TIFF image: names, colours, wavelengths.

Not covered: which pages are channels (`daskdmed.images.tiff.stack`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from daskdmed.core.resolution import micrometers_per
from daskdmed.images.protocols import ChannelInfo
from daskdmed.images.tiff.metadata import as_float, as_text, ome_image
from daskdmed.images.tiff.vendors import named, xml_root

#: TIFF tag of profiles of the International Color Consortium
ICC_PROFILE = 34675
_PALETTE = 3


def describe(tif: Any, main: Any, count: int) -> tuple[ChannelInfo, ...]:
    """One per channel of the series `main`; () where the file says nothing of them, or of another
    number of channels than the `count` that are read."""
    read = _READERS.get(main.kind)
    found = () if read is None else tuple(read(tif, main))
    return found if len(found) == count and any(any(c.facts) for c in found) else ()


def holds_labels(main: Any) -> bool:
    """Whether values are numbers of a palette or of one bit, not intensities.

    Of OME-TIFF a palette is a channel's lookup table, as Bio-Formats writes it.
    """
    key = main.keyframe
    palette = int(key.photometric) == _PALETTE and main.kind != "ome"
    return bool(key.samplesperpixel == 1 and (palette or key.bitspersample == 1))


def profile_place(main: Any) -> tuple[int, int] | None:
    """Offset and size in the file of the colour profile of a series."""
    tag = main.keyframe.tags.get(ICC_PROFILE)
    return None if tag is None else (int(tag.valueoffset), int(tag.count))


def _ome(tif: Any, main: Any) -> Iterable[ChannelInfo]:
    image = ome_image(tif, main)
    for channel in () if image is None else named(image, "Channel"):
        said = channel.attrib
        yield ChannelInfo(
            said.get("Name", "").strip(),
            _rgba_digits(said.get("Color", "")),
            _nanometers(said, "EmissionWavelength"),
            _nanometers(said, "ExcitationWavelength"),
        )


def _rgba_digits(text: str) -> str:
    """Colour of OME: red, green, blue and opacity as one signed number of 32 bits."""
    return f"{int(text) & 0xFFFFFFFF:08X}"[:6] if re.fullmatch(r"[+-]?\d{1,10}", text) else ""


def _nanometers(attributes: Any, name: str) -> float | None:
    value, unit = as_float(attributes.get(name)), attributes.get(f"{name}Unit", "nm")
    factor = micrometers_per(unit)
    return round(value * factor * 1000, 6) if value and factor else None


def _qptiff(tif: Any, main: Any) -> Iterable[ChannelInfo]:
    """Every page describes its channel; the scan's bands stand with the first one."""
    roots = [xml_root(as_text(page.description)) for page in main.pages]
    bands = [] if roots[0] is None else list(roots[0].iter("ScanBands-i"))
    homes = [_home_wavelength(band) for band in bands] if len(bands) == len(roots) else []
    for number, root in enumerate(roots):
        if root is None:
            yield ChannelInfo()
            continue
        name = (root.findtext("Biomarker") or root.findtext("Name") or "").strip()
        # components that were unmixed are no bands of the scan
        unmixed = (root.findtext("IsUnmixedComponent") or "").strip().lower() == "true"
        home = homes[number] if homes and not unmixed else None
        yield ChannelInfo(name, _decimal_digits(root.findtext("Color") or ""), home)


def _home_wavelength(band: Any) -> float | None:
    """Of the band of the emission filter that a scan used."""
    index = (band.findtext("ExcitedFilterPair/BandIndex") or "").strip()
    filters = band.findall(".//EmissionFilter/Bands/Bands-i")
    known = index.isdecimal() and int(index) < len(filters)
    return as_float(filters[int(index)].findtext("HomeWavelength")) if known else None


def _decimal_digits(text: str) -> str:
    """Six hexadecimal digits of "0,0,255"."""
    parts = [part.strip() for part in text.split(",")]
    good = len(parts) == 3 and all(p.isdecimal() and int(p) < 256 for p in parts)
    return "".join(f"{int(p):02X}" for p in parts) if good else ""


def _leica(tif: Any, main: Any) -> Iterable[ChannelInfo]:
    root = xml_root(as_text(tif.pages.first.description))
    for image in () if root is None else named(root, "image"):
        settings = image.findall("{*}scanSettings/{*}channelSettings/{*}channel")
        if settings and image.attrib.get("name", "Unknown") == str(main.name):
            for channel in settings:
                name, colour = channel.attrib.get("name", ""), channel.attrib.get("rgb", "")
                yield ChannelInfo(name.strip(), _hex_digits(colour))
            return


def _indica(tif: Any, main: Any) -> Iterable[ChannelInfo]:
    root = xml_root(as_text(tif.pages.first.description))
    for channel in () if root is None else root.iter("channel"):
        yield ChannelInfo(channel.attrib.get("name", "").strip())


def _hex_digits(text: str) -> str:
    digits = text.removeprefix("#").upper()
    return digits if re.fullmatch(r"[0-9A-F]{6}", digits) else ""


#: tifffile's name of an arrangement -> who reads its channels
_READERS: dict[str, Callable[[Any, Any], Iterable[ChannelInfo]]] = {
    "ome": _ome,
    "qpi": _qptiff,
    "scn": _leica,
    "indica": _indica,
}
