// Annotations of the open image as GeoJSON, for daskdmed.read_annotations and Record(path).
// "Run > Run for project" writes a file for each image of the project. QuPath 0.3 to 0.6.
//
// The file is named like the file of the image: slide_1.svs gives annotations/slide_1.geojson.

import qupath.lib.common.GeneralTools

def folder = buildFilePath(PROJECT_BASE_DIR, "annotations")
mkdirs(folder)
def image = new File(getCurrentServer().getURIs().iterator().next().getPath())
def path = buildFilePath(folder, GeneralTools.getNameWithoutExtension(image) + ".geojson")

// classes, colours, names, locks and measurements go along; coordinates are pixels of level 0
def annotations = getAnnotationObjects()
exportObjectsToGeoJson(annotations, path, "FEATURE_COLLECTION")
println "${annotations.size()} annotations: ${path}"
