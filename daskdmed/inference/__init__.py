"""Models over whole images: one value per window, a value per pixel, scan by scan.

`models` adapts what users give as a model, `dense` blends overlapping windows. Not covered:
where windows lie (`daskdmed.tiling`), what lies in a finished store (`daskdmed.store`) and how
it is drawn (`daskdmed.plot`).
"""
