from .arrays import assert_same_pixels as assert_same_pixels
from .arrays import coordinate_image as coordinate_image
from .arrays import coordinates_of as coordinates_of
from .conformance import BackendConformance as BackendConformance
