from .annotation import Annotation as Annotation
from .patches import PatchCoordinates as PatchCoordinates
from .reading import read_annotations as read_annotations
from .table import Annotations as Annotations
from .view import AnnotationView as AnnotationView
from .view import CollatedView as CollatedView
from .view import target_view as target_view
