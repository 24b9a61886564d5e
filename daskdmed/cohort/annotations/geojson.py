"""GeoJSON, of QuPath foremost: what it says about each object, and writing it.

Read: a FeatureCollection, a list of features, one feature or one bare geometry; all
geometry types of RFC 7946; classifications as text, as ``{"name", "color"}`` with
``[r, g, b]``, as ``{"name", "colorRGB"}`` with a packed integer (QuPath 0.2 and 0.3), or as
``{"names": [...]}``, joined with ": " as QuPath shows them; objects inside objects
(``childObjects``), which come after, and paint over, the one that holds them. What QuPath before
0.4 wrote otherwise, kinds as ids and measurements as lists, becomes what it writes since. Where
no object has a classification and none says that QuPath wrote it (``objectType``), the class is
the property ``type``, as TIAToolbox and LazySlide write it. The nucleus of a cell
(``nucleusGeometry``) is not read. Not covered: reading files, checking and repairing
(`daskdmed.cohort.annotations.reading`, `.drafts`).
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from daskdmed.cohort.annotations.annotation import LARGEST_COORDINATE
from daskdmed.cohort.annotations.drafts import (
    Draft,
    DraftError,
    Parsed,
    check_class_property,
    class_name,
    label_at,
    offset_of,
    positions,
    ring,
)
from daskdmed.cohort.annotations.shapes import require_shapely
from daskdmed.core.errors import AnnotationError
from daskdmed.core.files import new_file
from daskdmed.core.frozen import plain
from daskdmed.core.types import PathLike

if TYPE_CHECKING:
    from daskdmed.cohort.annotations.annotation import Annotation
    from daskdmed.cohort.annotations.table import Annotations

#: geometry collections inside geometry collections
_DEPTH = 16
_GEOMETRIES = frozenset(
    {"Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon"}
    | {"GeometryCollection"}
)
#: how integers begin that may have more than 64 bits, when all digits are zeros
_LONG, _AS_ZEROS = b"0" * 19, bytes.maketrans(b"123456789", b"0" * 9)
#: what QuPath 0.2 wrote as the id of every object, and the kind that it means
_KINDS = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
#: properties that have a field of their own
_OWN = frozenset({"classification", "name", "color", "objectType", "object_type", "childObjects"})


def parse_geojson(content: bytes, uri: str, class_property: str | None) -> Parsed:
    """Objects of a GeoJSON document."""
    try:
        document = _parsed(content)
    except RecursionError:
        raise AnnotationError(
            f"{uri or 'annotations'}: the JSON is nested too deep to be GeoJSON", uri=uri
        ) from None
    except ValueError as error:
        raise AnnotationError(
            f"{uri or 'annotations'}: is not complete JSON: {error}; export it again", uri=uri
        ) from error
    features = list(_features(document, uri))
    told = [
        p for f in features if isinstance(f, dict) and isinstance(p := f.get("properties"), dict)
    ]
    if class_property is not None:
        check_class_property(class_property, told, uri)
    elif _says_type(told):
        class_property = "type"
    return Parsed(
        features, lambda feature, shape: _draft(feature, shape, class_property), _shapes(features)
    )


def _says_type(told: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the class is the property ``type``, and can be nothing else."""
    types = [p["type"] for p in told if "type" in p]
    return (
        bool(types)
        and not any(p.get("classification") or "objectType" in p for p in told)
        and all(isinstance(t, str | int | float) for t in types)
        and not _GEOMETRIES.issuperset(types)
    )


