"""NIfTI-1 and NIfTI-2: what the header means, and voxels read where they lie or decoded once."""

from __future__ import annotations

from daskdmed.images.volumes.nifti.backend import NiftiBackend

__all__ = ["NiftiBackend"]
