"""What vendors write about a slide: resolution, objective power, properties.

Property names are OpenSlide's where OpenSlide has one. Everything is read while the parser
has the file open and kept as text.

Not covered: where the pixels are (`daskdmed.images.tiff.vendors`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from daskdmed.core.resolution import micrometers_per
from daskdmed.images.readers import number_text
from daskdmed.images.tiff.series import arranged
from daskdmed.images.tiff.vendors import named, xml_root, xmp_texts

_TEXT_TAGS = {
    269: "DocumentName", 270: "ImageDescription", 271: "Make", 272: "Model", 305: "Software",
    306: "DateTime", 315: "Artist", 316: "HostComputer", 33432: "Copyright",
}  # fmt: skip
_NUMBER_TAGS = {282: "XResolution", 283: "YResolution", 286: "XPosition", 287: "YPosition"}
_HAMAMATSU_TAGS = {
    65421: "SourceLens", 65422: "XOffsetFromSlideCentre", 65423: "YOffsetFromSlideCentre",
    65427: "Reference", 65442: "ScannerSerialNumber",
}  # fmt: skip
_LEICA_TAGS = {
    "objective": "objective",
    "numericalAperture": "aperture",
    "illuminationSource": "illumination-source",
    "creationDate": "creation-date",
}
_UNITS = {1: "none", 2: "inch", 3: "centimeter"}
#: resolution tags outside this are print settings (72 dpi), not a microscope's
_PLAUSIBLE = (0.005, 60.0)
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
    vendor, read = _READERS.get(main.kind, ("generic-tiff", None))
    about = Metadata(vendor, properties=tiff_properties(tif.pages.first))
    if read is not None:
        read(about, tif, main)
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
    x, y = (size_from_tags(page, axis, imagej_unit) for axis in "XY")
    return plausible(x, y)


def size_from_tags(page: Any, axis: str, imagej_unit: object = None) -> float | None:
    """Micrometers per pixel along "X" or "Y" from the resolution tags."""
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, 2)))
    if imagej_unit:
        unit = size_of(1, imagej_unit)
    per_unit = _ratio(page.tags.valueof({"X": 282, "Y": 283}[axis]))
    return unit / per_unit if unit and per_unit else None


def size_of(value: object, imagej_unit: object) -> float | None:
    """Micrometers of a length in a unit as ImageJ writes it, None where one of both is none."""
    unit = micrometers_per(str(imagej_unit or "").replace("\\u00B5", "µ"))
    if unit is None or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value * unit


def plausible(x: float | None, y: float | None) -> Mpp | None:
    """The pair, when both are finite and of a microscope's magnitude."""
    if x is None or y is None:
        return None
    low, high = _PLAUSIBLE
    return (x, y) if low <= x <= high and low <= y <= high else None


