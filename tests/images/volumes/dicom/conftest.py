"""Everything here needs pydicom, and nibabel as a reference."""

from __future__ import annotations

import importlib.util

if not all(importlib.util.find_spec(name) for name in ("pydicom", "nibabel")):
    collect_ignore_glob = ["test_*.py"]
