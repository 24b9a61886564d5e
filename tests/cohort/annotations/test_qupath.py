"""GeoJSON to QuPath and back: what each of its versions writes, and what it reads of ours.

`qupath_reads` keeps to the rules of `PathObjectTypeAdapter` and `PathClassTypeAdapter` in QuPath
0.5 (qupath-core, qupath.lib.io). The scripts in docs/qupath run on a Java with Groovy where
DASKDMED_GROOVY names its jar (groovy-all, or groovy and groovy-json with a colon between).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from daskdmed import Annotations, export_heatmap, heatmap, read_annotations
from daskdmed.cohort.annotations import Annotation
from daskdmed.store import open_heatmap
from daskdmed.store.results.georeference import Georeference

SCRIPTS = Path(__file__).parents[3] / "docs" / "qupath"
SQUARE = [[10, 10], [50, 10], [50, 40], [10, 40], [10, 10]]
HOLE = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
CELL = {"type": "Polygon", "coordinates": [HOLE]}
KINDS = {"tile", "cell", "detection", "annotation", "tmaCore", "root"}
IDS = [str(uuid.UUID(int=n)) for n in (7, 8)]


def version_2():
    """0.2: a list, kinds as ids, colours as packed integers, measurements as a list."""
    measured = [{"name": "Area µm^2", "value": 12.5}, {"name": "Circularity", "value": 0.5}]
    tumour = {"name": "Tumor", "colorRGB": -3670016}
    return [
        {
            "type": "Feature",
            "id": "PathAnnotationObject",
            "geometry": POLYGON,
            "properties": {
                "classification": tumour, "isLocked": True, "measurements": measured,
                "name": "Region 1",
            },
        },
        {
            "type": "Feature",
            "id": "PathCellObject",
            "geometry": CELL,
            "nucleusGeometry": CELL,
            "properties": {
                "classification": {"name": "Tumor: Positive", "colorRGB": -377282},
                "isLocked": False, "measurements": [],
            },
        },
    ]  # fmt: skip


def version_3():
    """0.3: `object_type`, and a FeatureCollection where it is asked for."""
    features = version_2()
    for feature, kind in zip(features, ("annotation", "cell"), strict=True):
        del feature["id"]
        feature["properties"]["object_type"] = kind
    return {"type": "FeatureCollection", "features": features}


def version_5():
    """0.4 and 0.5: UUIDs, `objectType`, measurements as an object, colours as lists."""
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": IDS[0],
                "geometry": POLYGON,
                "properties": {
                    "objectType": "annotation",
                    "name": "Region 1",
                    "classification": {"name": "Tumor", "color": [200, 0, 0]},
                    "isLocked": True,
                    "measurements": {"Area µm^2": 12.5, "Circularity": 0.5},
                    "metadata": {"ANNOTATION_DESCRIPTION": "by hand"},
                },
            },
            {
                "type": "Feature",
                "id": IDS[1],
                "geometry": CELL,
                "nucleusGeometry": CELL,
                "properties": {
                    "objectType": "cell",
                    "classification": {"names": ["Tumor", "Positive"], "color": [250, 62, 62]},
                },
            },
        ],
    }


def qupath_reads(document):
    """The objects that QuPath makes of a document, or what it would fail on."""
    features = document["features"] if isinstance(document, dict) else document
    return [one_object(feature) for feature in features]


def one_object(feature):
    properties = feature["properties"]
    kind = properties.get("objectType", properties.get("object_type", "unknown"))
    found = {"kind": kind if kind in KINDS else "annotation"}
    if feature.get("id", "").startswith("Path"):
        found["kind"] = feature["id"].removeprefix("Path").removesuffix("Object").lower()
    elif "id" in feature:
        with contextlib.suppress(ValueError):  # and a new one is made
            found["id"] = str(uuid.UUID(feature["id"]))
    found["shape"] = shape(feature["geometry"])
    assert not found["shape"].is_empty
    assert isinstance(properties.get("name", ""), str)
    found["name"] = properties.get("name")
    given = properties.get("classification")
    if given is not None:
        names = given.get("names") or given["name"].split(": ")
        colour = given.get("color")
        if colour is None and "colorRGB" in given:
            packed = given["colorRGB"]
            colour = [(packed >> 16) & 255, (packed >> 8) & 255, packed & 255]
        found["class"] = (tuple(names), tuple(colour or ()))
    colour = properties.get("color")
    if colour is not None:
        assert len(colour) == 3
        found["colour"] = tuple(map(int, colour))
    found["locked"] = bool(properties.get("isLocked", False))
    measured = properties.get("measurements", {})
    if isinstance(measured, list):
        measured = {m["name"]: m["value"] for m in measured}
    # a Map<String, Double>: nothing else goes in
    assert all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in measured.values())
    found["measurements"] = measured
    found["metadata"] = {k: str(v) for k, v in properties.get("metadata", {}).items()}
    return found


@pytest.mark.parametrize("written", [version_2, version_3, version_5])
def test_every_version_says_the_same(written):
    region, cell = read_annotations(json.dumps(written()))
    assert (region.kind, cell.kind) == ("annotation", "cell")
    assert (region.label, region.colour) == ("Tumor", (200, 0, 0))
    assert (cell.label, cell.colour) == ("Tumor: Positive", (250, 62, 62))
    assert (region.name, cell.name) == ("Region 1", "")
    assert region.properties["measurements"] == {"Area µm^2": 12.5, "Circularity": 0.5}
    assert region.properties["isLocked"] is True
    assert region.geometry.area == 40 * 30 - 100
    assert [region.id, cell.id] == (IDS if written is version_5 else ["", ""])


@pytest.mark.parametrize("written", [version_2, version_3, version_5])
def test_qupath_reads_back_what_it_wrote(written, tmp_path):
    document = written()
    read_annotations(json.dumps(document)).to_geojson(tmp_path / "a.geojson")
    again = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert again["type"] == "FeatureCollection"
    before, after = qupath_reads(document), qupath_reads(again)
    for one, other in zip(before, after, strict=True):
        assert one.pop("shape").equals(other.pop("shape"))
        assert one == other


def test_roots_and_measurements_that_are_no_numbers():
    root = {"type": "Feature", "id": "PathRootObject", "geometry": None, "properties": {}}
    text = json.dumps([root, *version_2()]).replace("12.5", "NaN")
    region, _ = read_annotations(text)
    assert np.isnan(region.properties["measurements"]["Area µm^2"])
    (again, _) = qupath_reads(json.loads(Annotations([region, region]).to_geojson()))
    assert again["measurements"] == {"Circularity": 0.5}
    # a list of anything else stays as it is
    odd = version_2()
    odd[0]["properties"]["measurements"] = [1, {"name": "a"}]
    assert read_annotations(json.dumps(odd))[0].properties["measurements"] == [1, {"name": "a"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    image = np.zeros((96, 160), np.float32)
    image[20:60, 30:110] = 1
    out = tmp_path_factory.mktemp("qupath") / "scores.zarr"
    heatmap(image, lambda w: w.mean(axis=(1, 2)), kernel_size=16, stride=8, out=out)
    return out


def test_qupath_reads_what_results_become(store, tmp_path):
    export_heatmap(store, tmp_path / "regions.geojson", thresholds=0.5)
    export_heatmap(store, tmp_path / "tiles.geojson", kind="tiles", above=0.5)
    (region,) = qupath_reads(json.loads((tmp_path / "regions.geojson").read_text()))
    assert region["kind"] == "annotation"
    assert region["class"][0] == ("heatmap",)
    assert region["measurements"] == {"threshold": 0.5}
    wanted = shapely.box(30, 20, 110, 60)
    assert region["shape"].symmetric_difference(wanted).area < 0.15 * wanted.area
    tiles = qupath_reads(json.loads((tmp_path / "tiles.geojson").read_text()))
    values = open_heatmap(store).lazy().compute()
    assert len(tiles) == (values >= 0.5).sum()
    for tile in tiles:
        assert tile["kind"] == "tile"
        left, top, right, bottom = map(int, tile["shape"].bounds)
        value = values[top // 8, left // 8]
        assert list(tile["measurements"].values()) == pytest.approx([value])
        assert (right - left, bottom - top) == (min(16, 160 - left), min(16, 96 - top))


def test_shapes_of_every_kind_are_read_by_qupath():
    drawn = [
        Annotation(shapely.Point(3, 4), "Cell", kind="detection"),
        Annotation(shapely.MultiPoint([(1, 2), (3, 4)]), "Cells"),
        Annotation(shapely.LineString([(0, 0), (5, 5)]), name="a line"),
        Annotation(shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(5, 5, 9, 9)])),
        Annotation(shapely.box(0, 0, 2, 2), colour=(1, 2, 3), id="no UUID"),
    ]
    found = qupath_reads(json.loads(Annotations(drawn).to_geojson()))
    assert [o["shape"].geom_type for o in found] == [a.geometry.geom_type for a in drawn]
    assert found[4]["colour"] == (1, 2, 3)
    assert "id" not in found[4]


def test_the_scripts_are_shown_in_the_manual():
    page = (SCRIPTS.parent / "qupath.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"qupath/(\w+\.groovy)", page))
    assert shown == {p.name for p in SCRIPTS.glob("*.groovy")}


# ------------------------------------------------------------------ on a Java, if there is one
#: what the scripts ask of QuPath, and what becomes of it
MOCKS = {
    "qupath/lib/regions/ImageRegion.java": """package qupath.lib.regions;
