"""DICOM whole-slide images: a folder of instances, or one file of it, as a slide."""

from __future__ import annotations

from daskdmed.images.dicomwsi.backend import DicomSlideBackend

__all__ = ["DicomSlideBackend"]