def _parsed(content: bytes) -> Any:
    """JSON by orjson where it is installed, twice as fast; what that does not read, by Python.

    It refuses NaN, and makes floats of integers of more than 64 bits, such as some ids are.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    with contextlib.suppress(ImportError, ValueError):
        import orjson

        if _LONG not in content.translate(_AS_ZEROS):
            return orjson.loads(content)
    found = json.loads(content.decode())
    if b"\\ud" in content.lower():  # half of a pair is no text, and could not be written again
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _shapes(features: list[Any]) -> npt.NDArray[np.object_]:
    """Polygons and points that are written as they should be, made all at once; else None."""
    shapes = np.full(len(features), None, object)
    found: dict[str, list[tuple[int, list[Any]]]] = {"Polygon": [], "Point": []}
    for number, feature in enumerate(features):
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if isinstance(geometry, dict) and geometry.get("type") in ("Polygon", "Point"):
            coordinates = geometry.get("coordinates")
            if isinstance(coordinates, list) and coordinates:
                found[geometry["type"]].append((number, coordinates))
    shapely = require_shapely()
    xy = _pairs([c for _, c in found["Point"]])
    if xy is not None:
        inside = (np.abs(xy) <= LARGEST_COORDINATE).all(axis=1)
        shapes[np.array([n for n, _ in found["Point"]])[inside]] = shapely.points(xy[inside])
    rings = [
        (n, c) for n, c in found["Polygon"] if all(isinstance(r, list) and len(r) > 3 for r in c)
    ]
    xy = _pairs([position for _, c in rings for r in c for position in r])
    if xy is None:
        return shapes
    sizes = np.array([len(r) for _, c in rings for r in c])
    counts = np.array([len(c) for _, c in rings])
    ends, firsts = np.cumsum(sizes), np.cumsum(counts) - counts
    right = np.logical_and.reduceat((np.abs(xy) <= LARGEST_COORDINATE).all(axis=1), ends - sizes)
    right &= (xy[ends - sizes] == xy[ends - 1]).all(axis=1)  # closed
    right = np.logical_and.reduceat(right, firsts)
    kept = np.repeat(right, counts)
    stops = [np.append(0, np.cumsum(n)) for n in (sizes[kept], counts[right])]
    kind = shapely.GeometryType.POLYGON
    made = shapely.from_ragged_array(kind, xy[np.repeat(kept, sizes)], stops)
    shapes[np.array([n for n, _ in rings])[right]] = made
    return shapes


def _pairs(given: list[Any]) -> npt.NDArray[np.float64] | None:
    """Positions as (n, 2); None where there are none, or they are not all numbers, alike."""
    try:
        lengths = set(map(len, given))
        kinds = set(map(type, itertools.chain.from_iterable(given)))
        if len(lengths) != 1 or not lengths <= {2, 3, 4} or not kinds <= {int, float}:
            return None
        flat = np.fromiter(itertools.chain.from_iterable(given), np.float64)
    except (TypeError, OverflowError):  # no list; an integer that no float holds
        return None
    return flat.reshape(len(given), -1)[:, :2]


def _features(document: Any, uri: str) -> Iterator[Any]:
    """Features in file order, each before those inside it."""
    kind = document.get("type") if isinstance(document, dict) else None
    known = isinstance(kind, str) and kind in {"FeatureCollection", "Feature", *_GEOMETRIES}
    if not known and not isinstance(document, list):
        raise AnnotationError(
            f"{uri or 'annotations'}: is JSON but not GeoJSON: it has the type {kind!r}; expected "
            "a FeatureCollection, a Feature, or a list of features",
            uri=uri,
        )
    waiting = [document]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, list):
            waiting += reversed(entry)
            continue
        if not isinstance(entry, dict):
            yield entry
            continue
        if entry.get("type") == "FeatureCollection":
            inner = entry.get("features")
            if not isinstance(inner, list):
                raise AnnotationError(
                    f'{uri or "annotations"}: a FeatureCollection without a list "features"',
                    uri=uri,
                )
            waiting += reversed(inner)
            continue
        properties = entry.get("properties")
        inner = properties.get("childObjects") if isinstance(properties, dict) else None
        if isinstance(inner, list):
            waiting += reversed(inner)
        root = isinstance(properties, dict) and properties.get("objectType") == "root"
        if not root and entry.get("id") != "PathRootObject":
            yield entry


def _draft(feature: Any, shape: Any, class_property: str | None) -> Draft:
    if not isinstance(feature, dict):
        raise DraftError(f"a feature is a JSON object, got {type(feature).__name__}")
    if _names_geometry(feature):
        feature = {"type": "Feature", "geometry": feature}
    if feature.get("type") != "Feature":
        raise DraftError(f'the type of a feature is "Feature", got {feature.get("type")!r}')
    properties = feature.get("properties")
    if properties is None:
        properties = {}
    if not isinstance(properties, dict):
        raise DraftError(f"properties are a JSON object, got {type(properties).__name__}")
    draft = Draft(shape)
    draft.facts = _facts(feature, properties, class_property, draft.flaws)
    geometry = feature.get("geometry")
    if geometry is not None:
        draft.geometry = _geometry(geometry, draft.flaws) if shape is None else shape
        if isinstance(geometry.get("plane"), dict):
            draft.facts["properties"]["plane"] = geometry["plane"]
    return draft


def _facts(
    feature: Any, properties: Mapping[str, Any], class_property: str | None, flaws: list[str]
) -> dict[str, Any]:
    given, colour = properties.get("classification"), properties.get("color")
    if isinstance(given, dict):
        first = given.get("color", given.get("colorRGB"))
        colour = colour if first is None else first
    if class_property is None:
        label = class_name(given)
    else:
        label = label_at(properties, class_property)
    name, id = properties.get("name"), feature.get("id")
    kind, identity = "annotation", "" if id is None else str(id)
    if identity in _KINDS:
        kind, identity = _KINDS[identity], ""
    rest = {k: v for k, v in properties.items() if k not in _OWN}
    if "measurements" in rest:
        rest["measurements"] = _measurements(rest["measurements"])
    return {
        "label": label,
        "name": "" if name is None else str(name),
        "colour": _colour(colour, flaws),
        "kind": str(properties.get("objectType", properties.get("object_type", kind))),
        "id": identity,
        "properties": rest,
    }


def _measurements(value: Any) -> Any:
    """Of QuPath before 0.4, a list of names and values, as the object that it writes since."""
    if not isinstance(value, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and "value" in entry
        for entry in value
    ):
        return value
    return {entry["name"]: entry["value"] for entry in value}


def _colour(value: Any, flaws: list[str]) -> tuple[int, int, int] | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        # Java's packed ARGB, signed
        return (value >> 16) & 255, (value >> 8) & 255, value & 255
    if isinstance(value, list) and len(value) in (3, 4):
        try:
            red, green, blue = map(round, value[:3])
        except (TypeError, ValueError, OverflowError):
            red = green = blue = -1
        if 0 <= red <= 255 and 0 <= green <= 255 and 0 <= blue <= 255:
            return red, green, blue
    flaws.append(f"the colour {str(value)[:40]} is not [red, green, blue]")
    return None


def _geometry(value: Any, flaws: list[str], depth: int = 0) -> Any:
    """A GeoJSON geometry as shapely's."""
    if not isinstance(value, dict) or not _names_geometry(value):
        kind = value.get("type") if isinstance(value, dict) else type(value).__name__
        raise DraftError(f"the geometry type {kind!r} is not one of {sorted(_GEOMETRIES)}")
    kind = value["type"]
    if kind == "GeometryCollection":
        return _collection(value, flaws, depth)
    shapely = require_shapely()
    given = value.get("coordinates")
    if not isinstance(given, list):
        raise DraftError(f"a {kind} has no list of coordinates")
    if kind == "Point":
        return shapely.Point() if not given else shapely.points(positions([given], kind, 1)[0])
    if kind == "MultiPoint":
        return shapely.MultiPoint(positions(given, kind, 1))
    if kind == "LineString":
        return shapely.linestrings(positions(given, kind, 2)) if given else shapely.LineString()
    if kind == "Polygon":
        return _polygon(given, flaws)
    if not all(isinstance(part, list) for part in given):
        raise DraftError(f"a {kind} is a list of lists of coordinates")
    if kind == "MultiLineString":
        return shapely.MultiLineString([positions(part, kind, 2) for part in given if part])
    return shapely.MultiPolygon([_polygon(part, flaws) for part in given if part])


