"""QuPath's GeoJSON: what it says about each object, and writing it.

Read: a FeatureCollection, a list of features, one feature or one bare geometry; all
geometry types of RFC 7946; classifications as text, as ``{"name", "color"}`` with
``[r, g, b]``, as ``{"name", "colorRGB"}`` with a packed integer (QuPath 0.2 and 0.3), or as
``{"names": [...]}``, joined with ": " as QuPath shows them; objects inside objects
(``childObjects``), which come after, and paint over, the one that holds them. The nucleus of
a cell (``nucleusGeometry``) is not read. Not covered: reading files, checking and repairing
(`daskdmed.cohort.annotations.reading`, `.drafts`).
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from daskdmed.cohort.annotations.drafts import Draft, DraftError, offset_of, positions, ring
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
#: properties that have a field of their own
_OWN = frozenset({"classification", "name", "color", "objectType", "object_type", "childObjects"})


def parse_geojson(content: bytes, uri: str) -> Iterator[tuple[int, Callable[[], Draft]]]:
    """Objects of a GeoJSON document, for `Checker.collect`.

    Raises
    ------
    AnnotationError
        It is not JSON (truncated, not UTF-8, nested too deep), or not GeoJSON.
    """
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise AnnotationError(
            f"{uri or 'annotations'}: the JSON is nested too deep to be GeoJSON", uri=uri
        ) from None
    except ValueError as error:
        raise AnnotationError(
            f"{uri or 'annotations'}: is not complete JSON: {error}; export it again", uri=uri
        ) from error
    for index, feature in enumerate(_features(document, uri)):
        yield index, lambda index=index, feature=feature: _draft(index, feature)  # type: ignore[misc]


def _features(document: Any, uri: str) -> Iterator[Any]:
    """Features in file order, each before those inside it."""
    kind = document.get("type") if isinstance(document, dict) else None
    if kind not in {"FeatureCollection", "Feature", *_GEOMETRIES} and not isinstance(
        document, list
    ):
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
        if not (isinstance(properties, dict) and properties.get("objectType") == "root"):
            yield entry


def _draft(index: int, feature: Any) -> Draft:
    if not isinstance(feature, dict):
        raise DraftError(f"a feature is a JSON object, got {type(feature).__name__}")
    if feature.get("type") in _GEOMETRIES:
        feature = {"type": "Feature", "geometry": feature}
    if feature.get("type") != "Feature":
        raise DraftError(f'the type of a feature is "Feature", got {feature.get("type")!r}')
    properties = feature.get("properties")
    if properties is None:
        properties = {}
    if not isinstance(properties, dict):
        raise DraftError(f"properties are a JSON object, got {type(properties).__name__}")
    draft = Draft(index, None)
    draft.facts = _facts(feature, properties, draft.flaws)
    geometry = feature.get("geometry")
    if geometry is not None:
        draft.geometry = _geometry(geometry, draft.flaws)
        if isinstance(geometry.get("plane"), dict):
            draft.facts["properties"]["plane"] = geometry["plane"]
    return draft


def _facts(feature: Any, properties: Any, flaws: list[str]) -> dict[str, Any]:
    label, colour = None, properties.get("color")
    given = properties.get("classification")
    if isinstance(given, str):
        label = given
    elif isinstance(given, dict):
        label = given.get("name")
        if label is None and isinstance(given.get("names"), list):
            label = ": ".join(str(n) for n in given["names"])
        first = given.get("color", given.get("colorRGB"))
        colour = colour if first is None else first
    elif given is not None:
        raise DraftError(f"a classification is a text or an object, got {type(given).__name__}")
    if label is not None and not isinstance(label, str):
        raise DraftError(f"the name of a classification is a text, got {label!r}")
    name = properties.get("name")
    return {
        "label": label or None,
        "name": "" if name is None else str(name),
        "colour": _colour(colour, flaws),
        "kind": str(properties.get("objectType", properties.get("object_type", "annotation"))),
        "id": "" if feature.get("id") is None else str(feature["id"]),
        "properties": {k: v for k, v in properties.items() if k not in _OWN},
    }


def _colour(value: Any, flaws: list[str]) -> tuple[int, int, int] | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        # Java's packed ARGB, signed
        return (value >> 16) & 255, (value >> 8) & 255, value & 255
    if isinstance(value, list) and len(value) in (3, 4):
        try:
            red, green, blue = (round(float(c)) for c in value[:3])
        except (TypeError, ValueError, OverflowError):
            red = -1
        if red >= 0 and all(0 <= c <= 255 for c in (red, green, blue)):
            return red, green, blue
    flaws.append(f"the colour {str(value)[:40]} is not [red, green, blue]")
    return None


def _geometry(value: Any, flaws: list[str], depth: int = 0) -> Any:
    """A GeoJSON geometry as shapely's."""
    if not isinstance(value, dict) or value.get("type") not in _GEOMETRIES:
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
    target = Path(os.path.abspath(path))
    content = text.encode("utf-8")
    if target.suffix.lower() == ".gz":
        content = gzip.compress(content, mtime=0)
    with new_file(target, overwrite=True) as partial:
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
    rest = {k: _json(v, index) for k, v in item.properties.items()}
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
