// Results of daskdmed over the open image: shapes of GeoJSON files, and a heatmap as an overlay.
// QuPath 0.3 to 0.6. Of slide_1.svs are taken, where they exist,
//
//   results/slide_1.regions.geojson   export_heatmap(..., "slide_1.regions.geojson", thresholds=0.5)
//   results/slide_1.tiles.geojson     export_heatmap(..., "slide_1.tiles.geojson", kind="tiles")
//   results/slide_1.tif               export_heatmap(..., "slide_1.tif", channel=0, vmin=0, vmax=1)
//
// The overlay is shown with "Show pixel classification" (C); its slider of opacity is the viewer's.

import groovy.json.JsonSlurper
import java.awt.Color
import java.awt.image.BufferedImage
import javafx.application.Platform
import javax.imageio.ImageIO
import javax.imageio.plugins.tiff.BaselineTIFFTagSet
import javax.imageio.plugins.tiff.TIFFDirectory
import qupath.lib.common.GeneralTools
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.regions.ImageRegion

def folder = buildFilePath(PROJECT_BASE_DIR, "results")
// QuPath crops MRXS: there openslide.bounds-x and openslide.bounds-y of the slide
def offset = [x: 0.0, y: 0.0]
// pixels along each side of the level that is shown
def largest = 4096

def image = new File(getCurrentServer().getURIs().iterator().next().getPath())
def name = GeneralTools.getNameWithoutExtension(image)

for (kind in ["regions", "tiles"]) {
    def file = new File(folder, name + "." + kind + ".geojson")
    if (file.exists()) {
        importObjectsFromFile(file.getPath())
        println "objects of ${file}"
    }
}

def file = new File(folder, name + ".tif")
if (!file.exists())
    return
def reader = ImageIO.getImageReadersByFormatName("tiff").next()
def stream = ImageIO.createImageInputStream(file)
reader.setInput(stream)
// where it lies is said in the description of the first level
def tags = TIFFDirectory.createFromMetadata(reader.getImageMetadata(0))
def described = tags.getTIFFField(BaselineTIFFTagSet.TAG_IMAGE_DESCRIPTION).getAsString(0)
def extent = new JsonSlurper().parseText(described).level0_extent
def level = 0
while (level + 1 < reader.getNumImages(true)
        && Math.max(reader.getWidth(level), reader.getHeight(level)) > largest)
    level++
def values = reader.read(level)
stream.close()

// grey levels of one byte become colours, and 0, which was not computed, becomes clear
def shown = new BufferedImage(values.getWidth(), values.getHeight(), BufferedImage.TYPE_INT_ARGB)
def grey = values.getRaster().getNumBands() == 1
for (int y = 0; y < values.getHeight(); y++) {
    for (int x = 0; x < values.getWidth(); x++) {
        if (!grey) {
            shown.setRGB(x, y, values.getRGB(x, y))
            continue
        }
        int value = values.getRaster().getSample(x, y, 0)
        // from blue by green to red
        float hue = (float) (0.66 * (255 - value) / 254)
        if (value > 0)
            shown.setRGB(x, y, Color.HSBtoRGB(hue, 1.0f, 1.0f))
    }
}

int left = Math.round(extent.x[0] - offset.x), right = Math.round(extent.x[1] - offset.x)
int top = Math.round(extent.y[0] - offset.y), bottom = Math.round(extent.y[1] - offset.y)
def region = ImageRegion.createInstance(left, top, right - left, bottom - top, 0, 0)
def viewer = getCurrentViewer()
Platform.runLater {
    def options = viewer.getOverlayOptions()
    options.setShowPixelClassification(true)
    viewer.setCustomPixelLayerOverlay(new BufferedImageOverlay(options, region, shown))
    viewer.repaint()
}
println "heatmap of ${file}, level ${level}"