def as_float(text: Any) -> float | None:
    """A positive number, None where it is none."""
    try:  # some scanners write the comma of their country
        value = float(text.replace(",", ".") if isinstance(text, str) else text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def as_text(value: Any) -> str:
    """A text, "" where it is none."""
    return value if isinstance(value, str) else ""


def _entries(prefix: str, parts: Iterable[str]) -> dict[str, str]:
    """Properties of lines "key = value"."""
    pairs = (part.partition("=") for part in parts)
    return {f"{prefix}.{k.strip()}": v.strip() for k, sep, v in pairs if sep and k.strip()}


def _aperio(about: Metadata, tif: Any, main: Any) -> None:
    about.properties |= _entries("aperio", as_text(tif.pages.first.description).split("|")[1:])
    mpp = as_float(about.properties.get("aperio.MPP"))
    about.mpp = (mpp, mpp) if mpp else None
    about.power = as_float(about.properties.get("aperio.AppMag"))


def _hamamatsu(about: Metadata, tif: Any, main: Any) -> None:
    valueof = tif.pages.first.tags.valueof
    for code, name in _HAMAMATSU_TAGS.items():
        value = valueof(code)
        if value is not None:
            text = value if isinstance(value, str) else number_text(float(value))
            about.properties[f"hamamatsu.{name}"] = text
    about.properties |= _entries("hamamatsu", as_text(valueof(65449)).splitlines())
    about.power = as_float(valueof(65421))


def _drop_description(about: Metadata) -> None:
    """Leave out the vendor's XML, as OpenSlide does; Philips embeds whole pictures in it."""
    for name in ("tiff.ImageDescription", "openslide.comment"):
        about.properties.pop(name, None)


def _philips(about: Metadata, tif: Any, main: Any) -> None:
    root = xml_root(tif.philips_metadata or "")
    if root is None:
        return
    _drop_description(about)
    _philips_attributes(about, root, "philips.")
    for scanned in root.iter("DataObject"):
        if (scanned.findtext("Attribute[@Name='PIM_DP_IMAGE_TYPE']") or "").strip() == "WSI":
            _philips_attributes(about, scanned, "philips.")
            break
    spacing = re.findall(r"[0-9.eE+-]+", about.properties.get("philips.DICOM_PIXEL_SPACING", ""))
    if len(spacing) == 2:
        # millimetres, DICOM order: between rows, then between columns
        y, x = (as_float(v) for v in spacing)
        about.mpp = plausible(x and x * 1000, y and y * 1000)
    about.power = as_float(about.properties.get("philips.DICOM_OBJECTIVE_POWER"))


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


def _leica(about: Metadata, tif: Any, main: Any) -> None:
    root = xml_root(as_text(tif.pages.first.description))
    if root is None:
        return
    _drop_description(about)
    width, height = main.keyframe.imagewidth, main.keyframe.imagelength
    for image in named(root, "image"):
        pixels = image.find(".//{*}pixels")
        if pixels is None or as_float(pixels.attrib.get("sizeX")) != width:
            continue
        for view in named(image, "view"):  # in nanometres
            x, y = (as_float(view.attrib.get(f"size{axis}")) for axis in "XY")
            about.mpp = plausible(x and x / 1000 / width, y and y / 1000 / height)
        for device in image.findall(".//{*}device")[:1]:
            about.properties |= {f"leica.device-{k}": v for k, v in device.attrib.items()}
        for tag, name in _LEICA_TAGS.items():
            text = (image.findtext(f".//{{*}}{tag}") or "").strip()
            if text:
                about.properties[f"leica.{name}"] = text
        about.power = as_float(about.properties.get("leica.objective"))
        return


def _ventana(about: Metadata, tif: Any, main: Any) -> None:
    for text in xmp_texts(tif):
        root = xml_root(text)
        for scan in () if root is None else named(root, "iScan"):
            about.properties |= {f"ventana.{key}": value for key, value in scan.attrib.items()}
            mpp = as_float(scan.attrib.get("ScanRes"))
            about.mpp = (mpp, mpp) if mpp else None
            about.power = as_float(scan.attrib.get("Magnification"))
            return


def _qptiff(about: Metadata, tif: Any, main: Any) -> None:
    text = as_text(tif.pages.first.description)
    for key, value in re.findall(r"<(\w+)>([^<>]{1,256})</\1>", text):
        about.properties.setdefault(f"qptiff.{key}", value.strip())
    objective = re.match(r"\s*([0-9.]+)\s*x?", about.properties.get("qptiff.Objective", ""))
    about.power = as_float(objective.group(1)) if objective else None


def _ome(about: Metadata, tif: Any, main: Any) -> None:
    root = xml_root(tif.ome_metadata or "")
    if root is None:
        return
    chosen = ome_image(tif, main)
    if chosen is not None:
        pixels = chosen.find("{*}Pixels")
        about.mpp = plausible(*(physical_size(pixels.attrib, axis) for axis in "XY"))
        found = [(f"Image.{key}", chosen.attrib.get(key)) for key in ("ID", "Name")]
        for number, channel in enumerate(named(pixels, "Channel")):
            found.append((f"Channel[{number}].Name", channel.attrib.get("Name")))
        about.properties |= {f"ome.{name}": value for name, value in found if value}
    else:
        chosen = root
    powers = {
        o.attrib.get("ID"): as_float(o.attrib.get("NominalMagnification"))
        for o in named(root, "Objective")
    }
    used = next((e.attrib.get("ID") for e in named(chosen, "ObjectiveSettings")), None)
    possible = {powers[used]} if used in powers else set(powers.values())
    if len(possible) == 1:  # of a scanner with several objectives the image must say which
        (about.power,) = possible


def ome_image(tif: Any, main: Any) -> Any | None:
    """The element of OME-XML that describes a series: of its number, else the first of its size."""
    root = xml_root(tif.ome_metadata or "")
    images = [] if root is None else root.findall("{*}Image")
    size = main.keyframe.imagewidth, main.keyframe.imagelength

    def fits(image: Any) -> bool:
        pixels = image.find("{*}Pixels")
        sides = () if pixels is None else (as_float(pixels.attrib.get(f"Size{a}")) for a in "XY")
        return tuple(sides) == size

    series = arranged(tif)
    if main in series and len(series) == len(images) and fits(images[series.index(main)]):
        return images[series.index(main)]
    return next(filter(fits, images), None)


#: tifffile's name of an arrangement -> vendor, and who reads its metadata
_READERS: dict[str, tuple[str, Callable[[Metadata, Any, Any], None]]] = {
    "svs": ("aperio", _aperio),
    "ndpi": ("hamamatsu", _hamamatsu),
    "philips": ("philips", _philips),
    "scn": ("leica", _leica),
    "bif": ("ventana", _ventana),
    "qpi": ("qptiff", _qptiff),
    "ome": ("ome", _ome),
}


def ome_spacing(tif: Any) -> dict[tuple[int, int], float]:
    """(width, height) of the images of OME-XML -> micrometres per pixel, where it is told."""
    root = xml_root(tif.ome_metadata or "") if tif.is_ome else None
    found: dict[tuple[int, int], float] = {}
    for pixels in [] if root is None else named(root, "Pixels"):
        width, height = (as_float(pixels.attrib.get(f"Size{a}")) for a in "XY")
        size = physical_size(pixels.attrib, "X")
        if width and height and size:
            extent = int(width), int(height)
            found[extent] = min(size, found.get(extent, size))
    return found


def physical_size(attributes: Any, axis: str) -> float | None:
    """Micrometers per pixel along "X", "Y" or "Z" that OME's Pixels say, None where they do not."""
    size = as_float(attributes.get(f"PhysicalSize{axis}"))
    unit = micrometers_per(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
    return size * unit if size and unit else None