def _names_geometry(value: Mapping[str, Any]) -> bool:
    kind = value.get("type")
    return isinstance(kind, str) and kind in _GEOMETRIES


def _collection(value: Any, flaws: list[str], depth: int) -> Any:
    inner = value.get("geometries")
    if not isinstance(inner, list) or depth >= _DEPTH:
        raise DraftError(
            f"geometry collections are nested more than {_DEPTH} deep"
            if depth >= _DEPTH
            else 'a GeometryCollection has no list "geometries"'
        )
    parts = [_geometry(part, flaws, depth + 1) for part in inner]
    return require_shapely().GeometryCollection(parts)


def _polygon(value: Any, flaws: list[str]) -> Any:
    shapely = require_shapely()
    if not all(isinstance(part, list) for part in value):
        raise DraftError("a polygon is a list of rings, each a list of positions")
    rings = [r for r in (ring(part, flaws) for part in value) if len(r)]
    return shapely.Polygon(rings[0], rings[1:]) if rings else shapely.Polygon()


# -------------------------------------------------------------------------- writing
def write_geojson(
    annotations: Annotations, path: PathLike | None, offset: Any = None
) -> str | None:
    """See ``Annotations.to_geojson``."""
    x, y = offset_of(offset)
    if (x, y) != (0, 0):
        annotations = annotations.translate(-x, -y)
    features = [_feature(item, index) for index, item in enumerate(annotations)]
    # one feature a line: files that version control and editors can live with
    body = ",\n".join(json.dumps(f, ensure_ascii=False, allow_nan=False) for f in features)
    text = f'{{"type": "FeatureCollection", "features": [\n{body}\n]}}\n'
    if path is None:
        return text
    content = text.encode("utf-8")
    if os.fspath(path).lower().endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    with new_file(path, overwrite=True) as partial:
        partial.write_bytes(content)
    return None


