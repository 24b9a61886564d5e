from .export.geojson import heatmap_contours as heatmap_contours
from .export.heatmaps import export_heatmap as export_heatmap
from .export.slides import slide_to_ome_zarr as slide_to_ome_zarr
from .export.volumes import export_volume as export_volume
from .ngff.labels import argmax_labels as argmax_labels
from .ngff.labels import write_labels as write_labels
from .ngff.pyramid import add_pyramid as add_pyramid
from .results.finished import open_heatmap as open_heatmap
