"""DICOM: series in folders, lists of files, and multi-frame files.

`DicomBackend` is the entry point. `header` reads one file's header, `grouping` makes volumes of
frames, `geometry` lays slices out, `values` and `pixels` give their values.
"""

from __future__ import annotations

from daskdmed.images.volumes.dicom.backend import DicomBackend

__all__ = ["DicomBackend"]