public class ImageRegion {
    public final String text;
    ImageRegion(String text) { this.text = text; }
    public static ImageRegion createInstance(int x, int y, int w, int h, int z, int t) {
        return new ImageRegion(x + " " + y + " " + w + " " + h + " " + z + " " + t);
    }
}""",
    "qupath/lib/gui/viewer/overlays/BufferedImageOverlay.java": """
package qupath.lib.gui.viewer.overlays;
public class BufferedImageOverlay {
    public final java.awt.image.BufferedImage image;
    public final qupath.lib.regions.ImageRegion region;
    public BufferedImageOverlay(Object options, qupath.lib.regions.ImageRegion region,
                                java.awt.image.BufferedImage image) {
        this.image = image; this.region = region;
    }
}""",
    "javafx/application/Platform.java": """package javafx.application;
public class Platform { public static void runLater(Runnable r) { r.run(); } }""",
    "qupath/lib/common/GeneralTools.java": """package qupath.lib.common;
public class GeneralTools {
    public static String getNameWithoutExtension(java.io.File file) {
        String name = file.getName();
        return name.substring(0, name.lastIndexOf('.'));
    }
}""",
    "Run.java": """import groovy.lang.*;
import java.io.File;
import java.util.*;
public class Run {
    public static class Options { public void setShowPixelClassification(boolean b) {} }
    public static class Viewer {
        public Options getOverlayOptions() { return new Options(); }
        public void repaint() {}
        public void setCustomPixelLayerOverlay(
                qupath.lib.gui.viewer.overlays.BufferedImageOverlay o) throws Exception {
            System.out.println("REGION " + o.region.text);
            javax.imageio.ImageIO.write(o.image, "png", new File("overlay.png"));
        }
    }
    public static abstract class QP extends Script {
        public String buildFilePath(String a, String b) { return a + "/" + b; }
        public boolean mkdirs(String path) { return new File(path).mkdirs(); }
        public Viewer getCurrentViewer() { return new Viewer(); }
        public Run getCurrentServer() { return new Run(); }
        public List<String> getAnnotationObjects() { return Arrays.asList("a", "b"); }
        public boolean importObjectsFromFile(String p) {
            System.out.println("IMPORT " + p); return true; }
        public void exportObjectsToGeoJson(Collection<?> c, String p, String... options) {
            System.out.println("EXPORT " + p + " " + Arrays.toString(options)); }
    }
    public List<java.net.URI> getURIs() {
        return Arrays.asList(new File("slides/slide_1.svs").toURI());
    }
    public static void main(String[] args) throws Exception {
        var settings = new org.codehaus.groovy.control.CompilerConfiguration();
        settings.setScriptBaseClass(QP.class.getName());
        var binding = new Binding(Map.of("PROJECT_BASE_DIR", "project"));
        var shell = new GroovyShell(Run.class.getClassLoader(), binding, settings);
        shell.evaluate(new File(args[0]));
    }
}""",
}


@pytest.fixture(scope="module")
def groovy(tmp_path_factory):
    jar = os.environ.get("DASKDMED_GROOVY")
    if not jar:
        pytest.skip("DASKDMED_GROOVY does not name Groovy's jar")
    folder = tmp_path_factory.mktemp("groovy")
    for name, text in MOCKS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    subprocess.run(["javac", "-cp", jar, *MOCKS], cwd=folder, check=True)

    def run(script, place):
        line = ["java", "-Djava.awt.headless=true", "-cp", f"{jar}:{folder}", "Run"]
        done = subprocess.run(
            [*line, str(SCRIPTS / script)], cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_script_that_exports(groovy, tmp_path):
    out = groovy("export_annotations.groovy", tmp_path)
    path = "project/annotations/slide_1.geojson"
    assert f"EXPORT {path} [FEATURE_COLLECTION]" in out
    assert f"2 annotations: {path}" in out


def test_the_script_that_shows_results(groovy, store, tmp_path):
    from PIL import Image

    results = tmp_path / "project" / "results"
    results.mkdir(parents=True)
    export_heatmap(store, results / "slide_1.regions.geojson", thresholds=0.5)
    export_heatmap(store, results / "slide_1.tif", vmin=0, vmax=1)
    out = groovy("show_results.groovy", tmp_path)
    assert "IMPORT project/results/slide_1.regions.geojson" in out
    assert "tiles" not in out
    # 11 x 19 cells of 8 pixels around the centres of windows of 16
    assert "REGION 4 4 152 88 0 0" in out
    shown = np.asarray(Image.open(tmp_path / "overlay.png"))
    values = open_heatmap(store).lazy().compute()
    assert shown.shape[:2] == values.shape
    red = shown[..., 0] > shown[..., 2]
    assert np.array_equal(red, values > 0.5) or (red != (values > 0.5)).mean() < 0.05
    assert (shown[..., 3] == 255).all()
    # what was not computed is clear
    holes = np.where(values > 0.5, values, np.nan).astype(np.float32)
    place = Georeference((16, 16), (8, 8), (1.0, 1.0))
    export_heatmap(
        holes, results / "slide_1.tif", vmin=0, vmax=1, overwrite=True, georeference=place
    )
    groovy("show_results.groovy", tmp_path)
    clear = np.asarray(Image.open(tmp_path / "overlay.png"))[..., 3] == 0
    assert np.array_equal(clear, np.isnan(holes))
