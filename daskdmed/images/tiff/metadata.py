"""What vendors write about a slide: resolution, objective power, properties.

Property names are OpenSlide's where OpenSlide has one. Everything is read while the parser
has the file open and kept as text.

Not covered: where the pixels are (`daskdmed.images.tiff.vendors`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from daskdmed.images.readers import number_text
from daskdmed.images.tiff.vendors import named, xml_root, xmp_texts

_TEXT_TAGS = {
    269: "DocumentName", 270: "ImageDescription", 271: "Make", 272: "Model", 305: "Software",
    306: "DateTime", 315: "Artist", 316: "HostComputer", 33432: "Copyright",
}  # fmt: skip
_NUMBER_TAGS = {282: "XResolution", 283: "YResolution", 286: "XPosition", 287: "YPosition"}
_UNITS = {1: "none", 2: "inch", 3: "centimeter"}
_MICROMETERS = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "μm": 1.0, "nm": 1e-3,
    "pm": 1e-6, "Å": 1e-4, "inch": 25400.0, "in": 25400.0, "ft": 304800.0,
    "micrometer": 1.0, "micron": 1.0, "nanometer": 1e-3, "millimeter": 1e3,
}  # fmt: skip
#: resolution tags outside this are print settings (72 dpi), not a microscope's
_PLAUSIBLE = (0.005, 60.0)
_VENDORS = {
    "svs": "aperio",
    "ndpi": "hamamatsu",
    "philips": "philips",
    "scn": "leica",
    "bif": "ventana",
    "qpi": "qptiff",
    "ome": "ome",
}

#: properties longer than this are pictures in disguise, or OME-XML of thousands of planes
_LONG_VALUE = 2**16

Mpp = tuple[float, float]


@dataclass(slots=True)
class Metadata:
    """Facts about the slide; `mpp` is (x, y) at level 0."""

    vendor: str = "generic-tiff"
    mpp: Mpp | None = None
    power: float | None = None
    properties: dict[str, str] = field(default_factory=dict)


def describe(tif: Any, main: Any) -> Metadata:
    """The metadata of the slide in a file that tifffile has open; `main` is its series."""
    first = tif.pages.first
    about = Metadata(_VENDORS.get(main.kind, "generic-tiff"))
    about.properties.update(tiff_properties(first))
    if main.kind == "svs":
        _aperio(about, _text(first.description))
    elif main.kind == "ndpi":
        _hamamatsu(about, first)
    elif main.kind == "philips":
        _philips(about, tif.philips_metadata or "")
    elif main.kind == "scn":
        _leica(about, _text(first.description), main.keyframe)
    elif main.kind == "bif":
        _ventana(about, tif)
    elif main.kind == "qpi":
        _qptiff(about, _text(first.description))
    elif main.kind == "ome":
        _ome(about, tif.ome_metadata or "", main)
    if about.mpp is None:
        about.mpp = resolution_mpp(main.keyframe, (tif.imagej_metadata or {}).get("unit"))
    return about


def tiff_properties(page: Any) -> dict[str, str]:
    """Properties under ``tiff.`` and the comment."""
    found: dict[str, str] = {}
    for code, name in _TEXT_TAGS.items():
        value = page.tags.valueof(code)
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        if isinstance(value, str) and 0 < len(value) < _LONG_VALUE:
            found[f"tiff.{name}"] = value
    for code, name in _NUMBER_TAGS.items():
        number = _ratio(page.tags.valueof(code))
        if number is not None:
            found[f"tiff.{name}"] = number_text(number)
    found["tiff.ResolutionUnit"] = _UNITS.get(int(page.tags.valueof(296, 2)), "unknown")
    if "tiff.ImageDescription" in found:
        found["openslide.comment"] = found["tiff.ImageDescription"]
    return found


def _ratio(value: Any) -> float | None:
    if isinstance(value, tuple) and len(value) == 2:
        return value[0] / value[1] if value[1] else None
    return float(value) if isinstance(value, int | float) else None


def resolution_mpp(page: Any, imagej_unit: object = None) -> Mpp | None:
    """(x, y) micrometers per pixel from the resolution tags, None when implausible.

    ImageJ writes the unit of its tags into the description instead.
    """
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, 2)))
    if imagej_unit:
        name = str(imagej_unit).replace("\\u00B5", "µ")
        unit = _MICROMETERS.get(name) or _MICROMETERS.get(name.lower())
    x, y = (_ratio(page.tags.valueof(code)) for code in (282, 283))
    if unit is None or not x or not y:
        return None
    return plausible(unit / x, unit / y)


def plausible(x: float | None, y: float | None) -> Mpp | None:
    """The pair, when both are finite and of a microscope's magnitude."""
    if x is None or y is None:
        return None
    low, high = _PLAUSIBLE
    return (x, y) if low <= x <= high and low <= y <= high else None


