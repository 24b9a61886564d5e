"""Other libraries' own names over daskdmed, so that scripts written for them run.

`daskdmed.compat.medsegpy` has MedSegPy's. Each is imported when it is used.
"""

from __future__ import annotations