def _feature(item: Annotation, index: int) -> dict[str, Any]:
    if item.geometry.is_empty:
        raise AnnotationError(
            f"annotation {index} is empty, which QuPath does not read; leave it out with "
            "select(lambda a: not a.geometry.is_empty)",
            index=index,
        )
    from shapely.geometry import mapping

    shape = item.geometry
    if shape.geom_type == "LinearRing":
        shape = require_shapely().LineString(shape.coords)
    properties: dict[str, Any] = {"objectType": item.kind}
    if item.name:
        properties["name"] = item.name
    if item.label is not None:
        properties["classification"] = {"name": item.label}
    if item.colour is not None:
        own = properties.get("classification", properties)
        own["color"] = list(item.colour)
    geometry = dict(mapping(shape))
    try:
        rest = {k: _json(v, index) for k, v in item.properties.items()}
    except RecursionError:
        raise AnnotationError(
            f"annotation {index}: its properties are nested too deep to be written as JSON",
            index=index,
        ) from None
    if "plane" in rest:
        geometry["plane"] = rest.pop("plane")
    feature: dict[str, Any] = {"type": "Feature"}
    if item.id:
        feature["id"] = item.id
    return {**feature, "geometry": geometry, "properties": {**properties, **rest}}


def _json(value: Any, index: int) -> Any:
    """A value as JSON has it; numbers that are not finite are left out of objects."""
    value = plain(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): _json(v, index) for k, v in value.items() if _finite(v)}
    if isinstance(value, (list, tuple)):
        return [_json(v, index) if _finite(v) else None for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if _finite(value) else None
    raise AnnotationError(
        f"annotation {index}: the property {value!r} ({type(value).__name__}) is not JSON's; use "
        "numbers, texts, lists and dicts",
        index=index,
    )


def _finite(value: Any) -> bool:
    return not isinstance(value, (float, np.floating)) or math.isfinite(value)