def _float(text: Any) -> float | None:
    try:  # some scanners write the comma of their country
        value = float(text.replace(",", ".") if isinstance(text, str) else text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _aperio(about: Metadata, description: str) -> None:
    for part in description.split("|")[1:]:
        key, sep, value = part.partition("=")
        if sep:
            about.properties[f"aperio.{key.strip()}"] = value.strip()
    mpp = _float(about.properties.get("aperio.MPP"))
    about.mpp = (mpp, mpp) if mpp else None
    about.power = _float(about.properties.get("aperio.AppMag"))


def _hamamatsu(about: Metadata, page: Any) -> None:
    names = {
        65422: "XOffsetFromSlideCentre",
        65423: "YOffsetFromSlideCentre",
        65421: "SourceLens",
        65427: "Reference",
        65442: "ScannerSerialNumber",
    }
    for code, name in names.items():
        value = page.tags.valueof(code)
        if value is not None:
            text = value if isinstance(value, str) else number_text(float(value))
            about.properties[f"hamamatsu.{name}"] = text
    for line in _text(page.tags.valueof(65449)).splitlines():
        key, sep, value = line.partition("=")
        if sep and key.strip():
            about.properties[f"hamamatsu.{key.strip()}"] = value.strip()
    about.power = _float(page.tags.valueof(65421))


def _philips(about: Metadata, text: str) -> None:
    root = xml_root(text)
    if root is None:
        return
    _drop_description(about)
    _philips_attributes(about, root, "philips.")
    for scanned in root.iter("DataObject"):
        kind = scanned.find("Attribute[@Name='PIM_DP_IMAGE_TYPE']")
        if kind is not None and (kind.text or "").strip() == "WSI":
            _philips_attributes(about, scanned, "philips.")
            break
    spacing = re.findall(r"[0-9.eE+-]+", about.properties.get("philips.DICOM_PIXEL_SPACING", ""))
    if len(spacing) == 2:
        # millimetres, DICOM order: between rows, then between columns
        y, x = (_float(v) for v in spacing)
        about.mpp = plausible(x and x * 1000, y and y * 1000)
    about.power = _float(about.properties.get("philips.DICOM_OBJECTIVE_POWER"))


def _drop_description(about: Metadata) -> None:
    """Leave out the vendor's XML, as OpenSlide does; Philips embeds whole pictures in it."""
    for name in ("tiff.ImageDescription", "openslide.comment"):
        about.properties.pop(name, None)


def _philips_attributes(about: Metadata, parent: Any, prefix: str) -> None:
    """Values of a data object, and of the data objects in its arrays."""
    for attribute in parent.findall("Attribute"):
        name, value = attribute.attrib.get("Name", ""), (attribute.text or "").strip()
        children = attribute.findall("Array/DataObject")
        if children and name != "PIM_DP_SCANNED_IMAGES":
            for number, child in enumerate(children):
                _philips_attributes(about, child, f"{prefix}{name}[{number}].")
        elif name and value and len(value) < _LONG_VALUE:
            about.properties[prefix + name] = value


def _leica(about: Metadata, text: str, page: Any) -> None:
    root = xml_root(text)
    if root is None:
        return
    _drop_description(about)
    for image in named(root, "image"):
        pixels = next(named(image, "pixels"), None)
        if pixels is None or _float(pixels.attrib.get("sizeX")) != page.imagewidth:
            continue
        for view in named(image, "view"):
            x = _spacing(view.attrib.get("sizeX"), page.imagewidth)
            y = _spacing(view.attrib.get("sizeY"), page.imagelength)
            about.mpp = plausible(x, y)
        device = next(named(image, "device"), None)
        if device is not None:
            for key, value in device.attrib.items():
                about.properties[f"leica.device-{key}"] = value
        for tag, name in (
            ("objective", "objective"),
            ("numericalAperture", "aperture"),
            ("illuminationSource", "illumination-source"),
            ("creationDate", "creation-date"),
        ):
            element = next(named(image, tag), None)
            if element is not None and element.text:
                about.properties[f"leica.{name}"] = element.text.strip()
        about.power = _float(about.properties.get("leica.objective"))
        return


def _spacing(nanometers: Any, pixels: int) -> float | None:
    size = _float(nanometers)
    return size / 1000 / pixels if size else None


def _ventana(about: Metadata, tif: Any) -> None:
    for text in xmp_texts(tif):
        root = xml_root(text)
        for scan in () if root is None else named(root, "iScan"):
            about.properties |= {f"ventana.{key}": value for key, value in scan.attrib.items()}
            mpp = _float(scan.attrib.get("ScanRes"))
            about.mpp = (mpp, mpp) if mpp else None
            about.power = _float(scan.attrib.get("Magnification"))
            return


def _qptiff(about: Metadata, text: str) -> None:
    for key, value in re.findall(r"<(\w+)>([^<>]{1,256})</\1>", text):
        about.properties.setdefault(f"qptiff.{key}", value.strip())
    objective = re.match(r"\s*([0-9.]+)\s*x?", about.properties.get("qptiff.Objective", ""))
    about.power = _float(objective.group(1)) if objective else None


def _ome(about: Metadata, text: str, main: Any) -> None:
    root = xml_root(text)
    if root is None:
        return
    chosen = root
    for image in named(root, "Image"):
        pixels = next(named(image, "Pixels"), None)
        size = (main.keyframe.imagewidth, main.keyframe.imagelength)
        if pixels is None or tuple(_float(pixels.attrib.get(f"Size{a}")) for a in "XY") != size:
            continue
        chosen = image
        x, y = (_physical(pixels.attrib, axis) for axis in "XY")
        about.mpp = plausible(x, y)
        for key in ("ID", "Name"):
            if image.attrib.get(key):
                about.properties[f"ome.Image.{key}"] = image.attrib[key]
        for number, channel in enumerate(named(pixels, "Channel")):
            if channel.attrib.get("Name"):
                about.properties[f"ome.Channel[{number}].Name"] = channel.attrib["Name"]
        break
    powers = {
        o.attrib.get("ID"): _float(o.attrib.get("NominalMagnification"))
        for o in named(root, "Objective")
    }
    used = next((e.attrib.get("ID") for e in named(chosen, "ObjectiveSettings")), None)
    possible = {powers[used]} if used in powers else set(powers.values())
    if len(possible) == 1:  # of a scanner with several objectives the image must say which
        (about.power,) = possible


def ome_spacing(tif: Any) -> dict[tuple[int, int], float]:
    """(width, height) of the images of OME-XML -> micrometres per pixel, where it is told."""
    root = xml_root(tif.ome_metadata or "") if tif.is_ome else None
    found: dict[tuple[int, int], float] = {}
    for pixels in [] if root is None else named(root, "Pixels"):
        width, height = (_float(pixels.attrib.get(f"Size{a}")) for a in "XY")
        size = _physical(pixels.attrib, "X")
        if width and height and size:
            extent = int(width), int(height)
            found[extent] = min(size, found.get(extent, size))
    return found


def _physical(attributes: Any, axis: str) -> float | None:
    size = _float(attributes.get(f"PhysicalSize{axis}"))
    unit = _MICROMETERS.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
    return size * unit if size and unit else None
