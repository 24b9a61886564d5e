"""Seeds of what lies beside images: annotations, patch coordinates, manifests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from daskdmed import Dataset, Patient, Record
from daskdmed.cohort.annotations.patches import PatchCoordinates
from tests.fuzz.seeds import Seed

_RING = [[10, 10], [200, 12.5], [190, 150], [15, 140], [10, 10]]
_HOLE = [[50, 50], [60, 50], [60, 60], [50, 60], [50, 50]]
_QUPATH = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "a1-b2",
            "geometry": {"type": "Polygon", "coordinates": [_RING, _HOLE]},
            "properties": {
                "objectType": "annotation",
                "name": "first",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
                "measurements": {"area": 1.5, "grade": 3},
                "isLocked": False,
            },
        },
        {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[_RING], [_HOLE]]},
            "properties": {
                "classification": {"names": ["Stroma", "dense"], "colorRGB": -3140401},
                "childObjects": [
                    {
                        "type": "Feature",
                        "geometry": {"type": "Point", "coordinates": [3, 4], "plane": {"z": 1}},
                        "properties": {},
                    }
                ],
            },
        },
        {
            "type": "Feature",
            "geometry": {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "LineString", "coordinates": [[0, 0], [5, 5], [9, 1]]},
                    {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]},
                    {
                        "type": "MultiLineString",
                        "coordinates": [[[0, 0], [5, 5]], [[1, 1], [2, 0]]],
                    },
                ],
            },
            "properties": None,
        },
    ],
}
_ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
<Annotation Name="A 0" Type="Polygon" PartOfGroup="tumor" Color="#F4FA58"><Coordinates>
<Coordinate Order="0" X="10.5" Y="10" /><Coordinate Order="1" X="200" Y="12" />
<Coordinate Order="2" X="190" Y="150,25" /></Coordinates></Annotation>
<Annotation Name="A 1" Type="Rectangle" PartOfGroup="None" Color="#FF0000"><Coordinates>
<Coordinate Order="1" X="30" Y="10" /><Coordinate Order="0" X="10" Y="10" />
<Coordinate Order="2" X="30" Y="40" /><Coordinate Order="3" X="10" Y="40" /></Coordinates>
</Annotation>
<Annotation Name="A 2" Type="Dot" PartOfGroup="lesion"><Coordinates>
<Coordinate Order="0" X="7" Y="8" /></Coordinates></Annotation></Annotations>
<AnnotationGroups><Group Name="tumor" PartOfGroup="lesion" Color="#64FE2E"><Attributes /></Group>
<Group Name="lesion" PartOfGroup="None" Color="#64FE2E"><Attributes /></Group></AnnotationGroups>
</ASAP_Annotations>
"""
_IMAGESCOPE = """<?xml version="1.0" encoding="UTF-8"?>
<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="Tumor" LineColor="65280" Visible="1">
<Attributes><Attribute Name="Description" Id="0" Value="mine"/></Attributes>
<Regions><RegionAttributeHeaders/><Region Id="1" Type="0" Text="one" NegativeROA="0"><Attributes/>
<Vertices><Vertex X="10" Y="10" Z="0"/><Vertex X="200" Y="12"/><Vertex X="190" Y="150"/>
<Vertex X="15" Y="140"/></Vertices></Region>
<Region Id="2" Type="1" NegativeROA="1"><Vertices><Vertex X="50" Y="50"/><Vertex X="60" Y="60"/>
</Vertices></Region><Region Id="3" Type="2"><Vertices><Vertex X="50" Y="50"/>
<Vertex X="80" Y="60"/></Vertices></Region><Region Id="4" Type="4"><Vertices><V X="1" Y="2"/>
<V X="3" Y="4"/></Vertices></Region></Regions><Plots/></Annotation></Annotations>
"""
_NDPA = """<?xml version="1.0" encoding="utf-8" standalone="yes"?>
<annotations><ndpviewstate id="1"><title>tumor</title><details/>
<coordformat>nanometers</coordformat><lens>1.2</lens><x>1000</x><y>-2000</y><z>0</z>
<showtitle>0</showtitle><annotation type="freehand" displayname="AnnotateFreehand" color="#ff0000">
<measuretype>0</measuretype><closed>1</closed><pointlist><point><x>1000</x><y>1000</y></point>
<point><x>50000</x><y>2000</y></point><point><x>40000</x><y>60000</y></point></pointlist>
<specialtype>rectangle</specialtype></annotation></ndpviewstate>
<ndpviewstate id="2"><title>c</title><coordformat>nanometers</coordformat>
<annotation type="circle" color="#00ff00"><x>5000</x><y>6000</y><radius>3000</radius></annotation>
</ndpviewstate><ndpviewstate id="3"><title>r</title><annotation type="linearmeasure">
<x1>1</x1><y1>2</y1><x2>30000</x2><y2>40000</y2></annotation></ndpviewstate></annotations>
"""
_MANIFEST_CSV = """patient,record,uri,mpp,backend,label:grade,fact:stain,label:more:json
p1,wsi,a.svs,0.5,,2,HE,"{""a"": [1, 2]}"
p1,mask,https://example.org/m.tif,0.5 0.25,tiff,2,,"{""a"": [1, 2]}"
p2,,scan.nii.gz,,nifti,3,"x, y",null
"""


def make(folder: Path) -> Iterator[Seed]:
    texts = {
        "qupath.geojson": json.dumps(_QUPATH, indent=1),
        "list.geojson": json.dumps(_QUPATH["features"]),
        "asap.xml": _ASAP,
        "imagescope.xml": _IMAGESCOPE,
        "slide.ndpi.ndpa": _NDPA,
    }
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, "utf-8")
        kind = "geojson" if name.endswith("json") else "xml"
        options = {"offset": (5000, 6000), "mpp": 0.25} if name.endswith("ndpa") else {}
        yield Seed.of(f"{kind}/{path.stem}", "annotations", path, 3, **options)
    path = folder / "zipped.geojson.gz"
    path.write_bytes(gzip.compress(texts["qupath.geojson"].encode(), mtime=0))
    yield Seed.of("geojson/gz", "annotations", path, 2)
    path = folder / "latin.xml"
    text = _ASAP.replace('version="1.0"', 'version="1.0" encoding="iso-8859-1"')
    path.write_bytes(text.replace("tumor", "Geschwür").encode("latin-1"))
    yield Seed.of("xml/latin-1", "annotations", path, 2)
    yield from _manifests(folder)
    yield from _patches(folder)


def _manifests(folder: Path) -> Iterator[Seed]:
    path = folder / "cohort.csv"
    path.write_text(_MANIFEST_CSV, "utf-8")
    yield Seed.of("manifest/csv", "manifest", path, 2)
    path = folder / "cohort.json"
    records = {
        "wsi": Record("a.svs", mpp=0.5, facts={"stain": "HE"}),
        "ct": Record("a.nii", spacing=1),
    }
    Dataset(
        "d", [Patient("p1", records, {"grade": 2}), Patient(7, {"wsi": Record("b.svs")})]
    ).to_manifest(path)
    yield Seed.of("manifest/json", "manifest", path, 2)


def _patches(folder: Path) -> Iterator[Seed]:
    coords = np.stack(np.meshgrid([0, 512, 1024], [256, 768]), -1).reshape(-1, 2)
    for kind in ("trident", "clam"):
        path = folder / f"{kind}.h5"
        patches = PatchCoordinates(
            coords, 256, (512, 512), level=1, extent0=(4000, 3000), power0=40, power=20, name="s"
        )
        patches.write(path, kind)
        yield Seed.of(f"hdf5/{kind}", "patches", path)
