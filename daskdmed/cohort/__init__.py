"""Who the images belong to: records, patients, datasets, splits and manifests.

Everything here is a small frozen value that pickles without open files; pixels are read
only when `Record.view` or `Record.open` is called. Names are imported on first use.
"""

# no future imports here: the name "annotations" is a folder's
import lazy_loader

# the names and where they come from stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
